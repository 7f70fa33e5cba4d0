/* Fuzzes sets of prompts: every line is a prompt or ends the set with one line of error. */
#include <string.h>

#include "src/cli/prompts.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerInitialize(int *n_args, char ***args) {
    (void)n_args;
    (void)args;
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    cli_text text = {malloc(n_bytes + 1), n_bytes};
    fuzz_require(text.data != NULL, "malloc");
    if (n_bytes > 0)
        memcpy(text.data, data, n_bytes);
    text.data[n_bytes] = 0;
    prompts set = prompts_of(&text);
    prompts_item item;
    char error[PROMPTS_ERROR_BYTES];
    int n_lines = 0;
    while (prompts_next(&item, error, &set)) {
        fuzz_require(item.n_bytes > 0 && item.text[item.n_bytes] == 0, "an empty prompt");
        fuzz_require(set.i_line > n_lines && set.at <= set.end, "lines");
        n_lines = set.i_line;
        prompts_drop(&item);
    }
    fuzz_require(error[0] != 0 || set.at == set.end, "the set ends before its end");
    fuzz_require(strchr(error, '\n') == NULL, "an error of two lines");
    free(text.data);
    return 0;
}
