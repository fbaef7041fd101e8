-- The queries of scripts/test-deb.sh to a server with the package; the answer is t.
set client_min_messages = error;
create extension pg_steadytext cascade;
select steadytext_generate_async('What does VACUUM do?', max_tokens => 8) as id \gset
select length(steadytext_get_async_result(:'id', 120)) > 0;
