//! Vectorizers: at rest every row has exactly the vectors of its present text, whatever has happened before.

use steadytext_test_server::definitions::{Changes, Dice, IS_AT_REST, prepared, process, rest};
use steadytext_test_server::{Cluster, Options, Session, Signal, signal, wait_until};

/// Three tables: a plain one with a table of chunks, a partitioned one with a key of two columns, and one
/// whose vectors are in a column of its own.
const TABLES: &str = "
    create table plain (id bigint primary key, title text, body text, touched int default 0);
    create table parted (part int, id text, body text, primary key (part, id)) partition by list (part);
    create table parted_1 partition of parted for values in (1);
    create table parted_2 partition of parted default;
    create table inside (id uuid primary key, body text, embedding vector(256));
    insert into plain (id, title, body) select i, 'there ' || i, 'before' from generate_series(1, 20) as i;
    select steadytext_create_vectorizer('plain', array['title', 'body'], format => '$title: $chunk', chunk_size => 16);
    select steadytext_create_vectorizer('parted', array['body'], index => 'none');
    select steadytext_create_vectorizer('inside', array['body'], target_column => 'embedding');
";

/// The rows that do not have what they should, and the vectors whose row is gone.
const WRONG: &str = "
    select format('plain, without its vector: %s', s)
    from plain as s
    where s.body ~ '\\S' and not exists (
        select from plain_title_embedding as d
        where d.id = s.id and d.content_hash = sha256(convert_to(row(s.title, s.body)::text, 'UTF8')) and d.seq = 1)
    union all
    select format('plain, of another text than its row: %s, %s, %s, %s', d.id, d.seq, d.chunk, (select s from plain as s where s.id = d.id))
    from plain_title_embedding as d
    where not exists (
        select from plain as s
        where d.id = s.id and d.content_hash = sha256(convert_to(row(s.title, s.body)::text, 'UTF8')) and s.body ~ '\\S')
    union all
    select format('plain, another vector: %s, %s, %s', s, d.seq, d.chunk)
    from plain as s join plain_title_embedding as d using (id)
    where d.embedding::text <> steadytext_embed(concat(s.title, ': ', d.chunk))::text or position(d.chunk in s.body) = 0
    union all
    select format('parted: %s, %s, %s', s, d.chunk, d.embedding::text <> steadytext_embed(s.body)::text)
    from parted as s full join parted_body_embedding as d using (part, id)
    where s.body ~ '\\S' and (d.chunk is distinct from s.body or d.embedding::text <> steadytext_embed(s.body)::text)
        or coalesce(s.body, '') !~ '\\S' and d.chunk is not null
    union all
    select format('inside: %s, %s, %s', s.id, s.body, s.embedding is not null)
    from inside as s
    where case when s.body ~ '\\S' then s.embedding is null or s.embedding::text <> steadytext_embed(s.body)::text
        else s.embedding is not null end";

/// A change of one of the tables.
fn change(dice: &mut Dice) -> String {
    let (id, other, text) = (dice.roll(40), dice.roll(40), dice.roll(1000));
    let part = 1 + dice.roll(2);
    let body = match dice.roll(8) {
        0 => "'  '".to_owned(),
        1 => "null".to_owned(),
        2 => format!("repeat('A tuple and a page. ', 40) || '{text}'"),
        _ => format!("'text {text}'"),
    };
    // Rows of a partition have short texts, so that each has one chunk.
    let short = if body.starts_with("repeat") { format!("'short {text}'") } else { body.clone() };
    match dice.roll(19) {
        // A session that alters a table waits for others a moment, and no longer.
        16 if dice.roll(4) == 0 => format!(
            "set local lock_timeout = '500ms'; alter table {table} add column if not exists spare int default {text}",
            table = ["plain", "parted", "inside"][dice.roll(3) as usize]
        ),
        17 if dice.roll(4) == 0 => format!(
            "set local lock_timeout = '500ms'; alter table {table} drop column if exists spare",
            table = ["plain", "parted", "inside"][dice.roll(3) as usize]
        ),
        18 if dice.roll(12) == 0 => match dice.roll(3) {
            0 => format!(
                "select steadytext_alter_vectorizer('plain_title', chunk_size => {})",
                10 + dice.roll(10)
            ),
            1 => "select steadytext_alter_vectorizer('parted_body', format => '$chunk')".to_owned(),
            _ => "select steadytext_reembed('inside_body')".to_owned(),
        },
        0 | 1 => format!(
            "insert into plain (id, title, body) values ({id}, 'title', {body})
             on conflict (id) do update set body = excluded.body"
        ),
        2 => format!("update plain set body = {body} where id = {id}"),
        3 => format!("update plain set title = 'title {text}' where id between {id} and {other}"),
        4 => format!("update plain set touched = touched + 1 where id between {id} and {other}"),
        5 => format!(
            "update plain set id = {other} where id = {id} and not exists (select from plain where id = {other})"
        ),
        6 => format!("delete from plain where id = {id}"),
        7 | 8 => format!(
            "insert into parted values ({part}, '{id}', {short}) on conflict (part, id) do update set body = excluded.body"
        ),
        9 => format!(
            "update parted set part = 3 - part where id = '{id}' and part = {part}
                 and not exists (select from parted where id = '{id}' and part = 3 - {part})"
        ),
        10 => format!("delete from parted_{part} where id = '{id}'"),
        11 if dice.roll(6) == 0 => format!("truncate parted_{part}"),
        12 if dice.roll(6) == 0 => "truncate plain".to_owned(),
        13 => format!("delete from inside where id = md5('{id}')::uuid"),
        14 => format!("update inside set body = {short} where id = md5('{id}')::uuid"),
        _ => format!(
            "insert into inside values (md5('{id}')::uuid, {short}) on conflict (id) do update set body = excluded.body"
        ),
    }
}

#[test]
fn after_random_changes_and_crashes_every_row_has_exactly_the_vectors_of_its_text() {
    let (mut cluster, mut session) = prepared(Options::new());
    session.run(TABLES);
    let address = cluster.address();
    let changes = Changes::new(8, 2000, change);
    println!("OPERATIONS={} SEED={}", changes.operations, changes.seed);
    changes.run(&address, || {
        changes.wait_for(20);
        // The process alone ends in good order, and is started again.
        let first = process(&mut session);
        assert!(signal(first, Signal::TERM));
        wait_until("it is another process", || process(&mut session) != first);
        // Partitions that go and come fire no trigger, and neither does a table that is written anew.
        let ddl = "alter table parted detach partition parted_1;
             insert into parted_1 (part, id, body) values (1, 'apart', 'while it was apart') on conflict do nothing;
             delete from parted_1 where id in ('1', '2', '3');
             alter table parted attach partition parted_1 for values in (1);
             alter table plain add column more int default random() * 100;
             alter table inside add column more text; alter table inside drop column more";
        // It may be chosen to end a deadlock, and the partition may have other columns by the time it comes
        // back.
        wait_until("the tables are changed", || session.batch_execute(ddl).is_ok());
        changes.wait_for(40);
        cluster.crash(process(&mut session), Signal::KILL);
        session = cluster.session("postgres");
        changes.wait_for(60);
        cluster.crash(session.worker_pid(), Signal::KILL);
        session = cluster.session("postgres");
        // Others may be altering it.
        wait_until("it is altered", || {
            session.batch_execute("select steadytext_alter_vectorizer('plain_title', chunk_size => 12)").is_ok()
        });
        changes.wait_for(80);
        cluster.restart();
        session = cluster.session("postgres");
    });
    // Whatever was truncated last.
    session.run(
        "insert into plain (id, title, body) select i, 'title', 'text ' || i from generate_series(1, 5) as i on conflict do nothing",
    );
    rest(&mut session);
    assert_eq!(
        session.list::<String>(WRONG),
        Vec::<String>::new(),
        "OPERATIONS={} SEED={} {:?}",
        changes.operations,
        changes.seed,
        session.list::<String>("select format('%s', e) from steadytext_vectorizer_errors as e")
    );
    let unexpected: Vec<String> = session
        .list("select format('%s', e) from steadytext_vectorizer_errors as e where error_code <> '22004'");
    assert_eq!(unexpected, Vec::<String>::new());
    assert!(session.one::<i64>("select count(*) from plain") > 0);
    // The queue has only requests of definitions that were altered once more: cancelled, or answered before
    // that.
    assert_eq!(
        session.one::<i64>(
            "select count(*) from steadytext_queue where status not in ('cancelled', 'completed')"
        ),
        0
    );
    cluster.restart();
    session = cluster.session("postgres");
    session.run("insert into plain (id, title, body) values (1000, 'after', 'the restart')");
    rest(&mut session);
    assert_eq!(session.list::<String>(WRONG), Vec::<String>::new());
}

#[test]
fn searches_see_the_old_vectors_until_the_new_ones_are_whole() {
    let (_cluster, mut session) = prepared(Options::new());
    session.run(
        "create table plain (id int primary key, body text);
         insert into plain select i, 'row ' || i from generate_series(1, 400) as i;
         select steadytext_create_vectorizer('plain', array['body'])",
    );
    rest(&mut session);
    session.run(
        "grant select on plain_body_embedding to pg_monitor;
         alter table plain_body_embedding enable row level security;
         create policy few on plain_body_embedding as permissive for select to pg_monitor using (id in (select p.id from plain as p where p.id < 10));
         grant select on plain to pg_monitor;
         comment on table plain_body_embedding is 'mine';
         select steadytext_create_text_index('plain_body', 'simple')",
    );
    let seen_by_others = |session: &mut Session| -> i64 {
        session.run("set role pg_monitor");
        let count = session.one("select count(*) from plain_body_embedding");
        session.run("reset role");
        count
    };
    assert_eq!(seen_by_others(&mut session), 9);
    let before: i64 = session.one("select count(*) from plain_body_embedding");
    assert_eq!(before, 400);
    session.run("select steadytext_alter_vectorizer('plain_body', format => 'Row: $chunk')");
    let mut seen = Vec::new();
    wait_until("the new vectors are there", || {
        seen.push((
            session.one::<i64>("select count(*) from plain_body_embedding"),
            session.one::<bool>("select embedding::text = steadytext_embed('row 7')::text from plain_body_embedding where id = 7"),
        ));
        session.one(IS_AT_REST)
    });
    assert!(seen.iter().all(|(rows, _)| *rows == 400), "{seen:?}");
    assert!(seen.first().is_some_and(|(_, old)| *old), "they changed places at once");
    assert!(session.one::<bool>(
        "select embedding::text = steadytext_embed('Row: row 7')::text from plain_body_embedding where id = 7"
    ));
    // It is visible to the same roles with the same rows, and the owner's objects are there.
    assert_eq!(seen_by_others(&mut session), 9);
    assert_eq!(
        session.list::<String>(
            "select concat_ws(' ', obj_description('plain_body_embedding'::regclass), (steadytext.text_index('plain_body_embedding', 'chunk')).config)"
        ),
        ["mine simple"]
    );
    assert_eq!(session.one::<i64>("select count(*) from pg_trigger where tgrelid = 'plain'::regclass"), 3);
}

#[test]
fn rows_that_go_unseen_just_before_new_vectors_take_their_place_leave_none() {
    let (cluster, mut session) = prepared(Options::new());
    session.run(
        "create table parted (part int, id int, body text, primary key (part, id)) partition by list (part);
         create table parted_1 partition of parted for values in (1);
         create table parted_2 partition of parted default;
         insert into parted select 1 + i % 2, i, 'row ' || i from generate_series(1, 20) as i;
         select steadytext_create_vectorizer('parted', array['body'], index => 'none')",
    );
    rest(&mut session);
    // From now on the processes see no more than what is noted: they look around when they start.
    session.run("select steadytext_config_set('worker_poll_interval', '120')");
    let restart = |session: &mut Session| {
        let first = process(session);
        assert!(signal(first, Signal::TERM));
        wait_until("it is another process", || process(session) != first);
    };
    restart(&mut session);
    rest(&mut session);
    // The table of the old vectors cannot be dropped while somebody reads it.
    let mut reader = cluster.session("postgres");
    reader.run("begin; select count(*) from parted_body_embedding");
    session.run("select steadytext_alter_vectorizer('parted_body', format => 'Row: $chunk')");
    wait_until("the new vectors are whole, and wait for their place", || {
        session.one(
            "select exists (select from steadytext_vectorizers as v join steadytext_vectorizer_state as s on s.vectorizer_id = v.id
             where v.replaces is not null and s.is_ready and s.is_indexed and s.retry_at is not null)",
        )
    });
    // Triggers say nothing of a partition that is emptied.
    session.run("truncate parted_1");
    reader.run("rollback");
    wait_until("they have taken it", || {
        session.one("select not exists (select from steadytext_vectorizers where replaces is not null)")
    });
    restart(&mut session);
    rest(&mut session);
    assert_eq!(
        session.list::<String>(
            "select format('%s %s', part, count(*)) from parted_body_embedding group by part"
        ),
        ["2 10"]
    );
}

#[test]
fn rows_that_are_to_be_embedded_anew_are_so_for_the_vectors_that_are_on_their_way_too() {
    let (cluster, mut session) = prepared(Options::new());
    session.run(
        "create table plain (id int primary key, body text);
         insert into plain select i, 'row ' || i from generate_series(1, 10) as i;
         select steadytext_create_vectorizer('plain', array['body'], index => 'none')",
    );
    rest(&mut session);
    // The table of the old vectors cannot be dropped while somebody reads it.
    let mut reader = cluster.session("postgres");
    reader.run("begin; select count(*) from plain_body_embedding");
    session.run("select steadytext_alter_vectorizer('plain_body', format => 'Row: $chunk')");
    let made = "select coalesce(max(s.embedded_total), 0)::bigint from steadytext_vectorizers as v
        join steadytext_vectorizer_state as s on s.vectorizer_id = v.id where v.replaces is not null";
    wait_until("the new vectors are there", || session.one::<i64>(made) == 10);
    session.run("select steadytext_reembed('plain_body')");
    reader.run("rollback");
    rest(&mut session);
    // They have taken their place, and were made once more.
    assert_eq!(session.one::<i64>("select embedded_total from steadytext_vectorizer_state"), 20);
    assert_eq!(session.one::<i64>("select count(*) from plain_body_embedding"), 10);
}

#[test]
fn a_table_that_waits_holds_up_neither_other_vectorizers_nor_requests() {
    let (cluster, mut session) = prepared(Options::new());
    session.run(
        "create table slow (id int primary key, body text);
         create table quick (id int primary key, body text);
         create function sleep() returns trigger language plpgsql as $$ begin perform pg_sleep(3600); return new; end $$;
         select steadytext_create_vectorizer('slow', array['body'], target_column => 'embedding');
         select steadytext_create_vectorizer('quick', array['body'])",
    );
    rest(&mut session);
    session.run("create trigger sleep before update on slow for each row execute function sleep()");
    session.run("insert into slow values (1, 'sleeps')");
    let sleeps = |session: &mut Session, which: &str| {
        wait_until("the trigger sleeps", || {
            session.one(&format!(
                "select exists (select from pg_stat_activity where backend_type = 'pg_steadytext {which}' and wait_event = 'PgSleep')"
            ))
        });
    };
    sleeps(&mut session, "vectorizer");
    // Requests are served meanwhile.
    let id = session.embed("not held up", "");
    session.answer(id);
    session.run("insert into quick values (1, 'waits its turn')");
    // As its limit of time does it. From then on it is another process's.
    session.run(
        "select pg_cancel_backend(pid) from pg_stat_activity where backend_type = 'pg_steadytext vectorizer'",
    );
    sleeps(&mut session, "slow vectorizer");
    wait_until("the other one goes on meanwhile", || {
        session.one::<i64>("select count(*) from quick_body_embedding") == 1
    });
    session.run(
        "select pg_cancel_backend(pid) from pg_stat_activity where backend_type = 'pg_steadytext slow vectorizer'",
    );
    rest(&mut session);
    assert_eq!(session.list::<String>("select error_code from steadytext_vectorizer_errors"), ["57014"]);
    assert_eq!(session.one::<i64>("select count(*) from quick_body_embedding"), 1);
    drop(cluster);
}

#[test]
fn a_dump_keeps_vectors_and_definitions_and_nothing_is_computed_again() {
    let (cluster, mut session) = prepared(Options::new());
    session.run(TABLES);
    session.run(
        "insert into parted values (1, 'a', 'one'), (2, 'b', 'two');
         insert into inside values (md5('a')::uuid, 'three'), (md5('b')::uuid, ' ')",
    );
    rest(&mut session);
    session.run(
        "alter table plain rename to renamed; alter table renamed rename body to text;
         select steadytext_pause_vectorizer('plain_title');
         insert into renamed (id, title, text) values (100, 'noted', 'before the dump')",
    );
    let embedded = "select coalesce(sum(embedded_total), 0)::bigint from steadytext_vectorizer_state";
    let before: i64 = session.one(embedded);
    let file = cluster.make_directory("dump").join("plain.sql");
    let run = |mut command: std::process::Command| {
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && !text.contains("ERROR"), "{text}");
    };
    let mut dump = cluster.client_program("pg_dump");
    dump.args(["-d", "postgres", "-f"]).arg(&file);
    run(dump);
    session.run("create database restored");
    let mut restore = cluster.client_program("psql");
    restore.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", "restored", "-f"]).arg(&file);
    run(restore);
    let mut restored = cluster.session("restored");
    wait_until("the others are compared with their vectors", || {
        restored.one(
            "select count(*) = 2 from steadytext_vectorizer_state as s
             join steadytext_vectorizers as v on v.id = s.vectorizer_id
             where not v.is_paused and s.scan is null and s.signature = steadytext.vectorizer_signature(v.id)",
        )
    });
    restored.run("select steadytext_resume_vectorizer('plain_title')");
    rest(&mut restored);
    // The one row that was noted.
    assert_eq!(restored.one::<i64>(embedded), before + 1);
    assert_eq!(
        restored.one::<String>("select chunk from plain_title_embedding where id = 100"),
        "before the dump"
    );
    restored.run("update renamed set text = 'changed' where id = 1; insert into parted values (3, 'c', 'new'); delete from inside");
    rest(&mut restored);
    assert_eq!(restored.one::<String>("select chunk from plain_title_embedding where id = 1"), "changed");
    assert_eq!(restored.one::<i64>("select count(*) from parted_body_embedding"), 3);
}

#[test]
fn a_database_with_vectorizers_can_be_dropped_and_copied() {
    let (cluster, mut session) = prepared(Options::new());
    session.run("create database other");
    let mut other = cluster.session("other");
    other.create_extension();
    other.run(
        "create table t (id int primary key, body text);
         select steadytext_create_vectorizer('t', array['body']);
         insert into t values (1, 'a row')",
    );
    rest(&mut other);
    drop(other);
    session.run("create database copied template other");
    let mut copied = cluster.session("copied");
    copied.run("insert into t values (2, 'another row')");
    rest(&mut copied);
    assert_eq!(copied.one::<i64>("select count(*) from t_body_embedding"), 2);
    drop(copied);
    session.run("drop database other");
    session.run("drop database copied");
}

/// A cluster with a user who keeps a vectorizer, and that user's session.
fn with_a_user() -> (Cluster, Session, Session) {
    let (cluster, mut session) = prepared(Options::new());
    session.run(
        "create role evil login; grant steadytext_user to evil; create schema evil authorization evil;
         create table other (id int primary key, body text); insert into other values (1, 'words of another role');
         select steadytext_create_vectorizer('other', array['body'], index => 'none')",
    );
    let evil = cluster.session_as("postgres", "evil");
    (cluster, session, evil)
}

#[test]
fn what_the_code_of_an_owner_sets_ends_with_it() {
    let (_cluster, mut session, mut evil) = with_a_user();
    evil.run(
        "create table evil.t (id int primary key, body text);
         select steadytext_create_vectorizer('evil.t', array['body'], name => 'evil', index => 'none');
         create function evil.jsonb_array_length(jsonb) returns int language plpgsql as $$
             begin execute 'alter role evil superuser'; return pg_catalog.jsonb_array_length($1); end $$;
         create function evil.jsonb_array_elements(jsonb) returns setof jsonb language plpgsql as $$
             begin execute 'alter role evil superuser'; return query select pg_catalog.jsonb_array_elements($1); end $$;
         create function evil.settings() returns trigger language plpgsql as $$
             begin
                 perform set_config('search_path', 'evil, pg_catalog', false);
                 perform set_config('default_transaction_read_only', 'on', false);
                 perform set_config('statement_timeout', '1', false);
                 return new;
             end $$;
         create trigger settings before insert on evil.t_body_embedding for each row execute function evil.settings();
         insert into evil.t select i, 'text ' || i from generate_series(1, 20) as i",
    );
    rest(&mut session);
    assert_eq!(session.one::<i64>("select count(*) from evil.t_body_embedding"), 20, "the trigger has run");
    assert!(!session.one::<bool>("select rolsuper from pg_roles where rolname = 'evil'"));
    session.run("update other set body = 'other words'");
    rest(&mut session);
    assert_eq!(session.one::<String>("select chunk from other_body_embedding"), "other words");
}

#[test]
fn who_looks_at_vectorizers_or_searches_runs_nothing_of_their_owners() {
    let (_cluster, mut session, mut evil) = with_a_user();
    evil.run(
        "create table evil.ran (by name);
         grant insert, select on evil.ran to public; grant usage on schema evil to public;
         create table evil.t (id int primary key, body text);
         select steadytext_create_vectorizer('evil.t', array['body'], name => 'evil', index => 'none');
         insert into evil.t values (1, 'text')",
    );
    rest(&mut session);
    evil.run(
        "grant select on evil.t, evil.t_body_embedding to public;
         create type evil.number as enum ('1');
         create function evil.number_int(evil.number) returns int language plpgsql as $$
             begin insert into evil.ran values (current_user); return 1; end $$;
         create cast (evil.number as int) with function evil.number_int(evil.number) as implicit;
         create function evil.number_json(evil.number) returns json language plpgsql as $$
             begin insert into evil.ran values (current_user); return '1'; end $$;
         create cast (evil.number as json) with function evil.number_json(evil.number);
         alter table evil.t_body_embedding alter column seq type evil.number using '1'::evil.number;
         alter table evil.t add column more evil.number default '1'",
    );
    session.run("select count(*) from steadytext_vectorizer_status; select count(*) from steadytext_vectorizer_errors");
    let counts: Option<i64> =
        session.one("select rows from steadytext_vectorizer_status where name = 'evil'");
    assert_eq!(counts, None);
    for search in ["search", "hybrid_search"] {
        let error = session.error(&format!("select * from steadytext_{search}('evil', 'text')"));
        assert_eq!(error.code().code(), "55000", "{error}");
    }
    assert_eq!(session.one::<i64>("select count(*) from evil.ran"), 0);
    // A trigger that was made by hand spoils nobody's views.
    let id: String = evil.one("select id::text from steadytext_vectorizers where name = 'evil'");
    evil.run(&format!(
        "create table evil.fake (id int primary key, body text);
         create trigger fake after insert or delete or update of id, body on evil.fake
             for each row execute function steadytext.note_row('{id}', 'x', 'y');
         drop table evil.t"
    ));
    assert_eq!(session.one::<i64>("select count(*) from steadytext_vectorizer_status"), 2);
    session.run("select count(*) from steadytext_vectorizer_errors");
    evil.run("select steadytext_drop_vectorizer('evil')");
}

#[test]
fn a_cursor_that_code_in_its_query_closes_is_an_error() {
    let (_cluster, mut session, mut evil) = with_a_user();
    evil.run(
        "create type evil.letter as enum ('a');
         create function evil.letter_json(evil.letter) returns json language plpgsql as $$ begin execute 'close all'; return '1'; end $$;
         create cast (evil.letter as json) with function evil.letter_json(evil.letter)",
    );
    let error = evil.error(
        "select steadytext_enqueue_query($q$ select 'hi' as prompt, 'a'::evil.letter as key from generate_series(1, 500) $q$, 'embed')",
    );
    assert!(error.message().contains("pinned portal"), "{error}");
    // The server is the same one.
    assert_eq!(session.one::<i64>("select count(*) from other"), 1);
}
