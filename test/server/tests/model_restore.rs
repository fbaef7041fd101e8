//! Generated columns are computed anew where a dump is restored: by the same model, or not at all.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use steadytext_test_server::{Cluster, Options, Session, write_encoder};

const VECTORS: &str =
    "select string_agg(format('%s %s', body, embedding::text), E'\\n' order by body) from article";

fn automatic(directory: Option<&Path>) -> Cluster {
    let options = Options::new().automatic_models();
    match directory {
        Some(directory) => options.set("pg_steadytext.model_dir", directory.display()).start(),
        None => options.start(),
    }
}

/// A table whose vectors its definition computes.
fn fill(session: &mut Session, call: &str) -> String {
    session.run(&format!(
        "create table article (body text, embedding vector generated always as ({call}) stored);
         insert into article (body) values ('Reclaim storage of dead rows'), ('A function that returns a set of rows')"
    ));
    session.one(VECTORS)
}

fn dump(cluster: &Cluster, more: &[&str]) -> PathBuf {
    let file = cluster.make_directory("dump").join("plain.sql");
    let output = cluster
        .client_program("pg_dump")
        .args(["-d", "postgres"])
        .args(more)
        .arg("-f")
        .arg(&file)
        .output()
        .expect("the program runs");
    assert!(output.status.success(), "{output:?}");
    file
}

/// psql's message about the errors of a restore.
fn restore(cluster: &Cluster, database: &str, file: &Path) -> Result<(), String> {
    let mut command: Command = cluster.client_program("psql");
    let output = command
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database, "-f"])
        .arg(file)
        .output()
        .expect("the program runs");
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

#[test]
fn a_column_that_names_its_model_has_the_same_vectors_in_a_new_cluster_and_none_without_the_model() {
    let old = automatic(None);
    let mut session = old.session("postgres");
    session.create_extension();
    write_encoder(&old, "MiniLM.gguf", 5);
    write_encoder(&old, "other.gguf", 6);
    let vectors = fill(&mut session, "steadytext_embed(body, model => 'minilm')");
    let file = dump(&old, &[]);

    let new = automatic(Some(&old.model_directory()));
    assert_eq!(restore(&new, "postgres", &file), Ok(()));
    assert_eq!(new.session("postgres").one::<String>(VECTORS), vectors);

    fs::remove_file(old.model_directory().join("MiniLM.gguf")).expect("our own file");
    let mut other = new.session("postgres");
    other.run("create database without");
    let error = restore(&new, "without", &file).expect_err("the model is not there");
    assert!(error.contains("model \"minilm\" is not registered"), "{error}");
    assert!(error.contains("pg_steadytext.model_dir"), "{error}");
    assert_eq!(new.session("without").one::<i64>("select count(*) from article"), 0);
}

#[test]
fn a_database_with_a_default_model_has_the_same_vectors_in_a_new_cluster_and_none_without_the_model() {
    let old = automatic(None);
    let mut session = old.session("postgres");
    write_encoder(&old, "mine.gguf", 5);
    write_encoder(&old, "other.gguf", 6);
    session.run("create database shop");
    session.run("alter database shop set pg_steadytext.embedding_model = 'mine'");
    let mut shop = old.session("shop");
    shop.create_extension();
    let vectors = fill(&mut shop, "steadytext_embed(body)");
    let file = old.make_directory("dump").join("plain.sql");
    let output = old
        .client_program("pg_dump")
        .args(["-C", "-d", "shop", "-f"])
        .arg(&file)
        .output()
        .expect("the program runs");
    assert!(output.status.success(), "{output:?}");

    let new = automatic(Some(&old.model_directory()));
    assert_eq!(restore(&new, "postgres", &file), Ok(()));
    assert_eq!(new.session("shop").one::<String>(VECTORS), vectors);

    let bare = automatic(None);
    let error = restore(&bare, "postgres", &file).expect_err("the model is not there");
    let said = "model \"mine\" is not registered; pg_steadytext.embedding_model names this model";
    assert!(error.contains(said), "{error}");
    assert_eq!(bare.session("shop").one::<i64>("select count(*) from article"), 0);
}

#[test]
fn what_a_card_prefers_and_the_builtin_model_where_there_is_no_other_compute_the_same_after_a_restore() {
    let old = automatic(None);
    let mut session = old.session("postgres");
    session.create_extension();
    let vectors = fill(&mut session, "steadytext_embed(body)");
    let file = dump(&old, &[]);
    let new = automatic(Some(&old.model_directory()));
    assert_eq!(restore(&new, "postgres", &file), Ok(()));
    assert_eq!(new.session("postgres").one::<String>(VECTORS), vectors);

    write_encoder(&old, "one.gguf", 1);
    write_encoder(&old, "two.gguf", 2);
    fs::write(old.model_directory().join("two.gguf.card.json"), r#"{"preferred": ["embed"]}"#)
        .expect("our own file");
    session.run("drop table article");
    let by_two = fill(&mut session, "steadytext_embed(body)");
    assert_ne!(by_two, vectors);
    fs::remove_dir_all(old.directory().join("dump")).expect("our own directory");
    let file = dump(&old, &[]);
    new.session("postgres").run("create database again");
    assert_eq!(restore(&new, "again", &file), Ok(()));
    assert_eq!(new.session("again").one::<String>(VECTORS), by_two);
}

#[test]
fn a_restore_fails_where_settings_that_come_later_would_have_chosen_another_model() {
    let old = automatic(None);
    let mut session = old.session("postgres");
    session.create_extension();
    write_encoder(&old, "mine.gguf", 5);
    session.run("select steadytext_config_set('embedding_model', 'mine')");
    let vectors = fill(&mut session, "steadytext_embed(body)");
    let file = dump(&old, &[]);
    // The only model of the directory is the one.
    let new = automatic(Some(&old.model_directory()));
    assert_eq!(restore(&new, "postgres", &file), Ok(()));
    assert_eq!(new.session("postgres").one::<String>(VECTORS), vectors);
    // Another one is preferred there.
    write_encoder(&old, "other.gguf", 6);
    fs::write(old.model_directory().join("other.gguf.card.json"), r#"{"preferred": ["embed"]}"#)
        .expect("our own file");
    new.session("postgres").run("create database again");
    let error = restore(&new, "again", &file).expect_err("the vectors are another model's");
    assert!(error.contains("were computed for task embed by another model"), "{error}");
    // The server has no models, and a row names one.
    session.run(
        "select steadytext_config_set('embedding_model', null);
         insert into steadytext_models (name, task, file) values ('mine', 'embed', 'mine.gguf')",
    );
    fs::remove_dir_all(old.directory().join("dump")).expect("our own directory");
    let file = dump(&old, &[]);
    let bare = automatic(None);
    let error = restore(&bare, "postgres", &file).expect_err("the vectors are the builtin model's");
    assert!(error.contains("were computed for task embed by another model"), "{error}");
}
