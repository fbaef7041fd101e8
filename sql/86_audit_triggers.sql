-- Changes of tables by administrators are noted in the audit log, by whatever statement they are made. After all tables, as these are made in many
-- fragments, and after the rows that come with the extension.

create trigger note_act after insert or update or delete on @extschema@.steadytext_config
    for each row execute function steadytext.note_act('config', 'key', 'value', 'is_default');
comment on trigger note_act on @extschema@.steadytext_config is 'Records settings that were changed, with their new values';
create trigger note_act after insert or update or delete on @extschema@.steadytext_models
    for each row execute function steadytext.note_act('model', 'name', 'task', 'file', 'repo', 'revision', 'sha256', 'is_fallback', 'is_preferred',
        'placement', 'size', 'licence', 'dimensions', '?query_prompt', '?passage_prompt', '?description');
comment on trigger note_act on @extschema@.steadytext_models is 'Records models that were registered, changed or removed';
create trigger note_act after insert or update or delete on @extschema@.steadytext_rate_limits
    for each row execute function steadytext.note_act('limit', 'user_id', 'requests_per_minute', 'requests_per_hour', 'requests_per_day',
        'tokens_per_minute', 'tokens_per_hour', 'tokens_per_day', 'max_pending');
comment on trigger note_act on @extschema@.steadytext_rate_limits is 'Records limits that were set, changed or lifted';
create trigger note_act after insert or update or delete on @extschema@.steadytext_prompts
    for each row execute function steadytext.note_act('prompt', 'slug', 'updated_at', 'owner_role');
comment on trigger note_act on @extschema@.steadytext_prompts is 'Records prompts that were created, changed or deleted, without their texts';
create trigger note_act after insert or update or delete on @extschema@.steadytext_vectorizers
    for each row execute function steadytext.note_act('vectorizer', 'name', '=kind', 'source', 'owner_role', 'model', 'is_paused', 'replaces',
        'request_type', 'priority', 'truncate', 'revision', '?columns', '?given_keys', '?format', '?params');
comment on trigger note_act on @extschema@.steadytext_vectorizers is 'Records vectorizers and enrichments that were created, changed, paused or dropped, without their prompts';

alter table @extschema@.steadytext_config enable always trigger note_act;
alter table @extschema@.steadytext_models enable always trigger note_act;
alter table @extschema@.steadytext_rate_limits enable always trigger note_act;
alter table @extschema@.steadytext_prompts enable always trigger note_act;
alter table @extschema@.steadytext_vectorizers enable always trigger note_act;
