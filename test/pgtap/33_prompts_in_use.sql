-- Prompts in use: those of the extension replaced by a database's own, and those that calls which generate name and fill in.
\ir setup.psql
select plan(61);

create function pg_temp.request(p_id uuid) returns steadytext_queue
language sql as $$ select * from steadytext_queue where request_id = p_id $$;

-- The prompts there are.
select is(
    (select array_agg(p.version_num) from unnest(array['steadytext/analyze-sentiment', 'steadytext/extract', 'steadytext/extract-facts', 'steadytext/mask', 'steadytext/translate']) as s, steadytext_prompt_get(s) as p),
    '{1,1,1,1,1}', 'prompt_get: the prompts of what is written');
select is(p.required_variables, steadytext.prompt_variables(p.template), 'prompt_get: the variables of ' || s)
from unnest(array['steadytext/analyze-sentiment', 'steadytext/extract', 'steadytext/extract-facts', 'steadytext/mask', 'steadytext/translate']) as s, steadytext_prompt_get(s) as p;
select lives_ok(format('select steadytext.check_replacement(%L, %L)', s, p.template), 'the extension''s own template could stand for itself: ' || s)
from unnest(array['steadytext/analyze-sentiment', 'steadytext/classify', 'steadytext/classify-multi', 'steadytext/extract', 'steadytext/extract-facts', 'steadytext/if', 'steadytext/mask', 'steadytext/score', 'steadytext/translate']) as s, steadytext_prompt_get(s) as p;
select is(
    steadytext_prompt_render('steadytext/extract', '{"fields": [{"name": "a", "type": "string", "description": null}, {"name": "b", "type": "integer", "description": "bees"}], "schema": "{}"}'),
    E'Extract these fields from the text, and answer with a JSON object that has all of them in this order. A field of which the text says nothing is null:\n- a (string)\n- b (integer): bees',
    'prompt_render: what a model is told of fields');
select is(
    steadytext_prompt_render('steadytext/extract', '{"fields": null, "schema": "{}"}'),
    E'Extract what the text says, and answer with a JSON document that conforms to this schema:\n{}', 'prompt_render: what a model is told of a schema');

-- One of the database's own takes its place.
create temporary table usual as
select steadytext_if_score('Is it?') as if_score, steadytext_classify('x', array['a', 'b']) as classify,
    (select array_agg(s.score order by s.category) from steadytext_classify_scores('x', array['a', 'b']) as s) as scores,
    steadytext_cache_key('if', 'Is it?') as key, steadytext_cache_key('classify', 'x', '{"categories": ["a", "b"]}') as classify_key;
select isnt(steadytext_prompt_create('steadytext/if', 'Question: {{ prompt }}'), null, 'a prompt of the extension is replaced');
select isnt(steadytext_if_score('Is it?'), if_score, 'if_score: asked in other words') from usual;
select is(steadytext_if_score(array['Is it?']), array[steadytext_if_score('Is it?', false)], 'if_score: arrays, too');
select isnt(steadytext_cache_key('if', 'Is it?'), key, 'another key') from usual;
select isnt(steadytext_cache_key('if', 'Is it?'), null, 'which is known');
select is((r).params, '{"template": "Question: {{ prompt }}"}', 'a row has the words of its moment') from pg_temp.request(steadytext_if_async('of a row')) as r;
select is((r).params, '{}', 'rows of other types have none') from pg_temp.request(steadytext_score_async('of a row')) as r;
select is(steadytext_classify('x', array['a', 'b']), classify, 'other prompts are as they were') from usual;
select isnt(steadytext_prompt_update('steadytext/if', 'Really? {{ prompt }}'), null, 'a new version');
select is((r).params ->> 'template', 'Really? {{ prompt }}', 'is the one that is used') from pg_temp.request(steadytext_if_score_async('of a row')) as r;
select ok(steadytext_prompt_delete('steadytext/if'), 'without it');
select is(steadytext_if_score('Is it?', false), if_score, 'all is as before') from usual;
select is(steadytext_cache_key('if', 'Is it?'), key, 'the key, too') from usual;
select isnt(steadytext_prompt_create('steadytext/classify', '{% for c in categories %}{{ c.name }} {{ c.description or "?" }}{% endfor %}'), null, 'a prompt with categories');
select isnt((select array_agg(s.score order by s.category) from steadytext_classify_scores('x', array['a', 'b']) as s), scores, 'classify_scores: asked in other words') from usual;
select isnt(steadytext_cache_key('classify', 'x', '{"categories": ["a", "b"]}'), classify_key, 'classify: another key') from usual;
select is((r).params ? 'template', false, 'vectors are asked nothing') from pg_temp.request(steadytext_classify_async('x', array['a', 'b'], method => 'embed')) as r;
select is((r).params ? 'template', true, 'but models are') from pg_temp.request(steadytext_classify_scores_async('of a row', array['a', 'b'])) as r;
select isnt(steadytext_prompt_create('steadytext/extract', 'Schema: {{ schema }}'), null, 'one variable of two is enough');
select isnt(steadytext_extract('x', array['a: boolean']), null, 'extract: asked in other words');

-- The checks of a prompt when it is kept.
select throws_ok(format('select steadytext_prompt_create(%L, %L)', slug, template), code, message, message)
from (values
    ('steadytext/nothing', 'x', '22023', 'the extension has no prompt "steadytext/nothing" that could be replaced'),
    ('steadytext/score', 'x', '22023', 'the prompt steadytext/score must use the variable prompt'),
    ('steadytext/score', '{{ prompt }} {{ other }}', '22023', 'the prompt steadytext/score gets no variable other'),
    ('steadytext/score', '{{ prompt', '42601', null),
    ('steadytext/score', '{{ prompt | nonsense }}', 'XX000', 'Template rendering error: unknown filter: filter nonsense is unknown'),
    ('steadytext/classify-multi', '{{ input }} {{ category.name.first.second }}', 'XX000', null)
) as bad(slug, template, code, message);
select throws_ok($$ select steadytext_prompt_update('steadytext/extract', 'x') $$, '22023', 'the prompt steadytext/extract must use the variable schema', 'a new version is checked, too');
insert into steadytext_prompt_versions (prompt_id, version, template, created_at)
select id, 2, '{{ categories.x.y }}', now() - interval '1 day' from steadytext_prompts where slug = 'steadytext/classify';
select throws_ok($$ select steadytext_classify('x', array['a', 'b']) $$, 'XX000', null, 'one that came with a dump and cannot be used is an error, not another prompt');

-- Prompts that calls name.
select steadytext_prompt_create('say-hello', 'Say hello to {{ name }}') is not null as kept \gset
select is(steadytext_generate('say-hello', 8, variables => '{"name": "Bob"}'), steadytext_generate('Say hello to Bob', 8), 'generate: a prompt that is named');
select is(steadytext_generate('say-hello', 8), steadytext_generate('say-hello', 8, variables => null), 'generate: without variables the name is a text');
select is(steadytext_generate(null, 8, variables => '{}'), null, 'generate: NULL');
select throws_ok($$ select steadytext_generate('say-hello', 8, variables => '{}') $$, 'XX000', 'Missing required variables: name', 'generate: all variables have values');
select throws_ok($$ select steadytext_generate('nobody', 8, variables => '{}') $$, 'P0002', 'Prompt with slug "nobody" not found', 'generate: a prompt that there is not');
select throws_ok($$ select steadytext_generate('say-hello', 8, variables => '[]') $$, '22023', 'the variables of a prompt are not a JSON object', 'generate: values have names');
select is(steadytext_generate_choice('say-hello', array['a', 'b'], variables => '{"name": "Bob"}'), steadytext_generate_choice('Say hello to Bob', array['a', 'b']), 'generate_choice');
select is(steadytext_generate_regex('say-hello', '[a-c]+', 8, variables => '{"name": "Bob"}'), steadytext_generate_regex('Say hello to Bob', '[a-c]+', 8), 'generate_regex');
select is(steadytext_generate_json('say-hello', '{"type": "boolean"}', variables => '{"name": "Bob"}'), steadytext_generate_json('Say hello to Bob', '{"type": "boolean"}'), 'generate_json');
select is((select string_agg(piece, '') from steadytext_generate_stream('say-hello', 8, variables => '{"name": "Bob"}') as piece), steadytext_generate('Say hello to Bob', 8), 'generate_stream');
select is((select text from steadytext_generate_details('say-hello', 8, variables => '{"name": "Bob"}')), steadytext_generate('Say hello to Bob', 8), 'generate_details');
select is((pg_temp.request(id)).prompt, 'Say hello to Bob', 'the row of a prompt that is named')
from unnest(array[
    steadytext_generate_async('say-hello', 8, variables => '{"name": "Bob"}'),
    st_generate_json_async('say-hello', '{"type": "boolean"}', variables => '{"name": "Bob"}'),
    st_generate_regex_async('say-hello', '[a-c]+', variables => '{"name": "Bob"}'),
    st_generate_choice_async('say-hello', array['a', 'b'], variables => '{"name": "Bob"}')]) as id;
select is(pg_temp.run_as('st_alice', $$ select steadytext_generate('say-hello', 8, variables => '{"name": "Bob"}') $$), steadytext_generate('Say hello to Bob', 8), 'prompts are there for all users');

select * from finish();
rollback;
