-- Enqueues requests of every kind, waits for them and shows them; an error when one is not completed. Then the same
-- without the queue.

set client_min_messages = warning;
create extension pg_steadytext cascade;

create temporary table demo (
    position integer generated always as identity,
    kind text not null,
    input text not null,
    request_id uuid not null
);

insert into demo (kind, input, request_id)
select 'generate', prompt, steadytext_generate_async(prompt, max_tokens => 48)
from unnest(array[
    'Hello',
    'What does VACUUM do?',
    'What is the syntax of CREATE INDEX?',
    'Write a haiku about PostgreSQL',
    'work_mem'
]) as prompt;

insert into demo (kind, input, request_id)
select 'embed', input, steadytext_embed_async(input)
from unnest(array['reclaim storage of dead rows', 'a function that returns a set of rows']) as input;

insert into demo (kind, input, request_id) values
    ('generate_json', 'A table', steadytext_generate_json_async('A table',
        '{"type": "object", "properties": {"name": {"type": "string", "maxLength": 20}, "rows": {"type": "integer", "minimum": 0, "maximum": 999}},
          "required": ["name", "rows"], "additionalProperties": false}', max_tokens => 100)),
    ('generate_regex', 'A date', steadytext_generate_regex_async('A date', '\d{4}-\d{2}-\d{2}')),
    ('generate_choice', 'Does VACUUM lock a table?', steadytext_generate_choice_async('Does VACUUM lock a table?', array['yes', 'no', 'it depends']));

with
inputs as (select array['What does ANALYZE do?', 'What does REINDEX do?', 'What does CLUSTER do?'] as list)

insert into demo (kind, input, request_id)
select 'generate batch', pair.input, pair.request_id
from inputs, unnest(inputs.list, steadytext_generate_batch_async(inputs.list, max_tokens => 32)) as pair (input, request_id);

with
inputs as (select array['index', 'transaction', 'replication slot'] as list)

insert into demo (kind, input, request_id)
select 'embed batch', pair.input, pair.request_id
from inputs, unnest(inputs.list, steadytext_embed_batch_async(inputs.list)) as pair (input, request_id);

insert into demo (kind, input, request_id)
select 'rerank', query, steadytext_rerank_async(query, array[
    'CREATE INDEX constructs an index on the specified columns.',
    'VACUUM reclaims storage occupied by dead tuples.',
    'A cursor fetches a few rows at a time.'
])
from unnest(array['reclaim storage', 'make a query faster']) as query;

insert into demo (kind, input, request_id)
select 'rerank batch', pair.input, pair.request_id
from unnest(
    array['lock a table', 'copy data'],
    steadytext_rerank_batch_async(array['lock a table', 'copy data'], array['LOCK obtains a table-level lock.', 'COPY moves data.'])
) as pair (input, request_id);

-- Everything in one row, as programs of any language enqueue.
with
enqueued as (
    insert into steadytext_queue (request_type, prompts)
    values ('batch_embed', array['a sequence', 'a view', 'a trigger'])
    returning request_id, prompts
)

insert into demo (kind, input, request_id)
select 'batch_embed', array_to_string(enqueued.prompts, ', '), enqueued.request_id from enqueued;

with
enqueued as (
    insert into steadytext_queue (request_type, prompts, params)
    values ('batch_rerank', array['tables', 'roles'], '{"documents": ["CREATE ROLE adds a role.", "CREATE TABLE makes a table."]}')
    returning request_id, prompts
)

insert into demo (kind, input, request_id)
select 'batch_rerank', array_to_string(enqueued.prompts, ', '), enqueued.request_id from enqueued;

-- Each call returns within milliseconds of its request's completion; a failed request shows in the table.
do $$
declare
    request record;
begin
    for request in select request_id from demo order by position loop
        begin
            perform steadytext_get_async_result(request.request_id, 60);
        exception when others then
            null;
        end;
    end loop;
end
$$;

select
    demo.kind || ': ' || demo.input as request,
    state.status,
    state.processing_time_ms as "time ms",
    case
        when state.embedding is not null then left(state.embedding::text, 40) || '…'
        when state.embeddings is not null then
            cardinality(state.embeddings) || ' vectors: ' || left(state.embeddings[1]::text, 40) || '…'
        else left(regexp_replace(coalesce(state.result, state.error), '\s+', ' ', 'g'), 80)
    end as result
from demo, steadytext_check_async(demo.request_id) as state
order by demo.position;

-- The answer in the same statement.
select 'generate, at once: work_mem' as request,
    left(regexp_replace(steadytext_generate('work_mem', max_tokens => 48), '\s+', ' ', 'g'), 80) as result
union all
select 'choice, at once: Is an index a table?', steadytext_generate_choice('Is an index a table?', array['yes', 'no'])
union all
select 'embed, at once: index', left(steadytext_embed('index')::text, 40) || '…'
union all
select 'rerank, at once: index', format('%s %s', round(ranked.score::numeric, 3), ranked.document)
from steadytext_rerank('index', array['CREATE INDEX constructs an index.', 'VACUUM reclaims storage.']) as ranked;

do $$
begin
    if exists (
        select from demo, steadytext_check_async(demo.request_id) as state where state.status <> 'completed'
    ) then
        raise exception 'not every request was completed';
    end if;
end
$$;
