//! Requests of many subtasks, with rerankings as the example: whole or not at all, ended by whatever ends a
//! request, and no burden on those beside them.

use std::thread;

use steadytext_test_server::{
    Cluster, Options, Session, Signal, endless_text, promptly, slow_model, wait_until, write_reranker,
};
use uuid::Uuid;

/// A cluster with the slow model, also as a reranker.
fn slow() -> (Cluster, Session) {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    slow_model(&cluster, &mut session);
    // Repeated requests are to be computed again here.
    session.run(
        "insert into steadytext_models (name, task, file) values ('slow-reranker', 'rerank', 'slow.gguf');
         select steadytext_config_set('cache_enabled', 'false')",
    );
    session.audit();
    (cluster, session)
}

/// Arguments of a reranking of so many documents.
fn arguments(documents: usize) -> String {
    format!(
        "'which of them speaks of number seven?',
         array(select 'document ' || i || repeat(' word', i % 7) from generate_series(1, {documents}) i),
         model => 'slow-reranker'"
    )
}

fn enqueue(session: &mut Session, documents: usize) -> Uuid {
    session.one(&format!("select steadytext_rerank_async({})", arguments(documents)))
}

/// Waits until some subtasks of a request have begun, and not all of them.
fn wait_for_subtasks(session: &mut Session, id: Uuid) {
    wait_until("some subtasks have begun", || {
        session.one(&format!(
            "select exists (select from steadytext_activity where request_id = '{id}' and prompt_tokens > 100)"
        ))
    });
    assert_eq!(session.request(id).status, "processing");
}

/// The result of a completed reranking must be that of the same call.
fn is_whole(session: &mut Session, id: Uuid, documents: usize) {
    let request = session.wait_for_end(id);
    assert_eq!(request.status, "completed", "{request:?}");
    let same: bool = session.one(&format!(
        "select q.result::jsonb = r.objects and q.results = r.documents and cardinality(q.results) = {documents}
         from steadytext_queue q,
             (select jsonb_agg(jsonb_strip_nulls(to_jsonb(r))) as objects, array_agg(document) as documents from steadytext_rerank({}) r) r
         where q.request_id = '{id}'",
        arguments(documents)
    ));
    assert!(same, "{request:?}");
}

#[test]
fn a_row_of_many_subtasks_is_completed_whole_and_as_the_call_says() {
    let (_cluster, mut session) = slow();
    for documents in [1, 16, 60] {
        let id = enqueue(&mut session, documents);
        is_whole(&mut session, id, documents);
    }
}

#[test]
fn a_cancelled_row_stops_all_of_its_subtasks() {
    let (_cluster, mut session) = slow();
    let id = enqueue(&mut session, 1000);
    wait_for_subtasks(&mut session, id);
    promptly("cancel", || {
        session.cancel(id);
        assert_eq!(session.wait_for_end(id).status, "cancelled");
        wait_until("nothing runs", || session.one("select not exists (select from steadytext_activity)"));
        let other = session.generate("the engine is free", "model => 'slow', max_tokens => 2");
        session.answer(other);
    });
    assert_eq!(session.one::<i64>("select count(*) from steadytext_queue where results is not null"), 0);
}

#[test]
fn cancel_and_timeout_stop_a_call_of_many_subtasks_at_once() {
    let (cluster, mut session) = slow();
    let call = format!("select count(*) from steadytext_rerank({})", arguments(1000));
    let mut caller = cluster.session("postgres");
    let pid = caller.backend_pid();
    let thread = {
        let call = call.clone();
        thread::spawn(move || (caller.error(&call), caller))
    };
    wait_until("it is computed", || {
        session.one::<bool>(&format!(
            "select wait_event_type = 'Extension' and clock_timestamp() - query_start > interval '0.5 s'
             from pg_stat_activity where pid = {pid}"
        ))
    });
    let mut caller = promptly("cancel", || {
        session.one::<bool>(&format!("select pg_cancel_backend({pid})"));
        let (error, caller) = thread.join().expect("the thread does not panic");
        assert_eq!(error.code().code(), "57014");
        caller
    });
    // The engine and the session keep nothing of it.
    promptly("the next calls", || {
        caller.run("select steadytext_embed('free again')");
        session.run("select steadytext_generate('and here', model => 'slow', max_tokens => 2)");
    });
    promptly("timeout", || {
        let error = caller.error(&format!("set statement_timeout = '300ms'; {call}"));
        assert_eq!(error.code().code(), "57014");
    });
}

#[test]
fn a_worker_that_goes_in_the_middle_of_a_row_loses_and_doubles_nothing() {
    let (cluster, mut session) = slow();
    // Leaves in order.
    let id = enqueue(&mut session, 60);
    wait_for_subtasks(&mut session, id);
    let worker = session.worker_pid();
    assert!(session.one::<bool>(&format!("select pg_terminate_backend({worker}, 10000)")));
    is_whole(&mut session, id, 60);
    assert_eq!(session.request(id).retry_count, 0);
    // Dies.
    let id = enqueue(&mut session, 60);
    wait_for_subtasks(&mut session, id);
    let worker = session.worker_pid();
    cluster.crash(worker, Signal::KILL);
    let mut session = cluster.session("postgres");
    is_whole(&mut session, id, 60);
    assert_eq!(session.doubled(), 0);
    assert_eq!(session.one::<i64>("select count(*) from audit.changed where becomes = 'completed'"), 2);
}

#[test]
fn a_part_that_fails_fails_the_row_and_the_call_and_is_named() {
    let (_cluster, mut session) = slow();
    let too_long =
        "'which?', array['one', 'two', repeat('very long ', 9000), 'four'], model => 'slow-reranker'";
    let id: Uuid = session.one(&format!("select steadytext_rerank_async({too_long})"));
    let request = session.wait_for_end(id);
    assert_eq!(
        (request.status.as_str(), request.error_code.as_deref()),
        ("failed", Some("54000")),
        "{request:?}"
    );
    let error = request.error.unwrap_or_default();
    assert!(error.starts_with("document 3: ") && !error.contains("very"), "{error}");
    let call = session.error(&format!("select steadytext_rerank({too_long})"));
    assert_eq!(call.code().code(), "54000");
    assert_eq!(format!("{}\nHINT: {}", call.message(), call.hint().unwrap_or_default()), error);
    let batch = too_long.replace("'which?'", "array['which?', 'what?']");
    let call = session.error(&format!("select steadytext_rerank_batch({batch})"));
    assert!(call.message().starts_with("query 1, document 3: "), "{call:?}");
    // This session is still usable, and so is the worker.
    session.run("select steadytext_rerank('which?', array['one', 'two'])");
    let id = enqueue(&mut session, 3);
    is_whole(&mut session, id, 3);
}

#[test]
fn a_reranking_of_two_hundred_documents_stops_nobody_beside_it() {
    let (_cluster, mut session) = slow();
    let generation = session.generate("it goes on", endless_text());
    session.wait_for_tokens(generation);
    let generated = format!(
        "select coalesce(max(generated_tokens), 0)::bigint from steadytext_activity where request_id = '{generation}'"
    );
    let reranking = enqueue(&mut session, 200);
    wait_for_subtasks(&mut session, reranking);
    let before: i64 = session.one(&generated);
    // A later request does not wait for all of its subtasks.
    let later = session.generate("it comes later", "model => 'slow', max_tokens => 2");
    session.answer(later);
    assert_eq!(session.request(reranking).status, "processing", "the machine is too fast for this test");
    wait_until("the generation goes on", || session.one::<i64>(&generated) > before + 5);
    for id in [generation, reranking] {
        session.cancel(id);
        assert_eq!(session.wait_for_end(id).status, "cancelled");
    }
}

#[test]
fn more_rows_of_many_subtasks_than_the_engine_takes_at_once_all_complete() {
    let (_cluster, mut session) = slow();
    let ids: Vec<Uuid> = session.list(
        "select unnest(steadytext_rerank_batch_async(
             array(select 'query ' || i from generate_series(1, 60) i),
             array(select 'document ' || i from generate_series(1, 12) i)))",
    );
    for id in &ids {
        let request = session.wait_for_end(*id);
        assert_eq!(request.status, "completed", "{request:?}");
    }
    let right: i64 = session.one(
        "select count(*) from steadytext_queue q
         where q.results = array(select document from steadytext_rerank(q.prompt, q.prompts))",
    );
    assert_eq!(right, 60);
    assert_eq!(session.doubled(), 0);
}

#[test]
fn the_reranker_is_chosen_like_other_models_and_its_scores_are_graded() {
    let cluster = Options::new()
        .set("pg_steadytext.reranker_model", "auto")
        .set("pg_steadytext.embedding_model", "auto")
        .start();
    let mut session = cluster.session("postgres");
    session.create_extension();
    let scores = |session: &mut Session, more: &str| -> Vec<f64> {
        session.list(&format!(
            "select score from steadytext_rerank('which?', array['one', 'two', 'three', 'four']{more}) order by document"
        ))
    };
    let without = scores(&mut session, "");
    assert_eq!(without, scores(&mut session, ", model => 'builtin'"));
    assert!(session.notices().iter().any(|notice| notice.message().contains("builtin model")));
    // The file of a row that is registered from the start.
    write_reranker(&cluster, "Qwen3-Reranker-4B-Q8_0.gguf");
    let with = scores(&mut session, "");
    assert_eq!(with, scores(&mut session, ", model => 'reranker'"));
    assert_ne!(with, without);
    assert!(with.iter().all(|score| 0.0 < *score && *score < 1.0), "{with:?}");
    let mut different = with.clone();
    different.dedup();
    assert_eq!(different.len(), 4, "{with:?}");
    assert_ne!(with, scores(&mut session, ", task => 'find the longest word'"));
    cluster.configure("pg_steadytext.reranker_model", "Qwen3-Reranker-4B-Q8_0.gguf");
    cluster.reload();
    wait_until("the setting is known", || {
        session.one("select current_setting('pg_steadytext.reranker_model') like 'Qwen3%'")
    });
    assert_eq!(scores(&mut session, ""), with);
    let id: Uuid =
        session.one("select steadytext_rerank_async('which?', array['one', 'two', 'three', 'four'])");
    session.answer(id);
    let queued: Vec<f64> = session.list(&format!(
        "select r.score from steadytext_queue q, jsonb_to_recordset(q.result::jsonb) r(document text, score float8)
         where q.request_id = '{id}' order by r.document"
    ));
    assert_eq!(queued, with);
}
