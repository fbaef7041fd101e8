-- Emptying the cache, and the exchange with SteadyText for Python. These are Rust functions
-- that note their caller in the audit log and act as the cache's owner.

create function @extschema@.steadytext_cache_clear()
returns bigint
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'cache_clear_wrapper';
comment on function @extschema@.steadytext_cache_clear() is
    'Empties the cache; returns the number of deleted entries. For members of steadytext_admin';

create function @extschema@.steadytext_cache_import(path text, replace boolean default false)
returns table (imported bigint, skipped bigint, refused bigint)
language c volatile parallel unsafe rows 1
as 'MODULE_PATHNAME', 'cache_import_wrapper';
comment on function @extschema@.steadytext_cache_import(text, boolean) is
    'Imports the entries of a cache file of SteadyText for Python, under pg_steadytext.exchange_dir; entries whose key is in the cache already are skipped unless replace is true. For members of steadytext_admin';

create function @extschema@.steadytext_cache_export(
    path text,
    replace boolean default false,
    all_entries boolean default false,
    key_format text default 'base64'
)
returns table (exported bigint, skipped bigint)
language c volatile parallel unsafe rows 1
as 'MODULE_PATHNAME', 'cache_export_wrapper';
comment on function @extschema@.steadytext_cache_export(text, boolean, boolean, text) is
    'Writes a cache file for SteadyText for Python, under pg_steadytext.exchange_dir: entries of requests with default parameters, or all. For members of steadytext_admin';
