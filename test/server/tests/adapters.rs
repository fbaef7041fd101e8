//! The adapters of jina-embeddings-v3 through SQL: tasks and modes choose them in calls, requests, batches
//! and vectorizers.

use steadytext_test_models::adapters::{adapter_called, adapter_path, write_adapted, write_adapted_folder};
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

/// Puts the adapter of one more task beside `jina.gguf`, unlike those that are there.
fn add_adapter(cluster: &Cluster, task: &str) {
    let spec = Bert { family: EncoderFamily::JinaBertV3, seed: 3, ..Bert::default() };
    let adapter = adapter_called(&spec, 2, task, "compare this ").expect("it is made");
    let path = adapter_path(&cluster.model_directory().join("jina.gguf"), task);
    adapter.write(&mut std::fs::File::create(path).expect("our own directory")).expect("there is room");
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

/// The cosine of two texts that are embedded with these arguments.
fn cosine(session: &mut Session, [one, other]: [&str; 2], arguments: &str) -> f64 {
    session.one(&format!(
        "select 1 - (steadytext_embed('{one}', {arguments}) <=> steadytext_embed('{other}', {arguments}))"
    ))
}

/// The answer to a request of the queue.
fn answer(session: &mut Session, enqueue: &str) -> String {
    let id: uuid::Uuid = session.one(&format!("select {enqueue}"));
    session.one(&format!("select steadytext_get_async_result('{id}', 60)"))
}

fn assert_near(one: f64, other: f64, what: &str) {
    assert!((one - other).abs() < 1e-6, "{what}: {one} and {other}");
}

#[test]
fn texts_are_compared_with_the_adapter_for_it_and_classified_with_that_for_categories() {
    let (cluster, mut session) = with_adapters();
    let texts = ["a cat sleeps", "the dog barks"];
    let similarity = "steadytext_similarity('a cat sleeps', 'the dog barks', model => 'jina')";
    let call = |session: &mut Session| session.one::<f64>(&format!("select {similarity}"));
    // There is none for it yet.
    let plain = cosine(&mut session, texts, "model => 'jina'");
    assert_near(call(&mut session), plain, "without an adapter for it");
    add_adapter(&cluster, "text-matching");
    let matched = cosine(&mut session, texts, "model => 'jina', task => 'text-matching'");
    assert!((matched - plain).abs() > 1e-4, "{matched} and {plain}: the adapter changes nothing");
    // From the cache, too, and whatever was in it before.
    for _ in 0..2 {
        assert_near(call(&mut session), matched, "called");
    }
    let arrays: Vec<f64> = session.list(
        "select unnest(steadytext_similarity(array['a cat sleeps', 'x'], array['the dog barks', 'x'], model => 'jina'))",
    );
    assert_near(arrays[0], matched, "in an array");
    assert_near(arrays[1], 1.0, "of the same text");
    let queued =
        "steadytext_similarity_async('a cat sleeps', 'the dog barks', model => 'jina', use_cache => false)";
    let queued: f64 = answer(&mut session, queued).parse().expect("it is a number");
    assert_near(queued, matched, "queued");

    // Facts are compared as texts are: with a threshold between the two cosines, the adapter decides.
    let threshold = f64::midpoint(matched, plain);
    let kept: i32 = session.one(&format!(
        r#"select jsonb_array_length(steadytext_deduplicate_facts('["a cat sleeps", "the dog barks"]', {threshold}, model => 'jina'))"#
    ));
    assert_eq!(kept, if matched >= threshold { 1 } else { 2 });

    let categories = ["pets", "storage engines"];
    let own: Vec<f64> = categories
        .iter()
        .map(|category| {
            cosine(&mut session, ["a cat", category], "model => 'jina', task => 'classification'")
        })
        .collect();
    let arguments = "array['pets', 'storage engines'], method => 'embed', model => 'jina'";
    let share = |scores: &[f64]| 1.0 / (1.0 + ((scores[1] - scores[0]) * 20.0).exp());
    let score: f64 = session.one(&format!(
        "select score from steadytext_classify_scores('a cat', {arguments}) where category = 'pets'"
    ));
    assert_near(score, share(&own), "categories");
    let best = categories[usize::from(own[1] > own[0])];
    assert_eq!(session.one::<String>(&format!("select steadytext_classify('a cat', {arguments})")), best);
    let all: Vec<String> =
        session.list(&format!("select unnest(steadytext_classify(array['a cat', 'a cat'], {arguments}))"));
    assert_eq!(all, [best, best]);
    let queued = format!("steadytext_classify_async('a cat', {arguments}, use_cache => false)");
    assert_eq!(answer(&mut session, &queued), best);
    let threshold = f64::midpoint(own[0], own[1]);
    let enough: Vec<String> = session.list(&format!(
        "select unnest(steadytext_classify_multi('a cat', {arguments}, threshold => {threshold}))"
    ));
    assert_eq!(enough, [best]);
    // The folder has no adapter for comparisons, and the file without adapters has none at all.
    for model in ["published", "plain"] {
        let expected = cosine(&mut session, texts, &format!("model => '{model}'"));
        let found: f64 = session.one(&format!(
            "select steadytext_similarity('a cat sleeps', 'the dog barks', model => '{model}')"
        ));
        assert_near(found, expected, model);
    }
}

#[test]
fn prompts_of_a_row_stand_before_texts_that_are_computed_with_the_adapter_of_the_mode() {
    let (cluster, mut session) = with_adapters();
    add_adapter(&cluster, "text-matching");
    session.run(
        "insert into steadytext_models (name, task, file, query_prompt, passage_prompt) values
             ('prompted', 'embed', 'jina.gguf', 'where is ', 'here is '),
             ('placed', 'embed', 'jina.gguf', 'for {task=search}: ', null)",
    );
    let mut of = |text: &str, how: &str| called(&mut session, &format!("'{text}', {how}"));
    // Another row of the same file says nothing of prompts, but its adapters do.
    for (how, prompt) in [
        ("mode => 'query'", "where is "),
        ("task => 'retrieval.query'", "where is "),
        ("mode => 'passage'", "here is "),
        ("task => 'retrieval.passage'", "here is "),
    ] {
        let own = of("find it", &format!("model => 'jina', {how}"));
        let prompted = of("find it", &format!("model => 'prompted', {how}"));
        assert_ne!(prompted, own, "{how}: {prompt}");
        assert_eq!(prompted, of("find it", &format!("model => 'prompted', {how}")), "{how}, again");
    }
    for how in ["", ", task => 'classification'", ", task => 'text-matching'"] {
        let own = of("find it", &format!("model => 'jina'{how}"));
        assert_eq!(of("find it", &format!("model => 'prompted'{how}")), own, "{how}");
    }
    // A prompt with a place for the task is meant for all of them.
    let own = of("find it", "model => 'jina', task => 'classification'");
    assert_ne!(of("find it", "model => 'placed', task => 'classification'"), own);
    assert_eq!(of("find it", "model => 'placed'"), of("find it", "model => 'jina'"));
    let queries = ["mode => 'query'", "task => 'retrieval.query'"]
        .map(|how| of("find it", &format!("model => 'placed', {how}")));
    assert_eq!(queries[0], queries[1]);
    let queued = queued(&mut session, "'find it', model => 'prompted', use_cache => false");
    assert_eq!(queued, called(&mut session, "'find it', model => 'jina'"), "queued");
    let scores: Vec<f64> = ["jina", "prompted"]
        .map(|model| {
            session.one(&format!("select steadytext_similarity('find it', 'keep it', model => '{model}')"))
        })
        .to_vec();
    assert_near(scores[0], scores[1], "compared");
}

#[test]
fn the_checksum_of_a_row_or_card_is_that_of_the_models_own_file() {
    let (cluster, mut session) = with_adapters();
    let path = cluster.model_directory().join("jina.gguf");
    let own: String =
        session.one(&format!("select encode(sha256(pg_read_binary_file('{}')), 'hex')", path.display()));
    session.run(&format!(
        "insert into steadytext_models (name, task, file, sha256) values
             ('right', 'embed', 'jina.gguf', '{own}'), ('wrong', 'embed', 'jina.gguf', repeat('0a', 32))"
    ));
    let loads = |session: &mut Session, name: &str| {
        session.one::<bool>(&format!("select loads from steadytext_model_inspect('{name}')"))
    };
    // Looked at before anybody has loaded it, and once it is.
    for _ in 0..2 {
        assert!(loads(&mut session, "right") && !loads(&mut session, "wrong"));
        let vector = called(&mut session, "'find it', model => 'right', task => 'classification'");
        assert_eq!(vector, called(&mut session, "'find it', model => 'jina', task => 'classification'"));
        assert_eq!(vector, queued(&mut session, "'find it', model => 'right', task => 'classification'"));
        let error = session.error("select steadytext_embed('find it', model => 'wrong')");
        assert_eq!(error.code().code(), "XX001", "{error}");
        assert!(error.message().contains(&own), "{error}");
    }
    std::fs::write(path.with_extension("gguf.card.json"), format!(r#"{{"sha256": "{own}"}}"#))
        .expect("our own directory");
    assert!(loads(&mut session, "jina"));
    // Another adapter makes another model of it for the cache, and the same one for the row.
    let before = called(&mut session, "'find it', model => 'right', task => 'classification'");
    let spec = Bert { family: EncoderFamily::JinaBertV3, seed: 2, ..Bert::default() };
    let other = adapter_path(&path, "classification");
    let new = other.with_extension("new");
    let adapter = steadytext_test_models::adapters::adapter(&spec, 2).expect("it is made");
    adapter.write(&mut std::fs::File::create(&new).expect("our own directory")).expect("there is room");
    std::fs::rename(&new, &other).expect("our own directory");
    assert_ne!(called(&mut session, "'find it', model => 'right', task => 'classification'"), before);
    assert!(loads(&mut session, "right"));
}

#[test]
fn a_model_that_is_removed_with_its_files_takes_its_adapters_along() {
    let (cluster, mut session) = with_adapters();
    let directory = cluster.model_directory();
    // The server may delete only files in folders that it owns.
    let folder = cluster.make_directory("models/own.gguf.adapters");
    let model = directory.join("jina.gguf");
    for entry in directory.join("jina.gguf.adapters").read_dir().expect("our own directory") {
        let entry = entry.expect("our own directory");
        std::fs::copy(entry.path(), folder.join(entry.file_name())).expect("there is room");
    }
    std::fs::copy(model, directory.join("own.gguf")).expect("there is room");
    std::fs::write(directory.join("own.gguf.card.json"), "{}").expect("our own directory");
    called(&mut session, "'find it', model => 'own', task => 'classification'");
    let beside = |name: &str| {
        let entries = directory.read_dir().expect("our own directory");
        let names = entries.map(|entry| entry.expect("our own directory").file_name());
        let mut names: Vec<String> = names
            .filter_map(|found| found.into_string().ok())
            .filter(|found| found.starts_with(name))
            .collect();
        names.sort();
        names
    };
    wait_until("packed weights and checksum", || {
        ["panels", "checksum"].iter().all(|kind| beside("own").contains(&format!("own.gguf.{kind}")))
    });
    // Its name is that of a file, and the registry has no row to take out.
    let error = session.error("select steadytext_model_remove('own')");
    assert_eq!(error.code().code(), "22023", "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("delete_file => true")), "{error:?}");
    assert_eq!(beside("own").len(), 5, "{:?}", beside("own"));
    assert!(session.one::<bool>("select steadytext_model_remove('own', delete_file => true)"));
    assert_eq!(beside("own"), Vec::<String>::new());
    assert!(!beside("jina.gguf").is_empty() && !beside("published").is_empty());
    assert!(!session.one::<bool>("select steadytext_model_remove('own', delete_file => true)"));
    let error = session.error("select steadytext_embed('x', model => 'own')");
    assert_eq!(error.code().code(), "42704", "{error}");
}
