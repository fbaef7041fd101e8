-- The rows of docs/functions.md: every function of the API with its parameters, its result and its comment. scripts/test-docs.sh compares
-- them with the page, `make docs-functions` writes them into it.
\set QUIET 1
\pset format unaligned
\pset tuples_only true
select format('| `%s(%s)` → `%s` | %s |', p.proname,
    regexp_replace(regexp_replace(replace(pg_catalog.pg_get_function_arguments(p.oid), ' DEFAULT ', ' = '),
        'NULL::[a-z ]+(\[\])?', 'NULL', 'g'), '(''[^'']*'')::[a-z]+', '\1', 'g'),
    pg_catalog.pg_get_function_result(p.oid),
    replace(pg_catalog.obj_description(p.oid, 'pg_proc'), '|', '\|'))
from pg_catalog.pg_proc as p
join pg_catalog.pg_depend as d
    on d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass and d.objid = p.oid and d.deptype = 'e'
join pg_catalog.pg_extension as e
    on d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass and e.oid = d.refobjid and e.extname = 'pg_steadytext'
where p.proname like 'steadytext\_%'
order by p.proname collate "C", pg_catalog.pg_get_function_arguments(p.oid) collate "C";
