#!/usr/bin/env bash
# Keeps the install script of the version in pg_steadytext.control as it is released: migrations/README.md.

set -euo pipefail
cd "$(dirname "$0")/.."

version=$(sed -nE "s/^default_version *= *'([^']+)'.*/\1/p" pg_steadytext.control)
frozen=migrations/released/pg_steadytext--$version.sql
script=$(mktemp)
trap 'rm -f "$script"' EXIT
scripts/install-script.sh >"$script"
if [ -e "$frozen" ]; then
    cmp "$script" "$frozen" || { echo "freeze: $version is released: raise the version, and write a migration" >&2; exit 1; }
    exit
fi
install -D -m 644 "$script" "$frozen"
echo "freeze: wrote $frozen"
