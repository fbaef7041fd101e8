//! Files in `monitoring/`: the queries run, and everything there names only metrics that exist.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use steadytext_test_server::{Cluster, Session};

fn read(file: &str) -> String {
    std::fs::read_to_string(path(file)).unwrap()
}

fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../monitoring").join(file)
}

/// A cluster in which something has been done, and its metrics.
fn metrics() -> (Cluster, Session, String) {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run("select steadytext_generate('What does VACUUM do?', 5, use_cache => false)");
    let id = session.generate("What does ANALYZE do?", "max_tokens => 5");
    session.answer(id);
    session.pause();
    session.generate("It waits", "max_tokens => 5");
    session.run("insert into steadytext_models (name, task, file, placement) values ('far', 'generate', 'far.gguf', 'elsewhere')");
    session.generate("It waits in vain", "max_tokens => 5, model => 'far'");
    let metrics = session.one("select steadytext_metrics()");
    (cluster, session, metrics)
}

/// Type and help of each family.
fn families(metrics: &str) -> BTreeMap<String, (String, String)> {
    let mut families: BTreeMap<String, (String, String)> = BTreeMap::new();
    for line in metrics.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", "HELP", name, help] => families.entry(name.to_owned()).or_default().1 = help.to_owned(),
            ["#", "TYPE", name, kind] => families.entry(name.to_owned()).or_default().0 = kind.to_owned(),
            _ => {}
        }
    }
    families
}

/// The names of all samples.
fn names(metrics: &str) -> BTreeSet<String> {
    let samples = metrics.lines().filter(|line| !line.starts_with('#'));
    samples.filter_map(|line| line.split(['{', ' ']).next()).map(str::to_owned).collect()
}

/// Words of a text that are names of metrics.
fn mentioned(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("steadytext_")).map(str::to_owned).collect()
}

#[test]
fn the_dashboard_and_the_alerts_name_metrics_that_exist() {
    let (_cluster, _session, metrics) = metrics();
    let names = names(&metrics);
    let dashboard: serde_json::Value = serde_json::from_str(&read("grafana.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() >= 10);
    let mut shown = BTreeSet::new();
    for panel in panels {
        for target in panel["targets"].as_array().unwrap() {
            let mentioned = mentioned(target["expr"].as_str().unwrap());
            assert!(!mentioned.is_empty(), "{}", panel["title"]);
            shown.extend(mentioned);
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        shown.extend(mentioned(variable["query"].as_str().unwrap()));
    }
    let alerts = read("alerts.yml");
    shown.extend(alerts.lines().filter(|line| !line.contains("summary")).flat_map(mentioned));
    assert!(shown.contains("steadytext_queue_oldest_message_age_seconds"));
    assert_eq!(shown.difference(&names).collect::<Vec<_>>(), Vec::<&String>::new());
}

/// A query of the file for postgres_exporter.
#[derive(Default)]
struct Query {
    namespace: String,
    sql: String,
    /// Column, usage, description.
    columns: Vec<[String; 3]>,
}

fn queries() -> Vec<Query> {
    let mut queries: Vec<Query> = Vec::new();
    let unquoted = |text: &str| text.trim().trim_matches('"').to_owned();
    for line in read("postgres_exporter.yml").lines().filter(|line| !line.starts_with('#')) {
        if let Some(namespace) = line.strip_suffix(':').filter(|name| name.starts_with("steadytext")) {
            queries.push(Query { namespace: namespace.to_owned(), ..Query::default() });
            continue;
        }
        let Some(query) = queries.last_mut() else { continue };
        if let Some(sql) = line.strip_prefix("  query: ") {
            query.sql = if sql == ">-" { String::new() } else { unquoted(sql) };
        } else if let Some(name) = line.strip_prefix("    - ") {
            query.columns.push([name.trim_end_matches(':').to_owned(), String::new(), String::new()]);
        } else if let Some(usage) = line.strip_prefix("        usage: ") {
            query.columns.last_mut().unwrap()[1] = unquoted(usage);
        } else if let Some(description) = line.strip_prefix("        description: ") {
            query.columns.last_mut().unwrap()[2] = unquoted(description);
        } else if let Some(sql) = line.strip_prefix("    ") {
            query.sql = format!("{} {sql}", query.sql);
        }
    }
    queries
}

#[test]
fn queries_for_the_exporter_run_and_give_the_same_metrics() {
    let (cluster, mut session, metrics) = metrics();
    session.run("create role watch login in role pg_monitor");
    let mut watch = cluster.session_as("postgres", "watch");
    let families = families(&metrics);
    let queries = queries();
    assert!(queries.len() >= 10);
    for query in queries {
        let mut expected: Vec<String> = Vec::new();
        for [column, usage, description] in &query.columns {
            expected.push(column.clone());
            let family = format!("{}_{column}", query.namespace);
            match usage.as_str() {
                "LABEL" => continue,
                "HISTOGRAM" => {
                    expected.extend(["_bucket", "_sum", "_count"].map(|suffix| format!("{column}{suffix}")));
                }
                _ => {}
            }
            let (kind, help) = families.get(&family).unwrap_or_else(|| panic!("{family} is no metric"));
            assert_eq!((&kind.to_uppercase(), help), (usage, description), "{family}");
        }
        expected.sort();
        let mut columns: Vec<String> = watch.list(&format!(
            "select jsonb_object_keys(to_jsonb(q)) from ({}) as q limit {}",
            query.sql,
            expected.len()
        ));
        assert!(!columns.is_empty(), "{}", query.sql);
        columns.sort();
        assert_eq!(columns, expected, "{}", query.namespace);
    }
}

#[test]
fn a_scrape_of_a_thousand_series_is_whole() {
    let (_cluster, mut session, _) = metrics();
    session.run(
        "insert into steadytext_models (name, task, file)
         select 'model-' || n, 'generate', 'model-' || n || '.gguf' from generate_series(1, 14) as n;
         insert into steadytext_queue (request_type, prompt, params, created_at)
         select 'generate', 'many', jsonb_build_object('model', 'model-' || n), now() - interval '1 day'
         from generate_series(1, 14) as n",
    );
    let cancelled =
        "select count(*) from steadytext_queue where prompt = 'many' and steadytext_cancel_async(request_id)";
    assert_eq!(session.one::<i64>(cancelled), 14);
    let mut took = Vec::new();
    let mut series = 0;
    for _ in 0..10 {
        let begun = Instant::now();
        let metrics: String = session.one("select steadytext_metrics()");
        took.push(begun.elapsed());
        series = metrics.lines().filter(|line| !line.starts_with('#')).count();
    }
    took.sort();
    println!("{series} series in {:.1} ms, the median of ten scrapes", took[5].as_secs_f64() * 1e3);
    assert!(series >= 1000, "{series}");
}

#[test]
fn promtool_finds_nothing_where_it_is_there() {
    let Ok(promtool) = Command::new("promtool").arg("--version").output() else {
        println!("promtool is not installed");
        return;
    };
    assert!(promtool.status.success());
    let (_cluster, _session, metrics) = metrics();
    let mut check = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    check.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let said = check.wait_with_output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let rules = Command::new("promtool").args(["check", "rules"]).arg(path("alerts.yml")).output().unwrap();
    assert!(rules.status.success(), "{}", String::from_utf8_lossy(&rules.stderr));
}
