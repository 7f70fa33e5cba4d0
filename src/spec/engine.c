#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "cpu/cpu.h"
#include "gpu/gpu.h"
#include "src/base/limits.h"
#include "src/base/mem.h"
#include "src/spec/place.h"
#include "src/spec/plan_record.h"
#include "src/spec/session.h"

/* What the planner knows of the pair for one kind of sampling. */
typedef struct memory {
    pthread_mutex_t *mutex; /* the engine's: sessions may be opened and closed by any thread */
    bool known;
    bool has_file;
    char key[768], path[1024];
    dt_plan_record record;
} memory;

enum { N_WARMTHS = 4, N_SOURCES = 2 };

struct dt_engine {
    dt_topo *topo;
    dt_cpu *cpu;
    dt_model *target, *draft;
    dt_cpu_weights *target_weights;
    dt_place *draft_place;
    int64_t patience_ns;
    atomic_bool stuck; /* a thread was left in a call that hangs */
    int32_t n_common;
    pthread_mutex_t mutex;
    memory memories[N_SOURCES][N_WARMTHS];
};

/* The draft's caches and trees beyond the context. */
enum { DRAFT_ROWS_SPARE = 512, N_CTX_DEFAULT = 4096, N_LOW_MIN = 32768 };

/* The most that lists of the session and its draft hold for a token: its records (up to 96 bytes in
 * a ring of a power of two), ids, hashes, and the chains of the n-gram lookup. */
enum { CONTEXT_TOKEN_BYTES = 320 };

/* ---- loading ---- */

typedef struct load_report {
    const dt_engine_options *options;
    const char *what;
} load_report;

static void report_load(void *arg, size_t done, size_t total) {
    const load_report *report = arg;
    report->options->progress(report->options->arg, report->what, done, total);
}

static dt_err parse_matmul(dt_matmul_way *out, const char *name) {
    static const struct {
        const char *name;
        dt_matmul_way way;
    } ways[] = {
        {"auto", DT_MATMUL_AUTO},
        {"fused", DT_MATMUL_FUSED},
        {"openblas", DT_MATMUL_OPENBLAS},
        {"float", DT_MATMUL_FLOAT},
    };
    for (size_t i = 0; i < DT_COUNT(ways); i++) {
        if (strcmp(name ? name : "auto", ways[i].name) == 0) {
            *out = ways[i].way;
            return DT_OK;
        }
    }
    DT_FAIL(DT_ERR_INPUT, "matrix products: want auto, fused, openblas or float, got \"%s\"", name);
}

static dt_err load(dt_cpu_weights **out, dt_engine *engine, const dt_model *model,
    dt_matmul_way way, const dt_engine_options *o, const char *what) {
    load_report report = {o, what};
    dt_err err =
        dt_cpu_load(out, engine->cpu, model, way, o->progress ? report_load : NULL, &report);
    return err == DT_OK ? DT_OK : dt_err_prefix(err, "%s", what);
}

static dt_err place_draft(dt_engine *engine, const dt_engine_options *o) {
    load_report report = {o, "draft"};
    engine->patience_ns = o->gpu_patience_ns;
    dt_err err =
        dt_place_open(&engine->draft_place, &(dt_place_options){
                                                .cpu = engine->cpu,
                                                .model = engine->draft,
                                                .device = o->draft_device,
                                                .gpu = o->gpu,
                                                .patience_ns = o->gpu_patience_ns,
                                                .progress = o->progress ? report_load : NULL,
                                                .arg = &report,
                                            });
    return err == DT_OK ? DT_OK : dt_err_prefix(err, "draft");
}

static dt_err open_all(dt_engine *engine, const dt_engine_options *o) {
    dt_matmul_way way = DT_MATMUL_AUTO;
    DT_TRY(parse_matmul(&way, o->matmul));
    if (!o->target)
        DT_FAIL(DT_ERR_INPUT, "no target model is named");
    /* Everything that can be wrong with the files is found before the long work. */
    DT_TRY(dt_model_open(&engine->target, o->target));
    if (o->draft) {
        DT_TRY(dt_model_open(&engine->draft, o->draft));
        dt_err err = dt_vocab_match(&engine->n_common, engine->target->vocab, engine->draft->vocab);
        if (err != DT_OK)
            return dt_err_prefix(err, "the draft does not fit the target");
    }
    DT_TRY(dt_topo_open(&engine->topo, NULL));
    DT_TRY(dt_cpu_open(&engine->cpu, engine->topo, o->n_threads, o->isa));
    DT_TRY(load(&engine->target_weights, engine, engine->target, way, o, "target"));
    return engine->draft ? place_draft(engine, o) : DT_OK;
}

dt_err dt_engine_open(dt_engine **out, const dt_engine_options *options) {
    *out = NULL;
    dt_engine *engine = NULL;
    DT_TRY(dt_mem_alloc(&engine, sizeof *engine));
    pthread_mutex_init(&engine->mutex, NULL);
    dt_err err = open_all(engine, options);
    if (err != DT_OK) {
        if (!dt_engine_close(engine) && options->stuck)
            *options->stuck = true;
        return err;
    }
    *out = engine;
    return DT_OK;
}

bool dt_engine_close(dt_engine *engine) {
    if (!engine)
        return true;
    if (engine->stuck)
        dt_place_abandon(engine->draft_place);
    bool stuck = !dt_place_close(engine->draft_place) || engine->stuck;
    if (engine->target_weights)
        dt_cpu_unload(engine->target_weights);
    if (engine->cpu)
        dt_cpu_close(engine->cpu);
    if (engine->topo)
        dt_topo_close(engine->topo);
    if (!stuck) /* else the thread that hangs may come back to it */
        dt_model_close(engine->draft);
    if (engine->target)
        dt_model_close(engine->target);
    pthread_mutex_destroy(&engine->mutex);
    dt_mem_free(engine);
    return !stuck;
}

const dt_model *dt_engine_target(const dt_engine *engine) {
    return engine->target;
}

const dt_model *dt_engine_draft(const dt_engine *engine) {
    return engine->draft;
}

const dt_vocab *dt_engine_vocab(const dt_engine *engine) {
    return engine->target->vocab;
}

const char *dt_engine_isa(const dt_engine *engine) {
    return dt_cpu_isa(engine->cpu);
}

int dt_engine_n_threads(const dt_engine *engine) {
    return dt_cpu_n_threads(engine->cpu);
}

const char *dt_engine_disclaimer(const dt_engine *engine) {
    return dt_cpu_disclaimer(engine->target_weights);
}

const char *dt_engine_draft_notice(const dt_engine *engine) {
    return engine->draft_place ? dt_place_notice(engine->draft_place) : "";
}

/* ---- sessions over it ---- */

static size_t decode(const void *arg, char *out, size_t n_max, int32_t token) {
    return dt_decode_token(out, n_max, arg, token, false);
}

static bool ends(const void *arg, int32_t token) {
    return dt_vocab_ends(arg, token);
}

static size_t longest_token(const dt_vocab *vocab) {
    size_t longest = 1;
    for (int32_t i = 0; i < dt_vocab_size(vocab); i++)
        longest = DT_MAX(longest, dt_decode_token(NULL, 0, vocab, i, false));
    return longest;
}

/* The head is a third of a small model's pass over a large vocabulary: on the CPU a draft computes
 * its logits for the frequent tokens alone, which come first where merges are numbered by rank, and
 * for those that end an answer; the source adds the text's own. */
static dt_err limit_head(dt_session_parts *parts, const dt_vocab *vocab, int n_vocab) {
    if (n_vocab <= 2 * N_LOW_MIN || strcmp(parts->draft->device, "cpu") != 0)
        return DT_OK;
    parts->n_low = DT_MAX(N_LOW_MIN, n_vocab / 4);
    for (int32_t i = 0; i < dt_vocab_size(vocab); i++) {
        if (dt_vocab_ends(vocab, i))
            DT_TRY(dt_forward_admit(parts->draft, parts->n_low, &i, 1));
    }
    return DT_OK;
}

static bool wants_model_draft(const dt_engine *engine, const dt_session_options *o) {
    return engine->draft && !o->own_draft &&
           (o->draft == DT_DRAFT_AUTO || o->draft == DT_DRAFT_MODEL);
}

static dt_kv_type kv_type(const dt_session_options *o) {
    return o->kv && strcmp(o->kv, "q8_0") == 0 ? DT_KV_Q8_0 : DT_KV_F16;
}

/* What a context takes when it is full: caches, scores in parts, and the lists of tokens. */
static size_t context_bytes(const dt_engine *engine, const dt_session_options *o, int n_ctx) {
    size_t n = dt_cpu_forward_bytes(&engine->target->config, n_ctx + DT_TREE_MAX, kv_type(o));
    if (wants_model_draft(engine, o))
        n += dt_cpu_forward_bytes(&engine->draft->config, n_ctx + DRAFT_ROWS_SPARE, DT_KV_F16);
    return n + (size_t)n_ctx * CONTEXT_TOKEN_BYTES;
}

dt_err dt_context_check(const dt_engine *engine, const dt_session_options *o, size_t there) {
    size_t need = context_bytes(engine, o, o->n_ctx);
    if (need <= there)
        return DT_OK;
    int low = 0, high = o->n_ctx;
    while (high - low > 1) {
        int middle = low + (high - low) / 2;
        if (context_bytes(engine, o, middle) <= there)
            low = middle;
        else
            high = middle;
    }
    low -= low > 1024 ? low % 256 : 0;
    DT_FAIL(DT_ERR_MEMORY,
        "a context of %d tokens needs %zu MB of memory, %zu MB are available; %d tokens would fit",
        o->n_ctx, need / 1000000, there / 1000000, low);
}

/* Sessions may be opened by any thread. */
static dt_err open_draft_forward(dt_forward **out, dt_engine *engine, int n_rows) {
    pthread_mutex_lock(&engine->mutex);
    if (engine->stuck) /* this GPU is not asked again */
        dt_place_abandon(engine->draft_place);
    dt_err err = dt_place_forward(out, engine->draft_place, n_rows);
    pthread_mutex_unlock(&engine->mutex);
    return err;
}

static dt_err open_forwards(
    dt_session_parts *parts, dt_engine *engine, const dt_session_options *o) {
    dt_limits limits;
    dt_limits_read(&limits, "");
    DT_TRY(dt_context_check(engine, o, limits.available_bytes ? limits.available_bytes : SIZE_MAX));
    DT_TRY(dt_cpu_forward_open_kv(
        &parts->target, engine->target_weights, o->n_ctx + DT_TREE_MAX, kv_type(o)));
    if (!wants_model_draft(engine, o))
        return DT_OK;
    DT_TRY(open_draft_forward(&parts->draft, engine, o->n_ctx + DRAFT_ROWS_SPARE));
    return limit_head(parts, engine->draft->vocab, engine->draft->config.n_vocab);
}

/* ---- what was learnt before ---- */

static void describe_model(char *out, size_t n_max, const dt_model *model) {
    dt_text name = {0};
    if (dt_gguf_get_text(model->file, "general.name", &name) != DT_OK)
        name.n_bytes = 0;
    int n = snprintf(out, n_max, "%s %lld ", model->config.arch_name,
        (long long)dt_gguf_file_bytes(model->file));
    for (size_t i = 0; i < name.n_bytes && i < 64 && (size_t)n + 2 < n_max; i++)
        out[n++] = name.data[i] >= ' ' && name.data[i] <= '~' ? name.data[i] : '?';
    out[n] = '\0';
}

static void describe_setting(
    char *out, size_t n_max, const dt_engine *engine, const dt_session_parts *parts, int i_warmth) {
    char machine[160], target[192], draft[192] = "none";
    dt_topo_describe(engine->topo, machine, sizeof machine);
    describe_model(target, sizeof target, engine->target);
    if (parts->draft)
        describe_model(draft, sizeof draft, engine->draft);
    snprintf(out, n_max, "%s; %s, %d threads, %s; target %s; draft %s on %s; warmth %d", machine,
        dt_engine_isa(engine), dt_engine_n_threads(engine), parts->target->numerics, target, draft,
        parts->draft ? parts->draft->device : "none", i_warmth);
}

static void learned(void *arg, const dt_plan_record *record) {
    memory *m = arg;
    pthread_mutex_lock(m->mutex);
    m->record = *record;
    m->known = true;
    /* A cache that cannot be written is no reason to complain: it is as if there were none. */
    if (m->has_file)
        dt_plan_record_save(m->path, m->key, record);
    pthread_mutex_unlock(m->mutex);
}

/* Gives the session what is known of its pair; `copy` holds it until the session is open. */
static void recall(
    dt_session_parts *parts, dt_plan_record *copy, dt_engine *engine, const dt_session_options *o) {
    float t = o->sampling.temperature;
    int i_warmth = t <= 0.0f ? 0 : t <= 0.6f ? 1 : t <= 1.0f ? 2 : 3;
    memory *m = &engine->memories[parts->draft != NULL][i_warmth];
    pthread_mutex_lock(&engine->mutex);
    if (!m->mutex) {
        m->mutex = &engine->mutex;
        describe_setting(m->key, sizeof m->key, engine, parts, i_warmth);
        m->has_file = dt_plan_record_path(m->path, sizeof m->path, m->key);
        m->known = m->has_file && dt_plan_record_load(&m->record, m->path, m->key);
    }
    if (m->known) {
        *copy = m->record;
        parts->record = copy;
    }
    parts->learned = learned;
    parts->learned_arg = m;
    pthread_mutex_unlock(&engine->mutex);
}

dt_err dt_session_open(dt_session **out, dt_engine *engine, const dt_session_options *options) {
    *out = NULL;
    dt_session_options o = *options;
    int trained = engine->target->config.n_ctx_train;
    if (o.n_ctx == 0)
        o.n_ctx = DT_MIN(N_CTX_DEFAULT, trained);
    else if (o.n_ctx == DT_CONTEXT_TRAINED)
        o.n_ctx = trained;
    if (o.n_ctx < 1 || o.n_ctx > DT_CONTEXT_MAX)
        DT_FAIL(DT_ERR_INPUT, "context size: want 1 to %d, got %d", DT_CONTEXT_MAX, o.n_ctx);
    if (o.kv && strcmp(o.kv, "f16") != 0 && strcmp(o.kv, "q8_0") != 0)
        DT_FAIL(DT_ERR_INPUT, "KV cache: want f16 or q8_0, got \"%s\"", o.kv);
    const dt_vocab *vocab = engine->target->vocab;
    dt_session_parts parts = {
        .n_common = engine->n_common,
        .speech = {vocab, decode, ends, longest_token(vocab)},
        .stuck = &engine->stuck,
        .patience_ns = engine->patience_ns,
    };
    dt_err err = open_forwards(&parts, engine, &o);
    dt_plan_record record;
    if (err == DT_OK) {
        recall(&parts, &record, engine, &o);
        err = dt_session_open_with(out, &parts, &o);
    }
    if (err != DT_OK) {
        if (!dt_place_forward_close(parts.draft))
            engine->stuck = true;
        dt_forward_close(parts.target);
    }
    return err;
}

bool dt_engine_isa_runs(const char *isa) {
    return dt_cpu_isa_runs(isa);
}

const char *dt_engine_isa_name(int i) {
    return dt_cpu_isa_name(i);
}

/* ---- the floor under a pass ---- */

size_t dt_engine_pass_bytes(const dt_engine *engine) {
    const dt_model *model = engine->target;
    size_t n_bytes = 0;
    for (int64_t i = 0; i < dt_gguf_n_tensors(model->file); i++) {
        const dt_tensor *tensor = dt_gguf_tensor(model->file, i);
        /* Of an embedding that is no head, a pass reads only the rows of its tokens. */
        if (tensor != model->token_embd || tensor == model->output)
            n_bytes += tensor->n_bytes;
    }
    return n_bytes;
}

dt_err dt_reader_open(dt_reader **out, dt_engine *engine, size_t n_bytes) {
    return dt_cpu_reader_open(out, engine->cpu, n_bytes);
}

void dt_reader_close(dt_reader *reader) {
    dt_cpu_reader_close(reader);
}

dt_err dt_reader_rate(double *out, dt_reader *reader, int n_streams) {
    return dt_cpu_reader_rate(out, reader, n_streams);
}

/* ---- for listings ---- */

void dt_session_memory(dt_memory *out, const dt_session *session, const dt_engine *engine) {
    const dt_forward *target = session->parts.target;
    dt_cpu_weights_bytes(&out->weights_bytes, &out->source_bytes, engine->target_weights);
    out->kv_token_bytes = target->kv_token_bytes;
    out->kv_bytes = target->kv_bytes;
    out->work_bytes = target->work_bytes;
}

bool dt_gpu_report(char *out, size_t n_bytes) {
    return dt_place_describe_gpu(out, n_bytes);
}

dt_err dt_openblas_check(char *id, size_t n_id, char *fault, size_t n_fault) {
    return dt_cpu_check_openblas(id, n_id, fault, n_fault);
}
