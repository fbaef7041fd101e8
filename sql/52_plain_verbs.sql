-- Texts that a model generates in a reliable form: documents extracted from texts, translations, masked texts, lists of facts; a text's
-- sentiment; and facts without those that repeat an earlier one. In the same statement, over arrays, and enqueued.
--
-- In the queue the text is the prompt (facts are, as JSON), and the other arguments are among the params. All of these functions call one of
-- three, whose parameters come as a JSON object.
--
-- A schema may be jsonb or text, as that of steadytext_generate_json: a literal without a type goes to the form with text, which keeps the
-- order that it was written in.

create function steadytext.plain_verb(
    request_type text,
    content text,
    params jsonb,
    use_cache boolean,
    seed bigint,
    model text,
    on_error text
)
returns text
language c immutable parallel safe cost 100000
as 'MODULE_PATHNAME', 'plain_verb_wrapper';
comment on function steadytext.plain_verb(text, text, jsonb, boolean, bigint, text, text) is
    'Returns the answer to a request of a type that takes one text and gives one';

create function steadytext.plain_verb_array(
    request_type text,
    content text[],
    params jsonb,
    use_cache boolean,
    seed bigint,
    model text,
    on_error text
)
returns text[]
language c immutable parallel safe cost 1000000
as 'MODULE_PATHNAME', 'plain_verb_array_wrapper';
comment on function steadytext.plain_verb_array(text, text[], jsonb, boolean, bigint, text, text) is
    'steadytext.plain_verb of each element, computed together';

create function steadytext.plain_verb_async(
    request_type text,
    content text,
    params jsonb,
    use_cache boolean,
    seed bigint,
    model text,
    priority bigint
)
returns uuid
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'plain_verb_async_wrapper';
comment on function steadytext.plain_verb_async(text, text, jsonb, boolean, bigint, text, bigint) is
    'Enqueues a request of a type that takes one text and gives one';

create function @extschema@.steadytext_extract(
    document text,
    fields text[],
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    on_error text default 'error'
)
returns jsonb
language sql immutable parallel safe cost 100000
return steadytext.plain_verb(
    'extract'::text, document, jsonb_build_object('fields', fields),
    use_cache, seed, model, on_error)::jsonb;
comment on function @extschema@.steadytext_extract(text, text[], boolean, bigint, text, text) is
    'Extracts fields from a text: name, name: description, or name: type - description; null where the text does not say';

create function @extschema@.steadytext_extract(
    document text[],
    fields text[],
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    on_error text default 'error'
)
returns jsonb[]
language sql immutable parallel safe cost 1000000
return steadytext.plain_verb_array(
    'extract'::text, document, jsonb_build_object('fields', fields),
    use_cache, seed, model, on_error)::jsonb[];
comment on function @extschema@.steadytext_extract(text[], text[], boolean, bigint, text, text) is
    'steadytext_extract of each element, computed together';

create function @extschema@.steadytext_extract_async(
    document text,
    fields text[],
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    priority bigint default 5
)
returns uuid
language sql volatile
return steadytext.plain_verb_async(
    'extract'::text, document, jsonb_build_object('fields', fields),
    use_cache, seed, model, priority);
comment on function @extschema@.steadytext_extract_async(text, text[], boolean, bigint, text, bigint) is
    'Enqueues steadytext_extract and returns the request id; the result is JSON';

create function @extschema@.steadytext_extract(
    document text,
    schema jsonb,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    on_error text default 'error'
)
returns jsonb
language sql immutable parallel safe cost 100000
return steadytext.plain_verb(
    'extract'::text, document, jsonb_build_object('schema', schema),
    use_cache, seed, model, on_error)::jsonb;
comment on function @extschema@.steadytext_extract(text, jsonb, boolean, bigint, text, text) is
    'Extracts data from a text as a JSON document that conforms to a schema';

create function @extschema@.steadytext_extract(
    document text[],
    schema jsonb,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    on_error text default 'error'
)
returns jsonb[]
language sql immutable parallel safe cost 1000000
return steadytext.plain_verb_array(
    'extract'::text, document, jsonb_build_object('schema', schema),
    use_cache, seed, model, on_error)::jsonb[];
comment on function @extschema@.steadytext_extract(text[], jsonb, boolean, bigint, text, text) is
    'steadytext_extract of each element, computed together';

create function @extschema@.steadytext_extract_async(
    document text,
    schema jsonb,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    priority bigint default 5
)
returns uuid
language sql volatile
return steadytext.plain_verb_async(
    'extract'::text, document, jsonb_build_object('schema', schema),
    use_cache, seed, model, priority);
comment on function @extschema@.steadytext_extract_async(text, jsonb, boolean, bigint, text, bigint) is
    'Enqueues steadytext_extract and returns the request id; the result is JSON';

create function @extschema@.steadytext_extract(
    document text,
    schema text,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    on_error text default 'error'
)
returns jsonb
language sql immutable parallel safe cost 100000
return steadytext.plain_verb(
    'extract'::text, document,
    jsonb_build_object('schema', steadytext.with_written_order(schema, schema::jsonb::text)::jsonb),
    use_cache, seed, model, on_error)::jsonb;
comment on function @extschema@.steadytext_extract(text, text, boolean, bigint, text, text) is
    'steadytext_extract with the schema as text';

create function @extschema@.steadytext_extract(
    document text[],
    schema text,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    on_error text default 'error'
)
returns jsonb[]
language sql immutable parallel safe cost 1000000
return steadytext.plain_verb_array(
    'extract'::text, document,
    jsonb_build_object('schema', steadytext.with_written_order(schema, schema::jsonb::text)::jsonb),
    use_cache, seed, model, on_error)::jsonb[];
comment on function @extschema@.steadytext_extract(text[], text, boolean, bigint, text, text) is
    'steadytext_extract of each element, computed together';

create function @extschema@.steadytext_extract_async(
    document text,
    schema text,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    priority bigint default 5
)
returns uuid
language sql volatile
return steadytext.plain_verb_async(
    'extract'::text, document,
    jsonb_build_object('schema', steadytext.with_written_order(schema, schema::jsonb::text)::jsonb),
    use_cache, seed, model, priority);
comment on function @extschema@.steadytext_extract_async(text, text, boolean, bigint, text, bigint) is
    'Enqueues steadytext_extract and returns the request id; the result is JSON';

create function @extschema@.steadytext_translate(
    content text,
    to_language text,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    on_error text default 'error'
)
returns text
language sql immutable parallel safe cost 100000
return steadytext.plain_verb(
    'translate'::text, content, jsonb_build_object('to_language', to_language),
    use_cache, seed, model, on_error);
comment on function @extschema@.steadytext_translate(text, text, boolean, bigint, text, text) is
    'Translates a text';

create function @extschema@.steadytext_translate(
    content text[],
    to_language text,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    on_error text default 'error'
)
returns text[]
language sql immutable parallel safe cost 1000000
return steadytext.plain_verb_array(
    'translate'::text, content, jsonb_build_object('to_language', to_language),
    use_cache, seed, model, on_error);
comment on function @extschema@.steadytext_translate(text[], text, boolean, bigint, text, text) is
    'steadytext_translate of each element, computed together';

create function @extschema@.steadytext_translate_async(
    content text,
    to_language text,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    priority bigint default 5
)
returns uuid
language sql volatile
return steadytext.plain_verb_async(
    'translate'::text, content, jsonb_build_object('to_language', to_language),
    use_cache, seed, model, priority);
comment on function @extschema@.steadytext_translate_async(text, text, boolean, bigint, text, bigint) is
    'Enqueues steadytext_translate and returns the request id; the result is a text';

create function @extschema@.steadytext_analyze_sentiment(
    content text,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    on_error text default 'error'
)
returns text
language sql immutable parallel safe cost 100000
return steadytext.plain_verb('analyze_sentiment'::text, content, '{}'::jsonb, use_cache, seed, model, on_error);
comment on function @extschema@.steadytext_analyze_sentiment(text, boolean, bigint, text, text) is
    'Returns the sentiment that a text expresses: positive, negative, neutral or mixed, whichever the model finds likeliest';

create function @extschema@.steadytext_analyze_sentiment(
    content text[],
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    on_error text default 'error'
)
returns text[]
language sql immutable parallel safe cost 1000000
return steadytext.plain_verb_array('analyze_sentiment'::text, content, '{}'::jsonb, use_cache, seed, model, on_error);
comment on function @extschema@.steadytext_analyze_sentiment(text[], boolean, bigint, text, text) is
    'steadytext_analyze_sentiment of each element, computed together';

create function @extschema@.steadytext_analyze_sentiment_async(
    content text,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    priority bigint default 5
)
returns uuid
language sql volatile
return steadytext.plain_verb_async('analyze_sentiment'::text, content, '{}'::jsonb, use_cache, seed, model, priority);
comment on function @extschema@.steadytext_analyze_sentiment_async(text, boolean, bigint, text, bigint) is
    'Enqueues steadytext_analyze_sentiment and returns the request id; the result is a text';

create function @extschema@.steadytext_mask(
    content text,
    labels text[],
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    on_error text default 'error'
)
returns text
language sql immutable parallel safe cost 100000
return steadytext.plain_verb(
    'mask'::text, content, jsonb_build_object('labels', labels),
    use_cache, seed, model, on_error);
comment on function @extschema@.steadytext_mask(text, text[], boolean, bigint, text, text) is
    'Returns a text with the model''s findings replaced by [LABEL] and everything else unchanged';

create function @extschema@.steadytext_mask(
    content text[],
    labels text[],
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    on_error text default 'error'
)
returns text[]
language sql immutable parallel safe cost 1000000
return steadytext.plain_verb_array(
    'mask'::text, content, jsonb_build_object('labels', labels),
    use_cache, seed, model, on_error);
comment on function @extschema@.steadytext_mask(text[], text[], boolean, bigint, text, text) is
    'steadytext_mask of each element, computed together';

create function @extschema@.steadytext_mask_async(
    content text,
    labels text[],
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    priority bigint default 5
)
returns uuid
language sql volatile
return steadytext.plain_verb_async(
    'mask'::text, content, jsonb_build_object('labels', labels),
    use_cache, seed, model, priority);
comment on function @extschema@.steadytext_mask_async(text, text[], boolean, bigint, text, bigint) is
    'Enqueues steadytext_mask and returns the request id; the result is a text';

create function @extschema@.steadytext_extract_facts(
    input_text text,
    max_facts bigint default 10,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    on_error text default 'error'
)
returns jsonb
language sql immutable parallel safe cost 100000
return steadytext.plain_verb(
    'extract_facts'::text, input_text, jsonb_build_object('max_facts', max_facts),
    use_cache, seed, model, on_error)::jsonb;
comment on function @extschema@.steadytext_extract_facts(text, bigint, boolean, bigint, text, text) is
    'Returns the facts that a text states, as {"facts": […]}';

create function @extschema@.steadytext_extract_facts(
    input_text text[],
    max_facts bigint default 10,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    on_error text default 'error'
)
returns jsonb[]
language sql immutable parallel safe cost 1000000
return steadytext.plain_verb_array(
    'extract_facts'::text, input_text, jsonb_build_object('max_facts', max_facts),
    use_cache, seed, model, on_error)::jsonb[];
comment on function @extschema@.steadytext_extract_facts(text[], bigint, boolean, bigint, text, text) is
    'steadytext_extract_facts of each element, computed together';

create function @extschema@.steadytext_extract_facts_async(
    input_text text,
    max_facts bigint default 10,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    priority bigint default 5
)
returns uuid
language sql volatile
return steadytext.plain_verb_async(
    'extract_facts'::text, input_text, jsonb_build_object('max_facts', max_facts),
    use_cache, seed, model, priority);
comment on function @extschema@.steadytext_extract_facts_async(text, bigint, boolean, bigint, text, bigint) is
    'Enqueues steadytext_extract_facts and returns the request id; the result is JSON';

create function @extschema@.steadytext_deduplicate_facts(
    facts_array jsonb,
    similarity_threshold double precision default 0.85,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    on_error text default 'error'
)
returns jsonb
language sql immutable parallel safe cost 200000
return steadytext.plain_verb(
    'deduplicate_facts'::text, facts_array::text, jsonb_build_object('similarity_threshold', similarity_threshold),
    use_cache, seed, model, on_error)::jsonb;
comment on function @extschema@.steadytext_deduplicate_facts(jsonb, double precision, boolean, bigint, text, text) is
    'Returns facts without near duplicates: a fact is left out if the cosine of its vector with that of an earlier one is at least similarity_threshold';

create function @extschema@.steadytext_deduplicate_facts_async(
    facts_array jsonb,
    similarity_threshold double precision default 0.85,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    priority bigint default 5
)
returns uuid
language sql volatile
return steadytext.plain_verb_async(
    'deduplicate_facts'::text, facts_array::text, jsonb_build_object('similarity_threshold', similarity_threshold),
    use_cache, seed, model, priority);
comment on function @extschema@.steadytext_deduplicate_facts_async(jsonb, double precision, boolean, bigint, text, bigint) is
    'Enqueues steadytext_deduplicate_facts and returns the request id; the result is JSON';

-- The predecessor's twin has another name for its first parameter, and another default.
create function @extschema@.st_deduplicate_facts(
    facts jsonb,
    similarity_threshold double precision default 0.8,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    on_error text default 'error'
)
returns jsonb
language sql immutable parallel safe cost 200000
return @extschema@.steadytext_deduplicate_facts(facts, similarity_threshold, use_cache, seed, model, on_error);
comment on function @extschema@.st_deduplicate_facts(jsonb, double precision, boolean, bigint, text, text) is
    'steadytext_deduplicate_facts under its short name, with the parameter name and the default that it had in pg_steadytext 1.x';
