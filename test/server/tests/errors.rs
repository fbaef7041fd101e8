//! Everything that can be wrong with a request or a model: a clear error, and the other requests go on.

use std::thread;

use steadytext_test_server::{PATIENCE, broken_models, eventually, wait_until, with_session};
use uuid::Uuid;

#[test]
fn a_request_that_cannot_be_meant_is_refused_when_it_is_enqueued() {
    let (_cluster, mut session) = with_session();
    for (call, code, message) in [
        ("steadytext_generate_async('')", "P0001", "Prompt cannot be empty"),
        ("steadytext_generate_async(null)", "P0001", "Prompt cannot be empty"),
        ("st_generate_async('')", "P0001", "Prompt cannot be empty"),
        ("steadytext_generate_async('x', 0)", "P0001", "max_tokens must be between 1 and 4096"),
        ("steadytext_generate_async('x', -5)", "P0001", "max_tokens must be between 1 and 4096"),
        ("steadytext_generate_async('x', 4097)", "P0001", "max_tokens must be between 1 and 4096"),
        ("steadytext_embed_async('')", "P0001", "Text input cannot be empty"),
        ("steadytext_embed_async(null)", "P0001", "Text input cannot be empty"),
        ("steadytext_generate_batch_async(array[]::text[])", "P0001", "Prompts array cannot be empty"),
        ("steadytext_generate_batch_async(null)", "P0001", "Prompts array cannot be empty"),
        ("steadytext_embed_batch_async(array[]::text[])", "P0001", "Texts array cannot be empty"),
        (
            "steadytext_generate_batch_async(array_fill('x'::text, array[1001]))",
            "P0001",
            "Batch size cannot exceed 1000 prompts",
        ),
        (
            "steadytext_embed_batch_async(array_fill('x'::text, array[1001]))",
            "P0001",
            "Batch size cannot exceed 1000 texts",
        ),
    ] {
        let error = session.error(&format!("select {call}"));
        assert_eq!((error.code().code(), error.message()), (code, message), "{call}");
    }
    for (call, code) in [
        ("select steadytext_generate_async('x', temperature => -1)", "22023"),
        ("select steadytext_generate_async('x', temperature => 'NaN')", "22023"),
        ("select steadytext_generate_async('x', priority => 11)", "22023"),
        (
            "insert into steadytext_queue (request_type, prompt, params) values ('generate', 'x', '{\"max_token\": 3}')",
            "22023",
        ),
        (
            "insert into steadytext_queue (request_type, prompt, params) values ('generate', 'x', '[]')",
            "22023",
        ),
        ("insert into steadytext_queue (request_type, prompt) values ('generate_choice', 'x')", "P0001"),
        ("insert into steadytext_queue (request_type, prompt) values ('dance', 'x')", "22023"),
        ("insert into steadytext_queue (request_type, prompt) values ('generate', '')", "P0001"),
        ("insert into steadytext_queue (request_type) values ('generate')", "P0001"),
        (
            "insert into steadytext_queue (request_type, prompt) values ('generate', repeat('x', 2000000))",
            "54000",
        ),
    ] {
        let error = session.error(call);
        assert_eq!(error.code().code(), code, "{call}: {error}");
    }
    assert_eq!(session.one::<i64>("select count(*) from steadytext_queue"), 0);
}

#[test]
fn the_queue_is_full_when_it_is_full() {
    let (_cluster, mut session) = with_session();
    session.pause();
    session.run("select steadytext_config_set('max_queue_size', '50')");
    // The count of waiting requests is an estimate that follows the truth within moments.
    let refusal = eventually(PATIENCE, || {
        session.query_one("select steadytext_generate_async('one more', 2)", &[]).err()
    });
    let error = refusal.expect("the queue has a limit");
    assert!(session.one::<i64>("select count(*) from steadytext_queue") >= 50);
    assert_eq!(error.code().map(|code| code.code()), Some("53400"), "{error}");
    assert!(error.as_db_error().is_some_and(|error| error.hint().is_some()), "{error:?}");
    session
        .run("select steadytext_config_set('max_queue_size', '1000000'); select steadytext_daemon_start()");
    let id = session.generate("there is room again", "max_tokens => 2");
    session.answer(id);
}

#[test]
fn a_model_file_that_is_no_good_fails_its_requests_and_no_others() {
    let (cluster, mut session) = with_session();
    let models = broken_models(&cluster, &mut session);
    let mut beside: Vec<Uuid> = Vec::new();
    let mut broken = Vec::new();
    for model in &models {
        broken.push((
            session.generate("a prompt", format!("model => '{}', max_tokens => 64", model.name)),
            model,
        ));
        beside.push(session.generate("beside it", "max_tokens => 4"));
    }
    for (id, model) in broken {
        let request = session.wait_for_end(id);
        assert_eq!(request.error_code.as_deref(), Some(model.sqlstate), "{}: {request:?}", model.name);
        let error = request.error.unwrap_or_default();
        assert!(
            error.contains(model.mentions),
            "{}: {error:?} does not mention {:?}",
            model.name,
            model.mentions
        );
        assert_eq!(request.retry_count, 0, "{}: trying again does not help", model.name);
        let raised = session.error(&format!("select steadytext_get_async_result('{id}', 5)"));
        assert_eq!(raised.code().code(), "P0001");
        assert!(raised.message().starts_with("Async request failed: "), "{raised}");
        let row = session
            .query_one("select status, error, error_code from steadytext_check_async($1)", &[&id])
            .expect("the request is known");
        assert_eq!((row.get(0), row.get(1), row.get(2)), ("failed", error.as_str(), model.sqlstate));
    }
    for id in beside {
        session.answer(id);
    }
    assert!(!cluster.log().contains("terminated by signal"), "{}", cluster.log());
}

#[test]
fn a_prompt_longer_than_the_context_fails_with_its_length_and_the_limit() {
    let (_cluster, mut session) = with_session();
    let id = session.generate(&"many words ".repeat(40_000), "max_tokens => 4");
    let beside = session.generate("beside it", "max_tokens => 4");
    let request = session.wait_for(id, "failed");
    assert_eq!(request.error_code.as_deref(), Some("54000"), "{request:?}");
    assert!(request.error.as_deref().is_some_and(|error| error.contains("context of")), "{request:?}");
    session.answer(beside);
    let id = session.embed(&"many words ".repeat(40_000), "");
    assert_eq!(session.wait_for(id, "failed").error_code.as_deref(), Some("54000"));
}

#[test]
fn a_model_that_is_not_registered_for_the_task_fails_its_requests_and_no_others() {
    let (_cluster, mut session) = with_session();
    session.run("insert into steadytext_models (name, task, file) values ('vectors', 'embed', 'v.gguf'), ('texts', 'generate', 't.gguf')");
    for call in [
        "steadytext_generate_async('x', model => 'nobody knows it')",
        "steadytext_generate_async('x', model => '/etc/passwd')",
        "steadytext_generate_async('x', model => 't.gguf')",
        "steadytext_generate_async('x', model => 'vectors')",
        "steadytext_embed_async('x', model => 'texts')",
    ] {
        let error = session.error(&format!("select {call}"));
        assert!(matches!(error.code().code(), "42704" | "42809"), "{call}: {error:?}");
        assert!(error.hint().is_some(), "{call}: {error:?}");
    }
    // A request that was valid when it was enqueued may be invalid when it is its turn.
    session.run("select steadytext_daemon_stop()");
    let ids = [session.generate("x", "model => 'texts'"), session.embed("x", "model => 'vectors'")];
    session.run(
        "delete from steadytext_models where name = 'texts';
         update steadytext_models set task = 'rerank' where name = 'vectors';
         select steadytext_daemon_start()",
    );
    let beside = session.generate("beside them", "max_tokens => 3");
    for id in ids {
        let request = session.wait_for_end(id);
        assert_eq!((request.status.as_str(), request.retry_count), ("failed", 0), "{request:?}");
        // Unknown, or known for another task.
        assert!(matches!(request.error_code.as_deref(), Some("42704" | "42809")), "{request:?}");
        assert!(request.error.is_some_and(|error| error.contains("HINT: ")), "{:?}", session.request(id));
    }
    session.answer(beside);
}

#[test]
fn an_unknown_request_is_said_to_be_unknown() {
    let (_cluster, mut session) = with_session();
    let id = Uuid::from_u128(0x0123_4567_89ab_7def_8123_4567_89ab_cdef);
    for call in ["steadytext_check_async", "steadytext_get_async_result", "steadytext_get_async_embedding"] {
        let error = session.error(&format!("select * from {call}('{id}')"));
        assert_eq!(
            (error.code().code(), error.message()),
            ("P0001", format!("Request ID {id} not found").as_str())
        );
    }
}

#[test]
fn a_result_that_a_trigger_of_the_table_refuses_fails_alone() {
    let (_cluster, mut session) = with_session();
    session.run(
        "create function refuse() returns trigger language plpgsql as $$
         begin raise exception 'not this one' using errcode = 'check_violation'; end $$;
         create trigger refuse before update on steadytext_queue for each row
         when (new.status = 'completed' and new.prompt = 'refused') execute function refuse()",
    );
    session.pause();
    let mut ids: Vec<Uuid> =
        (0..4).map(|i| session.generate(&format!("before {i}"), "max_tokens => 3")).collect();
    let refused = session.generate("refused", "max_tokens => 3");
    ids.extend((0..4).map(|i| session.generate(&format!("after {i}"), "max_tokens => 3")));
    session.run("select steadytext_daemon_start()");
    for id in ids {
        session.answer(id);
    }
    let request = session.wait_for(refused, "failed");
    assert_eq!(request.error_code.as_deref(), Some("23514"), "{request:?}");
}

/// The table's owner may store anything, and what comes from a dump is not checked again.
#[test]
fn a_row_whose_parameters_cannot_be_read_fails_alone() {
    let (_cluster, mut session) = with_session();
    session.pause();
    let before = session.generate("before", "max_tokens => 3");
    let nested: Uuid = session.one(
        "insert into steadytext_queue (request_type, prompt, params, created_at)
         values ('generate', 'nested', (repeat('[', 200) || repeat(']', 200))::jsonb, '2020-01-01')
         returning request_id",
    );
    let after = session.generate("after", "max_tokens => 3");
    session.run("select steadytext_daemon_start()");
    for id in [before, after] {
        session.answer(id);
    }
    let request = session.wait_for(nested, "failed");
    assert_eq!(request.error_code.as_deref(), Some("22023"), "{request:?}");
}

#[test]
fn a_session_that_is_ended_inside_a_function_of_ours_ends_alone() {
    let (cluster, mut session) = with_session();
    let mut locker = cluster.session("postgres");
    for other in [
        "set search_path = public",
        "create function outer_one() returns void language plpgsql as 'begin perform steadytext_config_set(''default_seed'', ''7''); end'",
    ] {
        locker.run(other);
    }
    for call in ["select steadytext_config_set('default_seed', '7')", "select outer_one()"] {
        locker.run("begin; lock table steadytext_config in access exclusive mode");
        let mut waiting = cluster.session("postgres");
        let pid = waiting.backend_pid();
        let waits = thread::spawn(move || waiting.batch_execute(call).expect_err("it was ended"));
        wait_until("it waits for the lock", || {
            session.one(&format!("select exists (select from pg_locks where pid = {pid} and not granted)"))
        });
        session.run(&format!("select pg_terminate_backend({pid})"));
        waits.join().expect("no panic");
        // The sessions beside it are those of before.
        locker.run("rollback");
        assert!(session.one::<bool>("select true"));
    }
    // The log has what the sessions were told, without our own functions.
    cluster.wait_for_log(0, "PL/pgSQL function outer_one() line 1 at PERFORM");
    let said = cluster.log();
    assert_eq!(said.matches("terminating connection due to administrator command").count(), 2, "{said}");
    assert!(!said.contains("function steadytext_config_set"), "{said}");
}
