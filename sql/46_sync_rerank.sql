-- Reranking in the same statement. What is said of the other synchronous functions holds for these.
--
-- Documents of one score stay in the order in which they were given.

create function @extschema@.steadytext_rerank(
    query text,
    documents text[],
    task text default
        'Given a web search query, retrieve relevant passages that answer the query',
    return_scores boolean default true,
    seed bigint default 42,
    model text default null,
    truncate boolean default false,
    on_error text default 'error'
)
returns table (document text, score double precision)
language c immutable parallel safe cost 100000 rows 10
as 'MODULE_PATHNAME', 'rerank_wrapper';
comment on function @extschema@.steadytext_rerank(text, text[], text, boolean, bigint, text, boolean, text) is
    'Ranks documents by how well they answer a query, best first; scores are between 0 and 1';

create function @extschema@.steadytext_rerank_docs_only(
    query text,
    documents text[],
    task text default
        'Given a web search query, retrieve relevant passages that answer the query',
    seed bigint default 42,
    model text default null,
    truncate boolean default false,
    on_error text default 'error'
)
returns table (document text)
language c immutable parallel safe cost 100000 rows 10
as 'MODULE_PATHNAME', 'rerank_docs_only_wrapper';
comment on function @extschema@.steadytext_rerank_docs_only(text, text[], text, bigint, text, boolean, text) is
    'Ranks documents by how well they answer a query, best first, without scores';

create function @extschema@.steadytext_rerank_top_k(
    query text,
    documents text[],
    top_k bigint,
    task text default
        'Given a web search query, retrieve relevant passages that answer the query',
    return_scores boolean default true,
    seed bigint default 42,
    model text default null,
    truncate boolean default false,
    on_error text default 'error'
)
returns table (document text, score double precision)
language c immutable parallel safe cost 100000 rows 10
as 'MODULE_PATHNAME', 'rerank_top_k_wrapper';
comment on function @extschema@.steadytext_rerank_top_k(text, text[], bigint, text, boolean, bigint, text, boolean, text) is
    'The best documents for a query, at most top_k';

create function @extschema@.steadytext_rerank_batch(
    queries text[],
    documents text[],
    task text default
        'Given a web search query, retrieve relevant passages that answer the query',
    return_scores boolean default true,
    seed bigint default 42,
    model text default null,
    truncate boolean default false,
    on_error text default 'error'
)
returns table (query_index integer, document text, score double precision)
language c immutable parallel safe cost 100000 rows 10
as 'MODULE_PATHNAME', 'rerank_batch_wrapper';
comment on function @extschema@.steadytext_rerank_batch(text[], text[], text, boolean, bigint, text, boolean, text) is
    'Ranks the same documents for several queries, which are counted from 0';
