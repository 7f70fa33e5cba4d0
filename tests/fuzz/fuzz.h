/* For the fuzz targets. Each is one file with LLVMFuzzerTestOneInput; with the option `fuzz` (and
 * clang) it is linked with libFuzzer, and always with replay.c, which runs it over its corpus. */
#ifndef DT_TESTS_FUZZ_H
#define DT_TESTS_FUZZ_H

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "models/token_bpe.h"
#include "src/base/common.h"

int LLVMFuzzerInitialize(int *n_args, char ***args);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static inline void fuzz_require(bool condition, const char *what) {
    if (condition)
        return;
    fprintf(stderr, "%s: %s\n", what, dt_err_message());
    abort();
}

/* The path of a file in memory with these bytes, the same at each call. */
static inline const char *fuzz_file(const uint8_t *data, size_t n_bytes) {
    static int fd = -1;
    static char path[64];
    if (fd < 0) {
        fd = memfd_create("fuzz", MFD_CLOEXEC);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    fuzz_require(
        fd >= 0 && ftruncate(fd, 0) == 0 && pwrite(fd, data, n_bytes, 0) == (ssize_t)n_bytes,
        "file in memory");
    return path;
}

#endif
