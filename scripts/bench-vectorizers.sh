#!/usr/bin/env bash
# What a vectorizer costs, in a throwaway server with the installed extension and the builtin model: how fast it embeds the rows of a
# table, beside requests of the queue with the same texts, and what its triggers cost those who write.
#
#     scripts/bench-vectorizers.sh [ROWS]      20000 rows by default

set -euo pipefail
cd "$(dirname "$0")/.."

rows=${1:-20000}
if [ "${1:-}" != inside ]; then
    exec scripts/with-cluster.sh -c fsync=on -c pg_steadytext.embedding_model=builtin -- bash "$0" inside "$rows"
fi
rows=$2
PATH=$PATH:$("${PG_CONFIG:-pg_config}" --bindir)
run() { psql -X -q -A -t -v ON_ERROR_STOP=1 "$@"; }

run -c "create extension pg_steadytext cascade" >/dev/null 2>&1
run >/dev/null <<'SQL'
create table texts (id bigint generated always as identity primary key, body text);
create table plain (id bigint generated always as identity primary key, body text);
create table noted (id bigint generated always as identity primary key, body text);
select steadytext_embed('loads the model');
create procedure finish() language plpgsql as $$
begin
    loop
        exit when not exists (select from steadytext_queue where status in ('pending', 'processing'))
            and not exists (select from steadytext_vectorizer_work) and not exists (select from steadytext_vectorizer_batches)
            and (select count(*) from steadytext_vectorizer_state where scan is null and is_indexed)
                = (select count(*) from steadytext_vectorizers where not is_paused);
        commit;
        perform pg_sleep(0.02);
    end loop;
end
$$;
SQL
run -c "insert into texts (body) select 'VACUUM reclaims storage, number ' || i from generate_series(1, $rows) as i" -c "analyze texts"

# timed SQL: seconds until all of it is done.
timed() {
    local begun
    begun=$(date +%s.%N)
    run -c "$1" -c "call finish()" >/dev/null
    echo "$(date +%s.%N) $begun" | awk '{ print $1 - $2 }'
}
queue=$(timed "insert into steadytext_queue (request_type, prompts, params)
    select 'batch_embed', array_agg(body), '{\"use_cache\": false}' from texts group by id / 250")
vectorizer=$(timed "select steadytext_create_vectorizer('texts', array['body'], index => 'none')")
echo "$rows $queue $vectorizer" | awk '{ printf "rows/s: requests %.0f, vectorizer %.0f (%.0f %%)\n", $1 / $2, $1 / $3, 100 * $2 / $3 }'

run -c "select steadytext_create_vectorizer('noted', array['body'])" -c "select steadytext_pause_vectorizer('noted_body')" >/dev/null
# rate TABLE: transactions a second that insert one row each.
rate() {
    pgbench -n -M prepared -c 4 -j 1 -T 5 -f <(echo "insert into $1 (body) values ('VACUUM reclaims the storage of dead rows');") 2>/dev/null |
        awk '/^tps/ { print $3 }'
}
without=0 with=0
for _ in 1 2 3 4; do
    without=$(echo "$without $(rate plain)" | awk '{ print $1 + $2 }')
    with=$(echo "$with $(rate noted)" | awk '{ print $1 + $2 }')
done
echo "$without $with" | awk '{ printf "transactions/s: without triggers %.0f, with them %.0f (%.0f %%)\n", $1 / 4, $2 / 4, 100 * $2 / $1 }'
