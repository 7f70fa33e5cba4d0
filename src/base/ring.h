/* A single-producer single-consumer ring of indices over slots that lie elsewhere (so that they can
 * be pinned for a device).
 *
 * One thread reserves and commits, one thread peeks and releases; neither ever waits. Indices run
 * free and wrap at 2^32; the capacity is a power of two. The producer owns the slots from reserve
 * to commit, the consumer from peek to release. */
#ifndef DT_BASE_RING_H
#define DT_BASE_RING_H

#include <stdatomic.h>

#include "src/base/common.h"

typedef struct dt_ring {
    _Alignas(64) _Atomic uint32_t head; /* next to write; written by the producer */
    uint32_t tail_seen;                 /* the producer's copy of tail */
    _Alignas(64) _Atomic uint32_t tail; /* next to read; written by the consumer */
    uint32_t head_seen;                 /* the consumer's copy of head */
    _Alignas(64) uint32_t capacity;
} dt_ring;

/* capacity: a power of two, 1 .. 2^31. `start` is the first index (0, or near the wrap in tests).
 */
void dt_ring_init(dt_ring *ring, uint32_t capacity, uint32_t start);

/* Producer: whether a slot is free, and which. The same slot is given until it is committed. */
bool dt_ring_reserve(uint32_t *i_slot_out, dt_ring *ring);
void dt_ring_commit(dt_ring *ring);

/* Consumer: whether a slot is filled, and which (the oldest). */
bool dt_ring_peek(uint32_t *i_slot_out, dt_ring *ring);
void dt_ring_release(dt_ring *ring);

/* Filled slots, for the consumer exact or too small, for the producer exact or too large. */
uint32_t dt_ring_count(const dt_ring *ring);

#endif
