#!/usr/bin/env bash
# Runs the pgTAP tests of test/pgtap (or the files named) in a throwaway server.

set -euo pipefail
cd "$(dirname "$0")/.."

[ $# -gt 0 ] || set -- test/pgtap/*.sql
exec scripts/with-cluster.sh -- pg_prove --verbose --failures --comments "$@"
