//! Files that the registry of models can make the server look at: those below the directory of the models,
//! and those that superusers have named.

use std::os::unix::fs::symlink;

use steadytext_test_server::{Cluster, Session, slow_model, write_model};

fn cluster() -> (Cluster, Session, Session) {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run("create role carol login in role steadytext_admin");
    slow_model(&cluster, &mut session);
    let carol = cluster.session_as("postgres", "carol");
    (cluster, session, carol)
}

fn register(session: &mut Session, name: &str, file: &str) {
    session
        .execute(
            "insert into steadytext_models (name, task, file) values ($1, 'generate', $2)",
            &[&name, &file],
        )
        .unwrap_or_else(|error| panic!("{name}: {error:?}"));
}

#[test]
fn links_out_of_the_directory_are_refused_in_words_that_do_not_tell_what_is_there() {
    let (cluster, _session, mut carol) = cluster();
    let directory = cluster.model_directory();
    let folder = directory.join("folder");
    std::fs::create_dir(&folder).expect("our own directory");
    std::fs::write(folder.join("config.json"), "{}").expect("our own directory");
    for (link, target) in [
        ("there.gguf", "/etc/passwd"),
        ("missing.gguf", "/etc/no/such/file"),
        ("up.gguf", "../data/PG_VERSION"),
        ("chain.gguf", "up.gguf"),
        ("everything", "/"),
        ("around.gguf", "folder/../../models/slow.gguf"),
        ("circle.gguf", "circle.gguf"),
        ("folder/model.safetensors", "/etc/passwd"),
    ] {
        symlink(target, directory.join(link)).unwrap_or_else(|error| panic!("{link}: {error}"));
    }
    let mut said = Vec::new();
    for (name, file) in [
        ("there", "there.gguf"),
        ("missing", "missing.gguf"),
        ("up", "up.gguf"),
        ("chain", "chain.gguf"),
        ("file", "everything/etc/passwd"),
        ("no-file", "everything/etc/no/such/file"),
        ("around", "around.gguf"),
        ("circle", "circle.gguf"),
        ("folder", "folder"),
    ] {
        register(&mut carol, name, file);
        let id = carol.generate("x", format!("model => '{name}', max_tokens => 2"));
        let request = carol.wait_for(id, "failed");
        assert_eq!(request.error_code.as_deref(), Some("42501"), "{name}: {request:?}");
        assert_eq!(request.retry_count, 0);
        let error = carol.error(&format!("select steadytext_generate('x', 2, model => '{name}')"));
        assert_eq!(error.code().code(), "42501", "{name}: {error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("superuser")), "{error:?}");
        said.push(
            format!("{} {}", request.error.unwrap_or_default(), error).replace(&format!("\"{name}\""), "?"),
        );
    }
    said.dedup();
    assert_eq!(said.len(), 1, "{said:#?}");
}

#[test]
fn links_that_stay_in_the_directory_lead_to_models() {
    let (cluster, _session, mut carol) = cluster();
    let directory = cluster.model_directory();
    std::fs::create_dir_all(directory.join("hub/blobs")).expect("our own directory");
    std::fs::create_dir_all(directory.join("hub/snapshots/1")).expect("our own directory");
    std::fs::rename(directory.join("slow.gguf"), directory.join("hub/blobs/abc")).expect("our own directory");
    symlink("../../blobs/abc", directory.join("hub/snapshots/1/slow.gguf")).expect("a link can be made");
    symlink(directory.join("hub/snapshots/1"), directory.join("absolute")).expect("a link can be made");
    for (name, file) in [("snapshot", "hub/snapshots/1/slow.gguf"), ("absolute", "absolute/slow.gguf")] {
        register(&mut carol, name, file);
        let id = carol.generate("x", format!("model => '{name}', max_tokens => 2"));
        carol.answer(id);
    }
}

#[test]
fn what_a_superuser_has_named_by_its_absolute_path_stays_when_an_admin_changes_the_rest_of_the_row() {
    let (cluster, mut session, mut carol) = cluster();
    let elsewhere = cluster.make_directory("elsewhere");
    std::fs::rename(cluster.model_directory().join("slow.gguf"), elsewhere.join("far.gguf"))
        .expect("our own directory");
    let path = elsewhere.join("far.gguf").display().to_string();
    register(&mut session, "far", &path);
    carol
        .run("update steadytext_models set description = 'far away', is_preferred = true where name = 'far'");
    let id = carol.generate("x", "model => 'far', max_tokens => 2");
    carol.answer(id);
    write_model(&cluster, "near.gguf");
    for sql in [
        format!("update steadytext_models set file = '{path}x' where name = 'far'"),
        format!("update steadytext_models set file = '{path}' where name = 'slow'"),
        "insert into steadytext_models (name, task, file) values ('passwd', 'generate', '/etc/passwd')"
            .to_owned(),
    ] {
        let error = carol.error(&sql);
        assert_eq!((error.code().code(), error.hint().is_some()), ("42501", true), "{error:?}");
    }
    // A superuser who acts as somebody else has no more rights than that one.
    session.run("set role carol");
    let error = session
        .error("insert into steadytext_models (name, task, file) values ('x', 'generate', '/etc/passwd')");
    assert_eq!(error.code().code(), "42501");
    session.run("reset role");
}

#[test]
fn a_way_up_that_came_past_the_trigger_leads_nowhere() {
    let (_cluster, mut session, mut carol) = cluster();
    session.run(
        "alter table steadytext_models disable trigger check_model;
         insert into steadytext_models (name, task, file) values ('up', 'generate', '../data/PG_VERSION'), ('upper', 'generate', 'a/../../data/none');
         alter table steadytext_models enable always trigger check_model",
    );
    for name in ["up", "upper"] {
        let id = carol.generate("x", format!("model => '{name}', max_tokens => 2"));
        assert_eq!(carol.wait_for(id, "failed").error_code.as_deref(), Some("42501"), "{name}");
    }
    // Auto passes them over.
    let id = carol.generate("x", "max_tokens => 2");
    carol.answer(id);
}
