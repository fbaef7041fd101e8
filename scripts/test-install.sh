#!/usr/bin/env bash
# Prints TAP: that an installation (into a temporary DESTDIR) holds the library, the engine's program, the control file, every byte
# of every SQL fragment in the order of their names, and every migration.

set -uo pipefail
cd "$(dirname "$0")/.." || exit

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
DESTDIR=$root scripts/install.sh >/dev/null || { echo 'Bail out! scripts/install.sh failed'; exit 1; }

pg_config=${PG_CONFIG:-pg_config}
extension_dir=$root$("$pg_config" --sharedir)/extension
version=$(sed -nE "s/^default_version *= *'([^']+)'.*/\1/p" pg_steadytext.control)
script=$extension_dir/pg_steadytext--$version.sql
number=0 failures=0

# check NAME COMMAND…: one line of TAP.
check() {
    local name=$1
    shift
    number=$((number + 1))
    if "$@" >/dev/null 2>&1; then
        echo "ok $number - $name"
    else
        echo "not ok $number - $name"
        failures=$((failures + 1))
    fi
}

# holds FRAGMENT: its text stands in the script, below the line with its name.
# shellcheck disable=SC2317
holds() {
    cmp "$1" <(awk -v name="-- $1" -v lines="$(wc -l <"$1")" '
        found && skipped && lines-- > 0 { print }
        found && !skipped { skipped = 1 }
        $0 == name { found = 1 }' "$script")
}

check 'the library is installed' test -s "$root$("$pg_config" --pkglibdir)/pg_steadytext.so"
check "the engine's program is installed, of the same version" grep -qx "steadytext-engine $version" \
    <("$root$("$pg_config" --bindir)/steadytext-engine" --version)
check 'the control file is installed' cmp pg_steadytext.control "$extension_dir/pg_steadytext.control"
check 'the fragments are in order' cmp \
    <(find sql -name '*.sql' | LC_ALL=C sort) <(sed -nE 's/^-- (sql\/.*\.sql)$/\1/p' "$script")
while read -r fragment; do
    check "$fragment is in the script" holds "$fragment"
done < <(find sql -name '*.sql' | LC_ALL=C sort)
while read -r migration; do
    check "$migration is installed" cmp "$migration" "$extension_dir/$(basename "$migration")"
done < <(find migrations -name '*.sql' | LC_ALL=C sort)

echo "1..$number"
exit $((failures > 0))
