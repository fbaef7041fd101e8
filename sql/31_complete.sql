-- Protocol: ending requests. A result is written only where id, attempt and worker still
-- match and the status is still processing; rows that somebody else has locked are skipped
-- and reported, so that one open transaction never stalls the others.
--
-- The rows are looked up one by one in lateral subqueries, in the order of their ids. As a
-- plain join the planner, who believes that next to nothing is ever in flight, would read
-- the index on rows in flight once and compare everything with everything.

-- The type of the vectors has no name here; an example of it has one all the same.
create function steadytext.vectors(p_numbers real[], p_count integer, p_like anyelement)
returns anyarray
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_length integer := cardinality(p_numbers) / nullif(p_count, 0);
    v_given record;
    v_vector p_like%type;
    v_vectors alias for $0;
begin
    select p_numbers as numbers into v_given;
    for i in 1 .. p_count loop
        v_vector := v_given.numbers[(i - 1) * v_length + 1 : i * v_length];
        v_vectors := array_append(v_vectors, v_vector);
    end loop;
    return v_vectors;
end
$$;
comment on function steadytext.vectors(real[], integer, anyelement) is
    'Returns numbers as an array of p_count vectors of the type of p_like; called by complete_requests';

-- Bounds the report of a worker elsewhere before it is looked at.
create function steadytext.check_lengths(p_ids bigint[], p_names text[], p_lengths integer[])
returns void
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
    c_most constant integer := 10000;
    v_count integer := coalesce(cardinality(p_ids), 0);
    v_problem text;
begin
    if v_count > c_most then
        raise exception '% requests can be spoken of at once, not %', c_most, v_count
            using errcode = 'invalid_parameter_value', hint = 'Say it in several calls.';
    end if;
    select a.name into v_problem from unnest(p_names, p_lengths) as a(name, length) where a.length > v_count limit 1;
    if v_problem is not null then
        raise exception '% has more elements than p_ids', v_problem
            using errcode = 'invalid_parameter_value', hint = 'Each array has one element for each request.';
    end if;
end
$$;
comment on function steadytext.check_lengths(bigint[], text[], integer[]) is
    'Refuses reports of a worker elsewhere about too many requests, or about more than it names; called by the functions of the protocol';

create function steadytext.answer_flaw(
    p_request_type text,
    p_prompt text,
    p_prompts text[],
    p_params jsonb,
    p_result text,
    p_list text[],
    p_numbers real[],
    p_count integer
)
returns text
language c volatile
as 'MODULE_PATHNAME', 'answer_flaw_wrapper';
comment on function steadytext.answer_flaw(text, text, text[], jsonb, text, text[], real[], integer) is
    'Returns why an answer cannot be one to a request, as far as that is found out in little time: a text that its choices, its pattern or its schema excludes, a list of other elements than were given, a vector that no model makes; NULL where nothing is wrong. Called by check_answers';

-- Answers of a worker elsewhere can be anything: no row gets one that its type has no place for, that what was asked excludes, or that no model can
-- have given.
create function steadytext.check_answers(
    p_worker text,
    p_ids bigint[],
    p_attempts integer[],
    p_results text[],
    p_embeddings real[],
    p_embedding_lengths integer[],
    p_embedding_counts integer[],
    p_lists text[],
    p_list_lengths integer[],
    p_tokens integer[],
    p_finish_reasons text[]
)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
    c_most constant integer := 10000;
    v_bytes bigint := greatest(steadytext.config_integer('max_tokens_limit')::bigint * 1024, 262144);
    v_given record;
    v_problem text;
    v_number integer;
begin
    perform steadytext.check_lengths(p_ids,
        array['p_attempts', 'p_results', 'p_embedding_lengths', 'p_embedding_counts', 'p_list_lengths', 'p_finish_reasons'],
        array[cardinality(p_attempts), cardinality(p_results), cardinality(p_embedding_lengths), cardinality(p_embedding_counts),
            cardinality(p_list_lengths), cardinality(p_finish_reasons)]);
    if exists (select from unnest(p_embedding_lengths) as l(n) where l.n not between 0 and 16000)
        or exists (select from unnest(p_embedding_counts) as l(n) where l.n not between 0 and c_most)
        or exists (select from unnest(p_list_lengths) as l(n) where l.n < 0)
        or exists (select from unnest(p_tokens) as t(n) where t.n < 0)
        or exists (select from unnest(p_finish_reasons) as f(reason) where f.reason not in ('stop', 'length', 'constraint'))
        or (select coalesce(sum(g.length::bigint * coalesce(g.count, 1)), 0) from unnest(p_embedding_lengths, p_embedding_counts) as g(length, count))
            <> coalesce(cardinality(p_embeddings), 0)
        or (select coalesce(sum(l.n::bigint), 0) from unnest(p_list_lengths) as l(n)) <> coalesce(cardinality(p_lists), 0)
        or cardinality(p_tokens) > 4 * coalesce(cardinality(p_ids), 0)
        -- Slices are cut out of these arrays by subscripts from 1 on.
        or array_ndims(p_embeddings) > 1 or array_lower(p_embeddings, 1) <> 1 or array_position(p_embeddings, null) is not null
        or array_ndims(p_lists) > 1 or array_lower(p_lists, 1) <> 1
    then
        raise exception 'lengths, counts and numbers of an answer must be what they are of'
            using errcode = 'invalid_parameter_value',
                hint = 'Lengths are those of what is given; vectors have 16,000 numbers at most; finish reasons are stop, length and constraint.';
    end if;
    -- As in write_answers: a field of a record stays packed.
    select p_embeddings as numbers, p_lists as lists into v_given;
    select g.n, p.problem into v_number, v_problem
    from (
        select u.*,
            sum(u.length * coalesce(u.count, 1)) over w::integer as last,
            sum(u.list_length) over w::integer as last_text
        from unnest(p_ids, p_attempts, p_results, p_embedding_lengths, p_embedding_counts, p_list_lengths)
            with ordinality as u(id, attempt, result, length, count, list_length, n)
        window w as (order by u.n rows unbounded preceding)
    ) as g
    cross join lateral (
        select q.request_type, q.prompt, q.prompts, q.params
        from @extschema@.steadytext_queue as q
        where q.id = g.id and q.attempt = g.attempt and q.worker = p_worker and q.status = 'processing'
        -- Not a join, see above.
        offset 0
    ) as q
    cross join lateral (
        select case
            when q.request_type = 'embed' then
                case when g.result is not null or g.count is not null or g.list_length is not null or coalesce(g.length, 0) = 0
                    then 'must be one vector' end
            when q.request_type = 'batch_embed' then
                case when g.result is not null or g.list_length is not null or g.count is distinct from cardinality(q.prompts)
                        or g.count > 0 and coalesce(g.length, 0) = 0
                    then 'must be a vector for each text' end
            when g.result is null or g.count is not null or g.length > 0 then 'must be a text'
            -- The results of types with a list repeat the request's own texts, and may be longer.
            when octet_length(g.result) > v_bytes and q.prompts is null then format('is longer than %s bytes', v_bytes)
        end as shape
    ) as s
    cross join lateral (
        select coalesce(s.shape, steadytext.answer_flaw(q.request_type, q.prompt, q.prompts, q.params, g.result,
            case when g.list_length is not null then v_given.lists[g.last_text - g.list_length + 1 : g.last_text] end,
            case when g.length > 0 then v_given.numbers[g.last - g.length * coalesce(g.count, 1) + 1 : g.last] end,
            g.count)) as problem
    ) as p
    where p.problem is not null
    limit 1;
    if v_problem is not null then
        raise exception 'answer % %', v_number, v_problem using errcode = 'invalid_parameter_value',
            hint = 'Nothing was written. A request that cannot be answered is ended by steadytext.fail_requests().';
    end if;
end
$$;
comment on function steadytext.check_answers(
    text, bigint[], integer[], text[], real[], integer[], integer[], text[], integer[], integer[], text[]
) is 'Refuses answers of a worker elsewhere that cannot answer their requests; called by complete_requests';

create function steadytext.write_answers(
    p_worker text,
    p_ids bigint[],
    p_attempts integer[],
    p_results text[],
    p_embeddings real[],
    p_embedding_lengths integer[],
    p_embedding_counts integer[] default null,
    p_lists text[] default null,
    p_list_lengths integer[] default null,
    p_prompt_tokens integer[] default null,
    p_cached_tokens integer[] default null,
    p_generated_tokens integer[] default null,
    p_finish_reasons text[] default null,
    p_first_token_ms integer[] default null,
    p_endpoints text[] default null
)
returns table (id bigint, outcome text)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    v_now timestamptz := clock_timestamp();
    v_given record;
    v_ranges integer[] := array[1, cardinality(p_ids)];
    v_from integer;
    v_to integer;
    v_held bigint[];
    v_some bigint[];
    v_ids bigint[] := '{}';
    v_request_ids uuid[];
    v_message text;
    v_hint text;
    v_code text;
    v_ended bigint[] := '{}';
    v_outcomes text[] := '{}';
begin
    perform steadytext.make_constraints_immediate();
    -- A variable of an array type holds its value unpacked, and each slice would pack the
    -- whole of it again; a field of a record stays packed.
    select p_embeddings as numbers, p_lists as lists into v_given;

    while cardinality(v_ranges) > 0 loop
        v_from := v_ranges[1];
        v_to := v_ranges[2];
        begin
            with given as (
                select g.n, g.id, g.attempt, g.result, g.count, g.list_length,
                    g.prompt_tokens, g.cached_tokens, g.generated_tokens, g.finish_reason, g.first_token_ms, g.endpoint,
                    coalesce(g.length * coalesce(g.count, 1), 0) as length,
                    sum(g.length * coalesce(g.count, 1)) over w::integer as last,
                    sum(g.list_length) over w::integer as last_text
                from unnest(p_ids, p_attempts, p_results, p_embedding_lengths, p_embedding_counts, p_list_lengths,
                    p_prompt_tokens, p_cached_tokens, p_generated_tokens, p_finish_reasons, p_first_token_ms, p_endpoints)
                    with ordinality as g(id, attempt, result, length, count, list_length,
                        prompt_tokens, cached_tokens, generated_tokens, finish_reason, first_token_ms, endpoint, n)
                window w as (order by g.n rows unbounded preceding)
            ),
            held as materialized (
                select h.tid, h.id, g.result, g.length, g.last, g.count, g.list_length, g.last_text,
                    g.prompt_tokens, g.cached_tokens, g.generated_tokens, g.finish_reason, g.first_token_ms, g.endpoint
                from (select * from given as o where o.n between v_from and v_to order by o.id) as g
                cross join lateral (
                    select q.ctid as tid, q.id
                    from @extschema@.steadytext_queue as q
                    where q.id = g.id and q.attempt = g.attempt and q.worker = p_worker and q.status = 'processing'
                    for no key update skip locked
                ) as h
            ),
            done as (
                -- A slice of real[] becomes a vector by assignment: the type has no name here.
                update @extschema@.steadytext_queue as q set
                    status = 'completed',
                    result = h.result,
                    results = case when h.list_length is not null
                        then v_given.lists[h.last_text - h.list_length + 1 : h.last_text] end,
                    embedding = case when h.length > 0 and h.count is null
                        then v_given.numbers[h.last - h.length + 1 : h.last] end,
                    embeddings = case when h.count is not null then steadytext.vectors(
                        v_given.numbers[h.last - h.length + 1 : h.last], h.count, q.embedding) end,
                    error = null,
                    error_code = null,
                    lease_expires_at = null,
                    completed_at = v_now,
                    processing_time_ms = least(date_part('epoch', v_now - q.started_at) * 1000, 2147483647),
                    prompt_tokens = h.prompt_tokens,
                    cached_tokens = h.cached_tokens,
                    generated_tokens = h.generated_tokens,
                    finish_reason = h.finish_reason,
                    first_token_ms = h.first_token_ms,
                    daemon_endpoint = left(h.endpoint, 255)
                from held as h
                where q.ctid = h.tid
                returning q.id, q.request_id, q.status
            )
            select coalesce(array_agg(d.id), '{}'), array_agg(d.request_id), (select array_agg(h.id) from held as h)
            into v_some, v_request_ids, v_held
            from done as d
            where d.status <> 'processing';
            v_ranges := v_ranges[3 :];
        exception when others or assert_failure or query_canceled then
            get stacked diagnostics v_message = message_text, v_hint = pg_exception_hint, v_code = returned_sqlstate;
            v_ranges := steadytext.halves(v_ranges, v_now);
            v_some := null;
            if v_from = v_to then
                v_ended := v_ended || p_ids[v_from];
                v_outcomes := v_outcomes || steadytext.end_poison(
                    'completed', p_ids[v_from], v_message, v_hint, v_code, p_worker, p_attempts[v_from]);
            end if;
        end;
        if v_some <> '{}' then
            perform steadytext.announce(v_request_ids);
            v_ids := v_ids || v_some;
        end if;
        if cardinality(v_held) > cardinality(v_some) then
            select v_ended || array_agg(s.id), v_outcomes || array_agg(s.outcome)
            into v_ended, v_outcomes
            from steadytext.end_suppressed('completed', array(
                select h.id from unnest(v_held) as h(id) except select d.id from unnest(v_some) as d(id))) as s;
        end if;
    end loop;

    return query select d.id, 'done' from unnest(v_ids) as d(id);
    return query select e.id, e.outcome from unnest(v_ended, v_outcomes) as e(id, outcome);
    if cardinality(p_ids) > cardinality(v_ids) + cardinality(v_ended) then
        return query
        select m.id, m.outcome from steadytext.missed_requests(p_worker, p_ids, p_attempts, v_ids || v_ended) as m;
    end if;
end
$$;
comment on function steadytext.write_answers(
    text, bigint[], integer[], text[], real[], integer[], integer[], text[], integer[],
    integer[], integer[], integer[], text[], integer[], text[]
) is 'Writes answers of any worker; called by complete_requests and complete_reports';

create function steadytext.complete_requests(
    p_worker text,
    p_ids bigint[],
    p_attempts integer[],
    p_results text[],
    p_embeddings real[],
    p_embedding_lengths integer[],
    p_embedding_counts integer[] default null,
    p_lists text[] default null,
    p_list_lengths integer[] default null,
    p_prompt_tokens integer[] default null,
    p_cached_tokens integer[] default null,
    p_generated_tokens integer[] default null,
    p_finish_reasons text[] default null,
    p_first_token_ms integer[] default null
)
returns table (id bigint, outcome text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_ids bigint[];
    v_outcomes text[];
    v_tokens record;
begin
    perform steadytext.check_worker(p_worker);
    if steadytext.is_own_worker() then
        return query
        select w.id, w.outcome
        from steadytext.write_answers(p_worker, p_ids, p_attempts, p_results, p_embeddings, p_embedding_lengths, p_embedding_counts, p_lists, p_list_lengths,
            p_prompt_tokens, p_cached_tokens, p_generated_tokens, p_finish_reasons, p_first_token_ms) as w;
        return;
    end if;
    perform steadytext.check_answers(p_worker, p_ids, p_attempts, p_results, p_embeddings, p_embedding_lengths, p_embedding_counts,
        p_lists, p_list_lengths, p_prompt_tokens || p_cached_tokens || p_generated_tokens || p_first_token_ms, p_finish_reasons);
    select * into v_tokens from steadytext.believed_tokens(p_ids, p_prompt_tokens, p_cached_tokens, p_generated_tokens);
    select array_agg(w.id), array_agg(w.outcome) into v_ids, v_outcomes
    from steadytext.write_answers(p_worker, p_ids, p_attempts, p_results, p_embeddings, p_embedding_lengths, p_embedding_counts, p_lists, p_list_lengths,
        v_tokens.prompt_tokens, v_tokens.cached_tokens, v_tokens.generated_tokens, p_finish_reasons, p_first_token_ms) as w;
    perform steadytext.count_reported(v_ids, v_outcomes, p_ids, v_tokens.prompt_tokens, v_tokens.cached_tokens, v_tokens.generated_tokens,
        p_first_token_ms);
    if 0 < any (p_embedding_lengths) then
        perform steadytext.note_vector_lengths(p_ids, p_embedding_lengths);
    end if;
    return query select w.id, w.outcome from unnest(v_ids, v_outcomes) as w(id, outcome);
end
$$;
comment on function steadytext.complete_requests(
    text, bigint[], integer[], text[], real[], integer[], integer[], text[], integer[],
    integer[], integer[], integer[], text[], integer[]
) is
    'Protocol: writes answers; outcome done, locked (still ours, try again), lost, failed (the table refused the answer) or refused (it refuses every change of the row)';

-- Hash joins are on again here: two lists of a thousand ids are compared.
create function steadytext.missed_requests(
    p_worker text,
    p_ids bigint[],
    p_attempts integer[],
    p_done bigint[]
)
returns table (id bigint, outcome text)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_hashjoin = on
set enable_mergejoin = off
set jit = off
as $$
#variable_conflict use_column
begin
    return query
    select g.id,
        case when q.attempt = g.attempt and q.worker = p_worker and q.status = 'processing'
            then 'locked' else 'lost' end
    from unnest(p_ids, p_attempts) as g(id, attempt)
    left join @extschema@.steadytext_queue as q on q.id = g.id
    where not exists (select from unnest(p_done) as d(id) where d.id = g.id);
end
$$;
comment on function steadytext.missed_requests(text, bigint[], integer[], bigint[]) is
    'Returns why requests could not be ended: locked (by another transaction, and still the worker''s) or lost; called by complete_requests and fail_requests';

create function steadytext.write_failures(
    p_worker text,
    p_ids bigint[],
    p_attempts integer[],
    p_errors text[],
    p_codes text[],
    p_retry boolean[]
)
returns table (id bigint, outcome text)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    v_now timestamptz := clock_timestamp();
    v_max_retries integer := steadytext.config_integer('max_retries');
    v_ranges integer[] := array[1, cardinality(p_ids)];
    v_from integer;
    v_to integer;
    v_held bigint[];
    v_some bigint[];
    v_some_outcomes text[];
    v_request_ids uuid[];
    v_message text;
    v_hint text;
    v_code text;
    v_ids bigint[] := '{}';
    v_outcomes text[] := '{}';
begin
    perform steadytext.make_constraints_immediate();
    while cardinality(v_ranges) > 0 loop
        v_from := v_ranges[1];
        v_to := v_ranges[2];
        begin
            with held as materialized (
                select h.tid, h.id, g.error, g.code, coalesce(g.retry, false) and h.may_retry as retry
                from (
                    select *
                    from unnest(p_ids, p_attempts, p_errors, p_codes, p_retry)
                        with ordinality as u(id, attempt, error, code, retry, n)
                    where u.n between v_from and v_to
                    order by u.id
                ) as g
                cross join lateral (
                    select q.ctid as tid, q.id, q.retry_count < coalesce(q.max_retries, v_max_retries) as may_retry
                    from @extschema@.steadytext_queue as q
                    where q.id = g.id and q.attempt = g.attempt and q.worker = p_worker and q.status = 'processing'
                    for no key update skip locked
                ) as h
            ),
            ended as (
                update @extschema@.steadytext_queue as q set
                    status = case when h.retry then 'pending' else 'failed' end,
                    retry_count = q.retry_count + h.retry::integer,
                    run_after = case when h.retry then v_now + steadytext.backoff(q.retry_count) end,
                    worker = case when h.retry then null else q.worker end,
                    error = left(coalesce(h.error, 'unknown error'), 65536),
                    error_code = case when h.code ~ '^[0-9A-Z]{5}$' then h.code else 'XX000' end,
                    lease_expires_at = null,
                    completed_at = case when h.retry then null else v_now end,
                    processing_time_ms =
                        case when h.retry then null else least(date_part('epoch', v_now - q.started_at) * 1000, 2147483647) end
                from held as h
                where q.ctid = h.tid
                returning q.id, q.request_id, q.status, h.retry
            )
            select coalesce(array_agg(e.id), '{}'), array_agg(case when e.retry then 'retried' else 'done' end),
                array_agg(e.request_id) filter (where not e.retry), (select array_agg(h.id) from held as h)
            into v_some, v_some_outcomes, v_request_ids, v_held
            from ended as e
            where e.status <> 'processing';
            v_ranges := v_ranges[3 :];
        exception when others or assert_failure or query_canceled then
            get stacked diagnostics v_message = message_text, v_hint = pg_exception_hint, v_code = returned_sqlstate;
            v_ranges := steadytext.halves(v_ranges, v_now);
            v_some := null;
            if v_from = v_to then
                v_ids := v_ids || p_ids[v_from];
                v_outcomes := v_outcomes || steadytext.end_poison(
                    'failed', p_ids[v_from], v_message, v_hint, v_code, p_worker, p_attempts[v_from]);
            end if;
        end;
        if v_some <> '{}' then
            v_ids := v_ids || v_some;
            v_outcomes := v_outcomes || v_some_outcomes;
            if v_request_ids is not null then
                perform steadytext.announce(v_request_ids);
            end if;
        end if;
        if cardinality(v_held) > cardinality(v_some) then
            select v_ids || array_agg(s.id), v_outcomes || array_agg(s.outcome)
            into v_ids, v_outcomes
            from steadytext.end_suppressed('failed', array(
                select h.id from unnest(v_held) as h(id) except select d.id from unnest(v_some) as d(id))) as s;
        end if;
    end loop;

    return query select e.id, e.outcome from unnest(v_ids, v_outcomes) as e(id, outcome);
    if cardinality(p_ids) > cardinality(v_ids) then
        return query select m.id, m.outcome from steadytext.missed_requests(p_worker, p_ids, p_attempts, v_ids) as m;
    end if;
end
$$;
comment on function steadytext.write_failures(text, bigint[], integer[], text[], text[], boolean[]) is
    'Writes errors that any worker reports; called by fail_requests and complete_reports';

create function steadytext.fail_requests(
    p_worker text,
    p_ids bigint[],
    p_attempts integer[],
    p_errors text[],
    p_codes text[],
    p_retry boolean[]
)
returns table (id bigint, outcome text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_ids bigint[];
    v_outcomes text[];
begin
    perform steadytext.check_worker(p_worker);
    if steadytext.is_own_worker() then
        return query
        select w.id, w.outcome from steadytext.write_failures(p_worker, p_ids, p_attempts, p_errors, p_codes, p_retry) as w;
        return;
    end if;
    perform steadytext.check_lengths(p_ids, array['p_attempts', 'p_errors', 'p_codes', 'p_retry'],
        array[cardinality(p_attempts), cardinality(p_errors), cardinality(p_codes), cardinality(p_retry)]);
    select array_agg(w.id), array_agg(w.outcome) into v_ids, v_outcomes
    from steadytext.write_failures(p_worker, p_ids, p_attempts, p_errors, p_codes, p_retry) as w;
    perform steadytext.count_ends(v_ids, v_outcomes, null, null, null, null);
    return query select w.id, w.outcome from unnest(v_ids, v_outcomes) as w(id, outcome);
end
$$;
comment on function steadytext.fail_requests(text, bigint[], integer[], text[], text[], boolean[]) is
    'Protocol: writes errors; outcome retried (pending again after a backoff), done (failed), locked (still ours, try again), lost, failed (with another error: the table refused this one) or refused (it refuses every change of the row)';
