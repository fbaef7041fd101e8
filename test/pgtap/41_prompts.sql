-- The registry of prompts: templates, versions, values, rights.
\ir setup.psql
select plan(71);

-- Templates and values.
select isnt(steadytext_prompt_create('greeting', 'Hello {{ name }}!', 'A greeting'), null, 'a prompt is kept');
select results_eq(
    $$ select version_num, template, required_variables, metadata, created_by from steadytext_prompt_get('greeting') $$,
    $$ values (1, 'Hello {{ name }}!', array['name'], '{}'::jsonb, current_user::text collate "default") $$,
    'and found by its name');
select is(steadytext_prompt_render('greeting', '{"name": "World"}'), 'Hello World!', 'it is filled in');
select throws_ok(
    $$ select steadytext_prompt_render('greeting', '{}') $$, 'XX000', 'Missing required variables: name',
    'what has no value is missing');
select throws_ok(
    $$ select steadytext_prompt_render('greeting', null) $$, 'XX000', 'Missing required variables: name',
    'NULL has no values');
select is(steadytext_prompt_render('greeting', '{}', strict => false), 'Hello !', 'unless nobody minds');
select throws_ok(
    $$ select steadytext_prompt_render('greeting', '["World"]') $$, '22023',
    'the variables of a prompt are not a JSON object', 'values have names');
select is(
    steadytext_prompt_render('greeting', '{"name": "{{ 7 * 7 }}{% raw %}"}'), 'Hello {{ 7 * 7 }}{% raw %}!',
    'a value is text, whatever it looks like');
select is(
    steadytext_prompt_render('greeting', '{"name": null, "more": 1}'), 'Hello None!', 'values are written as Python writes them');
select isnt(
    steadytext_prompt_create('loops', '{% for item in items %}{{ item.name }}: {{ item.value }}{% endfor %}'), null,
    'a template may have loops');
select is(
    steadytext_prompt_render('loops', '{"items": [{"name": "A", "value": 1}, {"name": "B", "value": 2}]}'), 'A: 1B: 2',
    'which run');
select isnt(steadytext_prompt_create('polite', 'Hello {{ name|default("Guest") }}'), null, 'and filters');
select is(steadytext_prompt_render('polite', '{}', null, false), 'Hello Guest', 'which work');
select throws_ok(
    $$ select steadytext_prompt_create('bad', '{{ unclosed') $$, '42601', null, 'a template that is none is refused');
select throws_like(
    $$ select steadytext_prompt_create('bad', '{% include "other" %}') $$, 'Invalid Jinja2 template:%', 'so is one that includes others');
select throws_ok($$ select steadytext_prompt_create('bad', '') $$, '22023', 'Prompt template cannot be empty', 'or an empty one');
select throws_ok($$ select steadytext_prompt_create('bad', null) $$, '22023', 'Prompt template cannot be empty', 'or none');
select throws_like(
    $$ select steadytext_prompt_create('bad', repeat('x', 40000)) $$, 'Invalid Jinja2 template: it has 40000 bytes%', 'or one that is too long');
select isnt(
    steadytext_prompt_create('endless', '{% for i in range(9999) %}{% for j in range(9999) %}{{ x }}{% endfor %}{% endfor %}'), null,
    'a template that runs for ever can be compiled');
select throws_like(
    $$ select steadytext_prompt_render('endless', '{"x": 1}') $$, 'Template rendering error:%', 'and is stopped when it runs');
select throws_like(
    $$ select steadytext_prompt_render('greeting', jsonb_build_object('name', (select jsonb_agg(i) from generate_series(1, 20000) as i))) $$,
    'the variables of a prompt are too many%', 'values are bounded');

-- Names.
select throws_ok($$ select steadytext_prompt_create(p_slug, 'x') from (values ('Bad_Slug!')) as v (p_slug) $$, '22P02',
    'Invalid slug format. Use lowercase letters, numbers, and hyphens only (3-100 chars)', 'a name has letters, digits and hyphens');
select throws_ok($$ select steadytext_prompt_create('ab', 'x') $$, '22P02', null, 'three at least');
select throws_ok($$ select steadytext_prompt_create(repeat('a', 101), 'x') $$, '22P02', null, 'a hundred at most');
select throws_ok($$ select steadytext_prompt_create(null, 'x') $$, '22P02', null, 'and is there');
select throws_ok($$ select steadytext_prompt_create('a--b', 'x') $$, '22P02', null, 'with single hyphens');
select throws_ok($$ select steadytext_prompt_create('greeting', 'x') $$, '23505',
    'Prompt with slug "greeting" already exists', 'each name is there once');
select throws_ok($$ select steadytext_prompt_create('long-description', 'x', repeat('d', 501)) $$, '22023', null, 'descriptions are bounded');
select throws_ok($$ select steadytext_prompt_create('metadata', 'x', null, '[]') $$, '22023', null, 'metadata are an object');
select throws_ok($$ select * from steadytext_prompt_get('nobody') $$, 'P0002', 'Prompt with slug "nobody" not found', 'a name that is not there');
select throws_ok($$ select * from steadytext_prompt_get('greeting', 999) $$, 'P0002',
    'Version 999 not found for prompt "greeting"', 'a version that is not there');

-- Versions.
select isnt(steadytext_prompt_update('greeting', 'Hi {{ name }}, welcome to {{ place }}!', '{"tone": "warm"}'), null, 'an update');
select results_eq(
    $$ select version_num, template, required_variables, metadata, is_active from steadytext_prompt_versions('greeting') $$,
    $$ values (2, 'Hi {{ name }}, welcome to {{ place }}!', array['name', 'place'], '{"tone": "warm"}'::jsonb, true),
        (1, 'Hello {{ name }}!', array['name'], '{}', false) $$,
    'makes a version, which is current');
select is((select template from steadytext_prompt_get('greeting')), 'Hi {{ name }}, welcome to {{ place }}!', 'the current one is what is found');
select is((select template from steadytext_prompt_get('greeting', 1)), 'Hello {{ name }}!', 'unless another one is asked for');
select is(steadytext_prompt_render('greeting', '{"name": "you"}', 1), 'Hello you!', 'also to fill it in');
select results_eq(
    $$ select slug, description, latest_version_num, total_versions from steadytext_prompt_list() where slug = 'greeting' $$,
    $$ values ('greeting', 'A greeting', 2, 2) $$, 'a prompt is listed once');
select throws_ok($$ select steadytext_prompt_update('nobody', 'x') $$, 'P0002', null, 'there is nothing to update');
select is(st_prompt_render('greeting', '{"name": "a", "place": "b"}'), 'Hi a, welcome to b!', 'the short name');

-- Rights.
select is(pg_temp.run_as('st_alice', $$ select (steadytext_prompt_create('of-alice', 'x {{ y }}') is not null)::text $$), 'true', 'a user keeps a prompt');
select is(pg_temp.run_as('st_bob', $$ select steadytext_prompt_render('of-alice', '{"y": 1}') $$), 'x 1', 'others use it');
select throws_ok(
    $$ select pg_temp.run_as('st_bob', 'select steadytext_prompt_update(''of-alice'', ''mine'')') $$, '42501',
    'prompt "of-alice" belongs to another role', 'but do not change it');
select throws_ok(
    $$ select pg_temp.run_as('st_bob', 'select steadytext_prompt_delete(''of-alice'')') $$, '42501',
    'prompt "of-alice" belongs to another role', 'nor delete it');
select throws_ok(
    $$ select pg_temp.run_as('st_bob', format('insert into steadytext_prompt_versions (prompt_id, version, template) values (%L, 2, ''mine'')',
        (select id from steadytext_prompts where slug = 'of-alice'))) $$, '42501', null, 'by no way');
select throws_ok(
    $$ select pg_temp.run_as('st_bob', 'select steadytext_prompt_create(''steadytext/classify'', ''x'')') $$, '42501',
    'prompt "steadytext/classify" takes the place of one of the extension''s',
    'names of the extension are not for users');
select is(pg_temp.run_as('st_root', $$ select (steadytext_prompt_create('steadytext/classify', '{% for c in categories %}{{ c.name }} {% endfor %}') is not null)::text $$), 'true', 'they are for administrators');
-- A user's own prompts are no change for other sessions, which would read all settings again. A prompt of the extension is one.
create function pg_temp.reads() returns bigint language sql as
$$ select coalesce(sum(s.seq_scan + coalesce(s.idx_scan, 0)), 0)::bigint from pg_stat_xact_user_tables as s where s.relname = 'steadytext_config' $$;
create function pg_temp.reads_after(p_role text, p_statement text) returns bigint language plpgsql as $$
declare
    v_before bigint;
begin
    perform steadytext_cache_key('generate', 'x');
    v_before := pg_temp.reads();
    perform pg_temp.written_as(p_role, p_statement);
    perform steadytext_cache_key('generate', 'x');
    return pg_temp.reads() - v_before;
end
$$;
select is(pg_temp.reads_after('st_alice', $$ insert into steadytext_prompt_versions (prompt_id, version, template) select id, 9, 'x' from steadytext_prompts where false $$), 0::bigint,
    'nothing that is written makes nobody read the settings again');
select is(pg_temp.reads_after('st_alice', $$ select steadytext_prompt_update('of-alice', 'x {{ z }}') $$), 0::bigint, 'nor does a prompt of a user');
select cmp_ok(pg_temp.reads_after('st_root', $$ select steadytext_prompt_create('steadytext/score', '{{ prompt }}?') $$), '>', 0::bigint, 'a prompt in the place of the extension''s does');
select cmp_ok(pg_temp.reads_after('st_root', $$ select steadytext_prompt_update('steadytext/score', '{{ prompt }}!') $$), '>', 0::bigint, 'so does its next version');
select cmp_ok(pg_temp.reads_after(session_user, $$ update steadytext_prompts set slug = 'score-of-root' where slug = 'steadytext/score' $$), '>', 0::bigint, 'and its new name');
select cmp_ok(pg_temp.reads_after(session_user, $$ update steadytext_prompts set slug = 'steadytext/score' where slug = 'score-of-root' $$), '>', 0::bigint, 'and its old one');
select cmp_ok(pg_temp.reads_after('st_root', $$ select steadytext_prompt_delete('steadytext/score') $$), '>', 0::bigint, 'and its end');

-- Who is an administrator no longer has no rights at what he did as one.
grant steadytext_user to st_root;
select is(pg_temp.run_as('st_root', $$ select (steadytext_prompt_create('steadytext/if', 'Is it so? {{ prompt }}') is not null)::text $$), 'true', 'an administrator replaces a prompt');
revoke steadytext_admin from st_root;
select throws_ok(
    $$ select pg_temp.run_as('st_root', 'select steadytext_prompt_update(''steadytext/if'', ''No! {{ prompt }}'')') $$, '42501',
    'prompt "steadytext/if" belongs to another role', 'who was one does not replace it again');
select throws_ok(
    $$ select pg_temp.run_as('st_root', format('insert into steadytext_prompt_versions (prompt_id, version, template) values (%L, 2, ''No! {{ prompt }}'')',
        (select id from steadytext_prompts where slug = 'steadytext/if'))) $$, '42501', null, 'by no way');
select is(pg_temp.written_as('st_root', $$ update steadytext_prompts set description = 'mine' where slug = 'steadytext/if' $$), 0::bigint, 'nor describes it');
select throws_ok(
    $$ select pg_temp.run_as('st_root', 'select steadytext_prompt_delete(''steadytext/if'')') $$, '42501', null, 'nor deletes it');
select is(pg_temp.written_as('st_root', $$ delete from steadytext_prompts where slug = 'steadytext/if' $$), 0::bigint, 'by no way');
grant steadytext_admin to st_root;
select is(pg_temp.run_as('st_root', $$ select steadytext_prompt_delete('steadytext/if') $$), 'true', 'who is one again does');
select is(pg_temp.run_as('st_alice', $$ select (steadytext_prompt_update('of-alice', 'x') is not null)::text $$), 'true', 'its owner changes it');
select is(pg_temp.run_as('st_root', $$ select (steadytext_prompt_update('of-alice', 'y') is not null)::text $$), 'true', 'so do administrators');
select throws_ok($$ select pg_temp.run_as('st_stranger', 'select * from steadytext_prompt_list()') $$, '42501', null, 'strangers see nothing');
select is(
    pg_temp.run_as('st_alice', $$ update steadytext_prompts set updated_by = 'postgres', updated_at = '1999-01-01' where slug = 'of-alice' returning updated_by || (updated_at > '2000-01-01') $$),
    'st_alicetrue', 'who changes a prompt cannot do so in the name of another role');
select throws_ok(
    $$ insert into steadytext_prompt_versions (prompt_id, version, template) select id, 2147483647, 'x' from steadytext_prompts where slug = 'of-alice' $$,
    '22023', 'versions of prompts are counted from 1 to 1000000', 'no version is the last one');

-- Comparing texts is work like making them, and variables have a limit.
select is(steadytext_prompt_create('looks', '{% for i in range(40) %}{% for j in range(40) %}{% if "zz" in x or x == y or x < y %}{% endif %}{% endfor %}{% endfor %}done') is not null, true, 'a template that compares much');
select is(steadytext_prompt_render('looks', '{"x": "aa", "y": "ab"}'), 'done', 'runs where that is little');
select throws_like(
    $$ select steadytext_prompt_render('looks', jsonb_build_object('x', repeat('a', 1000000), 'y', repeat('a', 1000001))) $$,
    '%reads too much text%', 'and not where it is much');
select throws_ok(
    $$ select steadytext_prompt_render('looks', jsonb_build_object('x', repeat('a', 17000000), 'y', '')) $$, '54000', null,
    'variables have a limit');
select is(pg_temp.run_as('st_alice', $$ select steadytext_prompt_delete('of-alice') $$), 'true', 'its owner deletes it');
select results_eq(
    $$ select steadytext_prompt_delete('of-alice'), (select count(*) from steadytext_prompt_versions where template = 'y') $$,
    $$ values (false, 0::bigint) $$, 'with its versions');

select * from finish();
rollback;
