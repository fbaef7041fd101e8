//! Synchronous functions: in whatever a transaction can hold them, ended by whatever ends a statement.

use std::thread::{self, JoinHandle};

use postgres::error::DbError;
use steadytext_test_server::{
    Cluster, Options, Session, Signal, promptly, slow_model, wait_until, write_model,
};

/// A cluster with the slow model.
fn slow() -> (Cluster, Session) {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    slow_model(&cluster, &mut session);
    (cluster, session)
}

const LONG: &str = "select steadytext_generate('a long call', model => 'slow', max_tokens => 4096)";

/// Runs a statement that is expected to fail in a session of its own; its process id, and the error to come.
fn failing(cluster: &Cluster, sql: &str) -> (i32, JoinHandle<DbError>) {
    let mut session = cluster.session("postgres");
    let (pid, sql) = (session.backend_pid(), sql.to_owned());
    (pid, thread::spawn(move || session.error(&sql)))
}

/// Waits until the call of a backend has generated something.
fn wait_for_tokens_of(session: &mut Session, pid: i32) {
    wait_until("the call generates", || {
        session.one(&format!(
            "select exists (select from steadytext_activity
                            where worker_pid = {pid} and generated_tokens > 0 and partial_text <> '')"
        ))
    });
}

#[test]
fn a_call_gives_the_bytes_and_the_errors_of_the_queue() {
    let (_cluster, mut session) = slow();
    let id = session.generate("Say hello", "max_tokens => 20, temperature => 1, seed => 3");
    let queued = session.answer(id);
    let call = "steadytext_generate('Say hello', max_tokens => 20, temperature => 1, seed => 3)";
    let computed = call.replace(")", ", use_cache => false)");
    assert_eq!(session.one::<String>(&format!("select {computed}")), queued);
    assert_eq!(
        session.one::<String>(&format!(
            "select string_agg(p, '') from {} p",
            call.replace("generate(", "generate_stream(")
        )),
        queued
    );
    let id = session.embed("hello", "");
    let queued = session.answer(id);
    assert_eq!(session.one::<String>("select steadytext_embed('hello', false)::text"), queued);

    session.run("insert into steadytext_models (name, task, file) values ('gone', 'generate', 'gone.gguf')");
    for arguments in ["model => 'gone'", "model => 'slow', max_tokens => 4096"] {
        let prompt = if arguments.contains("slow") { "long ".repeat(8000) } else { "short".to_owned() };
        let id = session.generate(&prompt, arguments);
        let queued = session.wait_for_end(id);
        let error = session.error(&format!("select steadytext_generate('{prompt}', {arguments})"));
        assert_eq!(Some(error.code().code()), queued.error_code.as_deref(), "{error:?}");
        let words = format!("{}\nHINT: {}", error.message(), error.hint().unwrap_or_default());
        assert_eq!(Some(words), queued.error);
    }
}

#[test]
fn cancel_and_statement_timeout_stop_a_call_at_once() {
    let (cluster, mut session) = slow();
    let (pid, call) = failing(&cluster, LONG);
    wait_for_tokens_of(&mut session, pid);
    promptly("cancel", || {
        session.one::<bool>(&format!("select pg_cancel_backend({pid})"));
        assert_eq!(call.join().expect("the thread does not panic").code().code(), "57014");
    });
    assert_eq!(session.one::<i64>("select count(*) from steadytext_activity"), 0);
    promptly("timeout", || {
        let error = session.error(&format!("set statement_timeout = '300ms'; {LONG}"));
        assert_eq!(error.code().code(), "57014");
    });
    session.run("reset statement_timeout");
    // The engine has stopped, too: it would take the model's only place.
    promptly("the next call", || session.run("select steadytext_embed('free again')"));
    let (pid, call) = failing(&cluster, LONG);
    wait_for_tokens_of(&mut session, pid);
    let from = cluster.log().len();
    promptly("termination", || {
        session.one::<bool>(&format!("select pg_terminate_backend({pid})"));
        // The client misses the message when the end of the connection comes together with it; the log has
        // it.
        drop(call.join());
    });
    cluster.wait_for_log(from, "terminating connection due to administrator command");
    wait_until("its line is gone", || session.one("select not exists (select from steadytext_activity)"));
}

#[test]
fn a_worker_that_goes_in_mid_call_is_an_error_with_a_hint_and_the_next_call_works() {
    let (cluster, mut session) = slow();
    let (pid, call) = failing(&cluster, LONG);
    wait_for_tokens_of(&mut session, pid);
    let worker = session.worker_pid();
    session.one::<bool>(&format!("select pg_terminate_backend({worker}, 10000)"));
    let error = promptly("the error", || call.join().expect("the thread does not panic"));
    assert_eq!(error.code().code(), "55000", "{error:?}");
    assert!(error.hint().is_some_and(|hint| hint.contains("Repeat")), "{error:?}");
    session.run("select steadytext_embed('the next call')");
    assert_ne!(session.worker_pid(), worker);
    // A connection that was kept is of no use any more, which nobody notices.
    let worker = session.worker_pid();
    session.one::<bool>(&format!("select pg_terminate_backend({worker}, 10000)"));
    session.run("select steadytext_embed('and the one after it')");

    let (pid, call) = failing(&cluster, LONG);
    wait_for_tokens_of(&mut session, pid);
    let worker = session.worker_pid();
    cluster.crash(worker, Signal::KILL);
    // The whole server starts anew: what this session gets, if anything, is PostgreSQL's message.
    drop(call.join());
    cluster.session("postgres").run("select steadytext_embed('after the crash')");
}

#[test]
fn calls_work_in_triggers_generated_columns_subtransactions_and_parallel_queries() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run(
        "create table note (
             id integer generated always as identity, body text,
             embedding vector generated always as (steadytext_embed(body)) stored, title text);
         create function entitle() returns trigger language plpgsql as $$
         begin
             new.title := steadytext_generate(new.body, max_tokens => 4);
             return new;
         end $$;
         create trigger entitle before insert on note for each row execute function entitle();
         begin;
         insert into note (body) values ('one'), ('two');
         savepoint here;
         insert into note (body) values ('undone');
         rollback to here;
         do $$
         begin
             begin
                 perform steadytext_embed('');
             exception when raise_exception then
                 insert into note (body) values ('three');
             end;
         end $$;
         commit",
    );
    let rows: i64 = session.one(
        "select count(*) from note
         where embedding = steadytext_embed(body) and title = steadytext_generate(body, max_tokens => 4)",
    );
    assert_eq!(rows, 3);
    session.run("create index on note ((steadytext_generate(body, max_tokens => 3)))");
    session.run(
        "insert into note (body) select 'note ' || i from generate_series(1, 60) i;
         analyze note;
         set parallel_setup_cost = 0; set parallel_tuple_cost = 0; set min_parallel_table_scan_size = 0;
         set max_parallel_workers_per_gather = 2; set parallel_leader_participation = off",
    );
    let query = "select count(*) from note where steadytext_embed(body) = embedding";
    let plan: Vec<String> = session.list(&format!("explain {query}"));
    assert!(plan.iter().any(|line| line.contains("Workers Planned")), "{plan:?}");
    assert_eq!(session.one::<i64>(query), 63);
    // With the leader alone, which has to read settings and registry within the query.
    let mut fresh = cluster.session("postgres");
    fresh.run(
        "set parallel_setup_cost = 0; set parallel_tuple_cost = 0; set min_parallel_table_scan_size = 0;
         set max_parallel_workers_per_gather = 2; set max_parallel_workers = 0",
    );
    assert_eq!(fresh.one::<i64>(query), 63);
    fresh.run("begin isolation level serializable read only; select steadytext_embed('x'); commit");
}

#[test]
fn rows_with_a_generated_embedding_are_inserted_by_the_thousand_and_that_can_be_cancelled() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run(
        "create table item (id integer, body text,
                            embedding vector generated always as (steadytext_embed(body)) stored);
         insert into item (id, body) select i, 'item number ' || i from generate_series(1, 2000) i",
    );
    assert_eq!(session.one::<i64>("select count(*) from item where vector_dims(embedding) > 0"), 2000);
    let (pid, call) = failing(
        &cluster,
        "insert into item (id, body) select i, 'no. ' || i from generate_series(1, 10000000) i",
    );
    wait_until("it inserts", || {
        session.one(&format!("select backend_xid is not null from pg_stat_activity where pid = {pid}"))
    });
    promptly("cancel", || {
        session.one::<bool>(&format!("select pg_cancel_backend({pid})"));
        assert_eq!(call.join().expect("the thread does not panic").code().code(), "57014");
    });
    assert_eq!(session.one::<i64>("select count(*) from item"), 2000);
}

#[test]
fn calls_of_many_backends_are_computed_together() {
    let (cluster, mut session) = slow();
    let calls: Vec<JoinHandle<String>> = (0..6)
        .map(|i| {
            let mut session = cluster.session("postgres");
            thread::spawn(move || {
                session.one(&format!(
                    "select steadytext_generate('call {i}', model => 'slow', max_tokens => 300)"
                ))
            })
        })
        .collect();
    wait_until("all of them generate", || {
        session.one::<i64>("select count(*) from steadytext_activity where phase = 'decoding'") == 6
    });
    for (i, call) in calls.into_iter().enumerate() {
        let together = call.join().expect("the thread does not panic");
        let alone: String = session.one(&format!(
            "select steadytext_generate('call {i}', model => 'slow', max_tokens => 300, use_cache => false)"
        ));
        assert_eq!(together, alone);
    }
}

#[test]
fn others_do_not_see_what_a_call_generates() {
    let (cluster, mut session) = slow();
    session.run(
        "create role alice login in role steadytext_user; create role bob login in role steadytext_user",
    );
    let mut alice = cluster.session_as("postgres", "alice");
    let pid = alice.backend_pid();
    let call = thread::spawn(move || alice.error(LONG));
    wait_for_tokens_of(&mut session, pid);
    let mut bob = cluster.session_as("postgres", "bob");
    assert_eq!(bob.one::<i64>("select count(*) from steadytext_activity"), 0);
    let mut other = cluster.session_as("postgres", "alice");
    assert_eq!(other.one::<i64>("select count(*) from steadytext_activity"), 1);
    session.one::<bool>(&format!("select pg_cancel_backend({pid})"));
    assert_eq!(call.join().expect("the thread does not panic").code().code(), "57014");
}

#[test]
fn a_worker_refuses_to_wait_for_itself() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run(
        "create function planted() returns trigger language plpgsql as $$
         begin
             perform public.steadytext_embed('from inside');
             return null;
         end $$;
         create trigger planted after update on steadytext_queue
             for each row when (new.status = 'completed') execute function planted()",
    );
    let id = session.generate("it cannot be stored", "max_tokens => 2");
    let request = session.wait_for_end(id);
    assert_eq!(
        (request.status.as_str(), request.error_code.as_deref()),
        ("failed", Some("0A000")),
        "{request:?}"
    );
    assert!(request.error.is_some_and(|error| error.contains("HINT: ")));
}

#[test]
fn without_the_library_preloaded_a_call_says_what_to_do() {
    let cluster = Options::new().without_preload().start();
    let mut session = cluster.session("postgres");
    session.create_extension();
    for call in ["steadytext_embed('x')", "steadytext_generate('x')", "steadytext_generate_stream('x')"] {
        let error = session.error(&format!("select {call}"));
        assert_eq!(error.code().code(), "55000");
        assert!(error.hint().is_some_and(|hint| hint.contains("shared_preload_libraries")), "{error:?}");
    }
}

#[test]
fn a_stream_comes_in_pieces_and_ends_with_its_cursor() {
    let (_cluster, mut session) = slow();
    session.run(
        "begin; declare pieces cursor for
             select steadytext_generate_stream('a long stream', model => 'slow', max_tokens => 4096)",
    );
    let first: Vec<String> = session.list("fetch 3 from pieces");
    assert_eq!(first.len(), 3);
    // The statement is not over, and others can be run beside it.
    session.run("select steadytext_embed('beside it')");
    assert_eq!(session.one::<i64>("select count(*) from steadytext_activity where phase = 'decoding'"), 1);
    session.run("close pieces");
    assert_eq!(session.one::<i64>("select count(*) from steadytext_activity"), 0);
    session.run(
        "savepoint before; declare pieces cursor for
                 select steadytext_generate_stream('again', model => 'slow', max_tokens => 4096)",
    );
    assert_eq!(session.list::<String>("fetch 1 from pieces").len(), 1);
    session.run("rollback to before");
    assert_eq!(session.one::<i64>("select count(*) from steadytext_activity"), 0);
    session.run("commit");

    let whole: String =
        session.one("select steadytext_generate('a stream', model => 'slow', max_tokens => 400)");
    let pieces: Vec<String> =
        session.list("select steadytext_generate_stream('a stream', model => 'slow', max_tokens => 400)");
    assert!(pieces.len() > 1, "{pieces:?}");
    assert_eq!(pieces.concat(), whole);
    // A LIMIT ends it like a cursor.
    promptly("limit", || {
        session
            .run("select steadytext_generate_stream('limited', model => 'slow', max_tokens => 4096) limit 1");
    });
    assert_eq!(session.one::<i64>("select count(*) from steadytext_activity"), 0);
    let error = session.error("select steadytext_generate_stream('')");
    assert_eq!((error.code().code(), error.message()), ("P0001", "Prompt cannot be empty"));
}

#[test]
fn a_standby_answers_and_goes_on_when_it_is_promoted() {
    let primary = Cluster::with_extension();
    let mut session = primary.session("postgres");
    write_model(&primary, "slow.gguf");
    let standby = primary.standby();
    let mut there = standby.session("postgres");
    for query in [
        "select steadytext_embed('hello', false)::text",
        "select steadytext_generate('hello', 9, use_cache => false)",
    ] {
        assert_eq!(there.one::<String>(query), session.one::<String>(query));
    }
    // A process for the engine alone, which is in no database.
    let kinds: Vec<String> = there.list(
        "select backend_type || coalesce(datname, '') from pg_stat_activity
         where backend_type like 'pg_steadytext%' order by 1",
    );
    assert_eq!(kinds, ["pg_steadytext engine", "pg_steadytext launcher"]);
    standby.promote();
    let id = there.generate("promoted", "max_tokens => 4");
    there.answer(id);
    there.run("select steadytext_embed('promoted')");
}
