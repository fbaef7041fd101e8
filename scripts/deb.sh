#!/usr/bin/env bash
# Makes dist/postgresql-NN-pg-steadytext_VERSION_ARCH.deb for the server of PG_CONFIG from what `make build` has built:
# the library, SQL, steadytext-engine beside the server's programs, and the documentation. The package builds nothing
# and starts nothing where it is installed.

set -euo pipefail
cd "$(dirname "$0")/.."

die() { printf 'deb: %s\n' "$*" >&2; exit 1; }

command -v dpkg-shlibdeps >/dev/null 2>&1 || {
    as_root=()
    if [ "$(id -u)" != 0 ]; then as_root=(sudo); fi
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" apt-get install -y -qq --no-install-recommends dpkg-dev >/dev/null
}
pg_config=${PG_CONFIG:-pg_config}
major=$("$pg_config" --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/')
version=$(sed -nE "s/^default_version *= *'([^']+)'.*/\1/p" pg_steadytext.control)
architecture=$(dpkg --print-architecture)
package=postgresql-$major-pg-steadytext
engine=target/release/steadytext-engine
[ -x "$engine" ] || die "$engine is missing: run make deb"

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
chmod 755 "$stage"
root=$stage/root
documents=$root/usr/share/doc/$package
mkdir -p "$root/DEBIAN" "$documents"
DESTDIR=$root scripts/install.sh >/dev/null
strip --strip-unneeded "$root$("$pg_config" --pkglibdir)/pg_steadytext.so" "$root$("$pg_config" --bindir)/steadytext-engine"
install -m 644 README.md "$documents"
install -D -m 644 -t "$documents/docs" docs/*.md
gzip -9n <CHANGELOG.md >"$documents/changelog.gz"
{
    printf 'Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\n'
    sed -nE 's/^Copyright \(c\) (.*)/Copyright: \1/p' LICENSE
    printf 'License: PostgreSQL\n'
    sed -E 's/^$/./; s/^/ /' LICENSE
} >"$documents/copyright"
cat >"$documents/README.Debian" <<END
The worker starts with the server. Add to postgresql.conf and restart the server:

    shared_preload_libraries = 'pg_steadytext'

Then, in a database: CREATE EXTENSION pg_steadytext CASCADE;
END

# The libraries that the programs are linked to. dpkg-shlibdeps wants a source package around it.
mkdir -p "$stage/debian"
printf 'Source: pg-steadytext\n\nPackage: %s\nArchitecture: any\n' "$package" >"$stage/debian/control"
libraries=$(cd "$stage" && dpkg-shlibdeps -O "root$("$pg_config" --pkglibdir)/pg_steadytext.so" \
    "root$("$pg_config" --bindir)/steadytext-engine" 2>/dev/null | sed -n 's/^shlibs:Depends=//p')
[ -n "$libraries" ] || die "dpkg-shlibdeps named no library"
cat >"$root/DEBIAN/control" <<END
Package: $package
Version: $version-1
Architecture: $architecture
Maintainer: the pg_steadytext contributors <pg-steadytext@localhost>
Section: database
Priority: optional
Installed-Size: $(du -k -s "$root" | cut -f1)
Depends: postgresql-$major, postgresql-$major-pgvector, $libraries
Description: language models inside PostgreSQL $major
 Text generation, embeddings, reranking and classification as SQL functions,
 by GGUF models that a background worker of the server runs. Requests wait
 in a queue; the same request gives the same bytes.
END

mkdir -p dist
dpkg-deb --root-owner-group -Zxz --build "$root" "dist/${package}_$version-1_$architecture.deb"
