#include "src/spec/draft.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "src/base/mem.h"
#include "src/spec/trace.h"
#include "src/spec/patient.h"

enum {
    N_SNAPSHOTS = 4,
    N_RECORDS_SPARE = 64, /* a whole context and the cuts of a few turns */
    N_RECORDS_AT_ONCE = 256,
    N_SETTINGS = 2,
};

enum { LINK_RUNNING, LINK_DEAD };

struct dt_link {
    dt_ring snapshots; /* ring A */
    dt_ring records;   /* ring B */
    dt_ring settings;  /* beside ring B: what the draft is to imitate */
    dt_snapshot *snapshot_slots;
    dt_record *record_slots;
    dt_sampling setting_slots[N_SETTINGS];
    dt_bell draft_bell, verify_bell;
    _Atomic int quit;   /* set by dt_link_close, read by the draft thread */
    _Atomic int status; /* LINK_DEAD stored (release) by the draft thread as its last act, after
                           `message`; loaded (acquire) by verify */
    _Atomic int idle; /* stored by the draft thread around its sleep, loaded by verify: advice only,
                         so relaxed */
    _Atomic int64_t busy_since_ns; /* stored by the draft thread around calls of the source, 0:
                                      between them; loaded by verify. Relaxed: a time alone */
    char message[256];
    dt_draft *draft;
    pthread_t thread;
    int n_ctx;

    /* Verify's: tokens that the draft will have once it has read ring B, and how many of these are
     * still those of the timeline. */
    int64_t n_sent, n_sent_valid;
    dt_sampling setting; /* the latest */
    bool setting_due;    /* the draft was not told yet */
    dt_verdict verdict;  /* goes with the next final record */
    bool stopped;
    bool stuck; /* the thread did not end */

    /* The draft thread's. */
    uint64_t *hashes; /* [n_ctx + 1], of each prefix */
    int64_t n_tokens;
    bool pending; /* a verdict has not come to its final record */
    bool complete, published;
    int64_t work_ns;
    dt_record batch[N_RECORDS_AT_ONCE];
};

/* ---- the draft thread ---- */

/* Moves records out of ring B; returns how many lie in link->batch. */
static int read_records(dt_link *link) {
    int n = 0;
    uint32_t slot = 0;
    while (n < N_RECORDS_AT_ONCE && dt_ring_peek(&slot, &link->records)) {
        link->batch[n++] = link->record_slots[slot];
        dt_ring_release(&link->records);
    }
    return n;
}

static void read_settings(dt_link *link) {
    uint32_t slot = 0;
    while (dt_ring_peek(&slot, &link->settings)) {
        if (link->draft->ops->set_sampling) {
            link->draft->ops->set_sampling(link->draft, &link->setting_slots[slot]);
            link->complete = false;
            link->published = false;
        }
        dt_ring_release(&link->settings);
    }
}

static dt_err note_records(dt_link *link, int n) {
    for (int i = 0; i < n; i++) {
        dt_record record = link->batch[i];
        if (record.position < 0 || record.position > link->n_tokens ||
            (record.token != DT_RECORD_CUT &&
                (record.position != link->n_tokens || record.position >= link->n_ctx)))
            DT_FAIL(DT_ERR_INTERNAL, "draft: record of position %lld at length %lld",
                (long long)record.position, (long long)link->n_tokens);
        link->n_tokens = record.position;
        if (record.token != DT_RECORD_CUT) {
            link->hashes[link->n_tokens + 1] =
                dt_hash_next(link->hashes[link->n_tokens], record.token);
            link->n_tokens++;
        }
    }
    link->pending = !link->batch[n - 1].final;
    link->complete = false;
    link->published = false;
    return DT_OK;
}

static dt_err publish(dt_link *link) {
    uint32_t slot = 0;
    if (!dt_ring_reserve(&slot, &link->snapshots))
        return DT_OK; /* verify rings when it has made room */
    int64_t start = dt_time_ns();
    dt_snapshot *out = &link->snapshot_slots[slot];
    out->prefix_len = link->n_tokens;
    out->prefix_hash = link->hashes[link->n_tokens];
    out->n_nodes = 0;
    out->mode = -1;
    out->plain_ms = 0.0f;
    out->complete = link->complete;
    DT_TRY(link->draft->ops->snapshot(link->draft, out));
    int64_t end = dt_time_ns();
    out->draft_ns = link->work_ns + (end - start);
    dt_trace_add(link->draft->trace, "hand over", start, end, out->n_nodes);
    link->work_ns = 0;
    dt_ring_commit(&link->snapshots);
    link->published = true;
    dt_bell_ring(&link->verify_bell);
    return DT_OK;
}

static void busy(dt_link *link, int64_t since_ns) {
    atomic_store_explicit(&link->busy_since_ns, since_ns, memory_order_relaxed);
}

static dt_err serve(dt_link *link) {
    dt_draft *draft = link->draft;
    for (;;) {
        /* The count comes first: whatever is rung for after it, quitting included, ends the wait.
         */
        uint32_t seen = dt_bell_count(&link->draft_bell);
        /* Pairs with the store in dt_link_close. */
        if (atomic_load_explicit(&link->quit, memory_order_acquire))
            return DT_OK;
        int64_t start = dt_time_ns();
        busy(link, start);
        read_settings(link);
        int n = read_records(link);
        if (n > 0) {
            DT_TRY(note_records(link, n));
            DT_TRY(draft->ops->observe(draft, link->batch, n));
            int64_t end = dt_time_ns();
            link->work_ns += end - start;
            dt_trace_add(draft->trace, "hear verdict", start, end, n);
            if (link->pending)
                dt_bell_ring(&link->verify_bell); /* it may have more than ring B had room for */
            continue;
        }
        bool idle = link->pending || link->n_tokens == 0;
        if (!idle && !link->complete) {
            DT_TRY(draft->ops->grow(&link->complete, draft));
            int64_t end = dt_time_ns();
            link->work_ns += end - start;
            dt_trace_add(draft->trace, "draft", start, end, 0);
            link->published = false;
        }
        if (!idle && !link->published && (link->complete || !draft->serial))
            DT_TRY(publish(link));
        if (idle || link->complete) {
            busy(link, 0);
            atomic_store_explicit(&link->idle, 1, memory_order_relaxed);
            dt_bell_wait(&link->draft_bell, seen, INT64_MAX);
            atomic_store_explicit(&link->idle, 0, memory_order_relaxed);
        }
    }
}

/* Runs however the thread ends, pthread_exit and cancellation included. */
static void ended(void *arg) {
    dt_link *link = arg;
    /* Pairs with the load in dt_link_dead: the message is seen with it. */
    atomic_store_explicit(&link->status, LINK_DEAD, memory_order_release);
    dt_bell_ring(&link->verify_bell);
}

static void *draft_thread(void *arg) {
    dt_link *link = arg;
    pthread_cleanup_push(ended, link);
    if (serve(link) != DT_OK)
        snprintf(link->message, sizeof link->message, "%s", dt_err_message());
    pthread_cleanup_pop(1);
    return NULL;
}

/* ---- the verify thread ---- */

static uint32_t power_of_two(uint32_t n) {
    uint32_t power = 1;
    while (power < n)
        power *= 2;
    return power;
}

static dt_err start(dt_link *link, uint32_t n_snapshots, uint32_t n_records) {
    DT_TRY(dt_mem_alloc(&link->snapshot_slots, n_snapshots * sizeof *link->snapshot_slots));
    DT_TRY(dt_mem_alloc(&link->record_slots, n_records * sizeof *link->record_slots));
    DT_TRY(dt_mem_alloc(&link->hashes, ((size_t)link->n_ctx + 1) * sizeof *link->hashes));
    link->hashes[0] = DT_HASH_EMPTY;
    dt_ring_init(&link->snapshots, n_snapshots, 0);
    dt_ring_init(&link->records, n_records, 0);
    dt_ring_init(&link->settings, N_SETTINGS, 0);
    dt_bell_init(&link->draft_bell);
    dt_bell_init(&link->verify_bell);
    snprintf(link->message, sizeof link->message, "its thread ended");
    int code = pthread_create(&link->thread, NULL, draft_thread, link);
    if (code != 0)
        DT_FAIL(DT_ERR_MEMORY, "draft: cannot start a thread: %s", strerror(code));
    return DT_OK;
}

static void free_link(dt_link *link) {
    dt_mem_free(link->snapshot_slots);
    dt_mem_free(link->record_slots);
    dt_mem_free(link->hashes);
    dt_mem_free(link);
}

dt_err dt_link_open(
    dt_link **out, dt_draft *draft, int n_ctx, uint32_t n_snapshots, uint32_t n_records) {
    *out = NULL;
    dt_link *link = NULL;
    DT_TRY(dt_mem_alloc(&link, sizeof *link));
    link->draft = draft;
    link->n_ctx = n_ctx;
    dt_err err = start(link, power_of_two(n_snapshots ? n_snapshots : N_SNAPSHOTS),
        power_of_two(n_records ? n_records : (uint32_t)n_ctx + N_RECORDS_SPARE));
    if (err != DT_OK) {
        free_link(link);
        return err;
    }
    *out = link;
    return DT_OK;
}

bool dt_link_stop(dt_link *link) {
    if (!link || link->stopped)
        return !link || !link->stuck;
    link->stopped = true;
    /* Pairs with the load in serve(). */
    atomic_store_explicit(&link->quit, 1, memory_order_release);
    dt_bell_ring(&link->draft_bell);
    if (link->draft->patience_ns == 0)
        pthread_join(link->thread, NULL);
    else
        link->stuck = !dt_join_patiently(link->thread, DT_PATIENCE_END_NS);
    return !link->stuck;
}

bool dt_link_close(dt_link *link) {
    if (!link)
        return true;
    if (!dt_link_stop(link))
        return false;
    dt_draft_close(link->draft);
    free_link(link);
    return true;
}

void dt_link_cut(dt_link *link, int64_t n) {
    link->n_sent_valid = DT_MIN(link->n_sent_valid, n);
}

static bool put(dt_link *link, dt_record record) {
    uint32_t slot = 0;
    if (!dt_ring_reserve(&slot, &link->records))
        return false;
    if (record.final) {
        record.verdict = link->verdict;
        link->verdict.n_rows = 0;
    }
    link->record_slots[slot] = record;
    dt_ring_commit(&link->records);
    return true;
}

void dt_link_set_sampling(dt_link *link, const dt_sampling *sampling) {
    link->setting = *sampling;
    link->setting_due = true;
}

static bool put_setting(dt_link *link) {
    uint32_t slot = 0;
    if (!link->setting_due || !dt_ring_reserve(&slot, &link->settings))
        return false;
    link->setting_slots[slot] = link->setting;
    dt_ring_commit(&link->settings);
    link->setting_due = false;
    return true;
}

void dt_link_note(dt_link *link, const dt_verdict *verdict) {
    link->verdict = *verdict;
}

void dt_link_send(dt_link *link, const int32_t *tokens, int64_t n) {
    bool news = put_setting(link);
    if (link->n_sent_valid < link->n_sent) {
        dt_record cut = {link->n_sent_valid, DT_RECORD_CUT, link->n_sent_valid == n, {0}};
        if (!put(link, cut))
            return;
        link->n_sent = link->n_sent_valid;
        news = true;
    }
    while (link->n_sent < n) {
        if (!put(link, (dt_record){link->n_sent, tokens[link->n_sent], link->n_sent == n - 1, {0}}))
            break;
        link->n_sent++;
        news = true;
    }
    link->n_sent_valid = link->n_sent;
    if (news)
        dt_bell_ring(&link->draft_bell);
}

bool dt_link_take(dt_snapshot *out, dt_link *link, int64_t prefix_len, uint64_t prefix_hash) {
    bool found = false;
    bool room = false;
    uint32_t slot = 0;
    while (dt_ring_peek(&slot, &link->snapshots)) {
        const dt_snapshot *in = &link->snapshot_slots[slot];
        if (in->prefix_len == prefix_len && in->prefix_hash == prefix_hash) {
            *out = *in;
            found = true;
        }
        dt_ring_release(&link->snapshots);
        room = true;
    }
    if (room && !(found && out->complete))
        dt_bell_ring(&link->draft_bell); /* it may hold one that ring A had no room for */
    return found;
}

static bool ended_by_itself(const dt_link *link) {
    /* Pairs with the store in ended(). */
    return atomic_load_explicit(&link->status, memory_order_acquire) == LINK_DEAD;
}

static bool is_stuck(const dt_link *link) {
    int64_t since = atomic_load_explicit(&link->busy_since_ns, memory_order_relaxed);
    int64_t patience = link->draft->patience_ns;
    return patience > 0 && since > 0 && dt_time_ns() - since > patience;
}

bool dt_link_dead(const dt_link *link) {
    return ended_by_itself(link) || is_stuck(link);
}

bool dt_link_idle(const dt_link *link) {
    return atomic_load_explicit(&link->idle, memory_order_relaxed) != 0;
}

const char *dt_link_message(const dt_link *link) {
    return ended_by_itself(link) ? link->message : "the GPU does not answer";
}

dt_bell *dt_link_bell(dt_link *link) {
    return &link->verify_bell;
}

const dt_draft *dt_link_draft(const dt_link *link) {
    return link->draft;
}
