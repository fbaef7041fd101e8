-- Protocol: what the worker writes into the cache. Answers come from it and, by way of shared
-- memory, from synchronous calls; accesses are counted in shared memory and written down here
-- in batches.

create function steadytext.check_answers(
    p_keys text[],
    p_prompts text[],
    p_responses text[],
    p_embeddings real[],
    p_embedding_lengths integer[],
    p_about jsonb[]
)
returns void
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_name text;
begin
    if exists (
        select
        from unnest(p_keys, p_prompts, p_responses, p_embedding_lengths, p_about) as g(key, prompt, response, length, about)
        where g.key is null or g.prompt is null or g.about ->> 'request_type' is null
    ) then
        raise exception 'an answer for the cache lacks its key, its prompt or its request_type'
            using errcode = 'invalid_parameter_value',
                  hint = 'Each array has one element for each answer; request_type is a member of those of p_about.';
    end if;
    if exists (select from unnest(p_embedding_lengths) as g(length) where g.length not between 0 and 16000)
        or (select coalesce(sum(g.length), 0) from unnest(p_embedding_lengths) as g(length)) <> coalesce(cardinality(p_embeddings), 0)
        or array_ndims(p_embeddings) > 1 or array_position(p_embeddings, null) is not null
    then
        raise exception 'the vectors of answers for the cache do not fit their lengths'
            using errcode = 'invalid_parameter_value',
                  hint = 'p_embeddings has the numbers of all vectors one after the other, p_embedding_lengths how many of them are each answer''s: 0 to 16000.';
    end if;
    select v.name into v_name
    from unnest(p_about) as g(about)
    cross join (values
        ('seed', 9223372036854775807), ('response_size', 2147483647), ('generation_time_ms', 2147483647), ('kernel_version', 2147483647)
    ) as v(name, maximum)
    where case when g.about ->> v.name ~ '^-?[0-9]{1,19}$' then abs((g.about ->> v.name)::numeric) > v.maximum
        else g.about ->> v.name is not null end
    limit 1;
    if found then
        raise exception '% of an answer for the cache is no integer, or too large', v_name
            using errcode = 'invalid_parameter_value', hint = 'In p_about it is an integer, null, or left out.';
    end if;
end
$$;
comment on function steadytext.check_answers(text[], text[], text[], real[], integer[], jsonb[]) is
    'Refuses answers that cannot be put into the cache; called by store_answers';

create function steadytext.store_answers(
    p_keys text[],
    p_prompts text[],
    p_responses text[],
    p_embeddings real[],
    p_embedding_lengths integer[],
    p_about jsonb[]
)
returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
-- An entry of the same key may be in somebody's open transaction: it is not waited for.
set lock_timeout = '20ms'
as $$
declare
    v_given record;
    v_count bigint;
begin
    perform steadytext.check_answers(p_keys, p_prompts, p_responses, p_embeddings, p_embedding_lengths, p_about);
    perform steadytext.make_constraints_immediate();
    -- As in complete_requests: a field of a record stays packed.
    select p_embeddings as numbers into v_given;

    with given as (
        select g.key, g.prompt, g.response, g.about, coalesce(g.length, 0) as length, g.n,
            sum(g.length) over (order by g.n rows unbounded preceding)::integer as last
        from unnest(p_keys, p_prompts, p_responses, p_embedding_lengths, p_about)
            with ordinality as g(key, prompt, response, length, about, n)
    ),
    -- The same answer may have come twice; in the order of the index, so that two writers
    -- never wait for each other.
    once as (
        select distinct on (steadytext.cache_key_hash(g.key)) g.*
        from given as g
        order by steadytext.cache_key_hash(g.key), g.n desc
    )
    insert into @extschema@.steadytext_cache as c (
        cache_key, prompt, response, embedding, request_type, model_name, model_size, seed, eos_string,
        generation_params, response_size, generation_time_ms, model_hash, kernel_version
    )
    select o.key, o.prompt, o.response,
        case when o.length > 0 then v_given.numbers[o.last - o.length + 1 : o.last] end,
        o.about ->> 'request_type', o.about ->> 'model_name', o.about ->> 'model_size',
        (o.about ->> 'seed')::bigint, o.about ->> 'eos_string', o.about -> 'generation_params',
        (o.about ->> 'response_size')::integer, (o.about ->> 'generation_time_ms')::integer,
        o.about ->> 'model_hash', (o.about ->> 'kernel_version')::integer
    from once as o
    on conflict (key_hash) do update set
        prompt = excluded.prompt,
        response = excluded.response,
        embedding = excluded.embedding,
        access_count = 1,
        last_accessed = now(),
        created_at = now(),
        model_name = excluded.model_name,
        model_size = excluded.model_size,
        seed = excluded.seed,
        eos_string = excluded.eos_string,
        generation_params = excluded.generation_params,
        response_size = excluded.response_size,
        generation_time_ms = excluded.generation_time_ms,
        request_type = excluded.request_type,
        model_hash = excluded.model_hash,
        kernel_version = excluded.kernel_version,
        imported = false
    -- An entry that has the present model and kernels stays, and so does one that an administrator
    -- imported.
    where c.request_type <> excluded.request_type
        or not c.imported
        and (c.model_hash, c.kernel_version) is distinct from (excluded.model_hash, excluded.kernel_version);
    get diagnostics v_count = row_count;
    return v_count;
end
$$;
comment on function steadytext.store_answers(text[], text[], text[], real[], integer[], jsonb[]) is
    'Protocol: puts answers into the cache, in the place of those of another model or kernel version';

create function steadytext.count_accesses(p_ids bigint[], p_counts bigint[], p_last timestamptz[])
returns setof bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
declare
    v_now timestamptz := clock_timestamp();
    v_ranges integer[] := array[1, cardinality(p_ids)];
    v_some bigint[];
    v_ids bigint[] := '{}';
begin
    perform steadytext.make_constraints_immediate();
    while cardinality(v_ranges) > 0 loop
        begin
            with held as materialized (
                select h.tid, g.count, g.last
                from (
                    select a.id, a.count, a.last
                    from unnest(p_ids, p_counts, p_last) with ordinality as a(id, count, last, n)
                    where a.n between v_ranges[1] and v_ranges[2]
                    order by a.id
                ) as g
                cross join lateral (
                    select c.ctid as tid
                    from @extschema@.steadytext_cache as c
                    where c.id = g.id
                    for no key update skip locked
                ) as h
            ),
            counted as (
                update @extschema@.steadytext_cache as c set
                    access_count = least(c.access_count + h.count, 2147483647),
                    last_accessed = greatest(c.last_accessed, h.last)
                from held as h
                where c.ctid = h.tid
                returning c.id
            )
            select coalesce(array_agg(counted.id), '{}') into v_some from counted;
            v_ranges := v_ranges[3 :];
        exception when others or assert_failure or query_canceled then
            v_some := '{}';
            -- Uses of an entry that cannot be written are not worth another try.
            if v_ranges[1] = v_ranges[2] then
                v_some := array[p_ids[v_ranges[1]]];
            end if;
            v_ranges := steadytext.halves(v_ranges, v_now);
        end;
        v_ids := v_ids || v_some;
    end loop;

    if cardinality(p_ids) > cardinality(v_ids) then
        return query
        select c.id
        from unnest(p_ids) as g(id)
        join @extschema@.steadytext_cache as c on c.id = g.id
        where c.id <> all (v_ids);
    end if;
end
$$;
comment on function steadytext.count_accesses(bigint[], bigint[], timestamptz[]) is
    'Protocol: adds to access_count and last_accessed of entries, each named once; returns the entries that another transaction has locked, to be tried again';

create function steadytext.cache_counters()
returns table (hits bigint, misses bigint, dropped bigint, since timestamptz)
language c volatile rows 1
as 'MODULE_PATHNAME', 'cache_counters_wrapper';
comment on function steadytext.cache_counters() is
    'Returns counters of this database''s cache: requests that it answered, requests that it had no answer for, answers that it dropped because they were too long, too many or refused by the table, and the time since which they are counted';

create function steadytext.reset_cache_counters()
returns void
language c volatile
as 'MODULE_PATHNAME', 'reset_cache_counters_wrapper';
comment on function steadytext.reset_cache_counters() is 'Resets the counters of this database''s cache';
