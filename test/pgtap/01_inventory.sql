-- Every object of the extension is listed here: one more, or one less, fails. Of functions of the API that stands for st_x, too.
\ir setup.psql
select plan(23);

select set_eq(
    $$
        select pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid)
        from pg_catalog.pg_depend as d
        join pg_catalog.pg_extension as e on e.oid = d.refobjid
        where d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass
            and d.deptype = 'e' and e.extname = 'pg_steadytext'
            -- Row and array types of tables and views belong to them.
            and d.classid <> 'pg_catalog.pg_type'::pg_catalog.regclass
            -- Twins are compared with their functions below.
            and not exists (
                select from pg_catalog.pg_proc as p
                where d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass and p.oid = d.objid and p.proname like 'st\_%'
            )
    $$,
    array[
        'schema steadytext',
        'function steadytext.role_id_in(cstring)',
        'function steadytext.role_id_out(steadytext.role_id)',
        'function steadytext.role_id_recv(internal)',
        'function steadytext.role_id_send(steadytext.role_id)',
        'function steadytext.current_role_id()',
        'function steadytext.is_own_worker()',
        'table steadytext_vector_lengths',
        'function steadytext.note_vector_lengths(bigint[],integer[])',
        'function steadytext.vector_length(text)',
        'function steadytext.count_begun(text,text,bigint)',
        'function steadytext.count_ended(oid,text,text,text,integer,integer,integer,double precision,double precision,double precision)',
        'function steadytext.counted_model(text,jsonb,text[])',
        'function steadytext.count_claims(bigint[])',
        'function steadytext.most_tokens(text,text,text[],jsonb,bigint,bigint)',
        'function steadytext.believed_tokens(bigint[],integer[],integer[],integer[])',
        'function steadytext.count_ends(bigint[],text[],integer[],integer[],integer[],integer[])',
        'function steadytext.count_reported(bigint[],text[],bigint[],integer[],integer[],integer[],integer[])',
        'function steadytext.write_failures(text,bigint[],integer[],text[],text[],boolean[])',
        'function steadytext.refuse_row(text,text)',
        'function steadytext.check_queue_row(uuid,text,timestamp with time zone,steadytext.role_id,boolean,integer,text,integer,integer,integer)',
        'function steadytext.refuse_id()',
        'function steadytext.count_pending()',
        'function steadytext.recount_requests()',
        'function steadytext.check_worker(text,integer)',
        'cast from steadytext.role_id to oid',
        'cast from steadytext.role_id to name',
        'cast from name to steadytext.role_id',
        'table steadytext_config',
        'table steadytext_models',
        'table steadytext_prompts',
        'table steadytext_prompt_versions',
        'table steadytext_vectorizers',
        'table steadytext_vectorizer_work',
        'sequence steadytext_vectorizer_work_id_seq',
        'table steadytext_vectorizer_batches',
        'table steadytext_vectorizer_failures',
        'table steadytext_vectorizer_kept',
        'table steadytext_vectorizer_slow_owners',
        'table steadytext_vectorizer_state',
        'table steadytext_enrichment_rows',
        'view steadytext_enrichment_status',
        'view steadytext_enrichment_errors',
        'function steadytext_create_enrichment(regclass,text,text,text,jsonb,text,text,bigint,boolean,boolean)',
        'function steadytext_alter_enrichment(text,text,text,jsonb,text,bigint,text)',
        'function steadytext_drop_enrichment(text,boolean,boolean)',
        'function steadytext_pause_enrichment(text)',
        'function steadytext_resume_enrichment(text)',
        'function steadytext_retry_enrichment(text)',
        'function steadytext_refresh_enrichment(text,boolean)',
        'function steadytext.ask_about_rows(uuid,jsonb)',
        'function steadytext.column_made_of(regclass,text[],text,uuid)',
        'function steadytext.check_enrichment_chain(regclass,text[],text,uuid)',
        'function steadytext.check_enrichment_request(text,jsonb,boolean)',
        'function steadytext.is_answered_here()',
        'function steadytext.check_enrichment_target(regclass,text,text,jsonb)',
        'function steadytext.column_edges(regclass,uuid)',
        'function steadytext.enrichment_digest(uuid)',
        'function steadytext.enrichment_names(uuid)',
        'function steadytext.enrichment_statements(uuid)',
        'function steadytext.enrichment_statuses()',
        'function steadytext.enrichment_step(uuid,boolean,boolean)',
        'function steadytext.enrichment_types_hint()',
        'function steadytext.enrichment_type(text)',
        'function steadytext.finish_enrichment_requests(uuid,record)',
        'function steadytext.judge_rows(uuid,jsonb)',
        'function steadytext.note_enriched_rows(uuid,jsonb,boolean)',
        'function steadytext.prompt_columns(regclass,text)',
        'function steadytext.read_enriched_rows(uuid,record,jsonb)',
        'function steadytext.recall_enrichment_requests(uuid)',
        'function steadytext.carry_kept_values(uuid,uuid)',
        'function steadytext.mark_values(uuid,jsonb,bigint)',
        'function steadytext.begin_marking(uuid)',
        'function steadytext.row_key(regclass)',
        'function steadytext.scan_enrichment(uuid,record)',
        'function steadytext.write_enrichment_values(uuid,record,jsonb)',
        'function steadytext.owns_vectorizer(uuid)',
        'function steadytext.sweep_definitions()',
        'function steadytext.begin_step(uuid,text,oid,text,boolean)',
        'function steadytext.noted_rows(uuid,integer)',
        'function steadytext.take_noted_rows(uuid,integer,jsonb[])',
        'function steadytext.begin_requested_search(uuid)',
        'function steadytext.go_on_searching(uuid,integer,integer,jsonb,text)',
        'function steadytext.search_failures(uuid,record,jsonb)',
        'function steadytext.rows_present(record,jsonb)',
        'function steadytext.may_search(uuid,integer,bigint)',
        'function steadytext.is_readable_key(record,jsonb)',
        'function steadytext.note_progress(uuid,integer,bytea)',
        'function steadytext.keep_vectors(uuid,jsonb,jsonb)',
        'function steadytext.keep_value(uuid,jsonb)',
        'function steadytext.kept_pause(uuid,jsonb)',
        'function steadytext.forget_kept_vectors(uuid,jsonb,jsonb)',
        'function steadytext.forget_kept_values(uuid,jsonb)',
        'function steadytext.write_kept_vectors(uuid,record,jsonb)',
        'function steadytext.keep_piece(uuid,record,jsonb,jsonb)',
        'function steadytext.note_unanswered_wishes(uuid,jsonb,jsonb)',
        'function steadytext.finish_vectorizer_piece(uuid,record,jsonb,jsonb)',
        'function steadytext.note_first(uuid,json)',
        'function steadytext.leave_rows(uuid,record,jsonb,jsonb)',
        'function steadytext.retry_limited_rows(uuid,oid)',
        'function steadytext.limit_has_risen(uuid,oid)',
        'function steadytext.warn_of_builtin_vectors()',
        'function steadytext.warn_of_default_model(text,text)',
        'function steadytext.is_missing_definition(text,text)',
        'function steadytext.put_row_aside(uuid,jsonb,boolean,text,text)',
        'function steadytext.is_vectorizer_index(oid,text,text,text)',
        'function steadytext.others_indexes(uuid)',
        'function steadytext.index_copies(uuid,regclass)',
        'function steadytext.replacement_obstacles(uuid,uuid)',
        'function steadytext.generated_columns(regclass,regclass)',
        'function steadytext.others_privileges(regclass)',
        'function steadytext.add_generated_columns(uuid,uuid,oid)',
        'function steadytext.copy_indexes(uuid,uuid,oid)',
        'function steadytext.prepare_replacement(uuid,uuid)',
        'function steadytext.column_statements(oid,text,text,text)',
        'function steadytext.others_views(regclass,text[])',
        'function steadytext.table_statements(uuid,regclass,text,text)',
        'function steadytext.in_parts(uuid,text,record,jsonb,jsonb)',
        'function steadytext.appended_name(text,text)',
        'function steadytext.definition_id(text,text)',
        'function steadytext.own_definition_id(text,text)',
        'function steadytext.lock_definition(text,text)',
        'function steadytext.warn_of_problem(uuid)',
        'function steadytext.pause_definition(uuid,boolean)',
        'function steadytext.retry_definition(uuid,boolean)',
        'function steadytext.definition_counts(uuid)',
        'function steadytext.key_expressions(regclass,text[],text[],text[])',
        'function steadytext.make_definition_triggers(uuid,regclass,text[],text[],text[])',
        'function steadytext.definition_trigger_drops(uuid,regclass[])',
        'function steadytext.definition_problem(uuid)',
        'function steadytext.forget_definition(uuid)',
        'function steadytext.remove_definition(uuid,boolean)',
        'function steadytext.remove_successors(uuid)',
        'function steadytext.check_new_name(uuid,text)',
        'function steadytext.present_prompt(uuid)',
        'function steadytext.add_vectorizer(regclass,text[],text[],text,text,text,text,text,bigint,bigint,text,text,text,bigint,boolean,boolean,uuid,integer)',
        'function steadytext.vectorizer_dimensions(regclass,text,text,bigint,bigint,text)',
        'function steadytext.base_type(oid)',
        'function steadytext.definition_checks()',
        'function steadytext.give_dimensions(regclass,text,integer)',
        'function steadytext.check_vectorizer()',
        'function steadytext.chunk_for_embedding(text,bigint,bigint,text,text)',
        'function steadytext.extend_step_limit(integer)',
        'function steadytext.finish_vectorizer_batch(uuid,record)',
        'function steadytext.format_pieces(text,text[])',
        'function steadytext.cut_vectorizer_batch(uuid,uuid,jsonb)',
        'function steadytext.is_for_slow_process(boolean,timestamp with time zone,oid)',
        'function steadytext.is_vectorizing()',
        'function steadytext.is_named_object(oid)',
        'function steadytext.key_cast(text,oid)',
        'function steadytext.key_element(text,oid)',
        'function steadytext.key_comparison(text,text,text,oid)',
        'function steadytext.make_vectorizer_batches(uuid,record,jsonb)',
        'function steadytext.note_destination()',
        'function steadytext.note_row()',
        'function steadytext.mark_column()',
        'function steadytext.note_vectorizer_failure(uuid,jsonb,text,text,bigint)',
        'function steadytext.note_definition_error(uuid,text,text,boolean)',
        'function steadytext.read_vectorizer_rows(uuid,record,jsonb)',
        'function steadytext.renew_step_limit()',
        'function steadytext.run_as(oid,text,jsonb)',
        'function steadytext.scan_vectorizer(uuid,record,integer)',
        'function steadytext.swap_vectorizer(uuid)',
        'function steadytext.vectorizer_count(text,bytea)',
        'function steadytext.vectorizer_errors(text)',
        'function steadytext.vectorizer_index(text,text,text,text,name)',
        'function steadytext.vectorizer_place(uuid)',
        'function steadytext.vectorizer_signature(uuid)',
        'function steadytext.silent_trigger(uuid,oid)',
        'function steadytext.refuse_virtual_column(regclass,text)',
        'function steadytext.cast_of_others(oid,text[],oid)',
        'function steadytext.vectorizer_statements(uuid)',
        'function steadytext.vectorizer_statuses()',
        'function steadytext.vectorizer_step(uuid,boolean,boolean)',
        'function steadytext.vectorizer_trigger(uuid,text)',
        'function steadytext.vectorizers_due(boolean,boolean)',
        'function steadytext.vectorizers_outlook(boolean,double precision)',
        'function steadytext.wake_vectorizers()',
        'function steadytext.write_vectors(uuid,record,jsonb,jsonb)',
        'function steadytext_alter_vectorizer(text,text,text,bigint,bigint,text,text,text,bigint,text,boolean,text[])',
        'function steadytext_create_vectorizer(regclass,text[],text,text,text,text,text,bigint,bigint,text,text,text,bigint,boolean,boolean,boolean)',
        'function steadytext_drop_vectorizer(text,boolean,boolean)',
        'function steadytext_pause_vectorizer(text)',
        'function steadytext_reembed(text)',
        'function steadytext_resume_vectorizer(text)',
        'function steadytext_retry_vectorizer(text)',
        'function steadytext_vectorizer_embed(text,text)',
        'view steadytext_vectorizer_errors',
        'view steadytext_vectorizer_status',
        'function steadytext.prompt_variables(text)',
        'function steadytext.render_prompt(text,jsonb,boolean)',
        'function steadytext.check_prompt()',
        'function steadytext.check_prompt_version()',
        'function steadytext.delete_prompt_versions()',
        'function steadytext.is_replacement(uuid)',
        'function steadytext.prompt_id(text)',
        'function steadytext_prompt_create(text,text,text,jsonb)',
        'function steadytext_prompt_update(text,text,jsonb)',
        'function steadytext_prompt_render(text,jsonb,bigint,boolean)',
        'function steadytext_prompt_list()',
        'function steadytext_prompt_versions(text)',
        'function steadytext_prompt_delete(text)',
        'table steadytext_queue',
        'sequence steadytext_queue_id_seq',
        'table steadytext_daemon_health',
        'view steadytext_activity',
        'function steadytext.request_statistics()',
        'function steadytext.bucket_bounds()',
        'function steadytext.reset_request_statistics()',
        'function steadytext.engine_statistics()',
        'function steadytext.queue_metrics()',
        'function steadytext.label_value(text)',
        'function steadytext.metric_samples()',
        'view steadytext_stat',
        'view steadytext_stat_histogram',
        'view steadytext_queue_metrics',
        'view steadytext_engine_stat',
        'function steadytext_stat_reset()',
        'function steadytext_metrics()',
        'view steadytext_queue_counts',
        'table steadytext_cache',
        'sequence steadytext_cache_id_seq',
        'view steadytext_cache_with_frecency',
        'function steadytext.cache_key_hash(text)',
        'table steadytext_rate_limits',
        'table steadytext_rate_usage',
        'function steadytext.check_rate_limit()',
        'function steadytext.outer_role()',
        'function steadytext.note_act()',
        'function steadytext.note_refusal(text)',
        'function steadytext.refuse_change(text,text,text)',
        'function steadytext.note_refusals(oid[],oid[],text[],text[],text[],bigint[],timestamp with time zone[],timestamp with time zone[],bigint)',
        'function steadytext.sweep_audit_log()',
        'function steadytext.limited_role(text)',
        'function steadytext.reset_usage(oid)',
        'function steadytext.limit_wait(oid,bigint)',
        'function steadytext.limit_room(oid,boolean)',
        'function steadytext.save_usage(oid[],bigint[],bigint[],bigint[])',
        'function steadytext.saved_usage()',
        'function steadytext_set_limit(text,bigint,bigint,bigint,bigint,bigint,bigint,bigint)',
        'function steadytext_reset_usage(text)',
        'function steadytext_my_limits()',
        'function steadytext_limit_usage()',
        'table steadytext_audit_log',
        'sequence steadytext_audit_log_id_seq',
        'view steadytext.cache_entries',
        'function steadytext.config_number(text)',
        'function steadytext.is_cache_protected(integer,integer)',
        'function steadytext.cache_victims(double precision,double precision,integer,double precision,boolean,boolean,integer)',
        'function steadytext.evict_entries(bigint[],integer[])',
        'function steadytext.evict(double precision,double precision,integer,integer,double precision,boolean,boolean)',
        'function steadytext.has_eviction_job()',
        'function steadytext.has_cron()',
        'function steadytext.queue_owner()',
        'function steadytext.eviction_command()',
        'function steadytext.plan_eviction(integer)',
        'function steadytext.schedule_eviction()',
        'function steadytext.unschedule_eviction()',
        'function steadytext_cache_stats()',
        'function steadytext_cache_stats_extended()',
        'function steadytext_cache_analyze_usage()',
        'function steadytext_cache_clear()',
        'function steadytext_cache_import(text,boolean)',
        'function steadytext_cache_export(text,boolean,boolean,text)',
        'function steadytext_cache_evict_by_frecency(bigint,double precision,bigint,bigint,bigint)',
        'function steadytext_cache_evict_by_age(bigint,double precision,bigint,bigint)',
        'function steadytext_cache_scheduled_eviction()',
        'function steadytext_cache_preview_eviction(bigint)',
        'function steadytext_cache_warmup(bigint)',
        'function steadytext_setup_cache_eviction_cron()',
        'function steadytext_disable_cache_eviction_cron()',
        'function steadytext.store_answers(text[],text[],text[],real[],integer[],jsonb[])',
        'function steadytext.count_accesses(bigint[],bigint[],timestamp with time zone[])',
        'function steadytext.cache_counters()',
        'function steadytext.reset_cache_counters()',
        'function steadytext.embed_cached(text,bigint,text,text,text,boolean,text,bigint,boolean)',
        'function steadytext_cache_key(text,text,jsonb)',
        'function steadytext_generate_cached(text,bigint,bigint,text,text,text,double precision,text,text,jsonb,jsonb)',
        'function steadytext_embed_cached(text,bigint,text,text,text,boolean,text,bigint,boolean)',
        'function steadytext.new_request_id()',
        'function steadytext.check_request()',
        'function steadytext.wake_worker()',
        'function steadytext.count_retry()',
        'function steadytext.note_change()',
        'function steadytext.note_key()',
        'function steadytext.announce(uuid[])',
        'function steadytext.start_worker()',
        'function steadytext.config_keys()',
        'function steadytext.refuse_key(text)',
        'function steadytext.check_config()',
        'function steadytext.vector_path()',
        'function steadytext.close_new_objects()',
        'function steadytext.make_twin(regprocedure)',
        'function steadytext.make_twins()',
        'function steadytext.check_model()',
        'function steadytext.replace_default()',
        'function steadytext.are_claims(jsonb)',
        'function steadytext.check_heartbeat(oid,text,text,text,text,jsonb,double precision[],jsonb)',
        'function steadytext.write_answers(text,bigint[],integer[],text[],real[],integer[],integer[],text[],integer[],integer[],integer[],integer[],text[],integer[],text[])',
        'function steadytext.answer_flaw(text,text,text[],jsonb,text,text[],real[],integer)',
        'function steadytext.check_lengths(bigint[],text[],integer[])',
        'function steadytext.check_answers(text,bigint[],integer[],text[],real[],integer[],integer[],text[],integer[],integer[],text[])',
        'function steadytext.record_heartbeat(text,text,text,text,jsonb,integer,integer,bigint,bigint,double precision,jsonb)',
        'function steadytext.end_heartbeat(text)',
        'function steadytext.claim_requests(text,integer,integer,oid,boolean,integer,bigint,text[],text[])',
        'function steadytext.models_placed(text)',
        'function steadytext.default_models()',
        'function steadytext.default_embedding_model()',
        'function steadytext.task_number(text,jsonb)',
        'function steadytext.is_served(text,jsonb,text[],text[],text[],text[])',
        'function steadytext.lower_names(text[])',
        'function steadytext.claim_lane(steadytext.role_id,integer,text,jsonb)',
        'function steadytext.first_lane(oid,integer)',
        'function steadytext.served_lanes(integer,oid,text[],text[],text[],text[])',
        'function steadytext.lanes_of(bigint[],oid,integer)',
        'function steadytext.lane_rows(bigint[],bigint,bigint,integer,bigint[],text[],text[],text[],text[])',
        'function steadytext.prepared_work(text,text,text,text[],jsonb)',
        'function steadytext.make_work(text,text,text,text[],jsonb)',
        'function steadytext.refused_work(text,text,text,boolean)',
        'function steadytext.parse_report(text,text,text[],jsonb,bytea)',
        'function steadytext.further_work(text,text,text[],jsonb,integer,bytea)',
        'function steadytext.more_work(text,bigint,integer,integer,bytea)',
        'function steadytext.read_report(text,text,text[],jsonb,bytea)',
        'function steadytext.complete_reports(text,bigint[],integer[],bytea[])',
        'function steadytext.worker_models()',
        'function steadytext.waiting_lanes(oid)',
        'function steadytext.live_claims()',
        'function steadytext.unclaimed_requests()',
        'function steadytext.extend_leases(text,bigint[],integer[],integer)',
        'function steadytext.release_requests(text,bigint[],integer[],boolean)',
        'function steadytext.pick_rows(integer,oid[],bigint[],integer,bigint,integer,boolean,bigint[],bigint[],text[],text[],text[],text[])',
        'function steadytext.mark_rows(text,tid[],integer,integer,timestamp with time zone)',
        'function steadytext.end_unclaimed(tid[])',
        'function steadytext.take_rows(text,tid[],integer,integer,boolean)',
        'function steadytext.halves(integer[],timestamp with time zone,boolean)',
        'function steadytext.is_transient(text)',
        'function steadytext.end_poison(text,bigint,text,text,text,text,integer)',
        'function steadytext.make_constraints_immediate()',
        'function steadytext.installed_schema()',
        'function steadytext.admit_retry()',
        'function steadytext.end_suppressed(text,bigint[])',
        'function steadytext.note_row_error(text,bigint,oid,text,text)',
        'function steadytext.rows_aside()',
        'function steadytext.passed_rows(integer,oid)',
        'function steadytext.note_passed_rows(integer,oid,bigint,bigint[])',
        'function steadytext.note_second_look(integer,oid,boolean,bigint)',
        'function steadytext.claim_floors_now()',
        'function steadytext.note_search(integer,integer,oid)',
        'function steadytext.note_floor(integer,oid,bigint)',
        'function steadytext.next_pending(integer,oid,bigint,integer[],oid[],bigint[])',
        'function steadytext.raw_size(anyelement)',
        'function steadytext.request_bytes(text,text[],jsonb)',
        'function steadytext.complete_requests(text,bigint[],integer[],text[],real[],integer[],integer[],text[],integer[],integer[],integer[],integer[],text[],integer[])',
        'function steadytext.vectors(real[],integer,anyelement)',
        'function steadytext.missed_requests(text,bigint[],integer[],bigint[])',
        'function steadytext.fail_requests(text,bigint[],integer[],text[],text[],boolean[])',
        'function steadytext.backoff(integer)',
        'function steadytext.config_numeric(text)',
        'function steadytext.config_integer(text)',
        'function steadytext.check_limit(text,integer)',
        'function steadytext.check_answers(text[],text[],text[],real[],integer[],jsonb[])',
        'function steadytext.rescue_requests(text[],integer)',
        'function steadytext.requests_in_flight(bigint[],text[])',
        'function steadytext.is_abandoned(text,timestamp with time zone,text[],timestamp with time zone)',
        'function steadytext.promote_requests(integer)',
        'function steadytext.queue_outlook(integer,text[],text[])',
        'function steadytext.expire_requests(bigint,integer)',
        'function steadytext_model_status()',
        'function steadytext_model_pull(text,boolean)',
        'function steadytext_model_pull_cancel(text)',
        'function steadytext_model_list()',
        'function steadytext_model_inspect(text,text)',
        'function steadytext_model_remove(text,boolean)',
        'function steadytext.server_checks()',
        'function steadytext_diagnose()',
        'function steadytext.process_problem(boolean)',
        'function steadytext_model_verify(text,bigint)',
        'function steadytext.priority(bigint)',
        'function steadytext_generate_json_async(text,json,bigint,boolean,bigint,text,double precision,bigint,text,jsonb,jsonb)',
        'function steadytext_generate_json_async(text,text,bigint,boolean,bigint,text,double precision,bigint,text,jsonb,jsonb)',
        'function steadytext_generate_json(text,json,bigint,boolean,bigint,text,double precision,text,text,jsonb,jsonb,boolean)',
        'function steadytext_generate_json(text,text,bigint,boolean,bigint,text,double precision,text,text,jsonb,jsonb,boolean)',
        'function steadytext_cache_key(text,text,json)',
        'function steadytext_cache_key(text,text,text)',
        'function steadytext_cancel_async_batch(uuid[])',
        'function steadytext.with_written_order(text,text)',
        'function steadytext.generate_params(bigint,boolean,bigint,text,text,text,double precision,text,jsonb)',
        'function steadytext.embed_params(boolean,bigint,text,text,text,boolean,boolean,bigint)',
        'function steadytext.check_batch(text[],text)',
        'function steadytext.rerank_params(text,boolean,bigint,text,boolean,text[])',
        'function steadytext_chat(jsonb,bigint,boolean,bigint,text,text,text,double precision,text,jsonb)',
        'function steadytext_chat_async(jsonb,bigint,boolean,bigint,text,text,text,double precision,bigint,jsonb)',
        'function steadytext_chat_stream(jsonb,bigint,bigint,text,text,text,double precision,text,jsonb)',
        'function steadytext_generate_details(text,bigint,boolean,bigint,text,text,text,double precision,text,text,jsonb,jsonb)',
        'function steadytext_count_tokens(text,text)',
        'function steadytext_tokenize(text,text)',
        'function steadytext_chunk_text(text,bigint,bigint,text,text)',
        'function steadytext_rerank(text,text[],text,boolean,bigint,text,boolean,text,text[])',
        'function steadytext_rerank_docs_only(text,text[],text,bigint,text,boolean,text)',
        'function steadytext_rerank_top_k(text,text[],bigint,text,boolean,bigint,text,boolean,text,text[])',
        'function steadytext_rerank_batch(text[],text[],text,boolean,bigint,text,boolean,text,text[])',
        'function steadytext_rerank_async(text,text[],text,boolean,bigint,text,bigint,boolean,text[])',
        'function steadytext_rerank_batch_async(text[],text[],text,boolean,bigint,text,bigint,boolean,text[])',
        'function steadytext_if(text,boolean,bigint,text,text)',
        'function steadytext_if(text[],boolean,bigint,text,text)',
        'function steadytext_if_score(text,boolean,bigint,text,text)',
        'function steadytext_if_score(text[],boolean,bigint,text,text)',
        'function steadytext_score(text,boolean,bigint,text,text)',
        'function steadytext_score(text[],boolean,bigint,text,text)',
        'function steadytext_similarity(text,text,boolean,bigint,text,text)',
        'function steadytext_similarity(text[],text[],boolean,bigint,text,text)',
        'function steadytext_classify(text,text[],text,text[],jsonb,text,boolean,bigint,text,text)',
        'function steadytext_classify(text[],text[],text,text[],jsonb,text,boolean,bigint,text,text)',
        'function steadytext_classify_scores(text,text[],text,text[],jsonb,text,boolean,bigint,text,text)',
        'function steadytext_classify_multi(text,text[],text,text[],jsonb,text,double precision,boolean,bigint,text,text)',
        'function steadytext_classify_scores(text[],text[],text,text[],jsonb,text,boolean,bigint,text,text)',
        'function steadytext_classify_multi(text[],text[],text,text[],jsonb,text,double precision,boolean,bigint,text,text)',
        'function steadytext.check_replacement(text,text)',
        'function steadytext.plain_verb(text,text,jsonb,boolean,bigint,text,text)',
        'function steadytext.plain_verb_array(text,text[],jsonb,boolean,bigint,text,text)',
        'function steadytext.plain_verb_async(text,text,jsonb,boolean,bigint,text,bigint)',
        'function steadytext_extract(text,text[],boolean,bigint,text,text)',
        'function steadytext_extract(text[],text[],boolean,bigint,text,text)',
        'function steadytext_extract_async(text,text[],boolean,bigint,text,bigint)',
        'function steadytext_extract(text,jsonb,boolean,bigint,text,text)',
        'function steadytext_extract(text[],jsonb,boolean,bigint,text,text)',
        'function steadytext_extract_async(text,jsonb,boolean,bigint,text,bigint)',
        'function steadytext_extract(text,text,boolean,bigint,text,text)',
        'function steadytext_extract(text[],text,boolean,bigint,text,text)',
        'function steadytext_extract_async(text,text,boolean,bigint,text,bigint)',
        'function steadytext_translate(text,text,boolean,bigint,text,text)',
        'function steadytext_translate(text[],text,boolean,bigint,text,text)',
        'function steadytext_translate_async(text,text,boolean,bigint,text,bigint)',
        'function steadytext_analyze_sentiment(text,boolean,bigint,text,text)',
        'function steadytext_analyze_sentiment(text[],boolean,bigint,text,text)',
        'function steadytext_analyze_sentiment_async(text,boolean,bigint,text,bigint)',
        'function steadytext_mask(text,text[],boolean,bigint,text,text)',
        'function steadytext_mask(text[],text[],boolean,bigint,text,text)',
        'function steadytext_mask_async(text,text[],boolean,bigint,text,bigint)',
        'function steadytext_extract_facts(text,bigint,boolean,bigint,text,text)',
        'function steadytext_extract_facts(text[],bigint,boolean,bigint,text,text)',
        'function steadytext_extract_facts_async(text,bigint,boolean,bigint,text,bigint)',
        'function steadytext_deduplicate_facts(jsonb,double precision,boolean,bigint,text,text)',
        'function steadytext_deduplicate_facts_async(jsonb,double precision,boolean,bigint,text,bigint)',
        'function steadytext_if_async(text,boolean,bigint,text,bigint)',
        'function steadytext_if_score_async(text,boolean,bigint,text,bigint)',
        'function steadytext_score_async(text,boolean,bigint,text,bigint)',
        'function steadytext_similarity_async(text,text,boolean,bigint,text,bigint)',
        'function steadytext.classify_async(text,text,text[],text,text[],jsonb,text,double precision,boolean,bigint,text,bigint)',
        'function steadytext_classify_async(text,text[],text,text[],jsonb,text,boolean,bigint,text,bigint)',
        'function steadytext_classify_scores_async(text,text[],text,text[],jsonb,text,boolean,bigint,text,bigint)',
        'function steadytext_classify_multi_async(text,text[],text,text[],jsonb,text,double precision,boolean,bigint,text,bigint)',
        'function steadytext.builtin_prompt(text,bigint)',
        'function steadytext_summarize_text(text,jsonb,bigint,boolean,bigint,text,text,boolean)',
        'function steadytext_summarize_text(text[],jsonb,bigint,boolean,bigint,text,text)',
        'function steadytext_summarize_text_async(text,jsonb,bigint,boolean,bigint,text,bigint)',
        'function steadytext.summarize_add(internal,text)',
        'function steadytext.summarize_add(internal,text,jsonb)',
        'function steadytext.agg_add(internal,text,text)',
        'function steadytext.summarize_add_partial(internal,jsonb)',
        'function steadytext.group_combine(internal,internal)',
        'function steadytext.group_serialize(internal)',
        'function steadytext.group_deserialize(bytea,internal)',
        'function steadytext.summarize_finish(internal)',
        'function steadytext.agg_finish(internal)',
        'function steadytext.summarize_finish_partial(internal)',
        'function steadytext_summarize(text)',
        'function steadytext_summarize(text,jsonb)',
        'function steadytext_summarize_partial(text,jsonb)',
        'function steadytext_summarize_final(jsonb)',
        'function steadytext_agg(text,text)',
        'function steadytext_generate_batch(text[],bigint,boolean,bigint,text,text,text,double precision,text,text,jsonb)',
        'function steadytext.embed_batch(text[],boolean,bigint,text,text,text,boolean,text,bigint)',
        'function steadytext_embed_batch(text[],boolean,bigint,text,text,text,boolean,text,bigint)',
        'function steadytext_prompt_get(text,bigint)',
        'function steadytext_generate(text,bigint,boolean,bigint,text,text,text,text,text,boolean)',
        'function steadytext_generate(text,bigint,boolean,bigint,text,text,text,text,text,text)',
        'function steadytext_generate_stream(text,bigint,boolean,bigint,text,text,text,text,text,boolean)',
        'function steadytext_generate_stream(text,bigint,text,text,text,text,text,text,text,text,jsonb,boolean)',
        'function steadytext_embed(text,boolean,bigint,text,boolean)',
        'function steadytext_embed_cached(text,bigint,text,boolean)',
        'function steadytext_embed_async(text,boolean,bigint,text,boolean)',
        'function steadytext_embed_async(text,boolean,bigint,text,text)',
        'function steadytext_generate_json(text,jsonb,bigint,boolean,bigint,boolean,text)',
        'function steadytext_generate_json(text,text,bigint,boolean,bigint,text,text)',
        'function steadytext_generate_json(text,jsonb,bigint,boolean,bigint,text,text)',
        'function steadytext_generate_regex(text,text,bigint,boolean,bigint,boolean,text)',
        'function steadytext_generate_regex(text,text,bigint,boolean,bigint,text,text)',
        'function steadytext_generate_choice(text,text[],bigint,boolean,bigint,boolean,text)',
        'function steadytext_generate_choice(text,text[],text,bigint,text,text,text,jsonb,jsonb,boolean)',
        'function steadytext_generate_choice(text,text[],text,text,text,text,text,jsonb,jsonb,boolean)',
        'function steadytext_config_get(character varying)',
        'function steadytext_config_set(character varying,character varying)',
        'function steadytext.predecessor_model(text,text,text)',
        'function steadytext.request_type_of_entry()',
        'function steadytext.activity()',
        'function steadytext.pulls()',
        'function steadytext.worker_state()',
        'function steadytext_config_get(text)',
        'function steadytext_config_set(text,text)',
        'function steadytext_generate_async(text,bigint,boolean,bigint,text,text,text,double precision,bigint,text,jsonb,jsonb)',
        'function steadytext_embed_async(text,boolean,bigint,text,bigint,text,text,boolean,bigint,boolean)',
        'function steadytext_generate_batch_async(text[],bigint,boolean,bigint,text,text,text,double precision,bigint,text,jsonb)',
        'function steadytext_embed_batch_async(text[],boolean,bigint,text,bigint,text,text,boolean,bigint)',
        'function steadytext_generate(text,bigint,boolean,bigint,text,text,text,double precision,text,text,jsonb,jsonb,boolean)',
        'function steadytext_generate_stream(text,bigint,bigint,text,text,text,double precision,text,text,jsonb,jsonb,boolean)',
        'function steadytext_embed(text,boolean,bigint,text,text,text,boolean,text,bigint,boolean)',
        'function steadytext.embed(text,boolean,bigint,text,text,text,boolean,text,bigint,boolean)',
        'function steadytext_generate_json_async(text,jsonb,bigint,boolean,bigint,text,double precision,bigint,text,jsonb,jsonb)',
        'function steadytext_generate_regex_async(text,text,bigint,boolean,bigint,text,double precision,bigint,text,jsonb,jsonb)',
        'function steadytext_generate_choice_async(text,text[],boolean,bigint,text,bigint,text,jsonb,jsonb)',
        'function steadytext_generate_json(text,jsonb,bigint,boolean,bigint,text,double precision,text,text,jsonb,jsonb,boolean)',
        'function steadytext_generate_regex(text,text,bigint,boolean,bigint,text,double precision,text,text,jsonb,jsonb,boolean)',
        'function steadytext_generate_choice(text,text[],boolean,bigint,text,text,text,jsonb,jsonb,boolean)',
        'function steadytext.generate_json_async(text,text,bigint,boolean,bigint,text,double precision,bigint,text,jsonb,jsonb)',
        'function steadytext.generate_json(text,text,bigint,boolean,bigint,text,double precision,text,text,jsonb,jsonb,boolean)',
        'function steadytext_check_async(uuid)',
        'function steadytext_check_async_batch(uuid[])',
        'function steadytext_get_async_result(uuid,bigint)',
        'function steadytext_get_async_embedding(uuid,bigint)',
        'function steadytext_wait(uuid[],text,bigint)',
        'function steadytext_wait(uuid,text,bigint)',
        'function steadytext_wait(text,text,bigint)',
        'table steadytext_batch_heads',
        'view steadytext_batches',
        'function steadytext.enqueue_rows(uuid,text,text,bigint,text[])',
        'function steadytext.enqueue_query(text,text,text,bigint,text)',
        'function steadytext_enqueue_query(text,text,jsonb,bigint,text)',
        'function steadytext_batch_results(uuid)',
        'function steadytext_cancel_batch(uuid)',
        'function steadytext_search(text,text,bigint,text,boolean)',
        'function steadytext_hybrid_search(text,text,bigint,bigint,double precision,text)',
        'function steadytext_rag(text,text,bigint,bigint,boolean,bigint,text,text,text,double precision,text,text,jsonb,text,boolean,boolean)',
        'function steadytext_create_text_index(text,text)',
        'function steadytext.find_search_target(text)',
        'function steadytext.has_code_of_users(regclass)',
        'function steadytext.text_index(regclass,text)',
        'function steadytext.search_rows(steadytext.search_target,text)',
        'function steadytext.search_statement(steadytext.search_target,text,boolean)',
        'function steadytext.hybrid_statement(steadytext.search_target,text,boolean,text)',
        'function steadytext.run_search(text,text,integer,text,text,integer,double precision,integer)',
        'function steadytext.check_filter(text)',
        'function steadytext.check_search(text,bigint,text)',
        'function steadytext.any_words(regconfig,text)',
        'function steadytext.search(text,text,bigint,text,boolean,text)',
        'function steadytext.hybrid_search(text,text,bigint,bigint,double precision,text,text)',
        'function steadytext.context_tokens(text,text)',
        'function steadytext.rag(text,text,bigint,bigint,boolean,bigint,text,text,text,double precision,text,text,jsonb,text,boolean,boolean,text)',
        'function steadytext_cancel_async(uuid)',
        'function steadytext_version()',
        'function steadytext_daemon_status()',
        'function steadytext_daemon_start()',
        'function steadytext_daemon_stop()'
    ],
    'the extension consists of exactly these objects'
);

-- The objects and all that hangs on them, for the questions below.
create temporary view members as
    select d.classid, d.objid
    from pg_catalog.pg_depend as d
    join pg_catalog.pg_extension as e on e.oid = d.refobjid
    where d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass
        and d.deptype = 'e' and e.extname = 'pg_steadytext';
create temporary view relations as
    select c.oid, c.relname, c.relkind, c.relacl, c.relowner
    from pg_catalog.pg_class as c
    join members as m on m.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and m.objid = c.oid;
create temporary view functions as
    select p.*
    from pg_catalog.pg_proc as p
    join members as m on m.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass and m.objid = p.oid;

select is_empty(
    $$
        select pg_catalog.pg_describe_object(o.classid, o.objid, 0)
        from (
            select classid, objid from members
            where classid <> 'pg_catalog.pg_type'::pg_catalog.regclass
            union all
            select 'pg_catalog.pg_class'::pg_catalog.regclass, i.indexrelid
            from pg_catalog.pg_index as i join relations as r on r.oid = i.indrelid
            -- An index that serves a constraint is explained there.
            where not exists (select from pg_catalog.pg_constraint as c where c.conindid = i.indexrelid)
            union all
            select 'pg_catalog.pg_constraint'::pg_catalog.regclass, c.oid
            from pg_catalog.pg_constraint as c join relations as r on r.oid = c.conrelid
            where c.contype <> 'n'
            union all
            select 'pg_catalog.pg_trigger'::pg_catalog.regclass, t.oid
            from pg_catalog.pg_trigger as t join relations as r on r.oid = t.tgrelid
            union all
            select 'pg_catalog.pg_policy'::pg_catalog.regclass, p.oid
            from pg_catalog.pg_policy as p join relations as r on r.oid = p.polrelid
        ) as o(classid, objid)
        where not exists (
            select from pg_catalog.pg_description as d
            where d.classoid = o.classid and d.objoid = o.objid and d.objsubid = 0
        )
    $$,
    'every object has a comment'
);
select is_empty(
    $$
        select r.relname, a.attname
        from pg_catalog.pg_attribute as a
        join relations as r on r.oid = a.attrelid
        where r.relkind in ('r', 'v') and a.attnum > 0 and not a.attisdropped
            and pg_catalog.col_description(a.attrelid, a.attnum) is null
    $$,
    'every column has a comment'
);
select isnt_empty('select from relations where relkind = ''r''', 'the tables are found');

-- Twins: the properties of a function that a caller, the planner, pg_dump and an administrator can see, except its body. The
-- arguments of two differ, as the predecessor's do: see 32_plain_verbs.sql.
create temporary view twins as
    select p.oid, p.proname like 'st\_%' as is_twin,
        pg_catalog.regexp_replace(p.proname::text, '^(steadytext|st)_', '') as name,
        p.proname in (
            'steadytext_deduplicate_facts', 'st_deduplicate_facts', 'steadytext_rerank_top_k', 'st_rerank_top_k'
        ) as has_own_arguments,
        pg_catalog.pg_get_function_arguments(p.oid) as arguments,
        row(
            pg_catalog.pg_get_function_result(p.oid), p.prokind, p.proretset,
            p.provolatile, p.proparallel, p.proisstrict, p.proleakproof, p.procost, p.prorows, p.prosupport::oid, p.proowner,
            p.pronamespace
        )::text as properties,
        (
            select pg_catalog.array_agg(format('%s %s %s', a.grantee, a.privilege_type, a.is_grantable) order by a.grantee, a.privilege_type)
            from pg_catalog.aclexplode(coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))) as a
        ) as rights,
        pg_catalog.obj_description(p.oid, 'pg_proc') as comment
    from functions as p
    where p.proname ~ '^(steadytext|st)_';
select is_empty(
    $$
        select coalesce(long.name, short.name)
        from (select * from twins where not is_twin) as long
        full join (select * from twins where is_twin) as short
            on (long.name, long.properties, long.rights) = (short.name, short.properties, short.rights)
            and (long.has_own_arguments or long.arguments = short.arguments)
        where long.name is null or short.name is null
    $$,
    'every steadytext_x has an st_x with the same parameters, defaults, result, properties and rights, and nothing else has one'
);
select set_eq(
    'select name, comment from twins where is_twin and not has_own_arguments',
    $$ select name, 'Short for steadytext_' || name from twins where not is_twin and not has_own_arguments $$,
    'the comment of a twin says what it is short for'
);
-- The twins of aggregates are written by hand.
select set_eq(
    $$
        select p.proargtypes::text, substr(p.proname, 4), pg_catalog.to_jsonb(a) - 'aggfnoid'
        from pg_catalog.pg_aggregate as a
        join functions as p on p.oid = a.aggfnoid
        where p.proname like 'st\_%'
    $$,
    $$
        select p.proargtypes::text, substr(p.proname, 12), pg_catalog.to_jsonb(a) - 'aggfnoid'
        from pg_catalog.pg_aggregate as a
        join functions as p on p.oid = a.aggfnoid
        where p.proname like 'steadytext\_%'
    $$,
    'twins of aggregates have the same functions and states'
);
-- Whether the planner can look into a function.
select is_empty(
    $$
        select long.proname
        from functions as long
        join functions as short on short.proname = 'st_' || substr(long.proname, 12) and short.proargtypes = long.proargtypes
            and short.proname <> 'st_deduplicate_facts'
        where (long.prolang, long.prosrc, long.probin, pg_catalog.pg_get_function_sqlbody(long.oid)) is distinct from
                (short.prolang, short.prosrc, short.probin,
                    pg_catalog.replace(pg_catalog.pg_get_function_sqlbody(short.oid), short.proname || '.', long.proname || '.'))
            and not (short.prosqlbody is not null and short.proconfig is null and not short.prosecdef
                and (long.proconfig is not null or long.prosecdef))
    $$,
    'a twin is the same code, or calls a function that has settings or rights of its own'
);

-- A migration makes twins in the same way. Here they do not become members of the extension.
create function steadytext_probe(x integer, y text default 'it''s', z numeric[] default '{1,2}')
returns table (a integer, b text)
language plpgsql stable strict parallel restricted cost 7 rows 3 set search_path = pg_catalog, pg_temp
as $$ begin return query select x, y; end $$;
revoke all on function steadytext_probe(integer, text, numeric[]) from public;
grant execute on function steadytext_probe(integer, text, numeric[]) to st_alice with grant option;
grant execute on function steadytext_probe(integer, text, numeric[]) to st_bob;
alter extension pg_steadytext add function steadytext_probe(integer, text, numeric[]);
alter default privileges grant execute on functions to st_stranger;
select steadytext.make_twins();
select results_eq(
    $$
        select row(pg_catalog.pg_get_function_arguments(oid), pg_catalog.pg_get_function_result(oid), provolatile, proparallel,
            proisstrict, procost, prorows, pg_catalog.obj_description(oid, 'pg_proc'),
            array(select a.grantee::pg_catalog.regrole::text || case when a.is_grantable then '*' else '' end
                from pg_catalog.aclexplode(proacl) as a where a.grantee <> proowner order by 1),
            (select p from st_probe(5) as p))::text collate "C"
        from pg_catalog.pg_proc where proname = 'st_probe'
    $$,
    $$
        select row('x integer, y text DEFAULT ''it''''s''::text, z numeric[] DEFAULT ''{1,2}''::numeric[]', 'TABLE(a integer, b text)',
            's', 'r', true, 7, 3, 'Short for steadytext_probe', array['st_alice*', 'st_bob'], '(5,it''s)')::text collate "C"
    $$,
    'make_twins: a new function of the API'
);
select throws_ok(
    'select steadytext.make_twins()', '42723', null, 'make_twins: a function of somebody else''s in the place of a twin is an error');
alter extension pg_steadytext add function st_probe(integer, text, numeric[]);
create or replace function steadytext_probe(x integer, y text default 'other', z numeric[] default '{1,2}')
returns table (a integer, b text)
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$ begin return query select x, y; end $$;
select is(steadytext.make_twin('steadytext_probe(integer, text, numeric[])')::oid, 'st_probe(integer, text, numeric[])'::regprocedure::oid,
    'make_twin: one that is there is replaced');
select is((select a.b from st_probe(5) as a), 'other', 'make_twin: by what the function is now');

-- PUBLIC has nothing.
select is_empty(
    $$
        select p.oid::pg_catalog.regprocedure
        from functions as p
        cross join pg_catalog.aclexplode(coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))) as a
        where a.grantee = 0
    $$,
    'PUBLIC may call nothing'
);
select is_empty(
    $$
        select r.relname
        from relations as r
        cross join pg_catalog.aclexplode(coalesce(r.relacl,
            pg_catalog.acldefault(case r.relkind when 'S' then 's'::"char" else 'r' end, r.relowner))) as a
        where a.grantee = 0
    $$,
    'PUBLIC may touch no table, view or sequence'
);
select is_empty(
    $$
        select a.attrelid::pg_catalog.regclass, a.attname
        from pg_catalog.pg_attribute as a
        join relations as r on r.oid = a.attrelid
        cross join pg_catalog.aclexplode(a.attacl) as x
        where x.grantee = 0
    $$,
    'PUBLIC may touch no column'
);
select is_empty(
    $$
        select from pg_catalog.pg_namespace as n
        cross join pg_catalog.aclexplode(n.nspacl) as a
        where n.nspname = 'steadytext' and a.grantee = 0
    $$,
    'PUBLIC cannot look into schema steadytext'
);
select is_empty(
    $$ select proname from functions where proleakproof $$,
    'no function claims to be leakproof'
);

-- search_path.
select is_empty(
    $$
        select p.proname::text
        from functions as p
        join pg_catalog.pg_language as l on l.oid = p.prolang
        where l.lanname <> 'c' and p.prosqlbody is null and p.prokind <> 'a'
            and not coalesce('search_path=pg_catalog, pg_temp' = any (p.proconfig), false)
    $$,
    'no interpreted function does without a search_path of its own'
);
select is_empty(
    $$
        select p.proname
        from functions as p
        join pg_catalog.pg_language as l on l.oid = p.prolang
        where l.lanname = 'c' and p.prosecdef
    $$,
    'the functions in C run as their caller'
);
select set_eq(
    $$ select proname::text from functions where prosecdef $$,
    array['note_act', 'refuse_change', 'replace_default', 'delete_prompt_versions', 'record_heartbeat', 'end_heartbeat', 'claim_requests', 'extend_leases', 'release_requests',
        'complete_requests', 'complete_reports', 'more_work', 'worker_models', 'fail_requests', 'rescue_requests', 'promote_requests', 'queue_outlook', 'count_pending',
        'expire_requests', 'store_answers', 'count_accesses', 'plan_eviction', 'evict_entries', 'steadytext_cache_evict_by_frecency', 'steadytext_cache_evict_by_age',
        'steadytext_cache_scheduled_eviction', 'steadytext_cache_stats', 'steadytext_cache_stats_extended',
        'steadytext_cache_analyze_usage', 'steadytext_cache_preview_eviction', 'steadytext_cache_warmup',
        'queue_metrics', 'steadytext_metrics', 'unclaimed_requests'],
    'only the protocol, three triggers, what notes refusals, looks after the cache and what counts for all run as the owner'
);

-- pg_dump.
select set_eq(
    $$
        select t.relation::pg_catalog.regclass::text, t.condition
        from pg_catalog.pg_extension as e
        cross join unnest(e.extconfig, e.extcondition) as t(relation, condition)
        where e.extname = 'pg_steadytext'
    $$,
    $$
        values ('steadytext_queue', ''), ('steadytext_queue_id_seq', ''),
            ('steadytext_config', 'where not is_default'), ('steadytext_models', 'where not is_default'),
            ('steadytext_prompts', ''), ('steadytext_prompt_versions', ''),
            ('steadytext_batch_heads', ''),
            ('steadytext_vectorizers', ''), ('steadytext_vectorizer_work', ''), ('steadytext_vectorizer_work_id_seq', ''),
            ('steadytext_vectorizer_batches', ''), ('steadytext_vectorizer_failures', ''), ('steadytext_vectorizer_state', ''), ('steadytext_enrichment_rows', ''),
            ('steadytext_rate_limits', ''), ('steadytext_audit_log', ''), ('steadytext_audit_log_id_seq', '')
    $$,
    'pg_dump keeps requests, batches, the audit log, their sequences, prompts, vectorizers, enrichments, limits, settings and models that were changed'
);
select is(
    (select extversion from pg_catalog.pg_extension where extname = 'pg_steadytext'),
    steadytext_version(),
    'library and extension are of one version'
);

select is_empty(
    $$
        select t.tgrelid::pg_catalog.regclass, t.tgname, t.tgenabled
        from pg_catalog.pg_trigger as t
        join relations as r on r.oid = t.tgrelid
        where not t.tgisinternal and t.tgenabled <> 'A'
    $$,
    'every trigger fires always, also under session_replication_role = replica'
);

select * from finish();
rollback;
