-- Contents and usefulness of the cache. Sums and shares are for every user; functions that show
-- keys or prompts are for administrators.
--
-- Sizes are those of the entries as they are stored (steadytext.cache_entries), the same that
-- eviction goes by. The table, its indexes and the room that evicted entries have left are
-- pg_total_relation_size('steadytext_cache').

create function @extschema@.steadytext_cache_stats()
returns table (
    total_entries bigint,
    total_size_mb double precision,
    cache_hit_rate double precision,
    avg_access_count double precision,
    oldest_entry timestamptz,
    newest_entry timestamptz
)
language plpgsql stable security definer rows 1
set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    select count(*), coalesce(sum(e.bytes), 0) / 1048576.0::float8,
        coalesce((select k.hits::float8 / nullif(k.hits + k.misses, 0) from steadytext.cache_counters() as k), 0),
        coalesce(avg(e.access_count), 0)::float8, min(e.created_at), max(e.created_at)
    from steadytext.cache_entries as e;
end
$$;
comment on function @extschema@.steadytext_cache_stats() is
    'Returns statistics of the cache in one row; cache_hit_rate is hits / (hits + misses) since the counters were reset, total_size_mb the size of the entries as they are stored';

create function @extschema@.steadytext_cache_stats_extended()
returns table (
    total_entries bigint,
    total_size_mb double precision,
    cache_hit_rate double precision,
    avg_access_count double precision,
    oldest_entry timestamptz,
    newest_entry timestamptz,
    low_frecency_count bigint,
    protected_count bigint,
    eviction_candidates bigint
)
language plpgsql stable security definer rows 1
set search_path = pg_catalog, pg_temp
as $$
declare
    v_min_access_count integer := steadytext.config_integer('cache_min_access_count');
    v_young timestamptz := now() - make_interval(secs => steadytext.config_number('cache_min_age_hours') * 3600);
begin
    return query
    select s.*, w.low, w.all_entries - w.candidates, w.candidates
    from @extschema@.steadytext_cache_stats() as s
    cross join (
        select count(*) as all_entries,
            count(*) filter (where e.frecency_score < 1) as low,
            count(*) filter (
                where e.created_at <= v_young
                    and not steadytext.is_cache_protected(e.access_count, v_min_access_count)
            ) as candidates
        from steadytext.cache_entries as e
    ) as w;
end
$$;
comment on function @extschema@.steadytext_cache_stats_extended() is
    'Returns what steadytext_cache_stats does, and how many entries have a frecency below 1, are protected by cache_min_access_count or cache_min_age_hours, and are not protected';

create function @extschema@.steadytext_cache_analyze_usage()
returns table (
    access_bucket text,
    entry_count bigint,
    avg_frecency_score double precision,
    total_size_mb double precision,
    percentage_of_cache double precision
)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    select b.bucket, count(*), avg(b.frecency_score), sum(b.bytes) / 1048576.0::float8,
        100.0::float8 * count(*) / sum(count(*)) over ()
    from (
        select e.frecency_score, e.bytes,
            case
                when e.access_count <= 1 then '1_single_access'
                when e.access_count <= 5 then '2_low_access'
                when e.access_count <= 20 then '3_medium_access'
                when e.access_count <= 100 then '4_high_access'
                else '5_very_high_access'
            end as bucket
        from steadytext.cache_entries as e
    ) as b
    group by b.bucket
    order by b.bucket;
end
$$;
comment on function @extschema@.steadytext_cache_analyze_usage() is
    'Returns the number and size of entries by how often they were used: 1, 2 to 5, 6 to 20, 21 to 100, more';

create function @extschema@.steadytext_cache_preview_eviction(preview_count bigint default 10)
returns table (
    cache_key text,
    prompt text,
    access_count integer,
    last_accessed timestamptz,
    created_at timestamptz,
    frecency_score double precision,
    size_bytes bigint
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    -- Without limits all must go: these are the first of them.
    return query
    select e.cache_key, left(e.prompt, 100), e.access_count, e.last_accessed, e.created_at,
        e.frecency_score, e.bytes::bigint
    from steadytext.cache_victims(-1, -1,
        steadytext.config_integer('cache_min_access_count'), steadytext.config_number('cache_min_age_hours'),
        p_limit => least(greatest(coalesce(preview_count, 10), 0), 2147483647)::integer) with ordinality as v(id, access_count, bytes, n)
    join steadytext.cache_entries as e on e.id = v.id
    order by v.n;
end
$$;
comment on function @extschema@.steadytext_cache_preview_eviction(bigint) is
    'Returns the entries that would be evicted next, in this order, if the cache were too large; prompts are cut. For members of steadytext_admin';

create function @extschema@.steadytext_cache_warmup(warmup_count bigint default 100)
returns table (warmed_entries integer, total_time_ms integer)
language plpgsql volatile security definer rows 1
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
    v_start timestamptz := clock_timestamp();
begin
    -- By the index that look-ups go through. A value that is compared with itself is read,
    -- also where it is TOASTed; and this comparison needs no operator of the vector's type.
    select count(*) filter (where record_image_eq(row(x.response, x.embedding), row(x.response, x.embedding)))
    into warmed_entries
    from (
        select c.key_hash
        from @extschema@.steadytext_cache_with_frecency as f
        join @extschema@.steadytext_cache as c on c.id = f.id
        order by f.frecency_score desc, f.id
        limit greatest(coalesce(warmup_count, 100), 0)
    ) as w
    join @extschema@.steadytext_cache as x on x.key_hash = w.key_hash;
    total_time_ms := date_part('epoch', clock_timestamp() - v_start) * 1000;
    return next;
end
$$;
comment on function @extschema@.steadytext_cache_warmup(bigint) is
    'Reads the entries with the highest scores into memory, for use after a restart; changes nothing. For members of steadytext_admin';
