/* Private to models/: a heap of 64-bit keys, the smallest on top. A key is rank << 32 | place, so
 * that the best merge comes first and the leftmost of equals. Any thread, the caller's memory. */
#ifndef DT_MODELS_TOKEN_HEAP_H
#define DT_MODELS_TOKEN_HEAP_H

#include <stddef.h>
#include <stdint.h>

/* There is room for the key. */
static inline void dt_token_heap_push(uint64_t *heap, size_t *n, uint64_t value) {
    size_t i = (*n)++;
    for (; i > 0 && heap[(i - 1) / 2] > value; i = (i - 1) / 2)
        heap[i] = heap[(i - 1) / 2];
    heap[i] = value;
}

/* There is at least one key. */
static inline uint64_t dt_token_heap_pop(uint64_t *heap, size_t *n) {
    uint64_t top = heap[0], value = heap[--*n];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < *n; i = child) {
        if (child + 1 < *n && heap[child + 1] < heap[child])
            child++;
        if (heap[child] >= value)
            break;
        heap[i] = heap[child];
    }
    heap[i] = value;
    return top;
}

#endif
