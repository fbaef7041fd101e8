#!/usr/bin/env bash
# Runs a command against a throwaway PostgreSQL server, then removes every trace of it.
#
#     scripts/with-cluster.sh [-c name=value]… -- COMMAND [ARGUMENT…]
#
# The server has pg_steadytext preloaded, listens on a Unix socket in a private directory only, and takes
# extra settings from -c. COMMAND finds it through PGHOST, PGPORT, PGUSER and PGDATABASE, and the server's
# programs on the PATH. The exit status is COMMAND's; when that is not 0, the end of the server's log follows
# on standard error. PostgreSQL refuses root: when root, the server runs as the system user postgres.
# Invariant: two runs share nothing, neither directory nor socket nor port.

set -euo pipefail

die() { printf 'with-cluster: %s\n' "$*" >&2; exit 1; }

settings=()
while [ $# -gt 0 ]; do
    case $1 in
        -c) settings+=("$2"); shift 2 ;;
        --) shift; break ;;
        *) die "unknown option $1" ;;
    esac
done
[ $# -gt 0 ] || die "no command given"

pg_config=${PG_CONFIG:-pg_config}
bindir=$("$pg_config" --bindir)
[ -x "$bindir/initdb" ] || die "no server programs in $bindir: run make setup"

as_server=()
if [ "$(id -u)" = 0 ]; then
    id postgres >/dev/null 2>&1 || die "no system user postgres to run the server as"
    as_server=(setpriv --reuid=postgres --regid=postgres --init-groups --inh-caps=-all --)
fi

# Not under TMPDIR: a socket's path must fit into 107 bytes.
home=$(mktemp -d /tmp/pg_steadytext.XXXXXX)

# Removes first and tells later: whoever reads our output may have gone, and a second signal may come.
clean() {
    local status=$? log=''
    set +e
    trap '' HUP INT TERM PIPE
    trap - EXIT
    if [ -f "$home/data/postmaster.pid" ]; then
        "${as_server[@]}" "$bindir/pg_ctl" stop -D "$home/data" -m immediate -w -s >/dev/null 2>&1
    fi
    if [ $status != 0 ] && [ -s "$home/log" ]; then log=$(tail -n "${LOG_LINES:-60}" "$home/log"); fi
    rm -rf "$home"
    if [ -n "$log" ]; then printf '\n-- the last lines of the server log:\n%s\n' "$log" >&2; fi
    exit $status
}
trap clean EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

if [ ${#as_server[@]} != 0 ]; then chown postgres "$home"; fi
cd "$home"
"${as_server[@]}" "$bindir/initdb" -D "$home/data" -U postgres -A trust -E UTF8 --locale=C.UTF-8 \
    --no-sync >"$home/initdb.log" 2>&1 || { cat "$home/initdb.log" >&2; die "initdb failed"; }

{
    printf "%s = '%s'\n" shared_preload_libraries pg_steadytext listen_addresses '' \
        unix_socket_directories "$home" log_line_prefix '%m [%p] %b: ' cluster_name throwaway
    # A throwaway cluster need not survive a power cut.
    printf '%s = off\n' fsync full_page_writes
    for setting in "${settings[@]}"; do
        printf "%s = '%s'\n" "${setting%%=*}" "${setting#*=}"
    done
} >>"$home/data/postgresql.conf"

"${as_server[@]}" "$bindir/pg_ctl" start -D "$home/data" -l "$home/log" -w -s -t 60 ||
    die "the server did not start"

cd "$OLDPWD"
export PGHOST=$home PGPORT=5432 PGUSER=postgres PGDATABASE=postgres PATH=$bindir:$PATH
unset PGSERVICE PGPASSWORD PGOPTIONS PGCLIENTENCODING
"$@"
