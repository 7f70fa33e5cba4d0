/* Device and pinned memory: ranges of addresses that the host's own allocations never use. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "tests/shim/shim_in.h"

enum { SHIM_ALIGN = 16 };

struct range {
    char *first;
    size_t size_bytes, used_bytes;
    shim_block *blocks; /* ascending */
    int n_blocks, n_room;
};
static range device_range, pinned_range;
static int n_open;

static void range_open(range *r, size_t size_bytes) {
    if (r->first) {
        return;
    }
    void *at =
        mmap(nullptr, size_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) {
        shim_fault("the host gives no %zu bytes of addresses", size_bytes);
    }
    madvise(at, size_bytes, MADV_DONTDUMP);
    r->first = static_cast<char *>(at);
    r->size_bytes = size_bytes;
}

static void protect(const shim_block *block, bool open) {
    if (mprotect(block->pages, block->pages_bytes, open ? PROT_READ | PROT_WRITE : PROT_NONE)) {
        shim_fault("mprotect of %zu bytes failed", block->pages_bytes);
    }
}

static void on_segv(int signal, siginfo_t *info, void *context);

static void handler_open(void) {
    static bool installed;
    alignas(16) static thread_local char stack[64 * 1024];
    static thread_local bool has_stack;
    if (!has_stack) {
        has_stack = true;
        stack_t alt = {};
        alt.ss_sp = stack;
        alt.ss_size = sizeof(stack);
        sigaltstack(&alt, nullptr);
    }
    if (!installed) {
        installed = true;
        struct sigaction action = {};
        action.sa_sigaction = on_segv;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        sigaction(SIGSEGV, &action, nullptr);
        sigaction(SIGBUS, &action, nullptr);
    }
}

void *shim_mem_alloc(size_t size_bytes, int device) {
    range *r = device < 0 ? &pinned_range : &device_range;
    range_open(r, (size_t)(device < 0 ? 64 : 512) << 30);
    handler_open();
    if (r->n_blocks == r->n_room) {
        r->n_room = r->n_room ? 2 * r->n_room : 64;
        r->blocks =
            static_cast<shim_block *>(realloc(r->blocks, (size_t)r->n_room * sizeof(*r->blocks)));
    }
    size_t inner = (size_bytes + SHIM_ALIGN - 1) / SHIM_ALIGN * SHIM_ALIGN;
    size_t pages = (inner + SHIM_PAGE - 1) / SHIM_PAGE * SHIM_PAGE;
    /* Addresses are not used twice: what is freed stays out of reach. */
    if (r->used_bytes + pages + SHIM_PAGE > r->size_bytes) {
        shim_fault("the process has used up the shim's addresses");
    }
    shim_block *block = &r->blocks[r->n_blocks++];
    block->pages = r->first + r->used_bytes;
    block->pages_bytes = pages;
    block->at = block->pages + pages - inner;
    block->size_bytes = size_bytes;
    block->device = device;
    block->live = true;
    r->used_bytes += pages + SHIM_PAGE;
    protect(block, true);
    memset(block->pages, SHIM_EDGE, pages);
    memset(block->at, SHIM_FILL, size_bytes);
    SHIM_POISON(block->pages, (size_t)(block->at - block->pages));
    SHIM_POISON(block->at + size_bytes, inner - size_bytes);
    if (device >= 0 && n_open == 0) {
        protect(block, false);
    }
    return block->at;
}

static bool range_holds(const range *r, const void *at) {
    return (size_t)(static_cast<const char *>(at) - r->first) < r->size_bytes && r->first;
}

static shim_block *range_find(range *r, const void *at) {
    int low = 0, high = r->n_blocks;
    while (low < high) {
        int middle = (low + high) / 2;
        if (r->blocks[middle].pages <= at) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low ? &r->blocks[low - 1] : nullptr;
}

/* What lies beside an allocation must not have changed. */
static __attribute__((no_sanitize("address"))) void check_edges(const shim_block *block) {
    const char *front = block->at - block->pages < 64 ? block->pages : block->at - 64;
    const char *end = block->pages + block->pages_bytes;
    for (const char *p = front; p < end; p++) {
        if (p == block->at) {
            p += block->size_bytes;
            if (p == end) {
                break;
            }
        }
        if ((unsigned char)*p != SHIM_EDGE) {
            shim_fault("something was written %td bytes %s an allocation of %zu bytes",
                p < block->at ? block->at - p : p - (block->at + (ptrdiff_t)block->size_bytes),
                p < block->at ? "before" : "past the end of", block->size_bytes);
        }
    }
}

bool shim_mem_free(void *at, bool pinned, int *device, size_t *size_bytes) {
    range *r = pinned ? &pinned_range : &device_range;
    shim_block *block = range_holds(r, at) ? range_find(r, at) : nullptr;
    if (!block || block->at != at || !block->live) {
        return false;
    }
    if (!pinned) {
        protect(block, true);
    }
    check_edges(block);
    SHIM_UNPOISON(block->pages, block->pages_bytes);
    madvise(block->pages, block->pages_bytes, MADV_DONTNEED);
    protect(block, false);
    block->live = false;
    *device = block->device;
    *size_bytes = block->size_bytes;
    return true;
}

shim_place_kind shim_mem_kind(const void *at) {
    return range_holds(&device_range, at)   ? SHIM_DEVICE
           : range_holds(&pinned_range, at) ? SHIM_PINNED
                                            : SHIM_HOST;
}

const shim_block *shim_mem_find(const void *at) {
    return range_holds(&device_range, at)   ? range_find(&device_range, at)
           : range_holds(&pinned_range, at) ? range_find(&pinned_range, at)
                                            : nullptr;
}

void shim_mem_open(void) {
    handler_open();
    if (n_open++ == 0) {
        for (int i = 0; i < device_range.n_blocks; i++) {
            if (device_range.blocks[i].live) {
                protect(&device_range.blocks[i], true);
            }
        }
    }
}

void shim_mem_close(void) {
    if (n_open == 1) {
        for (int i = 0; i < device_range.n_blocks; i++) {
            const shim_block *block = &device_range.blocks[i];
            if (block->live) {
                check_edges(block);
                protect(block, false);
            }
        }
    }
    n_open--;
}

bool shim_mem_is_open(void) {
    return n_open > 0;
}

void shim_mem_range(shim_place_kind kind, char **first, size_t *size_bytes) {
    const range *r = kind == SHIM_DEVICE ? &device_range : &pinned_range;
    *first = r->first;
    *size_bytes = r->first ? r->size_bytes : 0;
}

static void on_segv(int signal, siginfo_t *info, void *) {
    const char *at = static_cast<const char *>(info->si_addr);
    const shim_block *block = shim_mem_find(at);
    const char *who = shim_running_now.launch ? "the kernel" : "host code";
    if (block && !block->live) {
        shim_fault("%s touches memory that was freed", who);
    } else if (block && at >= block->at + block->size_bytes) {
        shim_fault("%s touches memory %td bytes past the end of an allocation of %zu bytes", who,
            at - (block->at + block->size_bytes), block->size_bytes);
    } else if (block) {
        shim_fault("%s touches device memory, %td bytes into an allocation of %zu bytes", who,
            at - block->at, block->size_bytes);
    } else if (shim_running_now.in_thread) {
        char *shared;
        size_t shared_bytes;
        shim_shared_range(&shared, &shared_bytes);
        if ((size_t)(at - shared) < shared_bytes) {
            shim_fault("the kernel touches shared memory past what the launch gave");
        }
        shim_fault("the kernel touches an address that is nobody's (or its stack ran over)");
    }
    /* Not ours: fall back to what the signal does. */
    struct sigaction action = {};
    action.sa_handler = SIG_DFL;
    sigaction(signal, &action, nullptr);
}
