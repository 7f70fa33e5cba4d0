#include "src/spec/place.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "gpu/gpu.h"
#include "src/base/mem.h"
#include "src/spec/patient.h"

enum { TEXT_BYTES = 320 };

static const char GIVEN_UP[] = "the GPU does not answer, the draft runs on the CPU";

/* Work for the GPU, done with patience. It belongs to whoever is left with it: the place, or the
 * thread that hangs. */
typedef struct gpu_job {
    int index;
    const dt_model *model;
    int n_rows;
    dt_gpu *gpu;
    dt_gpu_weights *weights;
    dt_forward *forward;
    bool present; /* there is a GPU, whatever came of it */
    dt_err err;
    char text[TEXT_BYTES]; /* the message, or the device's name */
    /* Stored by the thread that loads, loaded by the one that waits: only for show, so relaxed. */
    _Atomic size_t done, total;
    size_t seen;
    void (*progress)(void *arg, size_t done, size_t total);
    void *arg;
} gpu_job;

struct dt_place {
    dt_place_options options;
    dt_cpu_weights *weights;
    gpu_job *job; /* NULL: no GPU */
    bool lent;    /* a forward on the GPU was handed out: it uses the weights until the end */
    bool stuck;
    _Atomic(const char *) notice; /* "", GIVEN_UP or `fallback`, which is written before */
    char fallback[TEXT_BYTES + 64];
};

/* ---- on the GPU's own thread ---- */

static void note_error(gpu_job *job, dt_err err) {
    job->err = err;
    if (err != DT_OK)
        snprintf(job->text, sizeof job->text, "%s", dt_err_message());
}

static void note_progress(void *arg, size_t done, size_t total) {
    gpu_job *job = arg;
    atomic_store_explicit(&job->total, total, memory_order_relaxed);
    atomic_store_explicit(&job->done, done, memory_order_relaxed);
}

static void unload(void *arg) {
    gpu_job *job = arg;
    dt_gpu_unload(job->weights);
    dt_gpu_close(job->gpu);
    job->weights = NULL;
    job->gpu = NULL;
}

static void open_gpu(void *arg) {
    gpu_job *job = arg;
    job->present = dt_gpu_present();
    dt_err err = dt_gpu_open(&job->gpu, job->index);
    if (err == DT_OK && job->model)
        err = dt_gpu_load(&job->weights, job->gpu, job->model, note_progress, job);
    note_error(job, err);
    if (err == DT_OK)
        snprintf(job->text, sizeof job->text, "%s", dt_gpu_describe(job->gpu));
    else
        unload(job);
}

static void open_forward(void *arg) {
    gpu_job *job = arg;
    note_error(job, dt_gpu_forward_open(&job->forward, job->weights, job->n_rows, false));
}

/* ---- on the caller's ---- */

static bool show_progress(void *arg) {
    gpu_job *job = arg;
    size_t done = atomic_load_explicit(&job->done, memory_order_relaxed);
    bool news = done != job->seen;
    job->seen = done;
    if (news && job->progress)
        job->progress(job->arg, done, atomic_load_explicit(&job->total, memory_order_relaxed));
    return news;
}

static int64_t patience(const dt_place *place) {
    return place->options.patience_ns ? place->options.patience_ns : DT_PATIENCE_NS;
}

/* Leaves the job to the thread that hangs in it. */
static void give_up(dt_place *place) {
    place->notice = GIVEN_UP;
    place->job = NULL;
    place->stuck = true;
}

static void note_fallback(dt_place *place) {
    if (place->fallback[0]) /* somebody may read it */
        return;
    snprintf(
        place->fallback, sizeof place->fallback, "the draft runs on the CPU: %s", place->job->text);
    place->notice = place->fallback;
}

/* Ends the use of the GPU. */
static void drop_gpu(dt_place *place) {
    gpu_job *job = place->job;
    if (!job)
        return;
    place->job = NULL;
    if (dt_run_patiently(unload, NULL, job, DT_PATIENCE_END_NS))
        dt_mem_free(job);
    else
        place->stuck = true;
}

static dt_err try_gpu(dt_place *place, bool asked) {
    const dt_place_options *o = &place->options;
    gpu_job *job = NULL;
    DT_TRY(dt_mem_alloc(&job, sizeof *job));
    job->index = o->gpu < 0 ? (int)DT_GPU_ANY : o->gpu;
    job->model = o->model;
    job->progress = o->progress;
    job->arg = o->arg;
    place->job = job;
    if (!dt_run_patiently(open_gpu, show_progress, job, patience(place))) {
        give_up(place);
    } else if (job->err != DT_OK) {
        if (asked || job->present)
            note_fallback(place);
        place->job = NULL;
        dt_mem_free(job);
    }
    return DT_OK;
}

static dt_err load_cpu(dt_place *place) {
    const dt_place_options *o = &place->options;
    if (place->weights)
        return DT_OK;
    return dt_cpu_load(&place->weights, o->cpu, o->model, DT_MATMUL_FUSED, o->progress, o->arg);
}

dt_err dt_place_open(dt_place **out, const dt_place_options *options) {
    *out = NULL;
    const char *device = options->device ? options->device : "auto";
    bool asked = strcmp(device, "cuda") == 0;
    if (!asked && strcmp(device, "auto") != 0 && strcmp(device, "cpu") != 0)
        DT_FAIL(DT_ERR_INPUT, "the draft's device: want auto, cpu or cuda, got \"%s\"", device);
    dt_place *place = NULL;
    DT_TRY(dt_mem_alloc(&place, sizeof *place));
    *out = place;
    place->options = *options;
    place->notice = "";
    dt_err err = strcmp(device, "cpu") == 0 ? DT_OK : try_gpu(place, asked);
    if (err == DT_OK && !place->job)
        err = load_cpu(place);
    /* The caller's memory for it may be gone by the time that a forward falls back. */
    place->options.progress = NULL;
    return err;
}

dt_err dt_place_forward(dt_forward **out, dt_place *place, int n_rows) {
    *out = NULL;
    gpu_job *job = place->job;
    if (job) {
        job->n_rows = n_rows;
        if (!dt_run_patiently(open_forward, NULL, job, patience(place))) {
            give_up(place);
        } else if (job->err == DT_OK) {
            *out = job->forward;
            place->lent = true;
            return DT_OK;
        } else {
            note_fallback(place);
            if (!place->lent)
                drop_gpu(place);
        }
    }
    DT_TRY(load_cpu(place));
    return dt_cpu_forward_open(out, place->weights, n_rows);
}

static void close_forward(void *arg) {
    dt_forward_close(arg);
}

bool dt_place_forward_close(dt_forward *forward) {
    if (!forward)
        return true;
    if (forward->apart)
        return dt_run_patiently(close_forward, NULL, forward, DT_PATIENCE_END_NS);
    dt_forward_close(forward);
    return true;
}

const char *dt_place_notice(const dt_place *place) {
    return place->notice;
}

void dt_place_abandon(dt_place *place) {
    if (place && place->job)
        give_up(place);
}

bool dt_place_close(dt_place *place) {
    if (!place)
        return true;
    drop_gpu(place);
    dt_cpu_unload(place->weights);
    bool stuck = place->stuck;
    dt_mem_free(place);
    return !stuck;
}

bool dt_place_describe_gpu(char *out, size_t n_bytes) {
    gpu_job *job = NULL;
    if (dt_mem_alloc(&job, sizeof *job) != DT_OK) {
        snprintf(out, n_bytes, "none: %s", dt_err_message());
        return true;
    }
    job->index = DT_GPU_ANY;
    if (!dt_run_patiently(open_gpu, NULL, job, DT_PATIENCE_NS / 3)) {
        snprintf(out, n_bytes, "none: the driver does not answer");
        return false;
    }
    snprintf(out, n_bytes, "%s%s", job->err == DT_OK ? "" : "none: ", job->text);
    if (!dt_run_patiently(unload, NULL, job, DT_PATIENCE_END_NS))
        return false;
    dt_mem_free(job);
    return true;
}
