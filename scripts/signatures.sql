-- Parameters in the signatures of a page that the functions do not have: a line for each parameter with a type that a signature in variable :page
-- names, and that no function of this name has. Signatures may leave parameters out ("… the same …").
\set QUIET 1
\pset format unaligned
\pset tuples_only true
with page as (
    select :'page'::text as content
),
signatures as (
    select m.parts[1] as name, m.parts[2] as arguments
    from page as p
    cross join regexp_matches(p.content, '\m((?:steadytext|st)_[a-z_]+)\(((?:[^()]|\([^()]*\))*)\)', 'g') as m(parts)
),
named as (
    select distinct s.name, a.parts[1] as parameter
    from signatures as s
    cross join regexp_split_to_table(s.arguments, ',') as l(argument)
    cross join regexp_matches(l.argument,
        '^\s*(?:variadic )?"?([a-z_]+)"? (?:text|bigint|int|integer|bool|boolean|float8|double precision|jsonb|json|uuid|vector|regclass)\M') as a(parts)
)
select format('%s has no parameter %s', n.name, n.parameter)
from named as n
where not exists (
    select from pg_catalog.pg_proc as p
    where p.proname = n.name
        -- Aggregates have parameters without names.
        and (n.parameter = any (p.proargnames) or p.prokind = 'a'))
union all
-- So that a page in another form does not pass for one without mistakes.
select 'there are hardly any signatures' where (select count(*) from named) < 100
order by 1;
