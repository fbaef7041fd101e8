-- Eviction: which entries of the cache go when it is larger than it may be, and in what order.
--
-- An entry is worth access_count * exp(-days since its last access); the least worth goes
-- first, of equals the older one. The choice is made in one look at the whole cache, and the
-- chosen go in batches: an entry that somebody has locked, or that was used since it was
-- chosen, stays. Nothing here ever waits for a lock, so evictions cannot deadlock.

create view steadytext.cache_entries as
select c.id, c.cache_key, c.prompt, c.access_count, c.last_accessed, c.created_at, c.frecency_score,
    -- A row's pointer and header, the columns of fixed size with what aligns them, and the checksum of
    -- the key. Then what varies: pg_column_size() of a compressed or TOASTed value is what it takes,
    -- and reads nothing.
    4 + 32 + 56 + 33
        + pg_catalog.pg_column_size(c.cache_key) + pg_catalog.pg_column_size(c.prompt)
        + pg_catalog.pg_column_size(c.request_type)
        + coalesce(pg_catalog.pg_column_size(c.response), 0)
        + coalesce(pg_catalog.pg_column_size(c.embedding), 0)
        + coalesce(pg_catalog.pg_column_size(c.model_name), 0)
        + coalesce(pg_catalog.pg_column_size(c.model_size), 0)
        + coalesce(pg_catalog.pg_column_size(c.eos_string), 0)
        + coalesce(pg_catalog.pg_column_size(c.generation_params), 0)
        + coalesce(pg_catalog.pg_column_size(c.model_hash), 0) as bytes
from @extschema@.steadytext_cache_with_frecency as c;
comment on view steadytext.cache_entries is
    'Score and size of each entry of the cache, for eviction and statistics';
comment on column steadytext.cache_entries.id is 'Number of the entry';
comment on column steadytext.cache_entries.cache_key is 'Key of the entry';
comment on column steadytext.cache_entries.prompt is 'Prompt of the entry';
comment on column steadytext.cache_entries.access_count is 'Number of times that the entry was used';
comment on column steadytext.cache_entries.last_accessed is 'Time when the entry was last used';
comment on column steadytext.cache_entries.created_at is 'Time when the entry was computed or imported';
comment on column steadytext.cache_entries.frecency_score is 'Score by which entries are evicted, the lowest first: access_count * exp(-days since last_accessed)';
comment on column steadytext.cache_entries.bytes is
    'Bytes that the entry takes in the table: its row, and its values as they are stored, compressed or TOASTed; without indexes';

create function steadytext.is_cache_protected(p_access_count integer, p_min_access_count integer)
returns boolean
language sql immutable parallel safe
begin atomic
    select p_min_access_count operator(pg_catalog.>) 0
        and p_access_count operator(pg_catalog.>=) p_min_access_count;
end;
comment on function steadytext.is_cache_protected(integer, integer) is
    'Returns whether an entry was used so often that others are evicted before it; a minimum of 0 protects none';

create function steadytext.cache_victims(
    p_max_entries double precision,
    p_max_bytes double precision,
    p_min_access_count integer,
    p_min_age_hours double precision,
    p_by_age boolean default false,
    p_strict boolean default false,
    p_limit integer default null
)
returns table (id bigint, access_count integer, bytes integer)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set jit = off
as $$
#variable_conflict use_column
begin
    return query
    with entries as materialized (
        select e.id, e.access_count, e.bytes, e.created_at, e.frecency_score,
            steadytext.is_cache_protected(e.access_count, p_min_access_count) as protected
        from steadytext.cache_entries as e
    ),
    candidates as (
        -- By how much the cache is too large when it is this entry's turn.
        select e.id, e.access_count, e.bytes,
            t.entries - row_number() over turn + 1 as entries_before,
            t.bytes - sum(e.bytes) over turn + e.bytes as bytes_before
        from entries as e
        cross join (select count(*) as entries, sum(x.bytes) as bytes from entries as x) as t
        where e.created_at <= now() - make_interval(secs => p_min_age_hours * 3600)
            and not (p_strict and e.protected)
        window turn as (
            order by e.protected,
                case when p_by_age then date_part('epoch', e.created_at) else e.frecency_score end,
                e.id
            rows unbounded preceding
        )
    )
    select c.id, c.access_count, c.bytes
    from candidates as c
    where c.entries_before > p_max_entries or c.bytes_before > p_max_bytes
    order by c.entries_before desc
    limit p_limit;
end
$$;
comment on function steadytext.cache_victims(double precision, double precision, integer, double precision, boolean, boolean, integer) is
    'Returns the entries that must be evicted for the cache to keep two limits, in the order of eviction; with p_strict, never one that is protected by its access count';

create function steadytext.evict_entries(p_ids bigint[], p_access_counts integer[])
returns bigint[]
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
    v_gone bigint[] := '{}';
begin
    -- An entry whose removal raises an error stays.
    while cardinality(v_ranges) > 0 loop
        begin
            with held as materialized (
                select h.tid
                from unnest(p_ids[v_ranges[1] : v_ranges[2]], p_access_counts[v_ranges[1] : v_ranges[2]])
                    as g(id, access_count)
                cross join lateral (
                    select c.ctid as tid
                    from @extschema@.steadytext_cache as c
                    where c.id = g.id and c.access_count = g.access_count
                    for update skip locked
                ) as h
            ),
            gone as (
                delete from @extschema@.steadytext_cache as c
                using held as h
                where c.ctid = h.tid
                returning c.id
            )
            select coalesce(array_agg(g.id), '{}') into v_some from gone as g;
            v_ranges := v_ranges[3 :];
        exception when others or assert_failure or query_canceled then
            v_some := '{}';
            v_ranges := steadytext.halves(v_ranges, v_now, false);
        end;
        v_gone := v_gone || v_some;
    end loop;
    return v_gone;
end
$$;
comment on function steadytext.evict_entries(bigint[], integer[]) is
    'Protocol: evicts one batch of entries; returns the entries that are gone, without those that are locked or were used since they were chosen';

create function steadytext.evict(
    p_target_entries double precision,
    p_target_size_mb double precision,
    p_batch_size integer,
    p_min_access_count integer,
    p_min_age_hours double precision,
    p_by_age boolean,
    p_strict boolean,
    out evicted_count integer,
    out freed_size_mb double precision,
    out remaining_entries bigint,
    out remaining_size_mb double precision
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_ids bigint[];
    v_counts integer[];
    v_bytes integer[];
    v_gone bigint[];
    v_from integer := 1;
    -- A step as long as the longest list fits into its counter.
    v_batch integer := least(greatest(coalesce(p_batch_size, 100), 1), 1000000);
    v_freed bigint := 0;
begin
    if p_target_entries < 0 or p_target_size_mb < 0 or p_target_size_mb = 'NaN' then
        raise exception 'a target of an eviction must not be negative'
            using errcode = 'invalid_parameter_value', hint = 'Give 0 or more, or NULL for the limit in steadytext_config.';
    end if;
    if p_min_age_hours < 0 or p_min_age_hours > 876000 then
        raise exception 'min_age_hours must be between 0 and 876000'
            using errcode = 'invalid_parameter_value', hint = 'Give hours, or NULL for the setting cache_min_age_hours.';
    end if;
    select array_agg(v.id), array_agg(v.access_count), array_agg(v.bytes)
    into v_ids, v_counts, v_bytes
    from steadytext.cache_victims(
        coalesce(p_target_entries, steadytext.config_number('cache_max_entries')),
        least(coalesce(p_target_size_mb, steadytext.config_number('cache_max_size_mb')), 1e15) * 1048576,
        coalesce(p_min_access_count, steadytext.config_integer('cache_min_access_count')),
        coalesce(p_min_age_hours, steadytext.config_number('cache_min_age_hours')),
        p_by_age, p_strict) as v;

    evicted_count := 0;
    while v_from <= coalesce(cardinality(v_ids), 0) loop
        v_gone := steadytext.evict_entries(
            v_ids[v_from : v_from + v_batch - 1], v_counts[v_from : v_from + v_batch - 1]);
        evicted_count := evicted_count + cardinality(v_gone);
        v_freed := v_freed + (
            select coalesce(sum(b.bytes), 0)
            from unnest(v_ids[v_from : v_from + v_batch - 1], v_bytes[v_from : v_from + v_batch - 1]) as b(id, bytes)
            where b.id = any (v_gone)
        );
        v_from := v_from + v_batch;
    end loop;
    freed_size_mb := v_freed / 1048576.0;
    select count(*), coalesce(sum(e.bytes), 0) / 1048576.0
    into remaining_entries, remaining_size_mb
    from steadytext.cache_entries as e;
end
$$;
comment on function steadytext.evict(double precision, double precision, integer, integer, double precision, boolean, boolean) is
    'Chooses and evicts entries, batch after batch, in the caller''s transaction; NULLs stand for the limits and protections in steadytext_config';

create function @extschema@.steadytext_cache_evict_by_frecency(
    target_entries bigint default null,
    target_size_mb double precision default null,
    batch_size bigint default 100,
    min_access_count bigint default 2,
    min_age_hours bigint default 1
)
returns table (
    evicted_count integer,
    freed_size_mb double precision,
    remaining_entries bigint,
    remaining_size_mb double precision
)
language plpgsql volatile security definer rows 1
set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    select e.* from steadytext.evict(
        target_entries, target_size_mb, least(greatest(coalesce(batch_size, 100), 0), 1000000)::integer,
        case when min_access_count is not null then least(greatest(min_access_count, 0), 2147483647)::integer end,
        min_age_hours, false, true) as e;
end
$$;
comment on function @extschema@.steadytext_cache_evict_by_frecency(bigint, double precision, bigint, bigint, bigint) is
    'Evicts the entries with the lowest scores until the cache keeps both targets (NULL: cache_max_entries, cache_max_size_mb), and never an entry that was used min_access_count times or is younger than min_age_hours. For members of steadytext_admin';

create function @extschema@.steadytext_cache_evict_by_age(
    target_entries bigint default null,
    target_size_mb double precision default null,
    batch_size bigint default 100,
    min_age_hours bigint default 1
)
returns table (
    evicted_count integer,
    freed_size_mb double precision,
    remaining_entries bigint,
    remaining_size_mb double precision
)
language plpgsql volatile security definer rows 1
set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    select e.* from steadytext.evict(
        target_entries, target_size_mb, least(greatest(coalesce(batch_size, 100), 0), 1000000)::integer, 0, min_age_hours, true, false) as e;
end
$$;
comment on function @extschema@.steadytext_cache_evict_by_age(bigint, double precision, bigint, bigint) is
    'Evicts the oldest entries, however often they were used, until the cache keeps both targets (NULL: cache_max_entries, cache_max_size_mb); never an entry that is younger than min_age_hours. For members of steadytext_admin';
