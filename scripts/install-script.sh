#!/usr/bin/env bash
# Prints the script that CREATE EXTENSION runs: the fragments of sql/ in the order of their names.

set -euo pipefail
cd "$(dirname "$0")/.."

for fragment in sql/*.sql; do
    printf '\n-- %s\n\n' "$fragment"
    cat "$fragment"
done
