-- Judgements: yes or no, a grade, a category, a similarity. In the same statement, over arrays, and enqueued.
--
-- A model says how likely each possible answer is, instead of writing one. In the queue the text is the prompt, and what a
-- classification is told besides it is among the params; the two texts of a similarity are the prompts.
--
-- The cost lets the planner evaluate everything else before: conditions beside steadytext_if() in a WHERE decide first which
-- rows a model has to see.

create function @extschema@.steadytext_if(
    prompt text,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    on_error text default 'error'
)
returns boolean
language c immutable parallel safe cost 100000
as 'MODULE_PATHNAME', 'verb_if_wrapper';
comment on function @extschema@.steadytext_if(text, boolean, bigint, text, text) is
    'Returns whether the model answers a question with yes rather than no';

create function @extschema@.steadytext_if(
    prompt text[],
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    on_error text default 'error'
)
returns boolean[]
language c immutable parallel safe cost 1000000
as 'MODULE_PATHNAME', 'verb_if_array_wrapper';
comment on function @extschema@.steadytext_if(text[], boolean, bigint, text, text) is
    'steadytext_if of each element, computed together';

create function @extschema@.steadytext_if_score(
    prompt text,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    on_error text default 'error'
)
returns double precision
language c immutable parallel safe cost 100000
as 'MODULE_PATHNAME', 'verb_if_score_wrapper';
comment on function @extschema@.steadytext_if_score(text, boolean, bigint, text, text) is
    'Returns the probability that the model answers a question with yes rather than no';

create function @extschema@.steadytext_if_score(
    prompt text[],
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    on_error text default 'error'
)
returns double precision[]
language c immutable parallel safe cost 1000000
as 'MODULE_PATHNAME', 'verb_if_score_array_wrapper';
comment on function @extschema@.steadytext_if_score(text[], boolean, bigint, text, text) is
    'steadytext_if_score of each element, computed together';

create function @extschema@.steadytext_score(
    prompt text,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    on_error text default 'error'
)
returns double precision
language c immutable parallel safe cost 100000
as 'MODULE_PATHNAME', 'verb_score_wrapper';
comment on function @extschema@.steadytext_score(text, boolean, bigint, text, text) is
    'Returns the degree to which the model agrees with a statement, from 0 to 1: the expected value of its grade';

create function @extschema@.steadytext_score(
    prompt text[],
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    on_error text default 'error'
)
returns double precision[]
language c immutable parallel safe cost 1000000
as 'MODULE_PATHNAME', 'verb_score_array_wrapper';
comment on function @extschema@.steadytext_score(text[], boolean, bigint, text, text) is
    'steadytext_score of each element, computed together';

create function @extschema@.steadytext_similarity(
    a text,
    b text,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    on_error text default 'error'
)
returns double precision
language c immutable parallel safe cost 20000
as 'MODULE_PATHNAME', 'verb_similarity_wrapper';
comment on function @extschema@.steadytext_similarity(text, text, boolean, bigint, text, text) is
    'Returns the cosine similarity of the embeddings of two texts';

create function @extschema@.steadytext_similarity(
    a text[],
    b text[],
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    on_error text default 'error'
)
returns double precision[]
language c immutable parallel safe cost 200000
as 'MODULE_PATHNAME', 'verb_similarity_array_wrapper';
comment on function @extschema@.steadytext_similarity(text[], text[], boolean, bigint, text, text) is
    'steadytext_similarity of each pair of elements in the same place, computed together';

create function @extschema@.steadytext_classify(
    input text,
    categories text[],
    task_description text default null,
    descriptions text[] default null,
    examples jsonb default null,
    method text default 'generate',
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    on_error text default 'error'
)
returns text
language c immutable parallel safe cost 100000
as 'MODULE_PATHNAME', 'verb_classify_wrapper';
comment on function @extschema@.steadytext_classify(
    text, text[], text, text[], jsonb, text, boolean, bigint, text, text
) is 'Returns the category that a text belongs to: the one that the model finds likeliest, or (method embed) the one with the nearest vector';

create function @extschema@.steadytext_classify(
    input text[],
    categories text[],
    task_description text default null,
    descriptions text[] default null,
    examples jsonb default null,
    method text default 'generate',
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    on_error text default 'error'
)
returns text[]
language c immutable parallel safe cost 1000000
as 'MODULE_PATHNAME', 'verb_classify_array_wrapper';
comment on function @extschema@.steadytext_classify(
    text[], text[], text, text[], jsonb, text, boolean, bigint, text, text
) is 'steadytext_classify of each element, computed together';

create function @extschema@.steadytext_classify_scores(
    input text,
    categories text[],
    task_description text default null,
    descriptions text[] default null,
    examples jsonb default null,
    method text default 'generate',
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    on_error text default 'error'
)
returns table (category text, score double precision)
language c immutable parallel safe cost 100000 rows 10
as 'MODULE_PATHNAME', 'verb_classify_scores_wrapper';
comment on function @extschema@.steadytext_classify_scores(
    text, text[], text, text[], jsonb, text, boolean, bigint, text, text
) is 'Returns all categories with the probability that a text belongs to them, best first; the probabilities add up to 1';

create function @extschema@.steadytext_classify_multi(
    input text,
    categories text[],
    task_description text default null,
    descriptions text[] default null,
    examples jsonb default null,
    method text default 'generate',
    threshold double precision default 0.5,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    on_error text default 'error'
)
returns text[]
language c immutable parallel safe cost 200000
as 'MODULE_PATHNAME', 'verb_classify_multi_wrapper';
comment on function @extschema@.steadytext_classify_multi(
    text, text[], text, text[], jsonb, text, double precision, boolean, bigint, text, text
) is 'Returns the categories that a text belongs to, each judged by itself, best first';

-- Each element has a list of its own, and PostgreSQL no arrays of lists of different lengths: rows with the number of the element.
create function @extschema@.steadytext_classify_scores(
    input text[],
    categories text[],
    task_description text default null,
    descriptions text[] default null,
    examples jsonb default null,
    method text default 'generate',
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    on_error text default 'error'
)
returns table (index integer, category text, score double precision)
language c immutable parallel safe cost 1000000 rows 100
as 'MODULE_PATHNAME', 'verb_classify_scores_array_wrapper';
comment on function @extschema@.steadytext_classify_scores(
    text[], text[], text, text[], jsonb, text, boolean, bigint, text, text
) is 'steadytext_classify_scores of each element, computed together: rows with the number of the element, from 1';

create function @extschema@.steadytext_classify_multi(
    input text[],
    categories text[],
    task_description text default null,
    descriptions text[] default null,
    examples jsonb default null,
    method text default 'generate',
    threshold double precision default 0.5,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    on_error text default 'error'
)
returns table (index integer, found text[])
language c immutable parallel safe cost 1000000 rows 10
as 'MODULE_PATHNAME', 'verb_classify_multi_array_wrapper';
comment on function @extschema@.steadytext_classify_multi(
    text[], text[], text, text[], jsonb, text, double precision, boolean, bigint, text, text
) is 'steadytext_classify_multi of each element, computed together: one row for each element, with its number, from 1';

create function @extschema@.steadytext_if_async(
    prompt text,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    priority bigint default 5
)
returns uuid
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'verb_if_async_wrapper';
comment on function @extschema@.steadytext_if_async(text, boolean, bigint, text, bigint) is
    'Enqueues steadytext_if and returns the request id; the result is true or false';

create function @extschema@.steadytext_if_score_async(
    prompt text,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    priority bigint default 5
)
returns uuid
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'verb_if_score_async_wrapper';
comment on function @extschema@.steadytext_if_score_async(text, boolean, bigint, text, bigint) is
    'Enqueues steadytext_if_score and returns the request id; the result is a number';

create function @extschema@.steadytext_score_async(
    prompt text,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    priority bigint default 5
)
returns uuid
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'verb_score_async_wrapper';
comment on function @extschema@.steadytext_score_async(text, boolean, bigint, text, bigint) is
    'Enqueues steadytext_score and returns the request id; the result is a number';

create function @extschema@.steadytext_similarity_async(
    a text,
    b text,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    priority bigint default 5
)
returns uuid
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_request_id uuid;
begin
    insert into @extschema@.steadytext_queue (request_type, prompts, params, priority)
    values ('similarity', array[a, b], jsonb_strip_nulls(jsonb_build_object(
        'use_cache', case when not use_cache then false end, 'seed', nullif(seed, 42), 'model', model)),
        steadytext.priority(priority))
    returning request_id into v_request_id;
    return v_request_id;
end
$$;
comment on function @extschema@.steadytext_similarity_async(text, text, boolean, bigint, text, bigint) is
    'Enqueues steadytext_similarity and returns the request id; the result is a number';

create function steadytext.classify_async(
    request_type text,
    input text,
    categories text[],
    task_description text,
    descriptions text[],
    examples jsonb,
    method text,
    threshold double precision,
    use_cache boolean,
    seed bigint,
    model text,
    priority bigint
)
returns uuid
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'verb_classify_async_wrapper';
comment on function steadytext.classify_async(
    text, text, text[], text, text[], jsonb, text, double precision, boolean, bigint, text, bigint
) is 'Enqueues a classification of a type';

create function @extschema@.steadytext_classify_async(
    input text,
    categories text[],
    task_description text default null,
    descriptions text[] default null,
    examples jsonb default null,
    method text default 'generate',
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    priority bigint default 5
)
returns uuid
language sql volatile
return steadytext.classify_async('classify'::text, input, categories, task_description, descriptions, examples, method,
    null::double precision, use_cache, seed, model, priority);
comment on function @extschema@.steadytext_classify_async(
    text, text[], text, text[], jsonb, text, boolean, bigint, text, bigint
) is 'Enqueues steadytext_classify and returns the request id; the result is a category';

create function @extschema@.steadytext_classify_scores_async(
    input text,
    categories text[],
    task_description text default null,
    descriptions text[] default null,
    examples jsonb default null,
    method text default 'generate',
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    priority bigint default 5
)
returns uuid
language sql volatile
return steadytext.classify_async('classify_scores'::text, input, categories, task_description, descriptions, examples,
    method, null::double precision, use_cache, seed, model, priority);
comment on function @extschema@.steadytext_classify_scores_async(
    text, text[], text, text[], jsonb, text, boolean, bigint, text, bigint
) is 'Enqueues steadytext_classify_scores and returns the request id; the result is JSON, and the categories are the results, best first';

create function @extschema@.steadytext_classify_multi_async(
    input text,
    categories text[],
    task_description text default null,
    descriptions text[] default null,
    examples jsonb default null,
    method text default 'generate',
    threshold double precision default 0.5,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    priority bigint default 5
)
returns uuid
language sql volatile
return steadytext.classify_async('classify_multi'::text, input, categories, task_description, descriptions, examples,
    method, threshold, use_cache, seed, model, priority);
comment on function @extschema@.steadytext_classify_multi_async(
    text, text[], text, text[], jsonb, text, double precision, boolean, bigint, text, bigint
) is 'Enqueues steadytext_classify_multi and returns the request id; the result is JSON, and the categories are the results, best first';
