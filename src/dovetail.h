/* The library: open models, open a session, generate text.
 *
 * Errors are dt_err values; dt_err_message() (src/base/common.h) has the line to show. The text is
 * a function of the model file, the prompt, the sampling options, the seed and the numerics id
 * alone: drafts, trees, thread counts, instruction sets and batch sizes change only the time. */
#ifndef DT_DOVETAIL_H
#define DT_DOVETAIL_H

#include "src/base/common.h"

#define DT_VERSION "0.1.0"

enum { DT_TREE_MAX = 64, DT_STAT_DEPTH_MAX = 32 };

/* What the models hold (models/model.h), and their vocabulary, which turns text into tokens and
 * back (models/token.h). */
typedef struct dt_model dt_model;
typedef struct dt_vocab dt_vocab;

/* ---- engine: what is loaded ---------------------------------------------------------------- */

typedef struct dt_engine dt_engine;

typedef struct dt_engine_options {
    const char *target; /* path of the target's GGUF */
    const char *draft;  /* path of the draft's GGUF or NULL */
    int n_threads;      /* 0: one per physical core, within a control group's quota */
    const char *isa;    /* NULL or "auto", "c", "avx2", "avxvnni", "avx512", "amx" */
    const char *matmul; /* NULL or "auto", "fused", "openblas", "float" */
    /* Where the draft model runs: NULL or "auto" (a GPU where there is one), "cpu", "cuda". What a
     * GPU cannot do falls back to the CPU: dt_engine_draft_notice. */
    const char *draft_device;
    int gpu;                 /* index of the GPU; negative: the one with the most free memory */
    int64_t gpu_patience_ns; /* how long a call of its driver may take; 0: 30 s */
    /* Set to true where dt_engine_open fails and dt_engine_close would return false; may be NULL.
     */
    bool *stuck;
    /* Called while loading, from the calling thread; may be NULL. `what` is "target" or "draft". */
    void (*progress)(void *arg, const char *what, size_t done, size_t total);
    void *arg;
} dt_engine_options;

/* Loads the models. A draft whose vocabulary does not fit is DT_ERR_INPUT. The engine is immutable
 * afterwards; it must outlive its sessions. Strings are copied. */
dt_err dt_engine_open(dt_engine **out, const dt_engine_options *options);
/* False: a call of the GPU's driver hangs, and its thread was left to itself, with the draft's
 * memory. exit() might hang too; _exit() does not. */
bool dt_engine_close(dt_engine *engine);
const dt_model *dt_engine_target(const dt_engine *engine);
const dt_model *dt_engine_draft(const dt_engine *engine); /* NULL without one */
const dt_vocab *dt_engine_vocab(const dt_engine *engine); /* the target's */
const char *dt_engine_isa(const dt_engine *engine);
int dt_engine_n_threads(const dt_engine *engine);
/* Whether this machine runs an instruction set that `isa` names ("auto" included). */
bool dt_engine_isa_runs(const char *isa);
/* The i-th instruction set this program knows, in ascending order of preference; NULL behind the
 * last. Not every machine runs it. */
const char *dt_engine_isa_name(int i);
/* Empty, or one line why exactness is not promised on this machine. */
const char *dt_engine_disclaimer(const dt_engine *engine);
/* Empty, or one line why the draft does not run on the GPU that was asked for or found; also after
 * opening a session. */
const char *dt_engine_draft_notice(const dt_engine *engine);

/* ---- session: one timeline ----------------------------------------------------------------- */

typedef struct dt_session dt_session;

/* What is added to a token's logit; -infinity: the token is never chosen. */
typedef struct dt_logit_bias {
    int32_t token;
    float bias; /* -1e6 .. 1e6, or -infinity */
} dt_logit_bias;

/* The target's distribution: biases, penalties, temperature, top-k, top-p, min-p, in this order.
 * dt_sampling_default() is greedy with every filter off. */
typedef struct dt_sampling {
    float temperature;       /* 0: greedy */
    int top_k;               /* 0: off */
    float top_p;             /* 1: off */
    float min_p;             /* 0: off */
    float repeat_penalty;    /* 1: off */
    float presence_penalty;  /* 0: off */
    float frequency_penalty; /* 0: off */
    int penalty_window; /* tokens looked back on by the penalties, prompt included; default 64 */
    uint64_t seed;
    const dt_logit_bias *biases; /* [n_biases], the caller's, as long as this is in force */
    int n_biases;                /* several for one token are added one after the other */
} dt_sampling;

void dt_sampling_default(dt_sampling *out);

typedef enum dt_draft_kind {
    DT_DRAFT_AUTO, /* model and n-grams if the engine has a draft, else n-grams */
    DT_DRAFT_MODEL,
    DT_DRAFT_NGRAM,
    DT_DRAFT_NONE,
} dt_draft_kind;

struct dt_draft; /* src/spec/draft.h: a source of one's own, for tests */

typedef struct dt_session_options {
    int n_ctx;      /* tokens of prompt and answer together; 0: the smaller of 4096 and the
                       model's training context; DT_CONTEXT_TRAINED: that context */
    const char *kv; /* what the target's KV cache holds: NULL or "f16", "q8_0" */
    dt_sampling sampling;
    dt_draft_kind draft;
    int tree;   /* nodes of a verified tree with its root, 2 .. DT_TREE_MAX; 0: default */
    int depth;  /* longest branch, 1 .. DT_STAT_DEPTH_MAX; 0: default */
    int topk;   /* children of a node, 1 .. 16; 0: default */
    bool guard; /* stop drafting while it does not pay (on by default) */
    bool independent_noise;     /* the draft ignores the target's noise (for comparisons) */
    int prefill_batch;          /* prompt tokens read at once, 1 .. 4096 (64 a pass at most) */
    int n_trace;                /* events of each lane that dt_session_trace can give; 0: none */
    struct dt_draft *own_draft; /* overrides `draft`; the session takes ownership; NULL */
} dt_session_options;

enum { DT_CONTEXT_TRAINED = -1 };

void dt_session_options_default(dt_session_options *out);

/* All memory of the session is taken here, but that of the KV caches: for them address space is
 * reserved, and a page is taken when a token first needs it. A context for which this machine has
 * not the memory now (MemAvailable, limits of the cgroup) is DT_ERR_MEMORY; the message says how
 * much it needs and what would fit. One thread at a time may use a session. */
dt_err dt_session_open(dt_session **out, dt_engine *engine, const dt_session_options *options);
void dt_session_close(dt_session *session);

/* Appends prompt tokens to the timeline (prefill runs at the next generate). DT_ERR_LIMIT if they
 * do not fit n_ctx, DT_ERR_INPUT for ids outside the vocabulary; the timeline is then as before. */
dt_err dt_session_append(dt_session *session, const int32_t *tokens, int64_t n);

/* Tokens of the timeline: prompts and answers. */
int64_t dt_session_n_tokens(const dt_session *session);
const int32_t *dt_session_tokens(const dt_session *session);

/* Cuts the timeline back to its first n tokens. */
dt_err dt_session_rewind(dt_session *session, int64_t n);

/* The distribution that the next generate draws from; the timeline and its KV stay. On failure
 * (DT_ERR_INPUT by name, DT_ERR_MEMORY) the old one stays in force. */
dt_err dt_session_set_sampling(dt_session *session, const dt_sampling *sampling);

typedef enum dt_stop {
    DT_STOP_END,     /* the model ended its answer */
    DT_STOP_STRING,  /* a stop string appeared */
    DT_STOP_BUDGET,  /* n_max tokens */
    DT_STOP_CONTEXT, /* n_ctx is full */
    DT_STOP_CALLER,  /* the callback asked for it */
} dt_stop;

typedef struct dt_generate_options {
    int64_t n_max;            /* tokens to generate; negative: until the end or a full context */
    const char *const *stops; /* stop strings; text from the first one on is not delivered */
    int n_stops;              /* at most 16, each at most 256 bytes */
    bool ignore_end;          /* go on past the model's end tokens */
    /* An answer in more calls than one, for who makes room in a full context and goes on. With
     * `will_go_on`, text that may yet become a stop string or a whole character stays held back at
     * DT_STOP_CONTEXT. The next call takes it up with `goes_on`: its stop strings are those of the
     * call before, and the figures are of both. Where the call before did not end so, `goes_on`
     * means nothing. */
    bool goes_on, will_go_on;
    /* Whole UTF-8 characters as they become certain, from the calling thread; n_bytes may be 0 for
     * a token that shows nothing. One call a token (one more where `goes_on` finds no room for
     * any); `drafted`: it is an accepted proposal of the draft. A non-zero result stops the answer.
     * May be NULL. */
    int (*text)(void *arg, const char *bytes, size_t n_bytes, bool drafted);
    /* During the prefill: tokens done of all. Non-zero stops. May be NULL. */
    int (*prefill)(void *arg, int64_t done, int64_t total);
    /* One line worth telling the user (the draft died, drafting was switched off). May be NULL. */
    void (*notice)(void *arg, const char *line);
    void *arg;
} dt_generate_options;

/* Generates from the timeline, which must hold at least one token. The timeline keeps every
 * generated token up to the stop (the end token included). DT_ERR_INPUT where the best logit of
 * the next token is not finite: a damaged model, or a bias on every token. */
dt_err dt_session_generate(
    dt_stop *stop_out, dt_session *session, const dt_generate_options *options);

/* ---- statistics ---------------------------------------------------------------------------- */

typedef enum dt_stat_from {
    DT_STAT_FROM_REST,  /* drafting rested: it measured slower than plain decoding */
    DT_STAT_FROM_PLAIN, /* nothing to propose was worth its time, or no draft was asked */
    DT_STAT_FROM_NGRAM,
    DT_STAT_FROM_MODEL, /* with what the n-gram added */
    DT_STAT_FROM_COUNT,
} dt_stat_from;

/* Of the latest generate. vLLM's definitions: mean acceptance length = 1 + accepted / steps, where
 * a step is one verification. */
typedef struct dt_stats {
    int64_t n_prompt; /* tokens read by this call before it wrote any */
    int64_t n_generated;
    int64_t n_steps;   /* verifications */
    int64_t n_drafted; /* tree nodes verified, roots not counted */
    int64_t n_accepted;
    int64_t n_off_branch; /* accepted nodes that were not their parent's first child */
    int64_t accepted_at[DT_STAT_DEPTH_MAX]; /* steps that accepted at least i + 1 tokens */
    int64_t n_late;                         /* steps whose draft was not ready in time */
    double mean_acceptance_length;
    double tokens_per_second;       /* decode */
    double plain_tokens_per_second; /* measured in steps without a draft; 0: not measured */
    double prefill_seconds, decode_seconds, verify_seconds, sample_seconds, wait_seconds,
        draft_seconds;
    double saved_seconds; /* against plain decoding as measured; negative: lost; 0: not known */
    /* Steps and tokens by where the step's proposals came from. */
    int64_t steps_by[DT_STAT_FROM_COUNT], tokens_by[DT_STAT_FROM_COUNT];
    char why[320];            /* in words: why speculation ran as it did */
    const char *draft_source; /* "model", "ngram", "model+ngram", "none", or the own draft's name */
    const char *draft_device; /* that served the trees: "cpu", "cuda", "none" */
    const char *draft_state;  /* "on", "off" (does not pay), "dead" (failed), "none" */
    const char *numerics;     /* numerics id */
    uint64_t seed;
    size_t kv_bytes; /* target's and draft's */
} dt_stats;

void dt_session_stats(const dt_session *session, dt_stats *out);

/* One thing that a thread did. */
typedef struct dt_trace_event {
    const char *what; /* a constant string */
    int64_t start_ns, end_ns;
    int32_t n_rows; /* of the tree or pass, 0 where there is none */
} dt_trace_event;

enum { DT_TRACE_VERIFY, DT_TRACE_DRAFT, DT_TRACE_LANES };

/* What a lane's thread has done since the session was opened, in order; returns their number. The
 * events stay in place until the session is closed. */
int dt_session_trace(const dt_trace_event **out, const dt_session *session, int lane);

/* What the target takes in a session. */
typedef struct dt_memory {
    size_t weights_bytes;  /* packed, shared by all sessions; 0: used as they lie in the file */
    size_t source_bytes;   /* of the same tensors in the file */
    size_t kv_token_bytes; /* of one token in the KV cache */
    size_t kv_bytes;       /* of the whole cache */
    size_t work_bytes;     /* logits, attention, activations */
} dt_memory;
void dt_session_memory(dt_memory *out, const dt_session *session, const dt_engine *engine);

/* One line: the GPU found, or "none: " and why there is none. False: as for dt_engine_close. */
bool dt_gpu_report(char *out, size_t n_bytes);

/* Loads OpenBLAS and runs the self-test of its exactness: `id` becomes "openblas-VERSION-CORE",
 * `fault` empty, or one line. DT_ERR_UNSUPPORTED where there is none. */
dt_err dt_openblas_check(char *id, size_t n_id, char *fault, size_t n_fault);

/* ---- measuring ----------------------------------------------------------------------------- */

/* Mean negative log-likelihood per token (natural logarithm) of tokens[1 .. n-1] in one window.
 * 2 <= n <= n_ctx. Uses and clears the timeline. */
dt_err dt_session_nll(double *out, dt_session *session, const int32_t *tokens, int64_t n);

/* Logits of every position of `tokens` (fed to the target in batches of prefill_batch), handed to
 * the callback in order; n_vocab floats, valid during the call. Clears the timeline. */
dt_err dt_session_logits(dt_session *session, const int32_t *tokens, int64_t n,
    void (*row)(void *arg, int64_t position, const float *logits), void *arg);

/* Seconds of one target pass over m rows at the present length of the timeline (all logits, rows
 * forgotten afterwards): for benchmarks. 1 <= m <= 64. */
dt_err dt_session_time_pass(double *seconds_out, dt_session *session, int m);

/* Bytes that the tensors which a pass of the target reads have in the model file. */
size_t dt_engine_pass_bytes(const dt_engine *engine);

/* A buffer on huge pages that the engine's team reads as fast as it can: what a pass cannot beat.
 * The engine must outlive it. One thread at a time. */
typedef struct dt_cpu_reader dt_reader;
dt_err dt_reader_open(dt_reader **out, dt_engine *engine, size_t n_bytes);
void dt_reader_close(dt_reader *reader);
/* Bytes per second of one reading, every thread n_streams (1, 2, 4, 8 or 16) places side by side.
 */
dt_err dt_reader_rate(double *out, dt_reader *reader, int n_streams);

#endif
