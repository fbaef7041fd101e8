//! The engine in a program of its own: apart from the server in all respects but the answers.

use std::path::Path;

use steadytext_test_server::{
    Cluster, Options, PATIENCE, Session, Signal, endless_text, eventually, is_alive, signal, slow_model,
    wait_until,
};
use uuid::Uuid;

/// The setting.
const PROCESS: &str = "pg_steadytext.engine_process";
/// The engine where it is a program.
pub(crate) const PROGRAM: &str = "select e.pid from steadytext_engine_stat as e
    where e.pid is not null and not exists (select from pg_stat_activity as a where a.pid = e.pid)";
/// The log message when the server's processes are started anew.
pub(crate) const RESTART: &str = "all server processes terminated";

pub(crate) fn options() -> Options {
    Options::new().set(PROCESS, "separate")
}

/// A server with the slow model and an audit trail.
pub(crate) fn audited(options: Options) -> (Cluster, Session) {
    let cluster = options.start();
    let mut session = cluster.session("postgres");
    session.create_extension();
    session.audit();
    slow_model(&cluster, &mut session);
    (cluster, session)
}

/// The process of the program, once it takes connections.
#[track_caller]
pub(crate) fn program(session: &mut Session) -> i32 {
    let found = eventually(PATIENCE, || {
        let row = session.query_opt(PROGRAM, &[]).expect(PROGRAM)?;
        Some(row.get::<_, i32>(0)).filter(|pid| is_alive(*pid))
    });
    found.unwrap_or_else(|| panic!("there is no program: {}", session.worker_state()))
}

/// The program that follows this one.
#[track_caller]
pub(crate) fn next_program(session: &mut Session, before: i32) -> i32 {
    let found = eventually(PATIENCE, || Some(program(session)).filter(|pid| *pid != before));
    found.unwrap_or_else(|| panic!("{before} has no successor"))
}

/// Ends a program by a signal. More than one may be needed: Rust's programs take the first SIGSEGV for an
/// access to memory, which would come again.
#[track_caller]
pub(crate) fn kill(program: i32, how: Signal) {
    wait_until("it dies", || {
        signal(program, how);
        !is_alive(program)
    });
}

/// The contents of a file of a process in /proc.
pub(crate) fn proc(pid: i32, file: &str) -> String {
    let bytes =
        std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_else(|error| panic!("{pid} {file}: {error}"));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// All processes of the machine that run the engine of this cluster.
pub(crate) fn engines_of(cluster: &Cluster) -> Vec<i32> {
    let data = cluster.data();
    let pids = std::fs::read_dir("/proc").expect("a system with /proc").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_engine = |pid: &i32| {
        let at = std::fs::read_link(format!("/proc/{pid}/cwd"));
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        at.is_ok_and(|at| at == data)
            && String::from_utf8_lossy(&line).contains("steadytext-engine\0serve\0")
            && is_alive(*pid)
    };
    pids.filter(is_engine).collect()
}

#[test]
fn the_program_has_nothing_of_the_server_but_its_user_and_its_directory() {
    let (cluster, mut session) =
        audited(options().environment("SECRET_OF_THE_SERVER", "1").environment("CANDLE_NUM_THREADS", "1"));
    let engine = program(&mut session);
    let id = session.generate("wake it", "model => 'slow', max_tokens => 3");
    session.answer(id);
    let leader = session.worker_pid();
    let path = std::fs::read_link(format!("/proc/{engine}/exe")).expect("it runs");
    let server = std::fs::read_link(format!("/proc/{}/exe", cluster.postmaster_pid())).expect("it runs");
    assert_eq!(path, server.with_file_name("steadytext-engine"));
    let status = proc(engine, "status");
    let line = |name: &str| {
        let found = status.lines().find_map(|line| line.strip_prefix(name));
        found.unwrap_or_else(|| panic!("{name}: {status}")).trim().to_owned()
    };
    assert_eq!(line("PPid:"), leader.to_string());
    assert_eq!(line("SigBlk:"), "0000000000000000");
    // Above these are signals of the C library.
    let ignored = u64::from_str_radix(&line("SigIgn:"), 16).expect("a mask") & 0x7fff_ffff;
    assert_eq!(ignored, 1 << 12, "SIGPIPE, which Rust's programs ignore");
    let shared = ["SYSV", "/dev/zero", "PostgreSQL.", "/dev/shm", "pg_steadytext.so"];
    assert!(shared.iter().any(|name| proc(leader, "maps").contains(name)), "the names are right");
    let maps = proc(engine, "maps");
    assert!(!shared.iter().any(|name| maps.contains(name)), "{maps}");
    let environment = proc(engine, "environ");
    let names: Vec<&str> =
        environment.split_terminator('\0').filter_map(|set| Some(set.split_once('=')?.0)).collect();
    assert_eq!(names, ["CANDLE_NUM_THREADS"]);
    // Its own session: signals for the leader's are none for it.
    let session_of = |pid: i32| {
        let stat = proc(pid, "stat");
        let fields = stat.rsplit_once(')').expect("a line").1.split_whitespace().map(str::to_owned);
        fields.collect::<Vec<_>>()[3].clone()
    };
    assert_eq!(session_of(engine), engine.to_string());
    assert_eq!(proc(engine, "oom_score_adj").trim(), "1000");
    assert!(proc(leader, "oom_score_adj").trim().parse::<i32>().expect("a number") < 500);
    let limits = proc(engine, "limits");
    let data = limits.lines().find(|line| line.starts_with("Max data size")).expect("there is one");
    assert!(!data.contains("unlimited"), "{data}");
    // Of the data directory, only files that it opened itself are open.
    let files = std::fs::read_dir(format!("/proc/{engine}/fd")).expect("it runs").flatten();
    let files: Vec<String> = files
        .filter_map(|file| Some(std::fs::read_link(file.path()).ok()?.to_string_lossy().into_owned()))
        .collect();
    let own = |file: &String| {
        ["socket:", "/dev/null"].iter().any(|kind| file.starts_with(kind))
            || Path::new(file) == cluster.directory().join("log")
            || file.contains("slow.gguf")
    };
    assert!(files.iter().all(own), "{files:?}");
    // The leader has no thread of an engine.
    let threads = std::fs::read_dir(format!("/proc/{leader}/task")).expect("it runs").flatten();
    let names: Vec<String> = threads
        .filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok())
        .filter(|name| name.starts_with("st-"))
        .collect();
    assert!(names.is_empty(), "{names:?}");
}

/// The answers to each type of request, through the queue and as calls.
fn ask(session: &mut Session) -> Vec<String> {
    const CALLS: [&str; 16] = [
        "steadytext_generate('What does VACUUM do?', max_tokens => 24, use_cache => false)",
        "steadytext_generate('a', max_tokens => 24, use_cache => false, temperature => 0.9, seed => 5)",
        "(select string_agg(piece, '') from steadytext_generate_stream('a', max_tokens => 24) as piece)",
        "steadytext_generate_json('a', '{\"type\": \"object\", \"properties\": {\"n\": {\"type\": \"integer\"}}, \"required\": [\"n\"]}', use_cache => false)::text",
        "steadytext_generate_regex('a', '[a-c]{3,5}x', use_cache => false)",
        "steadytext_generate_choice('a', array['one', 'two', 'three'], use_cache => false)",
        "steadytext_embed('a text', false)::text",
        "steadytext_embed_batch(array['a', 'b', 'a'])::text",
        "(select array_agg(r order by r)::text from steadytext_rerank('a query', array['one', 'two', 'three']) as r)",
        "steadytext_if('Is it a question?')::text",
        "steadytext_score('How good is it?')::text",
        "steadytext_similarity('one thing', 'another')::text",
        "steadytext_classify('a text', array['good', 'bad'])",
        "steadytext_summarize_text(repeat('Some words about nothing. ', 40))",
        "steadytext_count_tokens('some words')::text",
        "steadytext_mask('Call Ann.', array['name'])::text",
    ];
    let mut answers: Vec<String> = CALLS
        .iter()
        .map(|call| {
            let answer = session.query_one(&format!("select coalesce({call}, 'null')"), &[]);
            answer.map_or_else(
                |error| format!("{:?}", error.as_db_error().map(|error| error.message())),
                |row| row.get(0),
            )
        })
        .collect();
    let mut ids: Vec<Uuid> = (0..6)
        .map(|i| session.generate(&format!("one of many {i}"), "max_tokens => 20, use_cache => false"))
        .collect();
    ids.push(session.generate("slowly", "model => 'slow', max_tokens => 20, use_cache => false"));
    ids.push(session.embed("a text", "use_cache => false"));
    answers.extend(ids.into_iter().map(|id| session.answer(id)));
    answers
}

#[test]
fn every_type_of_request_has_the_same_answer_in_both_places_and_moving_loses_nothing() {
    let (cluster, mut session) = audited(Options::new());
    session.run("select steadytext_config_set('cache_enabled', 'false')");
    let here = ask(&mut session);
    let across: Vec<Uuid> = (0..4)
        .map(|i| session.generate(&format!("across {i}"), "model => 'slow', max_tokens => 500"))
        .collect();
    session.wait_for_tokens(across[0]);
    cluster.configure(PROCESS, "separate");
    cluster.reload();
    for id in &across {
        session.answer(*id);
        assert_eq!(session.request(*id).retry_count, 0);
    }
    let engine = program(&mut session);
    for (there, here) in ask(&mut session).iter().zip(&here) {
        assert_eq!(there, here);
    }
    let refused = here.iter().filter(|answer| answer.starts_with("Some(")).count();
    assert!(refused <= 1, "too little was compared: {here:?}");
    // Settings reach it as they reach one in a worker: by another one.
    cluster.configure("pg_steadytext.max_running", 3);
    cluster.reload();
    let next = next_program(&mut session, engine);
    assert!(proc(next, "cmdline").contains("--max-running\u{0}3\u{0}"));
    let id = session.generate("back again", "model => 'slow', max_tokens => 500");
    session.wait_for_tokens(id);
    cluster.configure(PROCESS, "worker");
    cluster.reload();
    session.answer(id);
    wait_until("no program is left", || engines_of(&cluster).is_empty());
    assert_eq!(session.doubled(), 0);
    let log = cluster.log();
    assert!(!log.contains("is started anew"), "moving is no accident: {log}");
}

#[test]
fn two_databases_share_one_program_and_the_leader_can_go() {
    let cluster = options().start();
    let mut session = cluster.session("postgres");
    let mut sessions = ["first", "second"].map(|database| {
        session.run(&format!("create database {database}"));
        let mut there = cluster.session(database);
        there.create_extension();
        slow_model(&cluster, &mut there);
        there.worker_pid();
        there
    });
    let engine = program(&mut sessions[0]);
    assert_eq!(program(&mut sessions[1]), engine);
    let leader: i32 = proc(engine, "stat")
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok())
        .expect("a parent");
    let [first, second] = sessions;
    let (mut first, mut second) = (first, second);
    let (holder, mut other) = if first.worker_pid() == leader {
        (first, second)
    } else {
        assert_eq!(second.worker_pid(), leader);
        (second, first)
    };
    other.audit();
    let ids: Vec<Uuid> = (0..4)
        .map(|i| other.generate(&format!("in flight {i}"), "model => 'slow', max_tokens => 300"))
        .collect();
    other.wait_for_tokens(ids[0]);
    // Of the other database's requests none is lost when the engine dies, and none is when the leader goes
    // with its database.
    kill(engine, Signal::SEGV);
    let engine = next_program(&mut other, engine);
    let mut holder = holder;
    let database: String = holder.one("select current_database()::text");
    drop(holder);
    let mut session = cluster.session("postgres");
    wait_until("nobody else is there", || {
        session.one(&format!(
            "select not exists (select from pg_stat_activity
                                where datname = '{database}' and backend_type = 'client backend')"
        ))
    });
    session.run(&format!("drop database {database}"));
    for id in &ids {
        other.answer(*id);
    }
    assert_eq!(other.doubled(), 0);
    let next = next_program(&mut other, engine);
    assert_eq!(engines_of(&cluster), [next]);
    assert!(!cluster.log().contains(RESTART));
}

#[test]
fn what_shows_an_engine_shows_this_one_and_what_stops_a_request_stops_it_here() {
    let (cluster, mut session) = audited(options());
    let engine = program(&mut session);
    let id = session.generate("for a while", endless_text());
    session.wait_for_tokens(id);
    wait_until("its figures come", || {
        session.one(
            "select coalesce(running >= 1 and models_loaded >= 1 and model_bytes > 0 and kv_used_bytes > 0
                             and limit_bytes > 0 and decode_tokens > 0 and updated_at > now() - interval '1 minute', false)
             from steadytext_engine_stat",
        )
    });
    wait_until("they go on", || {
        let before: i64 = session.one("select decode_tokens from steadytext_engine_stat");
        eventually(PATIENCE, || {
            (session.one::<i64>("select decode_tokens from steadytext_engine_stat") > before).then_some(())
        })
        .is_some()
    });
    wait_until("the worker knows its memory", || {
        session.one("select memory_mb > 0 from steadytext.worker_state()")
    });
    wait_until("models are listed", || {
        session.one("select exists (select from steadytext_model_list() where loaded and name = 'slow')")
    });
    let detail: String =
        session.one("select detail from steadytext_diagnose() where \"check\" = 'listening'");
    assert!(detail.contains(&format!("process {engine}")) && detail.contains("slow.gguf"), "{detail}");
    assert!(session.one::<bool>("select exists (select from steadytext_activity where partial_text <> '')"));
    assert!(session.cancel(id));
    wait_until("the engine lets go of it", || {
        session.one(
            "select not exists (select from steadytext_activity) and running = 0 from steadytext_engine_stat",
        )
    });
    let mut caller = cluster.session("postgres");
    caller.run("set statement_timeout = '500ms'");
    let error = caller.error("select steadytext_generate('a call', model => 'slow', max_tokens => 4096)");
    assert_eq!(error.code().code(), "57014", "{error:?}");
    wait_until("the engine lets go of it", || session.one("select running = 0 from steadytext_engine_stat"));
    assert_eq!(program(&mut session), engine);
    // An engine that is told to end ends, and the log does not call it a crash.
    signal(engine, Signal::TERM);
    next_program(&mut session, engine);
    cluster.wait_for_log(0, "was told to end by signal 15 (SIGTERM)");
}

#[test]
fn on_a_standby_and_inside_a_restore_a_process_for_the_engine_alone_has_the_program() {
    let cluster = options().set("pg_steadytext.model_idle_timeout", "1s").start();
    let mut session = cluster.session("postgres");
    session.run("begin; create extension vector; create extension pg_steadytext");
    session.run("select steadytext_embed('once', false)");
    let mut other = cluster.session("postgres");
    let kinds: Vec<String> =
        other.list("select backend_type from pg_stat_activity where backend_type = 'pg_steadytext engine'");
    assert_eq!(kinds.len(), 1);
    let engine = program(&mut session);
    // It is started anew there as well.
    signal(engine, Signal::KILL);
    session.run("select steadytext_embed('again', false)");
    let engine = next_program(&mut session, engine);
    wait_until("both end when nobody needs them", || {
        !is_alive(engine)
            && other.one::<bool>(
                "select not exists (select from pg_stat_activity where backend_type = 'pg_steadytext engine')",
            )
    });
    session.run("select steadytext_embed('twice', false); commit");
}
