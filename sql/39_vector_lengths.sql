-- The lengths of the vectors of models that the server cannot ask, because they are computed elsewhere: those
-- of the vectors of the first answer.

create table @extschema@.steadytext_vector_lengths (
    model text not null constraint steadytext_vector_lengths_pkey primary key,
    file text not null,
    length integer not null,
    seen_at timestamptz not null default pg_catalog.now()
);
comment on table @extschema@.steadytext_vector_lengths is
    'Lengths of the vectors of models that are computed elsewhere, as their answers have shown';
comment on column @extschema@.steadytext_vector_lengths.model is 'Name of the model in steadytext_models';
comment on column @extschema@.steadytext_vector_lengths.file is 'File of the model at that time; nothing is known of other files';
comment on column @extschema@.steadytext_vector_lengths.length is 'Number of elements of a vector that is not cut';
comment on column @extschema@.steadytext_vector_lengths.seen_at is 'Time when the length was first seen, or seen to have changed';
comment on constraint steadytext_vector_lengths_pkey on @extschema@.steadytext_vector_lengths is 'One row per model';

create function steadytext.note_vector_lengths(p_ids bigint[], p_lengths integer[])
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_row record;
begin
    -- Most have nothing new to say, and lock nothing.
    for v_row in
        select m.name, m.file, max(g.length) as length
        from unnest(p_ids, p_lengths) as g(id, length)
        cross join lateral (
            select q.params
            from @extschema@.steadytext_queue as q
            where q.id = g.id and q.status = 'completed' and q.request_type in ('embed', 'batch_embed')
            offset 0
        ) as q
        join @extschema@.steadytext_models as m
            on m.name = coalesce(q.params ->> 'model', q.params ->> 'size', q.params ->> 'default_model')
            and m.task = 'embed' and m.placement = 'elsewhere'
        left join @extschema@.steadytext_vector_lengths as l on l.model = m.name
        where g.length between 1 and 16000 and q.params ->> 'dimensions' is null
            and (l.file, l.length) is distinct from (m.file, g.length)
        group by m.name, m.file
        order by m.name
    loop
        insert into @extschema@.steadytext_vector_lengths as l (model, file, length)
        values (v_row.name, v_row.file, v_row.length)
        on conflict (model) do update set file = excluded.file, length = excluded.length, seen_at = now();
    end loop;
end
$$;
comment on function steadytext.note_vector_lengths(bigint[], integer[]) is
    'Notes the lengths of the vectors of models that workers elsewhere have computed; called by complete_reports and complete_requests';

create function steadytext.vector_length(p_model text)
returns integer
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select l.length
    from @extschema@.steadytext_models as m
    join @extschema@.steadytext_vector_lengths as l on l.model = m.name and l.file = m.file
    where m.name = p_model and m.placement = 'elsewhere'
$$;
comment on function steadytext.vector_length(text) is
    'Returns the length of the vectors of a model that is computed elsewhere; NULL where no answer has shown it yet. Called where vectorizers are made';
