#!/usr/bin/env bash
# Prints TAP: that the SQL shown in README.md and docs/*.md (every ```sql block) runs.
#
# The blocks of a page run in their order, in one session of a database of the page's own, and stop at the
# first error. The extension is there already.

set -euo pipefail
cd "$(dirname "$0")/.."

if [ "${1:-}" != --inside ]; then
    exec scripts/with-cluster.sh -- "$0" --inside
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
number=0 failures=0
for page in README.md docs/*.md; do
    blocks=$(grep -c '^```sql$' "$page" || true)
    [ "$blocks" != 0 ] || continue
    number=$((number + 1))
    # Everything else becomes empty lines, so that psql names the page's own line numbers.
    script=$work/$(basename "$page")
    awk '/^```sql$/ { sql = 1; print ""; next } /^```/ { sql = 0 } { print sql ? $0 : "" }' "$page" >"$script"
    createdb "page_$number"
    PGOPTIONS='-c client_min_messages=warning' \
        psql -X -q -d "page_$number" -c 'create extension pg_steadytext cascade'
    if psql -X -q -d "page_$number" -v ON_ERROR_STOP=1 -P pager=off -f "$script" >"$work/out" 2>&1; then
        echo "ok $number - $page: $blocks blocks of SQL"
    else
        echo "not ok $number - $page: $blocks blocks of SQL"
        sed 's/^/# /' "$work/out"
        failures=$((failures + 1))
    fi
done
echo "1..$number"
exit $((failures > 0))
