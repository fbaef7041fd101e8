-- The queue: one row per request, from pending to completed, failed or cancelled.
--
-- PostgreSQL's messages about CHECK and NOT NULL show the whole row, prompt included, to the
-- client and in the server's log. So the limits of what users send are in
-- steadytext.check_request(), and what must hold for every row, however it was written, is in
-- one CHECK that is never false: it raises an error of its own. NOT NULL is part of it, but
-- for the id, of which an identity and a primary key demand it; check_request() sees to that.
-- A CHECK is stored as text and parsed in every statement that writes: it is one call.

create function steadytext.check_queue_row(
    request_id uuid,
    request_type text,
    created_at timestamptz,
    owner_role steadytext.role_id,
    alone boolean,
    priority integer,
    status text,
    retry_count integer,
    attempt integer,
    max_retries integer
)
returns boolean
language c immutable parallel safe
as 'MODULE_PATHNAME', 'check_queue_row_wrapper';
comment on function steadytext.check_queue_row(
    uuid, text, timestamptz, steadytext.role_id, boolean, integer, text, integer, integer, integer
) is 'Returns true, or raises an error that names the column with a value that it may not have; the CHECK of steadytext_queue';

select pg_catalog.set_config('search_path', steadytext.vector_path(), true);
create table @extschema@.steadytext_queue (
    id bigint generated always as identity constraint steadytext_queue_pkey primary key,
    request_id uuid default steadytext.new_request_id(),
    request_type text,
    prompt text,
    prompts text[],
    params jsonb default '{}',
    priority integer default 5,
    user_id text,
    session_id text,
    status text default 'pending',
    result text,
    results text[],
    embedding vector,
    embeddings vector[],
    error text,
    created_at timestamptz default pg_catalog.now(),
    started_at timestamptz,
    completed_at timestamptz,
    processing_time_ms integer,
    retry_count integer default 0,
    max_retries integer,
    daemon_endpoint text,
    owner_role steadytext.role_id default steadytext.current_role_id(),
    run_after timestamptz,
    lease_expires_at timestamptz,
    attempt integer default 0,
    worker text,
    error_code text,
    alone boolean default false,
    prompt_tokens integer,
    cached_tokens integer,
    generated_tokens integer,
    finish_reason text,
    first_token_ms integer,
    batch uuid,
    batch_key jsonb,
    constraint steadytext_queue_request_id_key unique (request_id),
    constraint steadytext_queue_row_check check (steadytext.check_queue_row(
        request_id, request_type, created_at, owner_role, alone, priority, status, retry_count, attempt, max_retries))
);
set local search_path = pg_catalog, pg_temp;

comment on table @extschema@.steadytext_queue is
    'Requests and their answers. Users see their own rows; INSERT enqueues, UPDATE … SET status = ''pending'', retry_count = 0 tries a failed one again';
comment on column @extschema@.steadytext_queue.id is 'Number of the request: a smaller one was enqueued earlier';
comment on column @extschema@.steadytext_queue.request_id is
    'UUID version 7 that the enqueuing functions return';
comment on column @extschema@.steadytext_queue.request_type is
    'generate, embed, generate_json, generate_regex, generate_choice, rerank, batch_embed, batch_rerank, if, if_score, classify, classify_scores, classify_multi, score, similarity, analyze_sentiment, extract, translate, mask, extract_facts, deduplicate_facts or summarize';
comment on column @extschema@.steadytext_queue.prompt is 'Prompt, text to embed or to work on, query, or facts as JSON';
comment on column @extschema@.steadytext_queue.prompts is 'Texts of a batch type, documents to be ranked, or the two texts of a similarity';
comment on column @extschema@.steadytext_queue.params is
    'Parameters that differ from the defaults: max_tokens, use_cache, seed, eos_string, model, size, temperature, top_k, top_p, min_p, repeat_penalty, presence_penalty, frequency_penalty, stop, thinking, logit_bias, system_prompt, messages, batch, task, return_scores, documents, document_ids; schema, pattern or choices of the types with a constraint; categories, task_description, descriptions, examples, method and threshold of classifications; fields or schema of extract, to_language, labels, max_facts, similarity_threshold; template, which a database keeps in the place of the extension''s own prompt';
comment on column @extschema@.steadytext_queue.priority is 'Priority of the request, 1 to 10; 10 runs first';
comment on column @extschema@.steadytext_queue.user_id is
    'Label that the program gives; rights go by owner_role';
comment on column @extschema@.steadytext_queue.session_id is 'Label that the program gives, to group requests';
comment on column @extschema@.steadytext_queue.status is
    'State of the request: pending, processing, completed, failed or cancelled';
comment on column @extschema@.steadytext_queue.result is
    'Answer: the generated text, the judgement, or a ranking as JSON, with objects of document, score, index (from 1) and document_id, or of category and score, best first';
comment on column @extschema@.steadytext_queue.results is 'Documents of a ranking, or categories of a classification into all or several, best first';
comment on column @extschema@.steadytext_queue.embedding is
    'Vector of an embed request; its dimension is the model''s';
comment on column @extschema@.steadytext_queue.embeddings is 'Vectors of a batch type, in input order';
comment on column @extschema@.steadytext_queue.error is
    'Message of the last error; kept while the request waits for its next try';
comment on column @extschema@.steadytext_queue.created_at is 'Start of the transaction that enqueued the request';
comment on column @extschema@.steadytext_queue.started_at is 'Time when the last attempt began';
comment on column @extschema@.steadytext_queue.completed_at is 'Time when the request ended, in whatever state';
comment on column @extschema@.steadytext_queue.processing_time_ms is
    'Milliseconds from started_at to completed_at';
comment on column @extschema@.steadytext_queue.retry_count is 'Attempts that ended in an error and were tried again';
comment on column @extschema@.steadytext_queue.max_retries is
    'Retries before the request ends as failed; NULL means the setting max_retries';
comment on column @extschema@.steadytext_queue.daemon_endpoint is
    'Address of the HTTP endpoint whose engine has answered, and whose answers are not repeatable; NULL where an engine of pg_steadytext has';
comment on column @extschema@.steadytext_queue.owner_role is
    'Role that enqueued the request, whatever user_id says; it alone sees the row, besides administrators. Empty: that role is gone';
comment on column @extschema@.steadytext_queue.run_after is
    'Time until which a retry waits; NULL where the row may be claimed at once';
comment on column @extschema@.steadytext_queue.lease_expires_at is
    'Time until which the worker of another machine is believed to live';
comment on column @extschema@.steadytext_queue.attempt is
    'Number of claims ever made, never reset: a result is written only by the attempt that is running';
comment on column @extschema@.steadytext_queue.worker is
    'Worker that runs the request, or ran it last: local:<uuid> is the server''s own';
comment on column @extschema@.steadytext_queue.error_code is 'SQLSTATE of the last error';
comment on column @extschema@.steadytext_queue.alone is
    'True where the request was in flight when a worker died: it runs with nothing beside it, so that a request that crashes its worker harms no others';
comment on column @extschema@.steadytext_queue.prompt_tokens is
    'Tokens of the prompt, template included; of many texts, of all together. NULL, as the three columns that follow, where the cache has answered';
comment on column @extschema@.steadytext_queue.cached_tokens is
    'Tokens of the prompt of a text that did not have to be computed, as other requests had begun with the same';
comment on column @extschema@.steadytext_queue.generated_tokens is 'Tokens of the generated text';
comment on column @extschema@.steadytext_queue.finish_reason is
    'Reason why the text ended: stop (the model, or a stop string), length (max_tokens, or the context; a document was closed in time) or constraint (nothing more could match it)';
comment on column @extschema@.steadytext_queue.first_token_ms is 'Milliseconds from started_at to the first token of the text';
comment on column @extschema@.steadytext_queue.batch is
    'Batch of steadytext_enqueue_query() that the request belongs to; NULL for all others';
comment on column @extschema@.steadytext_queue.batch_key is
    'Columns of the batch''s query, all but prompt, prompts and params, by which an answer finds its row';
comment on constraint steadytext_queue_pkey on @extschema@.steadytext_queue is
    'Order of age, in which retention walks through the table';
comment on constraint steadytext_queue_request_id_key on @extschema@.steadytext_queue is
    'Finds a request by the id that programs have';
comment on constraint steadytext_queue_row_check on @extschema@.steadytext_queue is
    'Checks every value of a request; raises an error that names the column and does not show the row';

comment on sequence @extschema@.steadytext_queue_id_seq is 'Source of steadytext_queue.id';

-- The indexes are partial with literal states, and the protocol functions repeat the
-- literals: that alone makes the planner use them. Nothing else is indexed on the hot path;
-- each index costs every enqueue.
create index steadytext_queue_claim_idx on @extschema@.steadytext_queue (priority desc, owner_role pg_catalog.oid_ops, id)
    where status = 'pending' and run_after is null and not alone;
comment on index @extschema@.steadytext_queue_claim_idx is
    'Requests ready to run, in the order of claims; skip-scanned per user';
create index steadytext_queue_deferred_idx on @extschema@.steadytext_queue (run_after)
    where status = 'pending' and run_after is not null;
comment on index @extschema@.steadytext_queue_deferred_idx is 'Retries that wait for their time, in its order';
create index steadytext_queue_alone_idx on @extschema@.steadytext_queue (id)
    where status = 'pending' and run_after is null and alone;
comment on index @extschema@.steadytext_queue_alone_idx is 'Requests that run one at a time after a crash';
create index steadytext_queue_processing_idx on @extschema@.steadytext_queue (id)
    where status = 'processing';
comment on index @extschema@.steadytext_queue_processing_idx is 'Requests in flight, for completion and rescue';
-- Requests outside of batches pay for it with one look at a NULL. The state is in it so that what is left of a batch is
-- found without walking through what is done.
create index steadytext_queue_batch_idx on @extschema@.steadytext_queue (batch, status)
    where batch is not null;
comment on index @extschema@.steadytext_queue_batch_idx is 'Requests of a batch by their state';


-- A worker that takes some models or types only looks for the lanes of these. It may leave many more rows than it takes, so rows that are the
-- same to it lie together: a user, a priority, a type, a name of a model. None of these changes while a row is pending.
create function steadytext.claim_lane(
    owner_role steadytext.role_id,
    priority integer,
    request_type text,
    params jsonb
)
returns bigint
language c immutable parallel safe
-- Far more than it takes: a scan that computes it for each row is never better than one along its index.
cost 10000
as 'MODULE_PATHNAME', 'claim_lane_wrapper';
comment on function steadytext.claim_lane(steadytext.role_id, integer, text, jsonb) is
    'Returns the lane of a request: from its highest bits on, its owner (32), its priority (4), and a hash of its type and the model that it names (28)';
create function steadytext.first_lane(p_role oid, p_priority integer)
returns bigint
language sql immutable parallel safe
begin atomic
    select (p_role::bigint operator(pg_catalog.<<) 32) operator(pg_catalog.|) (p_priority::bigint operator(pg_catalog.<<) 28);
end;
comment on function steadytext.first_lane(oid, integer) is
    'Returns the first lane that requests of a user and a priority may have; the last one is 2^28 - 1 higher';
create index steadytext_queue_lane_idx
    on @extschema@.steadytext_queue (steadytext.claim_lane(owner_role, priority, request_type, params), id)
    -- That is true of all requests. Only queries about lanes repeat the condition, so that the planner can use the index for no other ones.
    where status = 'pending' and run_after is null and not alone and coalesce(attempt, 0) >= 0;
comment on index @extschema@.steadytext_queue_lane_idx is 'Requests ready to run, by lane: owner, priority, type and model, which a worker may take or leave';

create trigger check_request before insert on @extschema@.steadytext_queue
    for each row execute function steadytext.check_request();
comment on trigger check_request on @extschema@.steadytext_queue is
    'Checks the limits of a request, and arms the wake after the commit';
create trigger wake_worker after update of status, priority, run_after, alone, id, owner_role on @extschema@.steadytext_queue
    for each statement execute function steadytext.wake_worker();
comment on trigger wake_worker on @extschema@.steadytext_queue is
    'Wakes the worker when a request is put back to pending, cancelled or moved in the order of claims';
-- The condition is looked at for every change of a status, the protocol's included: the comparison that fails for those comes first.
create trigger count_retry after update of status on @extschema@.steadytext_queue
    for each row when (new.status = 'pending' and old.status <> 'pending') execute function steadytext.count_retry();
comment on trigger count_retry on @extschema@.steadytext_queue is
    'Counts a request that its owner has put back as pending; a mere call of steadytext.admit_retry() does not count it. Lets the worker notice one that a trigger puts back while the worker writes its answer';

create trigger recount_requests after delete or truncate on @extschema@.steadytext_queue
    for each statement execute function steadytext.recount_requests();
comment on trigger recount_requests on @extschema@.steadytext_queue is
    'Has pending requests that are deleted no longer count for max_queue_size';

-- Also for rows that come under session_replication_role = replica: unseen, they would wait for ever.
alter table @extschema@.steadytext_queue
    enable always trigger check_request,
    enable always trigger wake_worker,
    enable always trigger count_retry,
    enable always trigger recount_requests;

-- Every request leaves two dead versions behind. Vacuum comes early, by number rather than
-- by share, and works without pauses, so that claims do not wade through dead entries. The
-- free fifth of each page takes the next version of its rows: less WAL, and an extended
-- lease touches no index.
alter table @extschema@.steadytext_queue set (
    fillfactor = 80,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_insert_threshold = 20000,
    autovacuum_vacuum_insert_scale_factor = 0.1,
    autovacuum_analyze_threshold = 5000,
    autovacuum_analyze_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 0
);

-- Row-level security goes by the number of the role in owner_role; the worker acts as the
-- owner of the table, whom it does not bind.
alter table @extschema@.steadytext_queue enable row level security;

create function steadytext.admit_retry()
returns boolean
language c volatile
as 'MODULE_PATHNAME', 'admit_retry_wrapper';
comment on function steadytext.admit_retry() is
    'Admits a request that is put back to pending, or refuses it as an enqueuing function would where the queue is full';

create policy user_select on @extschema@.steadytext_queue
    for select to steadytext_user
    using (owner_role::pg_catalog.oid operator(pg_catalog.=) steadytext.current_role_id()::pg_catalog.oid);
comment on policy user_select on @extschema@.steadytext_queue is 'Users see their own requests';
create policy user_insert on @extschema@.steadytext_queue
    for insert to steadytext_user
    with check (owner_role::pg_catalog.oid operator(pg_catalog.=) steadytext.current_role_id()::pg_catalog.oid);
comment on policy user_insert on @extschema@.steadytext_queue is 'Users enqueue in their own name';
create policy user_update on @extschema@.steadytext_queue
    for update to steadytext_user
    using (owner_role::pg_catalog.oid operator(pg_catalog.=) steadytext.current_role_id()::pg_catalog.oid
        and status = 'failed')
    with check (owner_role::pg_catalog.oid operator(pg_catalog.=) steadytext.current_role_id()::pg_catalog.oid
        and status = 'pending' and retry_count >= 0 and steadytext.admit_retry());
comment on policy user_update on @extschema@.steadytext_queue is
    'Users put their own failed requests back to pending, and nothing else';
create policy admin_select on @extschema@.steadytext_queue
    for select to steadytext_admin using (true);
comment on policy admin_select on @extschema@.steadytext_queue is 'Administrators see every request';
create policy admin_update on @extschema@.steadytext_queue
    for update to steadytext_admin
    using (status in ('pending', 'failed', 'cancelled'))
    with check (status = 'pending' and retry_count >= 0);
comment on policy admin_update on @extschema@.steadytext_queue is
    'Administrators put ended requests back to pending and change the priority of waiting ones';
create policy admin_delete on @extschema@.steadytext_queue
    for delete to steadytext_admin using (status <> 'processing');
comment on policy admin_delete on @extschema@.steadytext_queue is
    'Administrators delete requests that are not running; running requests are cancelled first';
