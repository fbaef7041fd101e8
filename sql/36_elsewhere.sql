-- Protocol: workers on other machines with an engine of the same version. A row becomes work for
-- it, and its report an answer, on this side, by the code that serves the server's own worker: the
-- worker needs to know models, and nothing of the meaning of parameters.

create function steadytext.make_work(
    p_version text, p_request_type text, p_prompt text, p_prompts text[], p_params jsonb
)
returns bytea
language c volatile
as 'MODULE_PATHNAME', 'prepared_work_wrapper';
comment on function steadytext.make_work(text, text, text, text[], jsonb) is
    'Returns a request as work for an engine of this version; called by prepared_work';

create function steadytext.refused_work(p_version text, p_message text, p_code text, p_retry boolean)
returns bytea
language c volatile
as 'MODULE_PATHNAME', 'refused_work_wrapper';
comment on function steadytext.refused_work(text, text, text, boolean) is
    'Returns a refusal of a request that is no work for an engine of this version, with the reason; called by prepared_work';

create function steadytext.prepared_work(
    p_version text, p_request_type text, p_prompt text, p_prompts text[], p_params jsonb
)
returns bytea
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_message text;
    v_code text;
begin
    return steadytext.make_work(p_version, p_request_type, p_prompt, p_prompts, p_params);
exception when others or assert_failure then
    -- It comes with others, which are not to blame. Of a wrong version all of them are told.
    get stacked diagnostics v_message = message_text, v_code = returned_sqlstate;
    return steadytext.refused_work(p_version, left(v_message, 8192), v_code, steadytext.is_transient(v_code));
end
$$;
comment on function steadytext.prepared_work(text, text, text, text[], jsonb) is
    'Protocol: returns a request as work for an engine of this version, in the form of that version; 0A000 for another one. A request of which no work can be made becomes a refusal, which gives the reason';

create function steadytext.further_work(
    p_request_type text, p_prompt text, p_prompts text[], p_params jsonb, p_first integer, p_report bytea
)
returns bytea
language c volatile
as 'MODULE_PATHNAME', 'further_work_wrapper';
comment on function steadytext.further_work(text, text, text[], jsonb, integer, bytea) is
    'Returns more of a request''s work, of which prepared_work gives the beginning; called by more_work';

create function steadytext.more_work(
    p_worker text, p_id bigint, p_attempt integer, p_first integer, p_report bytea
)
returns bytea
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform steadytext.check_worker(p_worker);
    return (
        select steadytext.further_work(
            q.request_type, q.prompt, q.prompts, q.params, coalesce(p_first, 0), p_report)
        from @extschema@.steadytext_queue as q
        where q.id = p_id and q.attempt = p_attempt and q.worker = p_worker and q.status = 'processing'
    );
end
$$;
comment on function steadytext.more_work(text, bigint, integer, integer, bytea) is
    'Protocol: returns more of the work of a request whose subtasks did not all come with prepared_work or complete_reports, from subtask p_first on; p_report has the outputs of the stages before; NULL where the worker no longer holds the request';

create function steadytext.read_report(
    p_request_type text, p_prompt text, p_prompts text[], p_params jsonb, p_report bytea
)
returns table (
    result text,
    numbers real[],
    vector_length integer,
    vector_count integer,
    list text[],
    prompt_tokens integer,
    cached_tokens integer,
    generated_tokens integer,
    finish_reason text,
    first_token_ms integer,
    endpoint text,
    error text,
    error_code text,
    retry boolean,
    more bytea
)
language c volatile
rows 1
as 'MODULE_PATHNAME', 'read_report_wrapper';
comment on function steadytext.read_report(text, text, text[], jsonb, bytea) is
    'Returns the contents of a worker''s report of a request in the form that complete_requests and fail_requests take; called by parse_report';

create function steadytext.parse_report(
    p_request_type text, p_prompt text, p_prompts text[], p_params jsonb, p_report bytea
)
returns table (
    result text,
    numbers real[],
    vector_length integer,
    vector_count integer,
    list text[],
    prompt_tokens integer,
    cached_tokens integer,
    generated_tokens integer,
    finish_reason text,
    first_token_ms integer,
    endpoint text,
    error text,
    error_code text,
    retry boolean,
    more bytea
)
language plpgsql volatile
rows 1
set search_path = pg_catalog, pg_temp
as $$
declare
    v_message text;
    v_code text;
begin
    return query select r.* from steadytext.read_report(p_request_type, p_prompt, p_prompts, p_params, p_report) as r;
exception when others or assert_failure then
    get stacked diagnostics v_message = message_text, v_code = returned_sqlstate;
    vector_length := 0;
    error := left(v_message, 8192);
    error_code := v_code;
    retry := steadytext.is_transient(v_code);
    return next;
end
$$;
comment on function steadytext.parse_report(text, text, text[], jsonb, bytea) is
    'Returns the contents of a worker''s report of a request, as read_report does; an error in reading it becomes the error of the request. Called by complete_reports';

create function steadytext.complete_reports(
    p_worker text,
    p_ids bigint[],
    p_attempts integer[],
    p_reports bytea[]
)
returns table (id bigint, outcome text, more bytea)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    v record;
    v_ids bigint[];
    v_outcomes text[];
begin
    perform steadytext.check_worker(p_worker);
    if not steadytext.is_own_worker() then
        perform steadytext.check_lengths(p_ids, '{p_attempts,p_reports}', array[cardinality(p_attempts), cardinality(p_reports)]);
    end if;
    with reported as materialized (
        select q.id, q.attempt, r.*
        from (
            select * from unnest(p_ids, p_attempts, p_reports) as u(id, attempt, report) order by u.id
        ) as g
        cross join lateral (
            select q.id, q.attempt, q.request_type, q.prompt, q.prompts, q.params
            from @extschema@.steadytext_queue as q
            where q.id = g.id and q.attempt = g.attempt and q.worker = p_worker and q.status = 'processing'
            -- As in 31_complete.sql, rows are looked up one by one.
            offset 0
        ) as q
        cross join lateral steadytext.parse_report(q.request_type, q.prompt, q.prompts, q.params, g.report) as r
    )
    select coalesce(array_agg(t.id order by t.id), '{}') as held,
        array_agg(t.id order by t.id) filter (where t.error is null and t.more is null) as ids,
        array_agg(t.attempt order by t.id) filter (where t.error is null and t.more is null) as attempts,
        array_agg(t.result order by t.id) filter (where t.error is null and t.more is null) as results,
        array(
            select e.number from reported as o cross join lateral unnest(o.numbers) with ordinality as e(number, n)
            where o.error is null and o.more is null order by o.id, e.n
        ) as numbers,
        array_agg(t.vector_length order by t.id) filter (where t.error is null and t.more is null) as lengths,
        array_agg(t.vector_count order by t.id) filter (where t.error is null and t.more is null) as counts,
        array(
            select e.line from reported as o cross join lateral unnest(o.list) with ordinality as e(line, n)
            where o.error is null and o.more is null order by o.id, e.n
        ) as lists,
        array_agg(case when t.list is not null then cardinality(t.list) end order by t.id)
            filter (where t.error is null and t.more is null) as list_lengths,
        array_agg(t.prompt_tokens order by t.id) filter (where t.error is null and t.more is null) as prompt_tokens,
        array_agg(t.cached_tokens order by t.id) filter (where t.error is null and t.more is null) as cached_tokens,
        array_agg(t.generated_tokens order by t.id) filter (where t.error is null and t.more is null) as generated_tokens,
        array_agg(t.finish_reason order by t.id) filter (where t.error is null and t.more is null) as finish_reasons,
        array_agg(t.first_token_ms order by t.id) filter (where t.error is null and t.more is null) as first_token_ms,
        array_agg(t.endpoint order by t.id) filter (where t.error is null and t.more is null) as endpoints,
        array_agg(t.id order by t.id) filter (where t.error is not null) as failed_ids,
        array_agg(t.attempt order by t.id) filter (where t.error is not null) as failed_attempts,
        array_agg(t.error order by t.id) filter (where t.error is not null) as errors,
        array_agg(t.error_code order by t.id) filter (where t.error is not null) as codes,
        array_agg(t.retry order by t.id) filter (where t.error is not null) as retries,
        array_agg(t.prompt_tokens order by t.id) filter (where t.error is not null) as failed_prompt_tokens,
        array_agg(t.cached_tokens order by t.id) filter (where t.error is not null) as failed_cached_tokens,
        array_agg(t.generated_tokens order by t.id) filter (where t.error is not null) as failed_generated_tokens,
        array_agg(t.id order by t.id) filter (where t.more is not null) as more_ids,
        array_agg(t.more order by t.id) filter (where t.more is not null) as more
    into v
    from reported as t;

    if v.ids is not null then
        select array_agg(c.id), array_agg(c.outcome) into v_ids, v_outcomes
        from steadytext.write_answers(
            p_worker, v.ids, v.attempts, v.results, v.numbers, v.lengths, v.counts, v.lists, v.list_lengths,
            v.prompt_tokens, v.cached_tokens, v.generated_tokens, v.finish_reasons, v.first_token_ms, v.endpoints) as c;
        perform steadytext.count_reported(
            v_ids, v_outcomes, v.ids, v.prompt_tokens, v.cached_tokens, v.generated_tokens, v.first_token_ms);
        if 0 < any (v.lengths) then
            perform steadytext.note_vector_lengths(v.ids, v.lengths);
        end if;
        return query select c.id, c.outcome, null::bytea from unnest(v_ids, v_outcomes) as c(id, outcome);
    end if;
    if v.failed_ids is not null then
        select array_agg(f.id), array_agg(f.outcome) into v_ids, v_outcomes
        from steadytext.write_failures(p_worker, v.failed_ids, v.failed_attempts, v.errors, v.codes, v.retries) as f;
        perform steadytext.count_reported(
            v_ids, v_outcomes, v.failed_ids, v.failed_prompt_tokens, v.failed_cached_tokens, v.failed_generated_tokens, null);
        return query select f.id, f.outcome, null::bytea from unnest(v_ids, v_outcomes) as f(id, outcome);
    end if;
    if v.more_ids is not null then
        return query select m.id, 'more', m.more from unnest(v.more_ids, v.more) as m(id, more);
    end if;
    return query select m.id, m.outcome, null::bytea from steadytext.missed_requests(p_worker, p_ids, p_attempts, v.held) as m;
end
$$;
comment on function steadytext.complete_reports(text, bigint[], integer[], bytea[]) is
    'Protocol: ends requests that were given out by prepared_work, with answers or errors, as their reports say; outcomes as of complete_requests and fail_requests, and more where the work has another stage, which comes with it: the next report has the outputs of all stages';

create function steadytext.worker_models()
returns table (name text, file text, sha256 text, placement text)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
    select m.name, m.file, m.sha256, m.placement
    from @extschema@.steadytext_models as m
    where m.placement <> 'server'
    order by m.name
$$;
comment on function steadytext.worker_models() is
    'Protocol: returns the registered models that workers elsewhere may compute, with their files below the directory of the models';
