-- What scripts/test-deb.sh asks of a server with the package: t.
set client_min_messages = error;
create extension pg_steadytext cascade;
select steadytext_generate_async('What does VACUUM do?', max_tokens => 8) as id \gset
select length(steadytext_get_async_result(:'id', 120)) > 0;
