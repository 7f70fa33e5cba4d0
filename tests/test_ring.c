/* The ring: slots in order and never twice, full and empty, the wrap of the indices at 2^32; and
 * under two threads nothing lost, doubled or torn. DT_TEST_LONG=1 passes 10^8 messages. */
#include "tests/test.h"

#include <pthread.h>
#include <sched.h>

#include "src/base/mem.h"
#include "src/base/ring.h"
#include "src/base/wait.h"

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define TEST_TSAN
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define TEST_TSAN
#endif

static void test_steps(uint32_t capacity, uint32_t start) {
    dt_ring ring;
    uint32_t slot, again;
    dt_ring_init(&ring, capacity, start);
    CHECK(dt_ring_count(&ring) == 0);
    CHECK(!dt_ring_peek(&slot, &ring));
    uint32_t next_in = start, next_out = start;
    for (int round = 0; round < 5; round++) {
        for (uint32_t i = 0; i < capacity; i++) { /* fill it */
            CHECK(dt_ring_reserve(&slot, &ring) && slot == (next_in & (capacity - 1)));
            CHECK(dt_ring_reserve(&again, &ring) && again == slot);
            CHECK(dt_ring_count(&ring) == i);
            dt_ring_commit(&ring);
            next_in++;
        }
        CHECK(dt_ring_count(&ring) == capacity);
        CHECK(!dt_ring_reserve(&slot, &ring));
        /* Empty all of it, then all but what shifts the next round by one. */
        uint32_t n = round % 2 ? capacity : capacity / 2 + 1;
        n = n < capacity ? n : capacity;
        for (uint32_t i = 0; i < n; i++) {
            CHECK(dt_ring_peek(&slot, &ring) && slot == (next_out & (capacity - 1)));
            CHECK(dt_ring_peek(&again, &ring) && again == slot);
            dt_ring_release(&ring);
            next_out++;
            CHECK(dt_ring_reserve(&slot, &ring));
        }
        while (dt_ring_count(&ring) > 0) {
            CHECK(dt_ring_peek(&slot, &ring) && slot == (next_out & (capacity - 1)));
            dt_ring_release(&ring);
            next_out++;
        }
        CHECK(next_out == next_in);
        CHECK(!dt_ring_peek(&slot, &ring));
    }
}

/* A producer and a consumer in one thread, at random, against plain counters. */
static void test_random(test_rng *rng, uint32_t capacity) {
    dt_ring ring;
    dt_ring_init(&ring, capacity, UINT32_MAX - 1000);
    uint64_t values[64], n_in = 0, n_out = 0;
    for (int i = 0; i < 20000; i++) {
        uint32_t slot;
        if (test_rng_below(rng, 2)) {
            bool fits = dt_ring_reserve(&slot, &ring);
            CHECK(fits == (n_in - n_out < capacity));
            if (fits) {
                values[slot] = n_in++;
                dt_ring_commit(&ring);
            }
        } else {
            bool filled = dt_ring_peek(&slot, &ring);
            CHECK(filled == (n_in > n_out));
            if (filled) {
                CHECK(values[slot] == n_out++);
                dt_ring_release(&ring);
            }
        }
        CHECK(dt_ring_count(&ring) == n_in - n_out);
    }
}

typedef struct message {
    _Alignas(64) uint64_t word[8];
} message;

typedef struct channel {
    dt_ring ring;
    message slots[64];
    uint64_t n_messages;
} channel;

/* The other side has nothing to do without us: after some looks, let it have the core. */
static void back_off(int *n_tries) {
    if (++*n_tries % 256 == 0)
        sched_yield();
    else
        dt_spin_pause();
}

static void *produce(void *arg) {
    channel *c = arg;
    for (uint64_t i = 0; i < c->n_messages; i++) {
        uint32_t slot;
        for (int n_tries = 0; !dt_ring_reserve(&slot, &c->ring);)
            back_off(&n_tries);
        uint64_t value = i * 0x9e3779b97f4a7c15u;
        for (int w = 0; w < 8; w++)
            c->slots[slot].word[w] = value + (uint64_t)w;
        dt_ring_commit(&c->ring);
    }
    return NULL;
}

static void test_threads(uint32_t capacity, uint64_t n_messages) {
    static channel c;
    dt_ring_init(&c.ring, capacity, UINT32_MAX - 100000);
    c.n_messages = n_messages;
    pthread_t producer;
    int64_t start = dt_time_ns();
    CHECK(pthread_create(&producer, NULL, produce, &c) == 0);
    uint64_t n_wrong = 0;
    for (uint64_t i = 0; i < n_messages; i++) {
        uint32_t slot;
        for (int n_tries = 0; !dt_ring_peek(&slot, &c.ring);)
            back_off(&n_tries);
        uint64_t value = i * 0x9e3779b97f4a7c15u, wrong = 0;
        for (int w = 0; w < 8; w++)
            wrong |= c.slots[slot].word[w] ^ (value + (uint64_t)w);
        n_wrong += wrong != 0;
        dt_ring_release(&c.ring);
    }
    double s = 1e-9 * (double)(dt_time_ns() - start);
    pthread_join(producer, NULL);
    CHECK_MSG(n_wrong == 0, "%llu messages lost, doubled or torn", (unsigned long long)n_wrong);
    CHECK(dt_ring_count(&c.ring) == 0);
    printf("capacity %u: %llu messages in %.2f s, %.1f M a second\n", capacity,
        (unsigned long long)n_messages, s, 1e-6 * (double)n_messages / s);
}

int main(void) {
    static const uint32_t capacities[] = {1, 2, 64};
    test_rng rng = test_rng_open();
    for (size_t i = 0; i < DT_COUNT(capacities); i++) {
        test_steps(capacities[i], 0);
        test_steps(capacities[i], UINT32_MAX - 2); /* wraps in the first rounds */
        test_steps(capacities[i], UINT32_MAX - capacities[i]);
        test_random(&rng, capacities[i]);
    }
    uint32_t slot;
    dt_ring large;
    dt_ring_init(&large, 1u << 31, UINT32_MAX);
    CHECK(dt_ring_reserve(&slot, &large) && slot == 0x7fffffff);

    uint64_t n = getenv("DT_TEST_LONG") != NULL ? 100000000 : 10000000;
#ifdef TEST_TSAN
    n = 200000;
#endif
    test_threads(64, n);
    /* Here the threads take turns, and on a busy machine each turn is a switch of theirs. */
    test_threads(2, n / 500);
    test_threads(1, n / 500);
    return test_end();
}
