//! The choice of the model that answers: files that are no good are passed over where nobody chose them, and
//! what a row says of a file's content holds.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use steadytext_test_models::Bert;
use steadytext_test_server::{
    Cluster, Options, Session, encoders, wait_until, with_automatic_models, write_model,
};

fn count(text: &str, what: &str) -> usize {
    text.matches(what).count()
}

/// Messages of the notices since the last call that hold a text.
fn warnings(session: &mut Session, what: &str) -> usize {
    session.notices().iter().filter(|notice| notice.message().contains(what)).count()
}

/// The SHA-256 of a file in the directory of the models.
fn sha256(cluster: &Cluster, session: &mut Session, file: &str) -> String {
    let path = cluster.model_directory().join(file);
    session.one(&format!("select encode(sha256(pg_read_binary_file('{}')), 'hex')", path.display()))
}

#[test]
fn a_preferred_model_that_cannot_be_loaded_is_passed_over_with_one_warning_and_shown() {
    const WARNING: &str = "model \"bad\" is passed over";
    let (cluster, mut session) = with_automatic_models(Options::new());
    let directory = cluster.model_directory();
    fs::write(directory.join("bad.gguf"), "Dear Sir or Madam, ".repeat(500)).expect("our own file");
    write_model(&cluster, "good.gguf");
    session.run(
        "insert into steadytext_models (name, task, file, is_preferred)
         values ('bad', 'generate', 'bad.gguf', true), ('good', 'generate', 'good.gguf', false)",
    );
    let named: String =
        session.one("select steadytext_generate('which one', max_tokens => 4, model => 'good')");
    let chosen = "steadytext_generate('which one', max_tokens => 4, use_cache => false)";

    // The worker finds out, and the request does not notice.
    let id = session.generate("which one", "max_tokens => 4, use_cache => false");
    assert_eq!(session.answer(id), named);
    assert_eq!(session.request(id).retry_count, 0);
    cluster.wait_for_log(0, WARNING);
    // A session is warned once, and the log gets no second line.
    assert_eq!(session.one::<String>(&format!("select {chosen}")), named);
    assert_eq!(warnings(&mut session, WARNING), 1);
    assert_eq!(session.one::<String>(&format!("select {chosen}")), named);
    assert_eq!(warnings(&mut session, WARNING), 0);
    let mut other = cluster.session("postgres");
    let pieces: Vec<String> = other.list("select steadytext_generate_stream('which one', max_tokens => 4)");
    assert_eq!(pieces.concat(), named);
    assert_eq!(warnings(&mut other, WARNING), 1);
    assert_eq!(count(&cluster.log(), WARNING), 1);

    let state = |session: &mut Session, name: &str| -> String {
        session.one(&format!(
            "select concat_ws(' ', state, is_chosen, reason) from steadytext_model_status() where name = '{name}'"
        ))
    };
    assert!(
        state(&mut session, "bad").starts_with("unusable f model file"),
        "{}",
        state(&mut session, "bad")
    );
    assert_eq!(state(&mut session, "good"), "ready t");
    assert_eq!(state(&mut session, "large"), "missing f");
    // A request that names it gets its error.
    let error = session.error("select steadytext_generate('x', model => 'bad')");
    assert_eq!(error.code().code(), "XX001", "{error:?}");

    // Another content is another chance.
    write_model(&cluster, "new.gguf");
    fs::rename(directory.join("new.gguf"), directory.join("bad.gguf")).expect("our own files");
    assert_eq!(session.one::<String>(&format!("select {chosen}")), named);
    assert_eq!(state(&mut session, "bad"), "ready t");
    assert_eq!(warnings(&mut session, WARNING), 0);
}

#[test]
fn a_call_that_finds_out_goes_on_with_the_next_model() {
    const WARNING: &str = "model \"bad\" is passed over";
    let (cluster, mut session) = with_automatic_models(Options::new());
    fs::write(cluster.model_directory().join("bad.gguf"), "no model").expect("our own file");
    Bert::default().write(&cluster.model_directory().join("good.gguf")).expect("our own file");
    session.run(
        "insert into steadytext_models (name, task, file, is_preferred)
         values ('bad', 'embed', 'bad.gguf', true), ('good', 'embed', 'good.gguf', false)",
    );
    let good: String = session.one("select steadytext_embed('which one', model => 'good')::text");
    let chosen: Option<String> =
        session.one("select steadytext_embed('which one', use_cache => false)::text");
    assert_eq!(chosen.as_deref(), Some(good.as_str()));
    assert_eq!(warnings(&mut session, WARNING), 1);
    // Documents are ranked by the same model, for want of another.
    session.run("select steadytext_rerank('q', array['a', 'b', 'c'])");
    assert_eq!(warnings(&mut session, WARNING), 0);
    assert_eq!(count(&cluster.log(), WARNING), 1);
    // Where there is no other, the builtin one does not take its place.
    session.run("delete from steadytext_models where name = 'good'");
    fs::remove_file(cluster.model_directory().join("good.gguf")).expect("our own file");
    let error = session.error("select steadytext_embed('which one', use_cache => false)");
    assert_eq!(error.code().code(), "58P01", "{error:?}");
    assert!(error.message().contains("\"bad\" is passed over"), "{error:?}");
}

#[test]
fn a_file_that_is_not_the_registered_one_answers_nothing() {
    let (cluster, mut session) = with_automatic_models(Options::new());
    let directory = cluster.model_directory();
    write_model(&cluster, "model.gguf");
    let right = sha256(&cluster, &mut session, "model.gguf");
    let wrong = "0".repeat(64);
    session.run(&format!(
        "insert into steadytext_models (name, task, file, sha256)
         values ('right', 'generate', 'model.gguf', '{right}'), ('wrong', 'generate', 'model.gguf', '{wrong}')"
    ));
    let of = |name: &str| format!("'which one', max_tokens => 4, model => '{name}'");
    let refused = |session: &mut Session| {
        for call in [
            format!("steadytext_generate({})", of("wrong")),
            format!("steadytext_generate({}, use_cache => false)", of("wrong")),
            format!("steadytext_generate({}, on_error => 'null')", of("wrong")),
            format!("steadytext_generate_stream({})", of("wrong")),
        ] {
            let error = session.error(&format!("select {call}"));
            assert_eq!(error.code().code(), "XX001", "{call}: {error:?}");
            assert!(error.message().contains("is not the registered one"), "{call}: {error:?}");
            assert!(error.hint().is_some_and(|hint| hint.contains("sha256")), "{call}: {error:?}");
        }
        let id = session.generate("which one", "max_tokens => 4, model => 'wrong'");
        let request = session.wait_for_end(id);
        assert_eq!(
            (request.status.as_str(), request.error_code.as_deref()),
            ("failed", Some("XX001")),
            "{request:?}"
        );
        assert_eq!(request.retry_count, 0);
    };
    // Nobody has loaded it yet, so that it is found out when that is done.
    let id = session.generate("which one", "max_tokens => 4, model => 'wrong'");
    assert_eq!(session.wait_for_end(id).error_code.as_deref(), Some("XX001"));
    refused(&mut session);
    let answer: String = session.one(&format!("select steadytext_generate({})", of("right")));
    let id = session.generate("which one", "max_tokens => 4, model => 'right', use_cache => false");
    assert_eq!(session.answer(id), answer);
    // The cache is no way around the refusal.
    refused(&mut session);
    session.run(&format!("update steadytext_models set sha256 = '{right}' where name = 'wrong'"));
    assert_eq!(session.one::<String>(&format!("select steadytext_generate({})", of("wrong"))), answer);
    session.run(&format!(
        "update steadytext_models set sha256 = '{wrong}', is_preferred = true where name = 'wrong'"
    ));
    refused(&mut session);
    // Where nobody chose it, it is passed over.
    assert_eq!(session.one::<String>("select steadytext_generate('which one', max_tokens => 4)"), answer);
    assert_eq!(warnings(&mut session, "model \"wrong\" is passed over"), 1);
    assert_eq!(
        session.one::<String>("select state from steadytext_model_status() where name = 'wrong'"),
        "unusable"
    );

    // Another file in the place of the right one.
    steadytext_test_models::write(&steadytext_test_models::Spec::default(), &directory.join("other.gguf"))
        .expect("our own file");
    fs::rename(directory.join("other.gguf"), directory.join("model.gguf")).expect("our own files");
    let error = session.error(&format!("select steadytext_generate({}, use_cache => false)", of("right")));
    assert_eq!(error.code().code(), "XX001", "{error:?}");
    let id = session.generate("which one", "max_tokens => 4, model => 'right', use_cache => false");
    assert_eq!(session.wait_for_end(id).error_code.as_deref(), Some("XX001"));
}

#[test]
fn without_a_reranker_documents_are_ranked_by_the_configured_embedding_model() {
    let (cluster, mut session) = with_automatic_models(Options::new());
    encoders(&cluster, &mut session, &Bert::default());
    session.run("delete from steadytext_models where name = 'folder'");
    let ranked =
        "select bool_and(abs(r.score - (1 - (steadytext_embed('which one', mode => 'query', model => 'file')
                      <#> steadytext_embed(r.document, model => 'file'))) / 2) < 1e-5)
                  from steadytext_rerank('which one', array['one', 'another one', 'none of them']) r";
    assert!(session.one::<bool>(ranked), "auto takes the registered one");
    assert_eq!(warnings(&mut session, "builtin model"), 0);
    let id: uuid::Uuid = session
        .one("select steadytext_rerank_async('which one', array['one', 'another one', 'none of them'])");
    session.wait_for_end(id);
    assert!(
        session.one::<bool>(&format!(
            "select q.results = array(select document from steadytext_rerank('which one', array['one', 'another one', 'none of them']))
             from steadytext_queue q where request_id = '{id}'"
        )),
        "and so does the queue"
    );
    // Also where a setting names it.
    session.run("delete from steadytext_models where name = 'file'");
    cluster.configure("pg_steadytext.embedding_model", "encoder.gguf");
    cluster.reload();
    wait_until("the setting is known", || {
        session.one("select current_setting('pg_steadytext.embedding_model') = 'encoder.gguf'")
    });
    assert!(session.one::<bool>(&ranked.replace(", model => 'file'", "")), "the setting");
}

#[test]
fn auto_finds_a_registered_file_however_its_row_writes_it_and_soon_after_it_has_come() {
    let (cluster, mut session) = with_automatic_models(Options::new());
    let directory = cluster.model_directory();
    let chosen = "select name from steadytext_model_status() where is_chosen and task = 'generate'";
    session.run(
        "insert into steadytext_models (name, task, file, is_preferred) values ('mine', 'generate', 'mine.gguf', true)",
    );
    let found = |session: &mut Session, file: &str| {
        session.run(&format!("update steadytext_models set file = '{file}' where name = 'mine'"));
        let answered = session
            .query("select steadytext_generate('which one', max_tokens => 2, use_cache => false)", &[]);
        answered.is_ok() && session.list::<String>(chosen) == ["mine"]
    };
    // The file is not there; what was found out about that is not believed longer than it is so.
    assert!(!found(&mut session, "mine.gguf"));
    fs::create_dir(directory.join("folder")).expect("our own directory");
    write_model(&cluster, "mine.gguf");
    write_model(&cluster, "folder/mine.gguf");
    write_model(&cluster, "größer.gguf");
    for file in ["mine.gguf", "./mine.gguf", "folder/mine.gguf", "./folder/./mine.gguf", "größer.gguf"] {
        assert!(found(&mut session, file), "{file}");
    }
    assert!(!found(&mut session, "folder/other.gguf"));
    // A process that may not list a directory may still open the files in it.
    let mode = |mode: u32| {
        fs::set_permissions(&directory, fs::Permissions::from_mode(mode)).expect("our own directory")
    };
    mode(0o311);
    let mut other = cluster.session("postgres");
    let is_found = found(&mut other, "folder/mine.gguf");
    mode(0o755);
    assert!(is_found);
}

#[test]
fn who_gets_another_model_because_the_preferred_one_s_file_is_away_is_told_and_so_is_the_log() {
    const WARNING: &str = "model \"best\" is passed over: its file is not there";
    let (cluster, mut session) = with_automatic_models(Options::new());
    let directory = cluster.model_directory();
    for (seed, file) in [(1, "best.gguf"), (2, "good.gguf")] {
        Bert { seed, ..Bert::default() }.write(&directory.join(file)).expect("our own file");
    }
    session.run(
        "insert into steadytext_models (name, task, file, is_preferred)
         values ('best', 'embed', 'best.gguf', true), ('good', 'embed', 'good.gguf', false), ('later', 'embed', 'later.gguf', false)",
    );
    let chosen = "select steadytext_embed('which one', use_cache => false)::text";
    let of = |session: &mut Session, name: &str| -> String {
        session.one(&format!("select steadytext_embed('which one', model => '{name}')::text"))
    };
    assert_eq!(session.one::<String>(chosen), of(&mut session, "best"));
    assert_eq!(warnings(&mut session, "is passed over"), 0);
    fs::rename(directory.join("best.gguf"), directory.join(".away")).expect("our own files");
    for expected in [1, 0] {
        assert_eq!(session.one::<String>(chosen), of(&mut session, "good"));
        assert_eq!(warnings(&mut session, WARNING), expected, "once in a session");
        assert_eq!(warnings(&mut session, "is passed over"), 0, "nobody has preferred the other one");
        let id = session.embed("which one", "use_cache => false");
        session.answer(id);
    }
    cluster.wait_for_log(0, WARNING);
    assert_eq!(count(&cluster.log(), WARNING), 1);
    fs::rename(directory.join(".away"), directory.join("best.gguf")).expect("our own files");
    assert_eq!(session.one::<String>(chosen), of(&mut session, "best"));
}
