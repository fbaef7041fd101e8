//! Cache files of SteadyText for Python: in, out, and none but those of the exchange directory.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use steadytext_engine::KERNEL_VERSION;
use steadytext_test_server::{Cluster, Options, Session, sqlstate_of, wait_until};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../exchange/steadytext_cache.py");

/// A cluster with an exchange directory.
fn start() -> (Cluster, Session, PathBuf) {
    let cluster = Options::new().start();
    let directory = cluster.make_directory("exchange");
    cluster.configure("pg_steadytext.exchange_dir", directory.display());
    cluster.reload();
    let mut session = cluster.session("postgres");
    session.create_extension();
    let wanted = directory.display().to_string();
    wait_until("the setting is there", || session.one::<String>("show pg_steadytext.exchange_dir") == wanted);
    (cluster, session, directory)
}

fn python(arguments: &[&str], input: &str) -> String {
    let mut child = Command::new("python3")
        .arg(SCRIPT)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("python3 is installed (make setup)");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn write(directory: &Path, name: &str, coding: &str, lines: &str) {
    python(&["write", directory.join(name).to_str().unwrap(), coding], lines);
}

const LINES: &str = r#"{"key": "What is a tuple?", "value": "A row version.", "frequency": 5, "last_access": 1753000000123456}
{"key": "Say it::EOS::END", "value": "it", "protocol": 2, "last_access": 1753000001000000}
{"key": ["A tuple is a row version."], "value": [0.6, -0.8], "frequency": 2, "last_access": 1753000002000000}
{"key": ["another"], "value": [1.0, 0.0], "as": "list", "protocol": 3, "last_access": 1753000003000000}
{"key": ["query", "with a mode"], "value": [1.0, 0.0], "last_access": 1753000003000000}
{"key": "warm::TEMP::0.7", "value": "x", "last_access": 1753000003000000}
"#;

const ROWS: &str = "select string_agg(concat_ws('|', cache_key, prompt, request_type, eos_string, response, embedding, access_count,
        extract(epoch from last_accessed), response_size, imported, model_hash, kernel_version), E'\\n' order by id)
    from steadytext_cache";

#[test]
fn what_python_wrote_is_imported_with_its_frecency_and_exported_as_python_reads_it() {
    let (_cluster, mut session, directory) = start();
    for (coding, of_directory, mode) in [("base64", 0o700, 0o600), ("plain", 0o2770, 0o640)] {
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(of_directory)).unwrap();
        write(&directory, coding, coding, LINES);
        let row =
            session.query_one(&format!("select * from steadytext_cache_import('{coding}')"), &[]).unwrap();
        assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1), row.get::<_, i64>(2)), (4, 0, 2));
        let [tuple, another] =
            ["A tuple is a row version.", "another"].map(|text| digest(&mut session, text));
        let wanted = format!(
            "What is a tuple?|What is a tuple?|generate|A row version.|5|1753000000.123456|14|t\n\
             Say it::EOS::END|Say it|generate|END|it|1|1753000001.000000|2|t\n\
             {tuple}|A tuple is a row version.|embed|[0.6,-0.8]|2|1753000002.000000|8|t\n\
             {another}|another|embed|[1,0]|1|1753000003.000000|8|t",
        );
        // Entries of one INSERT come in the order of their keys' checksums.
        let mut got: Vec<String> = session.one::<String>(ROWS).lines().map(str::to_owned).collect();
        let mut wanted: Vec<String> = wanted.lines().map(str::to_owned).collect();
        got.sort();
        wanted.sort();
        assert_eq!(got, wanted);

        let exported: (i64, i64) = {
            let row = session
                .query_one(
                    &format!(
                        "select * from steadytext_cache_export('out.{coding}', key_format => '{coding}')"
                    ),
                    &[],
                )
                .unwrap();
            (row.get(0), row.get(1))
        };
        assert_eq!(exported, (4, 0));
        let path = directory.join(format!("out.{coding}"));
        // The group reads what lies in a directory that is its own.
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
        let said = python(&["read", path.to_str().unwrap()], "");
        let original = python(&["read", directory.join(coding).to_str().unwrap()], "");
        for line in said.lines() {
            // The list of floats has become an array.
            let same = original.contains(line) || original.contains(&line.replace("ndarray", "list"));
            assert!(same, "{line} is not in\n{original}");
        }
        assert_eq!(said.lines().count(), 4);
        // And back again: nothing is new.
        let row = session
            .query_one(&format!("select * from steadytext_cache_import('out.{coding}')"), &[])
            .unwrap();
        assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1), row.get::<_, i64>(2)), (0, 4, 0));
        session.run("truncate steadytext_cache");
    }
    let audit: Vec<String> = session.list(
        "select concat_ws(' ', user_id, action, details ->> 'path', details ->> 'imported', details ->> 'exported') from steadytext_audit_log order by id",
    );
    assert_eq!(audit.len(), 6);
    assert_eq!(audit[0], "postgres cache_import base64 4");
    assert_eq!(audit[1], "postgres cache_export out.base64 4");
}

fn digest(session: &mut Session, text: &str) -> String {
    session.one(&format!("select encode(sha256(convert_to('embed:{text}', 'UTF8')), 'hex')"))
}

#[test]
fn an_imported_entry_answers_default_requests_and_its_uses_are_counted() {
    let (_cluster, mut session, directory) = start();
    write(&directory, "a.db", "base64", LINES);
    session.run("select steadytext_cache_import('a.db'); select steadytext.reset_cache_counters()");
    assert_eq!(session.one::<String>("select steadytext_generate('What is a tuple?')"), "A row version.");
    assert_eq!(session.one::<String>("select steadytext_generate('Say it', eos_string => 'END')"), "it");
    let embedding = "select steadytext_embed('A tuple is a row version.')::text";
    assert_eq!(session.one::<String>(embedding), "[0.6,-0.8]");
    let id = session.generate("What is a tuple?", "priority => 1");
    assert_eq!(session.answer(id), "A row version.");
    let other = "select steadytext_generate('What is a tuple?', max_tokens => 3)";
    assert_ne!(session.one::<String>(other), "A row version.", "another request");
    assert_eq!(session.one::<f64>("select cache_hit_rate from steadytext_cache_stats()"), 4.0 / 5.0);
    wait_until("the uses are written down", || {
        session.one::<i32>("select access_count from steadytext_cache where cache_key = 'What is a tuple?'")
            == 7
    });
}

#[test]
fn existing_entries_stay_unless_they_are_to_be_replaced() {
    let (cluster, mut session, directory) = start();
    session.run(&format!(
        "insert into steadytext_cache (cache_key, prompt, response, request_type, model_hash, kernel_version, access_count)
         values ('What is a tuple?', 'What is a tuple?', 'ours', 'generate', 'abc', {KERNEL_VERSION}, 9)",
    ));
    write(&directory, "a.db", "base64", LINES);
    assert_eq!(session.one::<i64>("select skipped from steadytext_cache_import('a.db')"), 1);
    let ours = "select concat_ws('|', response, access_count, model_hash, imported) from steadytext_cache where prompt = 'What is a tuple?'";
    assert_eq!(session.one::<String>(ours), "ours|9|abc|f");
    assert_eq!(session.one::<i64>("select imported from st_cache_import('a.db', true)"), 4);
    assert_eq!(session.one::<String>(ours), "A row version.|9|t");
    // An answer of an older engine is no longer valid.
    session.run("update steadytext_cache set imported = false, response = 'ours', kernel_version = 0");
    assert_eq!(session.one::<i64>("select imported from steadytext_cache_import('a.db')"), 4);
    assert_eq!(session.one::<String>(ours), "A row version.|9|t");
    // Two imports wait for each other, whatever their entries.
    write(
        &directory,
        "b.db",
        "base64",
        r#"{"key": "Another?", "value": "Yes.", "last_access": 1753000000123456}"#,
    );
    session.run("begin; select steadytext_cache_import('a.db', true)");
    let mut other = cluster.session("postgres");
    let error = other.error("set lock_timeout = '100ms'; select steadytext_cache_import('b.db')");
    assert_eq!(error.code().code(), "55P03");
    session.run("rollback");
    // One that changes nothing waits for no row.
    session.run("begin; select from steadytext_cache for update");
    assert_eq!(other.one::<i64>("select skipped from steadytext_cache_import('a.db')"), 4);
    session.run("rollback");
    // Rolled back with the caller's transaction.
    session.run("truncate steadytext_cache");
    session.run("begin; select steadytext_cache_import('a.db'); rollback");
    assert_eq!(session.one::<i64>("select count(*) from steadytext_cache"), 0);
    // In a transaction that may not write, it says so.
    let error = session.error("begin read only; select steadytext_cache_import('a.db')");
    assert_eq!(error.code().code(), "25006");
}

#[test]
fn entries_of_other_parameters_are_exported_only_when_asked_for() {
    let (_cluster, mut session, directory) = start();
    session.run(
        "insert into steadytext_cache (cache_key, prompt, response, request_type, eos_string)
         values ('a', 'a', 'A', 'generate', null), ('b::EOS::x', 'b', 'B', 'generate', 'x'),
             ('steadytext/1:00', 'c', 'C', 'generate', null), ('steadytext/1:01', 'd', 'D', 'generate_json', null)",
    );
    let row = session.query_one("select * from steadytext_cache_export('default.db')", &[]).unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (2, 2));
    let row = session
        .query_one("select * from st_cache_export('all.db', all_entries => true, key_format => 'plain')", &[])
        .unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (4, 0));
    let said = python(&["read", directory.join("all.db").to_str().unwrap()], "");
    assert!(
        said.contains("\"key\": \"steadytext/1:01\"") && said.contains("\"key\": \"b::EOS::x\""),
        "{said}"
    );
}

#[test]
fn no_path_leads_out_of_the_exchange_directory() {
    let (cluster, mut session, directory) = start();
    write(&directory, "good.db", "base64", LINES);
    let outside = cluster.make_directory("outside");
    write(&outside, "secret.db", "base64", LINES);
    std::fs::create_dir(directory.join("below")).unwrap();
    write(&directory.join("below"), "good.db", "base64", LINES);
    symlink(outside.join("secret.db"), directory.join("link.db")).unwrap();
    symlink(&outside, directory.join("way")).unwrap();
    symlink("good.db", directory.join("inside.db")).unwrap();
    succeed(Command::new("mkfifo").arg(directory.join("pipe.db")));

    let absolute = directory.join("good.db").display().to_string();
    for path in ["good.db", "below/good.db", "./below/./good.db", &absolute] {
        session.run(&format!("select steadytext_cache_import('{path}')"));
    }
    let (base, secret) = (directory.display(), outside.join("secret.db").display().to_string());
    for (path, code) in [
        ("../outside/secret.db".to_owned(), "42501"),
        ("below/../../outside/secret.db".to_owned(), "42501"),
        ("below/../good.db".to_owned(), "42501"),
        (format!("{base}/../outside/secret.db"), "42501"),
        (format!("{base}/below/../../outside/secret.db"), "42501"),
        (secret, "42501"),
        ("/etc/passwd".to_owned(), "42501"),
        ("link.db".to_owned(), "42501"),
        ("inside.db".to_owned(), "42501"),
        ("way/secret.db".to_owned(), "42809"),
        ("good.db/good.db".to_owned(), "42809"),
        ("pipe.db".to_owned(), "42809"),
        ("below".to_owned(), "42809"),
        (".".to_owned(), "42501"),
        ("".to_owned(), "42501"),
        ("missing.db".to_owned(), "58P01"),
        ("missing/good.db".to_owned(), "58P01"),
    ] {
        let error = session.query_one("select * from steadytext_cache_import($1)", &[&path]).unwrap_err();
        assert_eq!(sqlstate_of(&error), code, "import from {path}: {error}");
        if path != "missing.db" {
            let error = session
                .query_one("select * from steadytext_cache_export($1, replace => true)", &[&path])
                .unwrap_err();
            assert_eq!(sqlstate_of(&error), code, "export to {path}: {error}");
        }
    }
    assert_eq!(session.one::<i64>("select count(*) from steadytext_cache"), 4, "what was imported");
    // The data directory is nothing to exchange files through.
    cluster.configure("pg_steadytext.exchange_dir", ".");
    cluster.reload();
    wait_until("the setting is there", || session.one::<String>("show pg_steadytext.exchange_dir") == ".");
    assert_eq!(
        session.error("select steadytext_cache_export('postgresql.conf', true)").code().code(),
        "22023"
    );
}

#[test]
fn an_export_replaces_cache_files_only_and_only_when_it_may() {
    let (_cluster, mut session, directory) = start();
    session.run("select steadytext_cache_export('a.db')");
    assert_eq!(session.error("select steadytext_cache_export('a.db')").code().code(), "58P02");
    session.run("select steadytext_cache_export('a.db', replace => true)");
    std::fs::write(directory.join("notes"), "not a cache file").unwrap();
    // Others may write there: readable by the server is enough.
    let error = session.error("select steadytext_cache_export('notes', replace => true)");
    assert_eq!(error.code().code(), "42809");
    assert_eq!(std::fs::read_to_string(directory.join("notes")).unwrap(), "not a cache file");
    let mut names: Vec<_> =
        std::fs::read_dir(&directory).unwrap().map(|file| file.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["a.db", "notes"], "no draft is left");
}

#[test]
fn a_hostile_file_is_refused_by_name_and_nothing_of_it_is_executed() {
    let (cluster, mut session, directory) = start();
    let proof = cluster.directory().join("executed");
    let make = format!(
        "import os, pickle, sqlite3
class Call:
    def __reduce__(self): return os.system, ('touch {proof}',)
db = sqlite3.connect('{}')
db.execute('create table cache (key text primary key, value blob, frequency integer, last_access integer, size integer)')
db.execute('insert into cache values (?, ?, 1, 1, 1)', ('evil', pickle.dumps(Call())))
db.execute('insert into cache values (?, ?, 1, 1, 1)', ('good', pickle.dumps('answer')))
db.commit()",
        directory.join("evil.db").display(),
        proof = proof.display(),
    );
    succeed(Command::new("python3").args(["-c", &make]));
    session.notices();
    let row = session.query_one("select * from steadytext_cache_import('evil.db')", &[]).unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(2)), (1, 1));
    let said: String = session.notices().iter().map(|notice| notice.message().to_owned()).collect();
    assert!(said.contains("posix.system") && !said.contains("touch"), "{said}");
    assert!(!proof.exists());

    // The server's worker and sessions live through whatever is in a file.
    let original = std::fs::read(directory.join("evil.db")).unwrap();
    let mut state = 1_u64;
    for round in 0..200 {
        let mut bytes = original.clone();
        for _ in 0..8 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = (state >> 33) as usize % bytes.len();
            bytes[at] = (state >> 20) as u8;
            if round % 5 == 0 {
                bytes.truncate(at.max(1));
            }
        }
        std::fs::write(directory.join("mutant.db"), bytes).unwrap();
        if let Err(error) = session.query("select * from steadytext_cache_import('mutant.db', true)", &[]) {
            assert_eq!(sqlstate_of(&error), "XX001", "{error}");
        }
    }
    std::fs::write(directory.join("text.db"), "no database").unwrap();
    assert_eq!(session.error("select steadytext_cache_import('text.db')").code().code(), "XX001");
    assert!(!proof.exists());
    assert!(!cluster.log().contains("PANIC") && !cluster.log().contains("terminated by signal"));
}

#[test]
fn ten_thousand_entries_are_imported_within_five_seconds_of_processor_time_and_exported_again() {
    let (cluster, mut session, directory) = start();
    let vector: Vec<String> = (0..1024).map(|i| format!("0.{:03}", i % 997 + 1)).collect();
    let mut lines = String::new();
    for i in 0..5_000 {
        lines += &format!(
            "{{\"key\": \"prompt {i}\", \"value\": \"{}\", \"last_access\": 1753000000000000}}\n",
            format!("answer {i} ").repeat(30)
        );
        lines += &format!(
            "{{\"key\": [\"text {i}\"], \"value\": [{i}.5,{}], \"last_access\": 1753000000000000}}\n",
            vector[1..].join(",")
        );
    }
    write(&directory, "large.db", "base64", &lines);
    let backend = session.backend_pid();
    let (start, before) = (Instant::now(), processor_time(backend));
    assert_eq!(session.one::<i64>("select imported from steadytext_cache_import('large.db')"), 10_000);
    // Of the clock's time, a busy machine gives others the most.
    let (took, used) = (start.elapsed(), processor_time(backend) - before);
    assert!(used < Duration::from_secs(5), "the import took {used:?} of processor time");
    let start = Instant::now();
    assert_eq!(session.one::<i64>("select exported from steadytext_cache_export('again.db')"), 10_000);
    eprint_times(took, start.elapsed());

    // Cancelled in the middle, nothing stays behind: no entry, no file.
    session.run("set statement_timeout = '50ms'");
    let error = session.error("select steadytext_cache_export('not.db')");
    assert_eq!(error.message(), "canceling statement due to statement timeout");
    session.run("reset statement_timeout; truncate steadytext_cache");
    session.run("set statement_timeout = '50ms'");
    let error = session.error("select steadytext_cache_import('large.db')");
    assert_eq!(error.message(), "canceling statement due to statement timeout");
    session.run("reset statement_timeout");
    let mut names: Vec<_> =
        std::fs::read_dir(&directory).unwrap().map(|file| file.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["again.db", "large.db"]);
    assert_eq!(session.one::<i64>("select count(*) from steadytext_cache"), 0);
    let left = std::fs::read_dir(cluster.data().join("base/pgsql_tmp")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "temporary files are gone");
}

/// The processor time of a process so far.
fn processor_time(pid: i32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // Behind the name, which may hold anything: state is the third field, user and system time the 14th and
    // 15th, in hundredths.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks = |field: usize| fields[field - 3].parse::<u64>().unwrap();
    Duration::from_millis(10 * (ticks(14) + ticks(15)))
}

#[allow(clippy::print_stderr, reason = "a measurement")]
fn eprint_times(imported: Duration, exported: Duration) {
    eprintln!("10,000 entries: imported in {imported:?}, exported in {exported:?}");
}

fn succeed(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}
