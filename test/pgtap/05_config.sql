-- Settings of a database.
\ir setup.psql
select plan(64);

select results_eq(
    $$ select c.key, c.value, c.description, c.is_default from steadytext_config as c order by c.key $$,
    $$ select k.key, k.default_value, k.description, true from steadytext.config_keys() as k order by k.key $$,
    'a fresh database has every known key with its built-in value'
);
select is(steadytext_config_get('default_max_tokens'), '512', 'config_get: a number');
select is(steadytext_config_get('cache_enabled'), 'true', 'config_get: a boolean');
select is(steadytext_config_get('cron_host'), 'localhost', 'config_get: a string comes without JSON quotes');
select throws_ok($$ select steadytext_config_get('no_such_key') $$, '42704', 'unrecognized configuration key "no_such_key"', 'config_get: an unknown key is an error, as config_set''s');
select throws_ok($$ select st_config_get('max_retrie') $$, '42704', null, 'st_config_get, too');
select is(steadytext_config_get(null), null, 'config_get: NULL');
select is(st_config_get('default_seed'), '42', 'st_config_get');

-- A value is read back as it was set.
create function pg_temp.set_and_get(p_key text, p_value text) returns text
language plpgsql as $$
begin
    perform steadytext_config_set(p_key, p_value);
    return steadytext_config_get(p_key);
end
$$;
select is(pg_temp.set_and_get('default_max_tokens', '100'), '100', 'set and get: integer');
select is(pg_temp.set_and_get('worker_poll_interval', '0.25'), '0.25', 'set and get: number');
select is(pg_temp.set_and_get('cache_enabled', 'false'), 'false', 'set and get: boolean');
select is(pg_temp.set_and_get('cron_host', 'db.example.com'), 'db.example.com', 'set and get: string');
select is(pg_temp.set_and_get('cron_host', '42'), '42', 'set and get: a string of digits stays a string');
select is(pg_temp.set_and_get('daemon_host', 'a "quoted" \ host'), 'a "quoted" \ host', 'set and get: quotes and backslashes');
select is(pg_temp.set_and_get('queue_retention_hours', '0'), '0', 'set and get: zero');
select is(pg_temp.set_and_get('default_seed', '9223372036854775807'), '9223372036854775807', 'set and get: a seed of 63 bits');
select st_config_set('max_retries', '5');
select is(steadytext_config_get('max_retries'), '5', 'st_config_set');

-- Bookkeeping.
select results_eq(
    $$ select is_default, updated_by, updated_at from steadytext_config where key = 'default_max_tokens' $$,
    $$ values (false, current_user::text collate "default", now()) $$,
    'a changed row is no default, and says who changed it when'
);
select steadytext_config_set('max_queue_size', '1000000');
select is((select is_default from steadytext_config where key = 'max_queue_size'), false, 'setting the built-in value is a choice too');
select steadytext_config_set('default_max_tokens', null);
select results_eq(
    $$ select value, is_default from steadytext_config where key = 'default_max_tokens' $$,
    $$ values ('512'::jsonb, true) $$, 'NULL brings the built-in value back'
);
delete from steadytext_config where key = 'max_batch_size';
select is(steadytext.config_integer('max_batch_size'), 1000, 'without its row a setting has its built-in value');
select is(steadytext_config_get('max_batch_size'), '1000', 'config_get: that of a row that was deleted');
select is(pg_temp.set_and_get('max_batch_size', '10'), '10', 'a row that was deleted can be set again');

-- Refusals.
select throws_ok($$ select steadytext_config_set('no_such_key', '1') $$, '42704', 'unrecognized configuration key "no_such_key"', 'unknown key');
select throws_ok($$ select steadytext_config_set('no_such_key', null) $$, '42704', 'unrecognized configuration key "no_such_key"', 'unknown key, NULL');
select throws_ok($$ select steadytext_config_set(null, '1') $$, '22004', null, 'NULL key');
select throws_ok($$ select steadytext_config_set('default_max_tokens', 'many') $$, '22023', 'invalid value for configuration key "default_max_tokens": "many"', 'a word for an integer');
select throws_ok($$ select steadytext_config_set('default_max_tokens', '1.5') $$, '22023', null, 'a fraction for an integer');
select throws_ok($$ select steadytext_config_set('default_max_tokens', '1e3') $$, '22023', null, 'a float for an integer');
select throws_ok($$ select steadytext_config_set('default_max_tokens', '') $$, '22023', null, 'nothing for an integer');
select throws_ok($$ select steadytext_config_set('default_max_tokens', '0') $$, '22023', null, 'below the range');
select throws_ok($$ select steadytext_config_set('max_retries', '101') $$, '22023', null, 'above the range');
select throws_ok($$ select steadytext_config_set('worker_poll_interval', 'NaN') $$, '22023', null, 'no number');
select throws_ok($$ select steadytext_config_set('cache_enabled', 'maybe') $$, '22023', null, 'a word for a boolean');
select throws_ok($$ select steadytext_config_set('cache_enabled', '1') $$, '22023', null, 'a number for a boolean');
select throws_ok($$ select steadytext_config_set('cron_port', '65536') $$, '22023', null, 'no port');

-- Numbers have one form, however they come.
select is(pg_temp.set_and_get('max_retries', '7.0'), '7', 'set and get: an integer with a point');
update steadytext_config set value = '24.0' where key = 'queue_retention_hours';
update steadytext_config set value = '3e0' where key = 'max_retries';
update steadytext_config set value = '0.2500' where key = 'worker_poll_interval';
update steadytext_config set value = '-0.0' where key = 'cache_max_size_mb';
select results_eq(
    $$ select key, value::text from steadytext_config
       where key in ('queue_retention_hours', 'max_retries', 'worker_poll_interval', 'cache_max_size_mb') order by key $$,
    $$ values ('cache_max_size_mb', '0'), ('max_retries', '3'), ('queue_retention_hours', '24'), ('worker_poll_interval', '0.25') $$,
    'UPDATE: numbers are brought into their shortest form'
);
select throws_ok($$ update steadytext_config set value = '3.5' where key = 'max_retries' $$, '22023', null, 'UPDATE: a fraction for an integer');
set local session_replication_role = replica;
update steadytext_config set value = '9.0' where key = 'max_retries';
select is((select value::text from steadytext_config where key = 'max_retries'), '9', 'UPDATE under session_replication_role = replica: the same form');
select throws_ok($$ update steadytext_config set value = '1000' where key = 'max_retries' $$, '22023', null, 'and the same range');
set local session_replication_role = origin;

-- Whatever was put past the trigger: nobody who needs the setting fails on it.
alter table steadytext_config disable trigger check_config;
create function pg_temp.understood(p_key text, p_value jsonb) returns text
language sql as $$
    update steadytext_config set value = p_value where key = p_key;
    select case p_key when 'max_retries' then steadytext.config_integer(p_key)::text else steadytext.config_number(p_key)::text end;
$$;
select is(pg_temp.understood('max_retries', '3.0'), '3', 'config_integer: a point');
select is(pg_temp.understood('max_retries', '1e1'), '10', 'config_integer: an exponent');
select is(pg_temp.understood('max_retries', '1e100'), '2147483647', 'config_integer: a number too large');
select is(pg_temp.understood('max_retries', '"many"'), '3', 'config_integer: a word is the built-in value');
select is(pg_temp.understood('max_retries', 'null'), '3', 'config_integer: JSON null, too');
select is(pg_temp.understood('cache_max_size_mb', '1e400'), '1e+300', 'config_number: a number too large');
select is(pg_temp.understood('cache_max_size_mb', '{}'), '1000', 'config_number: an object is the built-in value');
alter table steadytext_config enable always trigger check_config;

-- Plain UPDATE and INSERT are checked alike.
select throws_ok($$ update steadytext_config set value = '"512"' where key = 'default_max_tokens' $$, '22023', null, 'UPDATE: a string for an integer');
select throws_ok($$ update steadytext_config set value = '1' where key = 'cron_host' $$, '22023', null, 'UPDATE: a number for a string');
select throws_ok($$ update steadytext_config set value = 'null' where key = 'cron_host' $$, '22023', null, 'UPDATE: JSON null');
select throws_ok($$ update steadytext_config set key = 'my_key' where key = 'cron_host' $$, '42704', null, 'UPDATE: another key');
select throws_ok($$ insert into steadytext_config (key, value) values ('my_key', '1') $$, '42704', null, 'INSERT: unknown key');

-- The hint names close keys.
create function pg_temp.hint_of(p_statement text) returns text
language plpgsql as $$
declare
    v_hint text;
begin
    execute p_statement;
    return null;
exception when others then
    get stacked diagnostics v_hint = pg_exception_hint;
    return v_hint;
end
$$;
select alike(pg_temp.hint_of($$ select steadytext_config_set('default_max_token', '1') $$), '%default_max_tokens%', 'a missing letter');
select alike(pg_temp.hint_of($$ select steadytext_config_set('queue_retention_hour', '1') $$), '%queue_retention_hours%', 'another');
select is(pg_temp.hint_of($$ select steadytext_config_set('xyzzy', '1') $$), 'The table steadytext_config lists the known keys.', 'nothing close');
select is(pg_temp.hint_of($$ select steadytext_config_set('max_retries', '101') $$), 'It must be an integer between 0 and 100.', 'the hint tells the range');

-- A restore: rows that were changed come in by COPY beside the default rows.
insert into steadytext_config (key, value, description, updated_at, updated_by, is_default)
values ('cache_max_entries', '77', 'from a dump', '2020-01-01', 'somebody', false);
select results_eq(
    $$ select value, description, updated_at, updated_by, is_default from steadytext_config where key = 'cache_max_entries' $$,
    $$ values ('77'::jsonb, 'from a dump', '2020-01-01'::timestamptz, 'somebody', false) $$,
    'a restored row replaces the default row, unchanged'
);
select throws_ok(
    $$ insert into steadytext_config (key, value) values ('cache_max_entries', '78') $$, '23505', null,
    'but a row that was changed is not replaced');

-- daemon_stop and daemon_start.
select is(steadytext_daemon_stop(), true, 'daemon_stop');
select is(steadytext_config_get('worker_paused'), 'true', 'pauses the worker');
select is(steadytext_daemon_start(), true, 'daemon_start');
select is(steadytext_config_get('worker_paused'), 'false', 'lets it go on');
select is(st_daemon_stop() and st_daemon_start(), true, 'st_daemon_stop, st_daemon_start');

select * from finish();
rollback;
