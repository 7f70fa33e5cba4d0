/* What the system lets this process use: CPU time by the quota of its control group, memory by the
 * group's limit or the machine's size. Read once; nothing is kept. Any thread. */
#ifndef DT_BASE_LIMITS_H
#define DT_BASE_LIMITS_H

#include "src/base/common.h"

typedef struct dt_limits {
    double cpus;            /* CPUs' worth of time that the quota grants; 0: no quota */
    size_t memory_bytes;    /* of the machine, or the group's limit if that is less; 0: not known */
    size_t available_bytes; /* what can be taken now without pushing others out; 0: not known */
} dt_limits;

/* Control groups of both versions, at /sys/fs/cgroup; a limit of any group above counts. `root` is
 * "", or a folder that stands for / (tests). What cannot be read limits nothing. */
void dt_limits_read(dt_limits *out, const char *root);

/* How many threads a team of `n_cores` cores should have under a quota of `cpus` (0: none): one a
 * core, and no more than the quota keeps running. Of a fraction one more thread is made: it works
 * until the quota stops the whole team for the rest of the period. */
int dt_limits_threads(int n_cores, double cpus);

#endif
