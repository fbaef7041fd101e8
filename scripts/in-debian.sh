#!/usr/bin/env bash
# Runs a command in this checkout on another release of Debian or Ubuntu, and so with another PostgreSQL.
#
#     scripts/in-debian.sh RELEASE COMMAND [ARGUMENT…]
#
# Debian's trixie has PostgreSQL 17 and forky 18, Ubuntu's jammy 14 and noble 16.
#
# The system is made once by debootstrap, in STEADYTEXT_DEBIAN_DIR (default /var/cache/pg_steadytext), and what the
# command installs there stays. The checkout lies there at its own path, with a target folder of its own; Rust is this
# machine's. Mounts and processes are the command's own and go with it. Needs root, or sudo. The exit status is
# the command's.

set -euo pipefail
cd "$(dirname "$0")/.."

die() { printf 'in-debian: %s\n' "$*" >&2; exit 1; }

[ $# -ge 2 ] || die "usage: scripts/in-debian.sh RELEASE COMMAND [ARGUMENT…]"
[[ $1 =~ ^[a-z]+$ ]] || die "$1 is no release of Debian or Ubuntu"
if [ "$(id -u)" != 0 ]; then
    exec sudo CARGO_HOME="${CARGO_HOME:-$HOME/.cargo}" RUSTUP_HOME="${RUSTUP_HOME:-$HOME/.rustup}" \
        CI="${CI:-}" STEADYTEXT_DEBIAN_DIR="${STEADYTEXT_DEBIAN_DIR:-}" UBUNTU_MIRROR="${UBUNTU_MIRROR:-}" "$0" "$@"
fi
release=$1
shift
cargo_home=${CARGO_HOME:-$HOME/.cargo}
rustup_home=${RUSTUP_HOME:-$HOME/.rustup}
[ -x "$cargo_home/bin/cargo" ] && [ -d "$rustup_home" ] ||
    die "no Rust in $cargo_home and $rustup_home: set CARGO_HOME and RUSTUP_HOME"
checkout=$PWD
directory=${STEADYTEXT_DEBIAN_DIR:-/var/cache/pg_steadytext}
system=$directory/$release
target=$directory/$release.target

# The keys of Ubuntu's archive. Debian 12 has no package of them, so that the file is known by its checksum.
ubuntu_keys() {
    local file=ubuntu-keyring_2021.03.26_all.deb
    command -v curl >/dev/null 2>&1 || apt-get install -y -qq --no-install-recommends curl >/dev/null
    curl -sSf -o "$directory/$file" "$ubuntu_mirror/pool/main/u/ubuntu-keyring/$file"
    echo "0d0e7ed6b112f5d03eabf3c7eb01ebdacf9c57714b279e90495cfc58c8c4520f  $directory/$file" | sha256sum --check --quiet ||
        die "$file is not what it was"
    dpkg-deb -x "$directory/$file" "$directory/ubuntu-keyring"
    rm "$directory/$file"
}

mkdir -p "$directory"
# One at a time: they share what is built.
exec 9>"$directory/$release.lock"
flock 9

if [ ! -e "$system/.complete" ]; then
    command -v debootstrap >/dev/null 2>&1 || {
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends debootstrap >/dev/null
    }
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' 'Label: Debian' 2>/dev/null | sort -u | sed -n 1p)
    rm -rf "$system"
    mkdir -p "$system"
    echo "in-debian: making $system (some minutes)" >&2
    # A release that is newer than this debootstrap is made as the latest one of its kind.
    options=()
    script=()
    [ -e "/usr/share/debootstrap/scripts/$release" ] || script=(/usr/share/debootstrap/scripts/sid)
    case $release in
        jammy | noble)
            ubuntu_mirror=${UBUNTU_MIRROR:-http://archive.ubuntu.com/ubuntu}
            mirror=$ubuntu_mirror
            ubuntu_keys
            options=(--components=main,universe --keyring="$directory/ubuntu-keyring/usr/share/keyrings/ubuntu-archive-keyring.gpg")
            # All of Ubuntu's releases are made alike.
            script=(/usr/share/debootstrap/scripts/gutsy)
            ;;
    esac
    debootstrap --variant=minbase --include=ca-certificates,make,procps,python3 "${options[@]}" \
        "$release" "$system" "${mirror:-http://deb.debian.org/debian}" "${script[@]}" >"$directory/$release.log" 2>&1 ||
        { tail -n 20 "$directory/$release.log" >&2; die "debootstrap failed"; }
    if [ -n "${ubuntu_mirror:-}" ]; then
        printf 'deb %s main universe\n' "$ubuntu_mirror $release" "$ubuntu_mirror $release-updates" >"$system/etc/apt/sources.list"
        # Source packages of Debian are taken where this mirror has none of Ubuntu.
        if [ -e /usr/share/keyrings/debian-archive-keyring.gpg ]; then
            cp /usr/share/keyrings/debian-archive-keyring.gpg "$system/usr/share/keyrings/"
        fi
    fi
    # No service starts in there.
    printf '#!/bin/sh\nexit 101\n' >"$system/usr/sbin/policy-rc.d"
    chmod 755 "$system/usr/sbin/policy-rc.d"
    # The certificates of this machine and the configuration of its pip hold there too.
    if compgen -G '/usr/local/share/ca-certificates/*.crt' >/dev/null; then
        cp /usr/local/share/ca-certificates/*.crt "$system/usr/local/share/ca-certificates/"
        chroot "$system" update-ca-certificates >/dev/null
    fi
    if [ -e /etc/pip.conf ]; then cp /etc/pip.conf "$system/etc/"; fi
    touch "$system/.complete"
fi

mkdir -p "$target" "$system$checkout" "$system$cargo_home" "$system$rustup_home"
# Files that the tests download may be there already.
for models in minilm real-models templates vocabularies; do
    if [ -e "target/$models" ] && [ ! -e "$target/$models" ]; then cp -a "target/$models" "$target/"; fi
done
mkdir -p target
# Builds of other crates on this machine serve there as well; only crates that depend on the server are built anew. The files are
# shared, but for those that cargo writes into.
if [ -d target/release/deps ] && [ ! -e "$target/release" ]; then
    mkdir "$target/release"
    cp -a target/.rustc_info.json target/CACHEDIR.TAG "$target/" 2>/dev/null || true
    cp -a target/release/.fingerprint target/release/build "$target/release/"
    cp -al target/release/deps "$target/release/" 2>/dev/null || { rm -rf "$target/release/deps"; cp -a target/release/deps "$target/release/"; }
    touch "$target/release/.cargo-lock"
fi
find "$system/tmp" -mindepth 1 -delete
cp -L /etc/resolv.conf "$system/etc/resolv.conf"
if [ -e /etc/hosts ]; then cp -L /etc/hosts "$system/etc/hosts"; fi

# shellcheck disable=SC2016 # expanded by the shell inside
exec unshare --mount --pid --fork --kill-child -- bash -c '
set -e
system=$1 checkout=$2 target=$3 cargo_home=$4 rustup_home=$5
shift 5
mount --make-rprivate /
mount -t proc proc "$system/proc"
mount --rbind /sys "$system/sys"
mount --rbind /dev "$system/dev"
for folder in "$checkout" "$cargo_home" "$rustup_home"; do mount --bind "$folder" "$system$folder"; done
mount --bind "$target" "$system$checkout/target"
exec chroot "$system" env -i HOME=/root CARGO_HOME="$cargo_home" RUSTUP_HOME="$rustup_home" CI="$CI" \
    DEBIAN_FRONTEND=noninteractive PATH="$cargo_home/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
    bash -c "cd \"\$0\" && exec \"\$@\"" "$checkout" "$@"
' in-debian "$system" "$checkout" "$target" "$cargo_home" "$rustup_home" "$@"
