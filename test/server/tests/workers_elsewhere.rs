//! `steadytext-worker`, which serves a queue from another machine: the same bytes as the server's own worker, and nothing lost or
//! done twice whoever dies.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use steadytext_test_server::{Cluster, Session, Signal, endless_text, signal, slow_model, wait_until};

/// A worker's process, which ends with the test.
struct Worker(Child);

impl Worker {
    /// Starts one for database `postgres`, as a member of steadytext_worker.
    fn start(cluster: &Cluster, arguments: &[&str]) -> Worker {
        let program = program();
        let url = format!("host={} port=5432 user=remote dbname=postgres", cluster.directory().display());
        let mut command = Command::new(&program);
        command.arg("--database-url").arg(url).arg("--model-dir").arg(cluster.model_directory());
        command.args(["--poll-interval", "0.1", "--threads", "1"]).args(arguments);
        Worker(command.spawn().unwrap_or_else(|error| panic!("{}: {error}", program.display())))
    }

    fn signal(&self, which: Signal) {
        assert!(signal(self.0.id() as i32, which));
    }

    /// Waits for its end; whether it ended well.
    fn wait(&mut self) -> bool {
        let mut status = None;
        wait_until("the worker ends", || {
            status = self.0.try_wait().expect("our own child");
            status.is_some()
        });
        status.is_some_and(|status| status.success())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Built with the tests: `target/release/steadytext-worker`.
fn program() -> PathBuf {
    let own = std::env::current_exe().expect("a test knows its binary");
    own.parent().and_then(|deps| deps.parent()).expect("target/release/deps").join("steadytext-worker")
}

/// A cluster whose own worker is paused, and a role for workers elsewhere.
fn paused() -> (Cluster, Session) {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run("create role remote login in role steadytext_worker");
    session.pause();
    (cluster, session)
}

/// Requests of every kind, each once for each number; tag is their session_id.
fn enqueue_all_kinds(session: &mut Session, tag: &str, copies: i32) {
    session.run(&format!(
        r#"insert into steadytext_queue (request_type, prompt, prompts, params, session_id)
           select k.request_type, replace(k.prompt, '%', n::text), k.prompts,
               k.params::jsonb || '{{"use_cache": false}}', '{tag}'
           from generate_series(1, {copies}) as n
           cross join (values
               ('generate', 'What does VACUUM do in case %?', null::text[], '{{"max_tokens": 6}}'),
               ('generate', 'Tell me about index %', null, '{{"max_tokens": 6, "temperature": 0.9, "seed": 5, "stop": ["."]}}'),
               ('generate', 'Say something, %', null, '{{"max_tokens": 5, "system_prompt": "Be brief.", "repeat_penalty": 1.2}}'),
               ('generate_json', 'A table of % rows', null, '{{"schema": {{"type": "object", "properties": {{"a": {{"type": "integer"}}}}, "required": ["a"]}}}}'),
               ('generate_regex', 'Number %', null, '{{"pattern": "[0-9]{{3}}"}}'),
               ('generate_choice', 'Is % even?', null, '{{"choices": ["yes", "no"]}}'),
               ('embed', 'Text % to be found', null, '{{}}'),
               ('embed', 'What is %?', null, '{{"mode": "query"}}'),
               ('batch_embed', null, array['one', 'two', 'three'], '{{}}'),
               ('rerank', 'query %', array['a document', 'another one', 'a document'], '{{"return_scores": true}}'),
               ('summarize', repeat('A table has rows. VACUUM reclaims what dead ones take, case %. ', 90), null, '{{"max_words": 20}}'),
               ('similarity', null, array['one text', 'another text'], '{{}}'),
               ('if', 'Is % a number?', null, '{{}}'),
               ('score', 'How good is % of 10?', null, '{{}}'),
               ('classify', 'Case % is urgent', null, '{{"categories": ["bug", "question"]}}'),
               ('classify_scores', 'Case % is urgent', null, '{{"categories": ["bug", "question"]}}')
           ) as k(request_type, prompt, prompts, params)"#
    ));
}

/// What came of them, in order.
fn results(session: &mut Session, tag: &str) -> Vec<String> {
    session.list(&format!(
        "select concat_ws('|', request_type, status, result, results, embedding, embeddings, error, error_code, prompt_tokens,
             generated_tokens, finish_reason)
         from steadytext_queue where session_id = '{tag}' order by id"
    ))
}

fn unfinished(session: &mut Session) -> i64 {
    session.one("select count(*) from steadytext_queue where status in ('pending', 'processing')")
}

#[test]
fn a_worker_elsewhere_gives_the_same_bytes() {
    let (cluster, mut session) = paused();
    enqueue_all_kinds(&mut session, "elsewhere", 4);
    assert!(Worker::start(&cluster, &["--drain"]).wait());
    let elsewhere = results(&mut session, "elsewhere");
    let by: Vec<bool> = session.list("select distinct starts_with(worker, 'local:') from steadytext_queue");
    assert_eq!(by, [false]);
    enqueue_all_kinds(&mut session, "here", 4);
    session.run("select steadytext_daemon_start()");
    wait_until("the server's own worker has done all", || unfinished(&mut session) == 0);
    let here = results(&mut session, "here");
    assert_eq!(elsewhere.len(), 64);
    let different: Vec<_> =
        elsewhere.iter().zip(&here).filter(|(elsewhere, here)| elsewhere != here).collect();
    assert!(different.is_empty(), "{different:#?}");
    let completed = elsewhere.iter().filter(|line| line.contains("|completed|")).count();
    assert_eq!(completed, 64, "{elsewhere:#?}");
}

#[test]
fn what_a_killed_worker_held_runs_again_and_ends_once() {
    let (cluster, mut session) = paused();
    session.audit();
    slow_model(&cluster, &mut session);
    for number in 0..6 {
        session
            .generate(&format!("question {number}"), "model => 'slow', max_tokens => 48, use_cache => false");
    }
    let mut first = Worker::start(&cluster, &["--lease", "2"]);
    wait_until("all are held", || {
        session.one::<i64>("select count(*) from steadytext_queue where status = 'processing'") == 6
    });
    first.signal(Signal::KILL);
    assert!(!first.wait());
    let _second = Worker::start(&cluster, &["--lease", "2"]);
    wait_until("all have ended", || unfinished(&mut session) == 0);
    assert_eq!(session.one::<i64>("select count(*) from steadytext_queue where status = 'completed'"), 6);
    assert_eq!(session.doubled(), 0);
    assert_eq!(session.one::<i32>("select max(attempt) from steadytext_queue"), 2);
}

#[test]
fn what_is_held_is_kept_over_a_restart_of_the_server() {
    let (mut cluster, mut session) = paused();
    slow_model(&cluster, &mut session);
    for number in 0..4 {
        session
            .generate(&format!("question {number}"), "model => 'slow', max_tokens => 64, use_cache => false");
    }
    let mut worker = Worker::start(&cluster, &[]);
    wait_until("all are held", || {
        session.one::<i64>("select count(*) from steadytext_queue where status = 'processing'") == 4
    });
    drop(session);
    cluster.restart();
    let mut session = cluster.session("postgres");
    wait_until("all have ended", || unfinished(&mut session) == 0);
    let attempts: Vec<i32> = session.list("select attempt from steadytext_queue where status = 'completed'");
    assert_eq!(attempts, [1; 4], "nothing was done twice");
    // Its listening connection is made again as well: what is enqueued now is served.
    let id = session.generate("one more", "max_tokens => 2, use_cache => false");
    session.answer(id);
    worker.signal(Signal::TERM);
    assert!(worker.wait());
}

#[test]
fn a_worker_that_is_told_to_stop_gives_back_what_it_cannot_end() {
    let (cluster, mut session) = paused();
    slow_model(&cluster, &mut session);
    for number in 0..4 {
        session.generate(&format!("question {number}"), endless_text());
    }
    let mut worker = Worker::start(&cluster, &["--grace", "0.1"]);
    wait_until("all are held", || {
        session.one::<i64>("select count(*) from steadytext_queue where status = 'processing'") == 4
    });
    worker.signal(Signal::TERM);
    assert!(worker.wait());
    let rows: Vec<String> = session
        .list("select concat_ws(' ', status, retry_count, coalesce(worker, 'nobody')) from steadytext_queue");
    assert_eq!(rows, ["pending 0 nobody"; 4]);
}

#[test]
fn a_model_that_is_elsewhere_is_computed_there_and_nowhere_else() {
    let (cluster, mut session) = paused();
    slow_model(&cluster, &mut session);
    session.run("update steadytext_models set placement = 'elsewhere' where name = 'slow'");
    session.run("select steadytext_daemon_start()");
    let error = session.error("select steadytext_generate('x', 2, model => 'slow')");
    assert_eq!(error.code().code(), "0A000", "{error}");
    assert!(error.hint().is_some());
    let far = session.generate("far", "model => 'slow', max_tokens => 2, use_cache => false");
    let near = session.generate("near", "max_tokens => 2, use_cache => false");
    session.answer(near);
    assert_eq!(session.request(far).status, "pending");
    assert_eq!(session.request(far).attempt, 0);
    // The worker takes what it is for, and leaves the rest.
    session.pause();
    let other = session.generate("other", "max_tokens => 2, use_cache => false");
    let mut worker = Worker::start(&cluster, &["--models", "SLOW"]);
    session.answer(far);
    worker.signal(Signal::TERM);
    assert!(worker.wait());
    assert_eq!(session.request(other).attempt, 0);
    // Types, and what the server keeps to itself.
    session.run("update steadytext_models set placement = 'server' where name = 'slow'");
    let kept = session.generate("kept", "model => 'slow', max_tokens => 2, use_cache => false");
    let vector = session.embed("a text", "use_cache => false");
    assert!(Worker::start(&cluster, &["--drain", "--types", "embed"]).wait());
    assert_eq!(session.request(vector).status, "completed");
    assert_eq!(session.request(other).attempt, 0);
    assert!(Worker::start(&cluster, &["--drain"]).wait());
    assert_eq!(session.request(other).status, "completed");
    assert_eq!(session.request(kept).attempt, 0);
}

#[test]
fn a_file_that_is_not_the_servers_answers_nothing() {
    let (cluster, mut session) = paused();
    slow_model(&cluster, &mut session);
    session.run("update steadytext_models set sha256 = repeat('0a', 32) where name = 'slow'");
    let id = session.generate("x", "model => 'slow', max_tokens => 2, use_cache => false");
    let fine = session.generate("y", "max_tokens => 2, use_cache => false");
    let mut worker = Worker::start(&cluster, &[]);
    session.answer(fine);
    wait_until("it was tried", || session.request(id).error.is_some());
    worker.signal(Signal::TERM);
    assert!(worker.wait());
    let request = session.request(id);
    assert_eq!(request.answer, None);
    assert!(request.error.is_some_and(|error| error.contains("SHA-256")), "it says why");
}

#[test]
fn health_and_figures_are_served() {
    let (cluster, mut session) = paused();
    // One that nobody uses just now.
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let address = free.expect("a free port").to_string();
    let worker = Worker::start(&cluster, &["--listen", &address]);
    let ask = |path: &str| {
        let mut stream = TcpStream::connect(&address).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").ok()?;
        let mut said = String::new();
        stream.read_to_string(&mut said).ok()?;
        Some(said)
    };
    wait_until("it is ready", || ask("/health/ready").is_some_and(|said| said.starts_with("HTTP/1.1 200")));
    let id = session.generate("x", "max_tokens => 2, use_cache => false");
    session.answer(id);
    wait_until("it is counted", || {
        ask("/metrics").is_some_and(|said| {
            said.lines()
                .any(|line| line.starts_with("steadytext_worker_completed_total{") && line.ends_with(" 1"))
        })
    });
    let check = || {
        let mut command = Command::new(program());
        command.args(["--healthcheck", "--listen", &address]).stderr(Stdio::null());
        command.status().expect("it was built").success()
    };
    assert!(check());
    assert!(ask("/etc/passwd").expect("an answer").starts_with("HTTP/1.1 404"));
    drop(worker);
    assert!(!check());
}

#[test]
fn the_protocol_for_engines_refuses_what_is_not_its_own() {
    let (cluster, mut session) = paused();
    let mut remote = cluster.session_as("postgres", "remote");
    let error = remote.error("select steadytext.prepared_work('1.0.0', 'generate', 'x', null, null)");
    assert_eq!(error.code().code(), "0A000", "{error}");
    session.run("create role somebody login in role steadytext_user");
    let mut somebody = cluster.session_as("postgres", "somebody");
    for call in [
        "prepared_work('2.0.0', 'generate', 'x', null, null)",
        "complete_reports('w', '{1}', '{1}', '{x}')",
        "read_report('generate', 'x', null, null, 'x')",
        "worker_models()",
    ] {
        let error = somebody.error(&format!("select * from steadytext.{call}"));
        assert_eq!(error.code().code(), "42501", "{call}: {error}");
    }
    let error = remote.error("select * from steadytext.complete_reports('local:x', '{1}', '{1}', '{x}')");
    assert_eq!(error.code().code(), "22023", "{error}");
    // Bytes that are no report end the request that they are about, whatever they are.
    for report in
        ["", "x", "\\x05322e302e30", "\\x05322e302e30ffffffffffffffffff01", "\\x05322e302e3000ffffffff0f"]
    {
        let id = session.generate("x", "max_tokens => 2, use_cache => false");
        let outcome: String = remote.one(&format!(
            "with claimed as materialized (
                 select array_agg(id) as ids, array_agg(attempt) as attempts
                 from steadytext.claim_requests('elsewhere-1', 1, 3600, null, false)
             )
             select r.outcome from claimed as c
             cross join lateral steadytext.complete_reports('elsewhere-1', c.ids, c.attempts, array['{report}'::bytea]) as r"
        ));
        assert!(outcome == "done" || outcome == "retried", "{report}: {outcome}");
        let request = session.request(id);
        assert!(request.error.is_some() && request.answer.is_none(), "{report}: {request:?}");
        session.cancel(id);
    }
}
