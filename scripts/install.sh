#!/usr/bin/env bash
# Installs the built extension into the server of PG_CONFIG: library, control file, the SQL fragments of sql/
# as one script in the order of their names, the migrations, and steadytext-engine beside the server's programs, where a server with
# pg_steadytext.engine_process = separate looks for it. Under DESTDIR, where that is set.
# Files that are there already with the same content are left alone; sudo is asked only for what needs it.

set -euo pipefail
cd "$(dirname "$0")/.."

pg_config=${PG_CONFIG:-pg_config}
library=${LIBRARY:-target/release/libpg_steadytext.so}
engine=${ENGINE:-target/release/steadytext-engine}
library_dir=${DESTDIR:-}$("$pg_config" --pkglibdir)
program_dir=${DESTDIR:-}$("$pg_config" --bindir)
extension_dir=${DESTDIR:-}$("$pg_config" --sharedir)/extension
version=$(sed -nE "s/^default_version *= *'([^']+)'.*/\1/p" pg_steadytext.control)

[ -f "$library" ] || { echo "install: $library is missing: run make build" >&2; exit 1; }

# put MODE SOURCE TARGET: replaces the file, never writes into it: a running server may have it mapped.
put() {
    local dir as_root=()
    dir=$(dirname "$3")
    if cmp -s "$2" "$3"; then return; fi
    while [ ! -e "$dir" ]; do dir=$(dirname "$dir"); done
    if [ ! -w "$dir" ]; then as_root=(sudo); fi
    "${as_root[@]}" install -D -m "$1" "$2" "$3"
    echo "installed $3"
}

script=$(mktemp)
trap 'rm -f "$script"' EXIT
scripts/install-script.sh >"$script"

put 755 "$library" "$library_dir/pg_steadytext.so"
if [ -f "$engine" ]; then
    put 755 "$engine" "$program_dir/steadytext-engine"
else
    echo "install: $engine is not built: pg_steadytext.engine_process = separate will find no program" >&2
fi
put 644 pg_steadytext.control "$extension_dir/pg_steadytext.control"
put 644 "$script" "$extension_dir/pg_steadytext--$version.sql"
for migration in migrations/pg_steadytext--*--*.sql; do
    [ -e "$migration" ] || continue
    put 644 "$migration" "$extension_dir/$(basename "$migration")"
done
