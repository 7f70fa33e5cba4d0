#include "src/cli/opts.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "src/base/mem.h"
#include "src/cli/show.h"

static const char *const COMMAND_NAMES[CLI_N_COMMANDS] = {
    [CLI_RUN] = "run",
    [CLI_CHAT] = "chat",
    [CLI_BENCH] = "bench",
    [CLI_TOKENIZE] = "tokenize",
    [CLI_PERPLEXITY] = "perplexity",
    [CLI_INFO] = "info",
};

static const char *const COMMAND_HELP[CLI_N_COMMANDS] = {
    [CLI_RUN] = "Writes the model's answer to a prompt.",
    [CLI_CHAT] = "Talks with a model, turn by turn.",
    [CLI_BENCH] = "Measures speed: prompt, answer, answer with a draft.",
    [CLI_TOKENIZE] = "Prints the token ids of a text as a JSON array.",
    [CLI_PERPLEXITY] = "Measures how well the model predicts a text.",
    [CLI_INFO] = "Describes a model file and this machine.",
};

static const char *const COMMAND_NOTES[CLI_N_COMMANDS] = {
    [CLI_RUN] =
        "The prompt is -p TEXT or -f FILE, else it is read from standard input. The answer goes "
        "to\n"
        "standard output, everything else to standard error. A draft makes the answer come faster\n"
        "and never changes it.\n\n"
        "  dovetail run -m target.gguf -d draft.gguf --chat -p \"What is a ring buffer?\"\n",
    [CLI_CHAT] =
        "Each line is a message; one that ends in \\ goes on in the next line, and \"\"\" begins "
        "and "
        "ends a\nmessage of many lines. /help lists the commands. Ctrl-C ends an answer, twice the "
        "program. From a\npipe the messages are read one a line, and only the answers go to "
        "standard "
        "output.\n\n"
        "  dovetail chat -m target.gguf -d draft.gguf --temp 0.7\n",
    [CLI_BENCH] =
        "Each test runs once to warm up and then -r times; the table gives mean and deviation.\n"
        "pp is the reading of a prompt, tg the writing of an answer to it, one sequence alone.\n"
        "With -md (or --draft ngram) the answer is written without and with the draft in turn.\n\n"
        "  dovetail bench -m target.gguf -md draft.gguf -p 512 -n 128 -d 0,4096\n"
        "  dovetail bench -m target.gguf -md draft.gguf --prompts questions.jsonl\n"
        "  dovetail bench -m target.gguf --curve 1,2,4,8,16,32 --isa all\n"
        "  dovetail bench --ring\n",
    [CLI_TOKENIZE] = "The text is -p TEXT or -f FILE, else it is read from standard input.\n\n"
                     "  dovetail tokenize -m target.gguf -p \"Hello\"\n"
                     "  dovetail tokenize -m target.gguf --decode \"[9707, 11]\"\n",
    [CLI_PERPLEXITY] = ("The whole text is one window; it must fit the model's context.\n\n"
                        "  dovetail perplexity -m target.gguf -f text.txt --max-tokens 512\n"),
    [CLI_INFO] = "Without -m only the machine is described; with it, what the model needs for a "
                 "context of -c\n"
                 "tokens too.\n\n"
                 "  dovetail info -m target.gguf -c 8192\n"
                 "  dovetail info --topology \"pack:1 core:8 pu:2\"\n",
};

/* ---- the table ------------------------------------------------------------------------------ */

enum {
    IN_RUN = 1 << CLI_RUN,
    IN_CHAT = 1 << CLI_CHAT,
    IN_TALK = IN_RUN | IN_CHAT,
    IN_BENCH = 1 << CLI_BENCH,
    IN_TOKENIZE = 1 << CLI_TOKENIZE,
    IN_PERPLEXITY = 1 << CLI_PERPLEXITY,
    IN_INFO = 1 << CLI_INFO,
    IN_ENGINE = IN_TALK | IN_BENCH | IN_PERPLEXITY | IN_INFO,
    IN_ALL = (1 << CLI_N_COMMANDS) - 1,
};

typedef enum opt_kind {
    OPT_FLAG,    /* bool */
    OPT_TEXT,    /* const char *, any argument */
    OPT_PATH,    /* const char *, not the name of an option */
    OPT_INT,     /* int64_t in min .. max */
    OPT_NUMBER,  /* double in min .. max */
    OPT_ZERO_OR, /* double, 0 or in min .. max */
    OPT_CHOICE,  /* int, index into `choices` */
    OPT_WORD,    /* const char *, one of `choices` */
    OPT_STOP,    /* appends to stops */
    OPT_BIAS,    /* appends to biases */
    OPT_LIST,    /* cli_list of numbers in min .. max */
} opt_kind;

typedef struct opt {
    unsigned in; /* commands that know it */
    const char *names[3];
    opt_kind kind;
    size_t offset; /* of the field in cli_opts */
    double min, max;
    const char *value; /* the value's name in the help, or the choices with | between them */
    const char *help;
} opt;

#define FIELD(name) offsetof(cli_opts, name)
#define HUGE_COUNT 1e9

static const opt OPTIONS[] = {
    {IN_ALL, {"-m", "--model"}, OPT_PATH, FIELD(target), 0, 0, "FILE",
        "model file (GGUF) that decides the text: the target"},
    {IN_TALK, {"-d", "-md", "--draft-model"}, OPT_PATH, FIELD(draft), 0, 0, "FILE",
        "smaller model with the same vocabulary that proposes text: the draft"},
    {IN_BENCH, {"-md", "--draft-model"}, OPT_PATH, FIELD(draft), 0, 0, "FILE",
        "smaller model with the same vocabulary that proposes text: the draft"},
    {IN_TALK | IN_BENCH, {"--draft"}, OPT_CHOICE, FIELD(draft_kind), 0, 0, "auto|model|ngram|none",
        "where proposals come from: the draft model, repetitions in the text itself, or nowhere "
        "(auto: model and repetitions together if a model is given, else ngram; in bench none)"},
    {IN_TALK | IN_BENCH, {"--draft-device"}, OPT_WORD, FIELD(draft_device), 0, 0, "auto|cpu|cuda",
        "where the draft model runs (default auto: on a GPU where this build and this machine have "
        "one, else on the CPU)"},
    {IN_TALK | IN_BENCH, {"--gpu"}, OPT_INT, FIELD(gpu), 0, 255, "INDEX",
        "which GPU (default: the one with the most free memory)"},
    {IN_RUN | IN_TOKENIZE, {"-p", "--prompt"}, OPT_TEXT, FIELD(prompt), 0, 0, "TEXT", "the prompt"},
    {IN_RUN | IN_BENCH | IN_TOKENIZE | IN_PERPLEXITY, {"-f", "--file"}, OPT_PATH, FIELD(file), 0, 0,
        "FILE", "file with the text; - is standard input"},
    {IN_RUN, {"--jsonl"}, OPT_PATH, FIELD(jsonl), 0, 0, "FILE",
        "many prompts, one JSON object with \"turns\" or \"prompt\" a line; writes one JSON object "
        "for each"},
    {IN_RUN, {"--chat"}, OPT_FLAG, FIELD(chat), 0, 0, NULL,
        "wrap the prompt in the model's chat template"},
    {IN_TALK, {"--system"}, OPT_TEXT, FIELD(system), 0, 0, "TEXT",
        "system prompt for chat and --chat (default: the template's own)"},
    {IN_TALK, {"--template"}, OPT_TEXT, FIELD(chat_template), 0, 0, "FAMILY|FILE",
        "chat template in place of the model's own: chatml, llama2, llama3, gemma, mistral, phi, "
        "qwen2, qwen3, or a file of lines \"user ...{text}...\""},
    {IN_TALK, {"--think"}, OPT_CHOICE, FIELD(think), 0, 0, "auto|on|off",
        "whether a model that can think before it answers does (auto: as its template has it)"},
    {IN_CHAT, {"--color"}, OPT_FLAG, FIELD(color), 0, 0, NULL,
        "show in green what the draft had proposed"},
    {IN_TALK, {"-n", "--n-predict"}, OPT_INT, FIELD(n_max), -1, HUGE_COUNT, "N",
        "tokens to write at most (default -1: until the end or a full context)"},
    {IN_TALK | IN_INFO, {"-c", "--ctx-size"}, OPT_INT, FIELD(n_ctx), 0, 1 << 24, "N",
        "room for prompt and answer in tokens; 0: all that the model was trained for (default: "
        "that, "
        "but 4096 at most)"},
    {IN_TALK, {"--stop"}, OPT_STOP, 0, 0, 0, "TEXT",
        "end the answer where this text appears; may be given up to 16 times"},
    {IN_RUN, {"--ignore-eos"}, OPT_FLAG, FIELD(ignore_end), 0, 0, NULL,
        "go on when the model ends its answer"},

    {IN_TALK | IN_BENCH, {"--temp"}, OPT_ZERO_OR, FIELD(temperature), 1e-4, 100, "T",
        "temperature: 0 takes the likeliest token, 1 draws as the model says (default 0)"},
    {IN_TALK | IN_BENCH, {"--seed"}, OPT_INT, FIELD(seed), 0, (double)CLI_SEED_MAX, "N",
        "the same seed gives the same text (default: random and printed, when --temp is above 0)"},
    {IN_TALK, {"--top-k"}, OPT_INT, FIELD(top_k), 0, HUGE_COUNT, "N",
        "draw from the N likeliest tokens only (default 0: off)"},
    {IN_TALK, {"--top-p"}, OPT_NUMBER, FIELD(top_p), 1e-6, 1, "P",
        "draw from the likeliest tokens that together have probability P (default 1: off)"},
    {IN_TALK, {"--min-p"}, OPT_NUMBER, FIELD(min_p), 0, 1, "P",
        "leave out tokens below P times the likeliest one's probability (default 0: off)"},
    {IN_TALK, {"--repeat-penalty"}, OPT_NUMBER, FIELD(repeat_penalty), 0.01, 100, "X",
        "make recent tokens less likely (default 1: off)"},
    {IN_TALK, {"--presence-penalty"}, OPT_NUMBER, FIELD(presence_penalty), -100, 100, "X",
        "subtract X from the logits of recent tokens (default 0: off)"},
    {IN_TALK, {"--frequency-penalty"}, OPT_NUMBER, FIELD(frequency_penalty), -100, 100, "X",
        "subtract X for each time a recent token appeared (default 0: off)"},
    {IN_TALK, {"--penalty-window"}, OPT_INT, FIELD(penalty_window), 0, 1 << 24, "N",
        "tokens that count as recent (default 64)"},
    {IN_RUN, {"--logit-bias"}, OPT_BIAS, 0, 0, 0, "TOKEN:VALUE,...",
        "add VALUE (or -inf) to the logit of a token, given by its id or its text"},

    {IN_TALK | IN_BENCH, {"--tree"}, OPT_INT, FIELD(tree), 2, DT_TREE_MAX, "N",
        "tokens checked at once: the last sure one and N - 1 proposals"},
    {IN_TALK, {"--depth", "--tree-depth"}, OPT_INT, FIELD(tree_depth), 1, DT_STAT_DEPTH_MAX, "N",
        "longest run of proposals"},
    {IN_BENCH, {"--tree-depth"}, OPT_INT, FIELD(tree_depth), 1, DT_STAT_DEPTH_MAX, "N",
        "longest run of proposals"},
    {IN_TALK | IN_BENCH, {"--topk"}, OPT_INT, FIELD(tree_topk), 1, 16, "N",
        "alternatives proposed for one position; 1 is a chain"},
    {IN_TALK | IN_BENCH, {"--no-guard"}, OPT_FLAG, FIELD(no_guard), 0, 0, NULL,
        "go on drafting even where it measures slower"},
    {IN_TALK | IN_BENCH, {"--independent-noise"}, OPT_FLAG, FIELD(independent_noise), 0, 0, NULL,
        "for comparisons: the draft ignores the target's random numbers"},
    {IN_TALK | IN_BENCH | IN_PERPLEXITY, {"--prefill-batch"}, OPT_INT, FIELD(prefill_batch), 1,
        4096, "N", "tokens of the prompt read at once"},

    {IN_BENCH, {"-p", "--pp", "--n-prompt"}, OPT_LIST, FIELD(pp), 0, 1 << 24, "N,...",
        "tokens of the prompt test (default 512, 0: none)"},
    {IN_BENCH, {"-n", "--tg", "--n-gen"}, OPT_LIST, FIELD(tg), 0, 1 << 24, "N,...",
        "tokens of the answer test (default 128, 0: none)"},
    {IN_BENCH, {"-d", "--depth", "--n-depth"}, OPT_LIST, FIELD(depth), 0, 1 << 24, "N,...",
        "tokens in the context before a test (default 0; 256 for --curve)"},
    {IN_BENCH, {"-r", "--repetitions"}, OPT_INT, FIELD(n_reps), 1, 100000, "N",
        "repetitions (default 5; 15 for --curve)"},
    {IN_BENCH, {"--curve"}, OPT_LIST, FIELD(curve), 1, DT_TREE_MAX, "M,M,...",
        "time of one pass of the target over M tokens, beside the time that reading the weights "
        "takes, instead of pp and tg"},
    {IN_BENCH, {"--prompts"}, OPT_PATH, FIELD(prompts), 0, 0, "FILE",
        "answers to prompts instead of pp and tg, by category: one JSON object with \"turns\" or "
        "\"prompt\", and \"id\" and \"category\" if you like, a line; -n tokens at most for each, "
        "-r rounds (default 3)"},
    {IN_BENCH, {"--ring"}, OPT_FLAG, FIELD(ring), 0, 0, NULL,
        "latency of the ring between two threads instead of pp and tg; needs no model"},
    {IN_BENCH, {"-o", "--output"}, OPT_CHOICE, FIELD(table), 0, 0, "md|csv|json|jsonl",
        "form of the table (default md)"},

    {IN_TOKENIZE, {"--special"}, OPT_FLAG, FIELD(special), 0, 0, NULL,
        "names of special tokens in the text become those tokens"},
    {IN_TOKENIZE | IN_PERPLEXITY, {"--no-bos"}, OPT_FLAG, FIELD(no_bos), 0, 0, NULL,
        "leave out the start token that some models ask for"},
    {IN_TOKENIZE, {"--decode"}, OPT_TEXT, FIELD(decode), 0, 0, "IDS",
        "the other way: print the text of these ids"},

    {IN_INFO, {"--topology"}, OPT_TEXT, FIELD(topology), 0, 0, "TEXT|FILE.xml",
        "describe another machine and its plan: a synthetic topology as hwloc writes it "
        "(\"pack:1 core:8 pu:2\"), or lstopo's XML"},

    {IN_PERPLEXITY, {"--ids"}, OPT_PATH, FIELD(ids_file), 0, 0, "FILE",
        "file with token ids as a JSON array, instead of -f"},
    {IN_PERPLEXITY, {"--max-tokens"}, OPT_INT, FIELD(max_tokens), 2, HUGE_COUNT, "N",
        "use the first N tokens of the text"},
    {IN_PERPLEXITY, {"--logits"}, OPT_PATH, FIELD(logits_file), 0, 0, "FILE",
        "write the logits of every position: float32, one row of the vocabulary's size each"},
    {IN_RUN, {"--json"}, OPT_FLAG, FIELD(json), 0, 0, NULL,
        "print one JSON object at the end: the text, why it ended, the figures"},
    {IN_PERPLEXITY | IN_INFO, {"--json"}, OPT_FLAG, FIELD(json), 0, 0, NULL,
        "print one JSON object"},

    {IN_ENGINE, {"-t", "--threads"}, OPT_INT, FIELD(n_threads), 1, 256, "N",
        "threads (default: one per core)"},
    {IN_BENCH, {"--isa"}, OPT_TEXT, FIELD(isa), 0, 0, "LIST",
        "instruction sets, one after the other: names with commas between them, or all (default "
        "auto: the best of this CPU)"},
    {IN_ENGINE & ~(unsigned)IN_BENCH, {"--isa"}, OPT_WORD, FIELD(isa), 0, 0,
        "auto|c|avx2|avxvnni|avx512|amx", "instruction set (default auto: the best of this CPU)"},
    {IN_ENGINE, {"--kv"}, OPT_WORD, FIELD(kv), 0, 0, "f16|q8_0",
        "what the target's KV cache holds (default f16); q8_0 takes about half the memory"},
    {IN_ENGINE, {"--matmul"}, OPT_WORD, FIELD(matmul), 0, 0, "auto|fused|openblas|float",
        "how matrices are multiplied (default auto)"},
    {IN_RUN, {"--trace"}, OPT_PATH, FIELD(trace), 0, 0, "FILE",
        "write what both threads did and when, as a trace for chrome://tracing or Perfetto (of "
        "many "
        "prompts the last)"},
    {IN_TALK, {"--stats"}, OPT_CHOICE, FIELD(stats), 0, 0, "text|json|none",
        "figures on standard error after the answer (default text: a line or two)"},
    {IN_ALL, {"-h", "--help"}, OPT_FLAG, FIELD(help), 0, 0, NULL, "this help"},
};

/* ---- messages ------------------------------------------------------------------------------- */

int cli_fail(int code, const char *format, ...) {
    char text[4096];
    va_list args;
    cli_progress_end();
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fputs("dovetail: ", stderr);
    show_text(stderr, text);
    fputc('\n', stderr);
    return code;
}

int cli_fail_err(void) {
    return cli_fail(CLI_FAILED, "%s", dt_err_message());
}

static volatile sig_atomic_t progress_shown; /* a signal's handler asks */

void cli_progress(const char *what, int64_t done, int64_t total) {
    static int64_t last_ns;
    if (total <= 0 || !isatty(STDERR_FILENO))
        return;
    int64_t now_ns = dt_time_ns();
    if (progress_shown && done < total && now_ns - last_ns < 50 * 1000 * 1000)
        return;
    last_ns = now_ns;
    progress_shown = true;
    fprintf(stderr, "\r\033[K%s %3d%%", what, (int)(100.0 * (double)done / (double)total));
    fflush(stderr);
}

bool cli_progress_shown(void) {
    return progress_shown;
}

void cli_progress_end(void) {
    if (progress_shown)
        fputs("\r\033[K", stderr);
    progress_shown = false;
}

/* ---- help ----------------------------------------------------------------------------------- */

void cli_help(FILE *out) {
    fprintf(out,
        "dovetail %s: runs a language model, with a smaller one ahead of it for speed.\n\n"
        "usage: dovetail COMMAND [options]\n\ncommands:\n",
        DT_VERSION);
    for (int i = 0; i < CLI_N_COMMANDS; i++)
        fprintf(out, "  %-12s %s\n", COMMAND_NAMES[i], COMMAND_HELP[i]);
    fprintf(out,
        "\n`dovetail COMMAND --help` lists the options of a command; `dovetail --version` prints "
        "the version.\nExit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.\n");
}

cli_command_text cli_describe_command(cli_command command) {
    return (cli_command_text){
        COMMAND_NAMES[command], COMMAND_HELP[command], COMMAND_NOTES[command]};
}

bool cli_describe_option(cli_opt_text *out, cli_command command, int i) {
    for (size_t j = 0; j < DT_COUNT(OPTIONS); j++) {
        const opt *o = &OPTIONS[j];
        if (!(o->in & (1u << command)) || i-- > 0)
            continue;
        *out = (cli_opt_text){{o->names[0], o->names[1], o->names[2]},
            o->kind == OPT_FLAG                            ? CLI_VALUE_NONE
            : o->kind == OPT_PATH                          ? CLI_VALUE_FILE
            : o->kind == OPT_CHOICE || o->kind == OPT_WORD ? CLI_VALUE_CHOICE
                                                           : CLI_VALUE_TEXT,
            o->value, o->help};
        return true;
    }
    return false;
}

/* Wraps `text` at 100 columns behind a margin of `margin` columns; the cursor is at the margin. */
static void print_wrapped(const char *text, int margin) {
    int column = margin;
    while (*text) {
        int n = (int)strcspn(text, " ");
        if (column > margin && column + 1 + n > 100) {
            printf("\n%*s", margin, "");
            column = margin;
        } else if (column > margin) {
            putchar(' ');
            column++;
        }
        printf("%.*s", n, text);
        column += n;
        text += n;
        text += strspn(text, " ");
    }
    putchar('\n');
}

void cli_help_command(cli_command command) {
    enum { MARGIN = 34 };
    printf("usage: dovetail %s [options]\n\n%s\n%s\noptions:\n", COMMAND_NAMES[command],
        COMMAND_HELP[command], COMMAND_NOTES[command]);
    for (size_t i = 0; i < DT_COUNT(OPTIONS); i++) {
        const opt *o = &OPTIONS[i];
        if (!(o->in & (1u << command)))
            continue;
        int n = printf("  %s", o->names[0]);
        for (int j = 1; j < 3 && o->names[j]; j++)
            n += printf(", %s", o->names[j]);
        if (o->value)
            n += printf(" %s", o->value);
        if (n + 2 > MARGIN)
            printf("\n%*s", MARGIN, "");
        else
            printf("%*s", MARGIN - n, "");
        print_wrapped(o->help, MARGIN);
    }
}

/* ---- parser --------------------------------------------------------------------------------- */

static const opt *find_option(cli_command command, const char *name, size_t n) {
    for (size_t i = 0; i < DT_COUNT(OPTIONS); i++) {
        if (!(OPTIONS[i].in & (1u << command)))
            continue;
        for (int j = 0; j < 3 && OPTIONS[i].names[j]; j++)
            if (strlen(OPTIONS[i].names[j]) == n && memcmp(OPTIONS[i].names[j], name, n) == 0)
                return &OPTIONS[i];
    }
    return NULL;
}

/* The index of `text` among "a|b|c", or -1. */
static int find_choice(const char *choices, const char *text) {
    size_t n_text = strlen(text);
    for (int i = 0;; i++) {
        size_t n = strcspn(choices, "|");
        if (n == n_text && memcmp(choices, text, n) == 0)
            return i;
        choices += n;
        if (*choices++ == '\0')
            return -1;
    }
}

/* A number too large for int64 is read as the largest, which every range refuses. */
static bool read_int(int64_t *out, const char *text) {
    char *end;
    *out = strtoll(text, &end, 10);
    return end != text && *end == '\0' && !isspace((unsigned char)text[0]);
}

static bool read_number(double *out, const char *text) {
    char *end;
    *out = strtod(text, &end);
    return end != text && *end == '\0' && isfinite(*out) && !isspace((unsigned char)text[0]);
}

static int read_list(cli_list *out, const opt *o, const char *name, const char *text) {
    out->n = 0;
    while (true) {
        char *end;
        errno = 0;
        long long value = strtoll(text, &end, 10);
        if (end == text || (*end != ',' && *end != '\0'))
            return cli_fail(
                CLI_USAGE, "option %s: '%s' is not a list of numbers like 1,2,4", name, text);
        if (errno != 0 || (double)value < o->min || (double)value > o->max)
            return cli_fail(CLI_USAGE, "option %s: %.*s is out of range, want %.0f to %.0f", name,
                (int)(end - text), text, o->min, o->max);
        if (out->n == CLI_LIST_MAX)
            return cli_fail(CLI_USAGE, "option %s: more than %d values", name, CLI_LIST_MAX);
        out->values[out->n++] = value;
        if (*end == '\0')
            return CLI_OK;
        text = end + 1;
    }
}

static int set_option(cli_opts *opts, const opt *o, const char *name, const char *value) {
    void *field = (char *)opts + o->offset;
    int64_t whole;
    double number;
    int choice;
    switch (o->kind) {
    case OPT_FLAG:
        *(bool *)field = true;
        break;
    case OPT_TEXT:
    case OPT_PATH:
        if (o->kind == OPT_PATH && value[0] == '\0')
            return cli_fail(CLI_USAGE, "option %s: want the name of a file", name);
        *(const char **)field = value;
        break;
    case OPT_INT:
        if (!read_int(&whole, value))
            return cli_fail(CLI_USAGE, "option %s: '%s' is not a whole number", name, value);
        if ((double)whole < o->min || (double)whole > o->max)
            return cli_fail(CLI_USAGE, "option %s: %s is out of range, want %.0f to %.0f", name,
                value, o->min, o->max);
        *(int64_t *)field = whole;
        break;
    case OPT_NUMBER:
    case OPT_ZERO_OR:
        if (!read_number(&number, value))
            return cli_fail(CLI_USAGE, "option %s: '%s' is not a number", name, value);
        if ((number < o->min || number > o->max) && !(o->kind == OPT_ZERO_OR && number == 0))
            return cli_fail(CLI_USAGE, "option %s: %s is out of range, want %s%g to %g", name,
                value, o->kind == OPT_ZERO_OR ? "0 or " : "", o->min, o->max);
        *(double *)field = number;
        break;
    case OPT_CHOICE:
    case OPT_WORD:
        choice = find_choice(o->value, value);
        if (choice < 0)
            return cli_fail(CLI_USAGE, "option %s: '%s' is none of %s", name, value, o->value);
        if (o->kind == OPT_CHOICE)
            *(int *)field = choice;
        else
            *(const char **)field = value;
        break;
    case OPT_STOP:
        if (opts->n_stops == CLI_STOPS_MAX)
            return cli_fail(CLI_USAGE, "option %s: given more than %d times", name, CLI_STOPS_MAX);
        if (value[0] == '\0' || strlen(value) > 256)
            return cli_fail(CLI_USAGE, "option %s: want a text of 1 to 256 bytes", name);
        opts->stops[opts->n_stops++] = value;
        break;
    case OPT_BIAS:
        if (opts->n_biases == CLI_BIASES_MAX)
            return cli_fail(CLI_USAGE, "option %s: given more than %d times", name, CLI_BIASES_MAX);
        opts->biases[opts->n_biases++] = value;
        break;
    case OPT_LIST:
        return read_list(field, o, name, value);
    }
    return CLI_OK;
}

static void set_defaults(cli_opts *opts) {
    dt_sampling sampling;
    dt_sampling_default(&sampling);
    *opts = (cli_opts){
        .n_max = -1,
        .n_ctx = -1,
        .gpu = -1,
        .seed = -1,
        .temperature = (double)sampling.temperature,
        .top_k = sampling.top_k,
        .top_p = (double)sampling.top_p,
        .min_p = (double)sampling.min_p,
        .repeat_penalty = (double)sampling.repeat_penalty,
        .presence_penalty = (double)sampling.presence_penalty,
        .frequency_penalty = (double)sampling.frequency_penalty,
        .penalty_window = sampling.penalty_window,
        .n_reps = -1,
    };
}

/* ---- settings ---- */

static const char *const SETTINGS[] = {"temp", "top-k", "top-p", "min-p", "repeat-penalty",
    "presence-penalty", "frequency-penalty", "penalty-window", "seed", "n"};

const char *cli_setting_name(int i) {
    return (size_t)i < DT_COUNT(SETTINGS) ? SETTINGS[i] : NULL;
}

static const opt *find_setting(const char *name) {
    char text[32];
    for (size_t i = 0; i < DT_COUNT(SETTINGS); i++) {
        if (strcmp(SETTINGS[i], name) != 0)
            continue;
        int n = snprintf(text, sizeof text, "%s%s", name[1] ? "--" : "-", name);
        return find_option(CLI_CHAT, text, (size_t)n);
    }
    return NULL;
}

int cli_setting_set(cli_opts *opts, const char *name, const char *value) {
    const opt *o = find_setting(name);
    if (!o)
        return cli_fail(CLI_USAGE, "no setting '%s'; /set lists them", name);
    return set_option(opts, o, name, value);
}

double cli_setting_get(const cli_opts *opts, const char *name) {
    const opt *o = find_setting(name);
    const void *field = (const char *)opts + (o ? o->offset : FIELD(temperature));
    return o && o->kind == OPT_INT ? (double)*(const int64_t *)field : *(const double *)field;
}

/* What no single option can see. */
static int check_together(const cli_opts *opts) {
    const char *command = COMMAND_NAMES[opts->command];
    bool needs_model = opts->command != CLI_INFO && !(opts->command == CLI_BENCH && opts->ring);
    if (needs_model && !opts->target)
        return cli_fail(
            CLI_USAGE, "no model given: -m FILE is needed; see `dovetail %s --help`", command);
    if (opts->draft_kind == DT_DRAFT_MODEL && !opts->draft)
        return cli_fail(CLI_USAGE, "--draft model needs a draft model: %s FILE",
            opts->command == CLI_BENCH ? "-md" : "-d");
    if ((opts->prompt != NULL) + (opts->file != NULL) + (opts->jsonl != NULL) +
            (opts->ids_file != NULL) + (opts->decode != NULL) >
        1)
        return cli_fail(CLI_USAGE, "more than one text is given (%s); see `dovetail %s --help`",
            opts->command == CLI_RUN          ? "-p, -f, --jsonl"
            : opts->command == CLI_PERPLEXITY ? "-f, --ids"
            : opts->command == CLI_TOKENIZE   ? "-p, -f, --decode"
                                              : "-p, -f",
            command);
    if (opts->command == CLI_RUN && !opts->chat && (opts->chat_template || opts->think))
        return cli_fail(
            CLI_USAGE, "%s needs --chat", opts->chat_template ? "--template" : "--think");
    if (opts->command == CLI_RUN && opts->json && opts->jsonl)
        return cli_fail(CLI_USAGE, "--json is for one prompt; --jsonl writes JSON by itself");
    if (opts->system && !opts->chat && opts->command != CLI_CHAT)
        return cli_fail(CLI_USAGE, "--system needs --chat");
    return CLI_OK;
}

int cli_opts_read(cli_opts *out, int argc, char **argv) {
    int command = 0;
    while (command < CLI_N_COMMANDS && strcmp(argv[1], COMMAND_NAMES[command]) != 0)
        command++;
    if (command == CLI_N_COMMANDS)
        return cli_fail(CLI_USAGE, "unknown command '%s'; see `dovetail --help`", argv[1]);
    set_defaults(out);
    out->command = (cli_command)command;
    for (int i = 2; i < argc; i++) {
        const char *arg = argv[i];
        if (arg[0] != '-' || arg[1] == '\0')
            return cli_fail(CLI_USAGE, "unexpected argument '%s'; see `dovetail %s --help`", arg,
                COMMAND_NAMES[command]);
        size_t n_name = strcspn(arg, "=");
        const opt *o = find_option(out->command, arg, n_name);
        if (!o)
            return cli_fail(CLI_USAGE, "unknown option '%.*s'; see `dovetail %s --help`",
                (int)n_name, arg, COMMAND_NAMES[command]);
        char name[32];
        snprintf(name, sizeof name, "%.*s", (int)n_name, arg);
        const char *value = arg[n_name] == '=' ? arg + n_name + 1 : NULL;
        if (o->kind == OPT_FLAG && value)
            return cli_fail(CLI_USAGE, "option %s takes no value", name);
        if (o->kind != OPT_FLAG && !value) {
            const char *next = i + 1 < argc ? argv[i + 1] : NULL;
            if (!next || (o->kind != OPT_TEXT && o->kind != OPT_STOP && o->kind != OPT_BIAS &&
                             find_option(out->command, next, strlen(next))))
                return cli_fail(CLI_USAGE, "option %s needs a value (%s)", name, o->value);
            value = next;
            i++;
        }
        int code = set_option(out, o, name, value);
        if (code != CLI_OK)
            return code;
    }
    return out->help ? CLI_OK : check_together(out);
}
