//! Figures of requests: what is counted, how long it is kept, who sees it, and what is written to the log.

use std::os::unix::fs::symlink;
use std::path::Path;

use steadytext_test_server::{Cluster, Options, Session, Shutdown, Signal, slow_model, wait_until};

/// The numbers of a type of request on the builtin model: requests, completed, failed, cancelled, retried,
/// cache hits.
fn counted(session: &mut Session, model: &str, request_type: &str) -> Vec<i64> {
    session.one(&format!(
        "select coalesce((select array[requests, completed, failed, cancelled, retried, cache_hits] from steadytext_stat
          where datname = current_database() and model = '{model}' and request_type = '{request_type}'), '{{}}')"
    ))
}

fn all(session: &mut Session) -> String {
    session.one("select coalesce(string_agg(s::text, e'\n' order by model, request_type), '') from steadytext_stat as s")
}

/// Makes some requests of the queue and some calls.
fn ask(session: &mut Session) {
    let id = session.generate("What does VACUUM do?", "max_tokens => 5, use_cache => false");
    session.answer(id);
    session.run("select steadytext_generate('What does VACUUM do?', 5, use_cache => false)");
    session.run("select steadytext_embed('a text', use_cache => false)");
}

fn file(cluster: &Cluster) -> std::path::PathBuf {
    cluster.data().join("pg_stat/pg_steadytext.stat")
}

#[test]
fn figures_outlive_an_orderly_restart_and_not_a_crash() {
    let mut cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    ask(&mut session);
    assert_eq!(counted(&mut session, "builtin", "generate"), [2, 2, 0, 0, 0, 0]);
    let before = all(&mut session);
    drop(session);
    for how in [Shutdown::Fast, Shutdown::Smart] {
        cluster.stop(how);
        assert!(file(&cluster).is_file());
        cluster.start();
        assert!(!file(&cluster).exists(), "a file that was read is gone");
        assert_eq!(all(&mut cluster.session("postgres")), before);
    }
    let mut session = cluster.session("postgres");
    ask(&mut session);
    assert_eq!(counted(&mut session, "builtin", "generate"), [4, 4, 0, 0, 0, 0], "it goes on");
    let worker = session.worker_pid();
    cluster.crash(worker, Signal::KILL);
    let mut session = cluster.session("postgres");
    assert_eq!(all(&mut session), "", "nobody knows what was in memory");
    ask(&mut session);
    assert_eq!(counted(&mut session, "builtin", "embed"), [1, 1, 0, 0, 0, 0]);
    drop(session);
    cluster.restart();
    let mut session = cluster.session("postgres");
    assert_eq!(
        counted(&mut session, "builtin", "embed"),
        [1, 1, 0, 0, 0, 0],
        "after a crash they are kept as before"
    );
    drop(session);
    // The postmaster itself ends in good order then.
    cluster.stop(Shutdown::Immediate);
    cluster.start();
    assert_eq!(counted(&mut cluster.session("postgres"), "builtin", "embed"), [1, 1, 0, 0, 0, 0]);
    cluster.kill_postmaster();
    cluster.start();
    assert_eq!(all(&mut cluster.session("postgres")), "");
}

#[test]
fn no_file_of_figures_keeps_the_server_from_starting() {
    let mut cluster = Cluster::with_extension();
    ask(&mut cluster.session("postgres"));
    cluster.stop(Shutdown::Fast);
    let good = std::fs::read(file(&cluster)).unwrap();
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let mut longer = good.clone();
    longer.extend_from_slice(&good);
    // Of the right checksum, with numbers that say of a list that it is endless.
    type Spoil = Box<dyn Fn(&Path)>;
    let spoilt: Vec<(&str, Spoil)> = vec![
        ("empty", write(Vec::new())),
        ("cut", write(good[..good.len() / 2].to_vec())),
        ("a digest without anything", write(good[..40].to_vec())),
        ("flipped", write(flipped)),
        ("longer", write(longer)),
        ("noise", write((0..100_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect())),
        ("huge", Box::new(|path| std::fs::File::create(path).unwrap().set_len(1 << 40).unwrap())),
        ("a link to an endless file", Box::new(|path| symlink("/dev/zero", path).unwrap())),
        ("a link to nothing", Box::new(|path| symlink("nowhere", path).unwrap())),
        (
            "a pipe",
            Box::new(|path| {
                assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
            }),
        ),
        ("a directory", Box::new(|path| std::fs::create_dir(path).unwrap())),
    ];
    for (name, make) in spoilt {
        let path = file(&cluster);
        let _ = std::fs::remove_file(&path);
        let _ = std::fs::remove_dir(&path);
        make(&path);
        let from = cluster.log().len();
        cluster.start();
        cluster.wait_for_log(from, "with figures of pg_steadytext was not read");
        let mut session = cluster.session("postgres");
        assert_eq!(all(&mut session), "", "{name}");
        ask(&mut session);
        assert_eq!(counted(&mut session, "builtin", "generate"), [2, 2, 0, 0, 0, 0], "{name}");
        drop(session);
        cluster.stop(Shutdown::Fast);
    }
    let _ = std::fs::remove_dir(file(&cluster));
    std::fs::write(file(&cluster), &good).unwrap();
    cluster.start();
    assert_eq!(counted(&mut cluster.session("postgres"), "builtin", "generate"), [2, 2, 0, 0, 0, 0]);
    assert!(!cluster.log().contains("PANIC"));
}

fn write(bytes: Vec<u8>) -> Box<dyn Fn(&Path)> {
    Box::new(move |path| std::fs::write(path, &bytes).unwrap())
}

#[test]
fn what_becomes_of_requests_is_counted_once() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    slow_model(&cluster, &mut session);
    // Cancelled in the middle.
    let id = session.generate("a long text", "model => 'slow', max_tokens => 300");
    session.wait_for_tokens(id);
    assert!(session.cancel(id));
    wait_until("it is counted", || counted(&mut session, "slow", "generate") == [1, 0, 0, 1, 0, 0]);
    // A call that is interrupted.
    let backend = session.backend_pid();
    let canceller = std::thread::spawn({
        let mut other = cluster.session("postgres");
        move || {
            wait_until("it is being answered", || {
                other.one(&format!(
                    "select exists (select from steadytext_activity where worker_pid = {backend} and generated_tokens > 0)"
                ))
            });
            other.run(&format!("select pg_cancel_backend({backend})"));
        }
    });
    session.error("select steadytext_generate('a long text', 300, model => 'slow')");
    canceller.join().unwrap();
    assert_eq!(counted(&mut session, "slow", "generate"), [2, 0, 0, 2, 0, 0]);
    // Found in the cache by the worker's next look, or when it is inserted.
    let id = session.generate("Hello", "max_tokens => 5");
    session.answer(id);
    wait_until("the answer is kept", || session.one::<i64>("select count(*) from steadytext_cache") == 1);
    let id = session.generate("Hello", "max_tokens => 5");
    session.answer(id);
    session.run("select steadytext_generate('Hello', 5)");
    wait_until("they are counted", || counted(&mut session, "builtin", "generate") == [3, 3, 0, 0, 0, 2]);
    // Fails for what is asked, on the worker: too long for the context.
    let id = session.generate(&"a word and another ".repeat(20_000), "max_tokens => 5");
    session.wait_for(id, "failed");
    wait_until("it is counted", || counted(&mut session, "builtin", "generate") == [4, 3, 1, 0, 0, 2]);
    // An answer that the table refuses has failed.
    session.run(
        "create function refuse() returns trigger language plpgsql as $$ begin raise exception 'no'; end $$;
         create trigger refuse before update on steadytext_queue for each row
         when (new.status = 'completed') execute function refuse()",
    );
    let id = session.generate("refused", "max_tokens => 5, use_cache => false");
    session.wait_for(id, "failed");
    wait_until("it is counted", || counted(&mut session, "builtin", "generate") == [5, 3, 2, 0, 0, 2]);
}

#[test]
fn an_attempt_that_is_made_again_is_no_other_request() {
    let cluster = Options::new().environment("STEADYTEXT_TEST_FAULT", "admit").start();
    let mut session = cluster.session("postgres");
    session.create_extension();
    session.run("select steadytext_config_set('max_retries', '2')");
    let fault = cluster.data().join("pg_stat_tmp/pg_steadytext.fault");
    std::fs::write(&fault, "").unwrap();
    let id = session.generate("What does VACUUM do?", "max_tokens => 5");
    wait_until("it is tried again", || {
        session.one::<i64>("select coalesce(sum(retried), 0)::bigint from steadytext_stat") >= 1
    });
    std::fs::remove_file(&fault).unwrap();
    session.wait_for_end(id);
    let retried: i64 =
        session.one(&format!("select retry_count::bigint from steadytext_queue where request_id = '{id}'"));
    wait_until("it is counted", || {
        let counted = counted(&mut session, "builtin", "generate");
        counted[0] == 1 && counted[1] + counted[2] == 1 && counted[4] == retried
    });
}

#[test]
fn other_databases_are_for_those_who_read_all_statistics_and_dropped_ones_are_forgotten() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run("create database other");
    let mut other = cluster.session("other");
    other.create_extension();
    ask(&mut session);
    ask(&mut other);
    session.run(
        "create role alice login in role steadytext_user; create role watch login in role pg_monitor;
         create role reader login in role pg_read_all_stats",
    );
    let databases = "select array_agg(distinct datname::text order by datname::text) from steadytext_stat";
    assert_eq!(session.one::<Vec<String>>(databases), ["other", "postgres"]);
    assert_eq!(cluster.session_as("postgres", "alice").one::<Vec<String>>(databases), ["postgres"]);
    for role in ["watch", "reader"] {
        let mut session = cluster.session_as("postgres", role);
        assert_eq!(session.one::<Vec<String>>(databases), ["other", "postgres"]);
        let metrics: String = session.one("select steadytext_metrics()");
        assert!(metrics.contains("database=\"postgres\"") && !metrics.contains("database=\"other\""));
    }
    other.run("select steadytext_stat_reset()");
    drop(other);
    assert_eq!(session.one::<Vec<String>>(databases), ["postgres"], "a database is reset by itself");
    ask(&mut cluster.session("other"));
    session.run("drop database other with (force)");
    wait_until("it is forgotten", || {
        session.one::<i64>("select count(*) from steadytext_stat where datname is null") == 0
    });
    assert_eq!(session.one::<Vec<String>>(databases), ["postgres"]);
}

#[test]
fn slow_requests_are_logged_without_a_word_of_theirs() {
    let cluster = Options::new().set("pg_steadytext.log_min_duration", "0").start();
    let mut session = cluster.session("postgres");
    session.create_extension();
    let from = cluster.log().len();
    session.run("select steadytext_generate('A secret of the call', 5, use_cache => false)");
    let line = cluster.wait_for_log(from, "pg_steadytext call (generate, builtin) completed: ");
    assert!(line.contains(" 5 generated"), "{line}");
    session.run(
        "do $$ begin perform steadytext_generate('A secret of the block', 5, use_cache => false); end $$",
    );
    let id = session.generate("A secret of the queue", "max_tokens => 5, use_cache => false");
    session.answer(id);
    let line =
        cluster.wait_for_log(from, &format!("pg_steadytext request {id} (generate, builtin) completed: "));
    assert!(line.contains(" in the queue") && line.contains(" 5 generated"), "{line}");
    session.run("set pg_steadytext.log_min_duration = '1h'");
    let quiet = cluster.log().len();
    session.run("select steadytext_generate('A secret that is fast', 5, use_cache => false)");
    let log = cluster.log();
    assert!(!log[quiet..].contains("pg_steadytext call"), "{}", &log[quiet..]);
    assert!(!log[from..].contains("secret"), "{}", &log[from..]);
    session.run("create role alice login in role steadytext_user");
    let error = cluster.session_as("postgres", "alice").error("set pg_steadytext.log_min_duration = 0");
    assert_eq!(error.code().code(), "42501");
}
