/* Runs a kernel: one fiber for each thread of a block, block after block. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "tests/shim/shim_in.h"

#if defined(__x86_64__) && !defined(SHIM_UCONTEXT)
#define SHIM_ASM 1
#else
#define SHIM_ASM 0
#include <ucontext.h>
#endif
#if SHIM_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

enum { N_WARPS = SHIM_MAX_THREADS / 32, STACK_BYTES = (SHIM_ASAN ? 512 : 128) * 1024 };
enum { STATIC_ROOM = 128 * 1024, DYN_ROOM = 128 * 1024, REDZONE = 64, MAX_SITES = 256 };

struct fiber {
    void *sp;
    char *stack;
    fiber *next_free;
    void *fake; /* AddressSanitizer's */
    const void *bottom;
    size_t stack_bytes;
#if !SHIM_ASM
    ucontext_t context;
#endif
};

enum lane_state { UNSTARTED, RUNNING, AT_BARRIER, AT_WARP, READY, DONE };

struct lane {
    fiber *on;
    uint64_t in, out;
    const char *file;
    int line, source;
    unsigned mask;
    uint8_t state, op;
};

struct warp {
    unsigned ready, waiting, done;
    /* Of the lanes that wait, while all of them are in the same operation with the same mask. */
    unsigned mask, op;
    bool uniform;
};

static struct {
    const shim_launch *launch;
    const void *args;
    int n_threads, n_done, n_at_barrier;
    int current, start;
    unsigned ready_warps;
    int votes_count;
    const char *barrier_file;
    int barrier_line;
    shim_vote barrier_vote;
    fiber *now, *from, *free, host;
    shim_order order;
    uint64_t seed, random;
    warp warps[N_WARPS];
    lane lanes[SHIM_MAX_THREADS];
    /* shared memory */
    char *shared, *dyn;
    size_t static_bytes, static_used;
    struct {
        char *end;
        size_t gap_bytes;
    } gaps[MAX_SITES];
    int n_gaps;
    uint64_t block_serial;
    char *stacks_low, *stacks_high;
} ex;

shim_place shim_now;
shim_running shim_running_now;
const shim_race *shim_race_ops;

void shim_fault(const char *format, ...) {
    va_list list;
    if (shim_running_now.launch && shim_running_now.in_thread) {
        fprintf(stderr,
            "shim: kernel %s, block (%u,%u,%u), thread (%u,%u,%u): ", shim_running_now.launch->name,
            shim_now.block.x, shim_now.block.y, shim_now.block.z, shim_now.thread.x,
            shim_now.thread.y, shim_now.thread.z);
    } else if (shim_running_now.launch) {
        fprintf(stderr, "shim: kernel %s: ", shim_running_now.launch->name);
    } else {
        fprintf(stderr, "shim: ");
    }
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fputc('\n', stderr);
    fflush(stderr);
    abort();
}

/* ---- order */

static uint64_t next_random(void) {
    ex.random ^= ex.random << 13;
    ex.random ^= ex.random >> 7;
    ex.random ^= ex.random << 17;
    return ex.random;
}

void shim_set_order_now(shim_order order, uint64_t seed) {
    ex.order = order;
    ex.seed = seed;
    ex.random = seed * 0x9e3779b97f4a7c15u | 1;
}

static inline int choose(unsigned bits) {
    if (ex.order == SHIM_ORDER_FORWARD) {
        return __builtin_ctz(bits);
    }
    if (ex.order == SHIM_ORDER_REVERSE) {
        return 31 - __builtin_clz(bits);
    }
    int skip = (int)(next_random() >> 33) % __builtin_popcount(bits);
    while (skip--) {
        bits &= bits - 1;
    }
    return __builtin_ctz(bits);
}

static inline void set_ready(int thread) {
    ex.warps[thread / 32].ready |= 1u << thread % 32;
    ex.ready_warps |= 1u << thread / 32;
}

/* Every thread of the block. */
static void all_ready(void) {
    for (int i = 0; i * 32 < ex.n_threads; i++) {
        int rest = ex.n_threads - i * 32;
        ex.warps[i].ready = rest >= 32 ? 0xffffffffu : (1u << rest) - 1;
        ex.ready_warps |= 1u << i;
    }
}

/* The next thread that can run, of this warp if there is one; -1: none. */
static inline int pick(int i_warp) {
    warp *w = &ex.warps[i_warp];
    if (!w->ready || (ex.order == SHIM_ORDER_RANDOM && (next_random() >> 60) == 0)) {
        if (!ex.ready_warps) {
            return -1;
        }
        i_warp = choose(ex.ready_warps);
        w = &ex.warps[i_warp];
    }
    int i_lane = choose(w->ready);
    w->ready &= ~(1u << i_lane);
    if (!w->ready) {
        ex.ready_warps &= ~(1u << i_warp);
    }
    return i_warp * 32 + i_lane;
}

static inline void set_current(int thread) {
    ex.current = thread;
    unsigned t = (unsigned)thread;
    const dim3 *dim = &shim_now.block_dim;
    if (dim->x == (unsigned)ex.n_threads) {
        shim_now.thread.x = t;
    } else {
        shim_now.thread.x = t % dim->x;
        shim_now.thread.y = t / dim->x % dim->y;
        shim_now.thread.z = t / dim->x / dim->y;
    }
}

/* ---- fibers */

#if SHIM_ASM
/* Saves the callee's registers on the stack that is left and takes them from the other. */
extern "C" void shim_switch(void **save_sp, void *load_sp);
asm(".text\n"
    ".p2align 4\n"
    ".globl shim_switch\n"
    ".type shim_switch,@function\n"
    "shim_switch:\n"
    "    pushq %rbp\n"
    "    pushq %rbx\n"
    "    pushq %r12\n"
    "    pushq %r13\n"
    "    pushq %r14\n"
    "    pushq %r15\n"
    "    movq %rsp, (%rdi)\n"
    "    movq %rsi, %rsp\n"
    "    popq %r15\n"
    "    popq %r14\n"
    "    popq %r13\n"
    "    popq %r12\n"
    "    popq %rbx\n"
    "    popq %rbp\n"
    "    ret\n"
    ".size shim_switch,.-shim_switch\n"
    ".section .note.GNU-stack,\"\",@progbits\n"
    ".text\n");
#endif

static inline void arrived(fiber *self) {
#if SHIM_ASAN
    const void *bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(self->fake, &bottom, &size);
    ex.from->bottom = bottom;
    ex.from->stack_bytes = size;
#else
    (void)self;
#endif
}

static inline void switch_to(fiber *to) {
    fiber *self = ex.now;
    ex.from = self;
    ex.now = to;
#if SHIM_ASAN
    __sanitizer_start_switch_fiber(&self->fake, to->bottom, to->stack_bytes);
#endif
#if SHIM_ASM
    shim_switch(&self->sp, to->sp);
#else
    swapcontext(&self->context, &to->context);
#endif
    arrived(self);
}

[[noreturn]] static void deadlock(void);
static void thread_ended(int thread);

/* A stack's whole life: threads one after another while none of them waits. */
static void fiber_main(void) {
    fiber *self = ex.now;
    arrived(self);
    for (;;) {
        int thread = ex.start;
        for (;;) {
            lane *l = &ex.lanes[thread];
            l->on = self;
            l->state = RUNNING;
            ex.launch->call(ex.launch->kernel, ex.args);
            l->state = DONE;
            thread_ended(thread);
            int next = pick(thread / 32);
            if (next < 0 && ex.n_done < ex.n_threads) {
                deadlock();
            }
            if (next < 0 || ex.lanes[next].on) {
                self->next_free = ex.free;
                ex.free = self;
                if (next < 0) {
                    switch_to(&ex.host);
                } else {
                    ex.lanes[next].state = RUNNING;
                    set_current(next);
                    switch_to(ex.lanes[next].on);
                }
                break;
            }
            thread = next;
            set_current(thread);
        }
    }
}

/* So that the first switch to it begins fiber_main. */
static void fiber_prepare(fiber *f) {
#if SHIM_ASM
    /* As if fiber_main had been called: its return address is nobody's. */
    void **top = reinterpret_cast<void **>(f->stack + STACK_BYTES) - 1;
    *top = nullptr;
    *--top = reinterpret_cast<void *>(fiber_main);
    top -= 6;
    memset(top, 0, 6 * sizeof(*top));
    f->sp = top;
#else
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack;
    f->context.uc_stack.ss_size = STACK_BYTES;
    f->context.uc_link = nullptr;
    makecontext(&f->context, fiber_main, 0);
#endif
}

static fiber *fiber_take(void) {
    fiber *f = ex.free;
    if (f) {
        ex.free = f->next_free;
        return f;
    }
    if (!ex.stacks_low) {
        size_t room = (size_t)(SHIM_MAX_THREADS + 1) * (STACK_BYTES + SHIM_PAGE);
        void *at = mmap(nullptr, room, PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (at == MAP_FAILED) {
            shim_fault("no memory for the threads' stacks");
        }
        ex.stacks_low = ex.stacks_high = static_cast<char *>(at);
    }
    f = static_cast<fiber *>(calloc(1, sizeof(*f)));
    /* One page that nobody may touch lies below each. */
    mprotect(ex.stacks_high, SHIM_PAGE, PROT_NONE);
    f->stack = ex.stacks_high + SHIM_PAGE;
    ex.stacks_high += SHIM_PAGE + STACK_BYTES;
    f->bottom = f->stack;
    f->stack_bytes = STACK_BYTES;
    fiber_prepare(f);
    return f;
}

static void run_thread(int thread) {
    fiber *to = ex.lanes[thread].on;
    if (!to) {
        ex.start = thread;
        to = fiber_take();
    } else {
        ex.lanes[thread].state = RUNNING;
    }
    set_current(thread);
    switch_to(to);
}

/* The current thread waits: another one goes on. */
static void wait_turn(void) {
    int me = ex.current, next = pick(me / 32);
    if (next < 0) {
        deadlock();
    }
    if (next == me) {
        ex.lanes[me].state = RUNNING;
        return;
    }
    run_thread(next);
}

/* The one who came last: goes on at once, but for the random order. */
static void go_on(int me) {
    if (ex.order == SHIM_ORDER_RANDOM) {
        ex.lanes[me].state = READY;
        set_ready(me);
        wait_turn();
    } else {
        ex.lanes[me].state = RUNNING;
    }
}

int shim_lane(void) {
    return ex.current % 32;
}

int shim_thread(void) {
    return ex.current;
}

int shim_n_threads(void) {
    return ex.n_threads;
}

bool shim_on_fiber(const void *at) {
    return at >= ex.stacks_low && at < ex.stacks_high;
}

/* ---- what waits for what */

static const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static const char *const warp_op_names[] = {"__syncwarp", "a shuffle", "a vote",
    "__reduce_add_sync", "__reduce_min_sync", "__reduce_max_sync", "__reduce_min_sync",
    "__reduce_max_sync", "__reduce_and_sync", "__reduce_or_sync", "__reduce_xor_sync"};

static void deadlock(void) {
    shim_running_now.in_thread = false;
    int n_told = 0;
    for (int i = 0; i < ex.n_threads && n_told < 8; i++) {
        const lane *l = &ex.lanes[i];
        if (l->state == AT_BARRIER || l->state == AT_WARP) {
            fprintf(stderr, "shim: thread %d of block (%u,%u,%u) waits at %s:%d in %s", i,
                shim_now.block.x, shim_now.block.y, shim_now.block.z, base_name(l->file), l->line,
                l->state == AT_BARRIER ? "__syncthreads" : warp_op_names[l->op]);
            if (l->state == AT_WARP) {
                fprintf(stderr, " for lanes %08x", l->mask);
            }
            fputc('\n', stderr);
            n_told++;
        }
    }
    shim_fault("threads wait for each other: %d of %d ended, %d at a barrier", ex.n_done,
        ex.n_threads, ex.n_at_barrier);
}

static void thread_ended(int thread) {
    warp *w = &ex.warps[thread / 32];
    w->done |= 1u << thread % 32;
    ex.n_done++;
    if (ex.n_at_barrier) {
        for (int i = 0; i < ex.n_threads; i++) {
            if (ex.lanes[i].state == AT_BARRIER) {
                shim_fault("ends while thread %d waits in __syncthreads at %s:%d", i,
                    base_name(ex.lanes[i].file), ex.lanes[i].line);
            }
        }
    }
    for (unsigned bits = w->waiting; bits; bits &= bits - 1) {
        const lane *l = &ex.lanes[thread / 32 * 32 + __builtin_ctz(bits)];
        if (l->mask >> thread % 32 & 1) {
            shim_fault("ends, but %s at %s:%d waits for its lane (mask %08x)", warp_op_names[l->op],
                base_name(l->file), l->line, l->mask);
        }
    }
}

int shim_barrier(int value, shim_vote vote, const char *file, int line) {
    int me = ex.current;
    lane *l = &ex.lanes[me];
    if (!shim_running_now.in_thread) {
        shim_fault("a barrier outside of a kernel");
    }
    if (ex.n_done) {
        shim_fault("__syncthreads at %s:%d, but %d threads of the block have ended",
            base_name(file), line, ex.n_done);
    }
    if (ex.n_at_barrier == 0) {
        ex.votes_count = 0;
        ex.barrier_file = file;
        ex.barrier_line = line;
        ex.barrier_vote = vote;
    } else if (line != ex.barrier_line || vote != ex.barrier_vote ||
               (file != ex.barrier_file && strcmp(file, ex.barrier_file) != 0)) {
        int other = 0;
        while (ex.lanes[other].state != AT_BARRIER) {
            other++;
        }
        shim_fault("__syncthreads at %s:%d, but thread %d is in the one at %s:%d", base_name(file),
            line, other, base_name(ex.barrier_file), ex.barrier_line);
    }
    ex.votes_count += value != 0;
    l->file = file;
    l->line = line;
    l->state = AT_BARRIER;
    ex.n_at_barrier++;
    if (ex.n_at_barrier < ex.n_threads) {
        wait_turn();
        return (int)l->out;
    }
    ex.n_at_barrier = 0;
    if (shim_race_ops) {
        shim_race_ops->barrier();
    }
    int result = vote == SHIM_COUNT ? ex.votes_count
                 : vote == SHIM_AND ? ex.votes_count == ex.n_threads
                                    : ex.votes_count != 0;
    for (int i = 0; i < ex.n_threads; i++) {
        ex.lanes[i].out = (uint64_t)result;
        ex.lanes[i].state = READY;
    }
    all_ready();
    ex.warps[me / 32].ready &= ~(1u << me % 32);
    if (!ex.warps[me / 32].ready) {
        ex.ready_warps &= ~(1u << me / 32);
    }
    go_on(me);
    return result;
}

static uint64_t reduce(shim_warp_op op, unsigned mask, const lane *lanes) {
    int32_t smallest = INT32_MAX, largest = INT32_MIN;
    uint32_t sum = 0, usmallest = UINT32_MAX, ularg = 0, bits_and = UINT32_MAX, bits_or = 0,
             bits_xor = 0, ballot = 0;
    for (unsigned bits = mask; bits; bits &= bits - 1) {
        int i = __builtin_ctz(bits);
        uint32_t v = (uint32_t)lanes[i].in;
        int32_t s = (int32_t)v;
        ballot |= (v != 0 ? 1u : 0) << i;
        sum += v;
        smallest = s < smallest ? s : smallest;
        largest = s > largest ? s : largest;
        usmallest = v < usmallest ? v : usmallest;
        ularg = v > ularg ? v : ularg;
        bits_and &= v;
        bits_or |= v;
        bits_xor ^= v;
    }
    switch (op) {
    case SHIM_BALLOT:
        return ballot;
    case SHIM_ADD:
        return sum;
    case SHIM_MIN:
        return (uint32_t)smallest;
    case SHIM_MAX:
        return (uint32_t)largest;
    case SHIM_UMIN:
        return usmallest;
    case SHIM_UMAX:
        return ularg;
    case SHIM_BIT_AND:
        return bits_and;
    case SHIM_BIT_OR:
        return bits_or;
    case SHIM_BIT_XOR:
        return bits_xor;
    default:
        return 0;
    }
}

/* Does one of the lanes wait for this one to come elsewhere? One that does not may be on its way.
 */
static void check_company(const lane *lanes, unsigned bits, shim_warp_op op, unsigned mask,
    int i_lane, const char *file, int line) {
    for (; bits; bits &= bits - 1) {
        const lane *o = &lanes[__builtin_ctz(bits)];
        if ((o->mask != mask || o->op != op) && (o->mask >> i_lane & 1)) {
            shim_fault("%s at %s:%d with mask %08x, but lane %d is in %s at %s:%d with mask %08x",
                warp_op_names[op], base_name(file), line, mask, __builtin_ctz(bits),
                warp_op_names[o->op], base_name(o->file), o->line, o->mask);
        }
    }
}

uint64_t shim_warp(
    shim_warp_op op, unsigned mask, uint64_t value, int source, const char *file, int line) {
    int me = ex.current, first = me / 32 * 32, i_lane = me % 32;
    warp *w = &ex.warps[me / 32];
    lane *lanes = &ex.lanes[first], *l = &lanes[i_lane];
    if (!shim_running_now.in_thread) {
        shim_fault("a warp operation outside of a kernel");
    }
    int n_lanes = ex.n_threads - first < 32 ? ex.n_threads - first : 32;
    unsigned all = n_lanes == 32 ? 0xffffffffu : (1u << n_lanes) - 1;
    /* A last warp that is not full takes full masks too: the missing lanes count as ended on a
     * device, and every source writes 0xffffffff. */
    unsigned wanted = mask & all;
    if (!(mask >> i_lane & 1)) {
        shim_fault("%s at %s:%d: the mask %08x does not name its own lane %d", warp_op_names[op],
            base_name(file), line, mask, i_lane);
    }
    if (mask != 0xffffffffu && mask != wanted) {
        shim_fault("%s at %s:%d: the mask %08x names lanes that the block has not",
            warp_op_names[op], base_name(file), line, mask);
    }
    if (wanted & w->done) {
        shim_fault("%s at %s:%d: the mask %08x names lanes that have ended (%08x)",
            warp_op_names[op], base_name(file), line, mask, wanted & w->done);
    }
    if (op == SHIM_SHUFFLE && !(wanted >> source & 1)) {
        shim_fault("a shuffle at %s:%d reads lane %d, which the mask %08x has not", base_name(file),
            line, source, mask);
    }
    if (!w->waiting) {
        w->uniform = true;
        w->mask = mask;
        w->op = op;
    } else if (!w->uniform || w->mask != mask || w->op != (unsigned)op) {
        w->uniform = false;
        check_company(lanes, w->waiting & wanted, op, mask, i_lane, file, line);
    }
    l->in = value;
    l->source = source;
    l->mask = mask;
    l->op = (uint8_t)op;
    l->file = file;
    l->line = line;
    l->state = AT_WARP;
    w->waiting |= 1u << i_lane;
    bool all_here = (w->waiting & wanted) == wanted;
    for (unsigned bits = wanted; all_here && !w->uniform && bits; bits &= bits - 1) {
        const lane *o = &lanes[__builtin_ctz(bits)];
        all_here = o->mask == mask && o->op == op;
    }
    if (!all_here) {
        wait_turn();
        return l->out;
    }
    w->waiting &= ~wanted;
    if (op == SHIM_SHUFFLE) {
        for (unsigned bits = wanted; bits; bits &= bits - 1) {
            lane *o = &lanes[__builtin_ctz(bits)];
            o->out = lanes[o->source].in;
        }
    } else if (op != SHIM_SYNC) {
        uint64_t out = reduce(op, wanted, lanes);
        for (unsigned bits = wanted; bits; bits &= bits - 1) {
            lanes[__builtin_ctz(bits)].out = out;
        }
    }
    if (shim_race_ops) {
        shim_race_ops->warp(me / 32, wanted);
    }
    for (unsigned bits = wanted & ~(1u << i_lane); bits; bits &= bits - 1) {
        lanes[__builtin_ctz(bits)].state = READY;
    }
    w->ready |= wanted & ~(1u << i_lane);
    if (w->ready) {
        ex.ready_warps |= 1u << me / 32;
    }
    go_on(me);
    return l->out;
}

void shim_atomic(const void *at, size_t size_bytes) {
    if ((uintptr_t)at % size_bytes) {
        shim_fault("an atomic operation at an address that is not a multiple of %zu", size_bytes);
    }
    if (shim_race_ops) {
        shim_race_ops->atomic(at, size_bytes);
    }
}

/* ---- shared memory: static arrays with gaps between, dynamic memory against a guard page */

static void shared_open(void) {
    if (ex.shared) {
        return;
    }
    void *at = mmap(nullptr, STATIC_ROOM + DYN_ROOM + 2 * SHIM_PAGE, PROT_READ | PROT_WRITE,
        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) {
        shim_fault("no memory for shared memory");
    }
    ex.shared = static_cast<char *>(at);
    mprotect(ex.shared + STATIC_ROOM, SHIM_PAGE, PROT_NONE);
    mprotect(ex.shared + STATIC_ROOM + SHIM_PAGE + DYN_ROOM, SHIM_PAGE, PROT_NONE);
}

void shim_shared_range(char **first, size_t *size_bytes) {
    *first = ex.shared;
    *size_bytes = STATIC_ROOM + DYN_ROOM + 2 * SHIM_PAGE;
}

static size_t shared_limit(const shim_launch *launch);

void *shim_shared(shim_site *site, size_t size_bytes, size_t align) {
    if (site->serial == ex.block_serial) {
        return site->at;
    }
    ex.static_bytes = (ex.static_bytes + align - 1) / align * align + size_bytes;
    size_t limit = shared_limit(ex.launch);
    if (ex.static_bytes + ex.launch->smem_bytes > limit) {
        shim_fault("%zu bytes of shared memory, %zu of them dynamic: the limit is %zu",
            ex.static_bytes + ex.launch->smem_bytes, ex.launch->smem_bytes, limit);
    }
    /* Aligned as the type asks and no better, so that a wider load is seen to be misaligned. */
    size_t begin = (ex.static_used + REDZONE + 15) / 16 * 16 + (align < 16 ? align : 0);
    char *at = ex.shared + begin;
    ex.static_used = begin + size_bytes;
    if (ex.static_used + 2 * REDZONE > STATIC_ROOM || ex.n_gaps == MAX_SITES) {
        shim_fault("too many arrays in shared memory");
    }
    SHIM_UNPOISON(at, size_bytes + REDZONE);
    shim_running_now.in_thread = false; /* the thread writes nothing here */
    memset(at, SHIM_FILL, size_bytes);
    memset(at + size_bytes, SHIM_EDGE, REDZONE);
    shim_running_now.in_thread = true;
    SHIM_POISON(at + size_bytes, REDZONE);
    SHIM_POISON(at - REDZONE, REDZONE);
    ex.gaps[ex.n_gaps].end = at + size_bytes;
    ex.gaps[ex.n_gaps++].gap_bytes = REDZONE / 2;
    site->serial = ex.block_serial;
    site->at = at;
    return at;
}

void *shim_dyn_shared(void) {
    return ex.dyn;
}

static void shared_block_begin(void) {
    size_t bytes = ex.launch->smem_bytes, inner = (bytes + 15) / 16 * 16;
    ex.block_serial++;
    ex.static_bytes = ex.static_used = 0;
    ex.n_gaps = 0;
    char *end = ex.shared + STATIC_ROOM + SHIM_PAGE + DYN_ROOM;
    ex.dyn = end - inner;
    if (bytes) {
        memset(ex.dyn, SHIM_FILL, bytes);
        if (inner > bytes) {
            memset(ex.dyn + bytes, SHIM_EDGE, inner - bytes);
            ex.gaps[ex.n_gaps].end = ex.dyn + bytes;
            ex.gaps[ex.n_gaps++].gap_bytes = inner - bytes;
        }
    }
}

static __attribute__((no_sanitize("address"))) void shared_block_end(void) {
    for (int i = 0; i < ex.n_gaps; i++) {
        for (size_t j = 0; j < ex.gaps[i].gap_bytes; j++) {
            if ((unsigned char)ex.gaps[i].end[j] != SHIM_EDGE) {
                shim_fault("something was written %zu bytes past the end of shared memory", j);
            }
        }
    }
}

/* ---- launches */

static struct {
    const void *kernel;
    size_t dyn_bytes;
} opt_ins[1024];
static int n_opt_ins;

cudaError_t shim_func_attribute_set(const void *kernel, int value);
cudaError_t shim_func_attribute_set(const void *kernel, int value) {
    if (value < 0 || value > SHIM_OPTIN_SHARED) {
        return cudaErrorInvalidValue;
    }
    int i = 0;
    while (i < n_opt_ins && opt_ins[i].kernel != kernel) {
        i++;
    }
    if (i == 1024) {
        return cudaErrorInvalidValue;
    }
    n_opt_ins += i == n_opt_ins;
    opt_ins[i].kernel = kernel;
    opt_ins[i].dyn_bytes = (size_t)value;
    return cudaSuccess;
}

static size_t dyn_limit(const void *kernel) {
    for (int i = 0; i < n_opt_ins; i++) {
        if (opt_ins[i].kernel == kernel) {
            return opt_ins[i].dyn_bytes;
        }
    }
    return SHIM_STATIC_SHARED;
}

static size_t shared_limit(const shim_launch *launch) {
    return dyn_limit(launch->kernel) > SHIM_STATIC_SHARED ? SHIM_OPTIN_SHARED : SHIM_STATIC_SHARED;
}

cudaError_t shim_launch_check(const shim_launch *launch);
cudaError_t shim_launch_check(const shim_launch *launch) {
    const dim3 *b = &launch->block, *g = &launch->grid;
    if (b->x < 1 || b->y < 1 || b->z < 1 || b->x > 1024 || b->y > 1024 || b->z > 64 ||
        (size_t)b->x * b->y * b->z > SHIM_MAX_THREADS || g->x < 1 || g->y < 1 || g->z < 1 ||
        g->x > 0x7fffffffu || g->y > 65535 || g->z > 65535) {
        return cudaErrorInvalidConfiguration;
    }
    return launch->smem_bytes > dyn_limit(launch->kernel) ? cudaErrorInvalidValue : cudaSuccess;
}

static void run_block(void) {
    int n = ex.n_threads;
    shared_block_begin();
    memset(ex.lanes, 0, (size_t)n * sizeof(ex.lanes[0]));
    ex.n_done = ex.n_at_barrier = 0;
    ex.ready_warps = 0;
    memset(ex.warps, 0, sizeof(ex.warps));
    all_ready();
    shim_running_now.in_thread = true;
    ex.now = &ex.host;
    run_thread(pick(choose(ex.ready_warps)));
    shim_running_now.in_thread = false;
    shared_block_end();
}

static uint64_t common_divisor(uint64_t a, uint64_t b) {
    while (b) {
        uint64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

void shim_run(const shim_launch *launch, const void *args) {
    shared_open();
    ex.launch = launch;
    ex.args = args;
    shim_running_now.launch = launch;
    shim_running_now.args = static_cast<const char *>(args);
    ex.n_threads = (int)(launch->block.x * launch->block.y * launch->block.z);
    shim_now.block_dim = launch->block;
    shim_now.grid_dim = launch->grid;
    shim_now.thread = uint3{0, 0, 0};
    if (shim_race_ops) {
        shim_race_ops->launch();
    }
    uint64_t n_blocks = (uint64_t)launch->grid.x * launch->grid.y * launch->grid.z;
    uint64_t first = 0, step = 1;
    if (ex.order == SHIM_ORDER_REVERSE) {
        first = n_blocks - 1;
        step = n_blocks - 1;
    } else if (ex.order == SHIM_ORDER_RANDOM) {
        first = next_random() % n_blocks;
        do {
            step = 1 + next_random() % n_blocks;
        } while (common_divisor(step, n_blocks) != 1);
    }
    for (uint64_t i = 0, block = first; i < n_blocks; i++, block = (block + step) % n_blocks) {
        shim_now.block.x = (unsigned)(block % launch->grid.x);
        shim_now.block.y = (unsigned)(block / launch->grid.x % launch->grid.y);
        shim_now.block.z = (unsigned)(block / launch->grid.x / launch->grid.y);
        if (shim_race_ops) {
            shim_race_ops->block(block, ex.n_threads);
        }
        run_block();
    }
    shim_running_now.launch = nullptr;
}

/* ---- arithmetic that is no single operation here */

int shim_float_to_int(float rounded) {
    if (rounded != rounded) {
        return 0;
    }
    return rounded >= 0x1p31f ? INT32_MAX : rounded <= -0x1p31f ? INT32_MIN : (int)rounded;
}

unsigned shim_float_to_uint(float rounded) {
    if (!(rounded > 0.0f)) {
        return 0;
    }
    return rounded >= 0x1p32f ? UINT32_MAX : (unsigned)rounded;
}

float __half2float(__half h) {
    uint32_t sign = (uint32_t)(h.bits & 0x8000) << 16, exponent = h.bits >> 10 & 31,
             mantissa = h.bits & 0x3ff;
    if (exponent == 31) {
        /* The device returns NaN 0x7fffffff. */
        return __uint_as_float(mantissa ? 0x7fffffffu : sign | 0x7f800000u);
    }
    if (exponent == 0) {
        float small = (float)mantissa * 0x1p-24f;
        return sign ? -small : small;
    }
    return __uint_as_float(sign | (exponent + 112) << 23 | mantissa << 13);
}

__half __float2half_rn(float v) {
    uint32_t bits = __float_as_uint(v), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000u) {
        return __half{0x7fff};
    }
    if (size >= 0x477ff000u) { /* 65520 and more */
        return __half{(unsigned short)(sign | 0x7c00)};
    }
    if (size < 0x38800000u) { /* subnormal: the addition rounds */
        float shifted = __uint_as_float(size) + 0.5f;
        return __half{(unsigned short)(sign | (__float_as_uint(shifted) - 0x3f000000u))};
    }
    uint32_t odd = size >> 13 & 1;
    return __half{(unsigned short)(sign | (size - 0x38000000u + 0xfff + odd) >> 13)};
}

__nv_bfloat16 __float2bfloat16_rn(float v) {
    uint32_t bits = __float_as_uint(v);
    if ((bits & 0x7fffffff) > 0x7f800000u) {
        return __nv_bfloat16{0x7fff};
    }
    return __nv_bfloat16{(unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
