-- Limits of roles: who is bound by which, what counts and what does not, what a refusal says, who may see and change them.
\ir setup.psql
select plan(83);

create role st_team nologin;
create role st_carol nologin;
grant steadytext_user to st_team;
grant st_team to st_carol;
create role st_dave nologin superuser;

create function pg_temp.denied(p_role text, p_statement text, p_name text) returns text language sql as $$
    select throws_ok(format('select pg_temp.run_as(%L, %L)', p_role, p_statement), '42501', null, p_role || ' may not: ' || p_name)
$$;
-- The number of further requests that a role may enqueue: enqueues them, and takes them back.
create function pg_temp.room(p_role text, p_most integer default 100) returns integer language plpgsql as $$
declare
    v_room integer := 0;
begin
    begin
        while v_room < p_most loop
            perform pg_temp.run_as(p_role, 'select steadytext_generate_async(''one more'', 3, false)');
            v_room := v_room + 1;
        end loop;
        raise exception 'enough' using errcode = 'ST000';
    exception when sqlstate 'ST000' or configuration_limit_exceeded then
        reset role;
    end;
    return v_room;
end
$$;
-- The fields of an error besides its message.
create function pg_temp.said(p_role text, p_statement text, out code text, out message text, out hint text, out detail jsonb)
language plpgsql as $$
begin
    perform pg_temp.run_as(p_role, p_statement);
exception when others then
    get stacked diagnostics code = returned_sqlstate, message = message_text, hint = pg_exception_hint, detail = pg_exception_detail;
end
$$;
create function pg_temp.used(p_role text, p_limit text) returns bigint language sql as $$
    select pg_temp.run_as(p_role, format('select used from steadytext_my_limits() where limit_name = %L', p_limit))::bigint
$$;

-- Without a limit.
select is(pg_temp.room('st_alice'), 100, 'without a limit as many as anybody likes');
select is(pg_temp.run_as('st_alice', 'select count(*) from steadytext_my_limits()'), '0', 'my_limits: none');

-- A limit of one role.
select lives_ok($$ select pg_temp.run_as('st_root', $s$ select steadytext_set_limit('st_alice', requests_per_minute => 5, requests_per_hour => 8) $s$) $$, 'an administrator sets a limit');
select is(pg_temp.room('st_alice'), 5, 'the strictest of its limits holds');
select is(pg_temp.room('st_bob'), 100, 'and nobody else is bound by it');
select is(pg_temp.room('st_alice'), 5, 'what was rolled back does not count');
select is(pg_temp.used('st_alice', 'requests_per_minute'), 0::bigint, 'my_limits: nothing was used');
select lives_ok($$ select pg_temp.run_as('st_alice', 'select steadytext_generate_async(''a'', 3)') $$, 'one that stays');
select is(pg_temp.room('st_alice'), 4, 'counts');
select results_eq(
    $$ select pg_temp.run_as('st_alice', 'select string_agg(concat_ws('' '', limit_name, seconds, allowed, used, remaining), '', '' order by seconds) from steadytext_my_limits()') $$,
    $$ values ('requests_per_minute 60 5 1 4, requests_per_hour 3600 8 1 7') $$, 'my_limits: what is allowed, used and left');
select ok(
    pg_temp.run_as('st_alice', 'select resets_at between clock_timestamp() and clock_timestamp() + interval ''62 seconds'' from steadytext_my_limits() where seconds = 60')::boolean,
    'my_limits: when that no longer counts');
select is(pg_temp.run_as('st_root', $$ select concat_ws(' ', requests_last_minute, requests_last_day, tokens_last_day) from steadytext_limit_usage() where user_id = 'st_alice' $$),
    '1 1 0', 'limit_usage: what a role has used');

-- Rows that come together.
select lives_ok($$ select pg_temp.run_as('st_alice', 'select steadytext_generate_batch_async(array[''b'', ''c''])') $$, 'a batch');
select is(pg_temp.used('st_alice', 'requests_per_minute'), 3::bigint, 'counts as its elements');
select throws_ok($$ select pg_temp.written_as('st_alice', $s$ insert into steadytext_queue (request_type, prompt) select 'generate', 'row ' || i from generate_series(1, 3) as i $s$) $$,
    '53400', 'role "st_alice" may ask for 5 requests per minute, and this transaction alone asks for more', 'the third row of an INSERT is too much');
select is(pg_temp.used('st_alice', 'requests_per_minute'), 3::bigint, 'and none of them counts');
select is(pg_temp.written_as('st_alice', $$ insert into steadytext_queue (request_type, prompt) values ('generate', 'd') $$), 1::bigint, 'one row fits');
select throws_ok($$ select pg_temp.run_as('st_alice', 'select steadytext_embed_batch_async(array[''e'', ''f''])') $$, '53400', null, 'two texts are too much');
select is((select count(*)::integer from steadytext_queue where prompt like 'row%' or prompt in ('e', 'f')), 0, 'nothing of what was refused is there');
select lives_ok($$ select pg_temp.written_as('st_alice', $s$ insert into steadytext_queue (request_type, prompts) values ('batch_embed', '{g}') $s$) $$, 'one text');
select throws_ok($$ select pg_temp.run_as('st_alice', 'select steadytext_generate_async(''h'')') $$, '53400', null, 'and now nothing more');

-- The fields of a refusal.
select is(s.code, '53400', 'a refusal has its SQLSTATE') from pg_temp.said('st_alice', 'select steadytext_generate_async(''sesame'')') as s;
select ok(s.hint ~ '^It has asked for 5 before this.* Ask for fewer in a transaction', 'what to do: ' || s.hint) from pg_temp.said('st_alice', 'select steadytext_generate_async(''sesame'')') as s;
select is(s.detail - 'retry_after_s', '{"limit": "requests_per_minute", "allowed": 5, "used": 5, "requested": 1}', 'for programs: which limit')
from pg_temp.said('st_alice', 'select steadytext_generate_async(''sesame'')') as s;
select is(s.detail -> 'retry_after_s', 'null', 'and that there is no time after which the same fits')
from pg_temp.said('st_alice', 'select steadytext_generate_async(''sesame'')') as s;
select ok(concat(s.message, s.hint, s.detail) !~ 'sesame', 'no word of the prompt')
from pg_temp.said('st_alice', 'select steadytext_generate_async(''sesame'')') as s;
select is(s.message, 'role "st_alice" may ask for 5 requests per minute, and not for 6 at once', 'more than there will ever be room for')
from pg_temp.said('st_alice', $$ insert into steadytext_queue (request_type, prompts) values ('batch_embed', '{a,b,c,d,e,f}') returning id $$) as s;
select is(s.detail -> 'retry_after_s', 'null', 'is nothing to be tried again')
from pg_temp.said('st_alice', $$ insert into steadytext_queue (request_type, prompts) values ('batch_embed', '{a,b,c,d,e,f}') returning id $$) as s;
select is(concat_ws(' | ', s.message, s.detail ->> 'requested', s.detail -> 'retry_after_s'),
    'role "st_alice" may ask for 5 requests per minute, and this transaction alone asks for more | 1 | null', 'nor is a batch of more than the limit')
from pg_temp.said('st_alice', 'select steadytext_generate_batch_async(array_fill(''x''::text, array[10]))') as s;

-- Calls.
select throws_ok($$ select pg_temp.run_as('st_alice', 'select steadytext_generate(''now'', 3, false)') $$, '53400', 'role "st_alice" may ask for 5 requests per minute, and this transaction alone asks for more', 'a call is refused as well');
select throws_ok($$ select pg_temp.run_as('st_alice', 'select steadytext_embed(''now'')') $$, '53400', null, 'an embedding');
select throws_ok($$ select pg_temp.run_as('st_alice', 'select steadytext_classify(''now'', array[''a'', ''b''])') $$, '53400', null, 'a verb');
select throws_ok($$ select pg_temp.run_as('st_alice', 'select count(*) from steadytext_generate_stream(''now'', 3)') $$, '53400', null, 'a stream');
select lives_ok($$ select pg_temp.run_as('st_alice', 'select steadytext_count_tokens(''now'')') $$, 'counting tokens asks no model');
select lives_ok($$ select pg_temp.run_as('st_root', 'select steadytext_reset_usage(''st_alice'')') $$, 'an administrator makes the windows empty');
select is(pg_temp.room('st_alice'), 5, 'and there is room again');
select isnt(pg_temp.run_as('st_alice', 'select steadytext_generate(''now'', 3, false)'), null, 'a call');
select is(pg_temp.used('st_alice', 'requests_per_minute'), 1::bigint, 'counts');
savepoint here;
select is(pg_temp.run_as('st_alice', 'select array_length(steadytext_score(array[''x'', ''y'']), 1)'), '2', 'an array of two');
rollback to here;
select is(pg_temp.used('st_alice', 'requests_per_minute'), 3::bigint, 'counts as two, whatever becomes of the transaction');
insert into steadytext_cache (cache_key, prompt, response, request_type, imported) values ('in the cache', 'in the cache', 'known', 'generate', true);
select is(pg_temp.run_as('st_alice', 'select steadytext_generate(''in the cache'')'), 'known', 'an answer of the cache');
select lives_ok($$ select pg_temp.run_as('st_alice', 'select steadytext_generate_async(''in the cache'')') $$, 'in the queue as well');
select is(pg_temp.used('st_alice', 'requests_per_minute'), 3::bigint, 'costs nothing');

-- Tokens.
select pg_temp.run_as('st_root', $$ select steadytext_set_limit('st_bob', tokens_per_hour => 10) $$);
select isnt(pg_temp.run_as('st_bob', 'select steadytext_generate(''tell me'', 8, false)'), null, 'the first call may take more than there is');
select ok(pg_temp.used('st_bob', 'tokens_per_hour') > 10, 'tokens of prompt and answer count');
select is(s.message, 'role "st_bob" has used up its 10 tokens per hour', 'the next one is refused') from pg_temp.said('st_bob', 'select steadytext_generate_async(''more'')') as s;
select ok(s.hint ~ '^Try again in [0-9]+ seconds', 'with the seconds to wait') from pg_temp.said('st_bob', 'select steadytext_generate_async(''more'')') as s;
select ok((s.detail ->> 'retry_after_s')::integer between 3500 and 3660 and s.detail ->> 'limit' = 'tokens_per_hour', 'for programs, too') from pg_temp.said('st_bob', 'select steadytext_generate_async(''more'')') as s;
select pg_temp.run_as('st_root', $$ select steadytext_set_limit('st_bob', requests_per_day => 0) $$);
select is(s.message, 'role "st_bob" may use no requests', 'none at all') from pg_temp.said('st_bob', 'select steadytext_generate_async(''more'')') as s;

-- Pending requests.
select pg_temp.run_as('st_root', $$ select steadytext_set_limit('st_bob', max_pending => 3) $$);
select is(pg_temp.room('st_bob'), 3, 'pending requests of the own');
select is(s.message, 'role "st_bob" may have 3 requests pending', 'the message about them')
from pg_temp.said('st_bob', $$ insert into steadytext_queue (request_type, prompt) select 'generate', i::text from generate_series(1, 4) as i returning id $$) as s;
select isnt(pg_temp.run_as('st_bob', 'select steadytext_generate(''a call'', 3, false)'), null, 'calls do not wait in the queue');
select pg_temp.run_as('st_root', $$ select steadytext_set_limit('st_bob') $$);
select is(pg_temp.room('st_bob'), 100, 'a limit without numbers is none');
select is((select count(*)::integer from steadytext_rate_limits where user_id::name = 'st_bob'), 0, 'and has no row');

-- Groups, everybody, and who is above that.
select pg_temp.run_as('st_root', $$ select steadytext_set_limit('st_team', requests_per_minute => 4) $$);
select is(pg_temp.room('st_carol'), 4, 'members have the limit of their group');
select lives_ok($$ select pg_temp.run_as('st_carol', 'set local role st_team; select steadytext_generate_async(''as the group'')') $$, 'the group itself asks');
select is(pg_temp.room('st_carol'), 4, 'it counts for each by itself');
select pg_temp.run_as('st_root', $$ select steadytext_set_limit('*', requests_per_minute => 7) $$);
select is(pg_temp.room('st_bob'), 5, 'a limit for everybody, of whom one has asked for two already');
select is(pg_temp.room('st_carol'), 4, 'of two the stricter one holds');
select is(pg_temp.room('st_root', 20), 20, 'administrators are not bound by it');
select is(pg_temp.room('st_dave', 20), 20, 'nor are superusers');
select pg_temp.run_as('st_root', $$ select steadytext_set_limit('st_root', requests_per_minute => 2) $$);
select is(pg_temp.room('st_root', 20), 2, 'unless it names them');
revoke st_team from st_carol;
grant steadytext_user to st_carol;
select is(pg_temp.room('st_carol'), 7, 'who leaves a group is no longer bound by its limit');
select pg_temp.run_as('st_root', $$ select steadytext_set_limit(null) $$);
select is(pg_temp.room('st_carol', 20), 20, 'the limit for everybody is gone');
alter role st_alice rename to st_alicia;
select is(pg_temp.used('st_alicia', 'requests_per_minute'), 3::bigint, 'another name is no new window');
select is(pg_temp.run_as('st_root', 'select user_id from steadytext_rate_limits where requests_per_hour = 8'), 'st_alicia', 'nor a limit less');
select pg_temp.run_as('st_root', $$ select steadytext_set_limit('st_team', requests_per_minute => 1) $$);
drop owned by st_team; drop role st_team;
select is(pg_temp.room('st_carol', 20), 20, 'the limit of a role that is gone binds nobody');

-- Rows as the Python extension had them, and hostile ones.
select lives_ok($$ insert into steadytext_rate_limits (user_id) values ('st_bob') $$, 'a row with the numbers that it had');
select results_eq($$ select requests_per_minute, requests_per_hour, requests_per_day from steadytext_rate_limits where user_id::name = 'st_bob' $$,
    $$ values (60::bigint, 1000::bigint, 10000::bigint) $$, 'which are these');
select throws_ok($$ insert into steadytext_rate_limits (user_id) values ('st_bob') $$, '23505', null, 'one row per role');
select throws_ok($$ insert into steadytext_rate_limits (user_id) values ('st_nobody') $$, '42704', null, 'no role of this name');
select throws_ok($$ select steadytext_set_limit('st_nobody', requests_per_day => 1) $$, '42704', 'role "st_nobody" does not exist', 'nor by the function');
select throws_ok($$ select steadytext_set_limit('st_bob', requests_per_day => -1) $$, '22023', null, 'less than none');
select throws_ok($$ select steadytext_set_limit('st_bob', tokens_per_day => 9223372036854775807) $$, '22023', null, 'more than anybody counts');
select throws_ok($$ select steadytext_reset_usage('*') $$, '22023', null, 'reset_usage: everybody is nobody');

-- Privileges.
select pg_temp.denied('st_carol', 'select count(*) from steadytext_rate_limits', 'read the limits of others');
select pg_temp.denied('st_carol', 'select steadytext_set_limit(''st_carol'', requests_per_day => 1000000)', 'set a limit');
select pg_temp.denied('st_carol', 'select steadytext_reset_usage(''st_carol'')', 'reset what was used');
select pg_temp.denied('st_carol', 'select steadytext.reset_usage(0)', 'by the function below either');
select pg_temp.denied('st_carol', 'select count(*) from steadytext_limit_usage()', 'see what others have used');
select pg_temp.denied('st_stranger', 'select count(*) from steadytext_my_limits()', 'ask for limits');
select pg_temp.denied('st_root', 'update steadytext_rate_usage set second = 0', 'write what the worker writes');

create function pg_temp.said_of_reset(p_role text, out message text, out hint text) language plpgsql as $$
begin
    perform steadytext_reset_usage(p_role);
exception when others then
    get stacked diagnostics message = message_text, hint = pg_exception_hint;
end $$;
select results_eq(
    $$ select s.message, s.hint from pg_temp.said_of_reset('nobody-of-this-name') as s $$,
    $$ values ('role "nobody-of-this-name" does not exist', 'Give the name of a role: steadytext_limit_usage() lists those that have used anything.') $$,
    'what is forgotten is of a role: everybody is no answer');

select * from finish();
rollback;
