-- Downloading models.

create function @extschema@.steadytext_model_pull(name_or_reference text, wait boolean default true)
returns text
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'model_pull_wrapper';
comment on function @extschema@.steadytext_model_pull(text, boolean) is
    'Downloads a registered model, or one of a hub as owner/name or owner/name:file; returns its file or folder, or what was asked for without waiting; what is in place as recorded needs no network, and adapters beside a model come with it. For members of steadytext_admin';

create function @extschema@.steadytext_model_pull_cancel(name_or_reference text)
returns boolean
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'model_pull_cancel_wrapper';
comment on function @extschema@.steadytext_model_pull_cancel(text) is
    'Stops the download of a model, whoever waits for it; what has arrived is kept. False where there is none. For members of steadytext_admin';
