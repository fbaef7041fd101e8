#!/usr/bin/env bash
# Installs what building, testing and trying pg_steadytext needs, and nothing that is there already.
#
# Needs a Debian-like system, Rust, and root or sudo. Everything comes from the platform's own package
# sources, but pgvector where the platform has no package of it (Debian 12, Ubuntu 22.04): then from the source
# package of Debian 13 or Ubuntu 24.04, verified by apt, built in a temporary directory. The system's list of sources stays as it is.
# PG_CONFIG chooses a server; without it: the one that pg_config on the PATH belongs to, otherwise an
# installed one, otherwise the platform's default version.

set -euo pipefail

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# as_root COMMAND…: runs it as root, by sudo where we are not.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif have sudo; then
        sudo "$@"
    else
        die "needs root for: $* (be root, or install sudo)"
    fi
}

# apt ARGUMENT…: quiet, unless it fails.
apt() {
    local log
    log=$(mktemp)
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@" >"$log" 2>&1 ||
        { tail -n 40 "$log" >&2; rm -f "$log"; die "apt-get $1 failed"; }
    rm -f "$log"
}

# The Makefile's default means the same as none.
[ "${PG_CONFIG:-}" != pg_config ] || unset PG_CONFIG
pg_config=${PG_CONFIG:-pg_config}

# The major version of the server that is meant; empty when none is installed. pg_config alone does not
# prove a server: Debian's libpq-dev brings one too.
installed_major() {
    local postgres
    if have "$pg_config" && [ -x "$("$pg_config" --bindir)/postgres" ]; then
        "$pg_config" --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/'
    else
        for postgres in /usr/lib/postgresql/*/bin/postgres; do
            if [ -x "$postgres" ]; then basename "${postgres%/bin/postgres}"; fi
        done | sort -n | tail -n 1
    fi
}

# pg_option OPTION: what the chosen server's pg_config says; empty when it cannot say.
pg_option() {
    if [ -n "${PG_CONFIG:-}" ]; then
        "$pg_config" "$1" 2>/dev/null
    elif [ -x "/usr/lib/postgresql/$major/bin/pg_config" ]; then
        "/usr/lib/postgresql/$major/bin/pg_config" "$1"
    elif have pg_config; then
        pg_config "$1" 2>/dev/null
    fi || true
}

have_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] || compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null ||
        compgen -G '/usr/lib/*/libclang*.so*' >/dev/null
}

have_extension() { [ -f "$(pg_option --sharedir)/extension/$1.control" ]; }

# Fills the array `packages` with what is missing for server version $major.
list_missing() {
    packages=()
    have cc && have make || packages+=(build-essential)
    have clang || packages+=(clang)
    have_libclang || packages+=(libclang-dev)
    [ -x "$(pg_option --bindir)/initdb" ] || packages+=("postgresql-$major")
    [ -f "$(pg_option --includedir-server)/postgres.h" ] && [ -f "$(pg_option --pgxs)" ] ||
        packages+=("postgresql-server-dev-$major")
    have_extension pgtap || packages+=("postgresql-$major-pgtap")
    # Cache files are exchanged with Python programs.
    have python3 || packages+=(python3)
    have pg_prove || packages+=(libtap-parser-sourcehandler-pgtap-perl)
    # For the model that the tests load.
    python3 -m pip --version >/dev/null 2>&1 || packages+=(python3-pip)
}

# install_packages PACKAGE…: without the cluster that Debian's server package creates and starts by itself.
# The switch is a file of postgresql-common, which is put back; existing clusters are not touched.
install_packages() {
    local package server='' conf=/etc/postgresql-common/createcluster.conf kept
    for package in "$@"; do
        case $package in postgresql-[0-9][0-9]) server=$package ;; esac
    done
    say "installing $*"
    if [ -z "$server" ]; then
        apt install -y --no-install-recommends "$@"
        return
    fi
    apt install -y --no-install-recommends postgresql-common
    kept=$(mktemp)
    cp "$conf" "$kept"
    # Expanded now: the function's variables are gone when the trap runs.
    # shellcheck disable=SC2064
    trap "as_root cp '$kept' '$conf'; rm -f '$kept'" EXIT
    printf '\ncreate_main_cluster = false\n' | as_root tee -a "$conf" >/dev/null
    apt install -y --no-install-recommends "$@"
    as_root cp "$kept" "$conf"
    rm -f "$kept"
    trap - EXIT
}

# The mirror that this system takes Debian, or Ubuntu, from, so that a local one is used here too.
mirror_of() {
    local mirror
    # shellcheck disable=SC2016
    mirror=$(apt-get indextargets --format '$(REPO_URI)' "Origin: $1" "Label: $1" 2>/dev/null |
        sort -u | sed -n 1p)
    printf '%s\n' "${mirror:-$2}"
}

# Builds pgvector from the source package of a later release: of Ubuntu on Ubuntu, and of Debian otherwise, or where Ubuntu's
# cannot be had and Debian's keys are there.
build_pgvector() {
    local ubuntu debian=/usr/share/keyrings/debian-archive-keyring.gpg tools=()
    have dpkg-source || tools+=(dpkg-dev)
    if grep -qs '^ID=ubuntu' /etc/os-release; then
        ubuntu=/usr/share/keyrings/ubuntu-archive-keyring.gpg
        [ -f "$ubuntu" ] || tools+=(ubuntu-keyring)
    else
        [ -f "$debian" ] || tools+=(debian-archive-keyring)
    fi
    [ ${#tools[@]} = 0 ] || apt install -y --no-install-recommends "${tools[@]}"

    say "building pgvector for PostgreSQL $major from the source package of a later release"
    if [ -n "${ubuntu:-}" ] &&
        build_pgvector_of "$ubuntu" "$(mirror_of Ubuntu http://archive.ubuntu.com/ubuntu) noble universe"; then
        return
    fi
    if [ -f "$debian" ] && build_pgvector_of "$debian" "$(mirror_of Debian http://deb.debian.org/debian) trixie main"; then
        return
    fi
    die "could not build pgvector"
}

# build_pgvector_of KEYRING SOURCE: apt works on directories of its own here, so that the system's sources and lists stay as
# they are, and still checks signature and checksums. Says what was wrong, and fails.
build_pgvector_of() {
    local work status=0
    work=$(mktemp -d) || return 1
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/source"
    printf 'deb-src [signed-by=%s] %s\n' "$1" "$2" >"$work/sources.list"
    # A subshell of its own: what fails ends it, which `if` would prevent.
    work=$work major=$major pg_config_program="$(pg_option --bindir)/pg_config" bash -c '
        set -euo pipefail
        cd "$work/source"
        options=(-qq -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=/dev/null
            -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User="$(id -un)")
        apt-get "${options[@]}" update
        apt-get "${options[@]}" source pgvector
        cd pgvector-*/
        # OPTFLAGS: not for this machine only, as in the packages of Debian.
        make -s -j"$(nproc)" OPTFLAGS="" PG_CONFIG="$pg_config_program"
    ' >"$work/log" 2>&1 &&
        as_root make -s -C "$work/source/"pgvector-*/ OPTFLAGS="" PG_CONFIG="$(pg_option --bindir)/pg_config" install >>"$work/log" 2>&1 ||
        { status=1; tail -n 20 "$work/log" >&2; }
    rm -rf "$work"
    return $status
}

have cargo || die "Rust is missing: install it from your platform or with https://rustup.rs, then try again"
[ -z "${PG_CONFIG:-}" ] || have "$PG_CONFIG" || die "PG_CONFIG=$PG_CONFIG is not a program"

major=$(installed_major)
updated=no
if [ -z "$major" ]; then
    have apt-get || die "no PostgreSQL server found, and no apt-get to install one: set PG_CONFIG"
    apt update
    updated=yes
    major=$(apt-cache depends postgresql | sed -nE 's/^ *Depends: postgresql-([0-9]+)$/\1/p' | sed -n 1p)
    [ -n "$major" ] || die "the platform offers no package postgresql"
fi

list_missing
if [ ${#packages[@]} != 0 ]; then
    have apt-get || die "missing, and no apt-get to install it: ${packages[*]}"
    [ $updated = yes ] || apt update
    updated=yes
    install_packages "${packages[@]}"
    list_missing
    [ ${#packages[@]} = 0 ] || die "still missing after installation (does PG_CONFIG belong to a server that \
is not the platform's?): ${packages[*]}"
fi

if ! have_extension vector; then
    have apt-get || die "pgvector is missing: install it for PostgreSQL $major (https://github.com/pgvector/pgvector)"
    [ $updated = yes ] || apt update
    if apt-cache show "postgresql-$major-pgvector" >/dev/null 2>&1; then
        install_packages "postgresql-$major-pgvector"
    else
        build_pgvector
    fi
    have_extension vector || die "pgvector is still missing in $(pg_option --sharedir)/extension"
fi

# Tested where the platform has it; the extension does without.
if ! have_extension pg_cron && have apt-get &&
    apt-cache show "postgresql-$major-cron" >/dev/null 2>&1; then
    install_packages "postgresql-$major-cron"
fi

say "all there: PostgreSQL $major, pgvector, pgTAP, $(cargo --version)"
