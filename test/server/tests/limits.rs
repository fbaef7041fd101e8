//! Limits of requests in the worker: rows that nobody checked cost it no memory, and rows that are read are
//! whole.

use steadytext_test_server::{Cluster, Session};
use uuid::Uuid;

/// Memory that rows may cost a worker which refuses them, in kB. A claim of them took 2.5 GB.
const MOST_FOR_REFUSED_KB: i64 = 300_000;

/// Memory that the texts of users may cost it, in kB: what docs/operations.md says.
const MOST_FOR_TEXTS_KB: i64 = 4 * (64 + 64) * 1024;

/// The most memory that a process has ever had, in kB.
fn peak_memory_kb(pid: i32) -> i64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is there");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel says it");
    line.trim().trim_end_matches("kB").trim().parse().expect("a number of kB")
}

fn worker(session: &mut Session) -> i32 {
    session.one("select pid from steadytext.worker_state()")
}

/// The table's owner may store anything, and what comes from a dump is not checked again.
#[test]
fn the_worker_keeps_its_memory_whatever_unchecked_rows_hold() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    let warm = session.generate("warm up", "max_tokens => 3");
    session.answer(warm);
    let pid = worker(&mut session);
    session.pause();
    let rows = "insert into steadytext_queue (request_type, prompt, prompts, params, created_at)";
    session.run(&format!(
        "{rows} select 'generate', 'unused ' || n, null, jsonb_build_object('documents', d.documents), '2020-01-01'
             from generate_series(1, 32) as n, (select jsonb_agg(''::text) as documents from generate_series(1, 1000000)) as d;
         {rows} select 'rerank', 'among params ' || n, null, jsonb_build_object('documents', d.documents), '2020-01-01'
             from generate_series(1, 32) as n, (select jsonb_agg(''::text) as documents from generate_series(1, 1000000)) as d;
         {rows} select 'rerank', 'prompts ' || n, array_fill(''::text, array[1000000]), '{{}}', '2020-01-01' from generate_series(1, 32) as n;
         {rows} select 'batch_embed', null, array_fill(''::text, array[1000000]), '{{}}', '2020-01-01' from generate_series(1, 32) as n;
         {rows} select 'generate_json', 'deep ' || n, null, jsonb_build_object('schema', (repeat('[', 5000) || repeat(']', 5000))::jsonb), '2020-01-01'
             from generate_series(1, 32) as n"
    ));
    let before = peak_memory_kb(pid);
    session.run("select steadytext_daemon_start()");
    steadytext_test_server::wait_until("all of them have ended", || {
        session
            .one("select not exists (select from steadytext_queue where status in ('pending', 'processing'))")
    });
    assert_eq!(worker(&mut session), pid, "the worker has not ended meanwhile");
    let after = peak_memory_kb(pid);
    println!(
        "peak memory of the worker: {before} kB before, {after} kB after 160 rows of a million elements"
    );
    assert!(after - before < MOST_FOR_REFUSED_KB, "{before} kB, then {after} kB");
    // A parameter that the type does not have is passed over, as it was let in when that was allowed.
    let ended: Vec<String> = session.list(
        "select concat_ws(' ', request_type, status, error_code, count(*)) from steadytext_queue
         where created_at = '2020-01-01' group by request_type, status, error_code order by 1",
    );
    let expected = [
        "batch_embed failed P0001 32",
        "generate failed 54000 32",
        "generate_json failed 22023 32",
        "rerank failed P0001 64",
    ];
    assert_eq!(ended, expected);
}

/// Users may send as much as the settings allow, in each of as many requests as they like.
#[test]
fn the_worker_keeps_its_memory_whatever_users_send() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    let warm = session.embed("warm up", "");
    session.answer(warm);
    let pid = worker(&mut session);
    session.pause();
    session.run("create role sender login in role steadytext_user");
    let mut sender = cluster.session_as("postgres", "sender");
    // 960 MB of texts, each longer than the model's context: a look at them is soon done.
    sender.run(
        "insert into steadytext_queue (request_type, prompts)
         select 'batch_embed', array_fill(repeat('word ', 12000), array[1000]) from generate_series(1, 16)",
    );
    let before = peak_memory_kb(pid);
    session.run("select steadytext_daemon_start()");
    steadytext_test_server::wait_until("all of them have ended", || {
        session
            .one("select not exists (select from steadytext_queue where status in ('pending', 'processing'))")
    });
    assert_eq!(worker(&mut session), pid, "the worker has not ended meanwhile");
    let after = peak_memory_kb(pid);
    println!("peak memory of the worker: {before} kB before, {after} kB after 960 MB of texts");
    assert!(after - before < MOST_FOR_TEXTS_KB, "{before} kB, then {after} kB");
}

#[test]
fn documents_among_the_parameters_are_read_whole() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    // More than have a length of their own in the form on disk, of all lengths, with whatever a text may
    // hold.
    session.run(
        r#"create table given as
           select array_agg(repeat('ü', n % 7) || E' "quoted"\n\\ 🙂 ' || n || repeat(' word', n % 11) order by n) as documents
           from generate_series(1, 150) as n"#,
    );
    let id: Uuid = session.one(
        "insert into steadytext_queue (request_type, params)
         select 'rerank', jsonb_build_object('query', 'which?', 'documents', to_jsonb(documents), 'task', 'find', 'seed', null, 'return_scores', true)
         from given returning request_id",
    );
    let request = session.wait_for_end(id);
    assert_eq!(request.status, "completed", "{request:?}");
    assert!(session.one::<bool>(&format!(
        "select q.results = r.documents and cardinality(r.documents) = 150
         from steadytext_queue as q, (select array_agg(document) as documents
             from given, steadytext_rerank('which?', given.documents, 'find')) as r
         where q.request_id = '{id}'"
    )));
}

#[test]
fn a_row_of_an_earlier_version_with_unused_parameters_is_computed() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    let id: Uuid = session.one(
        "insert into steadytext_queue (request_type, prompt, params, created_at)
         values ('embed', 'x', '{\"max_tokens\": 512, \"mode\": null}', '2020-01-01') returning request_id",
    );
    assert_eq!(session.wait_for_end(id).status, "completed");
    assert!(session.one::<bool>(&format!(
        "select embedding operator(public.=) steadytext_embed('x') from steadytext_queue where request_id = '{id}'"
    )));
}
