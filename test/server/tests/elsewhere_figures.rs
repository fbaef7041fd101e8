//! Answers of workers elsewhere: the same bytes as the server's own worker's, counted with its, and charged
//! to the role that has asked.

use steadytext_engine::remote_job::{self, JobFailure, Report};
use steadytext_engine::{Error, Finish, Output};
use steadytext_test_models::Bert;
use steadytext_test_models::endpoint::LocalEndpoint;
use steadytext_test_server::WorkerElsewhere as Worker;
use steadytext_test_server::{
    Cluster, Session, encoders, endless_text, served_elsewhere, slow_model, wait_until,
};

use crate::endpoints::{file, model, register, start};
use crate::workers_elsewhere::{enqueue_all_kinds, needs, results};

/// The counters of requests, in one line for each model and type.
fn figures(session: &mut Session) -> Vec<String> {
    session.list(
        "select concat_ws(' ', model, request_type, requests, completed, failed, cancelled, retried, prompt_tokens, generated_tokens)
         from steadytext_stat where datname = current_database() order by model, request_type",
    )
}

/// Waits as long as there is progress.
fn wait_for_all(session: &mut Session) {
    let mut left = session.unfinished();
    while left > 0 {
        wait_until("another one has ended", || {
            let now = session.unfinished();
            let is_less = now < left;
            left = now.min(left);
            is_less
        });
    }
}

/// Each type `COPIES` times, 2 by itself: a thousand requests are 32.
#[test]
fn mixed_requests_get_the_same_bytes_and_figures_whoever_answers_them() {
    let copies = std::env::var("COPIES").ok().map_or(2, |copies| copies.parse().expect("a number"));
    let (cluster, mut session) = served_elsewhere();
    needs(&cluster, &mut session);
    session.run("select steadytext_daemon_start()");
    let count = enqueue_all_kinds(&mut session, "here", copies);
    wait_for_all(&mut session);
    let here = results(&mut session, "here");
    let counted_here = figures(&mut session);
    // Now the server and two workers elsewhere share the requests, as it comes.
    session.pause();
    session.run("select steadytext_stat_reset()");
    let arguments = ["--concurrency", "4"];
    let mut far = [Worker::start(&cluster, &arguments), Worker::start(&cluster, &arguments)];
    wait_until("both are there", || {
        session.one::<i64>("select count(*) from steadytext_daemon_health where daemon_id not like 'local:%'")
            == 2
    });
    enqueue_all_kinds(&mut session, "mixed", copies);
    wait_until("one of them is at work", || {
        session.one(
            "select exists (select from steadytext_queue where session_id = 'mixed' and worker is not null)",
        )
    });
    session.run("select steadytext_daemon_start()");
    wait_for_all(&mut session);
    let mixed = results(&mut session, "mixed");
    assert_eq!((mixed.len(), here.len()), (count, count));
    let different: Vec<_> = mixed.iter().zip(&here).filter(|(mixed, here)| mixed != here).collect();
    assert!(different.is_empty(), "{} of {count} differ: {different:#?}", different.len());
    let by: Vec<String> = session.list(
        "select concat_ws(' ', count(*), case when starts_with(worker, 'local:') then 'here' else 'elsewhere' end)
         from steadytext_queue where session_id = 'mixed' group by worker",
    );
    println!("{count} requests, answered by {by:?}");
    wait_until("the server's own worker has counted its own", || figures(&mut session) == counted_here);
    assert!(far.iter_mut().all(Worker::stop));
}

#[test]
fn times_of_requests_that_workers_elsewhere_answer_are_counted() {
    let (cluster, mut session) = served_elsewhere();
    for number in 0..3 {
        session.generate(&format!("question {number}"), "max_tokens => 4, use_cache => false");
    }
    assert!(Worker::start(&cluster, &["--drain"]).wait());
    let buckets: Vec<String> = session.list(
        "select concat_ws(' ', measure, max(count)) from steadytext_stat_histogram
         where datname = current_database() and le = 'infinity' group by measure order by measure",
    );
    assert_eq!(buckets, ["first_token 3", "queue 3", "total 3"]);
    let holds: bool = session.one(
        "select s.queue_seconds <= s.first_token_seconds and s.first_token_seconds <= s.total_seconds
             and abs(s.total_seconds - q.seconds) < 0.001
         from steadytext_stat as s
         cross join (select sum(extract(epoch from completed_at - created_at)) as seconds from steadytext_queue) as q
         where s.datname = current_database()",
    );
    assert!(holds, "they are those of the rows: {:?}", figures(&mut session));
}

#[test]
fn a_request_that_is_cancelled_while_it_is_elsewhere_is_counted_and_shown() {
    let (cluster, mut session) = served_elsewhere();
    slow_model(&cluster, &mut session);
    let mut worker = Worker::start(&cluster, &["--lease", "4"]);
    let id = session.generate("x", endless_text());
    session.wait_for(id, "processing");
    let shown = "select concat_ws(' ', request_id, phase) from steadytext_activity";
    assert_eq!(session.list::<String>(shown), [format!("{id} elsewhere")]);
    session.run(
        "create role watcher login in role pg_monitor; create role stranger login in role steadytext_user",
    );
    let mut watcher = cluster.session_as("postgres", "watcher");
    assert_eq!(watcher.list::<String>(shown), [format!("{id} elsewhere")]);
    let mut stranger = cluster.session_as("postgres", "stranger");
    assert!(stranger.list::<String>(shown).is_empty(), "others' requests are nobody's business");
    assert!(session.cancel(id));
    let counted: String = session.one(
        "select concat_ws(' ', requests, completed, failed, cancelled) from steadytext_stat where datname = current_database()",
    );
    assert_eq!(counted, "1 0 0 1");
    assert!(session.list::<String>(shown).is_empty());
    assert!(worker.stop());
    assert_eq!(session.request(id).status, "cancelled");
}

#[test]
fn tokens_of_workers_elsewhere_and_of_endpoints_are_charged() {
    let (cluster, mut session) = served_elsewhere();
    session.run(
        "create role spender login in role steadytext_user;
         select steadytext_set_limit('spender', tokens_per_day => 20)",
    );
    register(&mut session, "assistant", "generate");
    let endpoint = LocalEndpoint::start().expect("a port");
    let file = file(&cluster, "endpoints", &model("assistant", "chat", &endpoint.url(), ""));
    let mut worker = start(&cluster, &file, &[]);
    let mut spender = cluster.session_as("postgres", "spender");
    let mut spent = 0;
    for (number, more) in ["model => 'assistant', max_tokens => 9", "max_tokens => 9"].iter().enumerate() {
        let id = spender.generate("What is a tuple?", format!("{more}, use_cache => false"));
        spender.answer(id);
        let tokens: i64 = session.one(&format!(
            "select (prompt_tokens + generated_tokens)::bigint from steadytext_queue where request_id = '{id}'"
        ));
        assert!(tokens > 0, "request {number}");
        spent += tokens;
    }
    let used: i64 =
        session.one("select tokens_last_day from steadytext_limit_usage() where user_id = 'spender'");
    assert_eq!(used, spent);
    assert!(spent > 20, "the limit is used up: {spent}");
    let error = spender.error("select steadytext_generate_async('And now?')");
    assert_eq!(error.code().code(), "53400", "{error}");
    assert!(worker.stop());
}

#[test]
fn what_a_worker_says_of_tokens_is_believed_within_bounds_and_counts_when_it_commits() {
    let (cluster, mut session) = served_elsewhere();
    session.run(
        "create role spender login in role steadytext_user;
         select steadytext_set_limit('spender', requests_per_day => 100)",
    );
    let mut spender = cluster.session_as("postgres", "spender");
    let mut remote = cluster.session_as("postgres", "remote");
    let text = || Output::Text {
        text: "x".to_owned(),
        generated_tokens: usize::MAX,
        finish: Finish::Stop,
        out_of_context: false,
    };
    let unfinished =
        || JobFailure::Failed { subtask: 0, error: Error::Unfinished { generated_tokens: usize::MAX } };
    let used = "select coalesce(sum(tokens_last_day), 0)::bigint from steadytext_limit_usage() where user_id = 'spender'";
    let mut before = 0;
    // A report in a prepared transaction counts at once.
    let prepared = "prepare transaction 'told'";
    for (outputs, end) in
        [(Ok(vec![text()]), "commit"), (Err(unfinished()), "commit"), (Ok(vec![text()]), prepared)]
    {
        let id = spender.generate("x", "max_tokens => 2, use_cache => false");
        let told = Some(u64::MAX);
        let report = Report {
            outputs,
            prompt_tokens: told,
            cached_tokens: told,
            first_token_ms: told,
            endpoint: None,
        };
        let report = remote_job::encode(&report).expect("it has a form");
        let claim = "select id, attempt from steadytext.claim_requests('liar', 1, 3600, null, false)";
        let row = remote.query_one(claim, &[]).expect("a row");
        let (held, attempt): (i64, i32) = (row.get(0), row.get(1));
        let mut tell = |end: &str| {
            remote.run("begin");
            let sql = "select outcome from steadytext.complete_reports('liar', array[$1::bigint], array[$2::integer], array[$3::bytea])";
            remote.query_one(sql, &[&held, &attempt, &report.as_slice()]).expect("an outcome");
            remote.run(end);
        };
        // A report that is rolled back has not happened, however often.
        let counted = figures(&mut session);
        tell("rollback");
        tell("begin; savepoint a; rollback to a; rollback");
        assert_eq!(figures(&mut session), counted);
        assert_eq!(session.one::<i64>(used), before);
        tell(end);
        assert_ne!(figures(&mut session), counted);
        let now = session.one::<i64>(used);
        assert!(now > before && now - before < 50_000, "{before} {now}");
        before = now;
        if end == prepared {
            session.run("commit prepared 'told'");
        }
        session.cancel(id);
    }
    // Reports without work that the server has made are treated alike.
    spender.generate("x", "max_tokens => 2, use_cache => false");
    remote.run(
        "with claimed as materialized (
             select array_agg(id) as ids, array_agg(attempt) as attempts from steadytext.claim_requests('liar', 1, 3600, null, false)
         )
         select c.* from claimed
         cross join lateral steadytext.complete_requests('liar', ids, attempts, array['x'], null, null, p_prompt_tokens => array[2147483647],
             p_generated_tokens => array[2147483647], p_cached_tokens => array[2147483647], p_first_token_ms => array[2147483647]) as c",
    );
    let now = session.one::<i64>(used);
    assert!(now > before && now - before < 10_000_000, "{before} {now}");
    let holds: bool = session.one(
        "select cached_tokens <= prompt_tokens and first_token_seconds <= total_seconds from steadytext_stat
         where datname = current_database()",
    );
    assert!(holds, "{:?}", figures(&mut session));
}

/// A table of texts, and a model for vectors that only workers elsewhere have.
fn far_model() -> (Cluster, Session) {
    let (cluster, mut session) = served_elsewhere();
    encoders(&cluster, &mut session, &Bert::default());
    session.run(
        "update steadytext_models set placement = 'elsewhere' where name = 'file';
         create table notes (id integer primary key, body text, kind text);
         insert into notes select i, 'note ' || i from generate_series(1, 40) as i;
         select steadytext_daemon_start()",
    );
    (cluster, session)
}

#[test]
fn a_vectorizer_of_a_model_elsewhere_takes_the_length_of_the_column_that_is_there() {
    let (cluster, mut session) = far_model();
    let mut worker = Worker::start(&cluster, &[]);
    let length: i32 = session.one("select vector_dims(steadytext_embed('x', model => 'folder'))");
    session.run(&format!(
        "alter table notes add column vector vector({length});
         select steadytext_create_vectorizer('notes', array['body'], target_column => 'vector', model => 'file')"
    ));
    wait_until("all have vectors", || session.one::<i64>("select count(vector) from notes") == 40);
    let known: i32 = session.one("select length from steadytext_vector_lengths where model = 'file'");
    assert_eq!(known, length, "the answers have said it");
    // Of another file nothing is known.
    session.run("update steadytext_models set file = 'other.gguf' where name = 'file'");
    let error = session.error(
        "select steadytext_create_vectorizer('notes', array['body'], name => 'second', destination => 'second', model => 'file')",
    );
    assert_eq!(error.code().code(), "55000", "{error}");
    assert!(worker.stop());
}

#[test]
fn an_enrichment_of_a_model_elsewhere_is_filled_from_there() {
    let (cluster, mut session) = far_model();
    slow_model(&cluster, &mut session);
    session.run(
        "update steadytext_models set placement = 'elsewhere' where name = 'slow';
         select steadytext_create_enrichment('notes', 'kind', 'Is $body short?', request_type => 'generate_choice',
             params => '{\"choices\": [\"yes\", \"no\"]}', model => 'slow')",
    );
    let mut worker = Worker::start(&cluster, &[]);
    wait_until("all have values", || {
        session.one::<i64>("select count(*) from notes where kind in ('yes', 'no')") == 40
    });
    let own: i64 = session.one("select count(*) from steadytext_queue where starts_with(worker, 'local:')");
    assert_eq!(own, 0);
    assert!(worker.stop());
}
