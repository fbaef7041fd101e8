-- Search in what a vectorizer keeps: by vectors, and by vectors and words together.
--
-- The functions of the API hand over their caller's search path, on which the filter is read, to those that do the work.

-- Runs the statement of a search, which returns up to p_count rows. The index gives the nearest rows first, and a filter, a policy or
-- a row that has gone meanwhile may leave too few of them: pgvector goes on with its scan then (from 0.8, within
-- hnsw.max_scan_tuples). Where even that is not enough, the caller looks at everything.
create function steadytext.run_search(
    p_statement text,
    p_vector text,
    p_count integer,
    p_path text,
    p_words text,
    p_rrf_k integer,
    p_alpha double precision,
    p_limit integer,
    out keys jsonb[],
    out chunks text[],
    out distances double precision[],
    out dense_ranks integer[],
    out sparse_ranks integer[],
    out rows jsonb[],
    out dense_count bigint
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_is_hybrid boolean := p_words is not null;
    v_collect text := format(
        'select pg_catalog.array_agg(f.key), pg_catalog.array_agg(f.chunk), pg_catalog.array_agg(%s), %s, pg_catalog.array_agg(f.row), %s from (%s) as f',
        case when v_is_hybrid then 'f.score' else 'f.distance' end,
        case when v_is_hybrid then 'pg_catalog.array_agg(f.dense_rank), pg_catalog.array_agg(f.sparse_rank)'
            else 'null::integer[], null::integer[]' end,
        case when v_is_hybrid then 'pg_catalog.max(f.dense_count)' else 'pg_catalog.count(*)' end,
        p_statement);
    v_ef_search text := current_setting('hnsw.ef_search', true);
    v_iterative text := current_setting('hnsw.iterative_scan', true);
    v_probes text := current_setting('ivfflat.iterative_scan', true);
begin
    -- Settings of pgvector, which is loaded by now, where it has them. An error takes them back with everything else.
    if v_ef_search is not null then
        perform set_config('hnsw.ef_search', greatest(v_ef_search::integer, least(p_count, 1000))::text, true);
    end if;
    if v_iterative is not null then
        perform set_config('hnsw.iterative_scan', 'strict_order', true);
    end if;
    if v_probes is not null then
        perform set_config('ivfflat.iterative_scan', 'relaxed_order', true);
    end if;
    perform set_config('search_path', p_path, true);
    if v_is_hybrid then
        execute v_collect into keys, chunks, distances, dense_ranks, sparse_ranks, rows, dense_count
            using p_vector, p_count, p_words, p_rrf_k, p_alpha, p_limit;
    else
        execute v_collect into keys, chunks, distances, dense_ranks, sparse_ranks, rows, dense_count using p_vector, p_count;
    end if;
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    if v_ef_search is not null then
        perform set_config('hnsw.ef_search', v_ef_search, true);
    end if;
    if v_iterative is not null then
        perform set_config('hnsw.iterative_scan', v_iterative, true);
    end if;
    if v_probes is not null then
        perform set_config('ivfflat.iterative_scan', v_probes, true);
    end if;
end
$$;
comment on function steadytext.run_search(text, text, integer, text, text, integer, double precision, integer) is
    'Runs the statement of a search with the settings of pgvector that it needs, on the search path of the caller';

create function steadytext.check_filter(filter text)
returns boolean
language c immutable parallel safe
as 'MODULE_PATHNAME', 'check_filter_wrapper';
comment on function steadytext.check_filter(text) is
    'Returns true, or raises an error where a text is not exactly one SQL expression, so that no part of a filter is read as another part of a query';

create function steadytext.check_search(p_query text, p_k bigint, p_filter text)
returns integer
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    if p_k is null or p_k not between 1 and 1000 then
        raise exception 'k must be between 1 and 1000'
            using errcode = 'invalid_parameter_value', hint = 'It is how many rows are returned, 10 by default.';
    end if;
    if p_query !~ '\S' then
        raise exception 'query has no text'
            using errcode = 'invalid_parameter_value', hint = 'Give it some words; a query that is NULL finds nothing.';
    end if;
    perform steadytext.check_filter(p_filter);
    return p_k;
end
$$;
comment on function steadytext.check_search(text, bigint, text) is 'Returns k, or raises an error where it, the query or the filter is invalid; called by searches';

create function steadytext.search(
    p_vectorizer text, p_query text, p_k bigint, p_filter text, p_rerank boolean, p_path text
)
returns table (key jsonb, chunk text, distance double precision, "row" jsonb)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_k integer := steadytext.check_search(p_query, p_k, p_filter);
    v_target steadytext.search_target := steadytext.find_search_target(p_vectorizer);
    -- The number of rows to rerank, or to return.
    v_count integer := case when p_rerank then greatest(v_k, least(4 * v_k, 100)) else v_k end;
    v_vector text;
    v_found record;
begin
    if p_query is null then
        return;
    end if;
    v_vector := @extschema@.steadytext_vectorizer_embed(p_vectorizer, p_query);
    v_found := steadytext.run_search(
        steadytext.search_statement(v_target, p_filter, false), v_vector, v_count, p_path, null, null, null, null);
    if coalesce(cardinality(v_found.keys), 0) < v_count then
        v_found := steadytext.run_search(
            steadytext.search_statement(v_target, p_filter, true), v_vector, v_count, p_path, null, null, null, null);
    end if;
    if v_found.keys is null and p_filter is null then
        raise notice 'vectorizer "%" has no vectors yet, of rows that you may see', p_vectorizer
            using hint = 'They come a moment after the rows: steadytext_vectorizer_status tells the owner how far it is.';
    end if;
    if p_rerank and cardinality(v_found.keys) > 0 then
        return query
        select v_found.keys[r.index], v_found.chunks[r.index], v_found.distances[r.index], v_found.rows[r.index]
        from @extschema@.steadytext_rerank(p_query, v_found.chunks) with ordinality as r(document, score, index, document_id, n)
        order by r.score desc, r.index
        limit v_k;
        return;
    end if;
    -- An index may give its rows in about their order only.
    return query
    select f.key, f.chunk, f.distance, f."row"
    from unnest(v_found.keys, v_found.chunks, v_found.distances, v_found.rows) with ordinality as f(key, chunk, distance, "row", n)
    order by f.distance, f.n;
end
$$;
comment on function steadytext.search(text, text, bigint, text, boolean, text) is
    'Does what steadytext_search() does, with the search path on which the filter is read';

create function @extschema@.steadytext_search(
    vectorizer text,
    query text,
    k bigint default 10,
    filter text default null,
    rerank boolean default false
)
returns table (key jsonb, chunk text, distance double precision, "row" jsonb)
language sql stable parallel unsafe rows 10 cost 100000
begin atomic
    select s.key, s.chunk, s.distance, s."row"
    from steadytext.search(vectorizer, query, k, filter, rerank, pg_catalog.current_setting('search_path')) as s;
end;
comment on function @extschema@.steadytext_search(text, text, bigint, text, boolean) is
    'Returns the k rows of a vectorizer whose texts are nearest to a query, among those that an SQL condition over the source lets through; with rerank, a reranker chooses and orders them';

-- A row is wanted that has any of the words, and before others one that has more of them. Where the query excludes something, it is
-- taken as it stands.
create function steadytext.any_words(p_config regconfig, p_query text)
returns tsquery
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select case when strpos(w.query::text, '!') > 0 then w.query else replace(w.query::text, ' & ', ' | ')::tsquery end
    from websearch_to_tsquery(p_config, p_query) as w(query)
$$;
comment on function steadytext.any_words(regconfig, text) is 'Returns the words of a query as a text search; called by steadytext_hybrid_search';

create function steadytext.hybrid_search(
    p_vectorizer text, p_query text, p_k bigint, p_rrf_k bigint, p_alpha double precision, p_filter text, p_path text
)
returns table (key jsonb, chunk text, dense_rank integer, sparse_rank integer, score double precision, "row" jsonb)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_k integer := steadytext.check_search(p_query, p_k, p_filter);
    v_target steadytext.search_target := steadytext.find_search_target(p_vectorizer);
    v_config text;
    v_vector text;
    v_words text;
    -- Number of the results of each list that are joined.
    v_count integer := least(1000, greatest(4 * v_k, 60));
    v_found record;
begin
    if p_rrf_k is null or p_rrf_k not between 1 and 1000000 then
        raise exception 'rrf_k must be between 1 and 1000000'
            using errcode = 'invalid_parameter_value', hint = 'It is what is added to each rank, 60 by default.';
    end if;
    if p_alpha is null or not p_alpha between 0 and 1 then
        raise exception 'alpha must be between 0 and 1' using errcode = 'invalid_parameter_value',
            hint = '1 is the order of the vectors alone, 0 that of the words.';
    end if;
    if p_query is null then
        return;
    end if;
    v_config := coalesce((steadytext.text_index(v_target.target::regclass, v_target.shown_texts)).config, get_current_ts_config()::text);
    v_words := steadytext.any_words(v_config::regconfig, p_query);
    v_vector := @extschema@.steadytext_vectorizer_embed(p_vectorizer, p_query);
    v_found := steadytext.run_search(steadytext.hybrid_statement(v_target, p_filter, false, v_config),
        v_vector, v_count, p_path, v_words, p_rrf_k::integer, p_alpha, v_k);
    -- The list of the nearest may lack some, whatever the words have found.
    if coalesce(v_found.dense_count, 0) < v_count then
        v_found := steadytext.run_search(steadytext.hybrid_statement(v_target, p_filter, true, v_config),
            v_vector, v_count, p_path, v_words, p_rrf_k::integer, p_alpha, v_k);
    end if;
    if v_found.keys is null and p_filter is null then
        raise notice 'vectorizer "%" has no vectors yet, of rows that you may see', p_vectorizer
            using hint = 'They come a moment after the rows: steadytext_vectorizer_status tells the owner how far it is.';
    end if;
    return query
    select f.key, f.chunk, f.dense_rank, f.sparse_rank, f.score, f."row"
    from unnest(v_found.keys, v_found.chunks, v_found.dense_ranks, v_found.sparse_ranks, v_found.distances, v_found.rows)
        as f(key, chunk, dense_rank, sparse_rank, score, "row");
end
$$;
comment on function steadytext.hybrid_search(text, text, bigint, bigint, double precision, text, text) is
    'Does what steadytext_hybrid_search() does, with the search path on which the filter is read';

create function @extschema@.steadytext_hybrid_search(
    vectorizer text,
    query text,
    k bigint default 10,
    rrf_k bigint default 60,
    alpha double precision default 0.5,
    filter text default null
)
returns table (key jsonb, chunk text, dense_rank integer, sparse_rank integer, score double precision, "row" jsonb)
language sql stable parallel unsafe rows 10 cost 100000
begin atomic
    select s.key, s.chunk, s.dense_rank, s.sparse_rank, s.score, s."row"
    from steadytext.hybrid_search(vectorizer, query, k, rrf_k, alpha, filter, pg_catalog.current_setting('search_path')) as s;
end;
comment on function @extschema@.steadytext_hybrid_search(text, text, bigint, bigint, double precision, text) is
    'Returns the k rows of a vectorizer that are best by meaning and by words together, joined by their ranks in both lists: alpha / (rrf_k + dense_rank) + (1 - alpha) / (rrf_k + sparse_rank)';
