#include "src/base/ring.h"

/* Two release stores carry everything: head hands filled slots to the consumer, tail hands emptied
 * ones back. Each side reads its own index relaxed, since only it writes it, and keeps a copy of
 * the other's, so that the other's cache line is fetched only when the copy says full or empty. */

void dt_ring_init(dt_ring *ring, uint32_t capacity, uint32_t start) {
    atomic_init(&ring->head, start);
    atomic_init(&ring->tail, start);
    ring->tail_seen = start;
    ring->head_seen = start;
    ring->capacity = capacity;
}

bool dt_ring_reserve(uint32_t *i_slot_out, dt_ring *ring) {
    uint32_t head = atomic_load_explicit(&ring->head, memory_order_relaxed); /* our own */
    if (head - ring->tail_seen == ring->capacity) {
        /* Pairs with the store in dt_ring_release: the consumer's reads of the slot are over. */
        ring->tail_seen = atomic_load_explicit(&ring->tail, memory_order_acquire);
        if (head - ring->tail_seen == ring->capacity)
            return false;
    }
    *i_slot_out = head & (ring->capacity - 1);
    return true;
}

void dt_ring_commit(dt_ring *ring) {
    uint32_t head = atomic_load_explicit(&ring->head, memory_order_relaxed); /* our own */
    /* Pairs with the load in dt_ring_peek: whoever sees this index sees the slot's contents. */
    atomic_store_explicit(&ring->head, head + 1, memory_order_release);
}

bool dt_ring_peek(uint32_t *i_slot_out, dt_ring *ring) {
    uint32_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed); /* our own */
    if (tail == ring->head_seen) {
        /* Pairs with the store in dt_ring_commit: the producer's writes to the slot are seen. */
        ring->head_seen = atomic_load_explicit(&ring->head, memory_order_acquire);
        if (tail == ring->head_seen)
            return false;
    }
    *i_slot_out = tail & (ring->capacity - 1);
    return true;
}

void dt_ring_release(dt_ring *ring) {
    uint32_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed); /* our own */
    /* Pairs with the load in dt_ring_reserve: our reads of the slot come before its reuse. */
    atomic_store_explicit(&ring->tail, tail + 1, memory_order_release);
}

uint32_t dt_ring_count(const dt_ring *ring) {
    /* Each side reads its own index exactly. The other's, paired with dt_ring_commit and
     * dt_ring_release, may be old: then the consumer counts too few and the producer too many. */
    uint32_t tail = atomic_load_explicit(&ring->tail, memory_order_acquire);
    uint32_t head = atomic_load_explicit(&ring->head, memory_order_acquire);
    return head - tail;
}
