#!/usr/bin/env bash
# Upgrades a database by pg_upgrade, from the PostgreSQL of PG_CONFIG to that of a later Debian, and prints TAP.
#
#     scripts/test-upgrade.sh [RELEASE]      trixie by default, which has PostgreSQL 17
#
# test/upgrade/fill.sql fills the old server; facts.sql tells what must be the same afterwards, and check.sql that the rest goes on
# where it was, and nothing is computed again. The old server's programs, with the extension as it is installed there, are copied
# beside the new ones, and run with those of their libraries that the later Debian does not have.

set -euo pipefail
cd "$(dirname "$0")/.."

die() { printf 'test-upgrade: %s\n' "$*" >&2; exit 1; }

major_of() { "$1" --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/'; }

# On this machine: collects the old server in a folder below dist, and goes on in the later Debian.
outside() {
    local pg_config=${PG_CONFIG:-pg_config} bin major root library old
    bin=$("$pg_config" --bindir)
    major=$(major_of "$pg_config")
    # Debian's folders can be moved together: a server finds its files from where its program is.
    case $bin in */usr/lib/postgresql/*/bin) ;; *) die "$bin is not where Debian has PostgreSQL" ;; esac
    root=${bin%/usr/lib/postgresql/*}
    for library in pg_steadytext vector; do
        [ -e "$("$pg_config" --pkglibdir)/$library.so" ] || die "$library is not installed for PostgreSQL $major: run make install"
    done
    mkdir -p dist
    old=$(mktemp -d dist/upgrade.XXXXXX)
    # shellcheck disable=SC2064 # expanded now: the variable is gone when the trap runs
    trap "rm -rf '$PWD/$old'" EXIT
    mkdir -p "$old/usr/lib/postgresql" "$old/usr/share/postgresql" "$old/libraries"
    cp -a "$root/usr/lib/postgresql/$major" "$old/usr/lib/postgresql/"
    rm -rf "$old/usr/lib/postgresql/$major/lib/bitcode"
    cp -a "$root/usr/share/postgresql/$major" "$old/usr/share/postgresql/"
    (
        cd "$old/usr/lib/postgresql/$major"
        ldd bin/{postgres,initdb,pg_ctl,pg_dump,pg_dumpall,psql} lib/{plpgsql,vector,pg_steadytext}.so
    ) | sed -nE 's/.* => (\/[^ ]+) .*/\1/p' | sort -u | xargs cp -L -t "$old/libraries"
    scripts/in-debian.sh "$1" bash scripts/test-upgrade.sh inside "$old" "$major"
}

as_postgres() { setpriv --reuid=postgres --regid=postgres --init-groups -- "$@"; }

# start BIN DATA, stop BIN DATA.
start() {
    as_postgres "$1/pg_ctl" -D "$2" -l "$2/log" -w -t 120 start >/dev/null || { tail -n 40 "$2/log" >&2; die "no server in $2"; }
}
stop() { as_postgres "$1/pg_ctl" -D "$2" -w -m fast stop >/dev/null; }

# make_cluster BIN DATA
make_cluster() {
    as_postgres "$1/initdb" --username=postgres --auth=trust --encoding=UTF8 --locale=C --no-sync -D "$2" >/dev/null
    as_postgres tee -a "$2/postgresql.conf" >/dev/null <<END
shared_preload_libraries = 'pg_steadytext'
listen_addresses = ''
unix_socket_directories = '$home'
fsync = off
pg_steadytext.generation_model = 'builtin'
pg_steadytext.embedding_model = 'builtin'
pg_steadytext.reranker_model = 'builtin'
END
}

# run FILE: by psql, as the superuser.
run() { as_postgres "$new_bin/psql" -X -q -h "$home" -U postgres -d postgres -f "$home/sql/$1"; }

# In the later Debian.
inside() {
    local old_root=$1 major=$2 library old_bin new_bin home
    make --no-print-directory setup >/dev/null
    PGRX_PG_CONFIG_PATH=$(command -v pg_config)
    export PGRX_PG_CONFIG_PATH
    cargo build -q --release --workspace --features "pg$(major_of pg_config)" --lib
    scripts/install.sh >/dev/null

    home=$(mktemp -d /tmp/upgrade.XXXXXX)
    cp -a "$old_root" "$home/old"
    cp -a test/upgrade "$home/sql"
    chown -R postgres "$home"
    for library in "$home"/old/libraries/*; do
        if ldconfig -p | grep -qF "$(basename "$library") "; then rm "$library"; fi
    done
    export LD_LIBRARY_PATH=$home/old/libraries
    old_bin=$home/old/usr/lib/postgresql/$major/bin
    new_bin=$(pg_config --bindir)
    cd "$home"

    make_cluster "$old_bin" "$home/data.old"
    start "$old_bin" "$home/data.old"
    run fill.sql >/dev/null || { tail -n 40 "$home/data.old/log" >&2; die "the old server could not be filled"; }
    run facts.sql >"$home/before"
    stop "$old_bin" "$home/data.old"

    make_cluster "$new_bin" "$home/data.new"
    as_postgres "$new_bin/pg_upgrade" -b "$old_bin" -B "$new_bin" -d "$home/data.old" -D "$home/data.new" -s "$home" -U postgres \
        >"$home/pg_upgrade.log" 2>&1 || { tail -n 40 "$home/pg_upgrade.log" >&2; die "pg_upgrade failed"; }

    start "$new_bin" "$home/data.new"
    run facts.sql >"$home/after"
    diff "$home/before" "$home/after" >&2 || die "what must stay has changed"
    [ "$(wc -l <"$home/before")" -gt 150 ] || die "there is little that could change"
    run check.sql >"$home/checks" || { cat "$home/checks"; tail -n 40 "$home/data.new/log" >&2; die "the new server does not work"; }
    cat "$home/checks"
    stop "$new_bin" "$home/data.new"
    if grep -E 'PANIC|terminated by signal' "$home/data.old/log" "$home/data.new/log"; then die "a server has failed"; fi
    if grep -q '^not ok' "$home/checks"; then exit 1; fi
}

case ${1:-} in
    inside) inside "$2" "$3" ;;
    *) outside "${1:-trixie}" ;;
esac
