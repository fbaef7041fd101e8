-- Privileges. PUBLIC gets nothing; a test compares this page with the catalogs.

-- Functions and types are open to PUBLIC when they are made, and the default privileges of a schema may have opened
-- anything to anybody.
select steadytext.close_new_objects();

grant usage on schema steadytext to steadytext_user, steadytext_admin, steadytext_worker, pg_monitor, pg_read_all_stats;

-- The API.
grant execute on function
    @extschema@.steadytext_generate_async(text, bigint, boolean, bigint, text, text, text, double precision, bigint, text, jsonb, jsonb),
    @extschema@.steadytext_embed_async(text, boolean, bigint, text, bigint, text, text, boolean, bigint, boolean),
    @extschema@.steadytext_generate(text, bigint, boolean, bigint, text, text, text, double precision, text, text, jsonb, jsonb, boolean),
    @extschema@.steadytext_generate_stream(text, bigint, bigint, text, text, text, double precision, text, text, jsonb, jsonb, boolean),
    @extschema@.steadytext_embed(text, boolean, bigint, text, text, text, boolean, text, bigint, boolean),
    @extschema@.steadytext_generate_batch_async(text[], bigint, boolean, bigint, text, text, text, double precision, bigint, text, jsonb),
    @extschema@.steadytext_embed_batch_async(text[], boolean, bigint, text, bigint, text, text, boolean, bigint),
    @extschema@.steadytext_generate_json_async(text, jsonb, bigint, boolean, bigint, text, double precision, bigint, text, jsonb, jsonb),
    @extschema@.steadytext_generate_regex_async(text, text, bigint, boolean, bigint, text, double precision, bigint, text, jsonb, jsonb),
    @extschema@.steadytext_generate_choice_async(text, text[], boolean, bigint, text, bigint, text, jsonb, jsonb),
    @extschema@.steadytext_generate_json(text, jsonb, bigint, boolean, bigint, text, double precision, text, text, jsonb, jsonb, boolean),
    @extschema@.steadytext_generate_regex(text, text, bigint, boolean, bigint, text, double precision, text, text, jsonb, jsonb, boolean),
    @extschema@.steadytext_generate_choice(text, text[], boolean, bigint, text, text, text, jsonb, jsonb, boolean),
    @extschema@.steadytext_check_async(uuid),
    @extschema@.steadytext_check_async_batch(uuid[]),
    @extschema@.steadytext_get_async_result(uuid, bigint),
    @extschema@.steadytext_get_async_embedding(uuid, bigint),
    @extschema@.steadytext_wait(uuid[], text, bigint),
    @extschema@.steadytext_cancel_async(uuid),
    @extschema@.steadytext_cancel_async_batch(uuid[]),
    @extschema@.steadytext_enqueue_query(text, text, jsonb, bigint, text),
    @extschema@.steadytext_batch_results(uuid),
    @extschema@.steadytext_wait(uuid, text, bigint),
    @extschema@.steadytext_wait(text, text, bigint),
    @extschema@.steadytext_cancel_batch(uuid),
    @extschema@.steadytext_config_get(text),
    @extschema@.steadytext_daemon_status(),
    @extschema@.steadytext_model_status(),
    @extschema@.steadytext_model_list(),
    @extschema@.steadytext_cache_stats(),
    @extschema@.steadytext_cache_stats_extended(),
    @extschema@.steadytext_cache_analyze_usage(),
    @extschema@.steadytext_version(),
    @extschema@.steadytext_cache_key(text, text, jsonb),
    @extschema@.steadytext_generate_cached(text, bigint, bigint, text, text, text, double precision, text, text, jsonb, jsonb),
    @extschema@.steadytext_embed_cached(text, bigint, text, text, text, boolean, text, bigint, boolean)
to steadytext_user;
-- The same for arguments of other types.
grant execute on function
    @extschema@.steadytext_generate_json_async(text, json, bigint, boolean, bigint, text, double precision, bigint, text, jsonb, jsonb),
    @extschema@.steadytext_generate_json_async(text, text, bigint, boolean, bigint, text, double precision, bigint, text, jsonb, jsonb),
    @extschema@.steadytext_generate_json(text, json, bigint, boolean, bigint, text, double precision, text, text, jsonb, jsonb, boolean),
    @extschema@.steadytext_generate_json(text, text, bigint, boolean, bigint, text, double precision, text, text, jsonb, jsonb, boolean),
    @extschema@.steadytext_cache_key(text, text, json),
    @extschema@.steadytext_cache_key(text, text, text)
to steadytext_user;
-- And for calls as the Python extension had them.
grant execute on function
    @extschema@.steadytext_generate(text, bigint, boolean, bigint, text, text, text, text, text, boolean),
    @extschema@.steadytext_generate(text, bigint, boolean, bigint, text, text, text, text, text, text),
    @extschema@.steadytext_generate_stream(text, bigint, boolean, bigint, text, text, text, text, text, boolean),
    @extschema@.steadytext_generate_stream(text, bigint, text, text, text, text, text, text, text, text, jsonb, boolean),
    @extschema@.steadytext_embed(text, boolean, bigint, text, boolean),
    @extschema@.steadytext_embed_cached(text, bigint, text, boolean),
    @extschema@.steadytext_embed_async(text, boolean, bigint, text, boolean),
    @extschema@.steadytext_embed_async(text, boolean, bigint, text, text),
    @extschema@.steadytext_generate_json(text, jsonb, bigint, boolean, bigint, boolean, text),
    @extschema@.steadytext_generate_json(text, text, bigint, boolean, bigint, text, text),
    @extschema@.steadytext_generate_json(text, jsonb, bigint, boolean, bigint, text, text),
    @extschema@.steadytext_generate_regex(text, text, bigint, boolean, bigint, boolean, text),
    @extschema@.steadytext_generate_regex(text, text, bigint, boolean, bigint, text, text),
    @extschema@.steadytext_generate_choice(text, text[], bigint, boolean, bigint, boolean, text),
    @extschema@.steadytext_generate_choice(text, text[], text, bigint, text, text, text, jsonb, jsonb, boolean),
    @extschema@.steadytext_generate_choice(text, text[], text, text, text, text, text, jsonb, jsonb, boolean),
    @extschema@.steadytext_config_get(varchar),
    @extschema@.st_rerank_top_k(text, text[], bigint, text, boolean, bigint, text, boolean, text, text[]),
    steadytext.predecessor_model(text, text, text)
to steadytext_user;
-- Conversations, what an answer took, and tokens.
grant execute on function
    @extschema@.steadytext_chat(jsonb, bigint, boolean, bigint, text, text, text, double precision, text, jsonb),
    @extschema@.steadytext_chat_async(jsonb, bigint, boolean, bigint, text, text, text, double precision, bigint, jsonb),
    @extschema@.steadytext_chat_stream(jsonb, bigint, bigint, text, text, text, double precision, text, jsonb),
    @extschema@.steadytext_generate_details(
        text, bigint, boolean, bigint, text, text, text, double precision, text, text, jsonb, jsonb),
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
    steadytext.builtin_prompt(text, bigint),
    steadytext.check_replacement(text, text),
    steadytext.is_replacement(uuid),
    steadytext.refuse_change(text, text, text)
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
    @extschema@.steadytext_classify_scores(text[], text[], text, text[], jsonb, text, boolean, bigint, text, text),
    @extschema@.steadytext_classify_multi(text[], text[], text, text[], jsonb, text, double precision, boolean, bigint, text, text),
    @extschema@.steadytext_if_async(text, boolean, bigint, text, bigint),
    @extschema@.steadytext_if_score_async(text, boolean, bigint, text, bigint),
    @extschema@.steadytext_score_async(text, boolean, bigint, text, bigint),
    @extschema@.steadytext_similarity_async(text, text, boolean, bigint, text, bigint),
    @extschema@.steadytext_classify_async(text, text[], text, text[], jsonb, text, boolean, bigint, text, bigint),
    @extschema@.steadytext_classify_scores_async(text, text[], text, text[], jsonb, text, boolean, bigint, text, bigint),
    @extschema@.steadytext_classify_multi_async(text, text[], text, text[], jsonb, text, double precision, boolean, bigint, text, bigint),
    steadytext.classify_async(text, text, text[], text, text[], jsonb, text, double precision, boolean, bigint, text, bigint)
to steadytext_user;
-- Texts that a model generates, and facts.
grant execute on function
    steadytext.plain_verb(text, text, jsonb, boolean, bigint, text, text),
    steadytext.plain_verb_array(text, text[], jsonb, boolean, bigint, text, text),
    steadytext.plain_verb_async(text, text, jsonb, boolean, bigint, text, bigint),
    @extschema@.st_deduplicate_facts(jsonb, double precision, boolean, bigint, text, text),
    @extschema@.steadytext_extract(text, text[], boolean, bigint, text, text),
    @extschema@.steadytext_extract(text[], text[], boolean, bigint, text, text),
    @extschema@.steadytext_extract_async(text, text[], boolean, bigint, text, bigint),
    @extschema@.steadytext_extract(text, jsonb, boolean, bigint, text, text),
    @extschema@.steadytext_extract(text[], jsonb, boolean, bigint, text, text),
    @extschema@.steadytext_extract_async(text, jsonb, boolean, bigint, text, bigint),
    @extschema@.steadytext_extract(text, text, boolean, bigint, text, text),
    @extschema@.steadytext_extract(text[], text, boolean, bigint, text, text),
    @extschema@.steadytext_extract_async(text, text, boolean, bigint, text, bigint),
    @extschema@.steadytext_translate(text, text, boolean, bigint, text, text),
    @extschema@.steadytext_translate(text[], text, boolean, bigint, text, text),
    @extschema@.steadytext_translate_async(text, text, boolean, bigint, text, bigint),
    @extschema@.steadytext_analyze_sentiment(text, boolean, bigint, text, text),
    @extschema@.steadytext_analyze_sentiment(text[], boolean, bigint, text, text),
    @extschema@.steadytext_analyze_sentiment_async(text, boolean, bigint, text, bigint),
    @extschema@.steadytext_mask(text, text[], boolean, bigint, text, text),
    @extschema@.steadytext_mask(text[], text[], boolean, bigint, text, text),
    @extschema@.steadytext_mask_async(text, text[], boolean, bigint, text, bigint),
    @extschema@.steadytext_extract_facts(text, bigint, boolean, bigint, text, text),
    @extschema@.steadytext_extract_facts(text[], bigint, boolean, bigint, text, text),
    @extschema@.steadytext_extract_facts_async(text, bigint, boolean, bigint, text, bigint),
    @extschema@.steadytext_deduplicate_facts(jsonb, double precision, boolean, bigint, text, text),
    @extschema@.steadytext_deduplicate_facts_async(jsonb, double precision, boolean, bigint, text, bigint)
to steadytext_user;
-- Summaries, groups, and many texts at once.
grant execute on function
    @extschema@.steadytext_summarize_text(text, jsonb, bigint, boolean, bigint, text, text, boolean),
    @extschema@.steadytext_summarize_text(text[], jsonb, bigint, boolean, bigint, text, text),
    @extschema@.steadytext_summarize_text_async(text, jsonb, bigint, boolean, bigint, text, bigint),
    @extschema@.steadytext_summarize(text),
    @extschema@.steadytext_summarize(text, jsonb),
    @extschema@.steadytext_summarize_partial(text, jsonb),
    @extschema@.steadytext_summarize_final(jsonb),
    @extschema@.steadytext_agg(text, text),
    @extschema@.st_summarize(text),
    @extschema@.st_summarize(text, jsonb),
    @extschema@.st_summarize_partial(text, jsonb),
    @extschema@.st_summarize_final(jsonb),
    @extschema@.st_agg(text, text),
    @extschema@.steadytext_generate_batch(text[], bigint, boolean, bigint, text, text, text, double precision, text, text, jsonb),
    @extschema@.steadytext_embed_batch(text[], boolean, bigint, text, text, text, boolean, text, bigint),
    steadytext.embed_batch(text[], boolean, bigint, text, text, text, boolean, text, bigint)
to steadytext_user;
-- Search.
grant execute on function
    @extschema@.steadytext_search(text, text, bigint, text, boolean),
    @extschema@.steadytext_hybrid_search(text, text, bigint, bigint, double precision, text),
    @extschema@.steadytext_rag(
        text, text, bigint, bigint, boolean, bigint, text, text, text, double precision, text, text, jsonb, text, boolean, boolean),
    @extschema@.steadytext_create_text_index(text, text),
    steadytext.find_search_target(text),
    steadytext.has_code_of_users(regclass),
    steadytext.base_type(oid),
    steadytext.key_comparison(text, text, text, oid),
    steadytext.text_index(regclass, text),
    steadytext.search_rows(steadytext.search_target, text),
    steadytext.search_statement(steadytext.search_target, text, boolean),
    steadytext.hybrid_statement(steadytext.search_target, text, boolean, text),
    steadytext.run_search(text, text, integer, text, text, integer, double precision, integer),
    steadytext.check_filter(text),
    steadytext.check_search(text, bigint, text),
    steadytext.any_words(regconfig, text),
    steadytext.search(text, text, bigint, text, boolean, text),
    steadytext.hybrid_search(text, text, bigint, bigint, double precision, text, text),
    steadytext.context_tokens(text, text),
    steadytext.default_models(),
    steadytext.default_embedding_model(),
    steadytext.warn_of_builtin_vectors(),
    steadytext.models_placed(text),
    steadytext.vector_length(text),
    steadytext.rag(
        text, text, bigint, bigint, boolean, bigint, text, text, text, double precision, text, text, jsonb, text, boolean, boolean, text)
to steadytext_user;
grant usage on type steadytext.search_target to steadytext_user;
-- The functions that the API, the view, the column defaults and the CHECKs call with their caller's rights.
grant execute on function
    steadytext.new_request_id(),
    steadytext.current_role_id(),
    steadytext.refuse_row(text, text),
    steadytext.check_queue_row(
        uuid, text, timestamptz, steadytext.role_id, boolean, integer, text, integer, integer, integer),
    steadytext.claim_lane(steadytext.role_id, integer, text, jsonb),
    steadytext.priority(bigint),
    steadytext.generate_params(bigint, boolean, bigint, text, text, text, double precision, text, jsonb),
    steadytext.embed_params(boolean, bigint, text, text, text, boolean, boolean, bigint),
    steadytext.embed(text, boolean, bigint, text, text, text, boolean, text, bigint, boolean),
    steadytext.generate_json_async(text, text, bigint, boolean, bigint, text, double precision, bigint, text, jsonb, jsonb),
    steadytext.generate_json(text, text, bigint, boolean, bigint, text, double precision, text, text, jsonb, jsonb, boolean),
    steadytext.embed_cached(text, bigint, text, text, text, boolean, text, bigint, boolean),
    steadytext.with_written_order(text, text),
    steadytext.cache_counters(),
    steadytext.check_batch(text[], text),
    steadytext.enqueue_rows(uuid, text, text, bigint, text[]),
    steadytext.enqueue_query(text, text, text, bigint, text),
    steadytext.rerank_params(text, boolean, bigint, text, boolean, text[]),
    steadytext.config_numeric(text),
    steadytext.config_integer(text),
    steadytext.config_keys(),
    steadytext.admit_retry(),
    steadytext.refuse_key(text),
    steadytext.activity(),
    steadytext.pulls(),
    steadytext.worker_state(),
    steadytext.unclaimed_requests()
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
    @extschema@.steadytext_config_set(varchar, varchar),
    steadytext.warn_of_default_model(text, text),
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

-- The protocol, but for what looks after the cache: its entries answer everybody, and only the server's own worker, which runs as
-- their owner, knows what computed them.
grant execute on function
    steadytext.claim_requests(text, integer, integer, oid, boolean, integer, bigint, text[], text[]),
    steadytext.prepared_work(text, text, text, text[], jsonb),
    steadytext.make_work(text, text, text, text[], jsonb),
    steadytext.refused_work(text, text, text, boolean),
    steadytext.is_transient(text),
    steadytext.more_work(text, bigint, integer, integer, bytea),
    steadytext.complete_reports(text, bigint[], integer[], bytea[]),
    steadytext.worker_models(),
    steadytext.extend_leases(text, bigint[], integer[], integer),
    steadytext.release_requests(text, bigint[], integer[], boolean),
    steadytext.complete_requests(
        text, bigint[], integer[], text[], real[], integer[], integer[], text[], integer[],
        integer[], integer[], integer[], text[], integer[]),
    steadytext.fail_requests(text, bigint[], integer[], text[], text[], boolean[]),
    steadytext.rescue_requests(text[], integer),
    steadytext.promote_requests(integer),
    steadytext.queue_outlook(integer, text[], text[]),
    steadytext.count_pending(),
    steadytext.expire_requests(bigint, integer),
    steadytext.record_heartbeat(text, text, text, text, jsonb, integer, integer, bigint, bigint, double precision, jsonb),
    steadytext.end_heartbeat(text)
to steadytext_worker;

-- Tables. The rows that a user may write in the queue are narrowed further by its policies.
grant select on @extschema@.steadytext_queue to steadytext_user, steadytext_admin;
grant select on @extschema@.steadytext_vector_lengths to steadytext_user, steadytext_admin;
grant select on @extschema@.steadytext_batch_heads, @extschema@.steadytext_batches to steadytext_user, steadytext_admin;
-- For tables that are made of its rows.
grant usage on type steadytext.role_id to steadytext_user;
grant insert (request_type, prompt, prompts, params, priority, user_id, session_id, max_retries, batch, batch_key)
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
-- Limits are the administrators'; each role sees its own by a function.
grant select, delete,
    insert (user_id, requests_per_minute, requests_per_hour, requests_per_day, tokens_per_minute, tokens_per_hour, tokens_per_day,
        max_pending, last_reset),
    update (user_id, requests_per_minute, requests_per_hour, requests_per_day, tokens_per_minute, tokens_per_hour, tokens_per_day,
        max_pending, last_reset, current_minute_count, current_hour_count, current_day_count)
on @extschema@.steadytext_rate_limits to steadytext_admin;
grant select on @extschema@.steadytext_rate_usage to steadytext_admin;
grant execute on function @extschema@.steadytext_my_limits() to steadytext_user;
grant execute on function
    @extschema@.steadytext_set_limit(text, bigint, bigint, bigint, bigint, bigint, bigint, bigint),
    @extschema@.steadytext_reset_usage(text),
    @extschema@.steadytext_limit_usage(),
    steadytext.limited_role(text),
    steadytext.reset_usage(oid)
to steadytext_admin;
grant execute on function @extschema@.steadytext_limit_usage() to pg_monitor;
-- Nobody but the extension's functions writes it.
grant select on @extschema@.steadytext_audit_log to steadytext_admin, steadytext_auditor;
-- Roles that may dump the tables may dump the sequences that number their rows.
grant select on sequence
    @extschema@.steadytext_queue_id_seq,
    @extschema@.steadytext_cache_id_seq,
    @extschema@.steadytext_audit_log_id_seq
to steadytext_admin;
-- Figures without texts and names of roles. Roles that may read all statistics see those of other databases, too.
grant select on
    @extschema@.steadytext_stat,
    @extschema@.steadytext_stat_histogram,
    @extschema@.steadytext_queue_metrics,
    @extschema@.steadytext_engine_stat
to steadytext_user, steadytext_admin, pg_read_all_stats, pg_monitor;
grant execute on function
    steadytext.request_statistics(),
    steadytext.bucket_bounds(),
    steadytext.queue_metrics(),
    steadytext.engine_statistics()
to steadytext_user, steadytext_admin, pg_read_all_stats, pg_monitor;
grant execute on function @extschema@.steadytext_metrics() to steadytext_admin, pg_read_all_stats, pg_monitor;
grant execute on function steadytext.reset_request_statistics(), @extschema@.steadytext_stat_reset() to steadytext_admin;
-- Monitoring sees numbers, states and names of roles; never a text.
grant select on @extschema@.steadytext_queue_counts to steadytext_admin, pg_monitor;
grant select on @extschema@.steadytext_activity, @extschema@.steadytext_daemon_health to pg_monitor;
grant execute on function
    steadytext.activity(),
    steadytext.pulls(),
    steadytext.worker_state(),
    steadytext.unclaimed_requests(),
    @extschema@.steadytext_daemon_status(),
    steadytext.server_checks(),
    @extschema@.steadytext_diagnose()
to pg_monitor;
grant insert (key, value), update (value, is_default) on @extschema@.steadytext_config to steadytext_admin;
grant
    insert (name, task, file, repo, revision, sha256, size, licence, query_prompt, passage_prompt, dimensions, is_fallback,
        is_preferred, placement, description),
    update (task, file, repo, revision, sha256, size, licence, query_prompt, passage_prompt, dimensions, is_fallback,
        is_preferred, placement, description),
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

-- Vectorizers: what a role may do with which definition is a matter of the policies.
grant
    select,
    insert (name, kind, owner_role, source, columns, target_column, destination, model, format, chunk_size, chunk_overlap,
        strategy, index_type, distance, dimensions, request_type, params, given_keys, priority, enqueue_existing, truncate, replaces),
    update (name, priority, is_paused, truncate, updated_at, format, columns, given_keys, request_type, params, model, revision),
    delete
on @extschema@.steadytext_vectorizers to steadytext_user, steadytext_admin;
grant update (owner_role) on @extschema@.steadytext_vectorizers to steadytext_admin;
grant select, insert (vectorizer_id, key, is_forced), delete on @extschema@.steadytext_vectorizer_work to steadytext_user, steadytext_admin;
grant select, delete on
    @extschema@.steadytext_vectorizer_batches,
    @extschema@.steadytext_vectorizer_failures,
    @extschema@.steadytext_vectorizer_kept,
    @extschema@.steadytext_vectorizer_state
to steadytext_user, steadytext_admin;
grant select on @extschema@.steadytext_vectorizer_status, @extschema@.steadytext_vectorizer_errors to steadytext_user, steadytext_admin;
grant execute on function
    @extschema@.steadytext_create_vectorizer(
        regclass, text[], text, text, text, text, text, bigint, bigint, text, text, text, bigint, boolean, boolean, boolean),
    @extschema@.steadytext_alter_vectorizer(text, text, text, bigint, bigint, text, text, text, bigint, text, boolean, text[]),
    @extschema@.steadytext_drop_vectorizer(text, boolean, boolean),
    @extschema@.steadytext_pause_vectorizer(text),
    @extschema@.steadytext_resume_vectorizer(text),
    @extschema@.steadytext_retry_vectorizer(text),
    @extschema@.steadytext_reembed(text),
    @extschema@.steadytext_vectorizer_embed(text, text),
    steadytext.owns_vectorizer(uuid),
    steadytext.appended_name(text, text),
    steadytext.note_row(),
    steadytext.mark_column(),
    steadytext.note_destination(),
    steadytext.vectorizer_place(uuid),
    steadytext.chunk_for_embedding(text, bigint, bigint, text, text),
    steadytext.format_pieces(text, text[]),
    steadytext.vectorizer_index(text, text, text, text, name),
    steadytext.vectorizer_trigger(uuid, text),
    steadytext.refuse_virtual_column(regclass, text),
    steadytext.give_dimensions(regclass, text, integer),
    steadytext.is_vectorizer_index(oid, text, text, text),
    steadytext.others_indexes(uuid),
    steadytext.index_copies(uuid, regclass),
    steadytext.replacement_obstacles(uuid, uuid),
    steadytext.others_privileges(regclass),
    steadytext.prepare_replacement(uuid, uuid),
    steadytext.add_vectorizer(
        regclass, text[], text[], text, text, text, text, text, bigint, bigint, text, text, text, bigint, boolean, boolean, uuid, integer),
    steadytext.vectorizer_dimensions(regclass, text, text, bigint, bigint, text),
    steadytext.definition_id(text, text),
    steadytext.own_definition_id(text, text),
    steadytext.lock_definition(text, text),
    steadytext.is_missing_definition(text, text),
    steadytext.definition_problem(uuid),
    steadytext.silent_trigger(uuid, oid),
    steadytext.cast_of_others(oid, text[], oid),
    steadytext.warn_of_problem(uuid),
    steadytext.pause_definition(uuid, boolean),
    steadytext.retry_definition(uuid, boolean),
    steadytext.definition_counts(uuid),
    steadytext.make_definition_triggers(uuid, regclass, text[], text[], text[]),
    steadytext.definition_trigger_drops(uuid, regclass[]),
    steadytext.forget_definition(uuid),
    steadytext.remove_definition(uuid, boolean),
    steadytext.remove_successors(uuid),
    steadytext.check_new_name(uuid, text),
    steadytext.is_vectorizing(),
    steadytext.vectorizer_count(text, bytea),
    steadytext.vectorizer_statuses(),
    steadytext.definition_checks(),
    steadytext.process_problem(boolean),
    steadytext.vectorizer_errors(text)
to steadytext_user;

-- Enrichments are definitions beside the vectorizers.
grant select, update (made_by, gone_at), delete on @extschema@.steadytext_enrichment_rows to steadytext_user, steadytext_admin;
grant select on @extschema@.steadytext_enrichment_status, @extschema@.steadytext_enrichment_errors to steadytext_user, steadytext_admin;
grant execute on function
    @extschema@.steadytext_create_enrichment(regclass, text, text, text, jsonb, text, text, bigint, boolean, boolean),
    @extschema@.steadytext_alter_enrichment(text, text, text, jsonb, text, bigint, text),
    @extschema@.steadytext_drop_enrichment(text, boolean, boolean),
    @extschema@.steadytext_pause_enrichment(text),
    @extschema@.steadytext_resume_enrichment(text),
    @extschema@.steadytext_retry_enrichment(text),
    @extschema@.steadytext_refresh_enrichment(text, boolean),
    steadytext.check_enrichment_request(text, jsonb, boolean),
    steadytext.is_answered_here(),
    steadytext.enrichment_digest(uuid),
    steadytext.enrichment_names(uuid),
    steadytext.present_prompt(uuid),
    steadytext.row_key(regclass),
    steadytext.prompt_columns(regclass, text),
    steadytext.enrichment_types_hint(),
    steadytext.enrichment_type(text),
    steadytext.check_enrichment_target(regclass, text, text, jsonb),
    steadytext.column_edges(regclass, uuid),
    steadytext.column_made_of(regclass, text[], text, uuid),
    steadytext.check_enrichment_chain(regclass, text[], text, uuid),
    steadytext.recall_enrichment_requests(uuid),
    steadytext.carry_kept_values(uuid, uuid),
    steadytext.enrichment_statuses()
to steadytext_user;
grant select on sequence @extschema@.steadytext_vectorizer_work_id_seq to steadytext_admin;

-- Each function of the API gets its second name, and with it the grants above.
select steadytext.make_twins();

-- The contents of pg_dump: requests and answers, and settings and models somebody has changed.
select pg_catalog.pg_extension_config_dump('@extschema@.steadytext_queue', '');
select pg_catalog.pg_extension_config_dump('@extschema@.steadytext_queue_id_seq', '');
select pg_catalog.pg_extension_config_dump('@extschema@.steadytext_batch_heads', '');
select pg_catalog.pg_extension_config_dump('@extschema@.steadytext_config', 'where not is_default');
select pg_catalog.pg_extension_config_dump('@extschema@.steadytext_models', 'where not is_default');
select pg_catalog.pg_extension_config_dump('@extschema@.steadytext_prompts', '');
select pg_catalog.pg_extension_config_dump('@extschema@.steadytext_prompt_versions', '');
select pg_catalog.pg_extension_config_dump('@extschema@.steadytext_rate_limits', '');
select pg_catalog.pg_extension_config_dump('@extschema@.steadytext_audit_log', '');
select pg_catalog.pg_extension_config_dump('@extschema@.steadytext_audit_log_id_seq', '');
select pg_catalog.pg_extension_config_dump('@extschema@.steadytext_vectorizers', '');
select pg_catalog.pg_extension_config_dump('@extschema@.steadytext_vectorizer_work', '');
select pg_catalog.pg_extension_config_dump('@extschema@.steadytext_vectorizer_work_id_seq', '');
select pg_catalog.pg_extension_config_dump('@extschema@.steadytext_vectorizer_batches', '');
select pg_catalog.pg_extension_config_dump('@extschema@.steadytext_vectorizer_failures', '');
select pg_catalog.pg_extension_config_dump('@extschema@.steadytext_vectorizer_state', '');
select pg_catalog.pg_extension_config_dump('@extschema@.steadytext_enrichment_rows', '');

select steadytext.start_worker();
