//! `steadytext-worker`, which serves a queue from another machine: the same bytes as the server's own worker,
//! and nothing lost or done twice whoever dies.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};

use steadytext_test_models::Bert;
use steadytext_test_server::WorkerElsewhere as Worker;
use steadytext_test_server::served_elsewhere as paused;
use steadytext_test_server::{
    Cluster, Session, Shutdown, Signal, encoders, endless_text, slow_model, wait_until, worker_program,
};

/// Requests of every type, some in several ways, each once for each number; tag is their session_id. The
/// number of them.
pub(crate) fn enqueue_all_kinds(session: &mut Session, tag: &str, copies: i32) -> usize {
    session.run(&format!(
        r#"insert into steadytext_queue (request_type, prompt, prompts, params, session_id)
           select k.request_type, replace(k.prompt, '%', n::text), k.prompts,
               k.params::jsonb || '{{"use_cache": false}}', '{tag}'
           from generate_series(1, {copies}) as n
           cross join (values
               ('generate', 'What does VACUUM do in case %?', null::text[], '{{"max_tokens": 6}}'),
               ('generate', 'Tell me about index %', null, '{{"max_tokens": 6, "temperature": 0.9, "seed": 5, "stop": ["."]}}'),
               ('generate', 'Say something, %', null, '{{"max_tokens": 5, "system_prompt": "Be brief.", "repeat_penalty": 1.2}}'),
               ('generate', 'And case %?', null, '{{"max_tokens": 5, "messages": [{{"role": "user", "content": "Hello"}}, {{"role": "assistant", "content": "Hi"}}]}}'),
               ('generate', 'Default %', null, '{{"max_tokens": 5, "default_model": "slow"}}'),
               ('generate', 'Named %', null, '{{"max_tokens": 5, "model": "slow"}}'),
               ('generate_json', 'A table of % rows', null, '{{"schema": {{"type": "object", "properties": {{"a": {{"type": "integer"}}}}, "required": ["a"]}}}}'),
               ('generate_regex', 'Number %', null, '{{"pattern": "[0-9]{{3}}"}}'),
               ('generate_choice', 'Is % even?', null, '{{"choices": ["yes", "no"]}}'),
               ('embed', 'Text % to be found', null, '{{}}'),
               ('embed', 'What is %?', null, '{{"mode": "query"}}'),
               ('embed', 'Prompted %', null, '{{"model": "prompted"}}'),
               ('embed', 'Prompted %?', null, '{{"model": "prompted", "mode": "query", "dimensions": 16}}'),
               ('batch_embed', null, array['one', 'two', 'three'], '{{}}'),
               ('batch_embed', null, array(select repeat('text ' || i || ' ', 150) from generate_series(1, 250) as i), '{{"truncate": true}}'),
               ('rerank', 'query %', array['a document', 'another one', 'a document'], '{{"return_scores": true}}'),
               ('batch_rerank', null, array['query %', 'another'], '{{"documents": ["a document", "another one"], "return_scores": true}}'),
               ('summarize', repeat('A table has rows. VACUUM reclaims what dead ones take, case %. ', 90), null, '{{"max_words": 20}}'),
               ('similarity', null, array['one text', 'another text'], '{{}}'),
               ('if', 'Is % a number?', null, '{{}}'),
               ('if_score', 'Is % a number?', null, '{{}}'),
               ('score', 'How good is % of 10?', null, '{{}}'),
               ('classify', 'Case % is urgent', null, '{{"categories": ["bug", "question"]}}'),
               ('classify', 'Case % is urgent', null, '{{"categories": ["bug", "question"], "method": "embed"}}'),
               ('classify_scores', 'Case % is urgent', null, '{{"categories": ["bug", "question"]}}'),
               ('classify_multi', 'Case % is urgent', null, '{{"categories": ["bug", "question", "praise"], "threshold": 0.1}}'),
               ('analyze_sentiment', 'Case % is a joy', null, '{{}}'),
               ('extract', 'Case % is about Anna, aged 30.', null, '{{"fields": ["name::The name", "age::integer::The age"]}}'),
               ('translate', 'Case %', null, '{{"to_language": "German"}}'),
               ('mask', 'Anna lives in case %.', null, '{{"labels": ["person"]}}'),
               ('extract_facts', 'Anna has % cats. Berta has none.', null, '{{"max_facts": 2}}'),
               ('deduplicate_facts', '["Anna has % cats", "Anna has % cats", "Berta has none"]', null, '{{}}')
           ) as k(request_type, prompt, prompts, params)"#
    ));
    session.one::<i64>(&format!("select count(*) from steadytext_queue where session_id = '{tag}'")) as usize
}

/// Prepares the models for all types of requests besides the builtin one: one that is named, one with
/// prompts, and a prompt that the database keeps.
pub(crate) fn needs(cluster: &Cluster, session: &mut Session) {
    slow_model(cluster, session);
    encoders(cluster, session, &Bert::default());
    session.run(
        "insert into steadytext_models (name, task, file, query_prompt, passage_prompt, dimensions)
             values ('prompted', 'embed', 'encoder.gguf', 'query: ', 'passage: ', '{16}');
         select steadytext_prompt_create('steadytext/if', 'Truly? {{ prompt }}')",
    );
}

/// The results of these requests, in order.
pub(crate) fn results(session: &mut Session, tag: &str) -> Vec<String> {
    session.list(&format!(
        "select concat_ws('|', request_type, status, result, results, embedding, embeddings, error, error_code, prompt_tokens,
             generated_tokens, finish_reason)
         from steadytext_queue where session_id = '{tag}' order by id"
    ))
}

#[test]
fn a_worker_elsewhere_gives_the_same_bytes() {
    let (cluster, mut session) = paused();
    needs(&cluster, &mut session);
    let count = enqueue_all_kinds(&mut session, "elsewhere", 2);
    // Every type that there is, so that none that is new is left out: the hint about one that is not names
    // them.
    let error = session.error("insert into steadytext_queue (request_type, prompt) values ('nonsense', 'x')");
    let hint = error.hint().expect("it names them");
    let list = hint.trim_start_matches("Use request type ").trim_end_matches('.').replace(" or ", ", ");
    let mut known: Vec<&str> = list.split(", ").collect();
    known.sort_unstable();
    let enqueued: Vec<String> =
        session.list("select distinct request_type collate \"C\" from steadytext_queue order by 1");
    assert_eq!(enqueued, known);
    assert!(Worker::start(&cluster, &["--drain"]).wait());
    let elsewhere = results(&mut session, "elsewhere");
    let by: Vec<bool> = session.list("select distinct starts_with(worker, 'local:') from steadytext_queue");
    assert_eq!(by, [false]);
    enqueue_all_kinds(&mut session, "here", 2);
    session.run("select steadytext_daemon_start()");
    wait_until("the server's own worker has done all", || session.unfinished() == 0);
    let here = results(&mut session, "here");
    assert_eq!(elsewhere.len(), count);
    let different: Vec<_> =
        elsewhere.iter().zip(&here).filter(|(elsewhere, here)| elsewhere != here).collect();
    assert!(different.is_empty(), "{different:#?}");
    let completed = elsewhere.iter().filter(|line| line.contains("|completed|")).count();
    assert_eq!(completed, count, "{elsewhere:#?}");
}

#[test]
fn a_vectorizer_gets_its_vectors_from_a_worker_elsewhere() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    encoders(&cluster, &mut session, &Bert::default());
    session.run(
        "create role remote login in role steadytext_worker;
         create table docs (id integer primary key, body text);
         insert into docs select i, 'text ' || i from generate_series(1, 300) as i;
         update steadytext_models set placement = 'elsewhere' where name = 'file'",
    );
    // The server cannot ask how long vectors are, and says how that comes to be known.
    let create =
        "select steadytext_create_vectorizer('docs', array['body'], model => 'file', index => 'none')";
    let error = session.error(create);
    assert_eq!(error.code().code(), "55000", "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("steadytext_embed_async")), "{error:?}");
    let mut worker = Worker::start(&cluster, &[]);
    let id = session.embed("pg_steadytext", "model => 'file'");
    session.answer(id);
    session.run(create);
    let chunks = session.error(
        "select steadytext_create_vectorizer('docs', array['body'], name => 'cut', destination => 'cut', model => 'file', chunk_size => 20)",
    );
    assert_eq!(chunks.code().code(), "0A000", "{chunks}");
    wait_until("all have vectors", || {
        session.one::<i64>("select count(distinct id) from docs_body_embedding") == 300
    });
    session.run("update docs set body = 'another text' where id = 7");
    wait_until("the new text has its own", || {
        session.one(
            "select coalesce(bool_or(embedding = steadytext_embed('another text', model => 'folder')), false)
             from docs_body_embedding where id = 7",
        )
    });
    let different: i64 = session.one(
        "select count(*) from docs_body_embedding as e join docs as d using (id)
         where e.embedding <> steadytext_embed(d.body, model => 'folder')",
    );
    assert_eq!(different, 0);
    let own: i64 = session.one("select count(*) from steadytext_queue where starts_with(worker, 'local:')");
    assert_eq!(own, 0);
    assert!(worker.stop());
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
    wait_until("all have ended", || session.unfinished() == 0);
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
    // Claimed with the others: when it is answered, the worker has them all.
    let short = session.generate("a short one", "max_tokens => 1, use_cache => false");
    let mut worker = Worker::start(&cluster, &[]);
    session.answer(short);
    wait_until("all are held", || {
        session.one::<i64>("select count(*) from steadytext_queue where status = 'processing'") == 4
    });
    drop(session);
    cluster.restart();
    let mut session = cluster.session("postgres");
    wait_until("all have ended", || session.unfinished() == 0);
    let attempts: Vec<i32> = session.list("select attempt from steadytext_queue where status = 'completed'");
    assert_eq!(attempts, [1; 5], "nothing was done twice");
    // Its listening connection is made again as well: what is enqueued now is served.
    let id = session.generate("one more", "max_tokens => 2, use_cache => false");
    session.answer(id);
    assert!(worker.stop());
}

#[test]
fn answers_that_are_ready_while_the_server_is_away_are_stored_when_it_is_back() {
    let (mut cluster, mut session) = paused();
    slow_model(&cluster, &mut session);
    for number in 0..4 {
        session
            .generate(&format!("question {number}"), "model => 'slow', max_tokens => 24, use_cache => false");
    }
    let mut worker = Worker::start(&cluster, &[]);
    wait_until("all are held", || {
        session.one::<i64>("select count(*) from steadytext_queue where status = 'processing'") == 4
    });
    drop(session);
    cluster.stop(Shutdown::Immediate);
    worker.rest();
    cluster.start();
    let mut session = cluster.session("postgres");
    wait_until("all have ended", || session.unfinished() == 0);
    let attempts: Vec<i32> = session.list("select attempt from steadytext_queue where status = 'completed'");
    assert_eq!(attempts, [1; 4], "nothing was done twice");
    assert!(worker.stop());
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
    assert!(worker.stop());
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
    assert!(worker.stop());
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
    assert!(worker.stop());
    let request = session.request(id);
    assert_eq!(request.answer, None);
    assert!(request.error.is_some_and(|error| error.contains("SHA-256")), "it says why");
}

#[test]
fn a_file_of_another_length_than_the_servers_answers_nothing() {
    let (cluster, mut session) = paused();
    slow_model(&cluster, &mut session);
    // Nobody has loaded it, so nobody knows its checksum.
    let other = cluster.make_directory("other");
    let mut longer = std::fs::read(cluster.model_directory().join("slow.gguf")).expect("it was written");
    longer.push(0);
    std::fs::write(other.join("slow.gguf"), longer).expect("our own directory");
    let id = session.generate("x", "model => 'slow', max_tokens => 2, use_cache => false");
    let mut worker = Worker::start(&cluster, &["--model-dir", &other.display().to_string()]);
    wait_until("it was tried", || session.request(id).error.is_some());
    assert!(worker.stop());
    let request = session.request(id);
    assert_eq!(request.answer, None);
    assert!(request.error.is_some_and(|error| error.contains("bytes")), "it says why");
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
        let mut command = Command::new(worker_program());
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
