-- Reranking. Enqueued: the query in prompt and the documents in prompts, one row for each query. And
-- in the same statement, where documents of one score stay in the order in which they were given.

create function steadytext.rerank_params(
    task text, return_scores boolean, seed bigint, model text, truncate boolean, document_ids text[] default null
)
returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return jsonb_strip_nulls(jsonb_build_object(
        'task', nullif(task, 'Given a web search query, retrieve relevant passages that answer the query'),
        'return_scores', case when not return_scores then false end,
        'seed', nullif(seed, 42),
        'model', model,
        'truncate', case when truncate then true end,
        'document_ids', to_jsonb(document_ids)
    ));
end
$$;
comment on function steadytext.rerank_params(text, boolean, bigint, text, boolean, text[]) is
    'Returns the params of a rerank request: values that differ from the defaults';

create function @extschema@.steadytext_rerank_async(
    query text,
    documents text[],
    task text default
        'Given a web search query, retrieve relevant passages that answer the query',
    return_scores boolean default true,
    seed bigint default 42,
    model text default null,
    priority bigint default 5,
    truncate boolean default false,
    document_ids text[] default null
)
returns uuid
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_request_id uuid;
begin
    insert into @extschema@.steadytext_queue (request_type, prompt, prompts, params, priority)
    values ('rerank', query, documents, steadytext.rerank_params(task, return_scores, seed, model, truncate, document_ids), steadytext.priority(priority))
    returning request_id into v_request_id;
    return v_request_id;
end
$$;
comment on function @extschema@.steadytext_rerank_async(text, text[], text, boolean, bigint, text, bigint, boolean, text[]) is
    'Enqueues the ranking of documents by how well they answer a query and returns the request id';

create function @extschema@.steadytext_rerank_batch_async(
    queries text[],
    documents text[],
    task text default
        'Given a web search query, retrieve relevant passages that answer the query',
    return_scores boolean default true,
    seed bigint default 42,
    model text default null,
    priority bigint default 5,
    truncate boolean default false,
    document_ids text[] default null
)
returns uuid[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_params jsonb;
    v_priority integer := steadytext.priority(priority);
    v_bytes bigint;
    v_limit bigint := 64 * steadytext.config_integer('max_prompt_bytes')::bigint;
    v_request_ids uuid[];
begin
    perform steadytext.check_batch(queries, 'queries');
    perform steadytext.check_batch(documents, 'documents');
    -- Each row has all documents and ids: what the rows have together is bounded, not only each of them.
    select coalesce(sum(octet_length(t.text)), 0) * cardinality(queries) into v_bytes
    from (select * from unnest(documents) union all select * from unnest(document_ids)) as t(text);
    if v_bytes > v_limit then
        raise exception 'the documents of all queries have % bytes together with their ids, % are allowed', v_bytes, v_limit
            using errcode = 'program_limit_exceeded',
                  hint = 'Send several batches, or raise max_prompt_bytes with steadytext_config_set().';
    end if;
    v_params := steadytext.rerank_params(task, return_scores, seed, model, truncate, document_ids);
    -- The identity column counts in the order of the select.
    with enqueued as (
        insert into @extschema@.steadytext_queue (request_type, prompt, prompts, params, priority)
        select 'rerank', q.query, documents, v_params, v_priority
        from unnest(queries) with ordinality as q(query, n)
        order by q.n
        returning id, request_id
    )
    select array_agg(e.request_id order by e.id) into v_request_ids from enqueued as e;
    return v_request_ids;
end
$$;
comment on function @extschema@.steadytext_rerank_batch_async(
    text[], text[], text, boolean, bigint, text, bigint, boolean, text[]
) is 'Enqueues one ranking of the same documents per query and returns the request ids in the order of the queries';

create function @extschema@.steadytext_rerank(
    query text,
    documents text[],
    task text default
        'Given a web search query, retrieve relevant passages that answer the query',
    return_scores boolean default true,
    seed bigint default 42,
    model text default null,
    truncate boolean default false,
    on_error text default 'error',
    document_ids text[] default null
)
returns table (document text, score double precision, index integer, document_id text)
language c immutable parallel safe cost 100000 rows 10
as 'MODULE_PATHNAME', 'rerank_wrapper';
comment on function @extschema@.steadytext_rerank(text, text[], text, boolean, bigint, text, boolean, text, text[]) is
    'Ranks documents by how well they answer a query, best first; scores are between 0 and 1';

create function @extschema@.steadytext_rerank_docs_only(
    query text,
    documents text[],
    task text default
        'Given a web search query, retrieve relevant passages that answer the query',
    seed bigint default 42,
    model text default null,
    truncate boolean default false,
    on_error text default 'error'
)
returns table (document text)
language c immutable parallel safe cost 100000 rows 10
as 'MODULE_PATHNAME', 'rerank_docs_only_wrapper';
comment on function @extschema@.steadytext_rerank_docs_only(text, text[], text, bigint, text, boolean, text) is
    'Ranks documents by how well they answer a query, best first, without scores';

create function @extschema@.steadytext_rerank_top_k(
    query text,
    documents text[],
    top_k bigint,
    task text default
        'Given a web search query, retrieve relevant passages that answer the query',
    return_scores boolean default true,
    seed bigint default 42,
    model text default null,
    truncate boolean default false,
    on_error text default 'error',
    document_ids text[] default null
)
returns table (document text, score double precision, index integer, document_id text)
language c immutable parallel safe cost 100000 rows 10
as 'MODULE_PATHNAME', 'rerank_top_k_wrapper';
comment on function @extschema@.steadytext_rerank_top_k(text, text[], bigint, text, boolean, bigint, text, boolean, text, text[]) is
    'Returns the best documents for a query, at most top_k';

create function @extschema@.steadytext_rerank_batch(
    queries text[],
    documents text[],
    task text default
        'Given a web search query, retrieve relevant passages that answer the query',
    return_scores boolean default true,
    seed bigint default 42,
    model text default null,
    truncate boolean default false,
    on_error text default 'error',
    document_ids text[] default null
)
returns table (query_index integer, document text, score double precision, index integer, document_id text)
language c immutable parallel safe cost 100000 rows 10
as 'MODULE_PATHNAME', 'rerank_batch_wrapper';
comment on function @extschema@.steadytext_rerank_batch(text[], text[], text, boolean, bigint, text, boolean, text, text[]) is
    'Ranks the same documents for several queries, which are counted from 0';
