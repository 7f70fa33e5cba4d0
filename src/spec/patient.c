#define _GNU_SOURCE
#include "src/spec/patient.h"

#include <time.h>

#include "src/base/mem.h"

enum { TICK_NS = 50000000 };

/* On a clock that nobody sets: a step of the other would make a healthy thread look stuck.
 * ThreadSanitizer knows only the call that takes the other one. */
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define PATIENT_TSAN
#endif
#endif
#if defined(__SANITIZE_THREAD__) || defined(PATIENT_TSAN)
enum { CLOCK = CLOCK_REALTIME };
#define JOIN_UNTIL(thread, until) pthread_timedjoin_np(thread, NULL, until)
#else
enum { CLOCK = CLOCK_MONOTONIC };
#define JOIN_UNTIL(thread, until) pthread_clockjoin_np(thread, NULL, CLOCK, until)
#endif

/* False when the thread still runs after `ns`. */
static bool join_for(pthread_t thread, int64_t ns) {
    struct timespec until;
    clock_gettime(CLOCK, &until);
    int64_t at = until.tv_nsec + ns;
    until.tv_sec += (time_t)(at / 1000000000);
    until.tv_nsec = (long)(at % 1000000000);
    return JOIN_UNTIL(thread, &until) == 0;
}

bool dt_join_patiently(pthread_t thread, int64_t patience_ns) {
    if (join_for(thread, patience_ns))
        return true;
    pthread_detach(thread);
    return false;
}

typedef struct job {
    void (*work)(void *arg);
    void *arg;
} job;

static void *run(void *arg) {
    job j = *(job *)arg;
    dt_mem_free(arg);
    j.work(j.arg);
    return NULL;
}

bool dt_run_patiently(
    void (*work)(void *arg), bool (*tick)(void *arg), void *arg, int64_t patience_ns) {
    job *j = NULL;
    pthread_t thread;
    if (dt_mem_alloc(&j, sizeof *j) == DT_OK)
        *j = (job){work, arg};
    if (!j || pthread_create(&thread, NULL, run, j) != 0) {
        dt_mem_free(j);
        work(arg);
        return true;
    }
    int64_t since = dt_time_ns();
    for (;;) {
        if (join_for(thread, TICK_NS))
            return true;
        if (tick && tick(arg))
            since = dt_time_ns();
        if (dt_time_ns() - since > patience_ns) {
            pthread_detach(thread);
            return false;
        }
    }
}
