//! Files that were written here, and malformed ones.

use std::path::PathBuf;

use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::key::Coding;
use crate::random::Random;

struct TestFolder {
    directory: TempDir,
}

impl TestFolder {
    fn new() -> Self {
        TestFolder { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A file of any schema.
    fn made_by(&self, sql: &str) -> PathBuf {
        let path = self.path("made ä?#%.db");
        let _ = std::fs::remove_file(&path);
        Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        path
    }
}

type Rows = Vec<Result<CacheFileEntry, RefusedRow>>;

fn read(path: &std::path::Path) -> Result<Rows, Error> {
    let mut rows = Vec::new();
    let reader = Reader::open(path, || false)?;
    reader.read(|row| {
        rows.push(row);
        Ok::<(), Error>(())
    })?;
    Ok(rows)
}

fn entries() -> Vec<CacheFileEntry> {
    let text = |prompt: &str, eos: Option<&str>, text: &str| CacheFileEntry {
        key: Key::Generation { prompt: prompt.into(), eos_string: eos.map(Into::into) },
        value: PickleValue::Text(text.into()),
        frequency: 3,
        last_access_us: 1_753_000_000_123_456,
    };
    let vector = |text: &str, vector: &[f32]| CacheFileEntry {
        key: Coding::Base64
            .embedding(
                &Coding::Base64.write(&Key::Embedding { digest: String::new(), text: Some(text.into()) }),
            )
            .unwrap(),
        value: PickleValue::Vector(vector.into()),
        frequency: 1,
        last_access_us: 1_753_000_000_000_000,
    };
    vec![
        text("What is a tuple?", None, "A row."),
        text("Say 'ä'", Some("\n\n"), ""),
        vector("A tuple is a row version.", &[0.6, -0.8]),
        vector("it's", &[1.0; 1024]),
    ]
}

fn write(path: &std::path::Path, coding: Coding) {
    let writer = Writer::create(path, coding).unwrap();
    let mut sink = writer.sink().unwrap();
    for entry in entries() {
        sink.add(&entry).unwrap();
    }
    drop(sink);
    writer.finish().unwrap();
}

const TABLE: &str = "create table cache (key text primary key, value blob not null, frequency integer, last_access integer not null, size integer);";

#[test]
fn what_was_written_is_read_in_both_codings() {
    let place = TestFolder::new();
    for (name, coding) in [("plain", Coding::Plain), ("base64", Coding::Base64)] {
        let path = place.path(name);
        write(&path, coding);
        assert_eq!(Reader::open(&path, || false).unwrap().coding(), coding);
        assert_eq!(read(&path).unwrap(), entries().into_iter().map(Ok).collect::<Rows>());
        assert!(Writer::create(&path, coding).is_err(), "an existing file is left alone");
    }
}

#[test]
fn a_file_of_both_codings_is_read_key_by_key() {
    let place = TestFolder::new();
    // A file of 1.0 that later versions went on with, and a digest that an export put there. "Test" is no
    // Base64 of a text.
    let digest = "6a28dd5a2df008b607f4cc2f985e93c32e490c0666ae0a0e73a4b6784860ef32";
    let path = place.made_by(&format!(
        "{TABLE} insert into cache values
            ('V2hhdCBpcyBhIHR1cGxlPw==', x'80048c0162942e', 1, 1, 5),
            ('QW5kIGEgcGFnZT8=', x'80048c0162942e', 1, 1, 5),
            ('Test', x'80048c0162942e', 1, 1, 5),
            ('{digest}', x'80045d94473fe0000000000000612e', 1, 1, 5);"
    ));
    let reader = Reader::open(&path, || false).unwrap();
    assert_eq!(reader.coding(), Coding::Base64);
    let keys: Vec<String> =
        read(&path).unwrap().into_iter().map(|row| row.unwrap().key.cache_key()).collect();
    assert_eq!(keys, ["What is a tuple?", "And a page?", "Test", digest]);
    // Only a prompt that looks like it, among others.
    let path = place.made_by(&format!(
        "{TABLE} insert into cache values ('QUJD', x'80048c0162942e', 1, 1, 5), ('a prompt', x'80048c0162942e', 1, 1, 5);"
    ));
    let keys: Vec<String> =
        read(&path).unwrap().into_iter().map(|row| row.unwrap().key.cache_key()).collect();
    assert_eq!(keys, ["QUJD", "a prompt"]);
}

#[test]
fn a_file_in_write_ahead_mode_is_read_without_a_log() {
    let place = TestFolder::new();
    let path = place.made_by(&format!(
        "pragma journal_mode = wal; {TABLE} insert into cache values ('a', x'80048c0162942e', 2, 1753000000000000, 5);"
    ));
    let before = std::fs::read(&path).unwrap();
    assert_eq!(read(&path).unwrap().len(), 1);
    assert_eq!(std::fs::read(&path).unwrap(), before);
    assert_eq!(place.directory.path().read_dir().unwrap().count(), 1, "no log, no lock file");
}

#[test]
fn each_row_that_is_no_entry_is_refused_alone_with_its_reason() {
    let place = TestFolder::new();
    let path = place.made_by(&format!(
        "{TABLE}
         insert into cache values
            ('good', x'80048c0162942e', null, 1753000000000000, 5),
            (x'00', x'80048c0162942e', 1, 1, 5),
            (null, x'80048c0162942e', 1, 1, 5),
            ('text', 'text', 1, 1, 5),
            ('none', x'80044e2e', 1, 1, 5),
            ('call', x'8004636f730a73797374656d0a2e', 1, 1, 5),
            ('often', x'80048c0162942e', 'often', 1, 5),
            ('when', x'80048c0162942e', 1, 'when', 5),
            ('x::TEMP::0.5', x'80048c0162942e', 1, 1, 5),
            ('seconds', x'80048c0162942e', -7, 1753000000, 5),
            ('milliseconds', x'80048c0162942e', 9, 1753000000000, 5),
            ('fraction', x'80048c0162942e', 9, 1753000000.5, 5);"
    ));
    let rows = read(&path).unwrap();
    let said: Vec<String> =
        rows.iter().filter_map(|row| row.as_ref().err()).map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "row 2: column key is of another type",
            "row 3: column key is of another type",
            "row 4: column value is of another type",
            "row 5: the pickle holds None, neither a text nor a vector of floats",
            "row 6: the pickle names os.system by GLOBAL, which texts and vectors do not need",
            "row 7: column frequency is of another type",
            "row 8: column last_access is of another type",
            "row 9: the key is of a generation with a temperature",
        ]
    );
    let read: Vec<(i64, i64)> =
        rows.iter().flatten().map(|entry| (entry.frequency, entry.last_access_us)).collect();
    assert_eq!(
        read,
        [
            (1, 1_753_000_000_000_000),
            (1, 1_753_000_000_000_000),
            (9, 1_753_000_000_000_000),
            (9, 1_753_000_000_500_000)
        ]
    );
}

#[test]
fn only_a_plain_table_is_read() {
    let place = TestFolder::new();
    let columns = "'k' as key, x'80048c0162942e' as value, 1 as frequency, 1 as last_access";
    for sql in [
        String::new(),
        format!("create view cache as select {columns};"),
        "create virtual table cache using fts5 (key, value, frequency, last_access);".to_owned(),
        "create table cache (key, value, frequency);".to_owned(),
        "create table cache (key, value blob as (zeroblob(1000000)), frequency, last_access);".to_owned(),
        "create table cache (key, value blob as (x'4e2e') stored, frequency, last_access);".to_owned(),
    ] {
        let path = place.made_by(&sql);
        assert!(matches!(read(&path), Err(Error::NoTable | Error::Sqlite(_))), "{sql}");
    }
    // A table without rowids has no place that could be named.
    let path = place
        .made_by("create table cache (key text primary key, value, frequency, last_access) without rowid;");
    assert!(matches!(read(&path), Err(Error::Sqlite(_))));
    std::fs::write(&path, b"no database at all, whatever its name says").unwrap();
    assert!(matches!(read(&path), Err(Error::Sqlite(_))));
    assert!(matches!(read(&place.path("missing")), Err(Error::Sqlite(_))));
}

#[test]
fn reading_stops_when_it_is_told_to() {
    let place = TestFolder::new();
    let path = place.made_by(&format!(
        "{TABLE} insert into cache
         with recursive n(i) as (select 1 union all select i + 1 from n where i < 100000)
         select 'prompt ' || i, x'80048c0162942e', 1, 1, 5 from n;"
    ));
    let asked = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = std::sync::Arc::clone(&asked);
    let stopped = Reader::open(&path, move || count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) > 5)
        .and_then(|reader| reader.read(|_| Ok::<(), Error>(())));
    assert!(matches!(stopped, Err(Error::Stopped)), "{stopped:?}");
    assert!(asked.load(std::sync::atomic::Ordering::Relaxed) < 10);
}

#[test]
fn mutated_files_do_no_harm() {
    let place = TestFolder::new();
    let path = place.path("original");
    write(&path, Coding::Base64);
    let original = std::fs::read(&path).unwrap();
    let mutant = place.path("mutant");
    let mut random = Random::new(11);
    let mut read_ones = 0;
    for _ in 0..1_000 {
        let mut bytes = original.clone();
        random.mutate(&mut bytes);
        if random.below(2) == 0 {
            // The head and the schema, where little changes much.
            let at = random.below(bytes.len().clamp(1, 600));
            if let Some(byte) = bytes.get_mut(at) {
                *byte = random.below(256) as u8;
            }
        }
        std::fs::write(&mutant, &bytes).unwrap();
        read_ones += usize::from(read(&mutant).is_ok());
    }
    assert!(read_ones > 100, "mutants that can be read: {read_ones}");
}
