-- Functions by which the process of the vectorizers reads and writes enriched rows. Rows that have changed
-- are read, and each that is to be made anew becomes a request of the queue; when it has ended, its answer is
-- written, if the row still says the same and has the value that it had. In between there is no transaction
-- and no lock.
--
-- Invariant: a value that somebody has written is never overwritten by an answer to what the row said before.
--
-- The wish that values are made anew whoever has written them is a mark on the record of each row, and not a property of the notes: notes come and go with
-- locked rows, failed requests and processes that end, and the mark stays until the row has its new value, or another one that somebody has written since.

create function steadytext.note_enriched_rows(p_id uuid, p_rows jsonb, p_is_kept boolean)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    insert into @extschema@.steadytext_enrichment_rows as r (enrichment_id, key, content_hash, made_by, value_hash, is_kept)
    select p_id, e.row -> 'key', decode(e.row ->> 'hash', 'hex'), steadytext.enrichment_digest(p_id), decode(e.row ->> 'made', 'hex'), p_is_kept
    from jsonb_array_elements(p_rows) as e(row)
    on conflict (enrichment_id, key) do update set content_hash = excluded.content_hash, made_by = excluded.made_by,
        value_hash = excluded.value_hash, is_kept = excluded.is_kept, gone_at = null;
end
$$;
comment on function steadytext.note_enriched_rows(uuid, jsonb, boolean) is
    'Records that rows have their value, or (kept) one that somebody has written. Called by the steps';

create function steadytext.mark_values(p_id uuid, p_rows jsonb, p_since bigint)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    insert into @extschema@.steadytext_enrichment_rows as r (enrichment_id, key, content_hash, made_by, value_hash, is_kept)
    with noted_since as materialized (
        select n.key
        from @extschema@.steadytext_vectorizer_work as w
        cross join lateral (
            select w.key where w.key is not null
            union all
            select e.key::jsonb from json_array_elements(w.keys) as e(key)
        ) as n(key)
        where w.vectorizer_id = p_id and w.id > p_since
    )
    select p_id, t.key, t.hash, '00000000-0000-0000-0000-000000000000'::uuid, t.was, false
    from (
        select e.row -> 'key' as key, decode(e.row ->> 'hash', 'hex') as hash, decode(e.row ->> 'was', 'hex') as was
        from jsonb_array_elements(p_rows) as e(row)
    ) as t
    left join @extschema@.steadytext_enrichment_rows as o on o.enrichment_id = p_id and o.key = t.key and o.gone_at is null
    -- A row that has changed since: another value for the same columns is one that somebody has written after the wish.
    where t.key not in (select n.key from noted_since as n)
        or case when o.key is null then t.was is null else o.content_hash <> t.hash or o.value_hash is not distinct from t.was end
    on conflict (enrichment_id, key) do update set content_hash = excluded.content_hash, made_by = excluded.made_by,
        value_hash = excluded.value_hash, is_kept = excluded.is_kept, gone_at = null;
end
$$;
comment on function steadytext.mark_values(uuid, jsonb, bigint) is
    'Marks the values of rows as such that are to be made anew whoever has written them, except where somebody has written one after the note with this number; called by the steps';

create function steadytext.ask_about_rows(p_id uuid, p_rows jsonb)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_definition record;
    v_row jsonb;
    v_n bigint;
    v_request uuid;
    v_refused text;
    v_is_out boolean;
begin
    select v.*, case when v.model is null then v.params else v.params || jsonb_build_object('model', v.model) end as all_params
    into v_definition
    from @extschema@.steadytext_vectorizers as v where v.id = p_id;
    for v_row, v_n in select e.row, e.n from jsonb_array_elements(p_rows) with ordinality as e(row, n) order by e.n loop
        begin
            insert into @extschema@.steadytext_queue (request_type, prompt, params, priority, session_id, owner_role)
            values (v_definition.request_type, v_row ->> 'prompt', v_definition.all_params, v_definition.priority,
                'enrichment ' || v_definition.name, v_definition.owner_role)
            returning request_id into v_request;
        exception when configuration_limit_exceeded then
            -- The rest comes as soon as a limit of the owner's allows it, or in some seconds where the queue is full.
            get stacked diagnostics v_refused = message_text;
            v_is_out := steadytext.limit_wait(v_definition.owner_role::oid, 1) is not null;
            insert into @extschema@.steadytext_vectorizer_work (vectorizer_id, key, run_after)
            select p_id, e.row -> 'key',
                case when not v_is_out then clock_timestamp() + interval '5 seconds' end
            from jsonb_array_elements(p_rows) with ordinality as e(row, n)
            where e.n >= v_n;
            -- Answers that are under way are written meanwhile.
            update @extschema@.steadytext_vectorizer_state as s set
                problem = left(v_refused, 2000),
                is_limited = true,
                is_out_of_requests = v_is_out,
                retry_at = case when not exists (select from @extschema@.steadytext_vectorizer_batches as b where b.vectorizer_id = p_id)
                    then clock_timestamp() + interval '5 seconds' end
            where s.vectorizer_id = p_id;
            return;
        end;
        insert into @extschema@.steadytext_vectorizer_batches (request_id, vectorizer_id, keys)
        values (v_request, p_id, jsonb_build_array(v_row - 'prompt'));
    end loop;
end
$$;
comment on function steadytext.ask_about_rows(uuid, jsonb) is 'Makes a request from the prompt of each row; called by the steps';

create function steadytext.write_enrichment_values(p_id uuid, p_statements record, p_items jsonb)
returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_done jsonb := coalesce(steadytext.run_as(p_statements.owner, p_statements.write_values, p_items), '[]');
    v_left jsonb;
    v_refused jsonb;
begin
    perform steadytext.note_enriched_rows(p_id, jsonb_agg(
        p_items -> ((d.done ->> 0)::integer - 1) || jsonb_build_object('made', d.done -> 1)), false)
    from jsonb_array_elements(v_done) as d(done)
    having count(*) > 0;
    perform steadytext.forget_kept_values(p_id, jsonb_agg(p_items -> ((d.done ->> 0)::integer - 1)))
    from jsonb_array_elements(v_done) as d(done);
    select jsonb_agg(e.element order by e.n) into v_left
    from jsonb_array_elements(p_items) with ordinality as e(element, n)
    where e.n <> all (array(select (d.done ->> 0)::bigint from jsonb_array_elements(v_done) as d(done)));
    if v_left is not null then
        -- Either the row has changed, or somebody has it locked, or a trigger has kept the value out without an error.
        v_refused := coalesce(steadytext.run_as(p_statements.owner, p_statements.lockable, v_left), '[]');
        perform steadytext.note_vectorizer_failure(p_id, l.item, 'a trigger or rule of the table kept the value from being written', '09000')
        from jsonb_array_elements(v_left) with ordinality as l(item, n)
        where v_refused @> to_jsonb(l.n);
        perform steadytext.keep_value(p_id, l.item)
        from jsonb_array_elements(v_left) with ordinality as l(item, n)
        where not v_refused @> to_jsonb(l.n);
        insert into @extschema@.steadytext_vectorizer_work (vectorizer_id, key, run_after)
        select p_id, l.item -> 'key', clock_timestamp() + steadytext.kept_pause(p_id, l.item -> 'key')
        from jsonb_array_elements(v_left) with ordinality as l(item, n)
        where not v_refused @> to_jsonb(l.n);
    end if;
    return jsonb_array_length(v_done);
end
$$;
comment on function steadytext.write_enrichment_values(uuid, record, jsonb) is
    'Writes values into rows that are still as they were read, and returns the number of rows written; called by the steps';

-- The verdict on rows that were read: done, keep, adopt, blank, empty, ask or gone.
create function steadytext.judge_rows(p_id uuid, p_rows jsonb)
returns table (verdict text, item jsonb)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    with read as materialized (
        select e.n, e.row, e.row -> 'key' as key, decode(e.row ->> 'hash', 'hex') as hash, decode(e.row ->> 'was', 'hex') as was,
            e.row ->> 'prompt' as prompt
        from jsonb_array_elements(p_rows) with ordinality as e(row, n)
    ),
    -- A row whose key has changed brings a value that was made. Its former key is among these, or the row of that key is gone.
    doubtful as materialized (
        select r.key from read as r
        union
        select b.keys -> 0 -> 'key' from @extschema@.steadytext_vectorizer_batches as b where b.vectorizer_id = p_id
        union
        (select n.key
        from (
            select w.key, w.keys from @extschema@.steadytext_vectorizer_work as w where w.vectorizer_id = p_id order by w.id limit 500
        ) as w
        cross join lateral (
            select w.key where w.key is not null
            union all
            select e.key::jsonb from json_array_elements(w.keys) as e(key)
        ) as n(key)
        limit 1000)
    ),
    known as materialized (
        select o.*
        from doubtful as k
        join @extschema@.steadytext_enrichment_rows as o on o.enrichment_id = p_id and o.key = k.key
        where not o.is_kept and exists (select from read as r where r.was is not null)
    ),
    -- Rows that are where they were with the value that they had, as of when they were read.
    in_place as materialized (
        select r.key, r.was from read as r where r.hash is not null
        union all
        select b.keys -> 0 -> 'key', decode(b.keys -> 0 ->> 'was', 'hex')
        from @extschema@.steadytext_vectorizer_batches as b where b.vectorizer_id = p_id
    ),
    judged as (
        select r.*,
            case
                when r.hash is null then 'gone'
                when o.key is null and r.was is null then 'make'
                -- The value may have come with a row that had another key.
                when o.key is null then coalesce((
                    select case when bool_or(p.content_hash = r.hash and p.made_by = d.digest) then 'adopt' else 'make' end
                    from (
                        (select g.content_hash, g.made_by
                        from @extschema@.steadytext_enrichment_rows as g
                        where g.enrichment_id = p_id and g.value_hash = r.was and g.gone_at is not null and not g.is_kept
                        order by g.content_hash = r.hash and g.made_by = d.digest desc
                        limit 1)
                        union all
                        select h.content_hash, h.made_by
                        from known as h
                        where h.value_hash = r.was
                            -- One that has its value yet has not given it to this one, which has another text.
                            and (h.content_hash = r.hash or not exists (select from in_place as i where i.key = h.key and i.was = h.value_hash))
                    ) as p
                    having count(*) > 0), 'keep')
                -- The definition was altered, perhaps to other columns: what was made goes, and what was not made stays.
                when o.made_by <> d.digest then case
                    when r.was is null then case when o.is_kept and o.value_hash is null then 'keep' else 'make' end
                    when o.is_kept or o.value_hash is distinct from r.was then 'keep'
                    else 'make'
                end
                -- Somebody has written another value, perhaps together with what it is about; or the row has come from another key with a value
                -- that was made of the same.
                when r.was is not null and r.was is distinct from o.value_hash then case
                    when exists (
                        select from @extschema@.steadytext_enrichment_rows as g
                        where g.enrichment_id = p_id and g.value_hash = r.was and g.content_hash = r.hash and g.made_by = d.digest
                            and g.gone_at is not null and not g.is_kept)
                        or exists (
                            select from known as h where h.value_hash = r.was and h.content_hash = r.hash and h.made_by = d.digest)
                    then 'adopt'
                    else 'keep'
                end
                when o.content_hash <> r.hash then 'make'
                -- Somebody has taken the value away.
                when r.was is null and o.value_hash is not null then 'make'
                -- Somebody has written another one over it.
                when o.value_hash is distinct from r.was then 'keep'
                else 'done'
            end as verdict
        from read as r
        cross join (select steadytext.enrichment_digest(p_id) as digest) as d
        left join @extschema@.steadytext_enrichment_rows as o
            on o.enrichment_id = p_id and o.key = r.key and o.gone_at is null
    )
    select case
            when j.verdict <> 'make' then j.verdict
            when j.prompt is not null then 'ask'
            when j.was is null then 'empty'
            else 'blank'
        end,
        case when j.verdict in ('keep', 'adopt') then j.row || jsonb_build_object('made', j.row -> 'was') else j.row end
    from judged as j
    order by j.n
$$;
comment on function steadytext.judge_rows(uuid, jsonb) is
    'Returns a verdict about each row: done (nothing to do), keep (its value is somebody''s), adopt (its value was made when it had another key), blank (NULL is to be written), empty (NULL is right, and there already), ask (the model is to be asked) or gone (there is no row). Called by the steps';

create function steadytext.read_enriched_rows(p_id uuid, p_statements record, p_keys jsonb)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_rows jsonb := coalesce(steadytext.run_as(p_statements.owner, p_statements.read_rows, p_keys), '[]');
    v_judged jsonb;
    v_kept jsonb;
    v_asked jsonb;
begin
    delete from @extschema@.steadytext_vectorizer_failures as f
    using jsonb_array_elements(v_rows) as r(row)
    where f.vectorizer_id = p_id and f.key = r.row -> 'key';
    select coalesce(jsonb_object_agg(j.verdict, j.items), '{}') into v_judged
    from (
        select j.verdict, jsonb_agg(j.item) as items from steadytext.judge_rows(p_id, v_rows) as j group by j.verdict
    ) as j;
    perform steadytext.note_enriched_rows(p_id, coalesce(v_judged -> 'keep', '[]'), true);
    perform steadytext.note_enriched_rows(p_id, coalesce(v_judged -> 'adopt', '[]') || coalesce(v_judged -> 'empty', '[]'), false);
    update @extschema@.steadytext_enrichment_rows as o set gone_at = now()
    from jsonb_array_elements(v_judged -> 'gone') as g(row)
    where o.enrichment_id = p_id and o.key = g.row -> 'key' and o.gone_at is null;
    perform steadytext.forget_kept_values(p_id, j.rows)
    from jsonb_each(v_judged) as j(verdict, rows)
    where j.verdict not in ('ask', 'blank');
    if v_judged ? 'ask' then
        -- An answer that could not be written is good for a row that is as it was.
        select jsonb_agg(a.row - 'prompt' || jsonb_build_object('value', k.value -> 'value')) filter (where k.key is not null),
            jsonb_agg(a.row) filter (where k.key is null)
        into v_kept, v_asked
        from jsonb_array_elements(v_judged -> 'ask') as a(row)
        left join @extschema@.steadytext_vectorizer_kept as k
            on k.vectorizer_id = p_id and k.key = a.row -> 'key' and k.content_hash = decode(a.row ->> 'hash', 'hex') and k.value ? 'value'
            and k.value -> 'was' = a.row -> 'was' and k.value ->> 'made_by' = steadytext.enrichment_digest(p_id)::text;
        if v_asked is not null then
            perform steadytext.ask_about_rows(p_id, v_asked);
        end if;
        if v_kept is not null then
            perform steadytext.note_progress(p_id, steadytext.in_parts(p_id, 'write values', p_statements, v_kept, null), null);
        end if;
    end if;
    if v_judged ? 'blank' then
        perform steadytext.in_parts(p_id, 'write values', p_statements, v_judged -> 'blank', null);
    end if;
end
$$;
comment on function steadytext.read_enriched_rows(uuid, record, jsonb) is
    'Reads rows by their keys and treats them as judge_rows says; called by the steps';
