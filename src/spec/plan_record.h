/* What the planner learnt, kept between runs: one small text file for each machine, pair of models
 * and kind of sampling, under $XDG_CACHE_HOME/dovetail/plan (else ~/.cache). A file that is
 * missing, damaged or of another version is as good as none. */
#ifndef DT_SPEC_PLAN_RECORD_H
#define DT_SPEC_PLAN_RECORD_H

#include "src/spec/plan.h"

/* The file for a key (one line that names machine, models and settings). False where no folder for
 * caches is known. */
bool dt_plan_record_path(char *out, size_t n_max, const char *key);

/* False, and *out as before, unless the file holds a record of this very key. */
bool dt_plan_record_load(dt_plan_record *out, const char *path, const char *key);

/* Replaces the file in one step; folders are made. DT_ERR_IO says what did not work. */
dt_err dt_plan_record_save(const char *path, const char *key, const dt_plan_record *record);

#endif
