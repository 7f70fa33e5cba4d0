#include "src/cli/talk.h"

#include <stdlib.h>
#include <string.h>

#include "src/cli/report.h"
#include "src/cli/inputs.h"

static int no_memory(void) {
    return cli_fail(CLI_FAILED, "no memory for the conversation");
}

/* ---- the template ---- */

/* The beginning: start token, system prompt, first user turn, opening of the answer. */
static int encode_first(int32_t **out, int64_t *n_out, const talk *t, const char *user) {
    dt_chat_turn turns[2] = {{"system", t->system}, {"user", user}};
    int n_turns = t->system ? 2 : 1;
    return cli_encode_chat(out, n_out, t->chat, t->model->vocab, turns + 2 - n_turns, n_turns);
}

/* ---- turns ---- */

static void free_turn(talk_turn *turn) {
    free(turn->user);
    free(turn->ids);
    *turn = (talk_turn){0};
}

int talk_open(
    talk *out, const dt_model *model, const char *choice, dt_chat_think think, const char *system) {
    *out = (talk){.model = model, .choice = choice, .think = think};
    if (dt_chat_open(&out->chat, model->file, choice, think) != DT_OK)
        return cli_fail_err();
    return system ? talk_set_system(out, system) : CLI_OK;
}

void talk_clear(talk *t) {
    for (int i = 0; i < t->n_turns; i++)
        free_turn(&t->turns[i]);
    free(t->turns);
    t->turns = NULL;
    t->n_turns = 0;
}

void talk_close(talk *t) {
    talk_clear(t);
    dt_chat_close(t->chat);
    t->chat = NULL;
    free(t->system);
    t->system = NULL;
}

/* Takes the ids over. */
static int add_turn(talk *t, const char *user, int32_t *ids, int64_t n_prompt, int64_t n_ids) {
    size_t n = (size_t)t->n_turns + 1;
    talk_turn *turns = realloc(t->turns, n * sizeof *turns);
    if (turns)
        t->turns = turns;
    char *copy = strdup(user);
    if (!turns || !copy) {
        free(copy);
        free(ids);
        return no_memory();
    }
    t->turns[t->n_turns++] = (talk_turn){copy, ids, n_prompt, n_ids};
    return CLI_OK;
}

int talk_ask(talk *t, const char *user) {
    int32_t *ids = NULL;
    int64_t n = 0;
    const talk_turn *last = t->n_turns > 0 ? &t->turns[t->n_turns - 1] : NULL;
    int code = last ? cli_encode_append(
                          &ids, &n, t->chat, t->model->vocab, last->ids[last->n_ids - 1], user)
                    : encode_first(&ids, &n, t, user);
    return code == CLI_OK ? add_turn(t, user, ids, n, n) : code;
}

int talk_count_alone(int64_t *n_out, const talk *t, const char *user) {
    int32_t *ids = NULL;
    int code = encode_first(&ids, n_out, t, user);
    free(ids);
    return code;
}

int talk_answer(talk *t, const int32_t *ids, int64_t n) {
    talk_turn *turn = &t->turns[t->n_turns - 1];
    int32_t *all = realloc(turn->ids, (size_t)(turn->n_ids + n + 1) * sizeof *all);
    if (!all)
        return no_memory();
    memcpy(all + turn->n_ids, ids, (size_t)n * sizeof *all);
    turn->ids = all;
    turn->n_ids += n;
    return CLI_OK;
}

void talk_take_answer(talk *t) {
    if (t->n_turns > 0)
        t->turns[t->n_turns - 1].n_ids = t->turns[t->n_turns - 1].n_prompt;
}

void talk_take_turn(talk *t) {
    if (t->n_turns > 0)
        free_turn(&t->turns[--t->n_turns]);
}

/* The first turn of those kept begins the conversation: its prompt is made anew of the user's text.
 */
static int begin_with(talk *t, talk_turn *turn) {
    int32_t *prompt = NULL;
    int64_t n_prompt = 0, n_answer = turn->n_ids - turn->n_prompt;
    int code = encode_first(&prompt, &n_prompt, t, turn->user);
    if (code != CLI_OK)
        return code;
    int32_t *ids = malloc((size_t)(n_prompt + n_answer + 1) * sizeof *ids);
    if (!ids) {
        free(prompt);
        return no_memory();
    }
    memcpy(ids, prompt, (size_t)n_prompt * sizeof *ids);
    memcpy(ids + n_prompt, turn->ids + turn->n_prompt, (size_t)n_answer * sizeof *ids);
    free(prompt);
    free(turn->ids);
    turn->ids = ids;
    turn->n_prompt = n_prompt;
    turn->n_ids = n_prompt + n_answer;
    return CLI_OK;
}

int talk_set_system(talk *t, const char *system) {
    char *copy = system ? strdup(system) : NULL;
    if (system && !copy)
        return no_memory();
    char *before = t->system;
    t->system = copy;
    int code = t->n_turns > 0 ? begin_with(t, &t->turns[0]) : CLI_OK;
    if (code != CLI_OK) {
        t->system = before;
        before = copy;
    }
    free(before);
    return code;
}

int64_t talk_n_tokens(const talk *t) {
    int64_t n = 0;
    for (int i = 0; i < t->n_turns; i++)
        n += t->turns[i].n_ids;
    return n;
}

void talk_write_ids(const talk *t, int32_t *out) {
    for (int i = 0; i < t->n_turns; i++) {
        memcpy(out, t->turns[i].ids, (size_t)t->turns[i].n_ids * sizeof *out);
        out += t->turns[i].n_ids;
    }
}

int talk_forget(talk *t, int *n_out, int64_t n_max) {
    *n_out = 0;
    while (t->n_turns > 1 && talk_n_tokens(t) > n_max) {
        int code = begin_with(t, &t->turns[1]);
        if (code != CLI_OK)
            return code;
        free_turn(&t->turns[0]);
        t->n_turns--;
        memmove(t->turns, t->turns + 1, (size_t)t->n_turns * sizeof *t->turns);
        ++*n_out;
    }
    return CLI_OK;
}

/* ---- saved ---- */

enum { SAVED_VERSION = 1 };

static uint64_t hash_bytes(uint64_t hash, const void *bytes, size_t n) {
    const unsigned char *at = bytes;
    for (size_t i = 0; i < n; i++)
        hash = (hash ^ at[i]) * 0x100000001b3u; /* FNV-1a */
    return hash;
}

/* Of the vocabulary: every token's text and kind, the special ids, the template's family. */
static uint64_t hash_vocab(const talk *t) {
    const dt_vocab *vocab = t->model->vocab;
    uint64_t hash = 0xcbf29ce484222325u;
    for (int32_t i = 0; i < dt_vocab_size(vocab); i++) {
        dt_text text = dt_vocab_text(vocab, i);
        int32_t facts[2] = {(int32_t)text.n_bytes, (int32_t)dt_vocab_kind(vocab, i)};
        hash = hash_bytes(hash, facts, sizeof facts);
        hash = hash_bytes(hash, text.data, text.n_bytes);
    }
    int32_t facts[2] = {dt_vocab_bos(vocab), dt_vocab_eos(vocab)};
    const char *name = dt_chat_name(t->chat);
    return hash_bytes(hash_bytes(hash, facts, sizeof facts), name, strlen(name));
}

/* Of the file, without reading all of it: its size and a sample of every tensor. */
static uint64_t hash_file(const talk *t) {
    const dt_gguf *file = t->model->file;
    uint64_t hash = 0xcbf29ce484222325u, n_bytes = dt_gguf_file_bytes(file);
    hash = hash_bytes(hash, &n_bytes, sizeof n_bytes);
    for (int64_t i = 0; i < dt_gguf_n_tensors(file); i++) {
        const dt_tensor *tensor = dt_gguf_tensor(file, i);
        hash = hash_bytes(hash, tensor->data, DT_MIN(tensor->n_bytes, (size_t)64));
    }
    return hash;
}

static json_t *hex(uint64_t value) {
    char text[24];
    snprintf(text, sizeof text, "%016llx", (unsigned long long)value);
    return json_string(text);
}

static json_t *id_list(const int32_t *ids, int64_t n) {
    json_t *list = json_array();
    for (int64_t i = 0; i < n; i++)
        json_array_append_new(list, json_integer(ids[i]));
    return list;
}

json_t *talk_save(const talk *t) {
    json_t *root = json_object(), *turns = json_array();
    json_object_set_new(root, "dovetail_chat", json_integer(SAVED_VERSION));
    json_object_set_new(root, "vocabulary", hex(hash_vocab(t)));
    json_object_set_new(root, "model", hex(hash_file(t)));
    json_object_set_new(
        root, "system", t->system ? report_bytes(t->system, strlen(t->system)) : json_null());
    for (int i = 0; i < t->n_turns; i++) {
        const talk_turn *turn = &t->turns[i];
        json_t *object = json_object();
        json_object_set_new(object, "user", report_bytes(turn->user, strlen(turn->user)));
        json_object_set_new(object, "prompt_ids", id_list(turn->ids, turn->n_prompt));
        json_object_set_new(object, "answer_ids",
            id_list(turn->ids + turn->n_prompt, turn->n_ids - turn->n_prompt));
        json_array_append_new(turns, object);
    }
    json_object_set_new(root, "turns", turns);
    return root;
}

/* Appends the ids of a JSON list; false if it is none. */
static bool read_ids(int32_t *out, int64_t *n, const json_t *list, int n_vocab) {
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *item = json_array_get(list, i);
        json_int_t id = json_integer_value(item);
        if (!json_is_integer(item) || id < 0 || id >= n_vocab)
            return false;
        out[(*n)++] = (int32_t)id;
    }
    return json_is_array(list);
}

static int read_turn(talk *t, const json_t *object, int i, const char *path) {
    const json_t *prompt = json_object_get(object, "prompt_ids");
    const json_t *answer = json_object_get(object, "answer_ids");
    const char *user = json_string_value(json_object_get(object, "user"));
    size_t n_max = json_array_size(prompt) + json_array_size(answer) + 1;
    int32_t *ids = malloc(n_max * sizeof *ids);
    int64_t n_prompt = 0;
    if (!ids)
        return no_memory();
    int n_vocab = t->model->config.n_vocab;
    bool good = user && read_ids(ids, &n_prompt, prompt, n_vocab) && n_prompt > 0;
    int64_t n_ids = n_prompt;
    if (!good || !read_ids(ids, &n_ids, answer, n_vocab)) {
        free(ids);
        return cli_fail(CLI_FAILED,
            "%s: turn %d: want user, prompt_ids and answer_ids with ids of 0 to %d", path, i + 1,
            n_vocab - 1);
    }
    return add_turn(t, user, ids, n_prompt, n_ids);
}

static bool same_hash(const json_t *saved, const char *key, uint64_t hash) {
    json_t *want = hex(hash);
    bool same = json_equal(want, json_object_get(saved, key)) != 0;
    json_decref(want);
    return same;
}

int talk_load(
    talk *out, const talk *like, bool *other_model_out, const json_t *saved, const char *path) {
    const json_t *version = json_object_get(saved, "dovetail_chat");
    const json_t *system = json_object_get(saved, "system"), *turn;
    const json_t *turns = json_object_get(saved, "turns");
    size_t i;
    if (!json_is_integer(version))
        return cli_fail(CLI_FAILED, "%s is no saved chat", path);
    if (json_integer_value(version) != SAVED_VERSION)
        return cli_fail(CLI_FAILED, "%s: a saved chat of version %lld, this program reads %d", path,
            (long long)json_integer_value(version), SAVED_VERSION);
    if (!same_hash(saved, "vocabulary", hash_vocab(like)))
        return cli_fail(CLI_FAILED,
            "%s was saved with a model of another vocabulary or chat template; it does not fit %s",
            path, dt_gguf_path(like->model->file));
    if (!json_is_array(turns) || !(json_is_string(system) || json_is_null(system)))
        return cli_fail(CLI_FAILED, "%s: want a system prompt and turns", path);
    int code = talk_open(out, like->model, like->choice, like->think, NULL);
    *other_model_out = !same_hash(saved, "model", hash_file(like));
    if (code == CLI_OK && json_is_string(system))
        code = talk_set_system(out, json_string_value(system));
    json_array_foreach(turns, i, turn) {
        if (code == CLI_OK)
            code = read_turn(out, turn, (int)i, path);
    }
    if (code != CLI_OK)
        talk_close(out);
    return code;
}
