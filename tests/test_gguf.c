/* GGUF files: those of tests/data, files built byte by byte here, and damaged copies of both. A
 * damaged file must give an error that names the fault, and never a fault of ours. */
#include "models/gguf.h"

#include <fcntl.h>
#include <unistd.h>

#include "src/base/mem.h"
#include "tests/test.h"

static char folder[256], path[320];

static const char *data_path(const char *name) {
    static char out[512];
    const char *data = getenv("DT_TEST_DATA");
    snprintf(out, sizeof out, "%s/%s", data ? data : "tests/data", name);
    return out;
}

/* ---- a builder of files */

typedef struct bytes {
    uint8_t *data;
    size_t n, n_max;
} bytes;

static void put(bytes *b, const void *data, size_t n) {
    if (b->n + n > b->n_max) {
        b->n_max = 2 * (b->n + n);
        b->data = realloc(b->data, b->n_max);
        if (!b->data)
            abort();
    }
    if (n)
        memcpy(b->data + b->n, data, n);
    b->n += n;
}

static void put_u8(bytes *b, uint8_t v) {
    put(b, &v, 1);
}

static void put_u32(bytes *b, uint32_t v) {
    put(b, &v, 4);
}

static void put_u64(bytes *b, uint64_t v) {
    put(b, &v, 8);
}

static void put_text(bytes *b, const char *text) {
    put_u64(b, strlen(text));
    put(b, text, strlen(text));
}

static void put_key(bytes *b, const char *key, uint32_t type) {
    put_text(b, key);
    put_u32(b, type);
}

static void put_key_u32(bytes *b, const char *key, uint32_t value) {
    put_key(b, key, 4);
    put_u32(b, value);
}

static void put_key_u64(bytes *b, const char *key, uint64_t value) {
    put_key(b, key, 10);
    put_u64(b, value);
}

static void put_head(bytes *b, uint32_t version, uint64_t n_tensors, uint64_t n_keys) {
    b->n = 0;
    put(b, "GGUF", 4);
    put_u32(b, version);
    put_u64(b, n_tensors);
    put_u64(b, n_keys);
}

static void put_tensor(
    bytes *b, const char *name, uint64_t n_rows, uint64_t n_cols, uint32_t type, uint64_t offset) {
    put_text(b, name);
    put_u32(b, 2);
    put_u64(b, n_cols);
    put_u64(b, n_rows);
    put_u32(b, type);
    put_u64(b, offset);
}

static void put_data(bytes *b, size_t alignment, size_t n) {
    while (b->n % alignment)
        put_u8(b, 0);
    for (size_t i = 0; i < n; i++)
        put_u8(b, (uint8_t)i);
}

static void write_file(const char *to, const void *data, size_t n) {
    FILE *file = fopen(to, "wb");
    if (!file || (n && fwrite(data, 1, n, file) != n) || fclose(file)) {
        perror(to);
        exit(1);
    }
}

static bytes read_file(const char *from) {
    bytes b = {NULL, 0, 0};
    uint8_t chunk[4096];
    FILE *file = fopen(from, "rb");
    if (!file) {
        perror(from);
        exit(1);
    }
    for (size_t n; (n = fread(chunk, 1, sizeof chunk, file)) > 0;)
        put(&b, chunk, n);
    fclose(file);
    return b;
}

/* Opens what has been built; a file that opens by mistake is closed again. */
static dt_err open_bytes(const bytes *b) {
    dt_gguf *gguf;
    write_file(path, b->data, b->n);
    dt_err err = dt_gguf_open(&gguf, path);
    dt_gguf_close(gguf);
    return err;
}

/* ---- a file with a key of every kind */

static void put_array(bytes *b, const char *key, uint32_t type, uint64_t n) {
    put_key(b, key, 9);
    put_u32(b, type);
    put_u64(b, n);
}

static void build_all(bytes *b) {
    put_head(b, 3, 2, 17);
    put_key(b, "k.u8", 0);
    put_u8(b, 200);
    put_key(b, "k.i8", 1);
    put_u8(b, (uint8_t)-7);
    put_key(b, "k.u16", 2);
    put(b, "\x39\x30", 2);
    put_key(b, "k.i16", 3);
    put(b, "\xfe\xff", 2);
    put_key_u32(b, "k.u32", 4000000000u);
    put_key(b, "k.i32", 5);
    put_u32(b, (uint32_t)-5);
    float f = 0.5f;
    put_key(b, "k.f32", 6);
    put(b, &f, 4);
    put_key(b, "k.bool", 7);
    put_u8(b, 1);
    put_key(b, "k.str", 8);
    put_text(b, "line\n\"two\"\x01");
    put_key_u64(b, "k.u64", 1ull << 62);
    put_key(b, "k.i64", 11);
    put_u64(b, (uint64_t)-9);
    double d = 1e-6;
    put_key(b, "k.f64", 12);
    put(b, &d, 8);
    put_key_u64(b, "k.large", UINT64_MAX);
    put_array(b, "a.str", 8, 3);
    put_text(b, "one");
    put_text(b, "");
    put_text(b, "three");
    put_array(b, "a.i8", 1, 2);
    put(b, "\xff\x02", 2);
    put_array(b, "a.f32", 6, 2);
    put(b, &f, 4);
    put(b, &f, 4);
    put_array(b, "a.u64", 10, 2);
    put_u64(b, 3);
    put_u64(b, UINT64_MAX);
    put_tensor(b, "t.q8", 2, 64, 8, 0);
    put_tensor(b, "t.f32", 3, 5, 0, 160);
    put_data(b, 32, 160 + 60);
}

static void test_getters(void) {
    bytes b = {NULL, 0, 0};
    dt_gguf *gguf;
    build_all(&b);
    write_file(path, b.data, b.n);
    CHECK_OK(dt_gguf_open(&gguf, path));
    if (!gguf)
        return;
    static const struct {
        const char *key;
        int64_t value;
    } integers[] = {{"k.u8", 200}, {"k.i8", -7}, {"k.u16", 12345}, {"k.i16", -2},
        {"k.u32", 4000000000}, {"k.i32", -5}, {"k.bool", 1}, {"k.u64", 1ll << 62}, {"k.i64", -9},
        {"absent", 77}};
    for (size_t i = 0; i < DT_COUNT(integers); i++) {
        int64_t value = 77;
        CHECK_OK(dt_gguf_get_int(gguf, integers[i].key, &value));
        CHECK_MSG(value == integers[i].value, "%s is %lld", integers[i].key, (long long)value);
        CHECK(dt_gguf_has(gguf, integers[i].key) == (value != 77));
    }
    int64_t integer = 1;
    double real = 2;
    dt_text text = {NULL, 0};
    CHECK_FAILS(dt_gguf_get_int(gguf, "k.large", &integer), DT_ERR_INPUT, "k.large");
    CHECK_FAILS(dt_gguf_get_int(gguf, "k.f32", &integer), DT_ERR_INPUT, "has f32");
    CHECK_FAILS(dt_gguf_get_int(gguf, "a.i8", &integer), DT_ERR_INPUT, "has [i8]");
    CHECK_FAILS(dt_gguf_get_float(gguf, "k.i32", &real), DT_ERR_INPUT, "want a float");
    CHECK_FAILS(dt_gguf_get_text(gguf, "k.i32", &text), DT_ERR_INPUT, "want a text");
    CHECK(integer == 1 && real == 2 && text.data == NULL);
    CHECK_OK(dt_gguf_get_float(gguf, "k.f32", &real));
    CHECK(real == 0.5);
    CHECK_OK(dt_gguf_get_float(gguf, "k.f64", &real));
    CHECK(real == 1e-6);
    CHECK_OK(dt_gguf_get_text(gguf, "k.str", &text));
    CHECK(text.n_bytes == 11 && memcmp(text.data, "line\n\"two\"\x01", 11) == 0);

    const dt_text *texts = NULL;
    const int64_t *ints = NULL;
    const float *floats = NULL;
    int64_t n = -1;
    CHECK_OK(dt_gguf_get_text_array(gguf, "a.str", &texts, &n));
    CHECK(n == 3 && texts[0].n_bytes == 3 && texts[1].n_bytes == 0 && texts[2].data[0] == 't');
    CHECK_OK(dt_gguf_get_int_array(gguf, "a.i8", &ints, &n));
    CHECK(n == 2 && ints[0] == -1 && ints[1] == 2);
    CHECK_OK(dt_gguf_get_float_array(gguf, "a.f32", &floats, &n));
    CHECK(n == 2 && floats[1] == 0.5f);
    CHECK_FAILS(dt_gguf_get_int_array(gguf, "a.u64", &ints, &n), DT_ERR_INPUT, "element 1");
    CHECK_FAILS(dt_gguf_get_text_array(gguf, "a.i8", &texts, &n), DT_ERR_INPUT, "array of texts");
    CHECK_OK(dt_gguf_get_float_array(gguf, "absent", &floats, &n));
    CHECK(n == 0);

    CHECK(dt_gguf_n_tensors(gguf) == 2 && dt_gguf_version(gguf) == 3);
    CHECK(dt_gguf_file_bytes(gguf) == b.n && strcmp(dt_gguf_path(gguf), path) == 0);
    const dt_tensor *t = dt_gguf_find(gguf, "t.f32");
    CHECK(t != NULL && t == dt_gguf_tensor(gguf, 1) && dt_gguf_find(gguf, "t.f3") == NULL);
    CHECK(t && t->ne[0] == 5 && t->ne[1] == 3 && t->ne[2] == 1 && t->n_dims == 2 &&
          t->n_bytes == 60 && t->type == DT_TYPE_F32 && *(const uint8_t *)t->data == 160);

    char line[64];
    CHECK(dt_gguf_n_keys(gguf) == 17 && strcmp(dt_gguf_key(gguf, 8), "k.str") == 0);
    dt_gguf_describe(gguf, 8, line, sizeof line);
    CHECK_MSG(strcmp(line, "str \"line\\n\\\"two\\\"\\x01\"") == 0, "%s", line);
    dt_gguf_describe(gguf, 8, line, 15);
    CHECK_MSG(strcmp(line, "str \"line\\n...") == 0, "%s", line);
    dt_gguf_describe(gguf, 12, line, sizeof line);
    CHECK_MSG(strcmp(line, "u64 18446744073709551615") == 0, "%s", line);
    dt_gguf_describe(gguf, 13, line, sizeof line);
    CHECK_MSG(strcmp(line, "[str] 3: \"one\" \"\" \"three\"") == 0, "%s", line);
    for (size_t size = 0; size < sizeof line; size++)
        for (int64_t i = 0; i < dt_gguf_n_keys(gguf); i++) {
            memset(line, 'x', sizeof line);
            dt_gguf_describe(gguf, i, line, size);
            CHECK(size == 0 || memchr(line, 0, size) != NULL);
            CHECK(line[size] == 'x');
        }
    dt_gguf_close(gguf);
    free(b.data);
}

/* ---- single faults */

static void test_heads(void) {
    bytes b = {NULL, 0, 0};
    put_head(&b, 3, 0, 0);
    CHECK_OK(open_bytes(&b));
    put_head(&b, 2, 0, 0);
    CHECK_OK(open_bytes(&b));
    put_head(&b, 1, 0, 0);
    CHECK_FAILS(open_bytes(&b), DT_ERR_UNSUPPORTED, "want GGUF version 2 or 3, the file has 1");
    put_head(&b, 4, 0, 0);
    CHECK_FAILS(open_bytes(&b), DT_ERR_UNSUPPORTED, "the file has 4");
    put_head(&b, 3u << 24, 0, 0);
    CHECK_FAILS(open_bytes(&b), DT_ERR_UNSUPPORTED, "big-endian");
    memcpy(b.data, "FUGG", 4);
    CHECK_FAILS(open_bytes(&b), DT_ERR_UNSUPPORTED, "big-endian");
    memcpy(b.data, "PK\3\4", 4);
    CHECK_FAILS(open_bytes(&b), DT_ERR_INPUT, "the file has 50 4b 03 04");
    memcpy(b.data, "version ", 8);
    CHECK_FAILS(open_bytes(&b), DT_ERR_INPUT, "Git LFS");
    b.n = 0;
    CHECK_FAILS(open_bytes(&b), DT_ERR_INPUT, "empty");
    dt_gguf *gguf;
    CHECK_FAILS(dt_gguf_open(&gguf, "/nonexistent/model.gguf"), DT_ERR_IO, "/nonexistent/model");
    CHECK(gguf == NULL);
    put_head(&b, 3, 0, UINT64_MAX);
    CHECK_FAILS(open_bytes(&b), DT_ERR_INPUT, "declares 18446744073709551615 keys, 0 bytes");
    put_head(&b, 3, 1ull << 40, 0);
    CHECK_FAILS(open_bytes(&b), DT_ERR_INPUT, "declares 1099511627776 tensors");
    free(b.data);
}

static void test_keys(void) {
    bytes b = {NULL, 0, 0};
    put_head(&b, 3, 0, 2);
    put_key_u32(&b, "twice", 1);
    put_key_u32(&b, "twice", 2);
    CHECK_FAILS(open_bytes(&b), DT_ERR_INPUT, "key twice is there twice");
    put_head(&b, 3, 0, 1);
    put_key_u32(&b, "", 1);
    CHECK_FAILS(open_bytes(&b), DT_ERR_INPUT, "want a length of 1 to 65535, the file has 0");
    put_head(&b, 3, 0, 1);
    put_key_u32(&b, "bell\a", 1);
    CHECK_FAILS(open_bytes(&b), DT_ERR_INPUT, "0x07");
    put_head(&b, 3, 0, 1);
    put_key(&b, "k", 13);
    put_u64(&b, 0);
    CHECK_FAILS(open_bytes(&b), DT_ERR_INPUT, "key k: want a value type of 0 to 12");
    put_head(&b, 3, 0, 1);
    put_key(&b, "k", 7);
    put_u8(&b, 2);
    CHECK_FAILS(open_bytes(&b), DT_ERR_INPUT, "key k: want a bool of 0 or 1, the file has 2");
    put_head(&b, 3, 0, 1);
    put_array(&b, "k", 7, 1);
    put_u8(&b, 2);
    CHECK_FAILS(open_bytes(&b), DT_ERR_INPUT, "key k: element 0: want a bool");
    put_head(&b, 3, 0, 1);
    put_array(&b, "k", 9, 1);
    put_u64(&b, 0);
    CHECK_FAILS(open_bytes(&b), DT_ERR_UNSUPPORTED, "key k: arrays of arrays");
    put_head(&b, 3, 0, 1);
    put_array(&b, "k", 13, 1);
    CHECK_FAILS(open_bytes(&b), DT_ERR_INPUT, "want an element type");
    for (uint32_t type = 0; type <= 12; type++) {
        for (int shift = 30; shift < 64; shift++) {
            put_head(&b, 3, 0, 1);
            put_array(&b, "k", type, 1ull << shift);
            put_u64(&b, 0);
            CHECK(open_bytes(&b) == (type == 9 ? DT_ERR_UNSUPPORTED : DT_ERR_INPUT));
        }
    }
    put_head(&b, 3, 0, 1);
    put_key(&b, "k", 8);
    put_u64(&b, UINT64_MAX);
    put_u64(&b, 0);
    CHECK_FAILS(open_bytes(&b), DT_ERR_INPUT, "takes 18446744073709551615 bytes, 8 are left");
    static const uint32_t wrong[] = {0, 1, 4, 24, 48, 1u << 21, 1u << 31, UINT32_MAX};
    for (size_t i = 0; i < DT_COUNT(wrong); i++) {
        put_head(&b, 3, 0, 1);
        put_key_u32(&b, "general.alignment", wrong[i]);
        CHECK_FAILS(open_bytes(&b), DT_ERR_INPUT, "general.alignment: want a power of two");
    }
    put_head(&b, 3, 1, 1);
    put_key_u32(&b, "general.alignment", 4096);
    put_tensor(&b, "t", 1, 4, 0, 4096);
    put_data(&b, 4096, 4096 + 16);
    CHECK_OK(open_bytes(&b));
    free(b.data);
}

/* One tensor of a given shape in a file with 64 bytes of data. */
static dt_err open_tensor(uint32_t n_dims, const uint64_t *ne, uint32_t type, uint64_t offset) {
    bytes b = {NULL, 0, 0};
    put_head(&b, 3, 1, 0);
    put_text(&b, "t");
    put_u32(&b, n_dims);
    for (uint32_t i = 0; i < n_dims && i < 8; i++)
        put_u64(&b, ne[i]);
    put_u32(&b, type);
    put_u64(&b, offset);
    put_data(&b, 32, 64);
    dt_err err = open_bytes(&b);
    free(b.data);
    return err;
}

static void test_tensors(void) {
#define SHAPE(...) (const uint64_t[8]){__VA_ARGS__}
    CHECK_OK(open_tensor(1, SHAPE(16), 0, 0));
    CHECK_OK(open_tensor(4, SHAPE(2, 2, 2, 2), 0, 0));
    CHECK_OK(open_tensor(1, SHAPE(8), 0, 32));
    CHECK_OK(open_tensor(1, SHAPE(32), 8, 0));
    CHECK_FAILS(open_tensor(0, SHAPE(0), 0, 0), DT_ERR_INPUT, "tensor t: want 1 to 4 dimensions");
    CHECK_FAILS(open_tensor(5, SHAPE(1, 1, 1, 1, 1), 0, 0), DT_ERR_INPUT, "the file has 5");
    CHECK_FAILS(open_tensor(2, SHAPE(16, 0), 0, 0), DT_ERR_INPUT, "the file has 0");
    CHECK_FAILS(open_tensor(1, SHAPE(UINT64_MAX), 0, 0), DT_ERR_INPUT, "want a dimension");
    CHECK_FAILS(open_tensor(2, SHAPE(1ull << 32, 1ull << 31), 0, 0), DT_ERR_INPUT, "multiplies");
    CHECK_FAILS(open_tensor(3, SHAPE(1ull << 22, 1ull << 21, 1ull << 21), 0, 0), DT_ERR_INPUT,
        "multiplies");
    CHECK_FAILS(open_tensor(1, SHAPE(1ull << 62), 0, 0), DT_ERR_INPUT, "more than 2^63 - 1 bytes");
    CHECK_FAILS(open_tensor(1, SHAPE(1ull << 61), 1, 0), DT_ERR_INPUT, "cut off");
    CHECK_FAILS(open_tensor(1, SHAPE(48), 8, 0), DT_ERR_INPUT,
        "want columns in multiples of 32 for Q8_0, the file has 48");
    CHECK_FAILS(open_tensor(2, SHAPE(128, 2), 12, 0), DT_ERR_INPUT, "multiples of 256 for Q4_K");
    CHECK_FAILS(open_tensor(1, SHAPE(32), 16, 0), DT_ERR_UNSUPPORTED, "IQ2_XXS");
    CHECK_FAILS(open_tensor(1, SHAPE(32), 999, 0), DT_ERR_UNSUPPORTED, "999");
    CHECK_FAILS(open_tensor(1, SHAPE(8), 0, 16), DT_ERR_INPUT, "multiples of 32, the file has 16");
    CHECK_FAILS(open_tensor(1, SHAPE(17), 0, 0), DT_ERR_INPUT, "takes 68 bytes at offset 0");
    CHECK_FAILS(open_tensor(1, SHAPE(9), 0, 32), DT_ERR_INPUT, "which has 64");
    CHECK_FAILS(open_tensor(1, SHAPE(1), 0, 96), DT_ERR_INPUT, "at offset 96");
    CHECK_FAILS(open_tensor(1, SHAPE(1), 0, UINT64_MAX - 31), DT_ERR_INPUT, "cut off");
#undef SHAPE
    bytes b = {NULL, 0, 0};
    put_head(&b, 3, 2, 0);
    put_tensor(&b, "same", 1, 8, 0, 0);
    put_tensor(&b, "same", 1, 8, 0, 32);
    put_data(&b, 32, 64);
    CHECK_FAILS(open_bytes(&b), DT_ERR_INPUT, "tensor same is there twice");
    put_head(&b, 3, 2, 0);
    put_tensor(&b, "upper", 1, 8, 0, 32);
    put_tensor(&b, "lower", 1, 9, 0, 0);
    put_data(&b, 32, 64);
    CHECK_FAILS(open_bytes(&b), DT_ERR_INPUT, "tensors lower and upper overlap");
    put_head(&b, 3, 1, 0);
    char name[300];
    memset(name, 'n', 256);
    name[256] = '\0';
    put_tensor(&b, name, 1, 8, 0, 0);
    put_data(&b, 32, 32);
    CHECK_FAILS(open_bytes(&b), DT_ERR_INPUT, "want a length of 1 to 255, the file has 256");
    free(b.data);
}

/* ---- split files */

static const char *part_path(int i, int n) {
    static char out[400];
    snprintf(out, sizeof out, "%s/big-%05d-of-%05d.gguf", folder, i + 1, n);
    return out;
}

static void write_part(int i, int n, int no, int count, const char *tensor, int n_all) {
    bytes b = {NULL, 0, 0};
    put_head(&b, 3, 1, 3 + (i == 0));
    if (i == 0)
        put_key_u32(&b, "only.first", 5);
    put_key(&b, "split.no", 2);
    put(&b, &(uint16_t){(uint16_t)no}, 2);
    put_key(&b, "split.count", 2);
    put(&b, &(uint16_t){(uint16_t)count}, 2);
    put_key(&b, "split.tensors.count", 5);
    put_u32(&b, (uint32_t)n_all);
    put_tensor(&b, tensor, 1, 8, 0, 0);
    put_data(&b, 32, 32);
    b.data[b.n - 32] = (uint8_t)(100 + i);
    write_file(part_path(i, n), b.data, b.n);
    free(b.data);
}

static void test_split(void) {
    static const char *const names[] = {"t.first", "a.second", "m.third"};
    for (int i = 0; i < 3; i++)
        write_part(i, 3, i, 3, names[i], 3);
    dt_gguf *gguf;
    CHECK_OK(dt_gguf_open(&gguf, part_path(0, 3)));
    if (gguf) {
        CHECK(dt_gguf_n_tensors(gguf) == 3);
        size_t n_bytes = 0;
        for (int i = 0; i < 3; i++) {
            const dt_tensor *t = dt_gguf_find(gguf, names[i]);
            CHECK(t && t == dt_gguf_tensor(gguf, i) && *(const uint8_t *)t->data == 100 + i);
            bytes b = read_file(part_path(i, 3));
            n_bytes += b.n;
            free(b.data);
        }
        CHECK(dt_gguf_file_bytes(gguf) == n_bytes);
        CHECK(dt_gguf_has(gguf, "only.first"));
        dt_gguf_close(gguf);
    }
    CHECK_FAILS(dt_gguf_open(&gguf, part_path(1, 3)), DT_ERR_INPUT, "is part 2 of 3");
    CHECK(strstr(dt_err_message(), "-00001-of-00003.gguf") != NULL);
    write_part(1, 3, 2, 3, names[1], 3);
    CHECK_FAILS(dt_gguf_open(&gguf, part_path(0, 3)), DT_ERR_INPUT,
        "want part 2 of 3, the file says it is part 3 of 3");
    write_part(1, 3, 1, 3, "m.third", 3);
    CHECK_FAILS(dt_gguf_open(&gguf, part_path(0, 3)), DT_ERR_INPUT, "m.third is there twice");
    unlink(part_path(1, 3));
    CHECK_FAILS(dt_gguf_open(&gguf, part_path(0, 3)), DT_ERR_IO, "big-00002-of-00003.gguf");
    CHECK(strstr(dt_err_message(), "part 2 of 3") != NULL);
    write_part(1, 3, 1, 3, names[1], 3);
    write_part(0, 3, 0, 3, names[0], 4);
    CHECK_FAILS(dt_gguf_open(&gguf, part_path(0, 3)), DT_ERR_INPUT, "want 4 tensors");
    write_part(0, 3, 5, 3, names[0], 3);
    CHECK_FAILS(dt_gguf_open(&gguf, part_path(0, 3)), DT_ERR_INPUT, "split.no");
    write_part(0, 3, 0, 2, names[0], 3);
    CHECK_FAILS(dt_gguf_open(&gguf, part_path(0, 3)), DT_ERR_INPUT, "-00001-of-00002.gguf");
    for (int i = 0; i < 3; i++)
        unlink(part_path(i, 3));
}

/* ---- damaged copies */

/* What a caller would touch: every name, every value, both ends of every tensor. */
static unsigned use(const dt_gguf *gguf) {
    unsigned sum = 0;
    char line[64];
    for (int64_t i = 0; i < dt_gguf_n_keys(gguf); i++) {
        dt_gguf_describe(gguf, i, line, sizeof line);
        CHECK(dt_gguf_has(gguf, dt_gguf_key(gguf, i)));
    }
    for (int64_t i = 0; i < dt_gguf_n_tensors(gguf); i++) {
        const dt_tensor *t = dt_gguf_tensor(gguf, i);
        const uint8_t *data = t->data;
        CHECK(dt_gguf_find(gguf, t->name) == t);
        sum += data[0] + 3u * data[t->n_bytes - 1];
    }
    return sum;
}

/* The file cut at every byte of its header and at some of its data: never a success. */
static void check_cuts(const bytes *whole, size_t n_header) {
    write_file(path, whole->data, whole->n);
    for (size_t n = whole->n; n-- > 0;) {
        if (n > n_header && n % 1009)
            continue;
        if (truncate(path, (off_t)n)) {
            perror(path);
            exit(1);
        }
        dt_gguf *gguf;
        dt_err err = dt_gguf_open(&gguf, path);
        CHECK_MSG(err == DT_ERR_INPUT && gguf == NULL, "cut to %zu bytes: error %d", n, (int)err);
        dt_gguf_close(gguf);
    }
}

static void check_flips(const bytes *whole, size_t n_header, int n_rounds, test_rng *rng) {
    write_file(path, whole->data, whole->n);
    int fd = open(path, O_RDWR | O_CLOEXEC), n_opened = 0;
    unsigned sum = 0;
    for (int i = 0; i < n_rounds; i++) {
        size_t at[4];
        int n = 1 + (int)test_rng_below(rng, 4);
        for (int k = 0; k < n; k++) {
            at[k] = test_rng_below(rng, (uint32_t)n_header);
            uint8_t byte = (uint8_t)test_rng_next(rng);
            if (test_rng_below(rng, 2)) /* one bit, which counts survive more often */
                byte = whole->data[at[k]] ^ (uint8_t)(1u << test_rng_below(rng, 8));
            CHECK(pwrite(fd, &byte, 1, (off_t)at[k]) == 1);
        }
        dt_gguf *gguf;
        if (dt_gguf_open(&gguf, path) == DT_OK) {
            n_opened++;
            sum += use(gguf);
        }
        dt_gguf_close(gguf);
        for (int k = 0; k < n; k++)
            CHECK(pwrite(fd, &whole->data[at[k]], 1, (off_t)at[k]) == 1);
    }
    close(fd);
    printf("%d of %d damaged files opened (%08x)\n", n_opened, n_rounds, sum);
}

/* Where the data of a file begins, by its first tensor. */
static size_t header_bytes(const bytes *whole) {
    dt_gguf *gguf;
    write_file(path, whole->data, whole->n);
    CHECK_OK(dt_gguf_open(&gguf, path));
    size_t n = whole->n;
    if (gguf) {
        size_t n_data = 0;
        for (int64_t i = 0; i < dt_gguf_n_tensors(gguf); i++)
            n_data += dt_round_up(dt_gguf_tensor(gguf, i)->n_bytes, 64);
        n -= DT_MIN(n_data, n);
    }
    dt_gguf_close(gguf);
    return n;
}

static void test_damaged(void) {
    test_rng rng = test_rng_open();
    bytes b = {NULL, 0, 0};
    build_all(&b);
    size_t n_header = b.n - 220;
    check_cuts(&b, n_header);
    check_flips(&b, n_header, 20000, &rng);
    free(b.data);
    b = read_file(data_path("tiny-qwen2.gguf"));
    n_header = header_bytes(&b);
    check_cuts(&b, n_header);
    check_flips(&b, n_header, 3000, &rng);
    free(b.data);
}

/* ---- whole files */

static void test_tiny(void) {
    static const char *const names[] = {
        "tiny-llama.gguf", "tiny-qwen2.gguf", "tiny-draft.gguf", "tiny-f16.gguf"};
    for (size_t i = 0; i < DT_COUNT(names); i++) {
        dt_gguf *gguf;
        CHECK_OK(dt_gguf_open(&gguf, data_path(names[i])));
        if (!gguf)
            continue;
        use(gguf);
        const dt_text *tokens = NULL;
        int64_t n_tokens;
        CHECK_OK(dt_gguf_get_text_array(gguf, "tokenizer.ggml.tokens", &tokens, &n_tokens));
        const dt_tensor *embedding = dt_gguf_find(gguf, "token_embd.weight");
        CHECK(embedding && embedding->ne[1] == n_tokens && n_tokens > 256);
        dt_gguf_close(gguf);
    }
}

/* A vocabulary of usual size must not be felt at start. The bound is 20 times what it takes. */
static void test_fast(void) {
    bytes b = {NULL, 0, 0};
    put_head(&b, 3, 0, 1);
    put_array(&b, "tokens", 8, 150000);
    for (int i = 0; i < 150000; i++) {
        char text[16];
        snprintf(text, sizeof text, "token%d", i);
        put_text(&b, text);
    }
    write_file(path, b.data, b.n);
    dt_gguf *gguf;
    int64_t t = dt_time_ns();
    CHECK_OK(dt_gguf_open(&gguf, path));
    t = dt_time_ns() - t;
    CHECK_MSG(t < 200 * 1000 * 1000, "150000 texts took %.1f ms", (double)t / 1e6);
    printf("150000 texts: %.1f ms\n", (double)t / 1e6);
    dt_gguf_close(gguf);
    free(b.data);
}

int main(void) {
    const char *base = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/dt_gguf_XXXXXX", base ? base : "/tmp");
    if (!mkdtemp(folder)) {
        perror(folder);
        return 1;
    }
    snprintf(path, sizeof path, "%s/file.gguf", folder);
    test_getters();
    test_heads();
    test_keys();
    test_tensors();
    test_split();
    test_tiny();
    test_damaged();
    test_fast();
    unlink(path);
    rmdir(folder);
    return test_end();
}
