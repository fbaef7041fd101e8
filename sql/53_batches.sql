-- Batches: a request for each row of a query, and what is asked of all of them together.

-- Called for each piece of the query's rows, with the rights of the role that enqueues.
create function steadytext.enqueue_rows(
    p_batch uuid,
    p_request_type text,
    p_params text,
    p_priority bigint,
    p_rows text[]
)
returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    -- The mark lets empty texts in: each fails alone, in the worker, not the whole batch.
    v_params jsonb := p_params::jsonb || case when p_request_type = 'embed' then '{"batch": true}' else '{}' end::jsonb;
    v_priority integer := steadytext.priority(coalesce(p_priority, 3));
    v_rows jsonb[] := p_rows::jsonb[];
    v_types text[];
    v_count bigint;
begin
    select array_agg(distinct coalesce(jsonb_typeof(r.line -> 'params'), 'null') || ' ' || coalesce(jsonb_typeof(r.line -> 'prompts'), 'null'))
    into v_types
    from unnest(v_rows) as r(line);
    if exists (select from unnest(v_types) as t(types) where t.types !~ '^(object|null) ') then
        raise exception 'column params of the query must hold JSON objects'
            using errcode = 'invalid_parameter_value', hint = 'jsonb_build_object() makes one.';
    end if;
    if exists (select from unnest(v_types) as t(types) where t.types !~ ' (array|null)$') then
        raise exception 'column prompts of the query must hold arrays of texts'
            using errcode = 'invalid_parameter_value', hint = 'As in array[title, body] as prompts.';
    end if;
    -- The identity column counts in the order of the query.
    insert into @extschema@.steadytext_queue (request_type, prompt, prompts, params, priority, batch, batch_key)
    select p_request_type,
        r.line ->> 'prompt',
        case when jsonb_typeof(r.line -> 'prompts') = 'array'
            then array(select jsonb_array_elements_text(r.line -> 'prompts')) end,
        v_params || case when jsonb_typeof(r.line -> 'params') = 'object' then r.line -> 'params' else '{}' end,
        v_priority,
        p_batch,
        r.line - array['prompt', 'prompts', 'params']
    from unnest(v_rows) with ordinality as r(line, n)
    order by r.n;
    get diagnostics v_count = row_count;
    return v_count;
end
$$;
comment on function steadytext.enqueue_rows(uuid, text, text, bigint, text[]) is
    'Enqueues a request for each of some rows, which are JSON objects with the columns of a query; called by steadytext_enqueue_query';

create function steadytext.enqueue_query(query text, request_type text, params text, priority bigint, name text)
returns uuid
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'enqueue_query_wrapper';
comment on function steadytext.enqueue_query(text, text, text, bigint, text) is
    'Does what steadytext_enqueue_query() does, with its params as text';

create function @extschema@.steadytext_enqueue_query(
    query text,
    request_type text default 'generate',
    params jsonb default '{}',
    priority bigint default 3,
    name text default null
)
returns uuid
language sql volatile parallel unsafe
return steadytext.enqueue_query(query, request_type, params::text, priority, name);
comment on function @extschema@.steadytext_enqueue_query(text, text, jsonb, bigint, text) is
    'Enqueues a request for each row of a query, which may only read, and returns the id of the batch; the columns prompt, prompts and params make the request, all others are the key of its answer';

create view @extschema@.steadytext_batches with (security_barrier) as
select
    h.batch,
    h.name,
    h.owner_role::pg_catalog.name as owner_role,
    h.request_type,
    h.created_at,
    greatest(h.total, c.requests) as total,
    c.pending,
    c.processing,
    c.done,
    c.failed,
    c.cancelled,
    greatest(h.total, c.requests) operator(pg_catalog.-) c.requests as expired,
    r.rate,
    pg_catalog.make_interval(secs => pg_catalog.round(
        ((c.pending operator(pg_catalog.+) c.processing)::double precision
            operator(pg_catalog./) nullif(r.rate, 0::double precision))::numeric)::double precision) as time_left,
    case when c.pending operator(pg_catalog.=) 0 and c.processing operator(pg_catalog.=) 0 then c.last_end end as completed_at
from @extschema@.steadytext_batch_heads as h
cross join lateral (
    select
        pg_catalog.count(*) as requests,
        pg_catalog.count(*) filter (where q.status operator(pg_catalog.=) 'pending') as pending,
        pg_catalog.count(*) filter (where q.status operator(pg_catalog.=) 'processing') as processing,
        pg_catalog.count(*) filter (where q.status operator(pg_catalog.=) 'completed') as done,
        pg_catalog.count(*) filter (where q.status operator(pg_catalog.=) 'failed') as failed,
        pg_catalog.count(*) filter (where q.status operator(pg_catalog.=) 'cancelled') as cancelled,
        pg_catalog.count(*) filter (where q.status operator(pg_catalog.=) any (array['completed', 'failed'])
            and q.completed_at operator(pg_catalog.>)
                (pg_catalog.statement_timestamp() operator(pg_catalog.-) interval '1 minute')) as recent,
        pg_catalog.min(q.started_at) as first_start,
        pg_catalog.max(q.completed_at) as last_end
    from @extschema@.steadytext_queue as q
    where q.batch operator(pg_catalog.=) h.batch
        and q.owner_role::pg_catalog.oid operator(pg_catalog.=) h.owner_role::pg_catalog.oid
) as c
cross join lateral (
    select case
        when c.pending operator(pg_catalog.=) 0 and c.processing operator(pg_catalog.=) 0 then
            (c.done operator(pg_catalog.+) c.failed)::double precision operator(pg_catalog./) nullif(
                pg_catalog.date_part('epoch', c.last_end operator(pg_catalog.-) c.first_start), 0::double precision)
        -- Of the last minute, or of what it has had of one.
        else c.recent::double precision operator(pg_catalog./) greatest(1::double precision, least(60::double precision,
            pg_catalog.date_part('epoch', pg_catalog.statement_timestamp() operator(pg_catalog.-) c.first_start)))
    end as rate
) as r
-- As the policies of its requests say; a view runs as its owner.
where h.owner_role::pg_catalog.oid operator(pg_catalog.=) steadytext.current_role_id()::pg_catalog.oid
    or pg_catalog.pg_has_role('steadytext_admin', 'usage');
comment on view @extschema@.steadytext_batches is
    'Batches of steadytext_enqueue_query() and their progress; users see their own, administrators all';
comment on column @extschema@.steadytext_batches.batch is 'Identifier of the batch';
comment on column @extschema@.steadytext_batches.name is 'Name that the owner gave the batch';
comment on column @extschema@.steadytext_batches.owner_role is 'Role that enqueued the batch';
comment on column @extschema@.steadytext_batches.request_type is 'Type of the batch''s requests';
comment on column @extschema@.steadytext_batches.created_at is 'Time when the batch was enqueued';
comment on column @extschema@.steadytext_batches.total is 'Number of requests of the batch, deleted ones included';
comment on column @extschema@.steadytext_batches.pending is 'Number of pending requests';
comment on column @extschema@.steadytext_batches.processing is 'Number of requests that are being processed';
comment on column @extschema@.steadytext_batches.done is 'Number of completed requests';
comment on column @extschema@.steadytext_batches.failed is 'Number of failed requests';
comment on column @extschema@.steadytext_batches.cancelled is 'Number of cancelled requests';
comment on column @extschema@.steadytext_batches.expired is
    'Number of requests that were deleted, after queue_retention_hours or by an administrator';
comment on column @extschema@.steadytext_batches.rate is
    'Requests ended per second: within the last minute; of a batch that has ended, from its first request to its last';
comment on column @extschema@.steadytext_batches.time_left is 'Time until the end of the batch at that rate; NULL where no request has ended yet';
comment on column @extschema@.steadytext_batches.completed_at is 'Time when the last request of the batch ended; NULL while any has not';

select pg_catalog.set_config('search_path', steadytext.vector_path(), true);

create function @extschema@.steadytext_batch_results(batch uuid)
returns table (
    key jsonb,
    request_id uuid,
    status text,
    result text,
    results text[],
    embedding vector,
    embeddings vector[],
    error text,
    error_code text,
    completed_at timestamptz
)
language sql stable parallel safe rows 1000
begin atomic
    select q.batch_key, q.request_id, q.status, q.result, q.results, q.embedding, q.embeddings,
        q.error, q.error_code, q.completed_at
    from @extschema@.steadytext_batch_heads as h
    join @extschema@.steadytext_queue as q
        on q.batch operator(pg_catalog.=) h.batch and q.batch is not null
            and q.owner_role::pg_catalog.oid operator(pg_catalog.=) h.owner_role::pg_catalog.oid
    where h.batch operator(pg_catalog.=) steadytext_batch_results.batch
    order by q.id;
end;
comment on function @extschema@.steadytext_batch_results(uuid) is
    'Returns the answers of a batch, in the order of the rows of its query, each with the key columns of its row';

set local search_path = pg_catalog, pg_temp;

create function @extschema@.steadytext_wait(
    batch uuid,
    mode text default 'all',
    timeout_seconds bigint default 30
)
returns boolean
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'wait_for_batch_wrapper';
comment on function @extschema@.steadytext_wait(uuid, text, bigint) is
    'Waits until all requests of a batch have ended, or any of them; returns false where that does not happen in time';

-- Literals without a type: PostgreSQL prefers text to types that it cannot choose between.
create function @extschema@.steadytext_wait(
    request_ids text,
    mode text default 'all',
    timeout_seconds bigint default 30
)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_ids uuid[];
    v_batch uuid;
begin
    begin
        if request_ids ~ '^\s*\{' then
            v_ids := request_ids::uuid[];
        else
            v_batch := request_ids::uuid;
        end if;
    exception when data_exception then
        raise exception 'request_ids must be an array of ids, or the id of a batch'
            using errcode = 'invalid_parameter_value', hint = 'The enqueuing functions return them.';
    end;
    if v_ids is not null then
        return @extschema@.steadytext_wait(v_ids, mode, timeout_seconds);
    end if;
    return @extschema@.steadytext_wait(v_batch, mode, timeout_seconds);
end
$$;
comment on function @extschema@.steadytext_wait(text, text, bigint) is
    'Does what steadytext_wait does with the ids of requests, given as the text of an array, or with the id of a batch, given as text';

create function @extschema@.steadytext_cancel_batch(batch uuid)
returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    c_slice constant integer := 10000;
    v_ids uuid[];
    v_cancelled bigint := 0;
begin
    for v_ids in
        select array_agg(o.request_id order by o.id)
        from (
            select q.request_id, q.id, row_number() over (order by q.id) as n
            from @extschema@.steadytext_batch_heads as h
            join @extschema@.steadytext_queue as q
                on q.batch = h.batch and q.batch is not null and q.owner_role::oid = h.owner_role::oid
            where h.batch = steadytext_cancel_batch.batch and q.status in ('pending', 'processing')
        ) as o
        group by (o.n - 1) / c_slice
        order by min(o.id)
    loop
        v_cancelled := v_cancelled + @extschema@.steadytext_cancel_async_batch(v_ids);
    end loop;
    return v_cancelled;
end
$$;
comment on function @extschema@.steadytext_cancel_batch(uuid) is
    'Cancels all requests of a batch that have not ended, and returns their number';
