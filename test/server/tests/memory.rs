//! Memory that runs out: a request or a session ends by it, never the server.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use steadytext_test_server::{Cluster, Session, slow_model};

/// The number in a line of /proc/PID/FILE.
fn number(pid: i32, file: &str, line: &str) -> i64 {
    let content = std::fs::read_to_string(format!("/proc/{pid}/{file}")).expect("the process is there");
    let rest = content.lines().find_map(|content| content.strip_prefix(line)).expect("the line is there");
    rest.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Leaves a process so much address space beside what it has; None: any. As its user, which needs no right
/// that root may lack.
fn leave(pid: i32, megabytes: Option<u64>) {
    let limit = megabytes.map_or("unlimited".to_owned(), |megabytes| {
        (number(pid, "status", "VmSize:") as u64 * 1024 + (megabytes << 20)).to_string()
    });
    let owner = std::fs::metadata(format!("/proc/{pid}")).expect("the process is there");
    let status = Command::new("prlimit")
        .args(["--pid", &pid.to_string(), &format!("--as={limit}:")])
        .uid(owner.uid())
        .gid(owner.gid())
        .status()
        .expect("util-linux is there");
    assert!(status.success(), "prlimit: {status}");
}

fn nothing_was_restarted(cluster: &Cluster, session: &mut Session, postmaster: i32) {
    assert_eq!(session.one::<i32>("select 1"), 1, "the session of a bystander");
    assert_eq!(cluster.postmaster_pid(), postmaster);
    let log = cluster.log();
    for sign in ["terminated by signal", "all server processes terminated", "PANIC"] {
        assert!(!log.contains(sign), "{log}");
    }
}

#[test]
fn the_engine_says_what_it_may_take_and_its_process_is_the_first_to_go() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    let id = session.generate("wake it", "max_tokens => 2");
    session.answer(id);
    let line = cluster.wait_for_log(0, "MB of memory: four fifths of ");
    assert!(line.contains("of shared_buffers"), "{line}");
    let worker = session.worker_pid();
    assert!(number(worker, "oom_score_adj", "") >= 500);
    let mine = session.backend_pid();
    assert!(number(mine, "oom_score_adj", "") < 500, "a backend is as before");
    // The limit that is set is logged as well, once for each engine.
    cluster.configure("pg_steadytext.memory_limit_mb", 777);
    session.run("select pg_reload_conf()");
    cluster.wait_for_log(0, "may take 777 MB of memory: pg_steadytext.memory_limit_mb");
}

#[test]
fn an_engine_without_memory_fails_requests_and_ends_no_session() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    slow_model(&cluster, &mut session);
    session.run("select steadytext_config_set('max_retries', '0')");
    let id = session.generate("load the builtin model", "max_tokens => 2");
    session.answer(id);
    let postmaster = cluster.postmaster_pid();
    let properties = "(select jsonb_object_agg('property ' || i, '{\"type\": \"string\", \"pattern\": \"^[a-z]{1,20}$\"}'::jsonb)
                       from generate_series(1, 300) as i)";
    let mut codes = Vec::new();
    for megabytes in [1, 8, 40] {
        let worker = session.worker_pid();
        leave(worker, Some(megabytes));
        let mut ids =
            vec![session.generate(&"many words ".repeat(40_000), "max_tokens => 2, use_cache => false")];
        ids.push(session.one(&format!(
            "select steadytext_generate_json_async('x {megabytes}', jsonb_build_object('type', 'object', 'properties', {properties}), 20)"
        )));
        ids.extend(
            (0..40)
                .map(|i| session.generate(&format!("{megabytes} {i}"), "model => 'slow', max_tokens => 5")),
        );
        for id in ids {
            codes.extend(session.wait_for_end(id).error_code);
        }
        // Also where the process of the engine has ended, in order: the next one has no limit.
        leave(session.worker_pid(), None);
        let id = session.generate(&format!("after {megabytes}"), "max_tokens => 3");
        session.answer(id);
        nothing_was_restarted(&cluster, &mut session, postmaster);
    }
    let expected = ["53200", "54000", "53400", "58030", "22023"];
    assert!(codes.iter().all(|code| expected.contains(&code.as_str())), "{codes:?}");
    assert!(codes.iter().any(|code| code == "53200"), "{codes:?}");
}

#[test]
fn a_backend_without_memory_ends_at_most_its_own_session() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    let id = session.generate("wake it", "max_tokens => 2");
    session.answer(id);
    let postmaster = cluster.postmaster_pid();
    let mut refused = 0;
    for megabytes in [0, 1, 3, 10, 20] {
        for call in [
            "select steadytext_embed(repeat('many words ', 40000), false)",
            "select steadytext_embed_async(repeat('many words ', 40000))",
            "select count(*) from steadytext_generate_choice_async('x', (select array_agg('choice ' || i) from generate_series(1, 90) as i))",
            "select count(*) from steadytext_rerank('x', (select array_agg(repeat('document ', 200) || i) from generate_series(1, 90) as i))",
        ] {
            let mut other = cluster.session("postgres");
            // Its library is loaded and what every session has is there.
            other.run("select steadytext_embed('hello', false)");
            leave(other.backend_pid(), Some(megabytes));
            if let Err(error) = other.batch_execute(call) {
                // Where the message has not come through, the session has ended.
                let code = error.code().map_or("closed", |code| code.code()).to_owned();
                assert!(["53200", "54000", "closed", "22023"].contains(&code.as_str()), "{call}: {error:?}");
                refused += usize::from(code != "54000");
            }
        }
        nothing_was_restarted(&cluster, &mut session, postmaster);
    }
    assert!(refused > 0, "there was memory for everything");
    session.wait_for_worker("idle");
}
