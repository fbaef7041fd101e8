//! Round trips with Python's own pickle and sqlite3, by the script in test/exchange.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use steadytext_exchange::file::{CacheFileEntry, Error, Reader, Writer};
use steadytext_exchange::key::{Coding, Key};
use steadytext_exchange::pickle::PickleValue;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../test/exchange/steadytext_cache.py");
const KINDS: [&str; 4] = ["float32", "float64", "readonly", "list"];

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

fn read(path: &Path) -> Vec<CacheFileEntry> {
    let mut entries = Vec::new();
    let reader = Reader::open(path, || false).unwrap();
    reader
        .read(|row| {
            entries.push(row.expect("every row is an entry"));
            Ok::<(), Error>(())
        })
        .unwrap();
    entries
}

#[test]
fn what_python_writes_is_read_in_every_protocol_and_coding() {
    let directory = tempfile::tempdir().unwrap();
    for (coding, protocol) in ["plain", "base64"].iter().flat_map(|coding| (2..=5).map(move |p| (coding, p)))
    {
        let path = directory.path().join(format!("{coding}{protocol}.db"));
        let mut lines = format!(
            r#"{{"key": "What is a 'tuple'?\n€", "value": "A row.\n😀", "protocol": {protocol}, "frequency": 7, "last_access": 1753000000123456}}
{{"key": "a::EOS::END", "value": "", "protocol": {protocol}, "last_access": 1753000000000000}}
"#
        );
        for (index, kind) in KINDS.iter().enumerate() {
            lines += &format!(
                r#"{{"key": ["it's \"{kind}\"\t€"], "value": [0.5, -0.25, {index}.125], "as": "{kind}", "protocol": {protocol}, "last_access": 1}}
"#
            );
        }
        python(&["write", path.to_str().unwrap(), coding], &lines);
        let entries = read(&path);
        assert_eq!(entries.len(), 2 + KINDS.len());
        let first = CacheFileEntry {
            key: Key::Generation { prompt: "What is a 'tuple'?\n€".into(), eos_string: None },
            value: PickleValue::Text("A row.\n😀".into()),
            frequency: 7,
            last_access_us: 1_753_000_000_123_456,
        };
        assert_eq!(entries[0], first);
        let stopped = Key::Generation { prompt: "a".into(), eos_string: Some("END".into()) };
        assert_eq!(entries[1].key, stopped);
        for (index, (kind, entry)) in KINDS.iter().zip(&entries[2..]).enumerate() {
            assert_eq!(entry.value, PickleValue::Vector(vec![0.5, -0.25, index as f32 + 0.125]), "{kind}");
            let Key::Embedding { text, .. } = &entry.key else { panic!("{entry:?}") };
            assert_eq!(text.as_deref(), Some(&*format!("it's \"{kind}\"\t€")));
        }
    }
}

#[test]
fn python_reads_what_was_written() {
    let directory = tempfile::tempdir().unwrap();
    let long = "long ".repeat(1000);
    for (coding, keys) in [
        (Coding::Plain, [r#""('it\u20ac',)""#, r#""a::EOS::b""#]),
        (Coding::Base64, [r#""aXTigqw=""#, r#""YTo6RU9TOjpi""#]),
    ] {
        let path = directory.path().join(format!("{coding:?}.db"));
        let writer = Writer::create(&path, coding).unwrap();
        let mut sink = writer.sink().unwrap();
        let text = CacheFileEntry {
            key: Key::Generation { prompt: "a".into(), eos_string: Some("b".into()) },
            value: PickleValue::Text(long.clone()),
            frequency: 3,
            last_access_us: 1_753_000_000_000_000,
        };
        let vector = CacheFileEntry {
            key: Coding::Base64.embedding("aXTigqw=").unwrap(),
            value: PickleValue::Vector(vec![0.5, -0.25]),
            frequency: 1,
            last_access_us: 5,
        };
        sink.add(&text).unwrap();
        sink.add(&vector).unwrap();
        drop(sink);
        writer.finish().unwrap();

        let said = python(&["read", path.to_str().unwrap()], "");
        for part in [
            format!(r#""type": "str", "value": "{long}", "frequency": 3, "last_access": 1753000000000000}}"#),
            r#""type": "ndarray", "value": [0.5, -0.25], "frequency": 1, "last_access": 5}"#.to_owned(),
            format!("\"key\": {}", keys[0]),
            format!("\"key\": {}", keys[1]),
        ] {
            assert!(said.contains(&part), "{part} in {said}");
        }
    }
}
