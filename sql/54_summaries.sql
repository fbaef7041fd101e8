-- Summaries of texts, and of the values of groups, of any length: what does not fit into the context of the model is cut by its
-- tokenizer, the parts are summarised together, and then their summaries.
--
-- The aggregates sort the values of a group by their bytes, unless they have an ORDER BY of their own: neither the order in which
-- rows are found nor parallel workers change an answer. Their state is a list of the values, of up to 16 times max_prompt_bytes.

create function @extschema@.steadytext_summarize_text(
    input_text text,
    metadata jsonb default '{}',
    max_words bigint default 50,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    on_error text default 'error',
    unsafe_mode boolean default false
)
returns text
language c immutable parallel safe cost 200000
as 'MODULE_PATHNAME', 'summarize_text_wrapper';
comment on function @extschema@.steadytext_summarize_text(text, jsonb, bigint, boolean, bigint, text, text, boolean) is
    'Returns a summary of a text of any length';

create function @extschema@.steadytext_summarize_text(
    input_text text[],
    metadata jsonb default '{}',
    max_words bigint default 50,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    on_error text default 'error'
)
returns text[]
language c immutable parallel safe cost 2000000
as 'MODULE_PATHNAME', 'summarize_text_array_wrapper';
comment on function @extschema@.steadytext_summarize_text(text[], jsonb, bigint, boolean, bigint, text, text) is
    'steadytext_summarize_text of each element, computed together';

create function @extschema@.steadytext_summarize_text_async(
    input_text text,
    metadata jsonb default '{}',
    max_words bigint default 50,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    priority bigint default 5
)
returns uuid
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'summarize_text_async_wrapper';
comment on function @extschema@.steadytext_summarize_text_async(text, jsonb, bigint, boolean, bigint, text, bigint) is
    'Enqueues steadytext_summarize_text and returns the request id; the result is the summary';

create function steadytext.summarize_add(state internal, value text)
returns internal
language c immutable parallel safe
as 'MODULE_PATHNAME', 'summarize_add_wrapper';
comment on function steadytext.summarize_add(internal, text) is 'Adds a value to a group';

create function steadytext.summarize_add(state internal, value text, metadata jsonb)
returns internal
language c immutable parallel safe
as 'MODULE_PATHNAME', 'summarize_add_about_wrapper';
comment on function steadytext.summarize_add(internal, text, jsonb) is 'Adds a value to a group, with metadata about it';

create function steadytext.agg_add(state internal, value text, task_description text)
returns internal
language c immutable parallel safe
as 'MODULE_PATHNAME', 'agg_add_wrapper';
comment on function steadytext.agg_add(internal, text, text) is 'Adds a value to a group, with the task for all of them';

create function steadytext.summarize_add_partial(state internal, partial jsonb)
returns internal
language c immutable parallel safe
as 'MODULE_PATHNAME', 'summarize_add_partial_wrapper';
comment on function steadytext.summarize_add_partial(internal, jsonb) is 'Adds the values of a partial summary to a group';

create function steadytext.group_combine(state internal, other internal)
returns internal
language c immutable parallel safe
as 'MODULE_PATHNAME', 'group_combine_wrapper';
comment on function steadytext.group_combine(internal, internal) is 'Combines the values of two groups';

create function steadytext.group_serialize(state internal)
returns bytea
language c immutable strict parallel safe
as 'MODULE_PATHNAME', 'group_serialize_wrapper';
comment on function steadytext.group_serialize(internal) is 'Returns the values of a group in a form for another process';

create function steadytext.group_deserialize(records bytea, unused internal)
returns internal
language c immutable strict parallel safe
as 'MODULE_PATHNAME', 'group_deserialize_wrapper';
comment on function steadytext.group_deserialize(bytea, internal) is 'Returns the values of a group from the form in which another process gave them';

create function steadytext.summarize_finish(state internal)
returns text
language c immutable parallel safe cost 200000
as 'MODULE_PATHNAME', 'summarize_finish_wrapper';
comment on function steadytext.summarize_finish(internal) is 'Returns the summary of a group';

create function steadytext.agg_finish(state internal)
returns text
language c immutable parallel safe cost 200000
as 'MODULE_PATHNAME', 'agg_finish_wrapper';
comment on function steadytext.agg_finish(internal) is 'Returns the answer to the task for a group';

create function steadytext.summarize_finish_partial(state internal)
returns jsonb
language c immutable parallel safe cost 100000
as 'MODULE_PATHNAME', 'summarize_finish_partial_wrapper';
comment on function steadytext.summarize_finish_partial(internal) is
    'Returns the values of a group, or a summary of them where they are many, for steadytext_summarize_final';

-- No twin is made of an aggregate: both are written here.
create aggregate @extschema@.steadytext_summarize(value text) (
    sfunc = steadytext.summarize_add,
    stype = internal,
    sspace = 1024,
    finalfunc = steadytext.summarize_finish,
    combinefunc = steadytext.group_combine,
    serialfunc = steadytext.group_serialize,
    deserialfunc = steadytext.group_deserialize,
    parallel = safe
);
comment on aggregate @extschema@.steadytext_summarize(text) is
    'Summary of the values of a group';

create aggregate @extschema@.st_summarize(value text) (
    sfunc = steadytext.summarize_add,
    stype = internal,
    sspace = 1024,
    finalfunc = steadytext.summarize_finish,
    combinefunc = steadytext.group_combine,
    serialfunc = steadytext.group_serialize,
    deserialfunc = steadytext.group_deserialize,
    parallel = safe
);
comment on aggregate @extschema@.st_summarize(text) is
    'Short for steadytext_summarize';

create aggregate @extschema@.steadytext_summarize(value text, metadata jsonb) (
    sfunc = steadytext.summarize_add,
    stype = internal,
    sspace = 1024,
    finalfunc = steadytext.summarize_finish,
    combinefunc = steadytext.group_combine,
    serialfunc = steadytext.group_serialize,
    deserialfunc = steadytext.group_deserialize,
    parallel = safe
);
comment on aggregate @extschema@.steadytext_summarize(text, jsonb) is
    'Summary of the values of a group, with metadata about them';

create aggregate @extschema@.st_summarize(value text, metadata jsonb) (
    sfunc = steadytext.summarize_add,
    stype = internal,
    sspace = 1024,
    finalfunc = steadytext.summarize_finish,
    combinefunc = steadytext.group_combine,
    serialfunc = steadytext.group_serialize,
    deserialfunc = steadytext.group_deserialize,
    parallel = safe
);
comment on aggregate @extschema@.st_summarize(text, jsonb) is
    'Short for steadytext_summarize';

create aggregate @extschema@.steadytext_summarize_partial(value text, metadata jsonb) (
    sfunc = steadytext.summarize_add,
    stype = internal,
    sspace = 1024,
    finalfunc = steadytext.summarize_finish_partial,
    combinefunc = steadytext.group_combine,
    serialfunc = steadytext.group_serialize,
    deserialfunc = steadytext.group_deserialize,
    parallel = safe
);
comment on aggregate @extschema@.steadytext_summarize_partial(text, jsonb) is
    'State of a part of a group, as steadytext_summarize_final takes it; it may be kept in a table or a materialized view';

create aggregate @extschema@.st_summarize_partial(value text, metadata jsonb) (
    sfunc = steadytext.summarize_add,
    stype = internal,
    sspace = 1024,
    finalfunc = steadytext.summarize_finish_partial,
    combinefunc = steadytext.group_combine,
    serialfunc = steadytext.group_serialize,
    deserialfunc = steadytext.group_deserialize,
    parallel = safe
);
comment on aggregate @extschema@.st_summarize_partial(text, jsonb) is
    'Short for steadytext_summarize_partial';

create aggregate @extschema@.steadytext_summarize_final(partial jsonb) (
    sfunc = steadytext.summarize_add_partial,
    stype = internal,
    sspace = 1024,
    finalfunc = steadytext.summarize_finish,
    combinefunc = steadytext.group_combine,
    serialfunc = steadytext.group_serialize,
    deserialfunc = steadytext.group_deserialize,
    parallel = safe
);
comment on aggregate @extschema@.steadytext_summarize_final(jsonb) is
    'Summary of a group from the states of its parts, as steadytext_summarize_partial returns them';

create aggregate @extschema@.st_summarize_final(partial jsonb) (
    sfunc = steadytext.summarize_add_partial,
    stype = internal,
    sspace = 1024,
    finalfunc = steadytext.summarize_finish,
    combinefunc = steadytext.group_combine,
    serialfunc = steadytext.group_serialize,
    deserialfunc = steadytext.group_deserialize,
    parallel = safe
);
comment on aggregate @extschema@.st_summarize_final(jsonb) is
    'Short for steadytext_summarize_final';

create aggregate @extschema@.steadytext_agg(value text, task_description text) (
    sfunc = steadytext.agg_add,
    stype = internal,
    sspace = 1024,
    finalfunc = steadytext.agg_finish,
    combinefunc = steadytext.group_combine,
    serialfunc = steadytext.group_serialize,
    deserialfunc = steadytext.group_deserialize,
    parallel = safe
);
comment on aggregate @extschema@.steadytext_agg(text, text) is
    'Answer to a question about the values of a group, or result of a task with them';

create aggregate @extschema@.st_agg(value text, task_description text) (
    sfunc = steadytext.agg_add,
    stype = internal,
    sspace = 1024,
    finalfunc = steadytext.agg_finish,
    combinefunc = steadytext.group_combine,
    serialfunc = steadytext.group_serialize,
    deserialfunc = steadytext.group_deserialize,
    parallel = safe
);
comment on aggregate @extschema@.st_agg(text, text) is
    'Short for steadytext_agg';
