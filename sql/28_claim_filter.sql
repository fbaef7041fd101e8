-- Protocol: which rows a worker takes. A claim that may take all rows calls none of this; any other one looks for its rows in lanes
-- (steadytext.claim_lane), so that those of others cost it nothing.

create function steadytext.models_placed(p_placement text)
returns text[]
language c stable strict
as 'MODULE_PATHNAME', 'models_placed_wrapper';
comment on function steadytext.models_placed(text) is
    'Returns the registered models of a placement, as the session knows the registry; called by claim_requests';

create function steadytext.default_models()
returns text[]
language c volatile
as 'MODULE_PATHNAME', 'default_models_wrapper';
comment on function steadytext.default_models() is
    'Returns the models of requests that name none: for generation, embeddings and ranking; called by claim_requests';

-- The numbers are those of default_models.
create function steadytext.task_number(p_request_type text, p_params jsonb)
returns integer
language sql immutable parallel safe
begin atomic
    select case
        when p_request_type operator(pg_catalog.=) any (array['embed', 'batch_embed', 'similarity', 'deduplicate_facts']) then 2
        when p_request_type operator(pg_catalog.=) any (array['rerank', 'batch_rerank']) then 3
        when p_request_type operator(pg_catalog.=) any (array['classify', 'classify_scores', 'classify_multi'])
            and (p_params operator(pg_catalog.->>) 'method') operator(pg_catalog.=) 'embed' then 2
        else 1
    end;
end;
comment on function steadytext.task_number(text, jsonb) is
    'Returns the task of a request''s model: 1 generation, 2 embeddings, 3 ranking; called by is_served';

create function steadytext.is_served(
    p_request_type text,
    p_params jsonb,
    p_types text[],
    p_models text[],
    p_without text[],
    p_defaults text[]
)
returns boolean
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    v_model text;
begin
    if p_request_type <> all (p_types) then
        return false;
    end if;
    if p_models is null and p_without = '{}' then
        return true;
    end if;
    v_model := lower(coalesce(p_params ->> 'model', p_params ->> 'size', p_params ->> 'default_model',
        p_defaults[steadytext.task_number(p_request_type, p_params)]));
    -- A request for an unknown model is left to workers that take everything, which end it with an error.
    if v_model is null then
        return p_models is null;
    end if;
    return v_model <> all (p_without) and (p_models is null or v_model = any (p_models));
end
$$;
comment on function steadytext.is_served(text, jsonb, text[], text[], text[], text[]) is
    'Returns whether a worker takes a request: of these types and models (NULL: all), and of none of the models in p_without; names are in lower case; called by claim_requests';

create function steadytext.lower_names(p_names text[])
returns text[]
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select case when p_names is not null then array(select lower(n) from unnest(p_names) with ordinality as u(n, o) order by o) end
$$;
comment on function steadytext.lower_names(text[]) is
    'Returns names in lower case, in their order; called by claim_requests';

-- The lanes of a user at a priority that a claim takes from. A lane is found with one descent of the index, and one of its rows says what all of
-- them are: so what a worker leaves costs it the same, however many rows there are of it. Of a user who has more lanes than are looked at,
-- others are looked at each time.
create function steadytext.served_lanes(
    p_priority integer,
    p_role oid,
    p_types text[],
    p_models text[],
    p_without text[],
    p_defaults text[]
)
returns bigint[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    c_lanes constant integer := 64;
    v_first bigint := steadytext.first_lane(p_role, p_priority);
    v_last bigint := v_first + 268435455;
    v_lane bigint := v_first - 1;
    v_count integer := 0;
    v_row record;
    v_served bigint[] := '{}';
begin
    loop
        select steadytext.claim_lane(q.owner_role, q.priority, q.request_type, q.params) as lane, q.request_type, q.params
        into v_row
        from @extschema@.steadytext_queue as q
        where q.status = 'pending' and q.run_after is null and not q.alone and coalesce(q.attempt, 0) >= 0
            and steadytext.claim_lane(q.owner_role, q.priority, q.request_type, q.params) > v_lane
            and steadytext.claim_lane(q.owner_role, q.priority, q.request_type, q.params) <= v_last
        order by steadytext.claim_lane(q.owner_role, q.priority, q.request_type, q.params)
        limit 1;
        exit when not found;
        v_lane := v_row.lane;
        -- A row of a dump may name a model by what is no text: it is in the lane of those that name none, and does not speak for them.
        if v_lane <> all (v_served) and (
            steadytext.is_served(v_row.request_type, v_row.params, p_types, p_models, p_without, p_defaults)
            or exists (
                select from unnest(array['model', 'size', 'default_model']) as n(name)
                where jsonb_typeof(v_row.params -> n.name) not in ('string', 'null')))
        then
            v_served := v_served || v_lane;
        end if;
        v_count := v_count + 1;
        if v_count = c_lanes then
            v_lane := greatest(v_lane, v_first + (random() * 268435455)::bigint);
        end if;
        exit when v_count = 2 * c_lanes;
    end loop;
    return v_served;
end
$$;
comment on function steadytext.served_lanes(integer, oid, text[], text[], text[], text[]) is
    'Returns the lanes of a user''s pending requests of a priority that a worker serves; called by claim_requests';

create function steadytext.lanes_of(p_lanes bigint[], p_role oid, p_priority integer)
returns bigint[]
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select array(
        select l.lane from unnest(p_lanes) as l(lane)
        where l.lane between steadytext.first_lane(p_role, p_priority) and steadytext.first_lane(p_role, p_priority) + 268435455)
$$;
comment on function steadytext.lanes_of(bigint[], oid, integer) is
    'Returns the lanes in p_lanes that belong to a user and a priority; called by pick_rows';

create function steadytext.lane_rows(
    p_lanes bigint[],
    p_first bigint,
    p_until bigint,
    p_rows integer,
    p_aside bigint[],
    p_types text[],
    p_models text[],
    p_without text[],
    p_defaults text[]
)
returns table (tid tid, id bigint, holder bigint)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    select f.tid, f.id, f.holder
    from (
        select r.*
        from unnest(p_lanes) as w(lane)
        cross join lateral (
            select q.ctid as tid, q.id, q.xmax::text::bigint as holder, q.request_type, q.params
            from @extschema@.steadytext_queue as q
            where q.status = 'pending' and q.run_after is null and not q.alone and coalesce(q.attempt, 0) >= 0
                -- This lane, from this id on; written so that only the index of lanes serves.
                and (steadytext.claim_lane(q.owner_role, q.priority, q.request_type, q.params), q.id) > (w.lane, p_first)
                and steadytext.claim_lane(q.owner_role, q.priority, q.request_type, q.params) <= w.lane
                and q.id + 0 <= p_until and q.id <> all (p_aside)
            limit p_rows
        ) as r
        order by r.id
        limit p_rows
    ) as f
    -- Two kinds of requests may have one lane.
    where steadytext.is_served(f.request_type, f.params, p_types, p_models, p_without, p_defaults);
end
$$;
comment on function steadytext.lane_rows(bigint[], bigint, bigint, integer, bigint[], text[], text[], text[], text[]) is
    'Returns the oldest pending requests of a user''s lanes between two ids, and the transactions that have them locked; called by claim_requests';
