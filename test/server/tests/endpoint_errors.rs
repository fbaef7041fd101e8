//! Endpoints that make mistakes, files that cannot be used, and answers that are none: nothing is lost or
//! taken in.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::json;
use steadytext_engine::remote_job::{self, Report};
use steadytext_engine::{Finish, Output};
use steadytext_test_models::endpoint::{LocalEndpoint, Mistake};
use steadytext_test_server::WorkerElsewhere as Worker;
use steadytext_test_server::{Session, served_elsewhere, wait_until, worker_program};

use crate::endpoints::{ASSISTANT, chat, file, model, register, row, start};

#[test]
fn what_goes_wrong_for_a_moment_is_tried_again() {
    let (_cluster, mut session, endpoint, worker) = chat("timeout_s = 60");
    for mistake in [
        Mistake::Status(429, Some(("Retry-After", "0")), String::new()),
        Mistake::Status(503, None, "<html>busy</html>".to_owned()),
        Mistake::Status(500, None, "{\"error\": {\"message\": \"boom\"}}".to_owned()),
        Mistake::Status(408, None, String::new()),
        Mistake::Cut,
        Mistake::CutBody,
        Mistake::Body("{\"choices\": [".to_owned()),
        Mistake::Body("{\"choices\": []}".to_owned()),
        Mistake::Body(
            "{\"choices\": [{\"message\": {\"content\": null}, \"finish_reason\": \"stop\"}]}".to_owned(),
        ),
        Mistake::Body("[]".to_owned()),
    ] {
        let before = endpoint.called().len();
        endpoint.mistake([mistake.clone()]);
        let id = session.generate("x", ASSISTANT);
        assert_eq!(session.answer(id), "echo: x", "{mistake:?}");
        assert_eq!(row(&mut session, id), format!("completed|echo: x|0|1|{}", endpoint.url()), "{mistake:?}");
        assert_eq!(endpoint.called().len(), before + 2, "{mistake:?}");
    }
    drop(worker);
}

#[test]
fn vectors_that_are_none_are_tried_again_and_fail_in_the_end() {
    let (cluster, mut session) = served_elsewhere();
    register(&mut session, "vectors", "embed");
    let endpoint = LocalEndpoint::start().expect("a port");
    let content = model("vectors", "embeddings", &endpoint.url(), "retries = 0");
    let path = file(&cluster, "endpoints", &content);
    let mut worker = start(&cluster, &path, &[]);
    for data in [
        "[]",
        "[{\"index\": 0, \"embedding\": []}]",
        "[{\"index\": 0, \"embedding\": [1, NaN]}]",
        "[{\"index\": 0, \"embedding\": [1, 1e39]}]",
        "[{\"index\": 0, \"embedding\": [0, 0]}]",
        "[{\"index\": 1, \"embedding\": [1, 2]}]",
        "[{\"index\": 0, \"embedding\": \"AACAPw==\"}]",
        "[{\"index\": 0, \"embedding\": [1, null]}]",
        "[{\"index\": 0, \"embedding\": [1]}, {\"index\": 0, \"embedding\": [1]}]",
    ] {
        endpoint.mistake([Mistake::Body(format!("{{\"data\": {data}}}"))]);
        session.run(
            "insert into steadytext_queue (request_type, prompt, params, max_retries) values ('embed', 'x', '{\"model\": \"vectors\"}', 0)",
        );
        wait_until("it has ended", || {
            session
                .one::<i64>("select count(*) from steadytext_queue where status in ('pending', 'processing')")
                == 0
        });
        let ended: String = session
            .one("select concat_ws('|', status, embedding is null, error is not null) from steadytext_queue");
        assert_eq!(ended, "failed|t|t", "{data}");
        session.run("truncate steadytext_queue");
    }
    assert!(worker.stop());
}

#[test]
fn a_text_that_an_endpoint_refuses_fails_alone_and_no_message_has_the_key() {
    let (cluster, mut session) = served_elsewhere();
    register(&mut session, "vectors", "embed");
    let endpoint = LocalEndpoint::start().expect("a port");
    endpoint.require_key("sk-secret-1234");
    endpoint.refuse("poison");
    let content = model("vectors", "embeddings", &endpoint.url(), "key_file = \"key\"\nconcurrency = 1");
    let path = file(&cluster, "endpoints", &content);
    let key = path.with_file_name("key");
    fs::write(&key, "sk-secret-1234\n").expect("our own directory");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("our own file");
    session.run(
        "insert into steadytext_queue (request_type, prompt, params)
         select 'embed', case i when 11 then 'poison' else 'text ' || i end, '{\"model\": \"vectors\"}' from generate_series(1, 20) as i",
    );
    let mut worker = start(&cluster, &path, &["--drain", "--concurrency", "64"]);
    assert!(worker.wait());
    let failed: Vec<String> = session.list(
        "select concat_ws('|', prompt, error_code, retry_count, error) from steadytext_queue where status <> 'completed'",
    );
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert!(failed[0].starts_with("poison|22023|0|"), "{failed:?}");
    assert!(failed[0].contains("400") && failed[0].contains("cannot take poison with key …"), "{failed:?}");
    assert!(!worker.said().contains("secret"), "{}", worker.said());
    assert!(endpoint.called().iter().all(|called| called.authorization.is_some()));
}

#[test]
fn an_endpoint_that_does_not_know_the_key_or_sends_elsewhere_loses_no_request() {
    let (cluster, mut session) = served_elsewhere();
    register(&mut session, "assistant", "generate");
    let (endpoint, other) =
        (LocalEndpoint::start().expect("a port"), LocalEndpoint::start().expect("a port"));
    endpoint.require_key("new");
    let content = model("assistant", "chat", &endpoint.url(), "key_file = \"key\"");
    let path = file(&cluster, "endpoints", &content);
    let key = path.with_file_name("key");
    fs::write(&key, "old").expect("our own directory");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("our own file");
    let id = session.generate("x", ASSISTANT);
    let mut worker = start(&cluster, &path, &[]);
    wait_until("it is given back", || {
        let request = session.request(id);
        request.attempt > 0 && request.status == "pending"
    });
    assert_eq!(session.request(id).retry_count, 0);
    assert!(worker.said().contains("does not know the key"), "{}", worker.said());
    fs::write(&key, "new").expect("our own file");
    assert_eq!(session.answer(id), "echo: x");
    // A redirect to another host is not followed, and takes nothing there.
    let target: &'static str = Box::leak(format!("{}/chat/completions", other.url()).into_boxed_str());
    endpoint.mistake([Mistake::Status(307, Some(("Location", target)), String::new())]);
    let id = session.generate("y", ASSISTANT);
    wait_until("it is given back", || worker.said().contains("redirect"));
    assert_eq!(session.answer(id), "echo: y");
    assert_eq!(session.request(id).retry_count, 0);
    assert!(other.called().is_empty());
    assert!(worker.stop());
}

#[test]
fn an_endpoint_that_is_not_there_is_waited_for_and_no_request_fails() {
    let (cluster, mut session) = served_elsewhere();
    register(&mut session, "assistant", "generate");
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let port = free.expect("a free port").port();
    let url = format!("http://127.0.0.1:{port}/v1");
    let path = file(&cluster, "endpoints", &model("assistant", "chat", &url, "retries = 1"));
    let ids: Vec<_> = (0..6).map(|n| session.generate(&format!("text {n}"), ASSISTANT)).collect();
    let near = session.generate("near", "max_tokens => 2, use_cache => false");
    let mut worker = start(&cluster, &path, &[]);
    wait_until("some were given back", || {
        session.one::<i64>("select count(*) from steadytext_queue where attempt > 1 and status = 'pending'")
            > 0
    });
    session.answer(near);
    let endpoint = LocalEndpoint::start_at(port).expect("it was free");
    for id in ids {
        session.answer(id);
        assert_eq!(session.request(id).retry_count, 0);
    }
    assert!(!endpoint.called().is_empty());
    assert!(worker.stop());
}

#[test]
fn answers_that_do_not_match_are_refused() {
    let (_cluster, mut session, endpoint, mut worker) =
        chat("guided = \"structured_outputs\"\nconcurrency = 1");
    for (kind, params, said, reason) in [
        ("generate_choice", r#"{"choices": ["yes", "no"]}"#, "maybe", "none of the choices"),
        ("generate_regex", r#"{"pattern": "[0-9]+"}"#, "12a", "pattern"),
        ("generate_json", r#"{"schema": {"type": "object", "required": ["a"]}}"#, "{\"b\": 1}", "schema"),
        ("generate_json", r#"{"schema": {"type": "object"}}"#, "{\"b\": 1", "no JSON"),
        (
            "extract",
            r#"{"schema": {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}}"#,
            "{\"age\": \"old\"}",
            "schema",
        ),
        ("generate", "{}", "a\u{0}b", "not valid text"),
    ] {
        endpoint.say(&[said]);
        let id: uuid::Uuid = session.one(&format!(
            "insert into steadytext_queue (request_type, prompt, params)
             values ('{kind}', 'x', '{params}'::jsonb || '{{\"model\": \"assistant\"}}') returning request_id"
        ));
        let ended = session.wait_for_end(id);
        assert_eq!((ended.status.as_str(), ended.answer), ("failed", None), "{kind} {said}");
        let error = ended.error.unwrap_or_default();
        assert!(error.contains(reason), "{kind} {said}: {error}");
        assert!(!error.contains("maybe") && !error.contains("old"), "no message has the answer: {error}");
    }
    // One that was cut short says so.
    endpoint.mistake([Mistake::Body(
        json!({ "choices": [{ "message": { "content": "{\"a\": " }, "finish_reason": "length" }], "usage": { "completion_tokens": 9 } })
            .to_string(),
    )]);
    let id: uuid::Uuid = session.one(
        "insert into steadytext_queue (request_type, prompt, params)
         values ('generate_json', 'x', '{\"schema\": {\"type\": \"object\"}, \"model\": \"assistant\"}') returning request_id",
    );
    let error = session.wait_for_end(id).error.unwrap_or_default();
    assert!(error.contains("not complete after 9 tokens"), "{error}");
    assert!(worker.stop());
}

#[test]
fn the_server_checks_what_workers_say_of_answers_that_must_match() {
    let (cluster, mut session) = served_elsewhere();
    let mut remote = cluster.session_as("postgres", "remote");
    for (kind, params, lie) in [
        ("generate_choice", r#"{"choices": ["yes", "no"]}"#, "maybe"),
        ("generate_regex", r#"{"pattern": "[0-9]+"}"#, "12a"),
        ("generate_json", r#"{"schema": {"type": "object"}}"#, "[1]"),
        ("generate_json", r#"{"schema": {"type": "object"}}"#, "{"),
        (
            "extract",
            r#"{"schema": {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}}"#,
            "{\"age\": \"old\"}",
        ),
    ] {
        session.run(&format!(
            "insert into steadytext_queue (request_type, prompt, params) values ('{kind}', 'x', '{params}')"
        ));
        let output = Output::Text {
            text: lie.to_owned(),
            generated_tokens: 1,
            finish: Finish::Complete,
            out_of_context: false,
        };
        let report = remote_job::encode(&Report {
            outputs: Ok(vec![output]),
            prompt_tokens: None,
            cached_tokens: None,
            first_token_ms: None,
            endpoint: Some("https://liar.example/\u{1b}[2J".repeat(100)),
        });
        remote
            .query(
                "with claimed as materialized (
                     select array_agg(id) as ids, array_agg(attempt) as attempts
                     from steadytext.claim_requests('liar', 1, 3600, null, false)
                 )
                 select r.outcome from claimed as c
                 cross join lateral steadytext.complete_reports('liar', c.ids, c.attempts, array[$1::bytea]) as r",
                &[&report.expect("it has a form")],
            )
            .expect("an outcome");
        let ended: String =
            session.one("select concat_ws('|', status, result, error_code) from steadytext_queue");
        assert_eq!(ended, "failed|22000", "{kind} {lie}");
        session.run("truncate steadytext_queue");
    }
}

#[test]
fn an_answer_without_an_end_and_one_that_does_not_come_fail() {
    let (_cluster, mut session, endpoint, mut worker) =
        chat("max_answer_mb = 1\ntimeout_s = 1.5\nretries = 0");
    endpoint.mistake([Mistake::Endless]);
    let id = session.generate("x", ASSISTANT);
    let ended = session.wait_for_end(id);
    assert_eq!(ended.error_code.as_deref(), Some("22023"), "{ended:?}");
    assert!(ended.error.is_some_and(|error| error.contains("longer than 1 MB")));
    endpoint.mistake([Mistake::Hold]);
    let id: uuid::Uuid = session.one(
        "insert into steadytext_queue (request_type, prompt, params, max_retries)
         values ('generate', 'x', '{\"model\": \"assistant\"}', 0) returning request_id",
    );
    let ended = session.wait_for_end(id);
    assert_eq!(ended.error_code.as_deref(), Some("58030"), "{ended:?}");
    assert!(ended.error.is_some_and(|error| error.contains("has not answered within 1.5 seconds")));
    assert!(worker.stop());
}

#[test]
fn a_request_that_is_cancelled_closes_its_call_and_one_that_is_not_keeps_its_lease() {
    let (cluster, mut session) = served_elsewhere();
    register(&mut session, "assistant", "generate");
    let endpoint = LocalEndpoint::start().expect("a port");
    endpoint.mistake([Mistake::Hold, Mistake::Hold]);
    let path = file(&cluster, "endpoints", &model("assistant", "chat", &endpoint.url(), ""));
    let (kept, cancelled) = (session.generate("kept", ASSISTANT), session.generate("cancelled", ASSISTANT));
    let mut worker = start(&cluster, &path, &["--lease", "2"]);
    wait_until("both are asked", || endpoint.held() == 2);
    let lease = |session: &mut Session| -> String {
        session
            .one(&format!("select lease_expires_at::text from steadytext_queue where request_id = '{kept}'"))
    };
    let first = lease(&mut session);
    assert!(session.cancel(cancelled));
    wait_until("its call is closed", || endpoint.closed() == 1);
    assert_eq!(endpoint.held(), 1);
    wait_until("the lease of the other is extended", || lease(&mut session) != first);
    endpoint.release();
    assert_eq!(session.answer(kept), "echo: kept");
    assert_eq!(session.request(kept).attempt, 1);
    // A call that is cut off takes nothing from those that follow.
    let id = session.generate("next", ASSISTANT);
    assert_eq!(session.answer(id), "echo: next");
    assert!(worker.stop());
}

#[test]
fn a_worker_that_is_told_to_stop_gives_back_what_endpoints_have_not_answered() {
    let (cluster, mut session) = served_elsewhere();
    register(&mut session, "assistant", "generate");
    let endpoint = LocalEndpoint::start().expect("a port");
    endpoint.mistake([Mistake::Hold]);
    let path = file(&cluster, "endpoints", &model("assistant", "chat", &endpoint.url(), "concurrency = 1"));
    for number in 0..3 {
        session.generate(&format!("text {number}"), ASSISTANT);
    }
    let mut worker = start(&cluster, &path, &["--grace", "0.1"]);
    wait_until("one is asked", || endpoint.held() == 1);
    assert!(worker.stop());
    let rows: Vec<String> = session
        .list("select concat_ws(' ', status, retry_count, coalesce(worker, 'nobody')) from steadytext_queue");
    assert_eq!(rows, ["pending 0 nobody"; 3]);
}

#[test]
fn what_an_endpoint_has_no_words_for_is_an_error_of_the_request() {
    let (_cluster, mut session, endpoint, mut worker) = chat("");
    for params in [
        r#"{"temperature": 0.5, "top_k": 5}"#,
        r#"{"temperature": 0.5, "min_p": 0.5}"#,
        r#"{"repeat_penalty": 1.5}"#,
    ] {
        let id: uuid::Uuid = session.one(&format!(
            "insert into steadytext_queue (request_type, prompt, params)
             values ('generate', 'x', '{params}'::jsonb || '{{\"model\": \"assistant\"}}') returning request_id"
        ));
        let ended = session.wait_for_end(id);
        assert_eq!(ended.error_code.as_deref(), Some("0A000"), "{params}: {ended:?}");
    }
    // At temperature 0, a limit of likely tokens means nothing.
    let id: uuid::Uuid = session.one(
        "insert into steadytext_queue (request_type, prompt, params)
         values ('generate', 'x', '{\"top_k\": 5, \"model\": \"assistant\"}') returning request_id",
    );
    session.answer(id);
    assert_eq!(endpoint.called().len(), 1);
    assert!(worker.stop());
}

#[test]
fn models_that_endpoints_must_not_answer_are_left_alone_and_said() {
    let (cluster, mut session) = served_elsewhere();
    let endpoint = LocalEndpoint::start().expect("a port");
    let names = ["nowhere", "server", "promised"];
    session.run(
        "insert into steadytext_models (name, task, file, placement, sha256) values
             ('server', 'generate', 'x.gguf', 'any', null),
             ('promised', 'generate', 'x.gguf', 'elsewhere', repeat('0a', 32))",
    );
    let content: String = names.iter().map(|name| model(name, "chat", &endpoint.url(), "")).collect();
    let path = file(&cluster, "endpoints", &content);
    let id = session.generate("x", "model => 'promised'");
    let mut worker = start(&cluster, &path, &["--drain", "--models", "nix,NOWHERE,server,promised"]);
    assert!(!worker.wait());
    let said = worker.said();
    for name in names {
        assert!(said.contains(&format!("model \"{name}\"")), "{name}: {said}");
    }
    assert!(said.contains("model \"nix\" of --models is answered by no file and no endpoint"), "{said}");
    assert!(said.contains("there is no model on this machine that could be served"), "{said}");
    assert_eq!(session.request(id).attempt, 0);
    assert!(endpoint.called().is_empty());
}

#[test]
fn a_file_that_cannot_be_used_ends_the_program_and_says_why() {
    let (cluster, _session) = served_elsewhere();
    let good = model("m", "chat", "http://127.0.0.1:9/v1", "");
    let folder = cluster.make_directory("keys");
    for (name, text, mode) in
        [("open", "sk-secret-1234", 0o644), ("empty", "", 0o600), ("lines", "sk-secret\n1234", 0o600)]
    {
        let path = folder.join(name);
        fs::write(&path, text).expect("our own directory");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("our own file");
    }
    let key = |name: &str| format!("key_file = \"{}\"", folder.join(name).display());
    for (content, reason) in [
        ("model = 5".to_owned(), "line 1"),
        ("[[model]]\nname = \"m\"\n".to_owned(), "missing field"),
        (format!("{good}nonsense = 1\n"), "nonsense"),
        (format!("{good}{good}"), "twice"),
        (model("m", "video", "http://127.0.0.1/", ""), "video"),
        (model("m", "chat", "http://engine.example/v1", ""), "https://"),
        (model("m", "chat", "http://10.0.0.1/v1", ""), "https://"),
        (model("m", "chat", "ftp://engine.example/v1", ""), "https://"),
        (model("m", "chat", "https://user:password@engine.example/v1", ""), "without user, password"),
        (model("m", "chat", "https://engine.example/v1?key=x", ""), "or query"),
        (model("builtin", "chat", "https://engine.example/v1", ""), "builtin"),
        (model("m", "chat", "https://engine.example/v1", "concurrency = 0"), "concurrency"),
        (model("m", "chat", "https://engine.example/v1", "timeout_s = 1e300"), "timeout_s"),
        (model("m", "chat", "https://engine.example/v1", "judgements = \"choice\""), "guided decoding"),
        (model("m", "embeddings", "https://engine.example/v1", "guided = \"guided\""), "for texts"),
        (
            model("m", "chat", "https://engine.example/v1", "extra = { messages = [] }"),
            "must not have messages",
        ),
        (model("m", "chat", "https://engine.example/v1", &key("open")), "chmod 600"),
        (model("m", "chat", "https://engine.example/v1", &key("empty")), "empty"),
        (model("m", "chat", "https://engine.example/v1", &key("lines")), "characters that no key has"),
        (model("m", "chat", "https://engine.example/v1", &key("none")), "none"),
        (model("m", "chat", "https://engine.example/v1", "ca_file = \"/nonexistent\""), "certificates"),
    ] {
        let path = file(&cluster, "bad", &content);
        let output = Command::new(worker_program())
            .args(["--database-url", "host=/nonexistent dbname=x user=x", "--once", "--endpoints"])
            .arg(&path)
            .output()
            .expect("it was built");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{content}: {said}");
        assert!(said.contains(reason), "{content}: {said}");
        assert!(!said.contains("secret"), "{said}");
        fs::remove_dir_all(path.parent().expect("a directory")).expect("our own directory");
    }
}

#[test]
fn a_host_behind_the_question_mark_is_taken_instead_of_the_one_before_it() {
    let (cluster, mut session) = served_elsewhere();
    let id = session.generate("x", "max_tokens => 2, use_cache => false");
    let directory = cluster.directory().display();
    let url = format!("postgresql://remote@unreachable.invalid:1/postgres?host={directory}&port=5432");
    let mut worker = Worker::start_at(&url, &cluster, &["--drain"]);
    assert!(worker.wait());
    assert_eq!(session.request(id).status, "completed");
    assert!(!worker.said().contains("unreachable"), "{}", worker.said());
}
