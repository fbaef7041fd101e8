//! Encoders in an engine: batches, texts computed together, limits, cancels, and files that disappear.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crossbeam_channel::{Receiver, unbounded};
use steadytext_engine::{
    Config, Embed, Engine, Error, Event, EventKind, Generate, ModelSource, Output, Purpose, Reply, Request,
    Rerank, Sampling, Ticket, Work,
};
use steadytext_test_models::adapters::{TASKS, write_adapted, write_adapted_folder};
use steadytext_test_models::{Bert, EncoderFamily, Kind};
use tempfile::TempDir;

use crate::PATIENCE;

fn engine(threads: usize) -> Engine {
    Engine::start(Config { threads, nice: 0, ..Config::default() }).unwrap()
}

fn folder(spec: &Bert) -> (TempDir, PathBuf) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("encoder");
    spec.write_folder(&path).unwrap();
    (directory, path)
}

fn submit(engine: &Engine, key: u64, model: &Path, work: Work, reply: Reply) -> Ticket {
    engine.submit(
        Request { key, model: ModelSource::File(model.into()), salt: 0, dedup_key: None, work },
        reply,
    )
}

fn generate(max_tokens: usize) -> Work {
    let prompt = "go on".to_owned();
    Work::Generate(Generate {
        prompt,
        max_tokens,
        sampling: Sampling::default(),
        stop: Vec::new(),
        ..Generate::default()
    })
}

/// The last event of each request.
fn ends(events: &Receiver<Event>, count: usize) -> BTreeMap<u64, Result<Output, Error>> {
    let mut ends = BTreeMap::new();
    while ends.len() < count {
        let event = events.recv_timeout(PATIENCE).unwrap();
        match event.kind {
            EventKind::Done(output) => drop(ends.insert(event.key, Ok(output))),
            EventKind::Failed(error) => drop(ends.insert(event.key, Err(error))),
            EventKind::Loading
            | EventKind::Started { .. }
            | EventKind::FirstToken { .. }
            | EventKind::Progress { .. } => {}
        }
    }
    ends
}

fn run(engine: &Engine, model: &Path, work: Vec<Work>) -> Vec<Result<Output, Error>> {
    let (sender, events) = unbounded();
    let count = work.len();
    for (key, work) in (0..).zip(work) {
        submit(engine, key, model, work, Reply::new(sender.clone()));
    }
    ends(&events, count).into_values().collect()
}

/// Vectors of texts that are submitted together.
fn embed(engine: &Engine, model: &Path, texts: &[String]) -> Vec<Vec<f32>> {
    let work = texts.iter().map(|text| Work::Embed(Embed::passage(text))).collect();
    run(engine, model, work).into_iter().map(vector).collect()
}

fn vector(output: Result<Output, Error>) -> Vec<f32> {
    match output.unwrap() {
        Output::Embedding(vector) => vector,
        other => panic!("{other:?}"),
    }
}

/// Texts of 1 to about 200 tokens, more than fit into one pass.
fn texts() -> Vec<String> {
    (0..150_usize)
        .map(|i| (0..i * i % 61 + 1).map(|j| format!("w{} ", (i * 31 + j * 7) % 89)).collect())
        .collect()
}

#[test]
fn vectors_do_not_depend_on_batches_threads_and_what_else_runs() {
    let (_directory, model) = folder(&Bert { kind: Kind::F16, ..Bert::default() });
    let texts = texts();
    let alone: Vec<Vec<f32>> = {
        let engine = engine(1);
        texts.iter().map(|text| embed(&engine, &model, std::slice::from_ref(text)).remove(0)).collect()
    };
    for threads in [1, 2, 3] {
        assert!(embed(&engine(threads), &model, &texts) == alone, "{threads} threads");
    }
    // Beside requests that generate, passes are shorter.
    let engine = engine(2);
    let (sender, events) = unbounded();
    for key in 0..3 {
        let request =
            Request { key, model: ModelSource::Builtin, salt: 0, dedup_key: None, work: generate(200) };
        engine.submit(request, Reply::new(sender.clone()));
    }
    assert!(embed(&engine, &model, &texts) == alone, "beside generations");
    assert!(ends(&events, 3).values().all(Result::is_ok));
}

#[test]
fn more_texts_than_requests_may_run_are_computed_together() {
    let (_directory, model) = folder(&Bert::default());
    let engine = Engine::start(Config { threads: 1, max_running: 2, ..Config::default() }).unwrap();
    embed(&engine, &model, &["load it".to_owned()]);
    let before = engine.statistics();
    let texts: Vec<String> = (0..40).map(|i| format!("text {i}")).collect();
    embed(&engine, &model, &texts);
    let (passes, rows) = (
        engine.statistics().passes - before.passes,
        engine.statistics().computed_tokens - before.computed_tokens,
    );
    assert!(rows >= 40 * 3 && passes < 20, "{rows} rows in {passes} passes");
}

#[test]
fn generating_goes_on_while_many_texts_are_embedded() {
    // Large enough that all texts together take a while.
    let (_directory, model) = folder(&Bert { width: 256, feed_forward: 1024, layers: 6, ..Bert::default() });
    let engine = engine(2);
    embed(&engine, &model, &["load it".to_owned()]);
    let (sender, embedded) = unbounded();
    let texts = texts();
    for round in 0..4 {
        for (key, text) in (round * 1000..).zip(&texts) {
            submit(&engine, key, &model, Work::Embed(Embed::passage(text)), Reply::new(sender.clone()));
        }
    }
    let (sender, events) = unbounded();
    let request =
        Request { key: 0, model: ModelSource::Builtin, salt: 0, dedup_key: None, work: generate(24) };
    engine.submit(request, Reply::new(sender));
    ends(&events, 1).remove(&0).unwrap().unwrap();
    let done = embedded.try_iter().filter(|event| matches!(event.kind, EventKind::Done(_))).count();
    assert!(done < 4 * texts.len(), "the text was there only after all vectors were");
    assert!(done > 0, "no vector came while the text was generated");
}

#[test]
fn a_text_may_fill_the_context_and_not_exceed_it() {
    let (_directory, model) = folder(&Bert { context: 64, ..Bert::default() });
    let engine = engine(1);
    let words = |count: usize| Work::Embed(Embed::passage("a ".repeat(count)));
    let mut results = run(&engine, &model, vec![words(62), words(63), words(100_000)]).into_iter();
    assert_eq!(vector(results.next().unwrap()).len(), 64);
    for (result, tokens) in results.zip([65, 100_002]) {
        match result {
            Err(Error::PromptTooLong { prompt_tokens, context_length: 64 }) => {
                assert_eq!(prompt_tokens, tokens)
            }
            other => panic!("{other:?}"),
        }
    }
    let limited = Engine::start(Config { threads: 1, context_length: 32, ..Config::default() }).unwrap();
    let result = run(&limited, &model, vec![words(40)]).remove(0);
    assert!(matches!(result, Err(Error::PromptTooLong { context_length: 32, .. })), "{result:?}");
}

#[test]
fn an_encoder_generates_nothing_and_takes_no_task() {
    let (_directory, model) = folder(&Bert::default());
    let task = Work::Embed(Embed::query("x", Some("find it".to_owned())));
    let results = run(&engine(1), &model, vec![generate(5), task]);
    let message = |result: &Result<Output, Error>| result.as_ref().unwrap_err().to_string();
    assert!(message(&results[0]).ends_with("it is an encoder, which generates no text"), "{results:?}");
    assert!(message(&results[1]).ends_with("the model takes no task"), "{results:?}");
}

#[test]
fn queries_and_passages_get_the_prompts_of_the_folder() {
    let (_directory, model) = folder(&Bert::default());
    let plain = engine(1);
    let expected = embed(&plain, &model, &["query: find it".to_owned(), "passage: find it".to_owned()]);
    let same = run(
        &plain,
        &model,
        vec![Work::Embed(Embed::query("find it", None)), Work::Embed(Embed::passage("find it"))],
    );
    let same: Vec<_> = same.into_iter().map(vector).collect();
    assert!(same[0] == same[1], "without prompts, both are the text");
    std::fs::write(
        model.join("config_sentence_transformers.json"),
        r#"{"prompts": {"query": "query: ", "passage": "passage: "}}"#,
    )
    .unwrap();
    let results = run(
        &engine(1),
        &model,
        vec![Work::Embed(Embed::query("find it", None)), Work::Embed(Embed::passage("find it"))],
    );
    assert!(results.into_iter().map(vector).collect::<Vec<_>>() == expected);
}

/// jina-embeddings-v3 as a file, as a folder, and as a file without adapters.
fn adapted() -> (TempDir, [PathBuf; 3]) {
    let spec = Bert { family: EncoderFamily::JinaBertV3, ..Bert::default() };
    let directory = TempDir::new().unwrap();
    let paths = ["file.gguf", "folder", "plain.gguf"].map(|name| directory.path().join(name));
    write_adapted(&spec, &paths[0]).unwrap();
    write_adapted_folder(&spec, &paths[1]).unwrap();
    spec.write(&paths[2]).unwrap();
    (directory, paths)
}

#[test]
fn tasks_and_purposes_choose_the_adapter_and_what_stands_before_the_text() {
    let (_directory, [file, folder, plain]) = adapted();
    let task = |task: &str| Embed::query("find it", Some(task.to_owned()));
    let document = Embed { purpose: Purpose::Document, ..Embed::passage("find it") };
    let by_hand = |task: usize| {
        let (name, prompt) = TASKS[task];
        let prompt = Some(String::new()).filter(|_| prompt.is_empty()).unwrap_or(prompt.to_owned());
        Embed { prompt: Some(prompt), ..Embed::query("find it", Some(name.to_owned())) }
    };
    let unsaid = Embed::passage("find it");
    let hows = [
        unsaid.clone(),
        Embed::query("find it", None),
        task("retrieval.query"),
        by_hand(0),
        document.clone(),
        task("retrieval.passage"),
        by_hand(1),
        task("classification"),
        by_hand(2),
    ];
    for model in [&file, &folder] {
        let engine = engine(2);
        // All of them side by side, and each by itself.
        let works: Vec<Work> = hows.iter().cloned().map(Work::Embed).collect();
        let got: Vec<_> = run(&engine, model, works.clone()).into_iter().map(vector).collect();
        for (work, got) in works.into_iter().zip(&got) {
            assert!(vector(run(&engine, model, vec![work]).remove(0)) == *got);
        }
        for [one, same] in [[1, 2], [1, 3], [4, 5], [4, 6], [7, 8]] {
            assert!(got[one] == got[same], "{one} and {same}");
        }
        for [one, other] in [[0, 1], [0, 4], [0, 7], [1, 4], [1, 7], [4, 7]] {
            assert!(got[one] != got[other], "{one} and {other}");
        }
        if model == &file {
            let alone =
                run(&engine, &plain, vec![Work::Embed(unsaid.clone()), Work::Embed(document.clone())]);
            assert!(alone.into_iter().map(vector).all(|vector| vector == got[0]), "without adapters");
        }
        let (query, document) = ("find it".to_owned(), "find it".to_owned());
        let rerank = Work::Rerank(Rerank { query, document, ..Rerank::default() });
        let Ok(Output::Score(score)) = run(&engine, model, vec![rerank]).remove(0) else { panic!() };
        let cosine: f32 = got[1].iter().zip(&got[4]).map(|(a, b)| a * b).sum();
        assert!((score - f32::midpoint(1.0, cosine)).abs() < 1e-5, "{score} for {cosine}");
    }
    // A purpose selects its adapter; without one, the text is computed as a text without a purpose. A prompt
    // goes with its adapter.
    let purpose = |purpose: Purpose| Embed { purpose, ..Embed::passage("find it") };
    let prompted = Embed { prompt: Some("before ".to_owned()), ..unsaid.clone() };
    let of = |how: Embed| vector(run(&engine(1), &file, vec![Work::Embed(how)]).remove(0));
    assert!(of(purpose(Purpose::Classification)) == of(task("classification")));
    assert!(of(purpose(Purpose::Similarity)) == of(unsaid.clone()));
    assert!(of(prompted.clone()) == of(unsaid));
    let plainly = |text: &str| {
        let how = Embed { prompt: Some("before ".to_owned()), ..Embed::passage(text) };
        vector(run(&engine(1), &plain, vec![Work::Embed(how)]).remove(0))
    };
    assert!(plainly("find it") != of(prompted), "where there are no adapters, it stands before the text");
    let unknown = run(&engine(1), &file, vec![Work::Embed(task("separation"))]).remove(0).unwrap_err();
    assert!(matches!(unknown, Error::UnknownTask { .. }), "{unknown:?}");
    assert_eq!(
        unknown.hint(),
        Some("Name one of its tasks: classification, retrieval.passage, retrieval.query.")
    );
}

#[test]
fn cancelled_texts_end_at_once_and_the_others_go_on() {
    let (_directory, model) = folder(&Bert { width: 256, feed_forward: 1024, layers: 24, ..Bert::default() });
    let engine = engine(1);
    embed(&engine, &model, &["load it".to_owned()]);
    let (sender, events) = unbounded();
    let texts = texts();
    let tickets: Vec<Ticket> = (0..)
        .zip(&texts)
        .map(|(key, text)| {
            submit(&engine, key, &model, Work::Embed(Embed::passage(text)), Reply::new(sender.clone()))
        })
        .collect();
    // Some requests are in the pass by now.
    loop {
        if matches!(events.recv_timeout(PATIENCE).unwrap().kind, EventKind::Started { .. }) {
            break;
        }
    }
    tickets.iter().skip(1).for_each(Ticket::cancel);
    let ends = ends(&events, texts.len());
    let cancelled = ends.values().filter(|end| matches!(end, Err(Error::Cancelled))).count();
    assert!(ends.values().all(|end| matches!(end, Ok(_) | Err(Error::Cancelled))), "{ends:?}");
    assert!(cancelled > texts.len() / 2, "{cancelled} of {} were cancelled", texts.len());
    assert!(ends[&0].is_ok(), "who did not cancel gets the vector");
}

#[test]
fn stopping_the_engine_fails_texts_that_are_not_finished() {
    let (_directory, model) = folder(&Bert { width: 256, feed_forward: 1024, layers: 24, ..Bert::default() });
    let engine = engine(1);
    let (sender, events) = unbounded();
    let texts = texts();
    for (key, text) in (0..).zip(&texts) {
        submit(&engine, key, &model, Work::Embed(Embed::passage(text)), Reply::new(sender.clone()));
    }
    drop(engine);
    let ends = ends(&events, texts.len());
    assert!(ends.values().all(|end| matches!(end, Ok(_) | Err(Error::Stopped))), "{ends:?}");
    assert!(matches!(ends[&149], Err(Error::Stopped)));
}

#[test]
fn a_folder_whose_weights_are_cut_short_fails_its_texts_and_nothing_else() {
    // Token embeddings are looked up in the file, for each pass.
    let spec = Bert { vocab: 20_000, width: 256, feed_forward: 1024, layers: 24, ..Bert::default() };
    let (_directory, model) = folder(&spec);
    let engine = engine(2);
    let sound = embed(&engine, &model, &["hello".to_owned()]);
    let weights = model.join("model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    let (sender, events) = unbounded();
    let texts = texts();
    for (key, text) in (0..).zip(&texts) {
        submit(&engine, key, &model, Work::Embed(Embed::passage(text)), Reply::new(sender.clone()));
    }
    assert!(ends(&events, 1).values().all(Result::is_ok));
    // Truncated under another name: a missing file does not count as changed, so its mapping stays in use.
    let elsewhere = model.join("elsewhere");
    std::fs::rename(&weights, &elsewhere).unwrap();
    std::fs::OpenOptions::new().write(true).open(&elsewhere).unwrap().set_len(0).unwrap();
    let rest = ends(&events, texts.len() - 1);
    let is_lost = |end: &Result<_, _>| matches!(end, Err(Error::LostModel { path }) if *path == weights);
    assert!(rest.values().any(is_lost), "{rest:?}");
    // The file is only looked for again when the mapping is gone.
    let missing = |end: &Result<_, _>| matches!(end, Err(Error::ModelFile { .. }));
    assert!(rest.values().all(|end| end.is_ok() || is_lost(end) || missing(end)), "{rest:?}");
    std::fs::rename(&elsewhere, &weights).unwrap();
    let refused = run(&engine, &model, vec![Work::Embed(Embed::passage("hello"))]).remove(0);
    assert!(matches!(refused, Err(Error::CorruptModel { .. })), "{refused:?}");
    std::fs::write(&weights, whole).unwrap();
    assert!(embed(&engine, &model, &["hello".to_owned()]) == sound);
}

#[test]
fn encoders_count_for_the_memory_limit_and_make_room_for_each_other() {
    let spec = Bert { width: 256, feed_forward: 1024, layers: 4, ..Bert::default() };
    let (first, second) = (folder(&spec), folder(&Bert { seed: 2, ..spec }));
    let config = Config { threads: 1, memory_limit_mb: 2, ..Config::default() };
    let refused =
        run(&Engine::start(config).unwrap(), &first.1, vec![Work::Embed(Embed::passage("x"))]).remove(0);
    let Err(Error::OutOfMemory { needed_mb, .. }) = refused else { panic!("{refused:?}") };
    let config = Config { threads: 1, memory_limit_mb: needed_mb + needed_mb / 2, ..Config::default() };
    let engine = Engine::start(config).unwrap();
    let loaded =
        |engine: &Engine| engine.loaded_models().into_iter().map(|model| model.name).collect::<Vec<_>>();
    embed(&engine, &first.1, &["x".to_owned()]);
    assert_eq!(loaded(&engine), [first.1.display().to_string()]);
    embed(&engine, &second.1, &["x".to_owned()]);
    assert_eq!(loaded(&engine), [second.1.display().to_string()]);
    embed(&engine, &first.1, &["x".to_owned()]);
}

fn rerank(query: &str, document: &str) -> Work {
    Work::Rerank(Rerank {
        query: query.to_owned(),
        document: document.to_owned(),
        task: "any".to_owned(),
        ..Rerank::default()
    })
}

fn score(output: Result<Output, Error>) -> f32 {
    match output.unwrap() {
        Output::Score(score) => score,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_cross_encoder_looks_at_query_and_document_together() {
    for labels in [1, 2] {
        let (_directory, model) = folder(&Bert { labels, ..Bert::default() });
        let engine = engine(2);
        let pairs = || {
            (0..40).map(|i| rerank("find it", &format!("document {}", "w ".repeat(i)))).collect::<Vec<_>>()
        };
        let scores: Vec<f32> = run(&engine, &model, pairs()).into_iter().map(score).collect();
        let alone: Vec<f32> =
            pairs().into_iter().map(|pair| score(run(&engine, &model, vec![pair]).remove(0))).collect();
        assert!(scores == alone, "{labels} labels");
        assert!(scores.iter().all(|score| (0.0..=1.0).contains(score)), "{scores:?}");
        assert!(scores.windows(2).all(|pair| pair[0] != pair[1]), "{scores:?}");
        let swapped = score(run(&engine, &model, vec![rerank("document ", "find it")]).remove(0));
        assert_ne!(swapped, scores[0], "which is the query makes a difference");
    }
    let (_directory, model) = folder(&Bert { labels: 3, ..Bert::default() });
    let error = run(&engine(1), &model, vec![rerank("a", "b")]).remove(0).unwrap_err();
    assert!(error.to_string().ends_with("its head has 3 labels, one or two rank documents"), "{error}");
}

#[test]
fn an_encoder_without_a_head_ranks_by_the_cosine_of_its_vectors() {
    let (_directory, model) = folder(&Bert { context: 300, ..Bert::default() });
    let engine = engine(2);
    // Both fill the context.
    let (query, document) = ("a ".repeat(298), "b ".repeat(298));
    let vectors = embed(&engine, &model, &[query.clone(), document.clone()]);
    let cosine: f64 = vectors[0].iter().zip(&vectors[1]).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    let score = score(run(&engine, &model, vec![rerank(&query, &document)]).remove(0));
    assert!((f64::from(score) - (1.0 + cosine) / 2.0).abs() < 1e-5, "{score} for {cosine}");
}

#[test]
fn a_text_that_is_too_long_is_cut_at_the_end_of_the_context_where_that_is_wanted() {
    let (_directory, path) = folder(&Bert::default());
    let engine = engine(2);
    // One token each, beside the two around them: 256 in all.
    let long = "a ".repeat(254);
    let embed = |text: String, truncate| Work::Embed(Embed { truncate, ..Embed::passage(text) });
    let work = vec![
        embed(long.clone(), false),
        embed(format!("{long} b c d"), false),
        embed(format!("{long} b c d"), true),
        embed(format!("{long} e"), true),
        embed("short".to_owned(), false),
        embed("short".to_owned(), true),
    ];
    let results = run(&engine, &path, work);
    let [whole, refused, cut, other, short, same] = &results[..] else { panic!("{results:?}") };
    assert!(matches!(refused, Err(Error::PromptTooLong { .. })), "{refused:?}");
    let vector = |result: &Result<Output, Error>| match result {
        Ok(Output::Embedding(vector)) => vector.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(vector(cut), vector(whole));
    assert_eq!(vector(other), vector(whole));
    assert_eq!(vector(same), vector(short));

    // Of two texts that are read together, the document is cut, and never the query.
    let (_directory, path) = folder(&Bert { labels: 1, ..Bert::default() });
    let pair = |query: &str, document: String, truncate| {
        Work::Rerank(Rerank { query: query.to_owned(), document, truncate, ..Rerank::default() })
    };
    let room = "a ".repeat(252);
    let work = vec![
        pair("q", room.clone(), false),
        pair("q", format!("{room} b c"), true),
        pair("q", format!("{room} b c"), false),
        pair(&long, "d".to_owned(), true),
    ];
    let results = run(&engine, &path, work);
    let [whole, cut, refused, query] = &results[..] else { panic!("{results:?}") };
    let score = |result: &Result<Output, Error>| match result {
        Ok(Output::Score(score)) => *score,
        other => panic!("{other:?}"),
    };
    assert_eq!(score(cut), score(whole));
    assert!(matches!(refused, Err(Error::PromptTooLong { .. })), "{refused:?}");
    assert!(matches!(query, Err(Error::PromptTooLong { .. })), "{query:?}");
}

#[test]
fn a_long_text_counts_for_the_memory_limit_while_it_is_computed() {
    let (_directory, model) = folder(&Bert { context: 4096, ..Bert::default() });
    let outcome = |engine: &Engine, words: usize| {
        let (sender, events) = unbounded();
        let work = Work::Embed(Embed::passage("a ".repeat(words)));
        submit(engine, 1, &model, work, Reply::new(sender));
        ends(&events, 1).remove(&1).unwrap()
    };
    let limited = |memory_limit_mb| {
        Engine::start(Config { threads: 1, nice: 0, memory_limit_mb, ..Config::default() }).unwrap()
    };
    let Err(Error::OutOfMemory { needed_mb, .. }) = outcome(&limited(1), 3) else {
        panic!("it does not fit")
    };
    let engine = limited(needed_mb + 2);
    let short = outcome(&engine, 3).unwrap();
    let Err(Error::OutOfMemory { what, .. }) = outcome(&engine, 4000) else { panic!("there is no room") };
    assert_eq!(what, "the workspace of a long text");
    assert_eq!(outcome(&engine, 3).unwrap(), short);
    // The memory is given back: another model fits in its place.
    let engine = limited(needed_mb + 16);
    let long = outcome(&engine, 4000).unwrap();
    assert_eq!(outcome(&engine, 3).unwrap(), short);
    assert_eq!(outcome(&engine, 4000).unwrap(), long);
}
