/* The shim's own: memory, fibers and streams see each other through this. All of it runs under one
 * lock (shim_rt.cpp), on whichever host thread waits for a stream. */
#ifndef DT_SHIM_IN_H
#define DT_SHIM_IN_H

#include "tests/shim/shim.h"
#include "tests/shim/shim_test.h"

#if defined(__SANITIZE_ADDRESS__)
#define SHIM_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SHIM_ASAN 1
#endif
#endif
#ifndef SHIM_ASAN
#define SHIM_ASAN 0
#endif

#if SHIM_ASAN
#include <sanitizer/asan_interface.h>
#define SHIM_POISON(at, n) __asan_poison_memory_region(at, n)
#define SHIM_UNPOISON(at, n) __asan_unpoison_memory_region(at, n)
#else
#define SHIM_POISON(at, n) ((void)(at), (void)(n))
#define SHIM_UNPOISON(at, n) ((void)(at), (void)(n))
#endif

enum { SHIM_FILL = 0xff, SHIM_EDGE = 0xa5, SHIM_PAGE = 4096 };
enum { SHIM_MAX_THREADS = 1024, SHIM_STATIC_SHARED = 48 * 1024, SHIM_OPTIN_SHARED = 99 * 1024 };

/* ---- memory (shim_mem.cpp): address ranges of their own, every allocation ends at a guard page */

enum shim_place_kind { SHIM_HOST, SHIM_DEVICE, SHIM_PINNED };

struct shim_block {
    char *at, *pages;
    size_t size_bytes, pages_bytes;
    int device; /* -1: pinned */
    bool live;
};

void *shim_mem_alloc(size_t size_bytes, int device);
/* False: no allocation begins there. */
bool shim_mem_free(void *at, bool pinned, int *device, size_t *size_bytes);
shim_place_kind shim_mem_kind(const void *at);
/* The allocation that holds the address, or the last one before it; NULL: none. */
const shim_block *shim_mem_find(const void *at);
/* Device memory can be touched between these two; close looks at the edges of what was open. */
void shim_mem_open(void);
void shim_mem_close(void);
bool shim_mem_is_open(void);
/* All the addresses that device or pinned memory may ever have. */
void shim_mem_range(shim_place_kind kind, char **first, size_t *size_bytes);

/* ---- kernels (shim_run.cpp) */

struct shim_running {
    const shim_launch *launch; /* NULL: no kernel runs */
    const char *args;
    volatile bool in_thread; /* also the hooks read it, from within memset */
};
extern shim_running shim_running_now;

void shim_run(const shim_launch *launch, const void *args);
void shim_set_order_now(shim_order order, uint64_t seed);
/* The shared memory of the block: both kinds lie in it. */
void shim_shared_range(char **first, size_t *size_bytes);
int shim_thread(void); /* of the block, linear */
int shim_n_threads(void);
bool shim_on_fiber(const void *at); /* the address lies on a stack of a device thread */

/* ---- the race build (shim_race.cpp) puts itself here */

struct shim_race {
    void (*launch)(void);
    void (*block)(uint64_t i_block, int n_threads);
    void (*barrier)(void);
    void (*warp)(int i_warp, unsigned mask);
    void (*atomic)(const void *at, size_t size_bytes);
};
extern const shim_race *shim_race_ops;

#endif
