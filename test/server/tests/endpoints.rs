//! Models behind endpoints that speak OpenAI's protocol: the questions, and the use of the answers.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use steadytext_test_models::endpoint::LocalEndpoint;
use steadytext_test_server::WorkerElsewhere as Worker;
use steadytext_test_server::{Cluster, Session, served_elsewhere};

/// Registers a model that endpoints answer.
pub(crate) fn register(session: &mut Session, name: &str, task: &str) {
    session.run(&format!(
        "insert into steadytext_models (name, task, file, placement, query_prompt, passage_prompt, dimensions)
         values ('{name}', '{task}', '{name}', 'elsewhere', case when '{task}' = 'embed' then 'query: ' end,
             case when '{task}' = 'embed' then '' end, case when '{task}' = 'embed' then '{{2}}'::integer[] end)"
    ));
}

/// A file of endpoints.
pub(crate) fn file(cluster: &Cluster, name: &str, content: &str) -> PathBuf {
    let path = cluster.make_directory(name).join("endpoints.toml");
    fs::write(&path, content).expect("our own directory");
    path
}

/// A model in such a file.
pub(crate) fn model(name: &str, api: &str, url: &str, more: &str) -> String {
    format!("[[model]]\nname = \"{name}\"\napi = \"{api}\"\nbase_url = \"{url}\"\n{more}\n")
}

pub(crate) fn start(cluster: &Cluster, file: &std::path::Path, arguments: &[&str]) -> Worker {
    let endpoints = file.display().to_string();
    Worker::start(cluster, &[&["--endpoints", endpoints.as_str()], arguments].concat())
}

/// One chat model behind a new endpoint, and a worker that serves it.
pub(crate) fn chat(more: &str) -> (Cluster, Session, LocalEndpoint, Worker) {
    let (cluster, mut session) = served_elsewhere();
    register(&mut session, "assistant", "generate");
    let endpoint = LocalEndpoint::start().expect("a port");
    let file = file(&cluster, "endpoints", &model("assistant", "chat", &endpoint.url(), more));
    let worker = start(&cluster, &file, &[]);
    (cluster, session, endpoint, worker)
}

pub(crate) fn row(session: &mut Session, id: impl std::fmt::Display) -> String {
    session.one(&format!(
        "select concat_ws('|', status, result, error, error_code, retry_count, attempt, daemon_endpoint)
         from steadytext_queue where request_id = '{id}'"
    ))
}

pub(crate) const ASSISTANT: &str = "model => 'assistant', max_tokens => 9";

#[test]
fn texts_are_asked_as_messages_and_answers_say_where_they_come_from() {
    let (_cluster, mut session, endpoint, mut worker) = chat(
        "model = \"org/Assistant-7B\"\nguided = \"structured_outputs\"\nsampling = \"vllm\"\nomit = [\"stream\"]\nextra = { user = \"queue\" }",
    );
    let id = session.generate("What is a tuple?", ASSISTANT);
    assert_eq!(session.answer(id), "echo: What is a tuple?");
    assert_eq!(
        row(&mut session, id),
        format!("completed|echo: What is a tuple?|0|1|{}", endpoint.url()),
        "the row says which engine has answered"
    );
    let tokens: String = session.one(&format!(
        "select concat_ws('|', prompt_tokens, cached_tokens, generated_tokens, finish_reason) from steadytext_queue where request_id = '{id}'"
    ));
    assert_eq!(tokens, "4|1|5|stop");
    let body = endpoint.called()[0].body.clone();
    assert_eq!(
        body,
        json!({
            "model": "org/Assistant-7B", "messages": [{ "role": "user", "content": "What is a tuple?" }],
            "max_tokens": 9, "temperature": 0.0, "repetition_penalty": 1.0, "user": "queue",
        })
    );
    // An answer that is not repeatable is not cached: the same question is asked again.
    let again = session.generate("What is a tuple?", ASSISTANT);
    session.answer(again);
    assert_eq!(endpoint.called().len(), 2);
    assert_eq!(session.one::<i64>("select count(*) from steadytext_cache"), 0);
    // A conversation, and all that is said of sampling.
    let row: uuid::Uuid = session.one(
        r#"insert into steadytext_queue (request_type, prompt, params) values ('generate', 'And now?', '{
               "model": "assistant", "system_prompt": "Be brief.", "max_tokens": 5, "temperature": 0.7, "seed": 11, "top_k": 40,
               "top_p": 0.9, "min_p": 0.05, "repeat_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.25,
               "stop": ["now"], "logit_bias": {"7": -2.5},
               "messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]}')
           returning request_id"#,
    );
    // It ends before the string where it is to end, whether the endpoint has seen to that or not.
    assert_eq!(session.answer(row), "echo: And ");
    let body = endpoint.called()[2].body.clone();
    assert_eq!(
        body["messages"],
        json!([
            { "role": "system", "content": "Be brief." }, { "role": "user", "content": "Hello" },
            { "role": "assistant", "content": "Hi" }, { "role": "user", "content": "And now?" },
        ])
    );
    for (field, value) in [
        ("temperature", json!(0.7)),
        ("seed", json!(11)),
        ("top_k", json!(40)),
        ("top_p", json!(0.9)),
        ("min_p", json!(0.05)),
        ("repetition_penalty", json!(1.1)),
        ("presence_penalty", json!(0.5)),
        ("frequency_penalty", json!(0.25)),
        ("stop", json!(["now"])),
        ("logit_bias", json!({ "7": -2.5 })),
        ("max_tokens", json!(5)),
    ] {
        assert_eq!(body[field], value, "{field}");
    }
    // Thoughts are no part of an answer.
    endpoint.say(&["<think>What is it?</think>\n\nA row."]);
    let id = session.generate("What is a tuple?", ASSISTANT);
    assert_eq!(session.answer(id), "A row.");
    assert!(worker.stop());
    assert_eq!(
        session
            .one::<i64>("select count(*) from steadytext_daemon_health where daemon_id not like 'local:%'"),
        0
    );
}

#[test]
fn all_types_that_an_endpoint_can_answer_are_claimed_and_no_others() {
    let (cluster, mut session) = served_elsewhere();
    register(&mut session, "assistant", "generate");
    register(&mut session, "vectors", "embed");
    register(&mut session, "ranks", "rerank");
    let endpoint = LocalEndpoint::start().expect("a port");
    let url = endpoint.url();
    let with = |guided: &str| {
        let chat = model("assistant", "chat", &url, guided);
        format!("{chat}{}{}", model("vectors", "embeddings", &url, ""), model("ranks", "rerank", &url, ""))
    };
    session.run(
        r#"insert into steadytext_queue (request_type, prompt, prompts, params)
           select k.request_type, k.prompt, k.prompts, k.params::jsonb || jsonb_build_object('model', k.model)
           from (values
               ('generate', 'x', null::text[], '{}', 'assistant'),
               ('generate_json', 'x', null, '{"schema": {"type": "array"}}', 'assistant'),
               ('generate_regex', 'x', null, '{"pattern": "[0-9]"}', 'assistant'),
               ('generate_choice', 'x', null, '{"choices": ["b", "a"]}', 'assistant'),
               ('translate', 'x', null, '{"to_language": "German"}', 'assistant'),
               ('extract', 'x', null, '{"fields": ["name::The name"]}', 'assistant'),
               ('extract_facts', 'x', null, '{}', 'assistant'),
               ('mask', 'x', null, '{"labels": ["person"]}', 'assistant'),
               ('if', 'x', null, '{}', 'assistant'),
               ('if_score', 'x', null, '{}', 'assistant'),
               ('score', 'x', null, '{}', 'assistant'),
               ('classify', 'x', null, '{"categories": ["bug", "praise"]}', 'assistant'),
               ('classify_scores', 'x', null, '{"categories": ["bug", "praise"]}', 'assistant'),
               ('classify_multi', 'x', null, '{"categories": ["bug", "praise"]}', 'assistant'),
               ('analyze_sentiment', 'x', null, '{}', 'assistant'),
               ('summarize', 'x', null, '{}', 'assistant'),
               ('embed', 'x', null, '{}', 'vectors'),
               ('batch_embed', null, array['x', 'y'], '{}', 'vectors'),
               ('similarity', null, array['x', 'y'], '{}', 'vectors'),
               ('deduplicate_facts', '["x", "y"]', null, '{}', 'vectors'),
               ('classify', 'x', null, '{"categories": ["bug", "praise"], "method": "embed"}', 'vectors'),
               ('rerank', 'x', array['x', 'y'], '{}', 'ranks'),
               ('batch_rerank', null, array['x', 'y'], '{"documents": ["x"]}', 'ranks')
           ) as k(request_type, prompt, prompts, params, model)"#,
    );
    let left = |session: &mut Session| -> Vec<String> {
        session.list("select distinct request_type from steadytext_queue where attempt = 0 order by 1")
    };
    // Without guided decoding it is not asked for what only that gives.
    let plain = file(&cluster, "plain", &with(""));
    assert!(start(&cluster, &plain, &["--drain"]).wait());
    assert_eq!(
        left(&mut session),
        [
            "analyze_sentiment",
            "classify",
            "classify_multi",
            "classify_scores",
            "extract",
            "extract_facts",
            "generate_choice",
            "generate_json",
            "generate_regex",
            "if",
            "if_score",
            "mask",
            "score",
            "summarize",
        ]
    );
    // OpenAI's has no patterns, and nobody has asked for choices in the place of likelihoods.
    endpoint.say(&[
        "[]",
        "{\"answer\": \"a\"}",
        "{\"name\": \"Anna\"}",
        "{\"facts\": [\"x\"]}",
        "{\"person\": []}",
    ]);
    let json = file(&cluster, "json", &with("guided = \"response_format\"\nconcurrency = 1"));
    assert!(start(&cluster, &json, &["--drain"]).wait());
    assert_eq!(
        left(&mut session),
        [
            "analyze_sentiment",
            "classify",
            "classify_multi",
            "classify_scores",
            "generate_regex",
            "if",
            "if_score",
            "score",
            "summarize",
        ]
    );
    endpoint.say(&["7"]);
    let all = file(
        &cluster,
        "all",
        &with("guided = \"structured_outputs\"\njudgements = \"choice\"\nconcurrency = 1"),
    );
    assert!(start(&cluster, &all, &["--drain"]).wait());
    assert_eq!(left(&mut session), ["summarize"], "which needs the model's tokenizer");
    let answers: Vec<String> = session.list(
        "select concat_ws('|', request_type, status, result, error) from steadytext_queue
         where request_type in ('generate_json', 'generate_regex', 'generate_choice', 'extract', 'if', 'if_score', 'score', 'classify',
             'classify_scores', 'classify_multi', 'similarity') order by id",
    );
    assert_eq!(
        answers,
        [
            "generate_json|completed|[]",
            "generate_regex|completed|7",
            "generate_choice|completed|a",
            "extract|completed|{\"name\": \"Anna\"}",
            "if|completed|true",
            "if_score|completed|1",
            "score|completed|0",
            "classify|completed|bug",
            "classify_scores|completed|[{\"category\":\"bug\",\"score\":1.0},{\"category\":\"praise\",\"score\":0.0}]",
            "classify_multi|completed|[\"bug\",\"praise\"]",
            "similarity|completed|1",
            "classify|completed|bug",
        ],
    );
    // Other values of settings are put into words that other engines have.
    let formats: Vec<Value> = endpoint
        .called()
        .iter()
        .map(|called| called.body["response_format"].clone())
        .filter(|format| !format.is_null())
        .collect();
    assert_eq!(
        formats[1],
        json!({ "type": "json_schema", "json_schema": { "name": "answer", "strict": true, "schema": {
            "type": "object", "properties": { "answer": { "type": "string", "enum": ["b", "a"] } },
            "required": ["answer"], "additionalProperties": false,
        } } })
    );
    assert_eq!(session.one::<i64>("select count(*) from steadytext_queue where status = 'failed'"), 0);
    let error = session.error("select steadytext_generate('x', 2, model => 'assistant')");
    assert_eq!(error.code().code(), "0A000", "the server itself calls nobody");
}

#[test]
fn each_way_to_guide_has_its_words() {
    let (cluster, mut session) = served_elsewhere();
    register(&mut session, "assistant", "generate");
    for (guided, schema_field, choice) in [
        ("json_object", "/response_format/schema", None),
        ("guided", "/guided_json", Some(("/guided_choice", json!(["b\"", "a"])))),
        ("grammar", "/json_schema", Some(("/grammar", json!("root ::= \"b\\\"\" | \"a\"")))),
        (
            "structured_outputs",
            "/structured_outputs/json",
            Some(("/structured_outputs/choice", json!(["b\"", "a"]))),
        ),
    ] {
        let endpoint = LocalEndpoint::start().expect("a port");
        let content =
            model("assistant", "chat", &endpoint.url(), &format!("guided = \"{guided}\"\nconcurrency = 1"));
        let path = file(&cluster, guided, &content);
        session.run(
            r#"insert into steadytext_queue (request_type, prompt, params) values
                   ('generate_json', 'x', '{"model": "assistant", "schema": {"type": "object", "propertyOrdering": ["z", "a"],
                       "properties": {"a": {"type": "integer"}, "z": {"type": "null"}}, "required": ["a", "z"]}}');
               insert into steadytext_queue (request_type, prompt, params) values
                   ('generate_choice', 'x', '{"model": "assistant", "choices": ["b\"", "a"]}')"#,
        );
        let told = if guided == "json_object" { "{\"answer\": \"a\"}" } else { "a" };
        endpoint.say(&["{\"z\": null, \"a\": 5}", told]);
        assert!(start(&cluster, &path, &["--drain"]).wait());
        let answers: Vec<String> =
            session.list("select concat_ws('|', status, result, error) from steadytext_queue order by id");
        assert_eq!(answers, ["completed|{\"z\": null, \"a\": 5}", "completed|a"], "{guided}");
        let called = endpoint.called();
        let schema =
            called[0].body.pointer(schema_field).unwrap_or_else(|| panic!("{guided}: {:?}", called[0]));
        let properties: Vec<&String> = schema["properties"].as_object().expect("properties").keys().collect();
        assert_eq!(properties, ["z", "a"], "{guided}: in the order that is asked for");
        assert!(schema.get("propertyOrdering").is_none(), "{guided}");
        if let Some((field, value)) = choice {
            assert_eq!(called[1].body.pointer(field), Some(&value), "{guided}");
        }
        session.run("truncate steadytext_queue");
    }
}

#[test]
fn vectors_go_many_in_a_call_and_come_as_ours_do() {
    let (cluster, mut session) = served_elsewhere();
    register(&mut session, "vectors", "embed");
    let endpoint = LocalEndpoint::start().expect("a port");
    let content = model("vectors", "embeddings", &endpoint.url(), "batch = 8\nconcurrency = 1");
    session.run(
        "insert into steadytext_queue (request_type, prompt, params)
             select 'embed', repeat('x', i), '{\"model\": \"vectors\"}' from generate_series(1, 20) as i;
         insert into steadytext_queue (request_type, prompts, params)
             values ('batch_embed', array['x', 'xxxx'], '{\"model\": \"vectors\"}');
         insert into steadytext_queue (request_type, prompt, params)
             values ('embed', 'xx', '{\"model\": \"vectors\", \"mode\": \"query\", \"dimensions\": 2}')",
    );
    let path = file(&cluster, "endpoints", &content);
    assert!(start(&cluster, &path, &["--drain", "--concurrency", "64"]).wait());
    let wrong: Vec<String> = session.list(
        "select concat_ws('|', prompt, status, embedding, error) from steadytext_queue
         where request_type = 'embed' and params ->> 'mode' is null and (status <> 'completed' or embedding is null or vector_dims(embedding) <> 4
             or abs(vector_norm(embedding) - 1) > 1e-6
             or abs((embedding::real[])[1] / (embedding::real[])[2] - length(prompt) / 2.0) > 1e-5)",
    );
    assert!(wrong.is_empty(), "{wrong:#?}");
    let rest: Vec<String> = session.list(
        "select coalesce(embedding::text, embeddings::text) from steadytext_queue
         where request_type = 'batch_embed' or params ->> 'mode' is not null order by id",
    );
    // The lengths of the texts, 2, 3 and 6, to length 1; with its prompt, a query of two characters has nine.
    assert_eq!(
        rest,
        [
            "{\"[0.14142136,0.28284273,0.42426407,0.84852815]\",\"[0.49613893,0.24806947,0.3721042,0.7442084]\"}",
            "[0.97618705,0.21693046]",
        ]
    );
    let sizes: Vec<usize> =
        endpoint.called().iter().map(|called| called.body["input"].as_array().map_or(0, Vec::len)).collect();
    assert_eq!(sizes.iter().sum::<usize>(), 23, "{sizes:?}");
    assert!(sizes.len() <= 5 && sizes.iter().all(|size| *size <= 8), "{sizes:?}");
    assert_eq!(endpoint.most_at_once(), 1);
}

#[test]
fn documents_are_ranked_in_both_forms() {
    let (cluster, mut session) = served_elsewhere();
    register(&mut session, "ranks", "rerank");
    let endpoint = LocalEndpoint::start().expect("a port");
    let plain = endpoint.url();
    let tei = plain.trim_end_matches("/v1");
    for (name, content) in [
        ("jina", model("ranks", "rerank", &plain, "")),
        ("tei", model("ranks", "rerank", tei, "rerank = \"tei\"")),
    ] {
        session.run(
            "insert into steadytext_queue (request_type, prompt, prompts, params)
             values ('rerank', 'red green', array['blue', 'green', 'red green'], '{\"model\": \"ranks\", \"return_scores\": true}')",
        );
        let path = file(&cluster, name, &content);
        assert!(start(&cluster, &path, &["--drain"]).wait());
        let result: String =
            session.one("select concat_ws('|', status, results, error) from steadytext_queue");
        assert_eq!(result, "completed|{\"red green\",green,blue}", "{name}");
        let scores: String = session
            .one("select jsonb_path_query_array(result::jsonb, '$[*].score')::text from steadytext_queue");
        assert_eq!(scores, "[1.0, 0.5, 0.0]", "{name}");
        session.run("truncate steadytext_queue");
    }
    assert_eq!(endpoint.called().len(), 2, "all documents of a query in one call");
}
