-- Asks the model in the file :file, and the builtin one, for text, a summary, JSON and a choice. An error when an answer is
-- missing; and, unless :given says that the file is the user's own, when the model does not know the capital of France.

create extension pg_steadytext cascade;
\pset format wrapped
\pset columns 118
\pset footer off
\pset linestyle unicode
\set ECHO queries

insert into steadytext_models (name, task, file, is_preferred, description)
values ('mine', 'generate', :'file', true, 'a model that people use');

\echo '-- From now on it answers where nobody names a model.'
select steadytext_generate('What is the capital of France?', max_tokens => 24) as answer;

\echo '-- The same question to both.'
select model, steadytext_generate('What is the capital of France?', max_tokens => 24, model => model) as answer
from unnest(array['mine', 'builtin']) as model;

\echo '-- A summary.'
create temporary table note as
select 'The parcel was sent on Monday. On Wednesday it came back, because nobody was at home when the driver rang. '
    'Anna collected it at the post office on Friday, and paid 3 euros for the storage.' as body;

select model, steadytext_generate('Summarize in one short sentence: ' || note.body, max_tokens => 40, model => model) as summary
from note, unnest(array['mine', 'builtin']) as model;

\echo '-- Facts out of a text, as JSON that conforms to a schema.'
select model, steadytext_generate_json('Who collected the parcel, and on which day? ' || note.body,
    '{"type": "object", "properties": {"name": {"type": "string", "maxLength": 20}, "day": {"enum": ["Monday", "Wednesday", "Friday"]}},
      "required": ["name", "day"], "additionalProperties": false}', max_tokens => 60, model => model)::jsonb as facts
from note, unnest(array['mine', 'builtin']) as model;

\echo '-- A choice.'
select model, steadytext_generate_choice('Is this review positive or negative? "I love this phone, it is great."',
    array['positive', 'negative'], model => model) as review
from unnest(array['mine', 'builtin']) as model;

\echo '-- Many at once, through the queue: the model computes them together.'
create temporary table question as
select body, steadytext_generate_async(body, max_tokens => 24) as request_id
from unnest(array['What is the capital of Italy?', 'What is the capital of Japan?', 'What is the largest ocean?']) as body;

select question.body, steadytext_get_async_result(question.request_id, 120) as answer from question;

\set ECHO none
select set_config('demo.given', :'given', false) \g /dev/null
do $$
begin
    if current_setting('demo.given') = ''
        and steadytext_generate('What is the capital of France?', max_tokens => 24, model => 'mine') not like '%Paris%'
    then
        raise exception 'the model does not know the capital of France';
    end if;
end
$$;
