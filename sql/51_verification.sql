-- Whether a model is computed right on this machine: two implementations, one text.

create function @extschema@.steadytext_model_verify(name text default null, positions bigint default 64)
returns table (
    "position" integer,
    token text,
    rms real,
    largest real,
    same_choice boolean,
    bound real,
    passed boolean
)
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'model_verify_wrapper';
comment on function @extschema@.steadytext_model_verify(text, bigint) is
    'Has both backends compute a short text on a model, by default the one that generates, and returns for each token how far their logits are apart, in standard deviations, and whether that is within the bound of the model''s quantization';
