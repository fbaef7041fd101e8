#!/usr/bin/env bash
# The demonstration: one throwaway server, requests of every kind on the builtin model, one table.
# Fails unless every request completed.

set -euo pipefail
cd "$(dirname "$0")/.."
exec scripts/with-cluster.sh -- psql -X -q -v ON_ERROR_STOP=1 -P pager=off -f scripts/demo.sql
