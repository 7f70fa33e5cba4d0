/* dovetail info: what a model file holds, and what this machine and this build can do. */
#include <stdlib.h>
#include <string.h>

#include "dt_build.h"
#include "src/base/limits.h"
#include "src/base/topo.h"
#include "src/cli/report.h"
#include "src/cli/show.h"
#include "src/cli/start.h"

/* ---- the machine ---------------------------------------------------------------------------- */

static json_t *isa_levels(void) {
    json_t *levels = json_array();
    const char *name;
    for (int i = 0; (name = dt_engine_isa_name(i)) != NULL; i++)
        if (dt_engine_isa_runs(name))
            json_array_append_new(levels, json_string(name));
    return levels;
}

/* Lines as an array of strings. */
static json_t *split_lines(const char *text) {
    json_t *list = json_array();
    while (*text) {
        size_t n = strcspn(text, "\n");
        json_array_append_new(list, json_stringn(text, n));
        text += n + (text[n] == '\n');
    }
    return list;
}

/* Lines "what: sentence" as an object. */
static json_t *split_plan(const char *text) {
    json_t *object = json_object();
    while (*text) {
        char key[64];
        size_t n = strcspn(text, "\n"), n_key = strcspn(text, ":");
        snprintf(key, sizeof key, "%.*s", (int)n_key, text);
        json_object_set_new(object, key, json_stringn(text + n_key + 2, n - n_key - 2));
        text += n + (text[n] == '\n');
    }
    return object;
}

static json_t *describe_build(void) {
    json_t *parts = json_array();
#ifdef DT_HAVE_OPENBLAS
    json_array_append_new(parts, json_string("openblas"));
#endif
#ifdef DT_HAVE_HWLOC
    json_array_append_new(parts, json_string("hwloc"));
#endif
#ifdef DT_HAVE_CUDA
    json_array_append_new(parts, json_string("cuda"));
#endif
#ifdef DT_HAVE_OPENMP
    json_array_append_new(parts, json_string("openmp"));
#endif
#ifdef __clang__
    const char *compiler = "clang " __clang_version__;
#else
    const char *compiler = "gcc " __VERSION__;
#endif
    return json_pack(
        "{s:s, s:s, s:o}", "version", DT_VERSION, "compiler", compiler, "parts", parts);
}

static json_t *describe_openblas(void) {
    char id[64], line[200];
    if (dt_openblas_check(id, sizeof id, line, sizeof line) != DT_OK)
        return json_pack("{s:s, s:s}", "core", "none", "self_test", dt_err_message());
    return json_pack(
        "{s:s, s:s}", "core", id, "self_test", line[0] ? line : "passed: exact on this machine");
}

static json_t *describe_memory(void) {
    dt_limits limits;
    dt_limits_read(&limits, "");
    return json_pack("{s:I, s:I}", "limit_bytes", (json_int_t)limits.memory_bytes,
        "available_bytes", (json_int_t)limits.available_bytes);
}

/* This machine, or the one that --topology describes, of which less is known. */
static int describe_machine(json_t *out, const cli_opts *opts) {
    dt_topo *topo = NULL;
    char line[160], text[8192];
    if (dt_topo_open(&topo, opts->topology) != DT_OK)
        return cli_fail(opts->topology ? CLI_USAGE : CLI_FAILED, "%s", dt_err_message());
    dt_topo_describe(topo, line, sizeof line);
    json_t *machine = json_pack("{s:s, s:i, s:i}", "topology", line, "cores", dt_topo_n_cores(topo),
        "hardware_threads", dt_topo_n_pus(topo));
    if (dt_topo_cpu_name(topo)[0])
        json_object_set_new(machine, "processor",
            report_bytes(dt_topo_cpu_name(topo), strlen(dt_topo_cpu_name(topo))));
    dt_topo_tree(topo, text, sizeof text);
    json_object_set_new(machine, "tree", split_lines(text));
    if (!opts->topology) {
        json_object_set_new(machine, "isa", isa_levels());
        json_object_set_new(machine, "memory", describe_memory());
        json_object_set_new(machine, "openblas", describe_openblas());
        cli_gpu_report(line, sizeof line);
        json_object_set_new(machine, "gpu", report_bytes(line, strlen(line)));
    }
    json_object_set_new(out, "machine", machine);
    int n_threads = opts->n_threads > 0 ? (int)opts->n_threads : dt_topo_n_threads(topo);
    dt_topo_plan(topo, n_threads, text, sizeof text);
    json_t *plan = split_plan(text);
    json_object_set_new(plan, "threads", json_integer(n_threads));
    json_object_set_new(out, "plan", plan);
    json_object_set_new(out, "build", describe_build());
    dt_topo_close(topo);
    return CLI_OK;
}

/* ---- the model ------------------------------------------------------------------------------ */

static json_t *text_of(const dt_gguf *gguf, const char *key) {
    dt_text text = {0};
    if (dt_gguf_get_text(gguf, key, &text) != DT_OK || text.n_bytes == 0)
        return json_null();
    return report_bytes(text.data, text.n_bytes);
}

/* Tensors and bytes of each type, and the weights of all. */
static json_t *describe_tensors(const dt_gguf *gguf) {
    int64_t count[DT_TYPE_COUNT] = {0}, bytes[DT_TYPE_COUNT] = {0}, n_weights = 0;
    for (int64_t i = 0; i < dt_gguf_n_tensors(gguf); i++) {
        const dt_tensor *tensor = dt_gguf_tensor(gguf, i);
        count[tensor->type]++;
        bytes[tensor->type] += (int64_t)tensor->n_bytes;
        n_weights += tensor->ne[0] * tensor->ne[1] * tensor->ne[2] * tensor->ne[3];
    }
    json_t *types = json_object();
    for (int type = 0; type < DT_TYPE_COUNT; type++)
        if (count[type] > 0)
            json_object_set_new(types, dt_type_name((uint32_t)type),
                json_pack("{s:I, s:I}", "tensors", (json_int_t)count[type], "bytes",
                    (json_int_t)bytes[type]));
    return json_pack("{s:I, s:I, s:o}", "count", (json_int_t)dt_gguf_n_tensors(gguf), "weights",
        (json_int_t)n_weights, "types", types);
}

static json_t *describe_sizes(const dt_config *c) {
    json_t *sizes = json_object();
    const struct {
        const char *name;
        int value;
    } list[] = {{"vocabulary", c->n_vocab}, {"context", c->n_ctx_train}, {"layers", c->n_layer},
        {"embedding", c->n_embd}, {"feed_forward", c->n_ff}, {"heads", c->n_head},
        {"kv_heads", c->n_head_kv}, {"head_dim", c->head_dim}, {"rope_dims", c->n_rot}};
    for (size_t i = 0; i < DT_COUNT(list); i++)
        json_object_set_new(sizes, list[i].name, json_integer(list[i].value));
    json_object_set_new(sizes, "rope_base", report_real(c->rope_base));
    json_object_set_new(sizes, "rope_scale", report_real(c->rope_scale));
    return sizes;
}

static json_t *describe_tokenizer(const dt_model *model) {
    const dt_vocab *vocab = model->vocab;
    json_t *ends = json_array();
    for (int32_t id = 0; id < dt_vocab_size(vocab); id++)
        if (dt_vocab_ends(vocab, id))
            json_array_append_new(ends, json_integer(id));
    return json_pack("{s:o, s:o, s:i, s:i, s:b, s:o}", "kind",
        text_of(model->file, "tokenizer.ggml.model"), "pattern",
        text_of(model->file, "tokenizer.ggml.pre"), "bos", (int)dt_vocab_bos(vocab), "eos",
        (int)dt_vocab_eos(vocab), "adds_bos", (int)dt_vocab_add_bos(vocab), "ends", ends);
}

/* What the model takes with a context of n_ctx tokens. */
static json_t *describe_needs(const dt_engine *engine, const dt_session *session, int64_t n_ctx) {
    dt_memory m;
    dt_session_memory(&m, session, engine);
    json_t *needs = json_object();
    json_object_set_new(needs, "context", json_integer(n_ctx));
    const struct {
        const char *name;
        size_t n_bytes;
    } list[] = {{"weights_bytes", m.weights_bytes}, {"weights_file_bytes", m.source_bytes},
        {"kv_token_bytes", m.kv_token_bytes}, {"kv_bytes", m.kv_bytes},
        {"work_bytes", m.work_bytes}, {"total_bytes", m.weights_bytes + m.kv_bytes + m.work_bytes}};
    for (size_t i = 0; i < DT_COUNT(list); i++)
        json_object_set_new(needs, list[i].name, json_integer((json_int_t)list[i].n_bytes));
    return needs;
}

static int describe_model(json_t *out, const cli_opts *opts) {
    dt_engine *engine = NULL;
    dt_session *session = NULL;
    dt_session_options options;
    dt_stats stats;
    dt_chat *chat = NULL;
    int code = cli_engine_open(&engine, opts);
    if (code != CLI_OK)
        return code;
    const dt_model *model = dt_engine_target(engine);
    cli_session_options(&options, opts);
    options.draft = DT_DRAFT_NONE;
    if (dt_session_open(&session, engine, &options) != DT_OK) {
        cli_engine_close(engine);
        return cli_fail_err();
    }
    dt_session_stats(session, &stats);
    dt_chat_open(&chat, model->file, NULL, DT_CHAT_THINK_AUTO); /* stays NULL without one */
    json_t *object = json_object();
    json_object_set_new(object, "path", report_bytes(opts->target, strlen(opts->target)));
    json_object_set_new(object, "name", text_of(model->file, "general.name"));
    json_object_set_new(object, "architecture", json_string(model->config.arch_name));
    json_object_set_new(object, "gguf_version", json_integer(dt_gguf_version(model->file)));
    json_object_set_new(
        object, "file_bytes", json_integer((json_int_t)dt_gguf_file_bytes(model->file)));
    json_object_set_new(object, "memory", describe_needs(engine, session, cli_n_ctx(opts, model)));
    json_object_set_new(object, "sizes", describe_sizes(&model->config));
    json_object_set_new(object, "tensors", describe_tensors(model->file));
    json_object_set_new(object, "tokenizer", describe_tokenizer(model));
    json_object_set_new(object, "chat", json_string(chat ? dt_chat_name(chat) : "none"));
    dt_chat_close(chat);
    json_object_set_new(object, "numerics", json_string(stats.numerics));
    json_object_set_new(object, "isa", json_string(dt_engine_isa(engine)));
    json_object_set_new(object, "threads", json_integer(dt_engine_n_threads(engine)));
    if (dt_engine_disclaimer(engine)[0])
        json_object_set_new(object, "disclaimer", json_string(dt_engine_disclaimer(engine)));
    json_object_set_new(out, "model", object);
    dt_session_close(session);
    cli_engine_close(engine);
    return CLI_OK;
}

/* ---- as text -------------------------------------------------------------------------------- */

static void print_bytes(int64_t n) {
    if (n < 1024 * 1024)
        printf("%.1f KiB", (double)n / 1024.0);
    else
        printf("%.1f MiB", (double)n / (1024.0 * 1024.0));
}

/* "key  value" lines; an object inside is indented, a list stands on one line. */
static void print_text(const json_t *object, int indent) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value) {
        if (json_is_null(value))
            continue;
        printf("%*s%-*s ", indent, "", 25 - indent, key);
        json_t *count = json_object_get(value, "tensors");
        if (json_is_integer(count)) { /* a line of the histogram of types */
            printf("%4lld tensors, ", (long long)json_integer_value(count));
            print_bytes(json_integer_value(json_object_get(value, "bytes")));
            putchar('\n');
            continue;
        }
        if (json_is_object(value)) {
            putchar('\n');
            print_text(value, indent + 2);
            continue;
        }
        size_t i;
        json_t *item;
        if (strcmp(key, "tree") == 0) {
            putchar('\n');
            json_array_foreach(value, i, item) {
                printf("%*s", indent + 2, "");
                show_text(stdout, json_string_value(item));
                putchar('\n');
            }
            continue;
        }
        if (json_is_array(value)) {
            json_array_foreach(value, i, item) if (json_is_string(item))
                printf("%s%s", i ? ", " : "", json_string_value(item));
            else printf("%s%lld", i ? ", " : "", (long long)json_integer_value(item));
        } else if (json_is_string(value)) {
            show_text(stdout, json_string_value(value));
        } else if (json_is_integer(value) && strstr(key, "_bytes")) {
            print_bytes(json_integer_value(value));
        } else if (json_is_integer(value)) {
            printf("%lld", (long long)json_integer_value(value));
        } else if (json_is_real(value)) {
            printf("%g", json_real_value(value));
        } else {
            fputs(json_is_true(value) ? "yes" : "no", stdout);
        }
        putchar('\n');
    }
}

int cmd_info(const cli_opts *opts) {
    json_t *root = json_object();
    int code = CLI_OK;
    if (opts->target)
        code = describe_model(root, opts);
    if (code == CLI_OK)
        code = describe_machine(root, opts);
    if (code == CLI_OK) {
        if (opts->json)
            report_json(stdout, root, JSON_INDENT(2));
        else
            print_text(root, 0);
    }
    json_decref(root);
    return code;
}
