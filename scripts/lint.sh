#!/usr/bin/env bash
# Prints TAP: formatting, clippy without warnings for every crate, and the rules of docs/development.md.

# shellcheck disable=SC2317 # the rules are called through check and none
set -uo pipefail
cd "$(dirname "$0")/.." || exit

cargo=${CARGO:-cargo}
PGRX_PG_CONFIG_PATH=$(command -v "${PG_CONFIG:-pg_config}")
export PGRX_PG_CONFIG_PATH
major=$("${PG_CONFIG:-pg_config}" --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/')
number=0 failures=0

# check NAME COMMAND…: one line of TAP; what the command said, when it failed.
check() {
    local name=$1 said
    shift
    number=$((number + 1))
    if said=$("$@" 2>&1); then
        echo "ok $number - $name"
    else
        echo "not ok $number - $name"
        if [ -n "$said" ]; then printf '%s\n' "$said" | sed 's/^/# /'; fi
        failures=$((failures + 1))
    fi
}

# none NAME COMMAND…: passes when the command prints nothing.
none() {
    local name=$1 found
    shift
    found=$("$@" 2>&1)
    check "$name" test -z "$found"
    if [ -n "$found" ]; then printf '%s\n' "$found" | sed 's/^/# /'; fi
}

# advise TEXT COMMAND…: what the command prints, as advice; never a failure.
advise() {
    local text=$1 found
    shift
    found=$("$@" 2>&1)
    if [ -n "$found" ]; then printf '%s\n' "$text:" "$found" | sed 's/^/# /'; fi
}

# files REGEX: the files whose path matches; those that git knows, or all where there is no git.
files() {
    { git ls-files --cached --others --exclude-standard 2>/dev/null ||
        find . \( -path ./target -o -path ./.git \) -prune -o -type f -print | sed 's|^\./||'; } |
        LC_ALL=C sort -u | grep -E "$1" | while read -r file; do
            if [ -f "$file" ]; then printf '%s\n' "$file"; fi
        done
}

# longer_than LINES REGEX: the files with more lines than that.
longer_than() {
    local lines=$1
    files "$2" | xargs -r wc -l | awk -v lines="$lines" '$2 != "total" && $1 > lines { print $2 ": " $1 " lines" }'
}

# Lines of code, without comment lines, that hold the word `unsafe` where it is not allowed.
stray_unsafe() {
    files '\.rs$' | grep -vE '^src/pg/|^src/engine/kernels/|^src/engine/mapping/|^src/engine/memory/allocator\.rs$' |
        xargs -r grep -nHwE 'unsafe' | grep -vE '^[^:]+:[0-9]+:[[:space:]]*//'
}

# Standard output and error of a library belong to whoever loads it: the server.
stray_prints() {
    files '^src/.*\.rs$' | grep -vE '^src/engine/(main\.rs$|cli/|tests/)' |
        xargs -r grep -nHE '\b(e?println|e?print|dbg)!' | grep -vE '^[^:]+:[0-9]+:[[:space:]]*//'
}

# Paths that exist on one machine only.
machine_paths() {
    files '\.(rs|sql|sh|toml|md|yml)$|^Makefile$|^Dockerfile$|^\.ci/run$' | grep -v '^scripts/lint\.sh$' |
        xargs -r grep -nHE '(^|[^A-Za-z0-9_.~-])/(home|Users|work)/[A-Za-z0-9_]'
}

# The server calls nobody but the hub that models are downloaded from, and the engine behind an endpoint is the worker's to call.
stray_connections() {
    files '^src/.*\.rs$' | grep -vE '^src/engine/(hub|tests)/|^src/elsewhere/' |
        xargs -r grep -nHwE 'ureq|hyper|reqwest|TcpStream|TcpListener|UdpSocket|ToSocketAddrs' | grep -vE '^[^:]+:[0-9]+:[[:space:]]*//'
}

# Parts of shared memory that src/pg/mod.rs does not list: they would never get their memory.
unlisted_parts() {
    local file name module
    while IFS=: read -r file name; do
        module=${file#src/pg/} module=${module%.rs} module=${module%/mod}
        grep -qxF "    &${module//\//::}::$name," src/pg/mod.rs || echo "$file: $name is not among the PARTS of src/pg/mod.rs"
    done < <(files '^src/pg/.*\.rs$' | xargs -r grep -HE '\bstatic [A-Z_]+: (shmem::)?SharedPart<' | sed -E 's/^([^:]+):.*static ([A-Z_]+):.*/\1:\2/')
}

# The processes of the worker send the SQL of their protocol and no other: what else of them names SPI reads a row.
stray_worker_sql() {
    files '^src/worker/.*\.rs$' | grep -vE '^src/worker/protocol(/|\.rs$)' | xargs -r grep -nHwiE 'spi' |
        grep -vE '^[^:]+:[0-9]+:([[:space:]]*//|use crate::pg::spi::Row;$)'
}

# Without downloads the library has no HTTP client in it at all.
http_client_in_library() {
    "$cargo" tree --offline --prefix none -p pg_steadytext --no-default-features --features "pg$major" -e normal |
        grep -E '^(ureq|hyper|reqwest|rustls|native-tls|curl|isahc|tokio)\b'
}

# The engine may be linked without PostgreSQL (by a worker elsewhere), so nothing of it may depend on pgrx.
pgrx_in() { "$cargo" tree --offline --prefix none -p "$1" -e normal,build | grep -E '^pgrx'; }

# SQL fragments are installed in the order of their names: two digits, each of them once.
misnamed_fragments() {
    files '^sql/' | grep -vE '^sql/[0-9]{2}_[a-z_]+\.sql$'
    files '^sql/' | sed -nE 's|^sql/([0-9]{2})_.*|sql/\1_* is there twice|p' | uniq -d
}

# Names that a script leaves open are looked up in pg_catalog only: the install script and every migration begin with that, no
# fragment changes it but around statements that name the type vector, and what is made is closed before it is granted.
open_scripts() {
    local script opening='set local search_path = pg_catalog, pg_temp;'
    for script in $(files '^sql/' | sed -n 1p) $(files '^migrations/.*\.sql$'); do
        [ "$(awk '!/^[[:space:]]*(--|\\|$)/ && !found++ { print }' "$script")" = "$opening" ] ||
            echo "$script does not begin with: $opening"
    done
    for script in $(files '^migrations/.*\.sql$'); do
        if grep -qiE '^create ' "$script" && ! grep -qF 'steadytext.close_new_objects()' "$script"; then
            echo "$script makes objects and does not call steadytext.close_new_objects()"
        fi
    done
    for script in $(files '^(sql|migrations)/.*\.sql$'); do
        awk -v file="$script" -v opening="$opening" -v vector="'search_path', steadytext.vector_path(), true);" '
            /^[[:space:]]*--/ { next }
            $0 == "select pg_catalog.set_config(" vector { inside = 1; next }
            $0 == opening { inside = 0; next }
            $0 == "set search_path = pg_catalog, pg_temp" { next }
            # For one statement, a function of searches goes to the path of its caller.
            file == "sql/75_search.sql" && $0 ~ /^    perform (pg_catalog\.)?set_config\(.search_path., (p_path|.pg_catalog, pg_temp.), true\);$/ { next }
            /search_path *(=|to)|set_config\(.search_path/ { print file ": " $0 }
            inside && /^(do|insert|update|delete|grant|revoke|select|with|create +(or|view|index|unique|policy|trigger))/ {
                print file ": not among statements that name the type vector: " $0
            }
            END { if (inside) print file ": the search path of the type vector stays" }' "$script"
    done
}

# A function st_x is made of steadytext_x (sql/81_twins.sql), by migrations too; one that is written by hand is not just
# short for the other, and its comment says what is different.
written_twins() {
    local script
    # Those of aggregates cannot be made of anything.
    files '^(sql|migrations)/.*\.sql$' | xargs -r awk \
        '/Short for steadytext_/ && before !~ /^comment on aggregate / { print FILENAME ":" FNR ": " $0 } { before = $0 }'
    for script in $(files '^migrations/.*\.sql$'); do
        if grep -qiE '^create (or replace )?function @extschema@\.steadytext_' "$script" &&
            ! grep -qF 'select steadytext.make_twin' "$script"; then
            echo "$script makes functions of the API and does not call steadytext.make_twins()"
        fi
    done
}

# Text files end with a line feed: the fragments are concatenated.
unfinished_files() {
    files '\.(sql|rs|sh|md)$' | while read -r file; do
        [ -z "$(tail -c 1 "$file")" ] || echo "$file: no line feed at the end"
    done
}

# Lines of comments that are wider than the code, which rustfmt leaves as they are. Links and rows of tables cannot be broken.
wide_comments() {
    files '\.rs$' | LC_ALL=C.UTF-8 xargs grep -nP '^(?=\s*//).{111,}' | grep -vE 'https?://|//[/!] \|' || true
}

# Links in README.md and docs/ to files of this repository.
broken_links() {
    local page target
    for page in README.md CHANGELOG.md docs/*.md; do
        grep -oE '\]\([^)#]+' "$page" | sed 's/^](//' | grep -vE '^[a-z]+:' | sort -u | while read -r target; do
            [ -e "$(dirname "$page")/$target" ] || echo "$page: $target is not there"
        done
    done
}

# Links to a place within a page, by the heading's or the anchor's name as GitHub makes it, where there is none of that name.
broken_anchors() {
    python3 -c '
import os, re, sys
def name(heading):
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
pages = {os.path.normpath(path): open(path).read() for path in sys.argv[1:]}
for page, text in pages.items():
    for file, anchor in re.findall(r"\]\(([^):#\s]*)#([^)\s]+)\)", text):
        target = pages.get(os.path.normpath(os.path.join(os.path.dirname(page), file)) if file else page, "")
        names = {name(heading) for heading in re.findall(r"^#+ (.*)$", target, re.M)}
        if anchor not in names | set(re.findall(r"<a id=\"([^\"]+)\">", target)):
            print(f"{page}: {file}#{anchor} is not there")' README.md CHANGELOG.md docs/*.md
}

# Code that README.md and docs/ name, or quote in Rust: a file that is not there, a block that no source file has as it is.
outdated_quotes() {
    local page path sources
    sources=$(files '\.rs$')
    for page in README.md docs/*.md; do
        grep -oE '`[a-z_0-9/]+\.rs`' "$page" | tr -d '`' | sort -u | while read -r path; do
            grep -qE "(^|/)$path\$" <<<"$sources" || echo "$page: $path is not there"
        done
        python3 -c '
import re, sys
page, sources = sys.argv[1], [open(path).read() for path in sys.stdin.read().split()]
for block in re.findall(r"^```rust\n(.*?)^```$", open(page).read(), re.M | re.S):
    if not any(block in source for source in sources):
        print(page + ": no source file has: " + block.splitlines()[0])' "$page" <<<"$sources"
    done
}

# Lines of the tables of docs/security.md whose last column names no test, or one that is not there: a function that is a test, or a file.
untested_promises() {
    local names
    names=$(files '\.rs$' | xargs -r grep -hA3 '^ *#\[test\]' | sed -nE 's/^ *fn ([a-z_0-9]+)\(.*/\1/p' | sort -u)
    grep -E '^\|' docs/security.md | grep -vE '^\| threat \||^\|[-|]+\|$' | while read -r line; do
        test=$(sed -nE 's/.*\| `([^`|]+)` \|$/\1/p' <<<"$line")
        [ -n "$test" ] && { [ -f "$test" ] || grep -qx "$test" <<<"$names"; } ||
            echo "docs/security.md: no test for: $line"
    done
}

# The version stands in Cargo.toml, the control file and the change log.
same_version() {
    local control
    control=$(sed -nE "s/^default_version *= *'([^']+)'.*/\1/p" pg_steadytext.control)
    grep -qx "version = \"$control\"" Cargo.toml || { echo "Cargo.toml does not say $control"; return 1; }
    grep -qE "^## \[($control|Unreleased)\]" CHANGELOG.md || { echo "CHANGELOG.md does not know $control"; return 1; }
}

check 'rustfmt has nothing to change' "$cargo" fmt --all --check -- --color never
check 'clippy is content' "$cargo" clippy --release --quiet --workspace --all-targets \
    --features "pg$major" -- -D warnings
check 'clippy is content with the no-op engine and without the exchange of cache files' "$cargo" clippy --release --quiet \
    -p pg_steadytext --no-default-features --features "pg$major,noop-engine" -- -D warnings
advise 'long files may have more than one subject' longer_than 500 '\.(rs|sh)$'
advise 'long fragments may have more than one subject' longer_than 400 '^sql/.*\.sql$'
none 'unsafe only in src/pg and in the kernels, the mapping and the allocator of the engine' stray_unsafe
none 'libraries print nothing' stray_prints
none 'modules use those only that their order grants them' python3 scripts/module_order.py
none 'all parts of shared memory are listed' unlisted_parts
none 'SQL of the worker stands in its protocol' stray_worker_sql
none 'no paths of one machine' machine_paths
none 'the server opens no connections but those to the hub' stray_connections
none 'the library has no HTTP client besides that of downloads' http_client_in_library
none 'the engine does not depend on pgrx' pgrx_in steadytext-engine
none 'the exchange of cache files depends on nothing of PostgreSQL' pgrx_in steadytext-exchange
none 'SQL fragments have an order' misnamed_fragments
none 'names in scripts are looked up in pg_catalog only' open_scripts
none 'twins are made, not written' written_twins
none 'text files end with a line feed' unfinished_files
none 'comments are no wider than the code' wide_comments
none 'links in the documentation lead somewhere' broken_links
none 'links to a place within a page find it' broken_anchors
none 'the documentation names and quotes code that is there' outdated_quotes
none 'each line of the threat model has its test' untested_promises
check 'one version everywhere' same_version

echo "1..$number"
exit $((failures > 0))
