-- Texts as the tokenizer of a model sees them, without the template and the tokens that a model wants around a text. The
-- engine does it, in its own process. As with what is generated, another model gives other results.

create function @extschema@.steadytext_count_tokens(input text, model text default null)
returns integer
language c immutable parallel safe cost 1000
as 'MODULE_PATHNAME', 'count_tokens_wrapper';
comment on function @extschema@.steadytext_count_tokens(text, text) is
    'Returns the number of tokens of a text for a model; without a name, for the one that generates';

create function @extschema@.steadytext_tokenize(input text, model text default null)
returns integer[]
language c immutable parallel safe cost 1000
as 'MODULE_PATHNAME', 'tokenize_wrapper';
comment on function @extschema@.steadytext_tokenize(text, text) is
    'Returns the ids of the tokens of a text for a model; without a name, for the one that generates';

create function @extschema@.steadytext_chunk_text(
    input text,
    chunk_size bigint default 400,
    chunk_overlap bigint default 50,
    strategy text default 'recursive',
    model text default null
)
returns table (seq integer, chunk text, start_offset integer, tokens integer)
language c immutable parallel safe cost 10000 rows 20
as 'MODULE_PATHNAME', 'chunk_text_wrapper';
comment on function @extschema@.steadytext_chunk_text(text, bigint, bigint, text, text) is
    'Cuts a text into pieces of at most chunk_size tokens, which overlap by chunk_overlap; start_offset is the position of the piece in characters, from 1';

create function steadytext.chunk_for_embedding(
    input text,
    chunk_size bigint,
    chunk_overlap bigint,
    strategy text,
    model text
)
returns table (seq integer, chunk text, start_offset integer, tokens integer)
language c immutable parallel safe cost 10000 rows 20
as 'MODULE_PATHNAME', 'chunk_for_embedding_wrapper';
comment on function steadytext.chunk_for_embedding(text, bigint, bigint, text, text) is
    'Cuts a text as steadytext_chunk_text does, by the tokenizer of a model that embeds; without a name, of the one that embeds by default';
