//! Workers elsewhere under attack: rows, members of steadytext_worker and servers that mean harm; processes
//! that die and stand still; connections that break.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};

use steadytext_engine::remote_job::{self, JobFailure, Report};
use steadytext_engine::{Chunk, Error, Finish, Output};
use steadytext_test_server::WorkerElsewhere as Worker;
use steadytext_test_server::{Session, Signal, served_elsewhere, slow_model, wait_until};

/// The ends of the requests, in their order.
fn endings(session: &mut Session) -> Vec<String> {
    session.list(
        "select concat_ws('|', id - min(id) over (), request_type, status, result, error, error_code) from steadytext_queue order by id",
    )
}

#[test]
fn rows_of_any_content_end_as_the_servers_own_worker_ends_them() {
    let (cluster, mut session) = served_elsewhere();
    // An owner of the table can store anything.
    let store = "alter table steadytext_queue disable trigger user;
        insert into steadytext_queue (request_type, prompt, prompts, params, max_retries) values
            ('generate', null, null, null, 0),
            ('generate', '', null, '[1, 2]', 0),
            ('generate', 'x', null, '\"text\"', 0),
            ('generate', 'x', null, '{\"model\": 5, \"max_tokens\": 2}', 0),
            ('generate', 'x', null, '{\"model\": \"no such model\"}', 0),
            ('generate', 'x', null, '{\"max_tokens\": -7, \"temperature\": -1e300, \"seed\": 1e30}', 0),
            ('generate', 'x', null, '{\"messages\": [[[[]]]]}', 0),
            ('generate_json', 'x', null, '{\"schema\": {\"type\": 5}}', 0),
            ('generate_regex', 'x', null, '{\"pattern\": \"(((\"}', 0),
            ('generate_choice', 'x', null, '{\"choices\": []}', 0),
            ('nonsense', 'x', null, null, 0),
            ('embed', repeat('long ', 100000), null, null, 0),
            ('batch_embed', null, array[null, null], null, 0),
            ('batch_embed', null, array[['a', 'b'], ['c', 'd']], null, 0),
            ('batch_embed', null, '{}', null, 0),
            ('rerank', 'q', null, '{\"documents\": {\"a\": 1}}', 0),
            ('similarity', 'q', array['one'], null, 0),
            ('classify', 'x', null, '{\"categories\": [\"a\", \"a\", null]}', 0),
            ('if', 'x', null, '{\"template\": \"{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}\"}', 0),
            ('if', 'x', null, '{\"template\": \"{{ nothing.at.all }}\"}', 0),
            ('extract', 'x', null, '{\"fields\": [[]]}', 0),
            ('deduplicate_facts', '[[[[', null, null, 0),
            ('generate', 'a good one', null, '{\"max_tokens\": 2}', 0);
        do $$
        declare
            v_trigger name;
        begin
            for v_trigger in select tgname from pg_trigger where tgrelid = 'steadytext_queue'::regclass and not tgisinternal loop
                execute format('alter table steadytext_queue enable always trigger %I', v_trigger);
            end loop;
        end
        $$";
    session.run(store);
    assert!(Worker::start(&cluster, &["--drain"]).wait());
    // Requests that name a model that nobody has are left to the server's own worker, which ends them with an
    // error.
    session.run("select steadytext_daemon_start()");
    wait_until("the rest has ended", || session.unfinished() == 0);
    let by_own: Vec<String> = session.list(
        "select params ->> 'model' from steadytext_queue where starts_with(worker, 'local:') order by id",
    );
    assert_eq!(by_own, ["5", "no such model"]);
    let elsewhere = endings(&mut session);
    session.run("truncate steadytext_queue");
    session.run(store);
    wait_until("all have ended", || session.unfinished() == 0);
    let here = endings(&mut session);
    assert_eq!(elsewhere.len(), 23);
    let different: Vec<_> =
        elsewhere.iter().zip(&here).filter(|(elsewhere, here)| elsewhere != here).collect();
    assert!(different.is_empty(), "{different:#?}");
    assert!(here.last().is_some_and(|last| last.contains("|completed|")), "{here:#?}");
}

#[test]
fn a_row_that_raises_while_work_is_made_of_it_ends_alone() {
    let (cluster, mut session) = served_elsewhere();
    // As a value that cannot be read any more does it.
    session.run(
        "alter function steadytext.make_work(text, text, text, text[], jsonb) rename to really_make_work;
         create function steadytext.make_work(text, text, text, text[], jsonb) returns bytea language plpgsql as $$
         begin
             if $3 = 'poison' then
                 raise exception 'missing chunk number 0' using errcode = 'data_corrupted';
             end if;
             return steadytext.really_make_work($1, $2, $3, $4, $5);
         end
         $$;
         grant execute on function steadytext.make_work(text, text, text, text[], jsonb), steadytext.really_make_work(text, text, text, text[], jsonb)
             to steadytext_worker;
         insert into steadytext_queue (request_type, prompt, params, max_retries)
         select 'generate', prompt, '{\"max_tokens\": 2, \"use_cache\": false}', 0 from unnest(array['one', 'poison', 'two']) as prompt",
    );
    assert!(Worker::start(&cluster, &["--drain"]).wait());
    let ended: Vec<String> = session
        .list("select concat_ws(' ', prompt, status, error_code, attempt) from steadytext_queue order by id");
    assert_eq!(ended, ["one completed 1", "poison failed XX001 1", "two completed 1"]);
}

/// A report as a worker sends it.
fn report(outputs: Result<Vec<Output>, JobFailure>) -> Vec<u8> {
    let told = Some(u64::MAX);
    let report =
        Report { outputs, prompt_tokens: told, cached_tokens: told, first_token_ms: told, endpoint: None };
    remote_job::encode(&report).expect("it has a form")
}

fn text(text: &str) -> Output {
    Output::Text {
        text: text.to_owned(),
        generated_tokens: usize::MAX,
        finish: Finish::Stop,
        out_of_context: false,
    }
}

#[test]
fn lies_of_a_worker_end_the_requests_that_it_holds_and_nothing_else() {
    let (cluster, mut session) = served_elsewhere();
    let mut remote = cluster.session_as("postgres", "remote");
    let long = "A table has rows. ".repeat(20_000);
    // Chunks of all of the text, many times over, would be pieces of terabytes.
    let chunk = Chunk { start: 0, bytes: 1000, characters_before: 0, tokens: 1 };
    let chunks = vec![Output::Chunks(vec![chunk; 100_000])];
    let far = Chunk { start: usize::MAX, bytes: 2, characters_before: 0, tokens: 1 };
    let facts = format!("[{}]", (0..200_000).map(|n| format!("\"{n}\"")).collect::<Vec<_>>().join(","));
    let kind = |request_type: &str, prompt: &str, params: &str| {
        format!(
            "insert into steadytext_queue (request_type, prompt, params) values ('{request_type}', '{prompt}', '{params}')"
        )
    };
    let generate = kind("generate", "x", "{\"use_cache\": false}");
    let classify = kind("classify_scores", "x", "{\"categories\": [\"a\", \"b\"]}");
    let batch =
        "insert into steadytext_queue (request_type, prompts) values ('batch_embed', array['a', 'b'])"
            .to_owned();
    let summarize = kind("summarize", &long, "{}");
    for (insert, outputs) in [
        // Of another kind than what was asked, too many, too few, none.
        (&generate, Ok(vec![Output::Embedding(vec![1.0])])),
        (&generate, Ok(vec![Output::Tokens(vec![1])])),
        (&generate, Ok(vec![text("a"), text("b")])),
        (&kind("embed", "x", "{}"), Ok(vec![text("a")])),
        (&kind("embed", "x", "{}"), Ok(vec![Output::Embedding(Vec::new())])),
        (&kind("embed", "x", "{}"), Ok(vec![Output::Embedding(vec![f32::NAN; 8])])),
        (&kind("embed", "x", "{}"), Ok(vec![Output::Embedding(vec![1.0; 100_000])])),
        // Of the model's length and not of length 1, and the other way round.
        (&kind("embed", "x", "{}"), Ok(vec![Output::Embedding(vec![1.0; 256])])),
        (&kind("embed", "x", "{}"), Ok(vec![Output::Embedding(vec![0.0; 256])])),
        (&kind("embed", "x", "{}"), Ok(vec![Output::Embedding(vec![0.6, 0.8])])),
        (&batch, Ok(vec![Output::Embedding(vec![1.0 / 16.0; 256]), Output::Embedding(vec![0.5; 256])])),
        (&batch, Ok(vec![Output::Embedding(vec![1.0; 2]), Output::Embedding(vec![1.0; 3])])),
        (&batch, Ok(vec![Output::Embedding(vec![1.0; 2])])),
        (&classify, Ok(vec![Output::LogProbabilities(vec![0.0; 5]), Output::LogProbabilities(vec![0.0; 5])])),
        (&classify, Ok(vec![Output::LogProbabilities(Vec::new()), Output::LogProbabilities(Vec::new())])),
        // Texts that are none, and of lengths that no answer has.
        (&generate, Ok(vec![text("a\0b")])),
        (&generate, Ok(vec![text(&"x".repeat(64 << 20))])),
        (&kind("extract_facts", "x", "{}"), Ok(vec![text(&"x".repeat(64 << 20))])),
        (&summarize, Ok(chunks)),
        (&summarize, Ok(vec![Output::Chunks(vec![far])])),
        // Errors about what there is not, in words that are none.
        (
            &generate,
            Err(JobFailure::Failed {
                subtask: usize::MAX,
                error: Error::InvalidRequest("\0\u{1b}[2J".repeat(100_000)),
            }),
        ),
    ] {
        session.run(insert);
        let report = report(outputs);
        let outcome: Vec<String> = remote
            .query(
                "with claimed as materialized (
                     select array_agg(id) as ids, array_agg(attempt) as attempts
                     from steadytext.claim_requests('liar', 1, 3600, null, false)
                 )
                 select r.outcome from claimed as c
                 cross join lateral steadytext.complete_reports('liar', c.ids, c.attempts, array[$1::bytea]) as r",
                &[&report],
            )
            .expect("an outcome")
            .iter()
            .map(|row| row.get(0))
            .collect();
        assert!(
            outcome == ["done"] || outcome == ["failed"] || outcome == ["retried"],
            "{insert:.80}: {outcome:?}"
        );
        let answers: i64 = session.one(
            "select count(*) from steadytext_queue
             where status = 'completed' or result is not null or embedding is not null or error is null
                 or error ~ '[\\x01-\\x08\\x1b]' or length(error) > 11000",
        );
        assert_eq!(answers, 0, "{insert:.80}");
        session.run("truncate steadytext_queue");
    }
    // An answer may be a lie, in the bounds of answers; and of what a worker says only this goes to its row.
    session.run(&kind("extract_facts", "x", "{\"max_facts\": 2}"));
    let lie = report(Ok(vec![text(&format!("{{\"facts\": {facts}}}"))]));
    let row = remote
        .query_one("select id, attempt from steadytext.claim_requests('liar', 1, 3600, null, false)", &[])
        .expect("a row");
    let (id, attempt): (i64, i32) = (row.get(0), row.get(1));
    let mut tell = |worker: Option<&str>,
                    ids: Option<Vec<Option<i64>>>,
                    attempts: Option<Vec<Option<i32>>>,
                    reports: Option<Vec<Option<&[u8]>>>| {
        remote
            .query(
                "select outcome from steadytext.complete_reports($1, $2, $3, $4)",
                &[&worker, &ids, &attempts, &reports],
            )
            .map(|rows| rows.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>().join(" "))
    };
    // Of others, of another attempt, of rows that there are not, of nothing.
    let (ids, attempts, lies) =
        (Some(vec![Some(id)]), Some(vec![Some(attempt)]), Some(vec![Some(lie.as_slice())]));
    assert_eq!(tell(Some("other"), ids.clone(), attempts.clone(), lies.clone()).expect("rows"), "lost");
    assert_eq!(
        tell(Some("liar"), ids.clone(), Some(vec![Some(attempt + 1)]), lies.clone()).expect("rows"),
        "lost"
    );
    assert_eq!(
        tell(Some("liar"), Some(vec![Some(i64::MAX)]), attempts.clone(), lies.clone()).expect("rows"),
        "lost"
    );
    assert_eq!(tell(Some("liar"), Some(vec![None]), Some(vec![None]), lies.clone()).expect("rows"), "lost");
    assert_eq!(tell(Some("liar"), None, None, None).expect("rows"), "");
    assert!(tell(None, ids.clone(), attempts.clone(), lies.clone()).is_err());
    assert_eq!(session.one::<String>("select status from steadytext_queue"), "processing");
    assert_eq!(tell(Some("liar"), ids.clone(), attempts.clone(), lies.clone()).expect("rows"), "done");
    assert_eq!(tell(Some("liar"), ids, attempts, lies).expect("rows"), "lost", "once");
    assert_eq!(
        session.one::<String>("select result from steadytext_queue where status = 'completed'"),
        "{\"facts\":[\"0\",\"1\"]}"
    );
    assert_eq!(
        session.one::<i64>("select count(*) from steadytext_cache"),
        0,
        "no answer of theirs is anybody else's"
    );
}

#[test]
fn a_member_of_steadytext_worker_writes_no_entry_of_the_cache() {
    let (cluster, _session) = served_elsewhere();
    let mut remote = cluster.session_as("postgres", "remote");
    for call in [
        "store_answers('{k}', '{p}', '{r}', '{}', '{0}', array['{}'::jsonb])",
        "evict_entries('{1}', '{1}')",
        "plan_eviction(1)",
        "count_accesses('{1}', '{1}', array[now()])",
    ] {
        let error = remote.error(&format!("select steadytext.{call}"));
        assert_eq!(error.code().code(), "42501", "{call}: {error}");
    }
}

#[test]
fn a_worker_that_stands_still_beyond_its_lease_stores_nothing_afterwards() {
    let (cluster, mut session) = served_elsewhere();
    session.audit();
    slow_model(&cluster, &mut session);
    for number in 0..4 {
        session
            .generate(&format!("question {number}"), "model => 'slow', max_tokens => 32, use_cache => false");
    }
    let mut first = Worker::start(&cluster, &["--lease", "1"]);
    wait_until("all are held", || {
        session.one::<i64>("select count(*) from steadytext_queue where status = 'processing'") == 4
    });
    first.signal(Signal::STOP);
    let mut second = Worker::start(&cluster, &["--lease", "1"]);
    wait_until("all have ended", || session.unfinished() == 0);
    first.signal(Signal::CONT);
    let id = session.generate("one more", "max_tokens => 2, use_cache => false");
    session.answer(id);
    assert!(first.stop() && second.stop());
    assert_eq!(session.one::<i64>("select count(*) from steadytext_queue where status = 'completed'"), 5);
    assert_eq!(session.doubled(), 0);
}

#[test]
fn two_workers_share_a_queue_and_do_nothing_twice() {
    let (cluster, mut session) = served_elsewhere();
    session.audit();
    let mut workers =
        [Worker::start(&cluster, &["--concurrency", "2"]), Worker::start(&cluster, &["--concurrency", "2"])];
    wait_until("both are there", || {
        session.one::<i64>("select count(*) from steadytext_daemon_health where daemon_id not like 'local:%'")
            == 2
    });
    session.run(
        "insert into steadytext_queue (request_type, prompt, params)
         select 'generate', 'question ' || n, '{\"max_tokens\": 8, \"use_cache\": false}' from generate_series(1, 400) as n",
    );
    wait_until("all have ended", || session.unfinished() == 0);
    let by: Vec<i64> =
        session.list("select count(*) from steadytext_queue where status = 'completed' group by worker");
    assert_eq!((by.len(), by.iter().sum::<i64>()), (2, 400), "{by:?}");
    assert_eq!(session.one::<i32>("select max(attempt) from steadytext_queue"), 1);
    assert_eq!(session.doubled(), 0);
    assert!(workers.iter_mut().all(Worker::stop));
}

#[test]
fn connections_that_break_at_any_moment_lose_nothing() {
    let (cluster, mut session) = served_elsewhere();
    session.audit();
    session.run(
        "insert into steadytext_queue (request_type, prompt, params)
         select 'generate', 'question ' || n, '{\"max_tokens\": 8, \"use_cache\": false}' from generate_series(1, 200) as n",
    );
    let mut worker = Worker::start(&cluster, &["--lease", "1"]);
    let mut broken = 0;
    wait_until("all have ended", || {
        broken += session.one::<i64>(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity where usename = 'remote' and random() < 0.1",
        );
        session.unfinished() == 0
    });
    assert!(broken > 0, "some were broken");
    assert_eq!(session.one::<i64>("select count(*) from steadytext_queue where status = 'completed'"), 200);
    assert_eq!(session.doubled(), 0);
    assert!(worker.stop());
    assert!(!worker.said().contains("panicked"), "{}", worker.said());
}

/// A server that lets everybody in, and answers whatever it is asked with these bytes.
fn hostile_server(answer: &'static [u8]) -> (String, &'static AtomicUsize) {
    let visits: &'static AtomicUsize = Box::leak(Box::default());
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    let serve = move |mut stream: TcpStream| -> std::io::Result<()> {
        visits.fetch_add(1, Ordering::Relaxed);
        let mut question = [0; 65536];
        let _ = stream.read(&mut question)?;
        // Authentication is done, and it is ready.
        stream.write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I")?;
        while stream.read(&mut question)? > 0 {
            stream.write_all(answer)?;
        }
        Ok(())
    };
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // The error of a client that goes away is ignored.
            std::thread::spawn(move || drop(serve(stream)));
        }
    });
    (format!("host=127.0.0.1 port={port} user=remote dbname=postgres sslmode=disable"), visits)
}

#[test]
fn a_server_that_answers_nonsense_is_left_and_met_again() {
    let (cluster, _session) = served_elsewhere();
    // One column of type integer, and a row of it, where other columns are expected.
    const WRONG_COLUMN: &[u8] = b"1\0\0\0\x042\0\0\0\x04T\0\0\0\x1a\0\x01a\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0D\0\0\0\x0e\0\x01\0\0\0\x04\0\0\0\x01C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I";
    // That row, repeated without end.
    const MANY_ROWS: &[u8] = b"1\0\0\0\x042\0\0\0\x04T\0\0\0\x1a\0\x01a\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0D\0\0\0\x0e\0\x01\0\0\0\x04\0\0\0\x01D\0\0\0\x0e\0\x01\0\0\0\x04\0\0\0\x01C\0\0\0\x0dSELECT 2\0Z\0\0\0\x05I";
    // An error with what a terminal obeys, on several lines.
    const ERROR: &[u8] = b"E\0\0\0\x28SERROR\0VERROR\0CXX000\0Ma\x1b[2J\nb\x07evil\0\0Z\0\0\0\x05I";
    for answer in
        [WRONG_COLUMN, MANY_ROWS, ERROR, b"\xff\xff\xff\xff\xff\xff\xff\xff", b"D\x7f\xff\xff\xff", b""]
    {
        let (url, visits) = hostile_server(answer);
        let mut worker = Worker::start_at(&url, &cluster, &["--no-listen", "--grace", "0.05"]);
        let is_endless = answer.starts_with(b"D") || answer.is_empty();
        if !is_endless {
            wait_until("it has tried again", || {
                visits.load(Ordering::Relaxed) > 2 || worker.said().contains("evil")
            });
        } else {
            wait_until("it waits for the rest", || visits.load(Ordering::Relaxed) > 0);
        }
        worker.signal(if is_endless { Signal::KILL } else { Signal::TERM });
        worker.wait();
        let said = worker.said();
        assert!(!said.contains("panicked") && !said.contains('\x1b') && !said.contains('\x07'), "{said}");
    }
}
