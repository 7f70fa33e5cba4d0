/* The race build: kernels are compiled with -fsanitize=thread, and these are the hooks they call.
 *
 * Each byte of device, pinned and shared memory has a cell with its last write, its last atomic
 * operation and two readers. Two accesses of which one is a plain write must be ordered: by a
 * barrier of their block, or by warp operations that lead from one lane to the other (a vector
 * clock a lane). Blocks of one launch are never ordered, launches always are. A read of shared
 * memory that this block never wrote, an access to the host's own memory and a misaligned wide
 * access are told too. */
#include <stdio.h>
#include <sys/mman.h>

#include "tests/shim/shim_in.h"

/* launch:10 block:20 thread:10 seq:24, the latter counting the thread's barriers and warp
 * operations; launch 0 is nobody. */
enum { SEQ_BITS = 24, THREAD_BITS = 10, BLOCK_BITS = 20, LAUNCH_BITS = 10 };

struct cell {
    uint64_t write, read[2], atomic;
};

/* Most accesses are of whole words: these have one cell until one is not. */
struct word {
    cell whole;
    uint64_t split;
};

struct shadow {
    char *first; /* of the memory */
    size_t size_bytes;
    word *words;
    cell *cells; /* of each byte */
};

static struct {
    uint64_t launch, block;
    int n_threads;
    uint32_t seq[SHIM_MAX_THREADS], barrier_seq[SHIM_MAX_THREADS];
    /* clock[a][b]: what lane b of a's warp did at a lower seq came before a's present. */
    uint32_t clock[SHIM_MAX_THREADS][32];
    shadow device, pinned, shared;
} race;

extern "C" char __executable_start, _end;

static void *reserve(size_t size_bytes) {
    void *at = mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) {
        shim_fault("no addresses for a shadow of %zu bytes", size_bytes);
    }
    madvise(at, size_bytes, MADV_DONTDUMP);
    return at;
}

static void shadow_open(shadow *s, char *first, size_t size_bytes) {
    if (!s->words && first) {
        s->first = first;
        s->size_bytes = size_bytes;
        s->words = static_cast<word *>(reserve(size_bytes / 4 * sizeof(word)));
        s->cells = static_cast<cell *>(reserve(size_bytes * sizeof(cell)));
    }
}

static void shadow_forget(shadow *s) {
    if (s->words) {
        madvise(s->words, s->size_bytes / 4 * sizeof(word), MADV_DONTNEED);
        madvise(s->cells, s->size_bytes * sizeof(cell), MADV_DONTNEED);
    }
}

static void on_launch(void) {
    char *first;
    size_t size_bytes;
    shim_mem_range(SHIM_DEVICE, &first, &size_bytes);
    shadow_open(&race.device, first, size_bytes);
    shim_mem_range(SHIM_PINNED, &first, &size_bytes);
    shadow_open(&race.pinned, first, size_bytes);
    shim_shared_range(&first, &size_bytes);
    shadow_open(&race.shared, first, size_bytes);
    if (++race.launch >> LAUNCH_BITS) {
        shadow_forget(&race.device);
        shadow_forget(&race.pinned);
        shadow_forget(&race.shared);
        race.launch = 1;
    }
}

static void on_block(uint64_t i_block, int n_threads) {
    race.block = i_block & ((1u << BLOCK_BITS) - 1);
    race.n_threads = n_threads;
    memset(race.seq, 0, (size_t)n_threads * sizeof(race.seq[0]));
    memset(race.barrier_seq, 0, (size_t)n_threads * sizeof(race.barrier_seq[0]));
    memset(race.clock, 0, (size_t)n_threads * sizeof(race.clock[0]));
}

static void on_barrier(void) {
    for (int i = 0; i < race.n_threads; i++) {
        race.barrier_seq[i] = ++race.seq[i];
    }
}

static void on_warp(int i_warp, unsigned mask) {
    uint32_t joined[32] = {0};
    int first = i_warp * 32;
    for (unsigned bits = mask; bits; bits &= bits - 1) {
        int lane = __builtin_ctz(bits);
        uint32_t *clock = race.clock[first + lane];
        clock[lane] = ++race.seq[first + lane];
        for (int i = 0; i < 32; i++) {
            joined[i] = joined[i] > clock[i] ? joined[i] : clock[i];
        }
    }
    for (unsigned bits = mask; bits; bits &= bits - 1) {
        memcpy(race.clock[first + __builtin_ctz(bits)], joined, sizeof(joined));
    }
}

/* Did what left this stamp come before the present of thread `me`? */
static inline bool ordered(const shadow *s, uint64_t stamp, int me) {
    if (stamp >> (64 - LAUNCH_BITS) != race.launch) {
        return true;
    }
    uint64_t block = stamp >> (SEQ_BITS + THREAD_BITS) & ((1u << BLOCK_BITS) - 1);
    if (block != race.block) {
        return s == &race.shared; /* each block has its own */
    }
    int thread = (int)(stamp >> SEQ_BITS & ((1u << THREAD_BITS) - 1));
    uint32_t seq = (uint32_t)(stamp & ((1u << SEQ_BITS) - 1));
    return thread == me || seq < race.barrier_seq[thread] ||
           (thread / 32 == me / 32 && seq < race.clock[me][thread % 32]);
}

enum access_kind { READ, WRITE, ATOMIC };
static const char *const access_names[] = {"reads", "writes", "changes (atomic)"};
static const char *const past_names[] = {"read", "wrote", "changed (atomic)"};

[[noreturn]] static void tell(
    const shadow *s, const char *at, access_kind now, access_kind then, uint64_t stamp) {
    uint64_t block = stamp >> (SEQ_BITS + THREAD_BITS) & ((1u << BLOCK_BITS) - 1);
    int thread = (int)(stamp >> SEQ_BITS & ((1u << THREAD_BITS) - 1));
    char where[128];
    const shim_block *memory = s == &race.shared ? nullptr : shim_mem_find(at);
    if (memory) {
        snprintf(where, sizeof(where), "byte %td of an allocation of %zu bytes", at - memory->at,
            memory->size_bytes);
    } else {
        snprintf(where, sizeof(where), "a byte of shared memory");
    }
    shim_fault("race: %s %s that thread %d of block %llu %s, with no barrier between",
        access_names[now], where, thread, (unsigned long long)block, past_names[then]);
}

/* One access to what a cell stands for. */
static inline void touch_cell(
    const shadow *s, cell *c, const char *at, access_kind kind, int me, uint64_t stamp) {
    if (!ordered(s, c->write, me)) {
        tell(s, at, kind, WRITE, c->write);
    }
    if (kind != ATOMIC && !ordered(s, c->atomic, me)) {
        tell(s, at, kind, ATOMIC, c->atomic);
    }
    if (kind == READ) {
        if (s == &race.shared && (c->write | c->atomic) >> (SEQ_BITS + THREAD_BITS) !=
                                     stamp >> (SEQ_BITS + THREAD_BITS)) {
            shim_fault("reads shared memory that its block never wrote");
        }
        if (c->read[0] >> SEQ_BITS != stamp >> SEQ_BITS) {
            c->read[1] = c->read[0];
        }
        c->read[0] = stamp;
        return;
    }
    for (int i = 0; i < 2; i++) {
        if (!ordered(s, c->read[i], me)) {
            tell(s, at, kind, READ, c->read[i]);
        }
    }
    if (kind == WRITE) {
        c->write = stamp;
        c->read[0] = c->read[1] = c->atomic = 0;
    } else {
        c->atomic = stamp;
    }
}

static void touch(const shadow *s, const char *at, size_t size_bytes, access_kind kind) {
    int me = shim_thread();
    uint64_t stamp = race.launch << (64 - LAUNCH_BITS) | race.block << (SEQ_BITS + THREAD_BITS) |
                     (uint64_t)me << SEQ_BITS | race.seq[me];
    size_t i = (size_t)(at - s->first), end = i + size_bytes;
    while (i < end) {
        word *w = &s->words[i / 4];
        if (i % 4 == 0 && end - i >= 4 && !w->split) {
            touch_cell(s, &w->whole, s->first + i, kind, me, stamp);
            i += 4;
            continue;
        }
        if (!w->split) { /* from now on by bytes */
            w->split = 1;
            for (size_t j = i / 4 * 4; j < i / 4 * 4 + 4; j++) {
                s->cells[j] = w->whole;
            }
        }
        touch_cell(s, &s->cells[i], s->first + i, kind, me, stamp);
        i++;
    }
}

static void access(const void *address, size_t size_bytes, access_kind kind) {
    if (!shim_running_now.in_thread) {
        return;
    }
    const char *at = static_cast<const char *>(address);
    const shadow *s = (size_t)(at - race.shared.first) < race.shared.size_bytes   ? &race.shared
                      : (size_t)(at - race.device.first) < race.device.size_bytes ? &race.device
                      : (size_t)(at - race.pinned.first) < race.pinned.size_bytes ? &race.pinned
                                                                                  : nullptr;
    if (s) {
        touch(s, at, size_bytes, kind);
        return;
    }
    const char *args = shim_running_now.args;
    if (shim_on_fiber(at) || (at >= &__executable_start && at < &_end) ||
        (size_t)(at - args) < shim_running_now.launch->args_bytes) {
        return;
    }
    shim_fault("%s host memory", access_names[kind]);
}

static void on_atomic(const void *at, size_t size_bytes) {
    access(at, size_bytes, ATOMIC);
}

static const shim_race ops = {on_launch, on_block, on_barrier, on_warp, on_atomic};

static inline void aligned(const void *at, size_t size_bytes) {
    if ((uintptr_t)at % size_bytes && shim_running_now.in_thread && !shim_on_fiber(at)) {
        shim_fault(
            "an access of %zu bytes at an address that is not a multiple of that", size_bytes);
    }
}

extern "C" {
void __tsan_init(void);
void __tsan_func_entry(void *);
void __tsan_func_exit(void);
void __tsan_read_range(const void *at, size_t size_bytes);
void __tsan_write_range(const void *at, size_t size_bytes);
void __tsan_vptr_update(void **, void *);
void __tsan_vptr_read(void **);

void __tsan_init(void) {
    shim_race_ops = &ops;
}
void __tsan_func_entry(void *) {
}
void __tsan_func_exit(void) {
}
void __tsan_vptr_update(void **, void *) {
}
void __tsan_vptr_read(void **) {
}
void __tsan_read_range(const void *at, size_t size_bytes) {
    access(at, size_bytes, READ);
}
void __tsan_write_range(const void *at, size_t size_bytes) {
    access(at, size_bytes, WRITE);
}

/* Copies of structs are calls of these in clang's code, before 15 by their plain names: the build
 * links with --wrap. */
#define SHIM_COPIES(prefix)                                                                        \
    void *prefix##memcpy(void *to, const void *from, size_t size_bytes);                           \
    void *prefix##memmove(void *to, const void *from, size_t size_bytes);                          \
    void *prefix##memset(void *to, int value, size_t size_bytes);                                  \
    void *prefix##memcpy(void *to, const void *from, size_t size_bytes) {                          \
        access(from, size_bytes, READ);                                                            \
        access(to, size_bytes, WRITE);                                                             \
        return __real_memcpy(to, from, size_bytes);                                                \
    }                                                                                              \
    void *prefix##memmove(void *to, const void *from, size_t size_bytes) {                         \
        access(from, size_bytes, READ);                                                            \
        access(to, size_bytes, WRITE);                                                             \
        return __real_memmove(to, from, size_bytes);                                               \
    }                                                                                              \
    void *prefix##memset(void *to, int value, size_t size_bytes) {                                 \
        access(to, size_bytes, WRITE);                                                             \
        return __real_memset(to, value, size_bytes);                                               \
    }
void *__real_memcpy(void *to, const void *from, size_t size_bytes);
void *__real_memmove(void *to, const void *from, size_t size_bytes);
void *__real_memset(void *to, int value, size_t size_bytes);
SHIM_COPIES(__wrap_)
SHIM_COPIES(__tsan_)
#undef SHIM_COPIES

/* Compilers call the unaligned ones where they do not know better, also for memcpy. */
#define SHIM_HOOKS(n)                                                                              \
    void __tsan_read##n(const void *at);                                                           \
    void __tsan_write##n(const void *at);                                                          \
    void __tsan_read_write##n(const void *at);                                                     \
    void __tsan_unaligned_read##n(const void *at);                                                 \
    void __tsan_unaligned_write##n(const void *at);                                                \
    void __tsan_unaligned_read_write##n(const void *at);                                           \
    void __tsan_volatile_read##n(const void *at);                                                  \
    void __tsan_volatile_write##n(const void *at);                                                 \
    void __tsan_read##n(const void *at) {                                                          \
        aligned(at, n);                                                                            \
        access(at, n, READ);                                                                       \
    }                                                                                              \
    void __tsan_write##n(const void *at) {                                                         \
        aligned(at, n);                                                                            \
        access(at, n, WRITE);                                                                      \
    }                                                                                              \
    void __tsan_read_write##n(const void *at) {                                                    \
        access(at, n, READ);                                                                       \
        access(at, n, WRITE);                                                                      \
    }                                                                                              \
    void __tsan_unaligned_read##n(const void *at) {                                                \
        access(at, n, READ);                                                                       \
    }                                                                                              \
    void __tsan_unaligned_write##n(const void *at) {                                               \
        access(at, n, WRITE);                                                                      \
    }                                                                                              \
    void __tsan_unaligned_read_write##n(const void *at) {                                          \
        access(at, n, READ);                                                                       \
        access(at, n, WRITE);                                                                      \
    }                                                                                              \
    void __tsan_volatile_read##n(const void *at) {                                                 \
        access(at, n, READ);                                                                       \
    }                                                                                              \
    void __tsan_volatile_write##n(const void *at) {                                                \
        access(at, n, WRITE);                                                                      \
    }
SHIM_HOOKS(1)
SHIM_HOOKS(2)
SHIM_HOOKS(4)
SHIM_HOOKS(8)
SHIM_HOOKS(16)
#undef SHIM_HOOKS
}
