//! Looking at models before they are used, checking a server, and removing models with their files.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use steadytext_test_models::{Bert, Spec};
use steadytext_test_server::{Cluster, Options, Session, Signal, signal, wait_until};

fn cluster() -> (Cluster, Session) {
    let cluster = Options::new().set("pg_steadytext.embedding_model", "auto").start();
    let mut session = cluster.session("postgres");
    session.create_extension();
    Bert::default().write(&cluster.model_directory().join("mini.gguf")).expect("our own file");
    steadytext_test_models::write(&Spec::default(), &cluster.model_directory().join("talks.gguf"))
        .expect("our own file");
    session.run(
        "create role alice login in role steadytext_user; create role carol login in role steadytext_admin;
         create role monitor login in role pg_monitor",
    );
    (cluster, session)
}

fn code(session: &mut Session, sql: &str) -> String {
    session.error(sql).code().code().to_owned()
}

#[test]
fn the_list_has_rows_files_and_what_is_loaded_and_shows_paths_to_administrators_only() {
    let (cluster, mut session) = cluster();
    session.run(&format!(
        "insert into steadytext_models (name, task, file) values ('far', 'embed', '{}'), ('talks', 'generate', 'talks.gguf')",
        cluster.model_directory().join("mini.gguf").display()
    ));
    let list = "select concat_ws(' ', name, source, file, size_bytes is not null, tasks, loaded) from steadytext_model_list()
                where name in ('far', 'talks', 'mini', 'builtin', 'small') order by name";
    let path = cluster.model_directory().join("mini.gguf").display().to_string();
    let expected = |path: &str| {
        [
            "builtin builtin f {generate,embed,rerank} f".to_owned(),
            format!("far registry {path} t {{embed}} f"),
            "mini directory mini.gguf t {embed} f".to_owned(),
            "small registry Qwen3-0.6B-Q8_0.gguf f {generate} f".to_owned(),
            "talks registry talks.gguf t {generate} f".to_owned(),
        ]
    };
    assert_eq!(cluster.session_as("postgres", "carol").list::<String>(list), expected(&path));
    let mut alice = cluster.session_as("postgres", "alice");
    assert_eq!(alice.list::<String>(list), expected("mini.gguf"));
    assert_eq!(alice.one::<i64>("select count(*) from steadytext_model_list() where name = 'talks'"), 1);
    alice.run("select steadytext_embed('x', model => 'mini')");
    assert!(alice.one::<bool>(
        "select loaded and memory_mb > 0 and last_used between now() - interval '1 hour' and clock_timestamp()
         from steadytext_model_list() where name = 'mini'"
    ));
    assert_eq!(
        alice.one::<i64>("select size_bytes from steadytext_model_list() where name = 'mini'"),
        fs::metadata(&path).expect("our own file").len() as i64
    );
}

#[test]
fn a_model_is_inspected_without_being_loaded() {
    let (cluster, mut session) = cluster();
    let show = |session: &mut Session, columns: &str, name: &str| -> String {
        session.one(&format!(
            "select concat_ws('|', {columns}) from steadytext_model_inspect('{name}', 'What?')"
        ))
    };
    let mut carol = cluster.session_as("postgres", "carol");
    assert_eq!(
        show(&mut carol, "model, tasks, family, kind, context_length, dimensions, loads, reason", "MINI"),
        "MINI|{embed}|bert|encoder|256|64|t"
    );
    assert!(
        show(&mut carol, "prompt", "talks").contains("user\nWhat?"),
        "{}",
        show(&mut carol, "prompt", "talks")
    );
    assert_eq!(
        show(
            &mut carol,
            "parameters > 1000, memory_mb > 0, memory_limit_mb > 0, vocabulary > 0, template",
            "talks"
        ),
        "t|t|t|t|of the file"
    );
    assert!(show(&mut carol, "prompt", "builtin").contains("What?"));
    fs::write(
        cluster.model_directory().join("mini.gguf.card.json"),
        r#"{"licence": "apache-2.0", "repository": "a/b", "tasks": ["embed", "rerank"]}"#,
    )
    .expect("our own file");
    assert_eq!(show(&mut carol, "licence, repository, tasks", "mini"), "apache-2.0|a/b|{embed,rerank}");
    fs::write(cluster.model_directory().join("letter.gguf"), "Dear Sir or Madam, ".repeat(500))
        .expect("our own file");
    assert!(
        show(&mut carol, "loads, reason", "letter").starts_with("f|it is corrupt"),
        "{}",
        show(&mut carol, "loads, reason", "letter")
    );
    assert_eq!(code(&mut carol, "select steadytext_model_inspect('nix')"), "42704");
    assert_eq!(code(&mut carol, "select steadytext_model_inspect('../data/PG_VERSION')"), "42704");
    cluster.configure("pg_steadytext.memory_limit_mb", 1);
    cluster.reload();
    wait_until("the limit holds", || show(&mut carol, "loads, reason", "talks").starts_with("f|it needs"));
    let loaded: bool = session
        .one("select coalesce(bool_or(loaded), false) from steadytext_model_list() where name <> 'builtin'");
    assert!(!loaded);
    let mut alice = cluster.session_as("postgres", "alice");
    assert_eq!(code(&mut alice, "select steadytext_model_inspect('mini')"), "42501");
}

#[test]
fn a_model_whose_content_is_not_what_its_row_or_card_says_does_not_load_when_inspected() {
    let (cluster, mut session) = cluster();
    let directory = cluster.model_directory();
    let card = directory.join("mini.gguf.card.json");
    let columns = "loads, reason ~ 'is not the registered one', hint ~ 'steadytext_models'";
    fs::write(&card, format!(r#"{{"sha256": "{}"}}"#, "ab".repeat(32))).expect("our own file");
    assert_eq!(inspected(&mut session, columns, "mini"), "f|t|t");
    let error = session.error("select steadytext_embed('x', model => 'mini')");
    assert_eq!(error.code().code(), "XX001", "{error:?}");
    // The right one: that of the file as it is.
    let digest: String = session.one(&format!(
        "select encode(sha256(pg_read_binary_file('{}')), 'hex')",
        directory.join("mini.gguf").display()
    ));
    fs::write(&card, format!(r#"{{"sha256": "{digest}"}}"#)).expect("our own file");
    assert_eq!(inspected(&mut session, "loads, sha256", "mini"), format!("t|{digest}"));
    // Of another content, nobody has known the checksum before.
    let mut bytes = fs::read(directory.join("mini.gguf")).expect("our own file");
    *bytes.last_mut().expect("it is not empty") ^= 1;
    fs::write(directory.join("mini.gguf.new"), bytes).expect("our own file");
    fs::rename(directory.join("mini.gguf.new"), directory.join("mini.gguf")).expect("our own file");
    assert_eq!(inspected(&mut session, columns, "mini"), "f|t|t");
    // A row comes before the card.
    session.run(&format!(
        "insert into steadytext_models (name, task, file, sha256) values
            ('of-row', 'embed', 'mini.gguf', encode(sha256(pg_read_binary_file('{}')), 'hex'))",
        directory.join("mini.gguf").display()
    ));
    assert_eq!(inspected(&mut session, "loads, reason", "of-row"), "t");
    fs::write(&card, "no card").expect("our own file");
    assert_eq!(inspected(&mut session, "loads, reason ~ 'card', hint is not null", "mini"), "f|t|t");
}

/// The columns of a model that can be looked at, and of one that cannot.
fn inspected(session: &mut Session, columns: &str, name: &str) -> String {
    session.one(&format!("select concat_ws('|', {columns}) from steadytext_model_inspect('{name}')"))
}

#[test]
fn a_model_that_is_known_and_cannot_be_used_is_inspected_with_the_reason() {
    let (cluster, mut session) = cluster();
    let directory = cluster.model_directory();
    session.run(
        "insert into steadytext_models (name, task, file, placement) values
            ('absent', 'generate', 'absent.gguf', 'any'), ('far', 'generate', 'far.gguf', 'elsewhere'),
            ('here-and-far', 'embed', 'mini.gguf', 'elsewhere'), ('half', 'generate', 'part-00001-of-00002.gguf', 'any')",
    );
    fs::copy(directory.join("talks.gguf"), directory.join("part-00001-of-00002.gguf")).expect("our own file");
    let columns = "model, tasks, family, size_bytes, loads, hint is not null, reason";
    let absent = inspected(&mut session, columns, "absent");
    assert!(
        absent.starts_with("absent|{generate}|f|t|the file of model \"absent\" is not there"),
        "{absent}"
    );
    let far = inspected(&mut session, columns, "far");
    assert_eq!(far, "far|{generate}|f|t|model \"far\" is computed by workers elsewhere only");
    let hint = inspected(&mut session, "hint", "far");
    assert!(hint.contains("steadytext_generate_async(…, model => 'far')"), "{hint}");
    // Of what is here as well, all is said.
    let size = fs::metadata(directory.join("mini.gguf")).expect("our own file").len();
    let both = inspected(&mut session, columns, "here-and-far");
    assert_eq!(
        both,
        format!(
            "here-and-far|{{embed}}|bert|{size}|f|t|model \"here-and-far\" is computed by workers elsewhere only"
        )
    );
    let hint = inspected(&mut session, "hint", "here-and-far");
    assert!(hint.contains("steadytext_embed_async(…, model => 'here-and-far', mode => 'query'"), "{hint}");
    // A part is missing, of a registered model and of one that has its name from its files.
    for name in ["half", "part"] {
        let half = inspected(&mut session, "model, size_bytes, loads, hint is not null, reason", name);
        let expected = format!("{name}|f|t|model \"{name}\" has 1 of its 2 files: ");
        assert!(half.starts_with(&expected) && half.contains("part-00002-of-00002.gguf"), "{half}");
        let error = session.error(&format!("select steadytext_generate('x', 2, model => '{name}')"));
        assert!(error.code().code() == "58030" && error.hint().is_some(), "{error:?}");
    }
    fs::copy(directory.join("talks.gguf"), directory.join("part-00002-of-00002.gguf")).expect("our own file");
    assert_eq!(inspected(&mut session, "loads", "half"), "t");
    for unknown in ["nix", "part-00002-of-00002"] {
        assert_eq!(code(&mut session, &format!("select steadytext_model_inspect('{unknown}')")), "42704");
    }
}

#[test]
fn a_folder_has_one_size_and_the_licence_of_its_card_or_of_its_readme() {
    let (cluster, mut session) = cluster();
    let folder = cluster.model_directory().join("shards");
    Bert::default().write_shards(&folder, 3).expect("our own directory");
    fs::write(folder.join("onnx.bin"), [0; 5000]).expect("our own file");
    let bytes = |name: &str| fs::metadata(folder.join(name)).expect("our own file").len();
    let shard = |number: usize| format!("model-{number:05}-of-00003.safetensors");
    let read =
        (1..=3).map(shard).chain(["config.json", "vocab.txt", "1_Pooling/config.json"].map(str::to_owned));
    let expected: u64 = read.map(|name| bytes(&name)).sum();
    assert_eq!(inspected(&mut session, "size_bytes, licence, loads", "shards"), format!("{expected}|t"));
    let listed: i64 = session.one("select size_bytes from steadytext_model_list() where name = 'shards'");
    assert_eq!(listed as u64, expected);
    fs::write(folder.join("README.md"), "---\nlicense: mit\n---\n# Shards\n").expect("our own file");
    assert_eq!(inspected(&mut session, "licence", "shards"), "mit");
    fs::write(folder.with_file_name("shards.card.json"), r#"{"licence": "apache-2.0"}"#)
        .expect("our own file");
    assert_eq!(inspected(&mut session, "licence", "shards"), "apache-2.0");
    // A shard is missing.
    fs::remove_file(folder.join(shard(2))).expect("our own file");
    let seen = inspected(&mut session, "tasks, licence, loads, hint is not null, reason", "shards");
    assert!(seen.starts_with("{embed}|apache-2.0|f|") && seen.contains(&shard(2)), "{seen}");
    // Of a file, what its keys say.
    let mut file = Bert::default().file().expect("a model can be made");
    let text = |text: &str| steadytext_test_models::gguf::Value::String(text.into());
    file.set("general.license", text("other"));
    file.set("general.license.name", text("gemma"));
    let path = cluster.model_directory().join("licensed.gguf");
    file.write(&mut fs::File::create(path).expect("our own file")).expect("our own file");
    assert_eq!(inspected(&mut session, "licence", "licensed"), "gemma");
}

#[test]
fn diagnose_says_what_is_wrong_and_nothing_where_all_is_well() {
    let (cluster, mut session) = cluster();
    session.wait_for_worker("idle");
    let all = |session: &mut Session| -> Vec<String> {
        session.list("select format('%s: %s', \"check\", status) from steadytext_diagnose() where status <> 'ok' order by 1")
    };
    session.run("select steadytext_embed('x')");
    assert_eq!(all(&mut session), [""; 0]);
    let checks: Vec<String> = session.list("select \"check\" from steadytext_diagnose() order by 1");
    assert_eq!(
        checks,
        [
            "listening",
            "memory",
            "model directory",
            "model for embed",
            "model for generate",
            "model for rerank",
            "preloaded",
            "queue",
            "vector",
            "versions",
            "worker"
        ]
    );
    // The model is no good, the worker rests, requests wait, and a setting has no effect.
    fs::write(cluster.model_directory().join("mini.gguf"), "Dear Sir or Madam, ".repeat(500))
        .expect("our own file");
    fs::copy(cluster.model_directory().join("mini.gguf"), cluster.model_directory().join("letter.gguf"))
        .expect("our own file");
    session.run(
        "insert into steadytext_models (name, task, file) values ('mini', 'embed', 'mini.gguf'), ('mine', 'generate', 'absent.gguf')",
    );
    session.pause();
    session.run(
        "insert into steadytext_queue (request_type, prompt, created_at) values ('generate', 'x', now() - interval '1 hour');
         select steadytext_config_set('daemon_port', '5556')",
    );
    let directory = cluster.model_directory();
    fs::set_permissions(&directory, Permissions::from_mode(0o777)).expect("our own directory");
    let wrong = [
        "model directory: warning",
        "model for embed: error",
        "model letter: warning",
        "model mine: warning",
        "model mini: warning",
        "queue: warning",
        "setting daemon_port: warning",
        "worker: warning",
    ];
    assert_eq!(all(&mut session), wrong);
    assert!(
        session
            .one::<bool>("select bool_and(hint is not null) from steadytext_diagnose() where status <> 'ok'")
    );
    // Monitors see the same, but for what they may not read.
    assert_eq!(all(&mut cluster.session_as("postgres", "monitor")).len(), wrong.len() - 1);
    assert_eq!(
        code(&mut cluster.session_as("postgres", "alice"), "select * from steadytext_diagnose()"),
        "42501"
    );
    // A folder of somebody else's.
    fs::set_permissions(&directory, Permissions::from_mode(0o700)).expect("our own directory");
    let folder = directory.join("folder");
    Bert::default().write_folder(&folder).expect("our own directory");
    fs::set_permissions(&folder, Permissions::from_mode(0o555)).expect("our own directory");
    let said: String =
        session.one("select detail from steadytext_diagnose() where \"check\" = 'model directory'");
    assert!(said.contains("folder \"folder\", and keeps no packed weights"), "{said}");
}

#[test]
fn diagnose_finds_nothing_wrong_while_the_worker_of_a_new_extension_is_on_its_way() {
    let cluster = Options::new().start();
    let mut session = cluster.session("postgres");
    let launcher = "select pid from pg_stat_activity where backend_type like 'pg_steadytext%launcher%'";
    wait_until("the launcher", || session.list::<i32>(launcher).len() == 1);
    let launcher: i32 = session.one(launcher);
    assert!(signal(launcher, Signal::STOP));
    session.run("create extension pg_steadytext cascade");
    let wrong = |session: &mut Session| -> Vec<String> {
        session.list(
            "select format('%s: %s, %s', \"check\", status, detail) from steadytext_diagnose()
             where status <> 'ok' and \"check\" !~ '^model for' order by 1",
        )
    };
    let found = (wrong(&mut session), session.one::<String>("select state from steadytext.worker_state()"));
    assert!(signal(launcher, Signal::CONT));
    assert_eq!(found, (Vec::new(), "starting".to_owned()), "nobody has looked yet");
    wait_until("the worker", || {
        assert_eq!(wrong(&mut session), [""; 0]);
        session.one::<bool>("select state = 'idle' from steadytext.worker_state()")
    });
}

#[test]
fn a_model_is_removed_with_its_files_only_where_that_is_said_and_nothing_else_ever() {
    let (cluster, mut session) = cluster();
    let directory = cluster.model_directory();
    let mut carol = cluster.session_as("postgres", "carol");
    carol.run("select steadytext_embed('x', model => 'mini')");
    fs::write(directory.join("mini.gguf.card.json"), "{}").expect("our own file");
    fs::write(directory.join("notes.txt"), "mine").expect("our own file");
    carol.run(
        "insert into steadytext_models (name, task, file)
         values ('one', 'embed', 'mini.gguf'), ('two', 'embed', 'mini.gguf'), ('notes', 'embed', 'notes.txt'), ('all', 'embed', '.')",
    );
    let remove = |session: &mut Session, of: &str| {
        session.one::<bool>(&format!("select steadytext_model_remove({of})"))
    };
    assert_eq!(code(&mut carol, "select steadytext_model_remove('one', true)"), "55006");
    assert!(remove(&mut carol, "'two'"));
    assert!(directory.join("mini.gguf").exists());
    assert_eq!(carol.one::<i64>("select count(*) from steadytext_models where name = 'two'"), 0);
    assert!(remove(&mut carol, "'one', true"));
    let left: Vec<String> = fs::read_dir(&directory)
        .expect("our own directory")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("mini"))
        .collect();
    assert_eq!(left, [""; 0]);
    assert_eq!(code(&mut carol, "select steadytext_embed('x', model => 'mini')"), "42704");
    assert!(!remove(&mut carol, "'mini', true"));
    assert!(!remove(&mut carol, "'mini'"));
    // A file without a row.
    assert_eq!(code(&mut carol, "select steadytext_model_remove('talks')"), "22023");
    assert!(remove(&mut carol, "'TALKS', true"));
    assert!(!directory.join("talks.gguf").exists());
    // A folder.
    Bert::default().write_folder(&directory.join("folder")).expect("our own directory");
    // The server's user has to delete what this one has made.
    for folder in
        ["folder", "folder/1_Pooling"].map(|name| directory.join(name)).iter().filter(|path| path.is_dir())
    {
        fs::set_permissions(folder, Permissions::from_mode(0o777)).expect("our own directory");
    }
    assert!(remove(&mut carol, "'folder', true"));
    assert!(!directory.join("folder").exists());
    // No model, whatever a row says.
    assert!(remove(&mut carol, "'notes', true"));
    // Neither the directory itself nor a folder that others lie in, even where these look like an encoder's.
    let deep = directory.join("deep");
    fs::create_dir(&deep).expect("our own directory");
    fs::set_permissions(&deep, Permissions::from_mode(0o777)).expect("our own directory");
    Bert::default().write(&deep.join("other.gguf")).expect("our own file");
    for folder in [&directory, &deep] {
        fs::write(folder.join("config.json"), "{}").expect("our own file");
    }
    carol.run("insert into steadytext_models (name, task, file) values ('deep', 'embed', 'deep')");
    for name in ["all", "deep"] {
        assert_eq!(code(&mut carol, &format!("select steadytext_model_remove('{name}', true)")), "55006");
        assert_eq!(
            carol.one::<i64>(&format!("select count(*) from steadytext_models where name = '{name}'")),
            1
        );
    }
    assert!(deep.join("other.gguf").exists());
    assert!(directory.join("notes.txt").exists());
    let elsewhere = cluster.make_directory("elsewhere").join("far.gguf");
    Bert::default().write(&elsewhere).expect("our own file");
    session.run(&format!(
        "insert into steadytext_models (name, task, file) values ('far', 'embed', '{}')",
        elsewhere.display()
    ));
    assert_eq!(code(&mut session, "select steadytext_model_remove('far', true)"), "42501");
    assert!(elsewhere.exists());
    let mut alice = cluster.session_as("postgres", "alice");
    assert_eq!(code(&mut alice, "select steadytext_model_remove('far')"), "42501");
}

#[test]
fn a_directory_of_models_that_is_missing_is_made_at_the_start() {
    let cluster = Options::new().set("pg_steadytext.model_dir", "some_models").start();
    let directory = cluster.data().join("some_models");
    wait_until("the directory is there", || directory.is_dir());
    let metadata = fs::metadata(&directory).expect("it is there");
    let data = fs::metadata(cluster.data()).expect("it is there");
    use std::os::unix::fs::MetadataExt;
    assert_eq!((metadata.uid(), metadata.mode() & 0o777), (data.uid(), 0o700));
}
