//! Embeddings through SQL: encoders beside decoders, queries beside passages.

use steadytext_test_models::Bert;
use steadytext_test_server::{Cluster, Session, encoders};

/// Registers the encoder of 64 dimensions as a folder and as a GGUF file.
fn with_encoders() -> (Cluster, Session) {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    encoders(&cluster, &mut session, &Bert::default());
    (cluster, session)
}

/// The vector of a call as text, or that of its request.
fn vector(session: &mut Session, function: &str, arguments: &str) -> String {
    if function.ends_with("_async") {
        let query = format!("select steadytext_get_async_embedding({function}({arguments}), 60)::text");
        // The request must be committed before anybody waits for it.
        let id: uuid::Uuid = session.one(&format!("select {function}({arguments})"));
        let query = query.replace(&format!("{function}({arguments})"), &format!("'{id}'"));
        session.one(&query)
    } else {
        session.one(&format!("select {function}({arguments})::text"))
    }
}

#[test]
fn an_encoder_answers_with_a_vector_of_its_dimension_whatever_its_form() {
    let (_cluster, mut session) = with_encoders();
    let mut vectors = Vec::new();
    for model in ["folder", "file"] {
        for function in ["steadytext_embed", "st_embed", "steadytext_embed_async", "st_embed_async"] {
            let arguments = format!("'Hello world', model => '{model}'");
            vectors.push(vector(&mut session, function, &arguments));
        }
    }
    let first = vectors[0].clone();
    assert!(vectors.iter().all(|vector| *vector == first), "{vectors:?}");
    let (dimensions, length): (i32, f64) = {
        let row = session
            .query_one(&format!("select vector_dims('{first}'::vector), vector_norm('{first}'::vector)"), &[])
            .expect("it is a vector");
        (row.get(0), row.get(1))
    };
    assert_eq!(dimensions, 64);
    assert!((length - 1.0).abs() < 1e-5, "{length}");
    let other = vector(&mut session, "steadytext_embed", "'Goodbye world', model => 'folder'");
    assert_ne!(other, first);
}

#[test]
fn the_setting_takes_a_folder_as_it_takes_a_file() {
    let (cluster, mut session) = with_encoders();
    let named = vector(&mut session, "steadytext_embed", "'x', model => 'folder'");
    for value in ["folder", "encoder", "encoder.gguf"] {
        cluster.configure("pg_steadytext.embedding_model", value);
        session.run("select pg_reload_conf()");
        steadytext_test_server::wait_until("the setting to arrive", || {
            session.one::<String>("show pg_steadytext.embedding_model") == value
        });
        assert_eq!(vector(&mut session, "steadytext_embed", "'x'"), named, "{value}");
    }
}

#[test]
fn a_batch_gives_the_vectors_of_single_calls_in_order() {
    let (_cluster, mut session) = with_encoders();
    let texts = "(select array_agg('text number ' || n order by n) from generate_series(1, 100) as n)";
    let ids: Vec<uuid::Uuid> =
        session.list(&format!("select unnest(steadytext_embed_batch_async({texts}, model => 'folder'))"));
    let vectors: Vec<String> = ids
        .iter()
        .map(|id| session.one(&format!("select steadytext_get_async_embedding('{id}', 60)::text")))
        .collect();
    let single: Vec<String> = session
        .list(&format!("select steadytext_embed(t, model => 'folder')::text from unnest({texts}) with ordinality as u(t, n) order by n"));
    assert_eq!(vectors.len(), 100);
    assert!(vectors == single);
}

#[test]
fn one_request_with_many_texts_gets_all_vectors_in_order() {
    let (_cluster, mut session) = with_encoders();
    for model in ["folder", "builtin"] {
        let id: uuid::Uuid = session.one(&format!(
            "insert into steadytext_queue (request_type, prompts, params)
             select 'batch_embed', array_agg('text number ' || n order by n), '{{\"model\": \"{model}\", \"mode\": \"query\"}}'
             from generate_series(1, 60) as n
             returning request_id"
        ));
        steadytext_test_server::wait_until("all vectors", || {
            session.one::<bool>(&format!("select status = 'completed' from steadytext_check_async('{id}')"))
        });
        let vectors: Vec<String> = session.list(&format!(
            "select unnest(embeddings)::text from steadytext_queue where request_id = '{id}'"
        ));
        let single: Vec<String> = session.list(&format!(
            "select steadytext_embed('text number ' || n, model => '{model}', mode => 'query')::text
             from generate_series(1, 60) as n order by n"
        ));
        assert_eq!(vectors.len(), 60);
        assert!(vectors == single, "{model}");
    }
    let id: uuid::Uuid = session.one(
        "insert into steadytext_queue (request_type, prompts, params)
         values ('batch_embed', array['short', repeat('a ', 300), 'short too'], '{\"model\": \"folder\"}')
         returning request_id",
    );
    steadytext_test_server::wait_until("the failure", || {
        session.one::<bool>(&format!("select status = 'failed' from steadytext_check_async('{id}')"))
    });
    let error: String = session.one(&format!("select error from steadytext_check_async('{id}')"));
    assert!(error.starts_with("text 2: the prompt has 302 tokens"), "{error}");
}

#[test]
fn the_queue_cuts_long_texts_as_calls_do_where_that_is_wanted() {
    let (_cluster, mut session) = with_encoders();
    let long = "repeat('a ', 300), model => 'folder', truncate => true";
    let called = vector(&mut session, "steadytext_embed", long);
    assert_eq!(vector(&mut session, "steadytext_embed_async", long), called);
    let ids: Vec<uuid::Uuid> = session.list(
        "select unnest(steadytext_embed_batch_async(array[repeat('a ', 300)], model => 'folder', truncate => true))",
    );
    let queued: String =
        session.one(&format!("select steadytext_get_async_embedding('{}', 60)::text", ids[0]));
    assert_eq!(queued, called);
    let id: uuid::Uuid = session.one(
        "insert into steadytext_queue (request_type, prompts, params)
         values ('batch_embed', array[repeat('a ', 300)], '{\"model\": \"folder\", \"truncate\": true}')
         returning request_id",
    );
    let vectors: String =
        session.one(&format!("select (steadytext_get_async_result('{id}', 60)::vector[])[1]::text"));
    assert_eq!(vectors, called);
    // Without it, the same text is an error.
    let id = session.embed(&"a ".repeat(300), "model => 'folder'");
    assert_eq!(session.wait_for_end(id).error_code.as_deref(), Some("54000"));
}

#[test]
fn queries_and_tasks_reach_decoders_in_their_words() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    let task = "Given a web search query, retrieve relevant passages that answer the query";
    for function in ["steadytext_embed", "steadytext_embed_async"] {
        let plain = vector(&mut session, function, "'find it'");
        assert_eq!(vector(&mut session, function, "'find it', mode => 'passage'"), plain);
        let query = vector(&mut session, function, "'find it', mode => 'query'");
        assert_ne!(query, plain);
        let spelt = format!("E'Instruct: {task}\\nQuery:find it'");
        assert_eq!(vector(&mut session, function, &spelt), query);
        let spelt = "E'Instruct: Find it\\nQuery:find it'";
        let expected = vector(&mut session, function, spelt);
        assert_eq!(vector(&mut session, function, "'find it', task => 'Find it'"), expected);
        assert_eq!(vector(&mut session, function, "'find it', mode => 'query', task => 'Find it'"), expected);
    }
    let ids: Vec<uuid::Uuid> =
        session.list("select unnest(steadytext_embed_batch_async(array['find it'], mode => 'query'))");
    let batch: String =
        session.one(&format!("select steadytext_get_async_embedding('{}', 60)::text", ids[0]));
    assert_eq!(batch, vector(&mut session, "steadytext_embed", "'find it', mode => 'query'"));
}

/// Rows of the same encoder: as it is, with prompts, with a place for a task.
fn with_prompts() -> (Cluster, Session) {
    let (cluster, mut session) = with_encoders();
    session.run(
        "insert into steadytext_models (name, task, file, query_prompt, passage_prompt, dimensions) values
            ('prompted', 'embed', 'encoder.gguf', 'query: ', 'passage: ', '{16,32}'),
            ('tasked', 'embed', 'encoder.gguf', 'task: {task=search} | ', null, null)",
    );
    (cluster, session)
}

#[test]
fn the_prompts_of_a_row_stand_before_the_texts() {
    let (_cluster, mut session) = with_prompts();
    let plain = |session: &mut Session, text: &str| {
        vector(session, "steadytext_embed", &format!("'{text}', model => 'file'"))
    };
    for function in ["steadytext_embed", "steadytext_embed_async"] {
        for (arguments, spelt) in [
            ("'find it', model => 'prompted'", "passage: find it"),
            ("'find it', mode => 'passage', model => 'prompted'", "passage: find it"),
            ("'find it', mode => 'query', model => 'prompted'", "query: find it"),
            ("'find it', model => 'tasked'", "find it"),
            ("'find it', mode => 'query', model => 'tasked'", "task: search | find it"),
            ("'find it', task => 'facts', model => 'tasked'", "task: facts | find it"),
        ] {
            let expected = plain(&mut session, spelt);
            // The second time from the cache.
            for _ in 0..2 {
                assert_eq!(vector(&mut session, function, arguments), expected, "{function}: {arguments}");
            }
        }
    }
    let ids: Vec<uuid::Uuid> =
        session.list("select unnest(steadytext_embed_batch_async(array['find it'], model => 'prompted'))");
    let batch: String =
        session.one(&format!("select steadytext_get_async_embedding('{}', 60)::text", ids[0]));
    assert_eq!(batch, plain(&mut session, "passage: find it"));
    let similarity = |session: &mut Session, one: &str, other: &str, model: &str| -> f64 {
        session.one(&format!("select steadytext_similarity('{one}', '{other}', model => '{model}')"))
    };
    let spelt = similarity(&mut session, "passage: one", "passage: two", "file");
    assert_eq!(similarity(&mut session, "one", "two", "prompted"), spelt);
    let error = session.error("select steadytext_embed('x', task => 'Find it', model => 'prompted')");
    assert_eq!(error.code().code(), "22023");
    assert!(error.message().contains("takes no task"), "{error}");
}

#[test]
fn a_changed_prompt_is_not_answered_from_the_cache_also_where_no_model_is_named() {
    let (_cluster, mut session) = with_prompts();
    session.run("set pg_steadytext.embedding_model = 'prompted'");
    let key = "select steadytext_cache_key('embed', 'find it', '{}')";
    let found: String = session.one("select steadytext_embed('find it')::text");
    let before: String = session.one(key);
    steadytext_test_server::wait_until("the cache to be written", || {
        session.one::<bool>("select steadytext_embed_cached('find it')::text is not null")
    });
    session.run("update steadytext_models set passage_prompt = 'document: ' where name = 'prompted'");
    assert_ne!(session.one::<String>(key), before);
    assert!(session.one::<bool>("select steadytext_embed_cached('find it') is null"));
    let changed: String = session.one("select steadytext_embed('find it')::text");
    assert_ne!(changed, found);
    assert_eq!(changed, vector(&mut session, "steadytext_embed", "'document: find it', model => 'file'"));
}

#[test]
fn the_card_of_a_model_has_the_say_before_a_row_that_came_with_the_extension() {
    let (cluster, mut session) = with_encoders();
    let card = cluster.model_directory().join("encoder.gguf.card.json");
    std::fs::write(&card, r#"{"query_prompt": "q: ", "passage_prompt": "p: ", "dimensions": [8]}"#)
        .expect("our own file");
    let expected = {
        session.run("insert into steadytext_models (name, task, file, passage_prompt) values ('bare', 'embed', 'encoder.gguf', '')");
        vector(&mut session, "steadytext_embed", "'p: x', model => 'bare'")
    };
    for name in ["file", "encoder.gguf"] {
        assert_eq!(vector(&mut session, "steadytext_embed", &format!("'x', model => '{name}'")), expected);
        let length = format!("'x', model => '{name}', dimensions => 8");
        assert_eq!(session.one::<i32>(&format!("select vector_dims(steadytext_embed({length}))")), 8);
    }
}

#[test]
fn vectors_are_shortened_and_scaled_to_lengths_that_the_model_was_trained_for() {
    let (_cluster, mut session) = with_prompts();
    for (function, more) in
        [("steadytext_embed", ""), ("steadytext_embed_async", ""), ("steadytext_embed", ", mode => 'query'")]
    {
        let arguments = format!("'a text', model => 'prompted'{more}");
        let whole = vector(&mut session, function, &arguments);
        let short = vector(&mut session, function, &format!("{arguments}, dimensions => 16"));
        let apart: f64 = session
            .one(&format!("select '{short}'::vector <-> l2_normalize(subvector('{whole}'::vector, 1, 16))"));
        assert!(apart < 1e-6, "{apart}");
        assert_eq!(session.one::<i32>(&format!("select vector_dims('{short}'::vector)")), 16);
        assert_ne!(vector(&mut session, function, &format!("{arguments}, dimensions => 32")), short);
    }
    for (call, hint) in [
        ("steadytext_embed('x', model => 'prompted', dimensions => 17)", "16, 32; whole vectors have 64"),
        ("steadytext_embed('x', model => 'file', dimensions => 16)", "whole vectors have 64 dimensions"),
        ("steadytext_embed('x', dimensions => 16)", "whole vectors have 256 dimensions"),
        ("steadytext_embed_async('x', model => 'prompted', dimensions => 17)", "16, 32"),
        ("steadytext_embed_async('x', model => 'file', dimensions => 16)", "Leave dimensions out"),
        ("steadytext_embed_batch_async('{x}', model => 'file', dimensions => 16)", "Leave dimensions out"),
    ] {
        let error = session.error(&format!("select {call}"));
        assert_eq!(error.code().code(), "22023", "{call}: {error}");
        assert!(error.hint().is_some_and(|text| text.contains(hint)), "{call}: {error:?}");
    }
    // The whole length is no shortening: the same bytes, whoever asks for it.
    for (model, whole) in [("prompted", 64), ("file", 64), ("folder", 64), ("builtin", 256)] {
        let arguments = format!("'a text', model => '{model}'");
        for function in ["steadytext_embed", "steadytext_embed_async"] {
            let length = format!("{arguments}, dimensions => {whole}");
            assert_eq!(
                vector(&mut session, function, &length),
                vector(&mut session, function, &arguments),
                "{model}"
            );
        }
    }
}

#[test]
fn a_folder_says_to_which_lengths_its_vectors_may_be_cut() {
    let (cluster, mut session) = with_encoders();
    let folder = cluster.model_directory().join("encoder");
    let config = folder.join("config.json");
    let described = std::fs::read_to_string(&config).expect("our own file");
    let mut fields: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(&described).expect("an object");
    let short = |session: &mut Session, dimensions: usize| -> Result<i32, String> {
        let sql =
            format!("vector_dims(steadytext_embed('x', model => 'folder', dimensions => {dimensions}))");
        let state = format!("select sqlstate_of($s$ select {sql} $s$)");
        match session.one::<String>(&state).as_str() {
            "00000" => Ok(session.one(&format!("select {sql}"))),
            other => Err(other.to_owned()),
        }
    };
    session.run(
        "create function sqlstate_of(statement text) returns text language plpgsql as $$
         begin execute statement; return '00000'; exception when others then return sqlstate; end $$",
    );
    assert_eq!(short(&mut session, 32), Err("22023".to_owned()));
    fields.insert("matryoshka_dimensions".to_owned(), serde_json::json!([16, 32, 64]));
    std::fs::write(&config, serde_json::to_string(&fields).expect("JSON")).expect("our own file");
    assert_eq!(short(&mut session, 32), Ok(32));
    assert_eq!(short(&mut session, 48), Err("22023".to_owned()));
    std::fs::write(folder.join("config_sentence_transformers.json"), r#"{"truncate_dim": 48}"#)
        .expect("our own file");
    assert_eq!(short(&mut session, 48), Ok(48));
    // The values of a row that was changed come first.
    session.run("update steadytext_models set dimensions = '{8}' where name = 'folder'");
    assert_eq!(short(&mut session, 8), Ok(8));
    assert_eq!(short(&mut session, 32), Err("22023".to_owned()));
}

#[test]
fn a_card_beside_a_file_is_honoured_by_calls_the_queue_vectorizers_and_searches_alike() {
    let (cluster, mut session) = with_encoders();
    let models = cluster.model_directory();
    for name in ["carded", "plain"] {
        std::fs::copy(models.join("encoder.gguf"), models.join(format!("{name}.gguf")))
            .expect("our own file");
    }
    std::fs::write(
        models.join("carded.gguf.card.json"),
        r#"{"tasks": ["embed"], "query_prompt": "query: ", "passage_prompt": "passage: ", "dimensions": [16, 32]}"#,
    )
    .expect("our own file");
    let spelt = |session: &mut Session, text: &str| {
        vector(session, "steadytext_embed", &format!("'{text}', model => 'plain'"))
    };
    let (query, passage) = (spelt(&mut session, "query: find it"), spelt(&mut session, "passage: find it"));
    assert_ne!(query, passage);
    for (mode, whole) in [("query", &query), ("passage", &passage)] {
        for dimensions in ["null", "32", "16"] {
            let expected: String = session.one(&format!(
                "select case when {dimensions}::int is null then '{whole}'
                     else l2_normalize(subvector('{whole}'::vector, 1, coalesce({dimensions}::int, 1)))::text end"
            ));
            let options = format!("model => 'carded', mode => '{mode}', dimensions => {dimensions}");
            let id = session.embed("find it", &options);
            let calls = [
                vector(&mut session, "steadytext_embed", &format!("'find it', {options}")),
                session.one(&format!(
                    "select (steadytext_embed_batch(array['find it', 'x'], {options}))[1]::text"
                )),
                session.one(&format!("select steadytext_get_async_embedding('{id}', 60)::text")),
                // The second time from the cache.
                vector(&mut session, "steadytext_embed", &format!("'find it', {options}")),
            ];
            let batch: Vec<uuid::Uuid> = session
                .list(&format!("select unnest(steadytext_embed_batch_async(array['find it'], {options}))"));
            let of_batch: String =
                session.one(&format!("select steadytext_get_async_embedding('{}', 60)::text", batch[0]));
            for got in calls.iter().chain([&of_batch]) {
                let apart: f64 = session.one(&format!("select '{got}'::vector <-> '{expected}'::vector"));
                assert!(apart < 1e-6, "{options}: {apart}");
                assert!(*got == calls[0], "{options}: not the same bytes");
            }
        }
    }
    let unknown = "model => 'carded', dimensions => 24";
    for call in [
        format!("steadytext_embed('x', {unknown})"),
        format!("steadytext_embed_batch(array['x'], {unknown})"),
    ] {
        let error = session.error(&format!("select {call}"));
        assert!(
            error.code().code() == "22023"
                && error.hint() == Some("It was trained for 16, 32; whole vectors have 64 dimensions."),
            "{error:?}"
        );
    }
    let queued = session.error(&format!("select steadytext_embed_async('x', {unknown})"));
    assert_eq!(queued.code().code(), "22023", "{queued}");
    // A vectorizer keeps whole vectors of passages, and what is searched for is a query.
    session.run(
        "create table docs (id integer primary key, body text);
         insert into docs values (1, 'find it'), (2, 'something else');
         select steadytext_create_vectorizer('docs', '{body}', 'docs', target_column => 'vec', model => 'carded')",
    );
    steadytext_test_server::wait_until("the vectors to be there", || {
        session.one("select bool_and(vec is not null) from docs")
    });
    assert_eq!(session.one::<String>("select vec::text from docs where id = 1"), passage);
    assert_eq!(session.one::<String>("select steadytext_vectorizer_embed('docs', 'find it')::text"), query);
    let (found, expected): (f64, f64) = (
        session
            .one("select distance from steadytext_search('docs', 'find it', 2) where (key ->> 'id') = '1'"),
        session.one(&format!("select '{query}'::vector <=> '{passage}'::vector")),
    );
    assert!((found - expected).abs() < 1e-6, "{found} for {expected}");
}

#[test]
fn an_encoder_refuses_what_it_cannot_do() {
    let (_cluster, mut session) = with_encoders();
    session.run("insert into steadytext_models (name, task, file) values ('writer', 'generate', 'encoder')");
    for (call, sqlstate, mentions) in [
        ("steadytext_embed('x', model => 'folder', task => 'Find it')", "22023", "takes no task"),
        ("steadytext_embed_async('x', model => 'file', task => 'Find it')", "22023", "takes no task"),
        ("steadytext_embed(repeat('a ', 300), model => 'folder')", "54000", "302 tokens"),
        ("steadytext_generate('x', model => 'writer')", "0A000", "generates no text"),
    ] {
        let error = session.error(&format!("select {call}"));
        assert_eq!(error.code().code(), sqlstate, "{call}: {error}");
        assert!(error.message().contains(mentions), "{call}: {error}");
    }
    assert_eq!(session.one::<i32>("select vector_dims(steadytext_embed('x', model => 'folder'))"), 64);
}

#[test]
fn a_cross_encoder_ranks_documents_by_its_head_whatever_its_form() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    encoders(&cluster, &mut session, &Bert { labels: 1, ..Bert::default() });
    let mut rankings = ["folder", "file"].map(|model| {
        let rows = session
            .query(
                &format!(
                    "select document, score
                     from steadytext_rerank('which one', array['one', 'another one', 'none of them'], model => '{model}')"
                ),
                &[],
            )
            .expect("the documents are ranked");
        rows.iter().map(|row| (row.get::<_, String>(0), row.get::<_, f64>(1))).collect::<Vec<_>>()
    });
    assert_eq!(rankings[0], rankings[1]);
    assert_eq!(rankings[0].len(), 3);
    assert!(rankings[0].windows(2).all(|pair| pair[0].1 > pair[1].1), "{rankings:?}");
    assert!(rankings[0].iter().all(|(_, score)| *score > 0.0 && *score < 1.0), "{rankings:?}");
    // By its head: a cosine would not tell one order of the two texts from the other.
    let score = |session: &mut Session, query: &str, document: &str| -> f64 {
        session.one(&format!(
            "select score from steadytext_rerank('{query}', array['{document}'], model => 'folder')"
        ))
    };
    assert_ne!(score(&mut session, "which one", "one"), score(&mut session, "one", "which one"));
    rankings[0].sort_by(|one, other| one.0.cmp(&other.0));
    assert_eq!(score(&mut session, "which one", "one"), rankings[0][2].1);
}
