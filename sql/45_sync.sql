-- Synchronous functions: the answer in the same statement, inside any transaction.
--
-- They are immutable because the same input gives the same bytes, so that generated columns and
-- indexes can use them. A constant call is computed when its statement is planned, also by
-- EXPLAIN; another model leaves what was computed before as it is. The cost tells the planner to
-- call them as rarely as it can.

create function @extschema@.steadytext_generate(
    prompt text,
    max_tokens integer default null,
    use_cache boolean default true,
    seed integer default 42,
    eos_string text default '[EOS]',
    model text default null,
    size text default null,
    temperature double precision default 0
)
returns text
language c immutable parallel safe cost 100000
as 'MODULE_PATHNAME', 'generate_wrapper';
comment on function @extschema@.steadytext_generate(
    text, integer, boolean, integer, text, text, text, double precision
) is 'Generates a text from a prompt';

create function @extschema@.st_generate(
    prompt text,
    max_tokens integer default null,
    use_cache boolean default true,
    seed integer default 42,
    eos_string text default '[EOS]',
    model text default null,
    size text default null,
    temperature double precision default 0
)
returns text
language c immutable parallel safe cost 100000
as 'MODULE_PATHNAME', 'generate_wrapper';
comment on function @extschema@.st_generate(
    text, integer, boolean, integer, text, text, text, double precision
) is 'Short for steadytext_generate';

create function steadytext.embed(
    text_input text, use_cache boolean, seed integer, model text, mode text, task text
)
returns real[]
language c immutable parallel safe cost 10000
as 'MODULE_PATHNAME', 'embed_wrapper';
comment on function steadytext.embed(text, boolean, integer, text, text, text) is
    'The embedding of a text as an array: vector is not nameable in the library';

select pg_catalog.set_config('search_path', steadytext.vector_path(), true);
create function @extschema@.steadytext_embed(
    text_input text,
    use_cache boolean default true,
    seed integer default 42,
    model text default null,
    mode text default null,
    task text default null
)
returns vector
language sql immutable parallel safe cost 10000
return steadytext.embed(text_input, use_cache, seed, model, mode, task)::vector;
comment on function @extschema@.steadytext_embed(text, boolean, integer, text, text, text) is
    'Computes the embedding of a text, a passage or (mode query) a query with a task';

create function @extschema@.st_embed(
    text_input text,
    use_cache boolean default true,
    seed integer default 42,
    model text default null,
    mode text default null,
    task text default null
)
returns vector
language sql immutable parallel safe cost 10000
return steadytext.embed(text_input, use_cache, seed, model, mode, task)::vector;
set local search_path = pg_catalog, pg_temp;
comment on function @extschema@.st_embed(text, boolean, integer, text, text, text) is
    'Short for steadytext_embed';

create function @extschema@.steadytext_generate_stream(
    prompt text,
    max_tokens integer default null,
    seed integer default 42,
    eos_string text default '[EOS]',
    model text default null,
    size text default null,
    temperature double precision default 0
)
returns setof text
language c volatile parallel restricted cost 100000
as 'MODULE_PATHNAME', 'generate_stream_wrapper';
comment on function @extschema@.steadytext_generate_stream(
    text, integer, integer, text, text, text, double precision
) is 'Generates a text and returns it piece by piece: in the select list of a cursor, FETCH shows each as soon as it is there';

create function @extschema@.st_generate_stream(
    prompt text,
    max_tokens integer default null,
    seed integer default 42,
    eos_string text default '[EOS]',
    model text default null,
    size text default null,
    temperature double precision default 0
)
returns setof text
language c volatile parallel restricted cost 100000
as 'MODULE_PATHNAME', 'generate_stream_wrapper';
comment on function @extschema@.st_generate_stream(
    text, integer, integer, text, text, text, double precision
) is 'Short for steadytext_generate_stream';
