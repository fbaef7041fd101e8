//! Names of models: what stands for a file without any registration, what is the default on which level, and
//! what a queued request remembers of that.

use std::os::unix::fs::symlink;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};
use std::{fs, hint, thread};

use steadytext_test_models::Bert;
use steadytext_test_server::{
    Cluster, Options, Session, wait_until, with_automatic_models, write_decoder, write_encoder,
};

fn card(cluster: &Cluster, file: &str, text: &str) {
    fs::write(cluster.model_directory().join(format!("{file}.card.json")), text).expect("our own file");
}

fn vector(session: &mut Session, more: &str) -> String {
    session.one(&format!("select steadytext_embed('which one'{more})::text"))
}

/// SQLSTATE and message.
fn refused(session: &mut Session, sql: &str) -> (String, String) {
    let error = session.error(sql);
    (error.code().code().to_owned(), error.message().to_owned())
}

#[test]
fn a_file_is_a_model_by_its_stem_whatever_the_case_and_a_row_comes_before_it() {
    let (cluster, mut session) = with_automatic_models(Options::new());
    let directory = cluster.model_directory();
    write_encoder(&cluster, "MiniLM-Q8.gguf", 1);
    write_encoder(&cluster, "other.gguf", 2);
    let mini = vector(&mut session, ", model => 'minilm-q8'");
    for name in ["MINILM-q8", "MiniLM-Q8.gguf", "minilm-q8.GGUF"] {
        assert_eq!(vector(&mut session, &format!(", model => '{name}'")), mini, "{name}");
    }
    // In the queue, and for ordinary users.
    session.run("create role alice login in role steadytext_user");
    let mut alice = cluster.session_as("postgres", "alice");
    let id = alice.embed("which one", "model => 'minilm-q8'");
    assert_eq!(alice.answer(id), mini);
    let other = vector(&mut session, ", model => 'other'");
    assert_ne!(other, mini);
    // A file that comes later is seen at once, and a folder is a model, too.
    Bert { seed: 3, ..Bert::default() }.write_folder(&directory.join("late")).expect("our own directory");
    assert_ne!(vector(&mut session, ", model => 'LATE'"), mini);
    session.run(
        "insert into steadytext_models (name, task, file) values ('minilm-q8', 'embed', 'other.gguf'), ('far', 'embed', 'x.gguf')",
    );
    assert_eq!(vector(&mut session, ", model => 'minilm-q8'"), other, "a row of the name comes first");
    assert_eq!(vector(&mut session, ", model => 'MiniLM-Q8'"), mini, "and is written as it is");
}

#[test]
fn a_default_row_gives_way_to_a_file_of_its_name_until_its_own_file_is_there_or_somebody_changes_it() {
    let (cluster, mut session) = with_automatic_models(Options::new());
    let (folder, own) = ("all-minilm-l6-v2", "all-MiniLM-L6-v2");
    let directory = cluster.model_directory();
    let named = format!(", model => '{folder}'");
    Bert { seed: 1, ..Bert::default() }.write_folder(&directory.join(folder)).expect("our own directory");
    let first = vector(&mut session, &named);
    assert_eq!(first, vector(&mut session, ""), "the only one is the default");
    let listed =
        format!("select concat_ws(' ', source, file) from steadytext_model_list() where name = '{folder}'");
    assert_eq!(session.list::<String>(&listed), [format!("directory {folder}")]);
    assert!(session.one::<bool>(&format!("select loads from steadytext_model_inspect('{folder}')")));
    // The row's own file comes first, and so does a row that somebody has changed.
    Bert { seed: 2, ..Bert::default() }.write_folder(&directory.join(own)).expect("our own directory");
    assert_ne!(vector(&mut session, &named), first);
    assert_eq!(session.list::<String>(&listed)[0], format!("registry {own}"));
    fs::rename(directory.join(own), directory.join("elsewhere")).expect("our own directory");
    assert_eq!(vector(&mut session, &named), first);
    session.run(&format!("update steadytext_models set description = 'mine' where name = '{folder}'"));
    assert_eq!(refused(&mut session, &format!("select steadytext_embed('x'{named})")).0, "58030");
}

#[test]
fn names_that_several_files_have_or_that_lead_elsewhere_are_refused() {
    let (cluster, mut session) = with_automatic_models(Options::new());
    let directory = cluster.model_directory();
    write_encoder(&cluster, "twice.gguf", 1);
    write_encoder(&cluster, "TWICE.gguf", 2);
    let (state, message) = refused(&mut session, "select steadytext_embed('x', model => 'twice')");
    assert_eq!(state, "42710");
    assert!(message.contains("\"TWICE.gguf\", \"twice.gguf\""), "{message}");
    assert_ne!(
        vector(&mut session, ", model => 'twice.gguf'"),
        vector(&mut session, ", model => 'TWICE.gguf'"),
        "a whole name says which one"
    );
    let elsewhere = cluster.make_directory("elsewhere");
    fs::rename(directory.join("TWICE.gguf"), elsewhere.join("out.gguf")).expect("our own files");
    symlink(elsewhere.join("out.gguf"), directory.join("out.gguf")).expect("a link can be made");
    symlink("twice.gguf", directory.join("in.gguf")).expect("a link can be made");
    fs::create_dir(directory.join("folder")).expect("our own directory");
    write_encoder(&cluster, "folder/deep.gguf", 1);
    for name in ["out", "folder", "folder/deep", "folder/deep.gguf", "..", ".", "../elsewhere/out", "nix"] {
        let (state, message) =
            refused(&mut session, &format!("select steadytext_embed('x', model => '{name}')"));
        assert_eq!(state, "42704", "{name}: {message}");
        let (state, _) =
            refused(&mut session, &format!("select steadytext_embed_async('x', model => '{name}')"));
        assert_eq!(state, "42704", "{name}");
    }
    assert_eq!(
        vector(&mut session, ", model => 'in'"),
        vector(&mut session, ", model => 'twice'"),
        "a link that stays inside"
    );
    // A task for which its card does not have it.
    card(&cluster, "twice.gguf", r#"{"tasks": ["rerank"]}"#);
    let (state, message) = refused(&mut session, "select steadytext_embed('x', model => 'twice')");
    assert_eq!((state.as_str(), message.contains("meant for task rerank")), ("42809", true), "{message}");
    card(&cluster, "twice.gguf", "{");
    assert_eq!(refused(&mut session, "select steadytext_embed('x', model => 'twice')").0, "XX001");
}

#[test]
fn auto_takes_what_a_card_prefers_or_the_only_one_and_the_builtin_one_only_where_there_is_none() {
    let (cluster, mut session) = with_automatic_models(Options::new());
    let builtin = vector(&mut session, ", model => 'builtin'");
    assert_eq!(vector(&mut session, ""), builtin, "nothing else is here");
    write_encoder(&cluster, "one.gguf", 1);
    let one = vector(&mut session, ", model => 'one'");
    assert_eq!(vector(&mut session, ", use_cache => false"), one, "the only one");
    let generated: String = session.one("select steadytext_generate('which', 4)");
    let by_builtin: String = session.one("select steadytext_generate('which', 4, model => 'builtin')");
    assert_eq!(generated, by_builtin, "which generates nothing");
    write_encoder(&cluster, "two.gguf", 2);
    let (state, message) = refused(&mut session, "select steadytext_embed('x', use_cache => false)");
    assert_eq!((state.as_str(), message.contains("\"one\", \"two\"")), ("42710", true), "{message}");
    card(&cluster, "two.gguf", r#"{"preferred": ["embed"]}"#);
    let two = vector(&mut session, ", model => 'two'");
    assert_eq!(vector(&mut session, ", use_cache => false"), two, "what the card prefers");
    // It goes, and its card says that there was one: the builtin one has not computed what is in the tables.
    for file in ["two.gguf", "one.gguf"] {
        fs::remove_file(cluster.model_directory().join(file)).expect("our own file");
    }
    let (state, message) = refused(&mut session, "select steadytext_embed('which one')");
    assert_eq!((state.as_str(), message.contains("no model for task embed")), ("58P01", true), "{message}");
    fs::remove_file(cluster.model_directory().join("two.gguf.card.json")).expect("our own file");
    assert_eq!(vector(&mut session, ""), builtin);
    // So does a row that somebody has written.
    session.run("insert into steadytext_models (name, task, file) values ('gone', 'embed', 'gone.gguf')");
    assert_eq!(refused(&mut session, "select steadytext_embed('which one')").0, "58P01");
    assert_eq!(vector(&mut session, ", model => 'builtin'"), builtin);
}

#[test]
fn a_card_s_checksum_is_compared_and_another_content_under_the_same_name_is_noticed() {
    let (cluster, mut session) = with_automatic_models(Options::new());
    write_encoder(&cluster, "one.gguf", 1);
    card(&cluster, "one.gguf", &format!(r#"{{"sha256": "{}"}}"#, "0".repeat(64)));
    for _ in 0..2 {
        let (state, message) = refused(&mut session, "select steadytext_embed('x', model => 'one')");
        assert_eq!(
            (state.as_str(), message.contains("is not the registered one")),
            ("XX001", true),
            "{message}"
        );
    }
    let path = cluster.model_directory().join("one.gguf");
    let right: String =
        session.one(&format!("select encode(sha256(pg_read_binary_file('{}')), 'hex')", path.display()));
    card(&cluster, "one.gguf", &format!(r#"{{"sha256": "{right}"}}"#));
    vector(&mut session, ", model => 'one'");
    fs::remove_file(cluster.model_directory().join("one.gguf.card.json")).expect("our own file");
    write_encoder(&cluster, "new.gguf", 2);
    fs::rename(cluster.model_directory().join("new.gguf"), &path).expect("our own files");
    assert!(!cluster.log().contains("has another content than before"));
    vector(&mut session, ", model => 'one', use_cache => false");
    cluster.wait_for_log(0, "has another content than before");
}

#[test]
fn the_default_is_set_on_every_level_and_a_queued_request_keeps_that_of_its_session() {
    let (cluster, mut session) = with_automatic_models(Options::new());
    for (seed, name) in ["server", "config", "database", "role", "session"].into_iter().enumerate() {
        write_encoder(&cluster, &format!("{name}.gguf"), seed as u64 + 1);
    }
    session.run("create role alice login in role steadytext_user");
    let of = |session: &mut Session, name: &str| vector(session, &format!(", model => '{name}'"));
    // The queue says the same as the call, in a new session.
    let says = |cluster: &Cluster, name: &str| {
        let mut alice = cluster.session_as("postgres", "alice");
        let expected = of(&mut alice, name);
        assert_eq!(vector(&mut alice, ", use_cache => false"), expected, "{name}");
        let id = alice.embed("which one", "use_cache => false");
        assert_eq!(alice.answer(id), expected, "{name}, in the queue");
    };
    cluster.configure("pg_steadytext.embedding_model", "server");
    cluster.reload();
    wait_until("the setting is known", || {
        session.one("select current_setting('pg_steadytext.embedding_model') = 'server'")
    });
    // Each process reads it for itself, the worker too.
    wait_until("the worker knows it", || {
        let id = session.embed("anything", "use_cache => false");
        wait_until("it has ended", || {
            !["pending", "processing"].contains(&session.request(id).status.as_str())
        });
        session.request(id).status == "completed"
    });
    says(&cluster, "server");
    session.run("select steadytext_config_set('embedding_model', 'config')");
    says(&cluster, "config");
    session.run("alter database postgres set pg_steadytext.embedding_model = 'database'");
    // The worker is one of the sessions that have the old value.
    says(&cluster, "database");
    session.run("alter role alice set pg_steadytext.embedding_model = 'role'");
    says(&cluster, "role");
    let mut alice = cluster.session_as("postgres", "alice");
    alice.run("set pg_steadytext.embedding_model = 'session'");
    let expected = of(&mut alice, "session");
    assert_eq!(vector(&mut alice, ", use_cache => false"), expected);
    let id = alice.embed("which one", "use_cache => false");
    let batch: uuid::Uuid =
        alice.one("select (steadytext_embed_batch_async(array['which one'], use_cache => false))[1]");
    // Whatever it sets later.
    alice.run("reset pg_steadytext.embedding_model");
    assert_eq!(alice.answer(id), expected);
    assert_eq!(alice.answer(batch), expected);
    assert_eq!(
        alice.one::<String>(&format!(
            "select params->>'default_model' from steadytext_queue where request_id = '{id}'"
        )),
        "session"
    );
    // An error in the value is raised when a request is made.
    alice.run("set pg_steadytext.embedding_model = 'nix'");
    assert_eq!(refused(&mut alice, "select steadytext_embed_async('x')").0, "42704");
    assert_eq!(refused(&mut alice, "select steadytext_embed('x', use_cache => false)").0, "42704");
}

#[test]
fn paths_are_for_superusers_to_set() {
    let (cluster, mut session) = with_automatic_models(Options::new());
    write_encoder(&cluster, "one.gguf", 1);
    let path = cluster.model_directory().join("one.gguf").display().to_string();
    let one = vector(&mut session, ", model => 'one'");
    session.run("create role alice login in role steadytext_admin; create role owner login");
    session.run("create database owned owner owner");
    let mut alice = cluster.session_as("postgres", "alice");
    for value in [path.as_str(), "sub/one.gguf", "../one", "..", "/etc/passwd"] {
        for sql in [
            format!("set pg_steadytext.embedding_model = '{value}'"),
            format!("set local pg_steadytext.embedding_model = '{value}'"),
            format!("select set_config('pg_steadytext.embedding_model', '{value}', false)"),
            format!("alter role alice set pg_steadytext.embedding_model = '{value}'"),
        ] {
            assert_eq!(refused(&mut alice, &sql).0, "42501", "{sql}");
        }
        assert_eq!(
            refused(&mut alice, &format!("select steadytext_config_set('embedding_model', '{value}')")).0,
            "22023"
        );
    }
    let mut owner = cluster.session_as("postgres", "owner");
    let sql = format!("alter database owned set pg_steadytext.embedding_model = '{path}'");
    assert_eq!(refused(&mut owner, &sql).0, "42501");
    owner.run("alter database owned set pg_steadytext.embedding_model = 'one'");
    session.run(&format!("set pg_steadytext.embedding_model = '{path}'"));
    assert_eq!(vector(&mut session, ", use_cache => false"), one);
    // The queue is read by others.
    assert_eq!(refused(&mut session, "select steadytext_embed_async('x')").0, "0A000");
    assert_eq!(
        refused(
            &mut alice,
            &format!("insert into steadytext_queue (request_type, prompt, params) values ('embed', 'x', '{{\"default_model\": \"{path}\"}}')")
        )
        .0,
        "42704"
    );
    // A path that a superuser has set for others holds for them.
    session.run(&format!("alter role alice set pg_steadytext.embedding_model = '{path}'"));
    let mut alice = cluster.session_as("postgres", "alice");
    assert_eq!(vector(&mut alice, ", use_cache => false"), one);
}

#[test]
fn the_predecessor_s_environment_is_obeyed_and_listed() {
    let options = Options::new()
        .environment("STEADYTEXT_EMBEDDING_MODEL_REPO", "somebody/two-GGUF")
        .environment("STEADYTEXT_GENERATION_MODEL_FILENAME", "talks.gguf")
        .environment("STEADYTEXT_RERANKING_MODEL_FILENAME", "nowhere.gguf")
        .environment("STEADYTEXT_DEFAULT_SEED", "7")
        .environment("STEADYTEXT_GENERATION_CACHE_CAPACITY", "5");
    let (cluster, mut session) = with_automatic_models(options);
    write_encoder(&cluster, "one.gguf", 1);
    write_encoder(&cluster, "two.gguf", 2);
    card(&cluster, "two.gguf", r#"{"repository": "somebody/two-GGUF"}"#);
    write_decoder(&cluster, "talks.gguf", 1);
    write_decoder(&cluster, "silent.gguf", 2);
    let two = vector(&mut session, ", model => 'two'");
    assert_eq!(vector(&mut session, ", use_cache => false"), two);
    let text = "select steadytext_generate('which', 4, use_cache => false";
    let talks: String = session.one(&format!("{text}, model => 'talks')"));
    assert_eq!(session.one::<String>(&format!("{text})")), talks);
    assert_eq!(refused(&mut session, "select steadytext_rerank('a', array['b', 'c'])").0, "42704");
    // A setting comes first.
    session.run("set pg_steadytext.embedding_model = 'one'");
    let one = vector(&mut session, ", model => 'one'");
    assert_eq!(vector(&mut session, ", use_cache => false"), one);
    // The seed of a request that gives none, until the database has one of its own.
    let drawn = |session: &mut Session, seed: &str| -> String {
        let id: uuid::Uuid = session.one(&format!(
            "insert into steadytext_queue (request_type, prompt, params)
             values ('generate', 'which', '{{\"temperature\": 5, \"max_tokens\": 8, \"use_cache\": false{seed}}}') returning request_id"
        ));
        session.answer(id)
    };
    let seven = drawn(&mut session, ", \"seed\": 7");
    assert_eq!(drawn(&mut session, ""), seven);
    session.run("select steadytext_config_set('default_seed', '8')");
    let eight = drawn(&mut session, ", \"seed\": 8");
    assert_ne!(eight, seven);
    assert_eq!(drawn(&mut session, ""), eight);
    let listed = session.list::<String>(
        "select concat_ws(' ', \"check\", status) from steadytext_diagnose() where \"check\" like 'environment%' order by 1",
    );
    assert_eq!(
        listed,
        [
            "environment STEADYTEXT_DEFAULT_SEED ok",
            "environment STEADYTEXT_EMBEDDING_MODEL_REPO ok",
            "environment STEADYTEXT_GENERATION_CACHE_CAPACITY warning",
            "environment STEADYTEXT_GENERATION_MODEL_FILENAME ok",
            "environment STEADYTEXT_RERANKING_MODEL_FILENAME ok",
        ]
    );
}

#[test]
fn the_environment_can_prefer_models_that_are_registered_as_fallbacks() {
    let (cluster, mut session) =
        with_automatic_models(Options::new().environment("STEADYTEXT_USE_FALLBACK_MODEL", "true"));
    write_decoder(&cluster, "usual.gguf", 1);
    write_decoder(&cluster, "spare.gguf", 2);
    session.run(
        "insert into steadytext_models (name, task, file, is_preferred, is_fallback)
         values ('a', 'generate', 'usual.gguf', true, false), ('b', 'generate', 'spare.gguf', false, true)",
    );
    let text = "select steadytext_generate('which', 4, use_cache => false";
    let [usual, spare] = ["a", "b"].map(|name| session.one::<String>(&format!("{text}, model => '{name}')")));
    assert_ne!(usual, spare);
    assert_eq!(session.one::<String>(&format!("{text})")), spare);
}

#[test]
fn what_is_enqueued_is_answered_by_the_default_of_its_session_as_calls_are() {
    let (cluster, mut session) = with_automatic_models(Options::new());
    for (seed, name) in [(1, "first"), (2, "second")] {
        write_decoder(&cluster, &format!("{name}.gguf"), seed);
        write_encoder(&cluster, &format!("{name}-encoder.gguf"), seed);
    }
    session.run(
        "select steadytext_config_set('generation_model', 'first');
         select steadytext_config_set('embedding_model', 'first-encoder')",
    );
    let calls = [
        "generate('words', %)",
        "if_score('words', %)",
        "score('words', %)",
        "similarity('words', 'other words', %)",
        "embed('words', %)",
    ];
    let answered = |session: &mut Session, call: &str| -> [String; 2] {
        let sync = call.replace('%', "use_cache => false");
        let queued = sync.replacen('(', "_async(", 1);
        let now = session.one(&format!("select steadytext_{sync}::text"));
        let id = session.one(&format!("select steadytext_{queued}"));
        [now, session.answer(id)]
    };
    for call in calls {
        session.run("reset pg_steadytext.generation_model; reset pg_steadytext.embedding_model");
        let [first, queued] = answered(&mut session, call);
        assert_eq!(first, queued, "{call}");
        session.run("set pg_steadytext.generation_model = 'second'; set pg_steadytext.embedding_model = 'second-encoder'");
        let [second, queued] = answered(&mut session, call);
        assert_eq!(second, queued, "{call}");
        assert_ne!(first, second, "{call}");
    }
}

#[test]
fn a_row_that_comes_while_the_registry_is_read_is_known_afterwards() {
    let (cluster, mut session) = with_automatic_models(Options::new());
    let mut other = cluster.session("postgres");
    let known = AtomicUsize::new(0);
    let looks = AtomicUsize::new(0);
    let rounds = 150;
    thread::scope(|scope| {
        let ended = scope.spawn(|| {
            loop {
                let number = known.load(SeqCst);
                let error = other.error(&format!("select steadytext_model_verify('m{number}')"));
                looks.fetch_add(1, SeqCst);
                if number > 0 && error.code().code() == "42704" {
                    return Err(format!("round {number}: {error:?}"));
                }
                if number == rounds {
                    return Ok(());
                }
            }
        });
        for round in 1..=rounds {
            // The first row has the registry read anew, and the second may come at any moment of that.
            session.run(&format!("insert into steadytext_models (name, task, file) values ('n{round}', 'generate', 'none.gguf')"));
            let moment = Instant::now();
            while moment.elapsed() < Duration::from_micros(round as u64 % 50 * 20) {
                hint::spin_loop();
            }
            session.run(&format!("insert into steadytext_models (name, task, file) values ('m{round}', 'generate', 'none.gguf')"));
            known.store(round, SeqCst);
            let before = looks.load(SeqCst);
            while looks.load(SeqCst) < before + 2 && !ended.is_finished() {
                thread::yield_now();
            }
        }
        ended.join().expect("no panic").unwrap();
    });
}
