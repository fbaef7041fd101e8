-- The facts that an upgrade must preserve, one line each.
\set ON_ERROR_STOP on
\pset format unaligned
\pset tuples_only on
select 'request', q.request_id, q.request_type, q.status, md5(q.result), md5(q.embedding::text), md5(q.results::text), q.error_code, q.attempt,
    q.retry_count, q.owner_role::oid, q.owner_role, q.batch_key
from steadytext_queue as q join public.ended using (request_id) order by q.id;
select 'open', prompt, status, attempt, owner_role::oid, worker from steadytext_queue where prompt like 'open%' order by id;
select 'setting', key, value, is_default from steadytext_config order by key;
select 'model', to_jsonb(m) from steadytext_models as m order by name;
select 'prompt', p.id, p.slug, p.owner_role::oid, v.version, v.template from steadytext_prompts as p
join steadytext_prompt_versions as v on v.prompt_id = p.id order by p.slug, v.version;
select 'batch', to_jsonb(b) from steadytext_batch_heads as b order by batch;
select 'limit', to_jsonb(l) from steadytext_rate_limits as l order by 2;
select 'cached', cache_key, request_type, md5(response), md5(embedding::text), model_hash, kernel_version from steadytext_cache order by cache_key;
select 'audit', to_jsonb(a) from steadytext_audit_log as a order by id;
select 'definition', to_jsonb(d) from steadytext_vectorizers as d order by name;
select 'vector', v.* from public.vectors as v order by id;
select 'role', rolname, oid from pg_roles where rolname in ('alice', 'bob', 'steadytext_user', 'steadytext_admin') order by 2;
select 'trigger', tgrelid::regclass, tgname, pg_get_triggerdef(oid) from pg_trigger where tgrelid = 'alice.note'::regclass order by tgname;
