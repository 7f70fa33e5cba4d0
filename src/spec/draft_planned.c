/* The source of a session. N-grams cost nothing and are looked up for every step; a draft model
 * costs a good part of a pass of the target, so the plan says, step by step, whether it runs. Where
 * it does, what the n-gram guessed rides along in its first forward: if both agree, the step has
 * proposals of the model's quality for one forward. */
#include <string.h>

#include "src/base/mem.h"
#include "src/base/wait.h"
#include "src/spec/draft.h"
#include "src/spec/plan.h"

typedef struct planned {
    dt_draft base;
    dt_draft *ngram, *model; /* either may be NULL */
    dt_plan plan;
    int n_rows_max;
    bool due; /* the timeline has changed since the source was chosen */
    int64_t n_left;
    dt_snapshot guess; /* of the n-gram */
} planned;

static dt_err observe(dt_draft *draft, const dt_record *records, int n) {
    planned *self = (planned *)draft;
    if (self->ngram)
        DT_TRY(self->ngram->ops->observe(self->ngram, records, n));
    if (self->model)
        DT_TRY(self->model->ops->observe(self->model, records, n));
    for (int i = 0; i < n; i++) {
        if (!records[i].final)
            continue;
        const dt_verdict *v = &records[i].verdict;
        self->n_left = v->n_left;
        if (v->n_rows > 0)
            dt_plan_verdict(&self->plan, v->n_rows, v->pass_ns, v->step_ns, v->n_tokens);
        else
            dt_plan_start(&self->plan);
    }
    self->due = true;
    return DT_OK;
}

static dt_err choose(planned *self) {
    bool complete = false;
    self->guess.n_nodes = 1;
    if (self->ngram) {
        DT_TRY(self->ngram->ops->grow(&complete, self->ngram));
        DT_TRY(self->ngram->ops->snapshot(self->ngram, &self->guess));
    }
    int64_t n_behind = self->model ? dt_draft_model_behind(self->model) : 0;
    dt_plan_mode mode =
        dt_plan_choose(&self->plan, self->guess.nodes, self->guess.n_nodes, n_behind, self->n_left);
    if (mode == DT_PLAN_MODEL)
        dt_draft_model_hint(self->model, self->guess.nodes, self->guess.n_nodes);
    self->due = false;
    return DT_OK;
}

static dt_err grow(bool *complete_out, dt_draft *draft) {
    planned *self = (planned *)draft;
    if (self->due)
        DT_TRY(choose(self));
    *complete_out = true;
    if (self->plan.mode == DT_PLAN_MODEL)
        return self->model->ops->grow(complete_out, self->model);
    return DT_OK;
}

static int child_of(const dt_snapshot *tree, int parent, int32_t token, bool *has_children_out) {
    *has_children_out = false;
    for (int i = parent + 1; i < tree->n_nodes; i++) {
        if (tree->nodes[i].parent != parent)
            continue;
        *has_children_out = true;
        if (tree->nodes[i].token == token)
            return i;
    }
    return -1;
}

/* Adds what the n-gram guessed beyond the model's tree, as far as there is room. */
static void graft(planned *self, dt_snapshot *out) {
    int32_t place[DT_TREE_MAX];
    const dt_tree_node *guess = self->guess.nodes;
    place[0] = 0;
    for (int i = 1; i < self->guess.n_nodes; i++) {
        int parent = place[i] = place[guess[i].parent];
        if (parent < 0)
            continue;
        bool has_children = false;
        int child = child_of(out, parent, guess[i].token, &has_children);
        if (child < 0 && out->n_nodes < DT_TREE_MAX) {
            /* Where the model had its say, and this was not part of it, little is left. */
            float step = has_children ? dt_plan_belief(&self->plan, DT_BELIEF_FOREIGN)
                                      : guess[i].score - guess[guess[i].parent].score;
            child = out->n_nodes++;
            out->nodes[child] =
                (dt_tree_node){guess[i].token, parent, out->nodes[parent].score + step};
        }
        place[i] = child;
    }
}

static dt_err snapshot(dt_draft *draft, dt_snapshot *out) {
    planned *self = (planned *)draft;
    dt_plan_mode mode = self->plan.mode;
    out->nodes[0] = (dt_tree_node){.parent = -1};
    out->n_nodes = 1;
    if (mode == DT_PLAN_MODEL) {
        DT_TRY(self->model->ops->snapshot(self->model, out));
        if (self->ngram)
            graft(self, out);
    } else if (mode == DT_PLAN_NGRAM) {
        out->n_nodes = self->guess.n_nodes;
        memcpy(out->nodes, self->guess.nodes, sizeof out->nodes);
    }
    out->n_nodes = dt_plan_trim(&self->plan, out->nodes, out->n_nodes, self->n_rows_max);
    out->mode = (int32_t)mode;
    out->plain_ms = (float)(dt_plan_pass_ns(&self->plan, 1) * 1e-6);
    return DT_OK;
}

static void set_sampling(dt_draft *draft, const dt_sampling *sampling) {
    planned *self = (planned *)draft;
    if (self->model)
        self->model->ops->set_sampling(self->model, sampling);
    self->due = true;
}

static void close_planned(dt_draft *draft) {
    planned *self = (planned *)draft;
    dt_draft_close(self->ngram);
    dt_draft_close(self->model);
    dt_mem_free(self);
}

static const dt_draft_ops planned_ops = {observe, grow, snapshot, close_planned, set_sampling};

const dt_plan *dt_draft_planned_plan(const dt_draft *draft) {
    return draft->ops == &planned_ops ? &((const planned *)draft)->plan : NULL;
}

dt_err dt_draft_planned_open(dt_draft **out, const dt_draft_planned_options *options) {
    *out = NULL;
    planned *self = NULL;
    DT_TRY(dt_mem_alloc(&self, sizeof *self));
    self->base = (dt_draft){.ops = &planned_ops,
        .name = options->forward ? options->ngram ? "model+ngram" : "model" : "ngram",
        .device = options->forward ? options->forward->device : "cpu",
        .plans = true,
        .serial = true};
    dt_plan_init(&self->plan, options->record);
    self->plan.rests = options->rests;
    self->plan.shaped = options->shaped;
    self->plan.has_ngram = options->ngram;
    self->plan.has_model = options->forward != NULL;
    self->plan.apart = options->forward && options->forward->apart;
    self->n_rows_max = options->model.tree;
    self->due = true;
    dt_draft_model_options model = options->model;
    model.plan = &self->plan;
    if (!model.now_ns)
        model.now_ns = dt_time_ns;
    dt_err err = DT_OK;
    if (options->ngram)
        err = dt_draft_ngram_open(
            &self->ngram, model.n_ctx, model.tree, model.depth, model.topk, &self->plan);
    if (err == DT_OK && options->forward)
        err = dt_draft_model_open(&self->model, options->forward, &model);
    if (err != DT_OK) {
        close_planned(&self->base);
        return err;
    }
    if (self->model) {
        self->base.serial = self->model->serial;
        self->base.patience_ns = self->model->patience_ns;
    }
    *out = &self->base;
    return DT_OK;
}
