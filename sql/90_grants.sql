-- Who may do what. PUBLIC gets nothing; a test compares this page with the catalogs.

-- Functions and types are open to PUBLIC when they are made, and the default privileges of a schema may have opened
-- anything to anybody.
select steadytext.close_new_objects();

grant usage on schema steadytext to steadytext_user, steadytext_admin, steadytext_worker, pg_monitor;

-- The API.
grant execute on function
    @extschema@.steadytext_generate_async(text, bigint, boolean, bigint, text, text, text, double precision, bigint, text, jsonb),
    @extschema@.steadytext_embed_async(text, boolean, bigint, text, bigint, text, text, boolean, bigint),
    @extschema@.steadytext_generate(text, bigint, boolean, bigint, text, text, text, double precision, text, text, jsonb),
    @extschema@.steadytext_generate_stream(text, bigint, bigint, text, text, text, double precision, text, text, jsonb),
    @extschema@.steadytext_embed(text, boolean, bigint, text, text, text, boolean, text, bigint),
    @extschema@.steadytext_generate_batch_async(text[], bigint, boolean, bigint, text, text, text, double precision, bigint, text, jsonb),
    @extschema@.steadytext_embed_batch_async(text[], boolean, bigint, text, bigint, text, text, boolean, bigint),
    @extschema@.steadytext_generate_json_async(text, jsonb, bigint, boolean, bigint, text, double precision, bigint, text, jsonb),
    @extschema@.steadytext_generate_regex_async(text, text, bigint, boolean, bigint, text, double precision, bigint, text, jsonb),
    @extschema@.steadytext_generate_choice_async(text, text[], boolean, bigint, text, bigint, text, jsonb),
    @extschema@.steadytext_generate_json(text, jsonb, bigint, boolean, bigint, text, double precision, text, text, jsonb),
    @extschema@.steadytext_generate_regex(text, text, bigint, boolean, bigint, text, double precision, text, text, jsonb),
    @extschema@.steadytext_generate_choice(text, text[], boolean, bigint, text, text, text, jsonb),
    @extschema@.steadytext_check_async(uuid),
    @extschema@.steadytext_check_async_batch(uuid[]),
    @extschema@.steadytext_get_async_result(uuid, bigint),
    @extschema@.steadytext_get_async_embedding(uuid, bigint),
    @extschema@.steadytext_wait(uuid[], text, bigint),
    @extschema@.steadytext_cancel_async(uuid),
    @extschema@.steadytext_cancel_async_batch(uuid[]),
    @extschema@.steadytext_config_get(text),
    @extschema@.steadytext_daemon_status(),
    @extschema@.steadytext_model_status(),
    @extschema@.steadytext_model_list(),
    @extschema@.steadytext_cache_stats(),
    @extschema@.steadytext_cache_stats_extended(),
    @extschema@.steadytext_cache_analyze_usage(),
    @extschema@.steadytext_version(),
    @extschema@.steadytext_cache_key(text, text, jsonb),
    @extschema@.steadytext_generate_cached(text, bigint, bigint, text, text, text, double precision, text, text, jsonb),
    @extschema@.steadytext_embed_cached(text, bigint, text, text, text, boolean, text, bigint)
to steadytext_user;
-- The same for arguments of other types.
grant execute on function
    @extschema@.steadytext_generate_json_async(text, json, bigint, boolean, bigint, text, double precision, bigint, text, jsonb),
    @extschema@.steadytext_generate_json_async(text, text, bigint, boolean, bigint, text, double precision, bigint, text, jsonb),
    @extschema@.steadytext_generate_json(text, json, bigint, boolean, bigint, text, double precision, text, text, jsonb),
    @extschema@.steadytext_generate_json(text, text, bigint, boolean, bigint, text, double precision, text, text, jsonb),
    @extschema@.steadytext_cache_key(text, text, json),
    @extschema@.steadytext_cache_key(text, text, text)
to steadytext_user;
-- Conversations, what an answer took, and tokens.
grant execute on function
    @extschema@.steadytext_chat(jsonb, bigint, boolean, bigint, text, text, text, double precision, text, jsonb),
    @extschema@.steadytext_chat_async(jsonb, bigint, boolean, bigint, text, text, text, double precision, bigint, jsonb),
    @extschema@.steadytext_chat_stream(jsonb, bigint, bigint, text, text, text, double precision, text, jsonb),
    @extschema@.steadytext_generate_details(
        text, bigint, boolean, bigint, text, text, text, double precision, text, text, jsonb),
    @extschema@.steadytext_count_tokens(text, text),
    @extschema@.steadytext_tokenize(text, text),
    @extschema@.steadytext_chunk_text(text, bigint, bigint, text, text)
to steadytext_user;
-- Ranking.
grant execute on function
    @extschema@.steadytext_rerank(text, text[], text, boolean, bigint, text, boolean, text, text[]),
    @extschema@.steadytext_rerank_docs_only(text, text[], text, bigint, text, boolean, text),
    @extschema@.steadytext_rerank_top_k(text, text[], bigint, text, boolean, bigint, text, boolean, text, text[]),
    @extschema@.steadytext_rerank_batch(text[], text[], text, boolean, bigint, text, boolean, text, text[]),
    @extschema@.steadytext_rerank_async(text, text[], text, boolean, bigint, text, bigint, boolean, text[]),
    @extschema@.steadytext_rerank_batch_async(text[], text[], text, boolean, bigint, text, bigint, boolean, text[])
to steadytext_user;
-- Prompts that are kept: their policies say whose may be changed.
grant execute on function
    @extschema@.steadytext_prompt_create(text, text, text, jsonb),
    @extschema@.steadytext_prompt_update(text, text, jsonb),
    @extschema@.steadytext_prompt_get(text, bigint),
    @extschema@.steadytext_prompt_render(text, jsonb, bigint, boolean),
    @extschema@.steadytext_prompt_list(),
    @extschema@.steadytext_prompt_versions(text),
    @extschema@.steadytext_prompt_delete(text),
    steadytext.prompt_variables(text),
    steadytext.render_prompt(text, jsonb, boolean),
    steadytext.prompt_id(text),
    steadytext.builtin_prompt(text, bigint)
to steadytext_user, steadytext_admin;
-- Judgements.
grant execute on function
    @extschema@.steadytext_if(text, boolean, bigint, text, text),
    @extschema@.steadytext_if(text[], boolean, bigint, text, text),
    @extschema@.steadytext_if_score(text, boolean, bigint, text, text),
    @extschema@.steadytext_if_score(text[], boolean, bigint, text, text),
    @extschema@.steadytext_score(text, boolean, bigint, text, text),
    @extschema@.steadytext_score(text[], boolean, bigint, text, text),
    @extschema@.steadytext_similarity(text, text, boolean, bigint, text, text),
    @extschema@.steadytext_similarity(text[], text[], boolean, bigint, text, text),
    @extschema@.steadytext_classify(text, text[], text, text[], jsonb, text, boolean, bigint, text, text),
    @extschema@.steadytext_classify(text[], text[], text, text[], jsonb, text, boolean, bigint, text, text),
    @extschema@.steadytext_classify_scores(text, text[], text, text[], jsonb, text, boolean, bigint, text, text),
    @extschema@.steadytext_classify_multi(text, text[], text, text[], jsonb, text, double precision, boolean, bigint, text, text),
    @extschema@.steadytext_if_async(text, boolean, bigint, text, bigint),
    @extschema@.steadytext_if_score_async(text, boolean, bigint, text, bigint),
    @extschema@.steadytext_score_async(text, boolean, bigint, text, bigint),
    @extschema@.steadytext_similarity_async(text, text, boolean, bigint, text, bigint),
    @extschema@.steadytext_classify_async(text, text[], text, text[], jsonb, text, boolean, bigint, text, bigint),
    @extschema@.steadytext_classify_scores_async(text, text[], text, text[], jsonb, text, boolean, bigint, text, bigint),
    @extschema@.steadytext_classify_multi_async(text, text[], text, text[], jsonb, text, double precision, boolean, bigint, text, bigint),
    steadytext.classify_async(text, text, text[], text, text[], jsonb, text, double precision, boolean, bigint, text, bigint)
to steadytext_user;
-- What the API, the view, the column defaults and the CHECKs call with their caller's rights.
grant execute on function
    steadytext.new_request_id(),
    steadytext.current_role_id(),
    steadytext.refuse_row(text, text),
    steadytext.check_queue_row(
        uuid, text, timestamptz, steadytext.role_id, boolean, integer, text, integer, integer, integer),
    steadytext.priority(bigint),
    steadytext.generate_params(bigint, boolean, bigint, text, text, text, double precision, text, jsonb),
    steadytext.embed_params(boolean, bigint, text, text, text, boolean, boolean, bigint),
    steadytext.embed(text, boolean, bigint, text, text, text, boolean, text, bigint),
    steadytext.generate_json_async(text, text, bigint, boolean, bigint, text, double precision, bigint, text, jsonb),
    steadytext.generate_json(text, text, bigint, boolean, bigint, text, double precision, text, text, jsonb),
    steadytext.embed_cached(text, bigint, text, text, text, boolean, text, bigint),
    steadytext.with_written_order(text, text),
    steadytext.cache_counters(),
    steadytext.check_batch(text[], text),
    steadytext.rerank_params(text, boolean, bigint, text, boolean, text[]),
    steadytext.config_numeric(text),
    steadytext.config_integer(text),
    steadytext.config_keys(),
    steadytext.admit_retry(),
    steadytext.refuse_key(text),
    steadytext.activity(),
    steadytext.pulls(),
    steadytext.worker_state()
to steadytext_user;
grant execute on function
    @extschema@.steadytext_cache_clear(),
    @extschema@.steadytext_cache_import(text, boolean),
    @extschema@.steadytext_cache_export(text, boolean, boolean, text),
    @extschema@.steadytext_cache_evict_by_frecency(bigint, double precision, bigint, bigint, bigint),
    @extschema@.steadytext_cache_evict_by_age(bigint, double precision, bigint, bigint),
    @extschema@.steadytext_cache_scheduled_eviction(),
    @extschema@.steadytext_cache_preview_eviction(bigint),
    @extschema@.steadytext_cache_warmup(bigint),
    @extschema@.steadytext_setup_cache_eviction_cron(),
    @extschema@.steadytext_disable_cache_eviction_cron(),
    @extschema@.steadytext_config_set(text, text),
    @extschema@.steadytext_model_verify(text, bigint),
    @extschema@.steadytext_daemon_start(),
    @extschema@.steadytext_daemon_stop(),
    @extschema@.steadytext_model_pull(text, boolean),
    @extschema@.steadytext_model_pull_cancel(text),
    @extschema@.steadytext_model_inspect(text, text),
    @extschema@.steadytext_model_remove(text, boolean),
    @extschema@.steadytext_diagnose(),
    steadytext.server_checks(),
    steadytext.reset_cache_counters()
to steadytext_admin;

-- The protocol.
grant execute on function
    steadytext.claim_requests(text, integer, integer, oid, boolean, integer, bigint, text[], text[]),
    steadytext.prepared_work(text, text, text, text[], jsonb),
    steadytext.complete_reports(text, bigint[], integer[], bytea[]),
    steadytext.worker_models(),
    steadytext.extend_leases(text, bigint[], integer[], integer),
    steadytext.release_requests(text, bigint[], integer[]),
    steadytext.complete_requests(
        text, bigint[], integer[], text[], real[], integer[], integer[], text[], integer[],
        integer[], integer[], integer[], text[], integer[]),
    steadytext.fail_requests(text, bigint[], integer[], text[], text[], boolean[]),
    steadytext.rescue_requests(text[], integer),
    steadytext.promote_requests(integer),
    steadytext.queue_outlook(integer, text[], text[]),
    steadytext.count_pending(),
    steadytext.expire_requests(bigint, integer),
    steadytext.plan_eviction(integer),
    steadytext.evict_entries(bigint[], integer[]),
    steadytext.store_answers(text[], text[], text[], real[], integer[], jsonb[]),
    steadytext.count_accesses(bigint[], bigint[], timestamptz[]),
    steadytext.record_heartbeat(text, text, text, text, jsonb, integer, integer, bigint, bigint, double precision)
to steadytext_worker;

-- Tables. What a user may write in the queue is narrowed further by its policies.
grant select on @extschema@.steadytext_queue to steadytext_user, steadytext_admin;
-- For tables that are made of its rows.
grant usage on type steadytext.role_id to steadytext_user;
grant insert (request_type, prompt, prompts, params, priority, user_id, session_id, max_retries)
    on @extschema@.steadytext_queue to steadytext_user;
grant update (status, retry_count) on @extschema@.steadytext_queue to steadytext_user;
grant delete, update (status, retry_count, max_retries, priority)
    on @extschema@.steadytext_queue to steadytext_admin;

grant select on
    @extschema@.steadytext_config,
    @extschema@.steadytext_models,
    @extschema@.steadytext_daemon_health,
    @extschema@.steadytext_activity
to steadytext_user, steadytext_admin;
-- Prompts are private: the cache is for administrators.
grant select on @extschema@.steadytext_cache, @extschema@.steadytext_cache_with_frecency to steadytext_admin;
-- Nobody but the extension's functions writes it.
grant select on @extschema@.steadytext_audit_log to steadytext_admin;
-- Who may dump the tables may dump what counts their rows.
grant select on sequence
    @extschema@.steadytext_queue_id_seq,
    @extschema@.steadytext_cache_id_seq,
    @extschema@.steadytext_audit_log_id_seq
to steadytext_admin;
-- Monitoring sees numbers, states and names of roles; never a text.
grant select on @extschema@.steadytext_queue_counts to steadytext_admin, pg_monitor;
grant select on @extschema@.steadytext_activity, @extschema@.steadytext_daemon_health to pg_monitor;
grant execute on function
    steadytext.activity(),
    steadytext.pulls(),
    steadytext.worker_state(),
    @extschema@.steadytext_daemon_status(),
    steadytext.server_checks(),
    @extschema@.steadytext_diagnose()
to pg_monitor;
grant insert (key, value), update (value, is_default) on @extschema@.steadytext_config to steadytext_admin;
grant
    insert (name, task, file, repo, revision, sha256, size, licence, query_prompt, passage_prompt, dimensions, is_fallback,
        is_preferred, description),
    update (task, file, repo, revision, sha256, size, licence, query_prompt, passage_prompt, dimensions, is_fallback,
        is_preferred, description),
    delete
on @extschema@.steadytext_models to steadytext_admin;

grant
    select,
    insert (slug, description),
    update (description, updated_at, updated_by),
    delete
on @extschema@.steadytext_prompts to steadytext_user, steadytext_admin;
grant select, insert (prompt_id, version, template, metadata)
    on @extschema@.steadytext_prompt_versions to steadytext_user, steadytext_admin;

-- Each function of the API gets its second name, and with it the grants above.
select steadytext.make_twins();

-- What pg_dump keeps: requests and answers, and settings and models somebody has changed.
select pg_catalog.pg_extension_config_dump('@extschema@.steadytext_queue', '');
select pg_catalog.pg_extension_config_dump('@extschema@.steadytext_queue_id_seq', '');
select pg_catalog.pg_extension_config_dump('@extschema@.steadytext_config', 'where not is_default');
select pg_catalog.pg_extension_config_dump('@extschema@.steadytext_models', 'where not is_default');
select pg_catalog.pg_extension_config_dump('@extschema@.steadytext_prompts', '');
select pg_catalog.pg_extension_config_dump('@extschema@.steadytext_prompt_versions', '');
select pg_catalog.pg_extension_config_dump('@extschema@.steadytext_audit_log', '');
select pg_catalog.pg_extension_config_dump('@extschema@.steadytext_audit_log_id_seq', '');

select steadytext.start_worker();
