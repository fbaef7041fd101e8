//! Enrichments: at rest every row has what the synchronous call gives for its present text, whatever has
//! happened before.

use steadytext_test_server::definitions::{Changes, Dice, prepared, process, rest};
use steadytext_test_server::{Options, Signal, wait_until};

/// A plain table with a chain of three (a text, a choice about it, the vector of it) and two more columns,
/// and a partitioned one with a key of two columns.
const TABLES: &str = "
    create table plain (id bigint primary key, title text, body text, touched int default 0);
    create table parted (part int, id text, body text, primary key (part, id)) partition by list (part);
    create table parted_1 partition of parted for values in (1);
    create table parted_2 partition of parted default;
    insert into plain (id, title, body) select i, 'there ' || i, 'before' from generate_series(1, 20) as i;
    select steadytext_create_enrichment('plain', 'summary', '$title: $body', params => '{\"max_tokens\": 4}');
    select steadytext_create_enrichment('plain', 'label', '$summary', 'generate_choice', '{\"choices\": [\"long\", \"short\"]}');
    select steadytext_create_enrichment('plain', 'category', '$body', 'classify', '{\"categories\": [\"storage\", \"speed\"]}');
    select steadytext_create_enrichment('plain', 'good', 'Is \"${body}\" good?', 'if');
    select steadytext_create_vectorizer('plain', array['summary'], target_column => 'vector_of_summary', index => 'none');
    select steadytext_create_enrichment('parted', 'grade', '$id says $body', 'score');
";

/// The number of values that are not what they should be.
const WRONG: &str = "
    select
        (select count(*) from plain
         where summary is distinct from case when concat(title, body) ~ '\\S' then steadytext_generate(concat(title, ': ', body), 4) end)
        + (select count(*) from plain
           where label is distinct from case when summary ~ '\\S' then steadytext_generate_choice(summary, array['long', 'short']) end)
        + (select count(*) from plain
           where category is distinct from case when body ~ '\\S' then steadytext_classify(body, array['storage', 'speed']) end)
        + (select count(*) from plain
           where good is distinct from case when body ~ '\\S' then steadytext_if(concat('Is \"', body, '\" good?')) end)
        + (select count(*) from plain
           where vector_of_summary::text is distinct from case when summary ~ '\\S' then steadytext_embed(summary)::text end)
        + (select count(*) from parted
           where grade is distinct from case when concat(id, body) ~ '\\S' then steadytext_score(concat(id, ' says ', body)) end)";

/// A change of one of the tables. There are few texts, so that the cache answers many of the requests.
fn change(dice: &mut Dice) -> String {
    let (id, other, text) = (dice.roll(40), dice.roll(40), dice.roll(12));
    let part = 1 + dice.roll(2);
    let body = match dice.roll(8) {
        0 => "'  '".to_owned(),
        1 => "null".to_owned(),
        _ => format!("'text {text}'"),
    };
    match dice.roll(16) {
        0..=2 => format!(
            "insert into plain (id, title, body) values ({id}, 'title', {body})
             on conflict (id) do update set body = excluded.body"
        ),
        3 => format!("update plain set body = {body} where id = {id}"),
        4 => format!("update plain set title = 'title {text}' where id between {id} and {id} + 4"),
        5 => format!("update plain set touched = touched + 1 where id between {id} and {other}"),
        6 => format!(
            "update plain set id = {other} where id = {id} and not exists (select from plain where id = {other})"
        ),
        7 => format!(
            "update plain set id = {other}, body = {body} where id = {id} and not exists (select from plain where id = {other})"
        ),
        8 => format!("delete from plain where id = {id}"),
        9 => format!("update plain set category = null, summary = null where id between {id} and {id} + 3"),
        10 | 11 => format!(
            "insert into parted values ({part}, '{id}', {body}) on conflict (part, id) do update set body = excluded.body"
        ),
        12 => format!(
            "update parted set part = 3 - part where id = '{id}' and part = {part}
                 and not exists (select from parted where id = '{id}' and part = 3 - {part})"
        ),
        13 => format!("delete from parted_{part} where id = '{id}'"),
        14 if dice.roll(6) == 0 => format!("truncate parted_{part}"),
        15 if dice.roll(6) == 0 => "truncate plain".to_owned(),
        _ => format!("update parted set body = {body} where id = '{id}'"),
    }
}

#[test]
fn after_random_changes_and_crashes_every_row_has_what_the_call_gives_for_its_text() {
    let (mut cluster, mut session) = prepared(Options::new());
    session.run(TABLES);
    let address = cluster.address();
    let changes = Changes::new(6, 720, change);
    println!("OPERATIONS={} SEED={}", changes.operations, changes.seed);
    changes.run(&address, || {
        changes.wait_for(25);
        // Partitions that go and come fire no trigger, and neither does a table that is written anew.
        let ddl = "alter table parted detach partition parted_1;
             insert into parted_1 (part, id, body) values (1, 'apart', 'while it was apart') on conflict do nothing;
             delete from parted_1 where id in ('1', '2', '3');
             alter table parted attach partition parted_1 for values in (1);
             alter table plain add column more int default random() * 100";
        // It may be chosen to end a deadlock.
        wait_until("the tables are changed", || session.batch_execute(ddl).is_ok());
        changes.wait_for(50);
        cluster.crash(process(&mut session), Signal::KILL);
        session = cluster.session("postgres");
        changes.wait_for(75);
        cluster.crash(session.worker_pid(), Signal::KILL);
        session = cluster.session("postgres");
        session.run(
            "alter table plain rename column body to text; alter table plain rename column text to body",
        );
    });
    // Whatever was truncated last.
    session.run(
        "insert into plain (id, title, body) select i, 'title', 'text ' || i from generate_series(1, 5) as i on conflict do nothing",
    );
    rest(&mut session);
    assert_eq!(
        session.one::<i64>(WRONG),
        0,
        "OPERATIONS={} SEED={} {:?}",
        changes.operations,
        changes.seed,
        session.list::<String>("select format('%s', e) from steadytext_enrichment_errors as e")
    );
    assert_eq!(
        session.list::<String>("select format('%s', e) from steadytext_enrichment_errors as e"),
        Vec::<String>::new()
    );
    assert!(
        session.one::<i64>("select count(*) from plain where summary is not null and label is not null") > 0
    );
    // The queue is empty, and rows that are not there are not remembered.
    assert_eq!(session.one::<i64>("select count(*) from steadytext_queue"), 0);
    assert_eq!(
        session.one::<i64>(
            "select count(*) from steadytext_enrichment_rows as r join steadytext_vectorizers as v on v.id = r.enrichment_id
             where v.name = 'plain_good' and r.gone_at is null and not exists (select from plain as p where p.id = (r.key ->> 0)::bigint)"
        ),
        0
    );
    cluster.restart();
    session = cluster.session("postgres");
    session.run("insert into plain (id, title, body) values (1000, 'after', 'the restart')");
    rest(&mut session);
    assert_eq!(session.one::<i64>(WRONG), 0);
}

#[test]
fn each_type_of_request_fills_a_column_with_what_its_call_gives() {
    let (_cluster, mut session) = prepared(Options::new());
    session.run(
        r#"create type mood as enum ('positive', 'negative', 'neutral', 'mixed');
         create table t (id int primary key, body text, mood mood);
         insert into t (id, body) values (1, 'VACUUM reclaims storage.'), (2, 'An index is quick.'), (3, ' '), (4, null);
         select steadytext_create_enrichment('t', 'doc', '$body', 'generate_json',
             '{"schema": {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"]}, "max_tokens": 40}');
         select steadytext_create_enrichment('t', 'digits', '$body', 'generate_regex', '{"pattern": "[0-9]{2}"}');
         select steadytext_create_enrichment('t', 'scores', '$body', 'classify_scores', '{"categories": ["a", "b"]}');
         select steadytext_create_enrichment('t', 'several', '$body', 'classify_multi', '{"categories": ["a", "b"], "threshold": 0}');
         select steadytext_create_enrichment('t', 'none', '$body', 'classify_multi', '{"categories": ["a", "b"], "threshold": 1}');
         select steadytext_create_enrichment('t', 'mood', '$body', 'analyze_sentiment');
         select steadytext_create_enrichment('t', 'likely', 'Is "$body" true?', 'if_score');
         select steadytext_create_enrichment('t', 'found', '$body', 'extract', '{"fields": ["topic"]}');
         select steadytext_create_enrichment('t', 'translated', '$body', 'translate', '{"to_language": "German"}');
         select steadytext_create_enrichment('t', 'masked', '$body', 'mask', '{"labels": ["person"]}');
         select steadytext_create_enrichment('t', 'short', '$body', 'summarize_text', '{"max_words": 5}')"#,
    );
    rest(&mut session);
    assert_eq!(
        session.list::<String>("select format('%s', e) from steadytext_enrichment_errors as e"),
        Vec::<String>::new()
    );
    for (column, call) in [
        ("digits", "steadytext_generate_regex(body, '[0-9]{2}')"),
        ("several", "steadytext_classify_multi(body, array['a', 'b'], threshold => 0)"),
        ("none", "steadytext_classify_multi(body, array['a', 'b'], threshold => 1)"),
        ("mood::text", "steadytext_analyze_sentiment(body)"),
        ("likely", "steadytext_if_score('Is \"' || body || '\" true?')"),
        ("found", "steadytext_extract(body, array['topic'])"),
        ("translated", "steadytext_translate(body, 'German')"),
        ("masked", "steadytext_mask(body, array['person'])"),
        ("short", "steadytext_summarize_text(body, max_words => 5)"),
    ] {
        let same: bool = session.one(&format!("select bool_and({column} is not distinct from {call} and {column} is not null) from t where id < 3"));
        assert!(
            same,
            "{column}: {:?}",
            session
                .list::<String>(&format!("select format('%s / %s', {column}, {call}) from t where id < 3"))
        );
        assert!(
            session.one::<bool>(&format!("select bool_and({column} is null) from t where id > 2")),
            "{column} of blank rows"
        );
    }
    assert!(session.one::<bool>("select bool_and((doc ->> 'n')::int between 0 and 9 and jsonb_array_length(scores) = 2) from t where id < 3"));
}

#[test]
fn what_somebody_writes_is_kept_until_the_row_changes() {
    let (_cluster, mut session) = prepared(Options::new());
    session.run(
        "create table t (id int primary key, body text, kind text);
         insert into t values (1, 'one', 'mine'), (2, 'two', null);
         select steadytext_create_enrichment('t', 'kind', '$body', 'generate_choice', '{\"choices\": [\"a\", \"b\"]}')",
    );
    rest(&mut session);
    let kinds = |session: &mut steadytext_test_server::Session| {
        session.list::<String>("select coalesce(kind, '-') from t order by id")
    };
    let seen = kinds(&mut session);
    assert_eq!(seen[0], "mine", "a value that was there");
    assert!(["a", "b"].contains(&seen[1].as_str()), "{seen:?}");
    session.run("insert into t values (3, 'three', 'given'), (4, 'four', null); update t set kind = 'by hand' where id = 2");
    rest(&mut session);
    let seen = kinds(&mut session);
    assert_eq!(&seen[..3], ["mine", "by hand", "given"]);
    assert!(["a", "b"].contains(&seen[3].as_str()), "{seen:?}");
    // Another list makes anew what was made, and nothing else.
    session.run("select steadytext_alter_enrichment('t_kind', params => '{\"choices\": [\"x\", \"y\"]}')");
    rest(&mut session);
    let seen = kinds(&mut session);
    assert_eq!(&seen[..3], ["mine", "by hand", "given"]);
    assert!(["x", "y"].contains(&seen[3].as_str()), "{seen:?}");
    session.run("update t set body = 'changed' where id = 1; update t set kind = null where id = 2");
    rest(&mut session);
    let seen = kinds(&mut session);
    assert!(["x", "y"].contains(&seen[0].as_str()) && ["x", "y"].contains(&seen[1].as_str()), "{seen:?}");
    assert_eq!(seen[2], "given");
    session.run("select steadytext_refresh_enrichment('t_kind', kept => true)");
    rest(&mut session);
    assert!(session.one::<bool>("select bool_and(kind in ('x', 'y')) from t"));
}

#[test]
fn rows_that_are_there_wait_if_that_is_said_and_others_do_not() {
    let (_cluster, mut session) = prepared(Options::new());
    session.run(
        "create table t (id int primary key, body text);
         insert into t select i, 'there ' || i from generate_series(1, 2500) as i;
         create table first (id int primary key, body text);
         insert into first values (1, 'there');
         begin;
         select steadytext_create_enrichment('first', 'good', '$body', 'if');
         select steadytext_create_vectorizer('first', array['body'], target_column => 'vector');
         -- The definition that comes first may fail.
         select steadytext.note_definition_error(v.id, 'somebody has the table locked', '55P03', false) from steadytext_vectorizers as v;
         select steadytext_create_enrichment('t', 'good', '$body', 'if', enqueue_existing => false);
         insert into t values (0, 'new');
         update t set body = 'changed' where id = 7;
         commit",
    );
    rest(&mut session);
    assert_eq!(session.list::<i32>("select id from t where good is not null order by id"), [0, 7]);
    assert!(session.one::<bool>("select good is not null and vector is not null from first"));
    // Nor do they begin when the table is written anew.
    session.run("vacuum full t");
    rest(&mut session);
    assert_eq!(session.one::<i64>("select count(*) from t where good is not null"), 2);
}

#[test]
fn a_row_that_cannot_have_its_value_is_told_and_stops_no_other() {
    let (_cluster, mut session) = prepared(Options::new());
    session.run(
        "create table t (id int primary key, body text, kind text check (kind <> 'b'));
         select steadytext_create_enrichment('t', 'kind', '$body', 'generate_choice', '{\"choices\": [\"a\", \"b\"]}');
         create function refuse() returns trigger language plpgsql as $$ begin if new.id = 3 then raise exception 'not this one'; end if; return new; end $$;
         create trigger refuse before update on t for each row execute function refuse();
         create function swallow() returns trigger language plpgsql as $$ begin return null; end $$;
         create trigger swallow before update on t for each row when (new.id = 4) execute function swallow();
         insert into t select i, 'text ' || i from generate_series(1, 12) as i;
         insert into t values (100, repeat('word ', 100000))",
    );
    rest(&mut session);
    let codes = session.list::<String>("select distinct error_code from steadytext_enrichment_errors where key ->> 'id' in ('3', '4', '100') order by 1");
    assert!(
        codes.contains(&"P0001".to_owned()) && codes.contains(&"09000".to_owned()) && codes.len() == 3,
        "{codes:?}"
    );
    let others: Vec<String> = session.list("select distinct error_code from steadytext_enrichment_errors where key ->> 'id' not in ('3', '4', '100')");
    assert!(others.iter().all(|code| code == "23514"), "{others:?}");
    // Each of the others has a value that fits, or has failed for it.
    assert!(session.one::<bool>(
        "select bool_and((t.kind is not null) <> exists (select from steadytext_enrichment_errors as e where e.key ->> 'id' = t.id::text)) from t"
    ));
    session.run(
        "drop trigger refuse on t; drop trigger swallow on t; alter table t drop constraint t_kind_check",
    );
    let failed: i64 = session.one("select count(*) from steadytext_enrichment_errors");
    assert_eq!(session.one::<i64>("select steadytext_retry_enrichment('t_kind')"), failed);
    rest(&mut session);
    assert_eq!(session.list::<String>("select key ->> 'id' from steadytext_enrichment_errors"), ["100"]);
}

#[test]
fn a_dump_keeps_values_and_nothing_is_asked_again() {
    let (cluster, mut session) = prepared(Options::new());
    session.run(TABLES);
    session.run("insert into parted values (1, 'a', 'one'), (2, 'b', 'two')");
    rest(&mut session);
    session.run(
        "alter table plain rename to renamed; alter table renamed rename body to text;
         select steadytext_pause_enrichment('plain_good');
         insert into renamed (id, title, text) values (100, 'noted', 'before the dump');
         update renamed set category = 'by hand' where id = 3",
    );
    wait_until("all but the paused one are at rest", || {
        session.one(
            "select not exists (select from steadytext_enrichment_status where state not in ('idle', 'paused'))
                 and not exists (select from steadytext_vectorizer_status where state <> 'idle')",
        )
    });
    let made = "select coalesce(sum(embedded_total), 0)::bigint from steadytext_vectorizer_state";
    let before: i64 = session.one(made);
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
    wait_until("the others are compared with what was made", || {
        restored.one(
            "select count(*) = (select count(*) from steadytext_vectorizers where not is_paused)
             from steadytext_vectorizer_state as s
             join steadytext_vectorizers as v on v.id = s.vectorizer_id
             where not v.is_paused and s.scan is null and s.signature = steadytext.vectorizer_signature(v.id)",
        )
    });
    restored.run("select steadytext_resume_enrichment('plain_good')");
    rest(&mut restored);
    // The one row that was noted.
    assert_eq!(restored.one::<i64>(made), before + 1);
    assert_eq!(restored.one::<String>("select category from renamed where id = 3"), "by hand");
    restored.run("update renamed set text = 'changed' where id = 1; delete from parted");
    rest(&mut restored);
    assert!(
        restored.one::<bool>("select good = steadytext_if('Is \"changed\" good?') from renamed where id = 1")
    );
}

#[test]
fn requests_of_enrichments_give_way_and_fill_the_engine() {
    let (_cluster, mut session) = prepared(Options::new());
    session.run(
        "create table t (id int primary key, body text);
         insert into t select i, 'row ' || i from generate_series(1, 400) as i;
         select steadytext_create_enrichment('t', 'answer', 'Say something of $body', params => '{\"max_tokens\": 24, \"use_cache\": false}')",
    );
    let mut most = 0;
    wait_until("many rows are asked about at once", || {
        most =
            most.max(session.one::<i64>("select count(*) from steadytext_queue where status = 'processing'"));
        most >= 16
    });
    // A user's request comes first meanwhile.
    let id = session.generate("What is a page?", "");
    session.answer(id);
    assert!(
        session.one::<bool>("select exists (select from t where answer is null)"),
        "it was not asked after all others"
    );
    // No transaction is open while the model computes.
    assert_eq!(
        session.one::<i64>(
            "select count(*) from pg_stat_activity where backend_type like 'pg_steadytext%' and xact_start < now() - interval '10 seconds'"
        ),
        0
    );
    session.run("select steadytext_drop_enrichment('t_answer')");
    wait_until("what was asked is cancelled", || {
        session
            .one("select not exists (select from steadytext_queue where status in ('pending', 'processing'))")
    });
}

#[test]
fn values_are_written_with_the_rights_that_the_owner_has_then() {
    let (cluster, mut session) = prepared(Options::new());
    session.run(
        "create role alice login; grant steadytext_user to alice; create schema alice authorization alice;
         create table secret (words text)",
    );
    let mut alice = cluster.session_as("postgres", "alice");
    alice.run(
        "create table alice.t (id int primary key, body text);
         select steadytext_create_enrichment('alice.t', 'good', '$body', 'if', name => 'good');
         create function alice.peek() returns trigger language plpgsql as $$
             begin insert into public.secret values (current_user); return new; end $$;
         create trigger peek before update on alice.t for each row execute function alice.peek();
         insert into alice.t values (1, 'text')",
    );
    rest(&mut session);
    assert_eq!(session.list::<String>("select error_code from steadytext_enrichment_errors"), ["42501"]);
    assert_eq!(session.one::<i64>("select count(*) from secret"), 0);
    alice.run("drop trigger peek on alice.t; select steadytext_retry_enrichment('good')");
    rest(&mut session);
    assert_eq!(session.one::<i64>("select count(*) from alice.t where good is not null"), 1);
    // For a role that is no longer a user of the extension nothing is done.
    session.run("revoke steadytext_user from alice; insert into alice.t values (2, 'more')");
    wait_until("it is told", || {
        session.one("select exists (select from steadytext_enrichment_status where problem ~ 'not a member')")
    });
    assert_eq!(session.one::<i64>("select count(*) from alice.t where good is not null"), 1);
    session.run("grant steadytext_user to alice");
    rest(&mut session);
    assert_eq!(
        session.one::<i64>("select count(*) from alice.t where good is not null"),
        2,
        "{:?} {:?}",
        session.list::<String>("select format('%s', e) from steadytext_enrichment_errors as e"),
        session.list::<String>("select format('%s', r) from steadytext_enrichment_rows as r")
    );
}

#[test]
fn an_answer_that_does_not_end_is_a_matter_of_its_row_until_more_tokens_are_allowed() {
    let (_cluster, mut session) = prepared(Options::new());
    session.run(
        "create table asked (id int primary key, body text);
         insert into asked select i, 'row ' || i from generate_series(1, 3) as i;
         select steadytext_create_enrichment('asked', 'word', '$body', 'generate_regex', '{\"pattern\": \"[a-z]{500}\", \"max_tokens\": 5}', name => 'asked')",
    );
    rest(&mut session);
    assert_eq!(session.one::<String>("select state from steadytext_enrichment_status"), "idle");
    assert_eq!(
        session.list::<String>(
            "select error_code from steadytext_enrichment_errors where hint like '%max_tokens%'"
        ),
        ["53400"; 3]
    );
    session.run("select steadytext_alter_enrichment('asked', params => '{\"pattern\": \"[a-z]{500}\", \"max_tokens\": 600}')");
    rest(&mut session);
    assert_eq!(session.one::<i64>("select count(*) from asked where length(word) = 500"), 3);
    assert_eq!(session.one::<i64>("select count(*) from steadytext_enrichment_errors"), 0);
}
