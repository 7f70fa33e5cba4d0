/* Runs a fuzz target over a corpus without libFuzzer: every file of the folders named as it is,
 * then changed at random: bits turned, pieces cut out, doubled or taken from another file.
 *
 *     fuzz_NAME_replay ROUNDS FOLDER ... */
#include <dirent.h>

#include "tests/fuzz/fuzz.h"
#include "tests/test.h"

enum { N_FILES_MAX = 1024, N_BYTES_MAX = 1 << 18 };

static uint8_t *files[N_FILES_MAX];
static size_t sizes[N_FILES_MAX];
static int n_files;

static void read_folder(const char *folder) {
    DIR *dir = opendir(folder);
    CHECK_MSG(dir != NULL, "%s cannot be opened", folder);
    for (struct dirent *entry; dir != NULL && (entry = readdir(dir)) != NULL;) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        FILE *file = entry->d_name[0] == '.' ? NULL : fopen(path, "rb");
        if (file == NULL || n_files == N_FILES_MAX)
            continue;
        files[n_files] = malloc(N_BYTES_MAX);
        sizes[n_files] = fread(files[n_files], 1, N_BYTES_MAX, file);
        n_files++;
        fclose(file);
    }
    if (dir != NULL)
        closedir(dir);
}

/* In exact memory, so that a step outside is seen. */
static void run(const uint8_t *data, size_t n) {
    uint8_t *copy = malloc(n ? n : 1);
    memcpy(copy, data, n);
    LLVMFuzzerTestOneInput(copy, n);
    free(copy);
}

static size_t change(uint8_t *data, size_t n, test_rng *rng) {
    uint32_t at = test_rng_below(rng, (uint32_t)n + 1);
    size_t left = n - at, length = 1 + test_rng_below(rng, 24);
    length = DT_MIN(left, length);
    int other = (int)test_rng_below(rng, (uint32_t)n_files);
    switch (test_rng_below(rng, 6)) {
    case 0:
        if (left > 0)
            data[at] ^= (uint8_t)(1u << test_rng_below(rng, 8));
        return n;
    case 1:
        for (size_t i = 0; i < length; i++)
            data[at + i] = (uint8_t)test_rng_next(rng);
        return n;
    case 2: /* a length, a count */
        for (size_t i = 0; i < length && i < 8; i++)
            data[at + i] = test_rng_below(rng, 2) ? 0xff : 0;
        return n;
    case 3:
        memmove(data + at, data + at + length, left - length);
        return n - length;
    case 4:
        length = DT_MIN(length, (size_t)N_BYTES_MAX - n);
        memmove(data + at + length, data + at, left);
        return n + length;
    default: {
        size_t from = test_rng_below(rng, (uint32_t)sizes[other] + 1);
        length = DT_MIN(DT_MIN(sizes[other] - from, (size_t)200), left);
        memcpy(data + at, files[other] + from, length);
        return n;
    }
    }
}

int main(int n_args, char **args) {
    static uint8_t data[N_BYTES_MAX];
    int n_rounds = n_args > 1 ? atoi(args[1]) : 0;
    LLVMFuzzerInitialize(&n_args, &args);
    for (int i = 2; i < n_args; i++)
        read_folder(args[i]);
    CHECK_MSG(n_files > 0, "no corpus");
    for (int i = 0; i < n_files; i++)
        run(files[i], sizes[i]);
    test_rng rng = test_rng_open();
    for (int round = 0; round < n_rounds && n_files > 0; round++) {
        int i = (int)test_rng_below(&rng, (uint32_t)n_files);
        size_t n = sizes[i];
        memcpy(data, files[i], n);
        for (uint32_t k = 1 + test_rng_below(&rng, 4); k > 0; k--)
            n = change(data, n, &rng);
        run(data, n);
    }
    for (int i = 0; i < n_files; i++)
        free(files[i]);
    printf("%d files, %d rounds\n", n_files, n_rounds);
    return test_end();
}
