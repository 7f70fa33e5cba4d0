#define _GNU_SOURCE
#include "src/base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { ALIGN_BYTES = 64 };
#define HUGE_BYTES ((size_t)2 << 20)

dt_err dt_mem_alloc(void *out, size_t n_bytes) {
    void *p = NULL;
    size_t n = n_bytes <= SIZE_MAX - ALIGN_BYTES ? dt_round_up(n_bytes, ALIGN_BYTES) : SIZE_MAX;
    if (n == 0)
        n = ALIGN_BYTES;
    if (n != SIZE_MAX)
        p = aligned_alloc(ALIGN_BYTES, n);
    if (p != NULL)
        memset(p, 0, n);
    memcpy(out, &p, sizeof p); /* `out` points at a pointer of any type */
    if (p == NULL)
        DT_FAIL(DT_ERR_MEMORY, "out of memory: %zu bytes wanted", n_bytes);
    return DT_OK;
}

void dt_mem_free(void *p) {
    free(p);
}

static dt_err map_huge(void *out, size_t n_bytes, int flags) {
    void *p = NULL;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t n = n_bytes <= SIZE_MAX - 2 * HUGE_BYTES ? dt_round_up(n_bytes, page) : SIZE_MAX;
    if (n == 0)
        n = page;
    memcpy(out, &p, sizeof p);
    if (n == SIZE_MAX)
        DT_FAIL(DT_ERR_MEMORY, "out of memory: %zu bytes wanted", n_bytes);
    if (n < HUGE_BYTES) {
        p = mmap(NULL, n, PROT_READ | PROT_WRITE, flags, -1, 0);
        if (p == MAP_FAILED)
            DT_FAIL(DT_ERR_MEMORY, "out of memory: %zu bytes wanted", n_bytes);
        memcpy(out, &p, sizeof p);
        return DT_OK;
    }
    /* One huge page more than asked, and both ends cut off, so that the region starts on a
     * boundary where huge pages can lie. */
    size_t reserve = n + HUGE_BYTES;
    uint8_t *start = mmap(NULL, reserve, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (start == MAP_FAILED)
        DT_FAIL(DT_ERR_MEMORY, "out of memory: %zu bytes wanted", n_bytes);
    size_t head = dt_round_up((uintptr_t)start, HUGE_BYTES) - (uintptr_t)start;
    if (head > 0)
        munmap(start, head);
    if (reserve - head > n)
        munmap(start + head + n, reserve - head - n);
    p = start + head;
    (void)madvise(p, n, MADV_HUGEPAGE); /* a wish: refused where the system has none */
    memcpy(out, &p, sizeof p);
    return DT_OK;
}

dt_err dt_mem_map_huge(void *out, size_t n_bytes) {
    return map_huge(out, n_bytes, MAP_PRIVATE | MAP_ANONYMOUS);
}

dt_err dt_mem_reserve(void *out, size_t n_bytes) {
    return map_huge(out, n_bytes, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
}

void dt_mem_unmap(void *p, size_t n_bytes) {
    if (p == NULL)
        return;
    size_t n = dt_round_up(n_bytes, (size_t)sysconf(_SC_PAGESIZE));
    munmap(p, n > 0 ? n : (size_t)sysconf(_SC_PAGESIZE));
}

dt_err dt_file_map_open(dt_file_map *out, const char *path) {
    memset(out, 0, sizeof *out);
    /* Not blocking: a pipe given by mistake must be refused, not waited for. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        DT_FAIL(DT_ERR_IO, "%s: cannot open: %s", path, strerror(errno));
    dt_err err = DT_OK;
    struct stat st;
    void *data = MAP_FAILED;
    if (fstat(fd, &st) != 0)
        err = DT_ERROR(DT_ERR_IO, "%s: cannot read its size: %s", path, strerror(errno));
    else if (!S_ISREG(st.st_mode))
        err = DT_ERROR(DT_ERR_INPUT, "%s: not a regular file", path);
    else if (st.st_size == 0)
        err = DT_ERROR(DT_ERR_INPUT, "%s: the file is empty", path);
    else if ((data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0)) == MAP_FAILED)
        err = DT_ERROR(DT_ERR_IO, "%s: cannot map: %s", path, strerror(errno));
    close(fd); /* the mapping keeps the file */
    if (err != DT_OK)
        return err;
    out->data = data;
    out->n_bytes = (size_t)st.st_size;
    return DT_OK;
}

void dt_file_map_close(dt_file_map *map) {
    if (map->data != NULL)
        munmap((void *)(uintptr_t)map->data, map->n_bytes);
    memset(map, 0, sizeof *map);
}

void dt_file_map_release(const void *data, size_t n_bytes) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uintptr_t first = dt_round_up((uintptr_t)data, page);
    uintptr_t end = ((uintptr_t)data + n_bytes) / page * page;
    /* The mapping is private but never written, so that dropped pages come back from the file. */
    if (first < end)
        (void)madvise((void *)first, end - first, MADV_DONTNEED);
}

int64_t dt_time_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}
