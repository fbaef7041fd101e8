//! The adapters of jina-embeddings-v3 through SQL: tasks and modes choose them in calls, requests, batches
//! and vectorizers.

use steadytext_test_models::adapters::{adapter_path, write_adapted, write_adapted_folder};
use steadytext_test_models::{Bert, EncoderFamily};
use steadytext_test_server::{Cluster, Session, wait_until};

/// The model as a file with adapters, as a folder, and as a file without adapters.
fn with_adapters() -> (Cluster, Session) {
    let cluster = Cluster::with_extension();
    let session = cluster.session("postgres");
    let spec = Bert { family: EncoderFamily::JinaBertV3, ..Bert::default() };
    let directory = cluster.model_directory();
    write_adapted(&spec, &directory.join("jina.gguf")).expect("our own directory");
    write_adapted_folder(&spec, &directory.join("published")).expect("our own directory");
    spec.write(&directory.join("plain.gguf")).expect("our own directory");
    (cluster, session)
}

fn called(session: &mut Session, arguments: &str) -> String {
    session.one(&format!("select steadytext_embed({arguments})::text"))
}

fn queued(session: &mut Session, arguments: &str) -> String {
    let id: uuid::Uuid = session.one(&format!("select steadytext_embed_async({arguments})"));
    session.one(&format!("select steadytext_get_async_embedding('{id}', 60)::text"))
}

#[test]
fn tasks_and_modes_choose_the_adapter_in_calls_requests_and_batches() {
    let (_cluster, mut session) = with_adapters();
    for model in ["jina", "published"] {
        let of = |how: &str| format!("'find it', model => '{model}'{how}");
        let vectors = ["", ", mode => 'query'", ", mode => 'passage'", ", task => 'classification'"]
            .map(|how| called(&mut session, &of(how)));
        for (index, vector) in vectors.iter().enumerate() {
            assert!(!vectors[..index].contains(vector), "{model}: {index} is that of another one");
        }
        // Behind the first of each the cache answers, and never with the vector of another task.
        for (how, expected) in [
            ("", 0),
            (", mode => 'query'", 1),
            (", task => 'retrieval.query'", 1),
            (", mode => 'query', task => 'retrieval.query'", 1),
            (", mode => 'passage'", 2),
            (", task => 'retrieval.passage'", 2),
            (", task => 'classification'", 3),
            (", mode => 'query', task => 'classification'", 3),
        ] {
            for _ in 0..2 {
                assert_eq!(called(&mut session, &of(how)), vectors[expected], "{model}{how}");
                assert_eq!(queued(&mut session, &of(how)), vectors[expected], "{model}{how}, queued");
            }
        }
        let ids: Vec<uuid::Uuid> = session.list(&format!(
            "select unnest(steadytext_embed_batch_async(array['find it', 'find it'], model => '{model}', task => 'classification'))"
        ));
        for id in ids {
            let vector: String =
                session.one(&format!("select steadytext_get_async_embedding('{id}', 60)::text"));
            assert_eq!(vector, vectors[3]);
        }
        let tasks: String = session
            .one(&format!("select array_to_string(array(select unnest(adapters) order by 1), ' ') from steadytext_model_inspect('{model}')"));
        assert_eq!(tasks, "classification retrieval.passage retrieval.query");
        assert!(session.one::<bool>(&format!("select loads from steadytext_model_inspect('{model}')")));
        let error = session.error(&format!("select steadytext_embed({})", of(", task => 'separation'")));
        assert_eq!(error.code().code(), "22023", "{error}");
        let hint = error.hint().unwrap_or_default();
        assert!(hint.starts_with("Name one of its tasks: ") && hint.contains("classification"), "{hint}");
        assert!(!error.message().contains("separation"), "{error}");
        // The queue refuses it at once.
        let queued =
            session.error(&format!("select steadytext_embed_async({})", of(", task => 'separation'")));
        assert_eq!((queued.code().code(), queued.hint()), ("22023", error.hint()), "{queued}");
    }
    for how in ["", ", mode => 'passage'", ", mode => 'query'"] {
        let plain = called(&mut session, &format!("'find it', model => 'plain'{how}"));
        assert_eq!(plain, called(&mut session, "'find it', model => 'jina'"), "without adapters{how}");
    }
    assert!(session.one::<bool>("select adapters = '{}' from steadytext_model_inspect('plain')"));
    let error = session.error("select steadytext_embed('x', model => 'plain', task => 'classification')");
    assert!(error.message().contains("takes no task") && error.hint().is_some(), "{error:?}");
}

#[test]
fn a_folder_of_adapters_that_fits_no_file_is_told_of() {
    let (cluster, mut session) = with_adapters();
    let directory = cluster.model_directory();
    let wrong = |session: &mut Session| -> Vec<String> {
        session.list(
            r#"select concat_ws(' | ', "check", status, hint) from steadytext_diagnose() where "check" ~ '^adapters' order by 1"#,
        )
    };
    assert_eq!(wrong(&mut session), [""; 0], "that of the model, and what a published folder has");
    let hint = |session: &mut Session, name: &str| -> Option<String> {
        session.one(&format!("select hint from steadytext_model_inspect('{name}')"))
    };
    let task = "'find it', model => 'jina', task => 'classification'";
    let adapted = called(&mut session, task);
    for stray in ["jina.GGUF.adapters", "Jina.gguf.adapters", "jina.adapters", "jina.gguf.Adapters"] {
        std::fs::rename(directory.join("jina.gguf.adapters"), directory.join(stray))
            .expect("our own directory");
        let advice = format!(
            "Adapters of \"jina.gguf\" are read from \"jina.gguf.adapters\" only: rename folder \"{stray}\" so."
        );
        assert_eq!(wrong(&mut session), [format!("adapters {stray} | warning | {advice}")]);
        assert_eq!(hint(&mut session, "jina"), Some(advice));
        assert_eq!(hint(&mut session, "plain"), None);
        assert!(
            session.error(&format!("select steadytext_embed({task})")).message().contains("takes no task")
        );
        std::fs::rename(directory.join(stray), directory.join("jina.gguf.adapters"))
            .expect("our own directory");
    }
    std::fs::create_dir(directory.join("nobody.gguf.adapters")).expect("our own directory");
    let said = wrong(&mut session);
    assert!(matches!(said.as_slice(), [said] if said.contains("such as retrieval.query.gguf")), "{said:?}");
    // The ending of an adapter's file may be in any case, as that of the model's file.
    let file = adapter_path(&directory.join("jina.gguf"), "classification");
    std::fs::rename(&file, file.with_extension("GGUF")).expect("our own file");
    assert_eq!(called(&mut session, &format!("{task}, use_cache => false")), adapted);
}

#[test]
fn vectorizers_embed_as_passages_and_search_as_queries() {
    let (_cluster, mut session) = with_adapters();
    session.run(
        "create table note (id int primary key, body text);
         insert into note values (1, 'keep it');
         select steadytext_create_vectorizer('note', array['body'], model => 'jina', target_column => 'embedding', index => 'none')",
    );
    wait_until("the vector", || session.one::<bool>("select embedding is not null from note"));
    let vector: String = session.one("select embedding::text from note");
    assert_eq!(vector, called(&mut session, "'keep it', model => 'jina', mode => 'passage'"));
    let query: String = session.one("select steadytext_vectorizer_embed('note_body', 'find it')::text");
    assert_eq!(query, called(&mut session, "'find it', model => 'jina', task => 'retrieval.query'"));
}

#[test]
fn an_adapter_that_is_removed_or_replaced_is_used_no_more() {
    let (cluster, mut session) = with_adapters();
    let model = cluster.model_directory().join("jina.gguf");
    let classified = "'find it', model => 'jina', task => 'classification'";
    let before = called(&mut session, classified);
    let [query, other] = ["retrieval.query", "classification"].map(|task| adapter_path(&model, task));
    std::fs::remove_file(&query).expect("it is ours");
    let error = session.error("select steadytext_embed('x', model => 'jina', task => 'retrieval.query')");
    assert_eq!(error.hint(), Some("Name one of its tasks: classification, retrieval.passage."));
    let spec = Bert { family: EncoderFamily::JinaBertV3, seed: 2, ..Bert::default() };
    let new = other.with_extension("new");
    let adapter = steadytext_test_models::adapters::adapter(&spec, 2).expect("it is made");
    adapter.write(&mut std::fs::File::create(&new).expect("our own directory")).expect("there is room");
    std::fs::rename(&new, &other).expect("our own directory");
    // Neither the cache nor a model that is loaded answers with the old one.
    assert_ne!(called(&mut session, classified), before);
}
