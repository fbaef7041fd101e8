#!/usr/bin/env bash
# Measures workers elsewhere on this machine, over TCP on loopback, with an engine that answers at once (feature noop-engine, built apart from the
# real one): how many requests some workers end in a second, and how soon an idle one begins.
#
#     scripts/bench-workers.sh [REQUESTS]
#
# Prints name, value and unit, separated by tabs, and writes the same to bench/out/workers.tsv. WORKER names a program that was built
# already, WORKERS the numbers of workers that are measured ("1 2 4 8").

set -euo pipefail
cd "$(dirname "$0")/.."

requests=${1:-20000}
if [ -z "${WORKER:-}" ]; then
    "${CARGO:-cargo}" build --release -p steadytext-worker --features noop-engine --target-dir target/noop
    WORKER=target/noop/release/steadytext-worker
fi
WORKER=$(realpath "$WORKER")
mkdir -p bench/out

measure() {
    local running=()
    sql() { psql -XqAt -v ON_ERROR_STOP=1 "$@"; }
    # shellcheck disable=SC2329 # the trap below calls it
    stop() {
        for process in "${running[@]}"; do kill "$process"; done
        wait "${running[@]}" || true
        running=()
    }
    trap stop EXIT
    start() {
        local url="postgresql://remote@127.0.0.1:$PGPORT/$PGDATABASE" already=$1
        for _ in $(seq "$already"); do
            "$WORKER" --database-url "$url" --concurrency 500 --threads 1 --poll-interval 60 --model-dir / 2>/dev/null &
            running+=($!)
        done
        until [ "$(sql -c "select count(*) from pg_stat_activity where usename = 'remote'")" = $((2 * already)) ]; do :; done
    }
    wait_for_all() {
        until [ "$(sql -c "select exists (select from steadytext_queue where status in ('pending', 'processing'))")" = f ]; do sleep 0.02; done
    }
    sql -c 'create extension pg_steadytext cascade' -c 'create role remote login in role steadytext_worker' \
        -c 'select steadytext_daemon_stop()' >/dev/null
    # The server's own worker must not take them.
    until [ "$(sql -c 'select state from steadytext.worker_state()')" = paused ]; do :; done
    for workers in $WORKERS; do
        start "$workers"
        sql -c "insert into steadytext_queue (request_type, prompt, params)
                select 'generate', 'question ' || n, '{\"use_cache\": false}' from generate_series(1, $REQUESTS) as n"
        wait_for_all
        sql -F $'\t' -c "select 'workers_${workers}_per_s', round(count(*) / extract(epoch from max(completed_at) - min(started_at))), 'requests/s'
                from steadytext_queue where status = 'completed' and not starts_with(worker, 'local:') and attempt = 1"
        stop
        sql -c 'truncate steadytext_queue'
    done
    start 1
    for _ in $(seq 200); do
        sql -c "insert into steadytext_queue (request_type, prompt, params) values ('generate', 'wake', '{\"use_cache\": false}')"
        wait_for_all
    done
    sql -F $'\t' -c "select 'workers_' || n.name, round((1000 * percentile_cont(n.share) within group (order by extract(epoch from q.started_at - q.created_at)))::numeric, 2), 'ms'
        from steadytext_queue as q cross join (values ('wake_p50', 0.5), ('wake_p99', 0.99)) as n(name, share)
        group by n.name, n.share order by n.share"
    stop
}
export -f measure
port=$(shuf -i 20000-30000 -n 1)
export WORKER REQUESTS=$requests WORKERS=${WORKERS:-1 2 4 8}

scripts/with-cluster.sh -c listen_addresses=127.0.0.1 -c "port=$port" -c pg_steadytext.notify=on -- env PGPORT="$port" bash -c 'set -euo pipefail; measure' | tee bench/out/workers.tsv
