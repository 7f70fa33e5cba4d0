/* dovetail tokenize: text to token ids and back. Reads the vocabulary only, not the weights. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "src/cli/opts.h"
#include "src/cli/inputs.h"

static int decode(const cli_opts *opts, const dt_vocab *vocab) {
    int32_t *ids;
    int64_t n;
    int code = cli_read_ids(&ids, &n, opts->decode, dt_vocab_size(vocab), "--decode");
    if (code != CLI_OK)
        return code;
    /* What encoding put in front of the text is no part of it. */
    bool drops_space = dt_vocab_add_space(vocab);
    for (int64_t i = 0; i < n && code == CLI_OK; i++) {
        char small[64], *text = small;
        size_t n_bytes = dt_decode_token(small, sizeof small, vocab, ids[i], opts->special);
        if (n_bytes > sizeof small) {
            text = malloc(n_bytes);
            if (!text) {
                code = cli_fail(CLI_FAILED, "no memory for a token of %zu bytes", n_bytes);
                break;
            }
            dt_decode_token(text, n_bytes, vocab, ids[i], opts->special);
        }
        bool drops = drops_space && n_bytes > 0 && text[0] == ' ' &&
                     dt_vocab_kind(vocab, ids[i]) != DT_TOKEN_CONTROL;
        drops_space = drops_space && dt_vocab_kind(vocab, ids[i]) == DT_TOKEN_CONTROL;
        if (fwrite(text + drops, 1, n_bytes - drops, stdout) != n_bytes - drops)
            code = cli_fail(CLI_FAILED, "cannot write the text: %s", strerror(errno));
        if (text != small)
            free(text);
    }
    free(ids);
    return code;
}

static int encode(const cli_opts *opts, const dt_vocab *vocab) {
    cli_text text;
    int32_t *ids;
    int64_t n;
    int code = cli_read_prompt(&text, opts);
    if (code != CLI_OK)
        return code;
    code = cli_encode(&ids, &n, vocab, text.data, text.n_bytes, !opts->no_bos, opts->special);
    free(text.data);
    if (code != CLI_OK)
        return code;
    putchar('[');
    for (int64_t i = 0; i < n; i++)
        printf("%s%d", i ? ", " : "", (int)ids[i]);
    puts("]");
    free(ids);
    return CLI_OK;
}

int cmd_tokenize(const cli_opts *opts) {
    dt_gguf *gguf = NULL;
    dt_vocab *vocab = NULL;
    int code;
    if (dt_gguf_open(&gguf, opts->target) != DT_OK || dt_vocab_open(&vocab, gguf) != DT_OK)
        code = cli_fail_err();
    else
        code = opts->decode ? decode(opts, vocab) : encode(opts, vocab);
    dt_vocab_close(vocab);
    dt_gguf_close(gguf);
    return code;
}
