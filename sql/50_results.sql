-- Answers: look, wait, cancel. All functions run with the rights of their caller, who sees only their
-- own requests.

select pg_catalog.set_config('search_path', steadytext.vector_path(), true);

create function @extschema@.steadytext_check_async(request_id uuid)
returns table (
    status text,
    result text,
    results text[],
    embedding vector,
    embeddings vector[],
    error text,
    created_at timestamptz,
    completed_at timestamptz,
    processing_time_ms integer,
    request_type text,
    started_at timestamptz,
    retry_count integer,
    error_code text,
    prompt_tokens integer,
    cached_tokens integer,
    generated_tokens integer,
    finish_reason text,
    first_token_ms integer
)
language plpgsql volatile rows 1
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    select q.status, q.result, q.results, q.embedding, q.embeddings, q.error, q.created_at,
        q.completed_at, q.processing_time_ms, q.request_type, q.started_at, q.retry_count,
        q.error_code, q.prompt_tokens, q.cached_tokens, q.generated_tokens, q.finish_reason, q.first_token_ms
    from @extschema@.steadytext_queue as q
    where q.request_id = steadytext_check_async.request_id;
    if not found then
        raise exception 'Request ID % not found', steadytext_check_async.request_id
            using hint = 'It may have been removed after queue_retention_hours, or belong to another role.';
    end if;
end
$$;
comment on function @extschema@.steadytext_check_async(uuid) is
    'Returns state and answer of one request, with times, tokens and attempts';

create function @extschema@.steadytext_check_async_batch(request_ids uuid[])
returns table (
    request_id uuid,
    status text,
    result text,
    error text,
    completed_at timestamptz,
    embedding vector,
    created_at timestamptz,
    started_at timestamptz,
    processing_time_ms integer,
    request_type text,
    retry_count integer,
    error_code text
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    select q.request_id, q.status, q.result, q.error, q.completed_at, q.embedding,
        q.created_at, q.started_at, q.processing_time_ms, q.request_type, q.retry_count, q.error_code
    from unnest(request_ids) with ordinality as g(request_id, n)
    join @extschema@.steadytext_queue as q on q.request_id = g.request_id
    order by g.n;
end
$$;
comment on function @extschema@.steadytext_check_async_batch(uuid[]) is
    'Returns state and answer of several requests, in the order of the ids; an id of no request gives no row';

create function @extschema@.steadytext_get_async_result(request_id uuid, timeout_seconds bigint default 30)
returns text
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'get_async_result_wrapper';
comment on function @extschema@.steadytext_get_async_result(uuid, bigint) is
    'Waits for the answer of a request and returns it; a vector is returned as its text';

create function @extschema@.steadytext_get_async_embedding(request_id uuid, timeout_seconds bigint default 30)
returns vector
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'get_async_embedding_wrapper';
comment on function @extschema@.steadytext_get_async_embedding(uuid, bigint) is
    'Waits for the vector of an embed request and returns it';

set local search_path = pg_catalog, pg_temp;

create function @extschema@.steadytext_wait(
    request_ids uuid[],
    mode text default 'all',
    timeout_seconds bigint default 30
)
returns boolean
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'wait_for_requests_wrapper';
comment on function @extschema@.steadytext_wait(uuid[], text, bigint) is
    'Waits until all of these requests have ended, or any of them; returns false where that does not happen in time';

create function @extschema@.steadytext_cancel_async(request_id uuid)
returns boolean
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'cancel_async_wrapper';
comment on function @extschema@.steadytext_cancel_async(uuid) is
    'Cancels a request that has not ended: a waiting one never runs, a running one stops within a token; returns whether it was cancelled';

-- Not a second form of the function above: a parameter whose type a driver leaves to the server would
-- be ambiguous, or become text, and drivers have ids as values of a type of their own.
create function @extschema@.steadytext_cancel_async_batch(request_ids uuid[])
returns bigint
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'cancel_async_batch_wrapper';
comment on function @extschema@.steadytext_cancel_async_batch(uuid[]) is
    'Cancels all of these requests that have not ended, and returns their number';
