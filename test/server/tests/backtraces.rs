//! Messages have no backtraces. Every server of the tests is started with RUST_BACKTRACE and
//! RUST_LIB_BACKTRACE set to full.

use postgres::error::DbError;
use steadytext_test_server::Cluster;

/// Parts of a backtrace, or of a path of the machine that built the library.
const SIGNS: [&str; 7] =
    ["backtrace", "/rustc/", ".cargo", "registry/src", "::{{closure}}", "pgrx", " at src/"];

fn without_backtrace(error: &DbError) {
    let said = format!(
        "{} {:?} {:?} {:?} {:?}",
        error.message(),
        error.detail(),
        error.hint(),
        error.where_(),
        error.file()
    );
    for sign in SIGNS {
        assert!(!said.contains(sign), "{sign}: {error:?}");
    }
    assert!(error.file().is_none_or(|file| !file.contains('/')), "{error:?}");
}

#[test]
fn no_backtrace_reaches_a_client_or_the_log_whatever_the_environment() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run(
        "create role mallory login; grant usage on schema steadytext to mallory;
         grant execute on function steadytext_generate_async to mallory",
    );

    // Raised by the library.
    let error = session.error("select steadytext_generate_async('')");
    assert_eq!((error.code().code(), error.detail()), ("P0001", None));
    without_backtrace(&error);
    // Raised by PostgreSQL, in a statement of the library's.
    let error = cluster.session_as("postgres", "mallory").error("select steadytext_generate_async('x')");
    assert_eq!((error.code().code(), error.detail()), ("42501", None));
    without_backtrace(&error);
    session.run(
        "create function refuse() returns trigger language plpgsql as $$ begin perform 1 / 0; end $$;
         create trigger refuse before insert on steadytext_queue for each row when (new.prompt = 'refused') execute function refuse()",
    );
    let error = session.error("select steadytext_generate_async('refused')");
    assert_eq!((error.code().code(), error.detail()), ("22012", None));
    without_backtrace(&error);
    // A panic, of pgrx itself: the function is not called as a trigger.
    session.run(
        "create function no_trigger() returns trigger language c as 'pg_steadytext', 'check_request_wrapper'",
    );
    let error = session.error("select no_trigger()");
    assert_eq!((error.code().code(), error.detail()), ("XX000", None), "{error:?}");
    without_backtrace(&error);

    // Errors of the worker: of a model, and of a statement.
    std::fs::write(cluster.model_directory().join("broken.gguf"), "no model").expect("our own directory");
    session.run(
        "insert into steadytext_models (name, task, file) values ('broken', 'generate', 'broken.gguf');
         create trigger refuse_answer before update on steadytext_queue for each row
             when (new.status = 'completed' and new.prompt = 'unanswerable') execute function refuse()",
    );
    for (prompt, more) in [("x", "model => 'broken'"), ("unanswerable", "max_tokens => 2")] {
        let id = session.generate(prompt, more);
        let request = session.wait_for(id, "failed");
        let error = request.error.expect("a failed request has an error");
        for sign in SIGNS {
            assert!(!error.contains(sign), "{sign}: {error}");
        }
    }
    let log = cluster.log();
    for sign in SIGNS {
        assert!(!log.contains(sign), "{sign}: {log}");
    }
}
