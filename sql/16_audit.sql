-- What administrators did to everybody's data, for other administrators to read.

create table @extschema@.steadytext_audit_log (
    id bigint generated always as identity constraint steadytext_audit_log_pkey primary key,
    "timestamp" timestamptz not null default pg_catalog.clock_timestamp(),
    user_id text not null default current_user,
    action text not null,
    request_id uuid,
    details jsonb,
    ip_address inet default pg_catalog.inet_client_addr(),
    success boolean not null default true,
    error_message text,
    -- Names of later versions of the Python extension.
    event_id uuid not null default pg_catalog.gen_random_uuid(),
    event_type text generated always as (action) stored,
    created_at timestamptz generated always as ("timestamp") stored
);
comment on table @extschema@.steadytext_audit_log is
    'Who emptied, imported, exported or rescheduled the cache, and when; nobody may change it';
comment on column @extschema@.steadytext_audit_log.id is 'Order of the entries';
comment on column @extschema@.steadytext_audit_log."timestamp" is 'When it was done';
comment on column @extschema@.steadytext_audit_log.user_id is 'The role that did it';
comment on column @extschema@.steadytext_audit_log.action is
    'cache_clear, cache_import, cache_export, cache_eviction, cache_eviction_cron_setup, cache_eviction_cron_disable';
comment on column @extschema@.steadytext_audit_log.request_id is 'The request that it was about, if any';
comment on column @extschema@.steadytext_audit_log.details is 'Counts and names, never a prompt';
comment on column @extschema@.steadytext_audit_log.ip_address is
    'Where the client was connected from; NULL through a Unix socket';
comment on column @extschema@.steadytext_audit_log.success is 'Whether it was done';
comment on column @extschema@.steadytext_audit_log.error_message is 'Why it was not';
comment on column @extschema@.steadytext_audit_log.event_id is 'An id that no entry of another server has';
comment on column @extschema@.steadytext_audit_log.event_type is 'The same as action';
comment on column @extschema@.steadytext_audit_log.created_at is 'The same as timestamp';
comment on constraint steadytext_audit_log_pkey on @extschema@.steadytext_audit_log is 'One row per act';
comment on sequence @extschema@.steadytext_audit_log_id_seq is 'Source of steadytext_audit_log.id';

create index steadytext_audit_log_timestamp_idx on @extschema@.steadytext_audit_log ("timestamp");
comment on index @extschema@.steadytext_audit_log_timestamp_idx is 'Looking for what was done in a certain time';

alter table @extschema@.steadytext_audit_log enable row level security;
create policy admin_select on @extschema@.steadytext_audit_log for select to steadytext_admin using (true);
comment on policy admin_select on @extschema@.steadytext_audit_log is 'Administrators see every entry, others none';
