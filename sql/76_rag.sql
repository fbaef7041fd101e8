-- Answers from what a search has found.

create function steadytext.context_tokens(model text, task text default 'generate')
returns bigint
language c stable parallel safe
as 'MODULE_PATHNAME', 'context_tokens_wrapper';
comment on function steadytext.context_tokens(text, text) is
    'Returns the number of tokens that prompt and answer may have together with a model, or with the one that generates by default; those of a text where the task is embed';

create function steadytext.rag(
    p_vectorizer text,
    p_question text,
    p_k bigint,
    p_max_tokens bigint,
    p_use_cache boolean,
    p_seed bigint,
    p_eos_string text,
    p_model text,
    p_size text,
    p_temperature double precision,
    p_on_error text,
    p_system_prompt text,
    p_options jsonb,
    p_filter text,
    p_rerank boolean,
    p_hybrid boolean,
    p_path text
)
returns table (answer text, sources jsonb)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    -- The tokens that a chat template and the numbers of sources may add.
    c_template constant integer := 64;
    c_source constant integer := 8;
    -- A piece of a source that is shorter helps nobody.
    c_least constant integer := 32;
    v_model text := coalesce(p_model, p_size);
    v_room bigint;
    v_tokens bigint;
    v_source record;
    v_text text;
    v_texts jsonb := '[]';
    v_count integer := 0;
begin
    if p_question is null then
        return;
    end if;
    sources := '[]';
    v_room := steadytext.context_tokens(v_model);
    v_room := v_room - greatest(0, least(coalesce(p_max_tokens, steadytext.config_integer('default_max_tokens')), v_room / 2)) - c_template
        - @extschema@.steadytext_count_tokens(
            @extschema@.steadytext_prompt_render('steadytext/rag', jsonb_build_object('question', p_question, 'sources', v_texts))
                || coalesce(p_system_prompt, ''), v_model);
    for v_source in
        select s.key, s.chunk, s.distance, null::double precision as score
        from steadytext.search(p_vectorizer, p_question, p_k, p_filter, p_rerank, p_path) as s
        where not coalesce(p_hybrid, false)
        union all
        select s.key, s.chunk, null, s.score
        from steadytext.hybrid_search(p_vectorizer, p_question, p_k, 60, 0.5, p_filter, p_path) as s
        where p_hybrid
    loop
        v_count := v_count + 1;
        v_text := v_source.chunk;
        v_tokens := @extschema@.steadytext_count_tokens(v_text, v_model) + c_source;
        if v_tokens > v_room then
            -- The first that does not fit is cut; the others are further from the question.
            exit when v_room < c_least + c_source;
            select c.chunk into v_text
            from @extschema@.steadytext_chunk_text(v_text, v_room - c_source, 0, 'token', v_model) as c
            where c.seq = 1;
        end if;
        v_texts := v_texts || jsonb_build_object('number', v_count, 'text', v_text);
        sources := sources || jsonb_strip_nulls(jsonb_build_object(
            'number', v_count, 'key', v_source.key, 'chunk', v_text, 'distance', v_source.distance, 'score', v_source.score));
        v_room := v_room - v_tokens;
        exit when v_room < c_least + c_source;
    end loop;
    if v_count > 0 and sources = '[]' then
        raise exception 'no source fits into the context of the model beside the question'
            using errcode = 'program_limit_exceeded',
                hint = 'Shorten the question, lower max_tokens, raise pg_steadytext.context_length or name another model.';
    end if;
    -- Without a source there is nothing to answer from.
    if sources = '[]' then
        return next;
        return;
    end if;
    answer := @extschema@.steadytext_generate(
        @extschema@.steadytext_prompt_render('steadytext/rag', jsonb_build_object('question', p_question, 'sources', v_texts)),
        p_max_tokens, p_use_cache, p_seed, p_eos_string, p_model, p_size, p_temperature, p_on_error, p_system_prompt, p_options);
    return next;
end
$$;
comment on function steadytext.rag(
    text, text, bigint, bigint, boolean, bigint, text, text, text, double precision, text, text, jsonb, text, boolean, boolean, text
) is 'Does what steadytext_rag() does, with the search path on which the filter is read';

create function @extschema@.steadytext_rag(
    vectorizer text,
    question text,
    k bigint default 5,
    max_tokens bigint default null,
    use_cache boolean default true,
    seed bigint default 42,
    eos_string text default '[EOS]',
    model text default null,
    size text default null,
    temperature double precision default 0,
    on_error text default 'error',
    system_prompt text default null,
    options jsonb default '{}',
    filter text default null,
    rerank boolean default false,
    hybrid boolean default false
)
returns table (answer text, sources jsonb)
language sql stable parallel unsafe rows 1 cost 1000000
begin atomic
    select r.answer, r.sources
    from steadytext.rag(vectorizer, question, k, max_tokens, use_cache, seed, eos_string, model, size, temperature, on_error,
        system_prompt, options, filter, rerank, hybrid, pg_catalog.current_setting('search_path')) as r;
end;
comment on function @extschema@.steadytext_rag(
    text, text, bigint, bigint, boolean, bigint, text, text, text, double precision, text, text, jsonb, text, boolean, boolean
) is 'Answers a question from the k rows of a vectorizer that a search finds for it; sources are the rows that the model was shown, as many as fit into its context. Where nothing is found the answer is NULL, and no model is asked';
