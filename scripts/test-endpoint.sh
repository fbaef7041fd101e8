#!/usr/bin/env bash
# Prints TAP: a worker elsewhere that has llama-cpp-python's server answer with SmolLM2, over OpenAI's protocol on loopback.
#
#     scripts/test-endpoint.sh
#
# Wants the extension installed and target/release/steadytext-worker built. PEER_PYTHON names a Python that has llama_cpp with the
# packages of its server; without it a virtual environment is made in target/endpoint-venv, for which llama.cpp is compiled: that
# takes many minutes, so it is no part of `make test`. Without the packages or the model all is skipped, and said so.

set -euo pipefail
cd "$(dirname "$0")/.."

if [ "${1:-}" != --inside ]; then
    python=${PEER_PYTHON:-target/endpoint-venv/bin/python}
    has_server() { "$python" -c 'import llama_cpp.server.app' 2>/dev/null; }
    if [ -z "${PEER_PYTHON:-}" ] && ! has_server; then
        python3 -m venv target/endpoint-venv
        "$python" -m pip install --quiet 'llama-cpp-python[server]==0.3.36' || true
    fi
    if ! has_server || ! scripts/fetch-real-models.sh smollm2; then
        echo '1..0 # SKIP the packages or the model cannot be had'
        exit 0
    fi
    WORKER=$(realpath target/release/steadytext-worker) PYTHON=$(command -v "$python")
    MODEL=$(realpath target/real-models/SmolLM2-135M-Instruct.Q4_1.gguf)
    export WORKER PYTHON MODEL
    exec scripts/with-cluster.sh -- "$PWD/scripts/test-endpoint.sh" --inside
fi

work=$(mktemp -d)
servers=()
trap '[ ${#servers[@]} = 0 ] || kill "${servers[@]}"; rm -rf "$work"' EXIT

# start NAME OPTION…: a server; port_of has its port. Its vectors are means: SmolLM2's file says nothing of them.
declare -A port_of
start() {
    local name=$1 port
    shift
    port=$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    "$PYTHON" - --model "$MODEL" --model_alias smollm2 --host 127.0.0.1 --port "$port" --n_ctx 2048 "$@" \
        >"$work/$name.log" 2>&1 <<'EOF' &
import functools, runpy, sys, llama_cpp
if "--embedding" in sys.argv:
    pooling = llama_cpp.LLAMA_POOLING_TYPE_MEAN
    llama_cpp.Llama.__init__ = functools.partialmethod(llama_cpp.Llama.__init__, pooling_type=pooling)
runpy.run_module("llama_cpp.server", run_name="__main__", alter_sys=False)
EOF
    servers+=($!)
    until "$PYTHON" -c "import urllib.request; urllib.request.urlopen('http://127.0.0.1:$port/v1/models')" 2>/dev/null; do
        if ! kill -0 "${servers[-1]}"; then
            cat "$work/$name.log" >&2
            exit 1
        fi
        sleep 0.2
    done
    port_of[$name]=$port
}
start texts
start vectors --embedding true

cat >"$work/endpoints.toml" <<EOF
[[model]]
name = "documents"
api = "chat"
base_url = "http://127.0.0.1:${port_of[texts]}/v1"
model = "smollm2"
guided = "json_object"
sampling = "llama"
concurrency = 1

[[model]]
name = "choices"
api = "chat"
base_url = "http://127.0.0.1:${port_of[texts]}/v1"
model = "smollm2"
guided = "grammar"
judgements = "choice"
sampling = "llama"
concurrency = 1

[[model]]
name = "plain"
api = "completions"
base_url = "http://127.0.0.1:${port_of[texts]}/v1"
model = "smollm2"
sampling = "llama"
concurrency = 1

[[model]]
name = "vectors"
api = "embeddings"
base_url = "http://127.0.0.1:${port_of[vectors]}/v1"
model = "smollm2"
concurrency = 1
EOF

sql() { psql -XqAt -v ON_ERROR_STOP=1 "$@"; }
sql >/dev/null <<'EOF'
create extension pg_steadytext cascade;
create role remote login in role steadytext_worker;
select steadytext_daemon_stop();
insert into steadytext_models (name, task, file, placement)
select name, case when name = 'vectors' then 'embed' else 'generate' end, name, 'elsewhere'
from unnest(array['documents', 'choices', 'plain', 'vectors']) as name;
insert into steadytext_queue (request_type, prompt, prompts, params, session_id)
select request_type, prompt, prompts, params::jsonb || jsonb_build_object('model', model), tag
from (values
    ('paris', 'generate', 'What is the capital of France?', null::text[], '{"max_tokens": 24}', 'documents'),
    ('chat', 'generate', 'And of Italy?', null, '{"max_tokens": 24, "system_prompt": "Answer in one word.", "messages":
        [{"role": "user", "content": "What is the capital of France?"}, {"role": "assistant", "content": "Paris"}]}', 'documents'),
    ('short', 'generate', 'Count to a hundred.', null, '{"max_tokens": 4, "temperature": 0.8, "top_k": 40, "seed": 7}', 'documents'),
    ('stop', 'generate', 'What is the capital of France?', null, '{"max_tokens": 24, "stop": ["a"]}', 'documents'),
    ('json', 'generate_json', 'Describe Anna, who is 30 years old.', null, '{"max_tokens": 64, "schema": {"type": "object", "properties":
        {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0, "maximum": 199}},
        "required": ["name", "age"], "additionalProperties": false}}', 'documents'),
    ('wrapped', 'generate_choice', 'Is the sky blue?', null, '{"choices": ["yes", "no"]}', 'documents'),
    ('choice', 'generate_choice', 'Is the sky blue?', null, '{"choices": ["yes \"it\" is", "no\\it is not"]}', 'choices'),
    ('classify', 'classify', 'The program crashes when I save.', null, '{"categories": ["bug report", "praise"]}', 'choices'),
    ('if', 'if', 'Is water wet?', null, '{}', 'choices'),
    ('score', 'score', 'How good is a sunny day?', null, '{}', 'choices'),
    ('plain', 'generate', 'The capital of France is', null, '{"max_tokens": 4}', 'plain'),
    ('vector', 'embed', 'A table has rows.', null, '{}', 'vectors'),
    ('vectors', 'batch_embed', null, array['one', 'two', 'A table has rows.'], '{}', 'vectors'),
    ('similar', 'similarity', null, array['A table has rows.', 'A table has rows.'], '{}', 'vectors')
) as k(tag, request_type, prompt, prompts, params, model);
EOF
"$WORKER" --database-url "host=$PGHOST port=$PGPORT user=remote dbname=$PGDATABASE" --model-dir "$work" \
    --endpoints "$work/endpoints.toml" --drain

# Each line is a condition on the request of that tag.
sql -F $'\t' <<'EOF' | awk -F '\t' -v tests=16 '
    { if ($2 == "t") print "ok " NR " - " $1; else { print "not ok " NR " - " $1 " # " $3; failed = 1 } }
    END { if (NR != tests) failed = 1; print "1.." tests; exit failed }'
with q as (select session_id as tag, * from steadytext_queue)
select t.name, coalesce(t.holds, false),
    (select translate(concat_ws(' ', q.status, q.result, q.error), E'\n\t', '  ') from q where q.tag = split_part(t.name, ':', 1))
from (values
    ('paris: a text', (select result <> '' and prompt_tokens > 5 and generated_tokens > 0 from q where tag = 'paris')),
    ('chat: a conversation', (select result <> '' and prompt_tokens > (select prompt_tokens from q where tag = 'paris') from q where tag = 'chat')),
    ('short: max_tokens', (select generated_tokens <= 4 and finish_reason = 'length' from q where tag = 'short')),
    ('stop: a stop string', (select result !~ 'a' and finish_reason = 'stop' from q where tag = 'stop')),
    ('json: a schema', (select result::jsonb ->> 'name' is not null and (result::jsonb ->> 'age')::integer < 200 from q where tag = 'json')),
    ('wrapped: choices in a document', (select result in ('yes', 'no') from q where tag = 'wrapped')),
    ('choice: choices by a grammar', (select result in ('yes "it" is', 'no\it is not') from q where tag = 'choice')),
    ('classify: a category', (select result in ('bug report', 'praise') from q where tag = 'classify')),
    ('if: yes or no', (select result in ('true', 'false') from q where tag = 'if')),
    ('score: a grade', (select result::double precision between 0 and 1 from q where tag = 'score')),
    ('plain: without a template', (select result ~ 'Paris' from q where tag = 'plain')),
    ('vector: of length 1', (select abs(vector_norm(embedding) - 1) < 1e-5 and vector_dims(embedding) = 576 from q where tag = 'vector')),
    ('vectors: in their order', (select cardinality(embeddings) = 3
        and embeddings[3] <=> (select embedding from q where tag = 'vector') < 1e-4
        and embeddings[1] <=> (select embedding from q where tag = 'vector') > 1e-3 from q where tag = 'vectors')),
    ('similar: a text and itself', (select result::double precision > 0.9999 from q where tag = 'similar')),
    ('all: say where they come from', (select count(*) = 14 and bool_and(daemon_endpoint like 'http://127.0.0.1:%/v1') from q)),
    ('none: is in the cache', (select count(*) = 0 from steadytext_cache))
) as t(name, holds);
EOF
