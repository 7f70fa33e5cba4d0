/* The narrow table between the host code of gpu/ and a device: memory, copies, one stream, events,
 * one graph per round, and the kernels. Two tables implement it: gpu/ops_cuda.cu compiled by nvcc,
 * and the same file compiled by a C++ compiler against the host shim of tests/shim.
 *
 * Pointers named d_ are device memory: the host never reads them. All work of a device goes to one
 * stream, in the order of the calls. Every function may be called from any thread, but by one
 * thread at a time. Errors are DT_ERR_DEVICE (DT_ERR_MEMORY where the device's memory is full) with
 * a message that names the call. */
#ifndef DT_GPU_OPS_H
#define DT_GPU_OPS_H

#include "src/base/dtype.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    DT_GPU_ROWS_MAX = 64,      /* rows of a batch */
    DT_GPU_PANEL_ROWS = 32,    /* output rows that lie side by side in packed weights */
    DT_GPU_RANGE = 512,        /* positions of a range of attention (doc/numerics.md) */
    DT_GPU_RANKED = 64,        /* candidates of a row that come back at most */
    DT_GPU_SCAN_BLOCKS = 4096, /* blocks of a row of logits, as in models/scan.h */
    DT_GPU_NOISY_MAX = 12288,  /* tokens of a row that may get noise */
    DT_GPU_PRODUCTS = 3,       /* matrices of one launch */
    DT_GPU_KEY_GROUP = 8,      /* halves of a key that lie side by side */
};

/* ---- packed weights -------------------------------------------------------------------------- */

/* A panel is 32 output rows. Of each block of a row there are n_vecs pieces of 16 bytes, n_words of
 * 4 and n_halves of 2, each kind in a plane of its own, [block][piece][32 rows], so that a warp,
 * whose lanes are rows, reads whole lines: gpu/gpu_pack.h. Rows beyond n_out are zero. */
typedef struct dt_gpu_shape {
    int n_block; /* weights of a block */
    int n_vecs, n_words, n_halves;
} dt_gpu_shape;

typedef struct dt_gpu_matrix {
    dt_type type;
    int n_out, k, n_blocks, n_panels;
    size_t panel_bytes;
    const void *d_panels; /* [n_panels][panel_bytes] */
} dt_gpu_matrix;

/* ---- what a round is about ------------------------------------------------------------------- */

enum { DT_GPU_TOPK_NONE, DT_GPU_TOPK_PLAIN, DT_GPU_TOPK_FILTERED, DT_GPU_TOPK_NOISY };

/* Lies in pinned memory, is copied at the start of a round and read by every kernel: a graph knows
 * only upper bounds. Behind it follow the ancestors and the rotations. */
typedef struct dt_gpu_step {
    int32_t n_rows, n_out, row0, n_committed, n_ranges;
    int32_t n_positions[DT_GPU_ROWS_MAX]; /* visible to the row: 0 .. n-1, its own included */
    int32_t tokens[DT_GPU_ROWS_MAX];
    int32_t out_rows[DT_GPU_ROWS_MAX]; /* rows whose logits are wanted, ascending */
    int32_t topk_mode, n_ranked, n_allowed, scan_block;
    float temperature, inverse_temperature, scale; /* scale: of the softmax of mode PLAIN */
    uint64_t seed;
} dt_gpu_step;

/* What comes back of a row. values: logits, or with noise z; descending, ties by ascending token.
 */
typedef struct dt_gpu_best {
    int32_t n;
    float best;   /* the largest logit */
    uint64_t sum; /* mode PLAIN: sum of e^((l - best) scale) in units of 2^-32 */
    int32_t tokens[DT_GPU_RANKED];
    double values[DT_GPU_RANKED];
} dt_gpu_best;

typedef struct dt_gpu_move {
    int32_t from, to;
} dt_gpu_move;

/* ---- arguments of the kernels ---------------------------------------------------------------- */

/* Rows of matrix input in the forms that weights ask for; row stride k. Forms not asked for may be
 * NULL in `forms`. */
typedef struct dt_gpu_act {
    int8_t *q;      /* [rows][k] */
    float *d;       /* [rows][k / block] */
    int16_t *sum32; /* [rows][k / 32] */
    int16_t *sum16; /* [rows][k / 16], blocks of 256 only */
} dt_gpu_act;

enum { DT_GPU_FORM_32 = 1, DT_GPU_FORM_256 = 2, DT_GPU_FORM_TWICE = 4 };

/* `rest`: what the first step of blocks of 256 leaves, quantised again, where FORM_TWICE asks. */
typedef struct dt_gpu_forms {
    int forms;
    dt_gpu_act by32, by256, rest;
} dt_gpu_forms;

/* A row count that a kernel reads: of all rows of the step, or of those whose logits are wanted. */
enum { DT_GPU_COUNT_ROWS, DT_GPU_COUNT_OUT };

typedef struct dt_gpu_embed {
    const dt_gpu_step *d_step;
    dt_gpu_matrix table;
    float *x;    /* [rows][k] */
    float scale; /* 0: none, else every element is multiplied by it */
    int m_max;
} dt_gpu_embed;

typedef struct dt_gpu_norm {
    const dt_gpu_step *d_step;
    float *x;                /* [rows][n] */
    float *delta;            /* [rows][n] added to x first, or NULL */
    const float *delta_rest; /* [rows][n] added to the delta before, or NULL */
    const float *delta_norm; /* [n]: the delta is normalised with it first, or NULL */
    const float *w;          /* [n] */
    float *h;                /* [rows][n] */
    dt_gpu_forms out;
    float eps;
    int n;
    int m_max;
    bool gather; /* row i of h is that of x's row out_rows[i] */
} dt_gpu_norm;

typedef struct dt_gpu_matmul {
    const dt_gpu_step *d_step;
    dt_type type; /* of all products */
    int k, n_blocks, n_products;
    struct {
        const void *d_panels;
        size_t panel_bytes;
        float *out; /* [rows][n_out] */
        int n_out, n_panels;
    } products[DT_GPU_PRODUCTS];
    dt_gpu_act act; /* quantised weights */
    const float *x; /* float weights: [rows][k] */
    int m_max;
    int count; /* DT_GPU_COUNT_ */
} dt_gpu_matmul;

/* Biases, normalised heads, rotation, and keys and values into the cache. */
typedef struct dt_gpu_rotate {
    const dt_gpu_step *d_step;
    float *q, *k, *v;
    const float *bq, *bk, *bv;     /* or NULL */
    const float *q_norm, *k_norm;  /* [head_dim] or NULL */
    const float *cos_sin;          /* [rows][n_rot] */
    uint16_t *keys, *values;       /* of this layer */
    size_t head_keys, head_values; /* elements of one KV head */
    int v_stride, n_head, n_head_kv, head_dim, n_rot, m_max;
    float eps;
    bool halves;
} dt_gpu_rotate;

typedef struct dt_gpu_attend {
    const dt_gpu_step *d_step;
    const int32_t *ancestors; /* [rows][depth] */
    int depth;
    const float *q;
    const uint16_t *keys, *values;
    size_t head_keys, head_values;
    float *part;        /* [range][rows][n_head][v_stride + 16]: max, sum, 14 unused, values */
    float *out;         /* [rows][n_head * head_dim] */
    dt_gpu_forms forms; /* of out */
    int v_stride, n_head, n_head_kv, head_dim, m_max, n_ranges_max;
    int window; /* positions that a row sees, itself included; 0: all */
    float scale;
} dt_gpu_attend;

typedef struct dt_gpu_gate {
    const dt_gpu_step *d_step;
    float *gate; /* [rows][n], becomes the product */
    const float *up;
    dt_gpu_forms out;
    int n, m_max;
    bool gelu; /* else SiLU */
} dt_gpu_gate;

/* keys [n_heads][head_keys], values [n_heads][head_values]: all layers and KV heads. */
typedef struct dt_gpu_kv_move {
    const dt_gpu_move *d_moves;
    int n_moves;
    uint16_t *keys, *values;
    size_t head_keys, head_values;
    int n_heads, head_dim, v_stride;
} dt_gpu_kv_move;

typedef struct dt_gpu_topk {
    const dt_gpu_step *d_step;
    const float *logits; /* [rows][n_vocab] */
    int n_vocab, m_max;
    float *block_max;  /* [rows][DT_GPU_SCAN_BLOCKS] */
    int32_t *counts;   /* [rows][DT_GPU_SCAN_BLOCKS] */
    double *keys;      /* [rows][DT_GPU_NOISY_MAX] */
    int32_t *ids;      /* [rows][DT_GPU_NOISY_MAX] */
    dt_gpu_best *best; /* [rows] */
} dt_gpu_topk;

/* ---- the table ------------------------------------------------------------------------------- */

typedef struct dt_gpu_device dt_gpu_device; /* the table's own */
typedef struct dt_gpu_graph dt_gpu_graph;

enum { DT_GPU_NAME_BYTES = 96 };

typedef struct dt_gpu_info {
    int index;
    char name[DT_GPU_NAME_BYTES];
    int major, minor; /* compute capability */
    size_t total_bytes, free_bytes;
} dt_gpu_info;

typedef struct dt_gpu_ops {
    const char *name; /* "cuda" or "emulated" */

    /* Devices that the driver shows; none is DT_ERR_DEVICE with the reason. */
    dt_err (*count)(int *n_out);
    dt_err (*describe)(dt_gpu_info *out, int index);
    dt_err (*open)(dt_gpu_device **out, int index);
    void (*close)(dt_gpu_device *device);

    dt_err (*alloc)(void *out /* T ** */, dt_gpu_device *device, size_t n_bytes);
    void (*release)(dt_gpu_device *device, void *d_memory); /* NULL is fine */
    dt_err (*alloc_pinned)(void *out, dt_gpu_device *device, size_t n_bytes);
    void (*release_pinned)(dt_gpu_device *device, void *memory);

    /* Copies on the stream. The host's side must be pinned and is in use until the next wait. */
    dt_err (*copy_in)(dt_gpu_device *device, void *d_to, const void *from, size_t n_bytes);
    dt_err (*copy_out)(dt_gpu_device *device, void *to, const void *d_from, size_t n_bytes);
    dt_err (*copy_within)(dt_gpu_device *device, void *d_to, const void *d_from, size_t n_bytes);

    /* Calls between begin and end are written down instead of done. */
    dt_err (*graph_begin)(dt_gpu_device *device);
    dt_err (*graph_end)(dt_gpu_graph **out, dt_gpu_device *device);
    dt_err (*graph_launch)(dt_gpu_device *device, dt_gpu_graph *graph);
    void (*graph_free)(dt_gpu_device *device, dt_gpu_graph *graph);

    /* Waits, asleep, until all work of the stream is done. */
    dt_err (*wait)(dt_gpu_device *device);

    /* Kernels. */
    dt_err (*embed)(dt_gpu_device *device, const dt_gpu_embed *args);
    dt_err (*norm)(dt_gpu_device *device, const dt_gpu_norm *args);
    dt_err (*matmul)(dt_gpu_device *device, const dt_gpu_matmul *args);
    dt_err (*rotate)(dt_gpu_device *device, const dt_gpu_rotate *args);
    dt_err (*attend)(dt_gpu_device *device, const dt_gpu_attend *args);
    dt_err (*gate)(dt_gpu_device *device, const dt_gpu_gate *args);
    dt_err (*kv_move)(dt_gpu_device *device, const dt_gpu_kv_move *args);
    dt_err (*topk)(dt_gpu_device *device, const dt_gpu_topk *args);
} dt_gpu_ops;

/* The table of this program: CUDA's, the emulated one in a test program, or NULL in a build without
 * either. */
const dt_gpu_ops *dt_gpu_table(void);

#ifdef __cplusplus
}
#endif

#endif
