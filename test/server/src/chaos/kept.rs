//! A table in the storm that has a vectorizer and an enrichment: whatever has happened, in the end every row
//! has exactly the vectors of its text, and the value that the call gives for it.

use rand::Rng;
use rand::rngs::StdRng;

use super::STILLNESS;
use crate::cluster::Cluster;
use crate::definitions::IS_AT_REST;
use crate::session::Session;
use crate::wait::eventually;

/// The table, which is there before the extension.
const TABLE: &str = "create table kept (id integer primary key, body text)";

/// Its definitions, where there are none: those that dropped the extension left vectors and values behind.
const ESTABLISH: &str = "
do $$
begin
    if not exists (select from steadytext_vectorizers where name = 'kept' and kind = 'vectorizer') then
        drop table if exists kept_body_embedding;
        perform steadytext_create_vectorizer('kept', array['body'], name => 'kept', index => 'none');
    end if;
    if not exists (select from steadytext_vectorizers where name = 'kept' and kind = 'enrichment') then
        alter table kept drop column if exists size;
        perform steadytext_create_enrichment('kept', 'size', '$body', 'generate_choice', '{\"choices\": [\"large\", \"small\"]}', name => 'kept');
    end if;
end
$$";

/// Rows without the vectors that they should have, and vectors that are nobody's.
const WRONG: &str = "
select format('row %s: %s, vector of %s', coalesce(s.id, d.id), s.body, d.chunk)
from kept as s
full join kept_body_embedding as d on d.id = s.id
where s.body ~ '\\S' and (d.chunk is distinct from s.body or d.embedding::text is distinct from steadytext_embed(s.body)::text)
    or coalesce(s.body, '') !~ '\\S' and d.id is not null";

/// Rows without the value that they should have.
const WRONG_VALUES: &str = "
select format('row %s: %s, %s', id, body, size)
from kept
where size is distinct from case when body ~ '\\S' then steadytext_generate_choice(body, array['large', 'small']) end";

/// Makes the table and its definitions.
pub(super) fn prepare(session: &mut Session) {
    session.run(TABLE);
    session.run(ESTABLISH);
}

/// A change of some rows. Whether it succeeds is all the same.
pub(super) fn change(session: &mut Session, random: &mut StdRng) {
    let id = random.random_range(0..200);
    let text = random.random_range(0..1000);
    let many = random.random_range(20..60);
    let sql = match random.random_range(0..12) {
        0 => format!("delete from kept where id between {id} and {id} + 5"),
        1 => format!("update kept set body = ' ' where id = {id}"),
        // So many that their keys are gathered.
        2 | 3 => format!(
            "insert into kept (id, body) select i, 'text ' || i || ' of {text}' from generate_series({id}, {id} + {many}) as i
             on conflict (id) do update set body = excluded.body"
        ),
        4 => format!(
            "begin; savepoint here;
             insert into kept (id, body) select i, 'never' from generate_series(1000, 1000 + {many}) as i on conflict do nothing;
             rollback to here; update kept set body = body || '.' where id = {id}; commit"
        ),
        5 => format!("update kept set id = id + 300 where id = {id}"),
        6 => ESTABLISH.to_owned(),
        7 => format!("update kept set size = null where id between {id} and {id} + 5"),
        _ => format!("insert into kept (id, body) values ({id}, 'text {text}') on conflict (id) do update set body = excluded.body"),
    };
    if session.batch_execute(&sql).is_err() {
        session.batch_execute("rollback").ok();
    }
}

/// The faults that remain when everything is quiet, one line each.
pub(super) fn settle(cluster: &Cluster) -> Vec<String> {
    let attempt = |sql: &str| -> Option<()> { cluster.session("postgres").batch_execute(sql).ok() };
    let established = eventually(STILLNESS, || attempt(ESTABLISH)).and_then(|()| {
        // Rows that failed because of the storm itself are recorded as failures; they are tried again.
        eventually(STILLNESS, || attempt("select steadytext_retry_vectorizer('kept'), steadytext_retry_enrichment('kept'); insert into kept (id, body) values (9999, 'last') on conflict do nothing"))
    });
    if established.is_none() {
        return vec!["the vectorized table takes no rows any more".to_owned()];
    }
    let rests = eventually(2 * STILLNESS, || {
        let rests: bool = cluster.session("postgres").query_one(IS_AT_REST, &[]).ok()?.get(0);
        rests.then_some(())
    });
    let mut session = cluster.session("postgres");
    let mut wrong: Vec<String> = session.list(WRONG);
    wrong.extend(session.list::<String>(WRONG_VALUES));
    if rests.is_none() {
        for kind in ["vectorizer", "enrichment"] {
            let status = format!(
                "select format('the {kind} does not come to rest: %s', s) from steadytext_{kind}_status as s"
            );
            wrong.extend(session.list::<String>(&status));
        }
    }
    wrong
}
