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
done < <(find migrations -maxdepth 1 -name '*.sql' | LC_ALL=C sort)

# A released version stays as it was, and its functions stay in the library: databases call them until they are updated.
if [ -e "migrations/released/pg_steadytext--$version.sql" ]; then
    check "version $version is what was released under that name" cmp "migrations/released/pg_steadytext--$version.sql" "$script"
fi
defined=$(mktemp)
trap 'rm -rf "$root" "$defined"' EXIT
nm --dynamic --defined-only "$root$("$pg_config" --pkglibdir)/pg_steadytext.so" | awk '{ print $3 }' | LC_ALL=C sort -u >"$defined"

# named SCRIPT: the C functions that it makes SQL functions of.
named() {
    sed -nE "s/.*'MODULE_PATHNAME', *'([A-Za-z0-9_]+)'.*/\1/p" "$1" | LC_ALL=C sort -u
}

# has_functions_of SCRIPT: and it names some, if it is a whole version.
# shellcheck disable=SC2317
has_functions_of() {
    local missing
    missing=$({ named "$1"; named "$1" | sed 's/^/pg_finfo_/'; } | LC_ALL=C sort | LC_ALL=C comm -23 - "$defined")
    [ -z "$missing" ] || { printf '# the library lacks %s\n' $missing >&3; return 1; }
}

exec 3>&1
check 'the script of the present version names C functions' test "$(named "$script" | wc -l)" -gt 100
for older in "$script" migrations/*.sql migrations/released/*.sql; do
    [ -e "$older" ] || continue
    check "the library has each C function that $(basename "$older") names" has_functions_of "$older"
done

echo "1..$number"
exit $((failures > 0))
