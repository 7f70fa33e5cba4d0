/* Calls into a driver that may never return: they run on a thread of their own, and the caller
 * gives up on them after a while. */
#ifndef DT_SPEC_PATIENT_H
#define DT_SPEC_PATIENT_H

#include <pthread.h>

#include "src/base/common.h"

/* How long a GPU's call may take while there is work to do, and at the end. */
#define DT_PATIENCE_NS ((int64_t)30000000000)
#define DT_PATIENCE_END_NS ((int64_t)2000000000)

/* Runs work(arg) on a new thread. True when it has returned, or where no thread could be started
 * and it ran here; false when it had not after patience_ns: then the thread is left to itself, and
 * what `arg` points to must stay for ever. `tick(arg)`, every 50 ms from the calling thread, may be
 * NULL; a true result starts the patience anew. */
bool dt_run_patiently(
    void (*work)(void *arg), bool (*tick)(void *arg), void *arg, int64_t patience_ns);

/* pthread_join with the same patience; false: the thread was left to itself. */
bool dt_join_patiently(pthread_t thread, int64_t patience_ns);

#endif
