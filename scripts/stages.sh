# shellcheck shell=bash
# Stages of a test run: sourced by scripts/test and .ci/run.
#
#   stage NAME COMMAND [ARGUMENT ...]     one result
#   suite NAME BUILD [ARGUMENT ...]       `meson test -C BUILD ARGUMENT ...`, a result for each test
#   skip NAME REASON                      no result, a line that says so
#
# Output goes to $log_folder/NAME.log and, if the stage fails, its end to standard output. A stage
# prints one line with its time. Counts gather in n_passed and n_failed; stages_end adds them to the
# file $DT_TALLY if that is set.

log_folder=${log_folder:-build/stages}
n_passed=0
n_failed=0

stage_line() { # RESULT SECONDS NAME DETAIL
    printf '%-7s %6d s  %s%s\n' "$1" "$2" "$3" "${4:+: $4}"
}

stage_log() { # NAME
    mkdir -p "$log_folder"
    echo "$log_folder/${1//[^A-Za-z0-9_.-]/_}.log"
}

stage() {
    local name=$1 start=$SECONDS log_path
    shift
    log_path=$(stage_log "$name")
    if "$@" >"$log_path" 2>&1 </dev/null; then
        n_passed=$((n_passed + 1))
        stage_line ok $((SECONDS - start)) "$name"
    else
        n_failed=$((n_failed + 1))
        stage_line FAILED $((SECONDS - start)) "$name" "$log_path"
        tail -n "${DT_TAIL:-60}" "$log_path"
        return 1
    fi
}

suite() {
    local name=$1 build=$2 start=$SECONDS log_path counts passed failed skipped result=ok
    shift 2
    log_path=$(stage_log "$name")
    rm -f "$build/meson-logs/testlog.json"
    meson test -C "$build" --print-errorlogs "$@" >"$log_path" 2>&1 </dev/null || result=FAILED
    counts=$(python3 - "$build/meson-logs/testlog.json" <<'PYTHON'
import json, sys
try:
    with open(sys.argv[1]) as f:
        results = [json.loads(line)["result"] for line in f]
except OSError:
    results = []
skipped = results.count("SKIP")
passed = sum(r in ("OK", "EXPECTEDFAIL") for r in results)
print(passed, len(results) - passed - skipped, skipped)
PYTHON
    )
    read -r passed failed skipped <<<"$counts"
    # A suite that could not start, or ran nothing, has failed too.
    if [ "$result" = FAILED ] && [ "$failed" = 0 ]; then
        failed=1
    fi
    if [ $((passed + failed)) = 0 ]; then
        result=FAILED
        failed=1
    fi
    n_passed=$((n_passed + passed))
    n_failed=$((n_failed + failed))
    stage_line "$result" $((SECONDS - start)) "$name" \
        "$passed passed, $failed failed, $skipped skipped"
    if [ "$result" = FAILED ]; then
        tail -n "${DT_TAIL:-60}" "$log_path"
        return 1
    fi
}

skip() {
    stage_line skipped 0 "$1" "$2"
}

stages_end() {
    if [ -n "${DT_TALLY:-}" ]; then
        echo "$n_passed $n_failed" >>"$DT_TALLY"
    fi
}
