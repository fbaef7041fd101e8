#!/usr/bin/env bash
# Runs test suites, shows what they print, and ends with the line "N passed, M failed".
#
#     scripts/test.sh [SUITE…]      engine install sql docs server lint later; without any: all of them in this
#                                   order, after installing what is missing (lint and later where CI=true only)
#
# The suite later runs install and sql with PostgreSQL 17, on the Debian that has it.
#
# Everything is built by one cargo command for the whole workspace, and the suites run what it built: cargo
# unifies the features of exactly the packages that are selected, so a second selection would compile half
# of the dependencies once more. The library under test comes from this build; `make build` compiles the
# extension alone, with fewer features of its dependencies.
#
# The counts are those of the runners: cargo's "test result" lines and TAP. A runner that fails without
# naming a failed test, and one that ran no test at all, count as one failure. The exit status is 0 only
# when nothing failed. The failures are repeated before the last line, with their output: of a long log, often
# only the end is kept.

set -uo pipefail
cd "$(dirname "$0")/.." || exit

cargo=${CARGO:-cargo}
pg_config=${PG_CONFIG:-pg_config}
passed=0 failed=0
log=$(mktemp)
failures=$(mktemp)
trap 'rm -f "$log" "$failures"' EXIT

# A suite that hangs must not take the rest with it. Not at a terminal, where Ctrl-C would not reach it.
limit=()
if [ ! -t 0 ]; then limit=(timeout --kill-after=30s "${SUITE_MINUTES:-40}m"); fi

# counts LOG: prints "passed failed" as the runners in LOG counted them.
counts() {
    awk '
        /^test result: / {
            for (i = 2; i <= NF; i++) {
                if ($i == "passed;") good += $(i - 1)
                if ($i == "failed;") bad += $(i - 1)
            }
        }
        /^ok [0-9]+/ && !/# *(SKIP|skip)/ { good++ }
        /^not ok [0-9]+/ && !/# *(TODO|todo)/ { bad++ }
        END { print good + 0, bad + 0 }' "$1"
}

# what_failed LOG: of each failed test in LOG at most 60 lines of what it printed, and then their names.
what_failed() {
    awk '
        /^---- .* stdout ----$/ { shown = 60 }
        /^failures:$/ || /^test result: / || /^ok [0-9]+/ || /^done$/ { shown = 0 }
        /^not ok [0-9]+/ && !/# *(TODO|todo)/ { shown = 12; names = names $0 "\n" }
        / \.\.\. FAILED$/ { names = names $0 "\n" }
        shown > 0 { print; shown-- }
        END { printf "%s", names }' "$1"
}

# suite NAME COMMAND…: runs it and adds what it counted.
suite() {
    local name=$1 status good bad
    shift
    printf '\n== %s\n' "$name"
    "${limit[@]}" "$@" 2>&1 | tee "$log"
    status=${PIPESTATUS[0]}
    read -r good bad < <(counts "$log")
    if [ "$status" != 0 ] && [ "$bad" = 0 ]; then
        printf '== %s: exit status %s without a failed test\n' "$name" "$status"
        bad=1
    elif [ $((good + bad)) = 0 ]; then
        printf '== %s: no test ran\n' "$name"
        bad=1
    fi
    printf '== %s: %s passed, %s failed\n' "$name" "$good" "$bad"
    if [ "$bad" != 0 ]; then
        { printf '\n== %s: what failed\n' "$name"; what_failed "$log" | grep . || tail -n 60 "$log"; } >>"$failures"
    fi
    passed=$((passed + good)) failed=$((failed + bad))
}

# step COMMAND…: what every suite needs; without it there is nothing to test.
step() {
    "$@" 2>&1
    local status=$?
    [ $status = 0 ] && return
    printf '\n%s failed with exit status %s\n%s passed, %s failed\n' "$*" $status "$passed" $((failed + 1))
    exit 1
}

# Expanded when it is needed: on a fresh machine the server comes with `make setup`.
workspace() {
    PGRX_PG_CONFIG_PATH=$(command -v "$pg_config")
    export PGRX_PG_CONFIG_PATH
    selection=(--release --workspace --features "pg$("$pg_config" --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/')")
}

# test_targets PACKAGE…: `--test NAME` for each integration test of these packages.
test_targets() {
    "$cargo" metadata --offline --no-deps --format-version 1 | python3 -c '
import json, sys
for package in json.load(sys.stdin)["packages"]:
    for target in package["targets"]:
        if package["name"] in sys.argv[1:] and "test" in target["kind"]:
            print("--test", target["name"])' "$@"
}

if [ $# = 0 ]; then
    set -- engine install sql docs server
    # Not again on the Debian itself that has the later PostgreSQL.
    if [ "${CI:-}" = true ]; then set -- lint "$@"; grep -qs trixie /etc/os-release || set -- "$@" later; fi
    step make --no-print-directory setup
fi
workspace
if [ "$*" != lint ]; then
    targets=(--lib)
    # These two have what they need in the library and the engine's program.
    case " $* " in
        " install " | " sql " | " install sql ") targets+=(--bin steadytext-engine) ;;
        *) targets+=(--bins --tests) ;;
    esac
    step "$cargo" build "${selection[@]}" "${targets[@]}"
    step scripts/install.sh
fi

for name in "$@"; do
    case $name in
        engine)
            # Without it, the tests that need the model fail and say so.
            scripts/fetch-minilm.sh || true
            # Without these, the tests that need them are skipped and say so.
            scripts/fetch-llama-cpp.sh || true
            scripts/fetch-real-models.sh || true
            # shellcheck disable=SC2046 # options, split at spaces
            suite engine "$cargo" test "${selection[@]}" --no-fail-fast --lib --bins \
                $(test_targets steadytext-engine steadytext-exchange steadytext-test-models) ;;
        install) suite install scripts/test-install.sh ;;
        sql) suite sql scripts/test-sql.sh ;;
        docs) suite docs scripts/test-docs.sh ;;
        server) suite server "$cargo" test "${selection[@]}" --no-fail-fast --test server ;;
        lint) suite lint scripts/lint.sh ;;
        later)
            # Where no mirror can be reached there is nothing to test, and nothing wrong.
            if scripts/in-debian.sh trixie true; then
                suite later scripts/in-debian.sh trixie sh -c 'make --no-print-directory setup && scripts/test.sh install sql'
            else
                printf '\n== later: skipped, there is no Debian to run it on\n'
            fi ;;
        *) echo "unknown suite $name" >&2; exit 2 ;;
    esac
done

cat "$failures"
printf '\n%s passed, %s failed\n' "$passed" "$failed"
[ "$failed" = 0 ]
