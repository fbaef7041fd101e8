#!/usr/bin/env bash
# Runs the pgTAP tests of the Python extension against this one, in a throwaway server, and says how many pass.
#
#     scripts/predecessor-tests.sh [-v] SOURCE [FILE…]
#
# SOURCE is a directory with the test files, or a git repository of theirs: a clone, a bare mirror or a URL. FILE is the name of one of them
# without .sql; without any, all run. -v shows what fails. The tests are their authors', and no part of this repository.
#
# Each file has a database of its own. A statement that fails is undone by itself, so that the assertions after it run. The exit status is
# 0 whatever fails: docs/migrating.md says what has to.

set -euo pipefail

usage() { sed -nE '2,/^$/ s/^# ?//p' "$0" >&2; exit 2; }

# run DIRECTORY VERBOSE FILE…: inside the throwaway server.
run() {
    local directory=$1 verbose=$2 name log planned ran failed skipped counts
    local passed_total=0 failed_total=0 absent_total=0 skipped_total=0
    shift 2
    log=$(mktemp)
    trap 'rm -f "$log"' RETURN
    printf '%-32s %8s %8s %8s %8s\n' file passed failed 'not run' skipped
    for name in "$@"; do
        createdb "$name"
        psql -X -q -d "$name" -c 'set client_min_messages = error' -c 'create extension pgtap' \
            -c 'create extension pg_steadytext cascade'
        # Assertions inside DO blocks print nothing, so that the counters are asked at the end.
        sed -i "s/^select \* from finish();/select format('# ran %s, failed %s', _get('curr_test'), num_failed());\n&/I" \
            "$directory/$name.sql"
        timeout "${FILE_SECONDS:-900}" psql -X -q -A -t -d "$name" -v ON_ERROR_ROLLBACK=on -v ON_ERROR_STOP=off \
            -f "$directory/$name.sql" >"$log" 2>&1 || true
        planned=$(sed -nE 's/^1\.\.([0-9]+)$/\1/p' "$log" | head -n 1)
        ran=$(sed -nE 's/^# ran ([0-9]+), failed [0-9]+$/\1/p' "$log")
        failed=$(sed -nE 's/^# ran [0-9]+, failed ([0-9]+)$/\1/p' "$log")
        skipped=$(grep -cE '^ok [0-9]+ .*# SKIP' "$log" || true)
        planned=${planned:-0} ran=${ran:-0} failed=${failed:-0}
        counts=("$((ran - failed - skipped))" "$failed" "$((planned > ran ? planned - ran : 0))" "$skipped")
        printf '%-32s %8s %8s %8s %8s\n' "$name" "${counts[@]}"
        if [ "$verbose" = yes ]; then
            sed -nE 's/^(not ok .*|# (    )?(caught|wanted|have|want|Looks).*|#  +.*)$/    \1/p; s/^psql:[^:]*:([0-9]+): (ERROR: .*)$/    line \1: \2/p' "$log"
        fi
        passed_total=$((passed_total + counts[0])) failed_total=$((failed_total + counts[1]))
        absent_total=$((absent_total + counts[2])) skipped_total=$((skipped_total + counts[3]))
        dropdb --force "$name"
    done
    printf '%-32s %8s %8s %8s %8s\n' total "$passed_total" "$failed_total" "$absent_total" "$skipped_total"
}

if [ "${1:-}" = --inside ]; then
    shift
    run "$@"
    exit
fi

verbose=no
if [ "${1:-}" = -v ]; then verbose=yes; shift; fi
[ $# -gt 0 ] || usage
source=$1
shift

tests=$(mktemp -d)
trap 'rm -rf "$tests"' EXIT
if compgen -G "$source/*.sql" >/dev/null; then
    cp "$source"/*.sql "$tests"
else
    # A shallow clone has what HEAD has.
    git clone --quiet --bare --depth 1 "$(if [ -d "$source" ]; then echo "file://$(cd "$source" && pwd)"; else echo "$source"; fi)" "$tests/repository"
    git --git-dir="$tests/repository" archive HEAD pg_steadytext/test/pgtap | tar -x -C "$tests" --strip-components=3
fi
chmod -R a+rX "$tests"
if [ $# = 0 ]; then
    for file in "$tests"/*.sql; do set -- "$@" "$(basename "$file" .sql)"; done
fi

cd "$(dirname "$0")/.."
scripts/with-cluster.sh -- "$PWD/scripts/predecessor-tests.sh" --inside "$tests" "$verbose" "$@"
