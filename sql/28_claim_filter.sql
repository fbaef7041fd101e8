-- Protocol: which rows a worker takes. A claim that may take all rows calls none of this.

create function steadytext.models_placed(p_placement text)
returns text[]
language c stable strict
as 'MODULE_PATHNAME', 'models_placed_wrapper';
comment on function steadytext.models_placed(text) is
    'The registered models of a placement, from what the session knows of the registry; called by claim_requests';

create function steadytext.default_models()
returns text[]
language c volatile
as 'MODULE_PATHNAME', 'default_models_wrapper';
comment on function steadytext.default_models() is
    'The models of requests that name none: for generation, embeddings and ranking; called by claim_requests';

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
    'What the model of a request is for: 1 generation, 2 embeddings, 3 ranking; called by is_served';

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
    -- Of a model that nobody knows, whoever takes everything says so.
    if v_model is null then
        return p_models is null;
    end if;
    return v_model <> all (p_without) and (p_models is null or v_model = any (p_models));
end
$$;
comment on function steadytext.is_served(text, jsonb, text[], text[], text[], text[]) is
    'Whether a worker takes a request: of these types and models (NULL: all), and of none of the models in p_without; names are in lower case; called by claim_requests';

create function steadytext.lower_names(p_names text[])
returns text[]
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select case when p_names is not null then array(select lower(n) from unnest(p_names) with ordinality as u(n, o) order by o) end
$$;
comment on function steadytext.lower_names(text[]) is
    'Names in lower case, in their order; called by claim_requests';
