#!/usr/bin/env bash
# Prints TAP: that what README.md and docs/*.md show runs: every ```sql and every ```python block; and that functions are described as the catalog
# has them. With --functions it writes the rows of docs/functions.md instead.
#
# The SQL of a page runs in its order, in one session of a database of the page's own that has the extension,
# and stops at the first error. The Python of a page is one program, run with psycopg from PyPI.

set -euo pipefail
cd "$(dirname "$0")/.."

if [ "${1:-}" = --functions ]; then
    exec scripts/with-cluster.sh -- "$0" --write
fi
if [ "${1:-}" != --inside ] && [ "${1:-}" != --write ]; then
    # docs/python.md shows how to be notified; each page has a database and a worker.
    exec scripts/with-cluster.sh -c pg_steadytext.notify=on -c max_worker_processes=32 -- "$0" --inside
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
createdb functions
PGOPTIONS='-c client_min_messages=warning' psql -X -q -d functions -c 'create extension pg_steadytext cascade'
psql -X -d functions -v ON_ERROR_STOP=1 -f scripts/functions.sql >"$work/functions"
if [ "$1" = --write ]; then
    grep -v '^| `' docs/functions.md >"$work/page"
    # The server's user may write into the file, and not into the directory.
    cat "$work/page" "$work/functions" >docs/functions.md
    exit
fi
number=0 failures=0

# blocks LANGUAGE PAGE: these blocks; everything else becomes empty lines, so that errors name the page's lines.
blocks() {
    awk -v fence="\`\`\`$1" '$0 == fence { inside = 1; print ""; next } /^```/ { inside = 0 } { print inside ? $0 : "" }' "$2"
}

# check NAME COMMAND…: one line of TAP; what the command said, when it failed.
check() {
    local name=$1
    shift
    number=$((number + 1))
    if "$@" >"$work/out" 2>&1; then
        echo "ok $number - $name"
    else
        echo "not ok $number - $name"
        sed 's/^/# /' "$work/out"
        failures=$((failures + 1))
    fi
}

# listed: docs/functions.md has every function as it is, and no other.
listed() {
    grep '^| `' docs/functions.md | diff "$work/functions" - && [ "$(wc -l <"$work/functions")" -gt 100 ] && return
    echo 'make docs-functions writes the page'
    return 1
}

# has_parameters PAGE: signatures name parameters that there are.
has_parameters() {
    psql -X -d functions -v ON_ERROR_STOP=1 -v page="$(cat "$1")" -f scripts/signatures.sql >"$work/missing"
    cat "$work/missing"
    [ ! -s "$work/missing" ]
}

check 'docs/functions.md: every function with its parameters, result and comment' listed
check 'docs/sql.md: signatures have the parameters of the functions' has_parameters docs/sql.md

for page in README.md docs/*.md; do
    database=$(basename "$page" .md)
    sql=$(grep -c '^```sql$' "$page" || true) python=$(grep -c '^```python$' "$page" || true)
    [ $((sql + python)) != 0 ] || continue
    createdb "$database"
    PGOPTIONS='-c client_min_messages=warning' \
        psql -X -q -d "$database" -c 'create extension pg_steadytext cascade'
    if [ "$sql" != 0 ]; then
        blocks sql "$page" >"$work/$database.sql"
        check "$page: $sql blocks of SQL" \
            psql -X -q -d "$database" -v ON_ERROR_STOP=1 -P pager=off -f "$work/$database.sql"
    fi
    if [ "$python" != 0 ]; then
        blocks python "$page" >"$work/$database.py"
        [ -d "$work/site" ] || python3 -m pip install --quiet --root-user-action=ignore --target "$work/site" 'psycopg[binary]'
        check "$page: $python blocks of Python" env PGDATABASE="$database" PYTHONPATH="$work/site" python3 "$work/$database.py"
    fi
done
echo "1..$number"
exit $((failures > 0))
