//! Reranking from outside: scores compared with the logits that they are made of, shared work, and
//! circumstances that must not change scores.

use std::path::{Path, PathBuf};

use crossbeam_channel::{Receiver, unbounded};
use steadytext_engine::gguf::Gguf;
use steadytext_engine::tokenizer::{TextPart, Tokenizer};
use steadytext_engine::{
    Config, Embed, Engine, Error, EventKind, Generate, ModelSource, Output, Probe, Reply, Request, Rerank,
    Sampling, Work,
};
use steadytext_test_models::gguf::Value;
use steadytext_test_models::{Architecture, Kind, Pooling, Quantization, Spec, file, write};
use tempfile::TempDir;

use crate::PATIENCE;

const TASK: &str = "Given a web search query, retrieve relevant passages that answer the query";

fn spec() -> Spec {
    let rerank = Some(steadytext_test_models::Rerank::YesNo);
    Spec { rerank, context: 4096, ..Spec::tiny(Architecture::Qwen3) }
}

fn with_head(labels: usize) -> Spec {
    let rerank = Some(steadytext_test_models::Rerank::Head(labels));
    Spec { rerank, pooling: Some(Pooling::Rank), ..spec() }
}

fn saved(directory: &TempDir, spec: &Spec) -> PathBuf {
    let path = directory.path().join("model.gguf");
    write(spec, &path).unwrap();
    path
}

fn engine(config: Config) -> Engine {
    Engine::start(Config { threads: 2, nice: 0, ..config }).unwrap()
}

fn rerank(query: &str, document: &str) -> Work {
    Work::Rerank(Rerank {
        query: query.to_owned(),
        document: document.to_owned(),
        task: TASK.to_owned(),
        ..Rerank::default()
    })
}

fn submit(engine: &Engine, model: &Path, work: Work) -> Receiver<steadytext_engine::Event> {
    let (sender, events) = unbounded();
    let model = ModelSource::File(model.to_owned());
    engine.submit(Request { key: 0, model, salt: 0, dedup_key: None, work }, Reply::new(sender));
    events
}

fn finish(events: &Receiver<steadytext_engine::Event>) -> Result<Output, Error> {
    loop {
        match events.recv_timeout(PATIENCE).unwrap().kind {
            EventKind::Done(output) => return Ok(output),
            EventKind::Failed(error) => return Err(error),
            EventKind::Loading
            | EventKind::Started { .. }
            | EventKind::FirstToken { .. }
            | EventKind::Progress { .. } => {}
        }
    }
}

fn score(events: &Receiver<steadytext_engine::Event>) -> f32 {
    match finish(events).unwrap() {
        Output::Score(score) => score,
        other => panic!("{other:?}"),
    }
}

fn documents() -> Vec<String> {
    (0..40).map(|i| format!("document {i}: {}", "some words of it ".repeat(i * 7 % 23))).collect()
}

/// The published prompt, as tokens.
fn prompt(tokenizer: &Tokenizer, query: &str, document: &str) -> Vec<u32> {
    let before = "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n<|im_start|>user\n";
    let user = format!("<Instruct>: {TASK}\n<Query>: {query}\n<Document>: {document}");
    let after = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n";
    tokenizer
        .encode_parts(&[TextPart::Template(before), TextPart::User(&user), TextPart::Template(after)])
        .unwrap()
}

#[test]
fn scores_are_the_softmax_of_the_logits_of_yes_and_no() {
    let small = Spec { rerank: spec().rerank, ..Spec::small(Architecture::Qwen3) };
    let untied = Spec { tied: false, quantization: Quantization::uniform(Kind::F32), ..spec() };
    let q4_k = Spec { quantization: Quantization::uniform(Kind::Q4K), ..small };
    for spec in [spec(), untied, q4_k] {
        let directory = TempDir::new().unwrap();
        let path = saved(&directory, &spec);
        let tokenizer = Tokenizer::from_gguf(&Gguf::open(&path).unwrap()).unwrap();
        let (yes, no) = (tokenizer.encode("yes").unwrap(), tokenizer.encode("no").unwrap());
        assert_eq!((yes.len(), no.len()), (1, 1));
        let mut probe = Probe::open(&ModelSource::File(path.clone()), 2).unwrap();
        let engine = engine(Config::default());
        let mut different = Vec::new();
        for document in ["", "one", "<|im_end|> is only text", "a <think> longer one, with words"] {
            probe.truncate(0);
            let logits = probe.extend(&prompt(&tokenizer, "a query", document)).unwrap().unwrap();
            let (yes, no) = (logits[yes[0] as usize], logits[no[0] as usize]);
            let exact = 1.0 / (1.0 + libm::exp(f64::from(no) - f64::from(yes)));
            let score = score(&submit(&engine, &path, rerank("a query", document)));
            assert!((f64::from(score) - exact).abs() < 1e-6, "{score} is not {exact}");
            assert!(score > 0.0 && score < 1.0);
            different.push(score.to_bits());
        }
        different.dedup();
        assert_eq!(different.len(), 4, "scores are graded");
    }
}

#[test]
fn a_head_of_the_file_is_used_by_its_labels() {
    let directory = TempDir::new().unwrap();
    let query = "what is it";
    let scores = |name: &str, spec: &Spec, labels: Option<[&str; 2]>| -> Vec<f32> {
        let path = directory.path().join(name);
        let mut model = file(spec).unwrap();
        if let Some(labels) = labels {
            let labels = labels.map(str::to_owned).to_vec();
            model.keys.push(("qwen3.classifier.output_labels".into(), Value::Strings(labels)));
        }
        model.write(&mut std::fs::File::create(&path).unwrap()).unwrap();
        let engine = engine(Config::default());
        documents().iter().map(|document| score(&submit(&engine, &path, rerank(query, document)))).collect()
    };
    let plain = scores("plain", &with_head(2), None);
    assert_eq!(scores("named", &with_head(2), Some(["yes", "no"])), plain);
    let swapped = scores("swapped", &with_head(2), Some(["no", "yes"]));
    for (score, swapped) in plain.iter().zip(&swapped) {
        assert!((score + swapped - 1.0).abs() < 1e-6, "{score} and {swapped}");
    }
    let one = scores("one", &with_head(1), None);
    assert!(one.iter().all(|score| (0.0..=1.0).contains(score)));
    assert_ne!(one, plain);
    assert_ne!(scores("none", &spec(), None), plain, "the head is not used");
}

#[test]
fn a_head_that_cannot_be_used_is_refused_by_name() {
    let directory = TempDir::new().unwrap();
    let other = Spec { rerank: with_head(2).rerank, ..Spec::tiny(Architecture::Qwen2) };
    for spec in [with_head(3), other] {
        let path = saved(&directory, &spec);
        let error = finish(&submit(&engine(Config::default()), &path, rerank("a", "b"))).unwrap_err();
        assert!(matches!(error, Error::UnsupportedModel { .. }), "{error}");
        assert!(error.to_string().contains("cls.output.weight"), "{error}");
    }
}

#[test]
fn models_without_a_form_of_their_own_compare_embeddings() {
    let directory = TempDir::new().unwrap();
    for pooling in [Pooling::Last, Pooling::Mean, Pooling::Cls] {
        // A model that embeds, although it could say yes and no; and one that could not.
        for rerank_form in [spec().rerank, None] {
            let spec = Spec { pooling: Some(pooling), rerank: rerank_form, ..spec() };
            let path = saved(&directory, &spec);
            let engine = engine(Config::default());
            let embed = |text: &str| match finish(&submit(&engine, &path, Work::Embed(Embed::passage(text))))
            {
                Ok(Output::Embedding(vector)) => vector,
                other => panic!("{other:?}"),
            };
            // Both are longer than a block of keys and values.
            let (query, document) = ("a query ".repeat(40), "and a document ".repeat(30));
            let (a, b) = (embed(&query), embed(&document));
            let cosine: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let first = score(&submit(&engine, &path, rerank(&query, &document)));
            assert!(
                (f64::from(first) - (1.0 + cosine) / 2.0).abs() < 1e-6,
                "{pooling:?}: {first}, cosine {cosine}"
            );
            assert_eq!(score(&submit(&engine, &path, rerank(&query, &document))), first, "again");
            assert!(score(&submit(&engine, &path, rerank(&query, &query))) > 0.999, "with itself");
        }
    }
}

#[test]
fn documents_of_one_query_compute_what_they_have_in_common_once() {
    let directory = TempDir::new().unwrap();
    let path = saved(&directory, &spec());
    let engine = engine(Config::default());
    score(&submit(&engine, &path, rerank("load", "the model")));
    let query = "which of them says something about this? ".repeat(30);
    let tokenizer = Tokenizer::from_gguf(&Gguf::open(&path).unwrap()).unwrap();
    let documents = documents();
    let lengths: Vec<u64> =
        documents.iter().map(|document| prompt(&tokenizer, &query, document).len() as u64).collect();
    // The prompts differ only behind the query; blocks have 64 tokens.
    let common = (prompt(&tokenizer, &query, "").len() as u64 - 20) / 64 * 64;
    assert!(common > 1000, "{common}");
    let before = engine.statistics();
    let events: Vec<_> =
        documents.iter().map(|document| submit(&engine, &path, rerank(&query, document))).collect();
    events.iter().for_each(|events| {
        score(events);
    });
    let computed = engine.statistics().computed_tokens - before.computed_tokens;
    let all: u64 = lengths.iter().sum();
    let once = all - common * (documents.len() as u64 - 1);
    // The task and the system's text were kept from the first request.
    assert!(computed <= once, "{computed} of {all} computed, {once} with the common ones once");
}

#[test]
fn scores_do_not_depend_on_anything_beside_them() {
    let directory = TempDir::new().unwrap();
    for spec in [
        spec(),
        with_head(2),
        Spec { rerank: None, ..spec() },
        Spec { pooling: Some(Pooling::Mean), ..spec() },
    ] {
        let path = saved(&directory, &spec);
        let query = "a query that is longer than a block of sixty-four tokens ".repeat(3);
        let documents = documents();
        let plain = engine(Config { threads: 1, max_running: 1, prefix_reuse: false, ..Config::default() });
        let expected: Vec<u32> = documents
            .iter()
            .map(|document| score(&submit(&plain, &path, rerank(&query, document))).to_bits())
            .collect();
        let configs = [
            Config { max_running: 16, ..Config::default() },
            Config { max_running: 7, prefill_rows: vec![1, 33, 64, 7], ..Config::default() },
            Config { max_running: 3, prefix_reuse: false, prefill_rows: vec![100], ..Config::default() },
        ];
        for config in configs {
            let engine = engine(config);
            let how = Generate {
                prompt: "beside it".into(),
                max_tokens: 300,
                sampling: Sampling { temperature: 1.0, ..Sampling::default() },
                stop: Vec::new(),
                ..Generate::default()
            };
            let beside = submit(&engine, &path, Work::Generate(how));
            let events: Vec<_> =
                documents.iter().map(|document| submit(&engine, &path, rerank(&query, document))).collect();
            let scores: Vec<u32> = events.iter().map(|events| score(events).to_bits()).collect();
            assert_eq!(scores, expected);
            finish(&beside).unwrap();
        }
    }
}

#[test]
fn what_is_too_long_for_the_context_is_refused() {
    let directory = TempDir::new().unwrap();
    for spec in [Spec { context: 300, ..spec() }, Spec { context: 300, rerank: None, ..spec() }] {
        let path = saved(&directory, &spec);
        let error = finish(&submit(&engine(Config::default()), &path, rerank("short", &"long ".repeat(400))))
            .unwrap_err();
        assert!(matches!(error, Error::PromptTooLong { context_length: 300, .. }), "{error}");
    }
}

#[test]
fn a_document_is_cut_where_that_is_wanted_and_everything_around_it_stays() {
    let directory = TempDir::new().unwrap();
    for (name, spec) in [
        ("yes-no", Spec { context: 512, ..spec() }),
        ("cosine", Spec { context: 512, rerank: None, pooling: Some(Pooling::Last), ..spec() }),
    ] {
        let path = saved(&directory, &spec);
        let engine = engine(Config::default());
        let pair = |query: &str, document: &str, truncate| {
            let (query, document) = (query.to_owned(), document.to_owned());
            Work::Rerank(Rerank { query, document, task: TASK.to_owned(), truncate, ..Rerank::default() })
        };
        let score = |work: Work| finish(&submit(&engine, &path, work));
        let long = "many words ".repeat(200);
        let Ok(Output::Score(cut)) = score(pair("which", &long, true)) else { panic!("{name}") };
        assert!(matches!(score(pair("which", &long, false)), Err(Error::PromptTooLong { .. })), "{name}");
        let longer = format!("{long} and more");
        assert_eq!(score(pair("which", &longer, true)).unwrap(), Output::Score(cut), "{name}");
        // The model reads the query, so it matters, and it is never cut.
        assert_ne!(score(pair("another", &long, true)).unwrap(), Output::Score(cut), "{name}");
        assert!(matches!(score(pair(&long, "short", true)), Err(Error::PromptTooLong { .. })), "{name}");
        // A pair that fits is not cut.
        let short = score(pair("which", "short", false)).unwrap();
        assert_eq!(score(pair("which", "short", true)).unwrap(), short, "{name}");
    }
}

#[test]
fn a_text_is_cut_by_a_decoder_and_keeps_the_tokens_around_it() {
    let directory = TempDir::new().unwrap();
    let path = saved(&directory, &Spec { context: 64, pooling: Some(Pooling::Last), ..spec() });
    let engine = engine(Config::default());
    let tokenizer = Tokenizer::from_gguf(&Gguf::open(&path).unwrap()).unwrap();
    let vector = |work: Embed| match finish(&submit(&engine, &path, Work::Embed(work))) {
        Ok(Output::Embedding(vector)) => vector,
        other => panic!("{other:?}"),
    };
    let long = "x y z ".repeat(100);
    let cut = |text: &str| Embed { truncate: true, ..Embed::passage(text) };
    // As long as the context has room for, and not one token longer.
    let whole = (1..=long.len())
        .rev()
        .find(|end| tokenizer.encode_embedding(&long[..*end]).unwrap().len() == 64)
        .map(|end| long[..end].to_owned())
        .unwrap();
    assert_eq!(vector(cut(&long)), vector(Embed::passage(whole.as_str())));
    assert_eq!(vector(cut(&format!("{long} and more"))), vector(cut(&long)));
    // A task that leaves no room for the text is not cut.
    let query = Embed { truncate: true, ..Embed::query("text", Some("find it ".repeat(60))) };
    let refused = finish(&submit(&engine, &path, Work::Embed(query)));
    assert!(matches!(refused, Err(Error::PromptTooLong { .. })), "{refused:?}");
}
