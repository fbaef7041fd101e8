#!/usr/bin/env bash
# Installs the package of `make deb` into a new Debian, uses it there, and removes it again.
#
#     scripts/test-deb.sh FILE RELEASE      the release that has the package's PostgreSQL: trixie for 17
#
# It shows that apt finds everything that the package needs; that the server answers a request and its
# steadytext-engine runs; and that nothing of it is left after removal.

set -euo pipefail
cd "$(dirname "$0")/.."

[ $# = 2 ] && [ -f "$1" ] || { echo "usage: scripts/test-deb.sh FILE RELEASE" >&2; exit 2; }
STEADYTEXT_DEBIAN_DIR=$(mktemp -d /var/tmp/pg_steadytext.deb.XXXXXX)
export STEADYTEXT_DEBIAN_DIR
trap 'rm -rf "$STEADYTEXT_DEBIAN_DIR"' EXIT

# shellcheck disable=SC2016 # expanded by the shell inside
scripts/in-debian.sh "$2" bash -c '
set -euo pipefail
file=$1
package=$(dpkg-deb --field "$file" Package)
major=${package//[^0-9]/}
files() { find / -xdev \( -path "/var/lib/dpkg" -o -path "/var/cache" -o -path "/var/log" -o -path "/tmp" -o -path "/var/tmp" \) -prune -o -print | sort; }
apt-get update -qq
apt-get install -y -qq --no-install-recommends "postgresql-$major" "postgresql-$major-pgvector" >/dev/null
files >/tmp/before
apt-get install -y -qq --no-install-recommends "$file" >/dev/null
bin=/usr/lib/postgresql/$major/bin
data=$(mktemp -d /tmp/data.XXXXXX)
chown postgres "$data"
as_postgres() { setpriv --reuid=postgres --regid=postgres --init-groups -- "$@"; }
as_postgres "$bin/initdb" --encoding=UTF8 --auth=trust --pgdata="$data/db" >/dev/null
as_postgres "$bin/pg_ctl" -D "$data/db" -l "$data/log" -w -o "-c listen_addresses= -c unix_socket_directories=/tmp -c shared_preload_libraries=pg_steadytext" start >/dev/null
answer=$(as_postgres "$bin/psql" -h /tmp -XqAt -v ON_ERROR_STOP=1 postgres <scripts/test-deb.sql) || { cat "$data/log" >&2; exit 1; }
as_postgres "$bin/pg_ctl" -D "$data/db" -w -m fast stop >/dev/null
rm -rf "$data"
[ "$answer" = t ] || { echo "the server answered: $answer" >&2; exit 1; }
"$bin/steadytext-engine" --version
apt-get purge -y -qq "$package" >/dev/null
files >/tmp/after
diff /tmp/before /tmp/after || { echo "removal left files behind" >&2; exit 1; }
echo "$package: installed, used and removed"
' test-deb "$PWD/$1"
