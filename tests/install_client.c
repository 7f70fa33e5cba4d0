/* A program of someone else's over the installed library: writes what follows a prompt.
 * install_client MODEL PROMPT N */
#include <dovetail.h>
#include <models/token.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int show(void *arg, const char *bytes, size_t n_bytes, bool drafted) {
    (void)arg;
    (void)drafted;
    return fwrite(bytes, 1, n_bytes, stdout) != n_bytes;
}

int main(int argc, char **argv) {
    dt_engine *engine = NULL;
    dt_session *session = NULL;
    dt_session_options options;
    dt_stop stop;
    int32_t ids[256];
    int64_t n_ids = 0;
    if (argc != 4)
        return 2;
    dt_session_options_default(&options);
    dt_generate_options generate = {.n_max = atoi(argv[3]), .ignore_end = true, .text = show};
    bool done = dt_engine_open(&engine, &(dt_engine_options){.target = argv[1]}) == DT_OK &&
                dt_session_open(&session, engine, &options) == DT_OK &&
                dt_encode(ids, 256, &n_ids, dt_engine_vocab(engine), argv[2], strlen(argv[2]), true,
                    false) == DT_OK &&
                dt_session_append(session, ids, n_ids) == DT_OK &&
                dt_session_generate(&stop, session, &generate) == DT_OK;
    if (!done)
        fprintf(stderr, "%s\n", dt_err_message());
    dt_session_close(session);
    dt_engine_close(engine);
    return !done;
}
