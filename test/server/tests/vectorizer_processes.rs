//! The processes that work for vectorizers, and what is noted for them: nobody's code stops the others, and
//! nothing that a statement changes is lost, however much it is.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;

use steadytext_test_server::definitions::{prepared, rest};
use steadytext_test_server::{Options, Session, wait_until};

/// Vectors that are not those of their rows, of a table with chunks and of one with a column.
const WRONG: &str = "
    select (select count(*) from chunked as s full join chunked_body_embedding as d using (id)
            where d.chunk is distinct from s.body or d.embedding::text is distinct from steadytext_embed(s.body)::text)
        + (select count(*) from inside as s where s.embedding::text is distinct from steadytext_embed(s.body)::text)";

const TABLES: &str = "
    create table chunked (id int primary key, body text);
    create table inside (id int primary key, body text, embedding vector(256));
    select steadytext_create_vectorizer('chunked', array['body'], index => 'none');
    select steadytext_create_vectorizer('inside', array['body'], target_column => 'embedding', index => 'none')";

/// Ticks of processor time that a process has used.
fn ticks(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process is there");
    let fields: Vec<&str> = stat.rsplit_once(')').expect("a name").1.split_whitespace().collect();
    fields[11..=12].iter().map(|ticks| ticks.parse::<u64>().expect("a number")).sum()
}

#[test]
fn a_worker_beside_vectorizers_sleeps_while_nothing_is_to_be_done() {
    let (_cluster, mut session) = prepared(Options::new());
    session.run("select steadytext_config_set('worker_poll_interval', '3600')");
    session.run(TABLES);
    session.run("insert into chunked values (1, 'words'); insert into inside values (1, 'words')");
    rest(&mut session);
    let worker = session.worker_pid();
    // The last results may still be written down.
    wait_until("it does nothing", || {
        let before = ticks(worker);
        std::thread::sleep(std::time::Duration::from_secs(2));
        ticks(worker) - before <= 2
    });
}

#[test]
fn code_that_catches_its_cancel_stops_nobody_else() {
    let (cluster, mut session) = prepared(Options::new());
    session.run(
        "create role evil login; grant steadytext_user to evil; create schema evil authorization evil;
         create table other (id int primary key, body text); insert into other values (1, 'words');
         select steadytext_create_vectorizer('other', array['body'], index => 'none')",
    );
    let mut evil = cluster.session_as("postgres", "evil");
    evil.run(
        "create table evil.t (id int primary key, body text);
         select steadytext_create_vectorizer('evil.t', array['body'], name => 'evil', index => 'none');
         create function evil.stay() returns trigger language plpgsql as $$
             begin
                 loop
                     begin
                         perform pg_sleep(3600);
                     exception when query_canceled then
                         null;
                     end;
                 end loop;
             end $$",
    );
    rest(&mut session);
    evil.run(
        "create trigger stay before insert on evil.t_body_embedding for each row execute function evil.stay();
         insert into evil.t values (1, 'text')",
    );
    wait_until("the trigger is there to stay", || {
        session.one("select exists (select from pg_stat_activity where backend_type = 'pg_steadytext vectorizer' and wait_event = 'PgSleep')")
    });
    session.run("update other set body = 'other words'");
    wait_until("the other vectorizer goes on", || {
        session.list::<String>("select chunk from other_body_embedding") == ["other words"]
    });
    let (state, problem): (String, String) = session
        .query_one(
            "select state, coalesce(problem, '') from steadytext_vectorizer_status where name = 'evil'",
            &[],
        )
        .map(|row| (row.get(0), row.get(1)))
        .unwrap();
    assert!(state == "broken" && problem.contains("catches the cancel"), "{state}: {problem}");
    // It is not the fast process's any more, so that others do not wait for it again.
    session.run(
        "update steadytext_vectorizer_state set retry_at = null where problem is not null;
         update steadytext_vectorizer_slow_owners set retry_at = now()",
    );
    wait_until("it is tried again by the slow process", || {
        session.one("select exists (select from pg_stat_activity where backend_type = 'pg_steadytext slow vectorizer' and wait_event = 'PgSleep')")
    });
    session.run("update other set body = 'more words'");
    wait_until("and the other one goes on meanwhile", || {
        session.list::<String>("select chunk from other_body_embedding") == ["more words"]
    });
    assert!(session.one::<bool>(
        "select exists (select from pg_stat_activity where backend_type = 'pg_steadytext slow vectorizer' and wait_event = 'PgSleep')"
    ));
    // Its work is not lost.
    assert!(session.one::<i64>("select count(*) from steadytext_vectorizer_batches") > 0);
    // A new definition of the same owner is where the old one was.
    evil.run(
        "create table evil.u (id int primary key, body text);
         select steadytext_create_vectorizer('evil.u', array['body'], name => 'another', index => 'none')",
    );
    assert!(session.one::<bool>(
        "select steadytext.is_for_slow_process(false, null, owner_role::oid) from steadytext_vectorizers where name = 'another'"
    ));
}

#[test]
fn an_index_is_built_while_others_are_embedded() {
    let (cluster, mut session) = prepared(Options::new());
    session.run(
        "create table quick (id int primary key, body text);
         create table large (id int primary key, body text);
         select steadytext_create_vectorizer('quick', array['body'], index => 'none');
         select steadytext_create_vectorizer('large', array['body']);
         select steadytext_pause_vectorizer('large_body');
         insert into large select i, 'row ' || i from generate_series(1, 20) as i",
    );
    rest_of(&mut session, "quick_body");
    // A process that makes an index of it sleeps in that from now on.
    session.run(
        "create function stop_index() returns event_trigger language plpgsql as $$
             begin
                 while exists (select from pg_stat_activity where pid = pg_backend_pid() and backend_type ~ 'vectorizer')
                     and exists (select from pg_locks where locktype = 'advisory' and objid = 7)
                 loop
                     perform pg_stat_clear_snapshot(), pg_sleep(0.01);
                 end loop;
             end $$;
         create event trigger stop_index on ddl_command_end when tag in ('CREATE INDEX') execute function stop_index()",
    );
    let mut holder = cluster.session("postgres");
    holder.run("select pg_advisory_lock(7)");
    session.run("select steadytext_resume_vectorizer('large_body')");
    let waiting = "select exists (select from pg_stat_activity where backend_type ~ 'vectorizer' and wait_event = 'PgSleep')";
    wait_until("the index is being made", || session.one(waiting));
    session.run("insert into quick values (1, 'text')");
    wait_until("others are embedded", || {
        session.one::<i64>("select count(*) from quick_body_embedding") == 1
    });
    assert!(!session.one::<bool>("select is_indexed from steadytext_vectorizer_state as s join steadytext_vectorizers as v on v.id = s.vectorizer_id where v.name = 'large_body'"));
    holder.run("select pg_advisory_unlock(7)");
    wait_until("there is an index", || {
        session.one("select count(*) = 2 from pg_index where indrelid = 'large_body_embedding'::regclass")
    });
}

fn rest_of(session: &mut Session, name: &str) {
    wait_until("it is idle", || {
        session
            .list::<String>(&format!("select state from steadytext_vectorizer_status where name = '{name}'"))
            == ["idle"]
    });
}

#[test]
fn nothing_that_a_large_statement_changes_is_lost() {
    let (_cluster, mut session) = prepared(Options::new().set("max_prepared_transactions", 2));
    session.run(TABLES);
    rest(&mut session);
    session.run("select steadytext_pause_vectorizer('chunked_body'); select steadytext_pause_vectorizer('inside_body')");
    let noted = "select coalesce(sum(key_count), 0)::bigint from steadytext_vectorizer_work";
    session.run("insert into chunked select i, 'row ' || i from generate_series(1, 1000) as i");
    assert_eq!(session.one::<i64>(noted), 1000);
    assert!(
        session.one::<i64>("select count(*) from steadytext_vectorizer_work") < 100,
        "many keys are one row"
    );
    // Changes that are rolled back are not noted, and those around them are.
    session.run(
        "begin;
         insert into chunked select i, 'row ' || i from generate_series(1001, 1100) as i;
         savepoint a;
         insert into chunked select i, 'never' from generate_series(2001, 2400) as i;
         rollback to a;
         savepoint b;
         insert into chunked select i, 'row ' || i from generate_series(1101, 1400) as i;
         savepoint c;
         insert into inside select i, 'inside ' || i from generate_series(1, 300) as i;
         release b;
         set transaction read only;
         commit",
    );
    assert_eq!(session.one::<i64>(noted), 1700);
    session.run(
        "do $$ begin
             for n in 1..60 loop
                 begin
                     insert into chunked values (3000 + n, 'row of a block');
                     if n % 2 = 0 then raise exception 'no'; end if;
                 exception when raise_exception then null;
                 end;
             end loop;
         end $$",
    );
    assert_eq!(session.one::<i64>(noted), 1730);
    session.run(
        "begin; update chunked set body = body || ' once more' where id <= 100; prepare transaction 'two'",
    );
    assert_eq!(session.one::<i64>(noted), 1730);
    session.run("commit prepared 'two'");
    assert_eq!(session.one::<i64>(noted), 1830);
    session.run("begin; delete from chunked where id > 1350; rollback; delete from chunked where id between 1200 and 1300");
    assert_eq!(session.one::<i64>(noted), 1931);
    assert_eq!(
        session.one::<i64>("select pending from steadytext_vectorizer_status where name = 'inside_body'"),
        300
    );
    session.run("select steadytext_resume_vectorizer('chunked_body'); select steadytext_resume_vectorizer('inside_body')");
    rest(&mut session);
    assert_eq!(session.one::<i64>("select count(*) from chunked_body_embedding"), 1400 - 101 + 30);
    assert_eq!(session.one::<i64>(WRONG), 0);
}

#[test]
fn a_vector_in_a_column_is_that_of_its_text_whoever_has_written_it() {
    let (_cluster, mut session) = prepared(Options::new());
    session.run(TABLES);
    session.run("insert into inside select i, 'inside ' || i from generate_series(1, 5) as i; insert into inside values (6, ' ')");
    rest(&mut session);
    let wrong = "select count(*) from inside where embedding::text is distinct from case when body ~ '\\S' then steadytext_embed(body)::text end";
    assert_eq!(session.one::<i64>(wrong), 0);
    // As a program does that writes back a row as it has read it; another one's vector; one of a row without
    // a text.
    session
        .run("create table before as select * from inside; update inside set body = 'changed' where id = 1");
    rest(&mut session);
    session.run("select steadytext_pause_vectorizer('inside_body')");
    session.run(
        "update inside as i set embedding = b.embedding from before as b where b.id = 1 and i.id = 1;
         update inside as i set embedding = b.embedding, embedding_hash = b.embedding_hash from before as b where b.id = 3 and i.id = 2;
         update inside set embedding = steadytext_embed('foreign') where id = 6;
         update inside set embedding = null where id = 4",
    );
    assert_eq!(session.one::<i64>(wrong), 4);
    session.run("select steadytext_resume_vectorizer('inside_body')");
    rest(&mut session);
    assert_eq!(session.one::<i64>(wrong), 0);
    // A change that no trigger has seen is found by a search.
    session.run(
        "alter table inside disable trigger user; update inside set embedding = steadytext_embed('foreign') where id = 5;
         alter table inside enable trigger user",
    );
    session.run("vacuum full inside");
    wait_until("it is found", || session.one::<i64>(wrong) == 0);
    // Rows without a text are skipped, and no failure.
    let counts: (i64, i64, f64, i64) = session
        .query_one("select failed, skipped, coverage, stale from steadytext_vectorizer_status where name = 'inside_body'", &[])
        .map(|row| (row.get(0), row.get(1), row.get(2), row.get(3)))
        .unwrap();
    assert_eq!(counts, (0, 1, 1.0, 0));
    assert_eq!(session.one::<i64>("select count(*) from steadytext_vectorizer_errors"), 0);
    // An altered one changes places with both its columns.
    session.run("select steadytext_alter_vectorizer('inside_body', format => 'Inside: $chunk')");
    wait_until("it has changed places", || {
        session.one("select not exists (select from steadytext_vectorizers where replaces is not null)")
    });
    rest(&mut session);
    assert_eq!(
        session.list::<String>("select attname::text from pg_attribute where attrelid = 'inside'::regclass and attnum > 0 and not attisdropped order by 1"),
        ["body", "embedding", "embedding_hash", "id"]
    );
    assert!(session.one::<bool>("select bool_and(embedding::text = steadytext_embed('Inside: ' || body)::text) from inside where id < 6"));
    session.run("select steadytext_drop_vectorizer('inside_body')");
    assert_eq!(session.one::<i64>("select count(*) from pg_attribute where attrelid = 'inside'::regclass and attname = 'embedding_hash' and not attisdropped"), 0);
}

#[test]
fn keys_are_found_again_whatever_the_settings_of_who_writes() {
    let (_cluster, mut session) = prepared(Options::new());
    session.run(
        "create table odd (a float8, b tstzrange, c interval, d date[], e real[], body text, primary key (a, b, c, d, e));
         select steadytext_create_vectorizer('odd', array['body'], index => 'none')",
    );
    rest(&mut session);
    session.run(
        "set extra_float_digits = -3; set datestyle = 'SQL, DMY'; set intervalstyle = 'sql_standard'; set timezone = 'America/New_York';
         insert into odd values (0.1::float8 + 0.2, '[2026-02-01 01:02:03.456789+00,2026-03-04 00:00+00)', '-1 year 2 months -3 days 04:05:06.7',
             array[date '2026-03-04'], array[1::real / 3], 'text')",
    );
    rest(&mut session);
    let whole = "select count(*) from odd join odd_body_embedding using (a, b, c, d, e) where body = chunk";
    assert_eq!(session.one::<i64>(whole), 1);
    session.run("update odd set body = 'another text'");
    rest(&mut session);
    assert_eq!(session.one::<i64>(whole), 1);
    session.run("delete from odd");
    rest(&mut session);
    assert_eq!(session.one::<i64>("select count(*) from odd_body_embedding"), 0);
}

#[test]
fn a_table_whose_rows_keep_changing_is_indexed_and_gets_its_new_vectors() {
    let (cluster, mut session) = prepared(Options::new());
    session.run(
        "create table busy (id int primary key, body text);
         insert into busy select i, 'row ' || i from generate_series(1, 50) as i",
    );
    let address = cluster.address();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        // Also where the test fails.
        struct End<'a>(&'a AtomicBool);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.store(true, SeqCst);
            }
        }
        let _end = End(&is_over);
        for client in 0..2 {
            let (address, is_over) = (&address, &is_over);
            scope.spawn(move || {
                let mut session = address.session("postgres", "postgres").unwrap();
                for round in 0.. {
                    if is_over.load(SeqCst) {
                        break;
                    }
                    // There is always something noted, and never more than can be done.
                    let id = 1 + (round * 3 + client) % 50;
                    session
                        .batch_execute(&format!(
                            "update busy set body = 'row {round}'
                             where id = {id} and (select count(*) from steadytext_vectorizer_work) < 50"
                        ))
                        .unwrap();
                }
            });
        }
        session.run("select steadytext_create_vectorizer('busy', array['body'])");
        wait_until("there is an index", || {
            session.one("select count(*) = 2 from pg_index where indrelid = 'busy_body_embedding'::regclass")
        });
        session.run("select steadytext_alter_vectorizer('busy_body', format => 'Busy: $chunk')");
        wait_until("the new vectors have taken their place", || {
            session.one("select not exists (select from steadytext_vectorizers where replaces is not null)")
        });
    });
    rest(&mut session);
    assert_eq!(
        session.one::<i64>(
            "select count(*) from busy as b full join busy_body_embedding as e using (id)
             where e.embedding::text is distinct from steadytext_embed('Busy: ' || b.body)::text"
        ),
        0
    );
}
