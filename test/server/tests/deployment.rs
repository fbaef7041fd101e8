//! Files in `deploy/`, the Dockerfile and META.json use only names that the extension and its programs
//! understand.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use steadytext_test_server::{Options, served_elsewhere, worker_program};

fn read(file: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(file)).unwrap()
}

#[test]
fn variables_of_the_worker_are_those_that_it_has() {
    let help = Command::new(worker_program()).arg("--help").output().expect("it was built");
    let help = String::from_utf8(help.stdout).unwrap();
    let options: BTreeSet<String> = help
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("--"))
        .map(|option| format!("STEADYTEXT_WORKER_{}", option.replace('-', "_").to_uppercase()))
        .collect();
    for file in ["Dockerfile", "deploy/compose.yml", "deploy/kubernetes.yml"] {
        let text = read(file);
        let words = text.split(|c: char| !c.is_ascii_uppercase() && c != '_');
        for variable in words.filter(|word| word.starts_with("STEADYTEXT_WORKER_")) {
            assert!(options.contains(variable), "{file}: {variable} is not of\n{help}");
        }
    }
}

#[test]
fn the_query_by_which_workers_are_scaled_counts_what_waits() {
    let (cluster, mut session) = served_elsewhere();
    session.run("create role scaler login in role pg_monitor");
    let text = read("deploy/kubernetes.yml");
    let query = text.lines().find_map(|line| line.trim().strip_prefix("query: ")).expect("a query");
    let mut scaler = cluster.session_as("postgres", "scaler");
    let count = format!("select ({query})::bigint");
    assert_eq!(scaler.one::<i64>(&count), 0);
    for i in 0..3 {
        session.generate(&format!("waits {i}"), "max_tokens => 3");
    }
    assert_eq!(scaler.one::<i64>(&count), 3);
}

/// The SQL that Compose's script hands to psql.
#[test]
fn the_script_for_a_new_server_makes_roles_that_can_do_their_work() {
    let cluster = Options::new().start();
    let script = read("deploy/compose/init.sh");
    let sql = script.split("<<'END'\n").nth(1).and_then(|rest| rest.strip_suffix("END\n")).expect("the SQL");
    let mut psql = cluster.client_program("psql");
    psql.args([
        "-X",
        "-q",
        "-v",
        "ON_ERROR_STOP=1",
        "-v",
        "worker=it's",
        "-v",
        "monitor=me",
        "-d",
        "postgres",
    ]);
    let mut child = psql.stdin(Stdio::piped()).spawn().expect("psql starts");
    child.stdin.take().unwrap().write_all(sql.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    let mut worker = cluster.session_as("postgres", "steadytext_elsewhere");
    worker.run("select * from steadytext.claim_requests('elsewhere', 1, 60, 0, false)");
    let mut monitor = cluster.session_as("postgres", "steadytext_monitor");
    assert!(monitor.one::<String>("select steadytext_metrics()").contains("steadytext_queue_length"));
}

#[test]
fn the_distribution_has_the_version_of_the_extension() {
    let meta: serde_json::Value = serde_json::from_str(&read("META.json")).unwrap();
    let control = read("pg_steadytext.control");
    let version =
        control.lines().find_map(|line| line.strip_prefix("default_version = ")).expect("a version");
    let version = version.trim_matches('\'');
    assert_eq!(meta["version"], version);
    assert_eq!(meta["provides"]["pg_steadytext"]["version"], version);
}
