-- Answers for a row that could not be written yet, of a vectorizer or an enrichment: vectors of some chunks of a row that has more than a limit of its
-- owner's leaves room for at once, and answers for a row that somebody has locked. They are kept, so that nothing is computed twice, and written when
-- the rest is there, or the lock is gone, if the row still says the same.
--
-- Nobody but the processes that work for definitions writes here. It is in no dump: missing answers are computed again after a restore.

select pg_catalog.set_config('search_path', steadytext.vector_path(), true);
create table @extschema@.steadytext_vectorizer_kept (
    vectorizer_id uuid not null,
    key jsonb not null,
    seq integer not null default 1,
    content_hash bytea not null,
    model_hash bytea,
    chunk text,
    embedding vector,
    value jsonb,
    kept_at timestamptz not null default pg_catalog.clock_timestamp(),
    constraint steadytext_vectorizer_kept_pkey primary key (vectorizer_id, key, seq)
);
set local search_path = pg_catalog, pg_temp;
comment on table @extschema@.steadytext_vectorizer_kept is
    'Vectors and values that were made and are not written yet: of rows whose other chunks wait for a limit, and of rows that are locked';
comment on column @extschema@.steadytext_vectorizer_kept.vectorizer_id is 'Definition that the vector or value belongs to';
comment on column @extschema@.steadytext_vectorizer_kept.key is 'Key of the row: the values of the key columns as an array';
comment on column @extschema@.steadytext_vectorizer_kept.seq is 'Number of the chunk of the row, from 1; 1 where the text is not cut, and for values';
comment on column @extschema@.steadytext_vectorizer_kept.content_hash is 'SHA-256 of the columns that it was made from: it is valid for this text only';
comment on column @extschema@.steadytext_vectorizer_kept.model_hash is 'Digest of the model, as in steadytext_vectorizer_state; NULL for values';
comment on column @extschema@.steadytext_vectorizer_kept.chunk is 'Text of the chunk; NULL for values';
comment on column @extschema@.steadytext_vectorizer_kept.embedding is 'Vector of the chunk; NULL for values';
comment on column @extschema@.steadytext_vectorizer_kept.value is
    'For enrichments: the value, the digest of the definition that made it, and the hash of the value that the row had then';
comment on column @extschema@.steadytext_vectorizer_kept.kept_at is 'Time since which it is kept: the longer that is, the more rarely it is tried to write it';
comment on constraint steadytext_vectorizer_kept_pkey on @extschema@.steadytext_vectorizer_kept is 'One row per chunk, or value, of a row';

create function steadytext.keep_vectors(p_id uuid, p_item jsonb, p_answer jsonb)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_hash bytea := decode(p_item ->> 'hash', 'hex');
    v_model bytea := decode(p_answer ->> 'model', 'hex');
    v_first integer := (p_item ->> 'first')::integer;
begin
    -- Vectors that were made of another text, or by another model, do not go with these.
    delete from @extschema@.steadytext_vectorizer_kept as k
    where k.vectorizer_id = p_id and k.key = p_item -> 'key' and (k.content_hash <> v_hash or k.model_hash <> v_model);
    insert into @extschema@.steadytext_vectorizer_kept (vectorizer_id, key, seq, content_hash, model_hash, chunk, embedding)
    select p_id, p_item -> 'key', coalesce((p_item -> 'seqs' ->> (t.n - 1))::integer, t.n), v_hash, v_model,
        coalesce(p_item -> 'chunks' ->> (t.n - 1), q.prompts[v_first + t.n - 1]), q.embeddings[v_first + t.n - 1]
    from @extschema@.steadytext_queue as q
    cross join generate_series(1, (p_item ->> 'count')::integer) as t(n)
    where q.request_id = (p_answer ->> 'request')::uuid
    on conflict do nothing;
end
$$;
comment on function steadytext.keep_vectors(uuid, jsonb, jsonb) is
    'Keeps vectors of a row that cannot be written yet; called by the steps';

create function steadytext.keep_value(p_id uuid, p_item jsonb)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    insert into @extschema@.steadytext_vectorizer_kept as k (vectorizer_id, key, content_hash, value)
    values (p_id, p_item -> 'key', decode(p_item ->> 'hash', 'hex'),
        p_item - array['key', 'hash', 'prompt'] || jsonb_build_object('made_by', steadytext.enrichment_digest(p_id)))
    on conflict (vectorizer_id, key, seq) do update set
        content_hash = excluded.content_hash, value = excluded.value, kept_at = excluded.kept_at
    where (k.content_hash, k.value) is distinct from (excluded.content_hash, excluded.value);
end
$$;
comment on function steadytext.keep_value(uuid, jsonb) is 'Keeps the value of a row that cannot be written yet; called by the steps';

create function steadytext.forget_kept_values(p_id uuid, p_items jsonb)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    if exists (select from @extschema@.steadytext_vectorizer_kept as k where k.vectorizer_id = p_id) then
        delete from @extschema@.steadytext_vectorizer_kept as k
        using jsonb_array_elements(p_items) as e(item)
        where k.vectorizer_id = p_id and k.key = e.item -> 'key';
    end if;
end
$$;
comment on function steadytext.forget_kept_values(uuid, jsonb) is
    'Forgets the kept values of rows that have their value, or are to have no other one; called by the steps';

create function steadytext.kept_pause(p_id uuid, p_key jsonb)
returns interval
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select case when count(*) > 0 then least(greatest(clock_timestamp() - max(k.kept_at), interval '2 seconds'), interval '1 minute') end
        from @extschema@.steadytext_vectorizer_kept as k
        where k.vectorizer_id = p_id and k.key = p_key);
end
$$;
comment on function steadytext.kept_pause(uuid, jsonb) is
    'Returns the pause before the next try to write what is kept of a row: as long as it has been kept until then, between two seconds and a minute; NULL where nothing is kept. Called by the steps';

-- Rows are told by their keys and the hashes of their texts.
create function steadytext.forget_kept_vectors(p_id uuid, p_notes jsonb, p_rows jsonb)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    if not exists (select from @extschema@.steadytext_vectorizer_kept as k where k.vectorizer_id = p_id) then
        return;
    end if;
    delete from @extschema@.steadytext_vectorizer_kept as k
    using jsonb_array_elements(p_notes) as e(note), @extschema@.steadytext_vectorizer_state as s
    where k.vectorizer_id = p_id and k.key = e.note -> 'key' and s.vectorizer_id = p_id
        and (k.model_hash <> s.model_hash or not exists (
            select from jsonb_array_elements(p_rows) as r(item)
            where r.item -> 'key' = k.key and decode(r.item ->> 'hash', 'hex') = k.content_hash));
end
$$;
comment on function steadytext.forget_kept_vectors(uuid, jsonb, jsonb) is
    'Forgets vectors that are kept of rows that were read, except those of rows that are to be embedded and whose text and model are still the same; called by the steps';

-- A row that has changed while it was asked about was noted again, though not that it is to be embedded whatever its text is: it may have its former text,
-- of which there are vectors, when that note is taken out.
create function steadytext.note_unanswered_wishes(p_id uuid, p_items jsonb, p_present jsonb)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    insert into @extschema@.steadytext_vectorizer_work (vectorizer_id, key, is_forced)
    select p_id, e.item -> 'key', true
    from rows from (jsonb_array_elements(p_items), jsonb_array_elements(p_present)) as e(item, is_present)
    where (e.item -> 'forced')::boolean and not e.is_present::boolean;
end
$$;
comment on function steadytext.note_unanswered_wishes(uuid, jsonb, jsonb) is
    'Notes rows again that were to be embedded whatever their text is, and have changed since they were read; called by the steps';

create function steadytext.write_kept_vectors(p_id uuid, p_statements record, p_item jsonb)
returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_places jsonb;
    v_model bytea;
    v_present jsonb;
begin
    select jsonb_agg(jsonb_build_object('key', k.key, 'hash', p_item -> 'hash', 'seq', k.seq, 'chunk', k.chunk, 'vector', k.embedding::text, 'n', 1)
            order by k.seq),
        (array_agg(k.model_hash))[1]
    into v_places, v_model
    from @extschema@.steadytext_vectorizer_kept as k
    where k.vectorizer_id = p_id and k.key = p_item -> 'key';
    if p_statements.is_column then
        if steadytext.run_as(p_statements.owner, p_statements.write_vectors[2],
            jsonb_build_object('model', encode(v_model, 'hex'), 'places', v_places)) is null
        then
            v_present := steadytext.run_as(p_statements.owner, p_statements.present, jsonb_build_array(p_item));
            if v_present = '[true]' then
                perform steadytext.leave_rows(p_id, p_statements, jsonb_build_array(p_item), null);
            else
                perform steadytext.note_unanswered_wishes(p_id, jsonb_build_array(p_item), v_present);
            end if;
            return 0;
        end if;
    else
        v_present := steadytext.run_as(p_statements.owner, p_statements.present, jsonb_build_array(p_item));
        if v_present <> '[true]' then
            perform steadytext.note_unanswered_wishes(p_id, jsonb_build_array(p_item), v_present);
            return 0;
        end if;
        perform steadytext.run_as(p_statements.owner, p_statements.delete_vectors, jsonb_build_array(p_item -> 'key'));
        perform steadytext.run_as(p_statements.owner, p_statements.write_vectors[2],
            jsonb_build_object('model', encode(v_model, 'hex'), 'places', v_places));
    end if;
    delete from @extschema@.steadytext_vectorizer_kept as k where k.vectorizer_id = p_id and k.key = p_item -> 'key';
    return 1;
end
$$;
comment on function steadytext.write_kept_vectors(uuid, record, jsonb) is
    'Writes the vectors of a row all of which are kept, if its text is still the one that was embedded; returns the number of rows written. Called by the steps';

-- Rows of many chunks are embedded piece by piece where their owner's limit has no room for all of them at once.
create function steadytext.keep_piece(p_id uuid, p_statements record, p_item jsonb, p_answer jsonb)
returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_present jsonb := steadytext.run_as(p_statements.owner, p_statements.present, jsonb_build_array(p_item));
begin
    if v_present <> '[true]' then
        perform steadytext.note_unanswered_wishes(p_id, jsonb_build_array(p_item), v_present);
        return 0;
    end if;
    perform steadytext.keep_vectors(p_id, p_item, p_answer);
    if (select count(*) from @extschema@.steadytext_vectorizer_kept as k where k.vectorizer_id = p_id and k.key = p_item -> 'key')
        < (p_item ->> 'of')::integer
    then
        perform steadytext.note_first(p_id, json_build_array(p_item -> 'key'));
        return 0;
    end if;
    return 1;
end
$$;
comment on function steadytext.keep_piece(uuid, record, jsonb, jsonb) is
    'Keeps the vectors of some chunks of a row; returns 1 when those of all chunks are there and 0 otherwise. Called by the steps';

create function steadytext.finish_vectorizer_piece(p_id uuid, p_statements record, p_item jsonb, p_answer jsonb)
returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    if steadytext.in_parts(p_id, 'keep vectors', p_statements, jsonb_build_array(p_item), p_answer) = 0 then
        return 0;
    end if;
    return steadytext.in_parts(p_id, 'write kept vectors', p_statements, jsonb_build_array(p_item), null);
end
$$;
comment on function steadytext.finish_vectorizer_piece(uuid, record, jsonb, jsonb) is
    'Keeps the vectors of some chunks of a row, and writes all of them when the last have come; returns the number of rows written. Called by the steps';

-- Numbers that the sequence gives are positive, and stay in their order below zero.
create function steadytext.note_first(p_id uuid, p_keys json)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    insert into @extschema@.steadytext_vectorizer_work (id, vectorizer_id, keys, key_count, is_forced) overriding system value
    values (nextval('@extschema@.steadytext_vectorizer_work_id_seq'::regclass) - 4611686018427387904, p_id, p_keys, json_array_length(p_keys), true);
end
$$;
comment on function steadytext.note_first(uuid, json) is
    'Notes rows that are to be worked on before all rows that were noted already, in the order of the calls; called by the steps';
