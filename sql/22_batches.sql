-- Batches: one row for each besides its requests, which name it in their column batch.
--
-- A column of the queue rather than a table of pairs: the requests of a batch then go where they go, through retention,
-- dumps and row-level security, and a session that enqueues one request has nothing to do with it. A batch and its
-- requests belong to one role; a request that somebody else enqueues under the number of a batch is no part of it.

create table @extschema@.steadytext_batch_heads (
    batch uuid not null constraint steadytext_batch_heads_pkey primary key,
    owner_role steadytext.role_id not null,
    name text,
    request_type text not null,
    total bigint not null,
    created_at timestamptz not null default pg_catalog.now()
);
comment on table @extschema@.steadytext_batch_heads is
    'Batches that steadytext_enqueue_query() has enqueued; steadytext_batches shows their progress';
comment on column @extschema@.steadytext_batch_heads.batch is 'Identifier of the batch: the UUID version 7 that steadytext_enqueue_query() returned';
comment on column @extschema@.steadytext_batch_heads.owner_role is 'Role that enqueued the batch and all of its requests';
comment on column @extschema@.steadytext_batch_heads.name is 'Name that the owner gave the batch';
comment on column @extschema@.steadytext_batch_heads.request_type is 'Type of the batch''s requests';
comment on column @extschema@.steadytext_batch_heads.total is 'Number of requests that the batch began with';
comment on column @extschema@.steadytext_batch_heads.created_at is 'Start of the transaction that enqueued the batch';
comment on constraint steadytext_batch_heads_pkey on @extschema@.steadytext_batch_heads is 'One row per batch';

alter table @extschema@.steadytext_batch_heads enable row level security;
create policy user_select on @extschema@.steadytext_batch_heads
    for select to steadytext_user
    using (owner_role::pg_catalog.oid operator(pg_catalog.=) steadytext.current_role_id()::pg_catalog.oid);
comment on policy user_select on @extschema@.steadytext_batch_heads is 'Users see their own batches';
create policy admin_select on @extschema@.steadytext_batch_heads
    for select to steadytext_admin using (true);
comment on policy admin_select on @extschema@.steadytext_batch_heads is 'Administrators see every batch';
