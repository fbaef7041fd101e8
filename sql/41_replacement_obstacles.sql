-- What keeps new vectors from taking the place of old ones: whatever somebody has put on the old ones and cannot be made anew for the new ones would be lost,
-- or would go on reading vectors that nobody keeps up to date. It is said when a vectorizer is altered, and looked for once more when the places change:
-- an error then leaves the old vectors where they are.

-- The index that was made with the vectorizer is made for the new vectors, too, as the definition says. One that somebody has made with other options is
-- somebody's own.
create function steadytext.is_vectorizer_index(p_index oid, p_column text, p_type text, p_distance text)
returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select exists (
        select from pg_index as i
        join pg_class as c on c.oid = i.indexrelid
        join pg_am as m on m.oid = c.relam
        join pg_opclass as o on o.oid = i.indclass[0]
        join pg_attribute as a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
        where i.indexrelid = p_index and i.indnatts = 1 and i.indpred is null and c.reloptions is null and m.amname = p_type and a.attname = p_column
            and o.opcname = case p_distance when 'cosine' then 'vector_cosine_ops' when 'l2' then 'vector_l2_ops' else 'vector_ip_ops' end)
$$;
comment on function steadytext.is_vectorizer_index(oid, text, text, text) is
    'Returns whether an index is the one that a vectorizer makes for the vectors in a column, and nobody''s own';

-- The indexes of others that go with the vectors: of their table, or those that have their column in them.
create function steadytext.others_indexes(p_id uuid)
returns table (index oid, schema text, name text, definition text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_definition record;
    v_place record;
    v_relation oid;
begin
    select v.index_type, v.distance into v_definition from @extschema@.steadytext_vectorizers as v where v.id = p_id;
    select p.* into v_place from steadytext.vectorizer_place(p_id) as p;
    v_relation := coalesce(v_place.destination, v_place.source)::oid;
    return query
    select i.indexrelid, n.nspname::text, c.relname::text, pg_get_indexdef(i.indexrelid)
    from pg_index as i
    join pg_class as c on c.oid = i.indexrelid
    join pg_namespace as n on n.oid = c.relnamespace
    where i.indrelid = v_relation and not i.indisprimary and i.indisvalid
        and not exists (select from pg_constraint as k where k.conindid = i.indexrelid and k.conrelid = v_relation)
        and not steadytext.is_vectorizer_index(
            i.indexrelid, coalesce(v_place.target_column, 'embedding'), v_definition.index_type, v_definition.distance)
        and (v_place.destination is not null or exists (
            select from pg_depend as d
            join pg_attribute as a on a.attrelid = v_relation and a.attnum = d.refobjsubid and a.attname = v_place.target_column
            where d.classid = 'pg_class'::regclass and d.objid = i.indexrelid
                and d.refclassid = 'pg_class'::regclass and d.refobjid = v_relation))
    order by i.indexrelid;
end
$$;
comment on function steadytext.others_indexes(uuid) is
    'Returns the indexes that somebody has made on the table of a vectorizer''s vectors, or over their column, except those of constraints and the vectorizer''s own';

create function steadytext.replacement_obstacles(p_old uuid, p_new uuid)
returns table (what text, remedy text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set jit = off
as $$
#variable_conflict use_column
declare
    v_place record;
    v_relation oid;
    v_owner oid;
    v_vector smallint;
    v_filled smallint[];
    v_dimensions integer;
    v_keeps_length boolean;
    v_again constant text := 'Drop it, and make it anew when the new vectors have taken their place.';
begin
    select v.owner_role::oid, v.dimensions, v.dimensions = n.dimensions into v_owner, v_dimensions, v_keeps_length
    from @extschema@.steadytext_vectorizers as v, @extschema@.steadytext_vectorizers as n
    where v.id = p_old and n.id = p_new;
    select p.* into v_place from steadytext.vectorizer_place(p_old) as p;
    v_relation := coalesce(v_place.destination, v_place.source)::oid;
    select array_agg(a.attnum), max(a.attnum) filter (where a.attname in ('embedding', v_place.target_column)) into v_filled, v_vector
    from pg_attribute as a
    where a.attrelid = v_relation and not a.attisdropped
        and a.attname = any (case when v_place.destination is not null then array['embedding'] else array[v_place.target_column, v_place.hash_column] end);
    return query
    select distinct pg_describe_object(
            case when d.classid = 'pg_rewrite'::regclass then 'pg_class'::regclass else d.classid end,
            case when d.classid = 'pg_rewrite'::regclass then d.made_on else d.objid end, d.objsubid), v_again
    from (
        select d.classid, d.objid, d.objsubid, d.refobjsubid, d.deptype,
            case d.classid
                when 'pg_rewrite'::regclass then (select r.ev_class from pg_rewrite as r where r.oid = d.objid)
                when 'pg_policy'::regclass then (select p.polrelid from pg_policy as p where p.oid = d.objid)
                when 'pg_trigger'::regclass then (select t.tgrelid from pg_trigger as t where t.oid = d.objid)
                when 'pg_constraint'::regclass then (select c.conrelid from pg_constraint as c where c.oid = d.objid)
                when 'pg_attrdef'::regclass then (select a.adrelid from pg_attrdef as a where a.oid = d.objid)
                when 'pg_statistic_ext'::regclass then (select s.stxrelid from pg_statistic_ext as s where s.oid = d.objid)
                when 'pg_class'::regclass then coalesce((select i.indrelid from pg_index as i where i.indexrelid = d.objid), d.objid)
            end as made_on
        from pg_depend as d
        where d.refclassid = 'pg_class'::regclass and d.refobjid = v_relation
                and (v_place.destination is not null and d.deptype = 'n' or v_place.destination is null and d.refobjsubid = any (v_filled))
            or v_place.destination is not null and d.deptype = 'n' and (
                d.refclassid = 'pg_type'::regclass
                    and d.refobjid in (select t.oid from pg_type as t where t.typrelid = v_relation union all select t.typarray from pg_type as t where t.typrelid = v_relation)
                or d.refclassid = 'pg_class'::regclass and d.refobjid in (select i.indexrelid from pg_index as i where i.indrelid = v_relation)
                or d.refclassid = 'pg_constraint'::regclass and d.refobjid in (select c.oid from pg_constraint as c where c.conrelid = v_relation))
    ) as d
    where case
            -- Of a table, what is its own goes with it, and is made anew on the new one. Of a column only its indexes are.
            when v_place.destination is not null then d.made_on is distinct from v_relation
            else not (d.classid = 'pg_class'::regclass and d.made_on = v_relation and d.objid <> v_relation
                or d.classid = 'pg_attrdef'::regclass and exists (
                    select from pg_attrdef as a where a.oid = d.objid and a.adnum = d.refobjsubid and a.adrelid = v_relation)
                or d.classid = 'pg_constraint'::regclass and exists (select from pg_constraint as c where c.oid = d.objid and c.contype = 'n')
                or d.classid = 'pg_trigger'::regclass and exists (
                    select from pg_trigger as t
                    where t.oid = d.objid and t.tgfoid in ('steadytext.note_row()'::regprocedure, 'steadytext.mark_column()'::regprocedure)))
        end
        -- Views of the owner's read the new vectors by a definition that is the same, if their columns keep their types.
        and not (d.classid = 'pg_rewrite'::regclass and exists (
            select from pg_class as c
            where c.oid = d.made_on and c.relkind = 'v' and pg_has_role(v_owner, c.relowner, 'usage')
                and has_schema_privilege(v_owner, c.relnamespace, 'create')
                and (v_keeps_length or not exists (
                    select from pg_attribute as a
                    join pg_attribute as o on o.attrelid = v_relation and o.attnum = v_vector and o.atttypid = a.atttypid
                    where a.attrelid = c.oid and a.atttypmod = v_dimensions))));
    return query
    select pg_describe_object('pg_class'::regclass, o.index, 0), v_again
    from steadytext.others_indexes(p_old) as o
    join pg_index as i on i.indexrelid = o.index and (i.indexprs is not null or i.indpred is not null)
    where not v_keeps_length and exists (
        select from pg_depend as d
        where d.classid = 'pg_class'::regclass and d.objid = o.index
            and d.refclassid = 'pg_class'::regclass and d.refobjid = v_relation and d.refobjsubid = v_vector);
    if v_place.destination is not null then
        return query
        select format('column %I of table %s', a.attname, v_place.destination), 'Drop it, and keep its values in a table of your own.'
        from pg_attribute as a
        where a.attrelid = v_relation and a.attnum > cardinality(v_place.key_columns) + 5 and not a.attisdropped and a.attgenerated = ''
        union all
        select format('publication %I', p.pubname), format('ALTER PUBLICATION %I DROP TABLE %s, and ADD TABLE when the new vectors have taken their place.', p.pubname, v_place.destination)
        from pg_publication_rel as r
        join pg_publication as p on p.oid = r.prpubid
        where r.prrelid = v_relation
        union all
        select format('table %s, which it inherits from', i.inhparent::regclass), format('ALTER TABLE %s NO INHERIT %s.', v_place.destination, i.inhparent::regclass)
        from pg_inherits as i
        where i.inhrelid = v_relation;
    end if;
end
$$;
comment on function steadytext.replacement_obstacles(uuid, uuid) is
    'Returns what keeps the vectors of an altered vectorizer from taking the place of the old ones, as it would be lost or go on reading the old ones, and what to do about it';
