#!/usr/bin/env bash
# Replays a mixed set of requests under everything that must not matter, REPLAYS times (1,000), and prints counts
# as `name<TAB>value`. Fails, and shows all that was said, if a byte differs.

set -euo pipefail
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
export REPLAYS=${REPLAYS:-1000}
log=$(mktemp)
trap 'rm -f "$log"' EXIT

if ! "$cargo" test --release --quiet -p steadytext-engine --test engine -- replays:: --nocapture >"$log" 2>&1; then
    cat "$log"
    exit 1
fi
grep $'\t' "$log"
