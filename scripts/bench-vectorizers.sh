#!/usr/bin/env bash
# The cost of a vectorizer, in a throwaway server with the installed extension and the builtin model: how fast it embeds the rows of a table, beside
# steadytext_embed_batch() and requests of the queue with the same texts, and how much its triggers slow down writes, of many rows with one
# statement or one row each.
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
create table plain (id bigint generated always as identity primary key, body text, at timestamptz default now());
create table noted (id bigint generated always as identity primary key, body text, at timestamptz default now());
create index on plain (at, id);
create index on noted (at, id);
select steadytext_embed('loads the model');
create procedure finish() language plpgsql as $$
begin
    loop
        exit when not exists (select from steadytext_queue where status in ('pending', 'processing'))
            and not exists (select from steadytext_vectorizer_work) and not exists (select from steadytext_vectorizer_batches)
            and (select count(*) from steadytext_vectorizer_state where scan is null and is_indexed)
                = (select count(*) from steadytext_vectorizers where not is_paused);
        commit;
        perform pg_sleep(0.1);
    end loop;
end
$$;
SQL
run -c "insert into texts (body) select 'VACUUM reclaims storage, number ' || i from generate_series(1, $rows) as i" -c "analyze texts"

# spent: seconds of processors that the server has taken up to now, those of processes that have ended included.
postmaster=$(run -c "select split_part(pg_read_file('postmaster.pid'), E'\n', 1)")
spent() {
    cat "/proc/$postmaster/stat" $(pgrep -P "$postmaster" | sed 's|.*|/proc/&/stat|') 2>/dev/null |
        sed 's/.*) //' | awk -v postmaster="$postmaster" -v hertz="$(getconf CLK_TCK)" '
            { sum += $12 + $13 } NR == 1 { sum += $14 + $15 } END { print sum / hertz }'
}
# timed SQL: seconds until all of it is done, and seconds of processors that it took.
timed() {
    local begun before
    begun=$(date +%s.%N)
    before=$(spent)
    run -c "$1" -c "call finish()" >/dev/null
    echo "$(date +%s.%N) $begun $(spent) $before" | awk '{ print $1 - $2, $3 - $4 }'
}
sync=$(timed "do \$\$ begin for i in 0 .. ($rows - 1) / 1000 loop
    perform steadytext_embed_batch(array_agg(body), use_cache => false) from texts where id > i * 1000 and id <= (i + 1) * 1000; commit; end loop; end \$\$")
queue=$(timed "insert into steadytext_queue (request_type, prompts, params)
    select 'batch_embed', array_agg(body), '{\"use_cache\": false}' from texts group by id / 250")
vectorizer=$(timed "select steadytext_create_vectorizer('texts', array['body'], index => 'none')")
echo "$rows $queue $vectorizer $sync" | awk '{ printf "rows/s: steadytext_embed_batch %.0f, requests %.0f, vectorizer %.0f (%.0f %% of steadytext_embed_batch, %.0f %% of requests)\n",
    $1 / $6, $1 / $2, $1 / $4, 100 * $6 / $4, 100 * $2 / $4
    printf "ms of processors for each row: steadytext_embed_batch %.2f, requests %.2f, vectorizer %.2f (%.0f %% of steadytext_embed_batch\047s rows for the same work)\n",
    1000 * $7 / $1, 1000 * $3 / $1, 1000 * $5 / $1, 100 * $7 / $5 }'

run -c "select steadytext_create_vectorizer('noted', array['body'])" -c "select steadytext_pause_vectorizer('noted_body')" >/dev/null
# load TABLE: seconds that one statement takes for 100,000 rows of 200 bytes.
load() {
    local begun
    begun=$(date +%s.%N)
    run -c "insert into $1 (body) select repeat('VACUUM reclaims storage. ', 8) || i from generate_series(1, 100000) as i"
    echo "$(date +%s.%N) $begun" | awk '{ print $1 - $2 }'
}
load plain >/dev/null
load noted >/dev/null
without=0 with=0
for _ in 1 2 3 4 5 6; do
    without=$(echo "$without $(load plain)" | awk '{ print $1 + $2 }')
    with=$(echo "$with $(load noted)" | awk '{ print $1 + $2 }')
    run -c checkpoint
done
echo "$without $with" | awk '{ printf "rows/s of 100,000 by one statement: without triggers %.0f, with them %.0f (%.0f %%)\n", 6e5 / $1, 6e5 / $2, 100 * $1 / $2 }'

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
