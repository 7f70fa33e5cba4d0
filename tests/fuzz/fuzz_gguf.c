/* libFuzzer target: any bytes as a GGUF file, opened and read as a caller would.
 *
 *     clang -std=gnu11 -g -O1 -fsanitize=fuzzer,address,undefined -I. tests/fuzz/fuzz_gguf.c
 *         models/gguf.c models/config.c src/base/err.c src/base/mem.c src/base/dtype.c -o fuzz_gguf
 *     ./fuzz_gguf -max_len=16384 CORPUS tests/data      (seeds: heads of the tiny models) */
#define _GNU_SOURCE /* memfd_create */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "models/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static unsigned use(const dt_gguf *gguf) {
    unsigned sum = 0;
    char line[100];
    for (int64_t i = 0; i < dt_gguf_n_keys(gguf); i++) {
        const char *key = dt_gguf_key(gguf, i);
        dt_gguf_describe(gguf, i, line, sizeof line);
        int64_t integer = 0, n;
        double real = 0;
        dt_text text = {NULL, 0};
        const dt_text *texts;
        const int64_t *integers;
        const float *reals;
        if (!dt_gguf_has(gguf, key))
            abort();
        sum += (unsigned)strlen(line);
        sum += dt_gguf_get_int(gguf, key, &integer) == DT_OK;
        sum += dt_gguf_get_float(gguf, key, &real) == DT_OK;
        if (dt_gguf_get_text(gguf, key, &text) == DT_OK && text.n_bytes)
            sum += (unsigned char)text.data[text.n_bytes - 1];
        if (dt_gguf_get_int_array(gguf, key, &integers, &n) == DT_OK && n)
            sum += (unsigned)integers[n - 1];
        if (dt_gguf_get_float_array(gguf, key, &reals, &n) == DT_OK && n)
            sum += reals[n - 1] > 0;
        if (dt_gguf_get_text_array(gguf, key, &texts, &n) == DT_OK && n && texts[n - 1].n_bytes)
            sum += (unsigned char)texts[n - 1].data[texts[n - 1].n_bytes - 1];
    }
    for (int64_t i = 0; i < dt_gguf_n_tensors(gguf); i++) {
        const dt_tensor *t = dt_gguf_tensor(gguf, i);
        const uint8_t *bytes = t->data;
        if (dt_gguf_find(gguf, t->name) != t)
            abort();
        for (size_t k = 0; k < t->n_bytes; k += 64)
            sum += bytes[k];
        sum += bytes[t->n_bytes - 1];
    }
    dt_config config;
    return sum + (dt_config_read(&config, gguf) == DT_OK);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    static volatile unsigned sink;
    static int fd = -1;
    static char path[64];
    if (fd < 0) {
        fd = memfd_create("fuzz_gguf", MFD_CLOEXEC);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    if (fd < 0 || ftruncate(fd, 0) || pwrite(fd, data, n_bytes, 0) != (ssize_t)n_bytes)
        abort();
    dt_gguf *gguf;
    if (dt_gguf_open(&gguf, path) == DT_OK)
        sink = sink + use(gguf);
    dt_gguf_close(gguf);
    return 0;
}
