-- The verification of a model: what it returns, what it refuses, and who may ask for it.
\ir setup.psql
select plan(9);

select results_eq(
    $$ select count(*), min(v.position), max(v.position), bool_and(v.passed), bool_and(v.rms <= v.bound and v.rms <= v.largest)
        from steadytext_model_verify('builtin', 12) as v $$,
    $$ values (12::bigint, 0, 11, true, true) $$,
    'the builtin model is computed alike by both backends, token by token');
select ok(
    (select bool_or(v.rms > 0) from steadytext_model_verify('builtin', 12) as v),
    'and not by the same code');
select results_eq(
    $$ select v.token, v.rms from st_model_verify('builtin', 3) as v $$,
    $$ select v.token, v.rms from steadytext_model_verify('builtin', positions => 3) as v $$,
    'st_model_verify is the same');
select is(
    (select string_agg(v.token, '' order by v.position) ~ 'A database' from steadytext_model_verify(positions => 8) as v), true,
    'without a name it is the model that generates, on a text of its own');
select throws_ok($$ select * from steadytext_model_verify('nobody') $$, '42704', null, 'a name that is not registered');
select throws_ok($$ select * from steadytext_model_verify('builtin', 0) $$, '22023', 'positions must be from 1 to 512', 'no positions');
select throws_ok($$ select * from steadytext_model_verify('builtin', 513) $$, '22023', null, 'too many positions');
select throws_ok(
    $$ select pg_temp.run_as('st_alice', 'select count(*) from steadytext_model_verify(''builtin'', 1)') $$,
    '42501', null, 'a user may not');
select is(
    pg_temp.run_as('st_root', 'select bool_and(v.passed)::text from steadytext_model_verify(''builtin'', 2) as v'), 'true',
    'an administrator may');

select * from finish();
rollback;
