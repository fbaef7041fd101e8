//! Every name that a hint gives its reader is the name of something: a function, a setting, a table, a column
//! or a role of this extension.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use steadytext_test_server::{Cluster, Session};

/// Names in hints that are not the extension's: settings of PostgreSQL come from its catalog, these from
/// elsewhere.
const OF_OTHERS: [&str; 5] =
    ["tokenizer.chat_template", "gguf_convert_endian.py", "in_stock", "cron.database_name", "s_status"];

/// A text in a source, with the place where it is.
struct Text {
    place: String,
    text: String,
}

fn files(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("our own directory") {
        let path = entry.expect("our own directory").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if path.is_dir() && name != "tests" {
            files(&path, ending, found);
        } else if name.ends_with(ending) && name != "tests.rs" {
            found.push(path);
        }
    }
}

/// The texts behind what makes a hint of them. `quote` is what stands around a text; `escape` says how many
/// bytes stand for the one at their beginning, which ends no text.
fn hints(
    source: &str,
    quote: char,
    escape: fn(&str) -> usize,
    begins: fn(&str) -> bool,
) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(start) = source[at..].find(quote).map(|start| at + start + quote.len_utf8()) {
        let mut end = start;
        while let Some(rest) = source.get(end..).filter(|rest| !rest.is_empty()) {
            let skipped = escape(rest);
            if skipped == 0 && rest.starts_with(quote) {
                break;
            }
            end += skipped.max(rest.chars().next().map_or(1, char::len_utf8));
        }
        let text = source.get(start..end).unwrap_or_default();
        // Of some characters, what a text is given to, and what it is formatted by.
        let before: String =
            source[..start - 1].chars().rev().take(160).collect::<Vec<_>>().into_iter().rev().collect();
        // Statements of SQL are no hints, wherever they stand.
        if text.contains(' ') && !text.contains("pg_catalog.") && begins(&before) {
            found.push((source[..start].lines().count(), text.to_owned()));
        }
        at = end + 1;
        if at >= source.len() {
            break;
        }
    }
    found
}

/// The code of a file without comments, which have quotes of their own, and without the characters that are
/// written as one.
fn code(source: &str, comment: &str) -> String {
    let lines = source.lines().map(|line| match line.trim_start().starts_with(comment) {
        true => "",
        false => line,
    });
    lines.collect::<Vec<_>>().join("\n").replace("'\"'", "'x'")
}

fn of_rust(root: &Path) -> Vec<Text> {
    let mut all = Vec::new();
    files(&root.join("src"), ".rs", &mut all);
    let escape = |rest: &str| if rest.starts_with('\\') { 2 } else { 0 };
    let begins = |before: &str| {
        let before = before.trim_end().trim_end_matches("format!(").trim_end();
        ["hint(", "Some(", "hint =", "=>", "{"].iter().any(|mark| before.ends_with(mark))
    };
    read(root, all, "//", "#[cfg(test)]", '"', escape, begins)
}

fn of_sql(root: &Path) -> Vec<Text> {
    let mut all = Vec::new();
    files(&root.join("sql"), ".sql", &mut all);
    let escape = |rest: &str| if rest.starts_with("''") { 2 } else { 0 };
    let begins = |before: &str| {
        before.rsplit("hint").next().is_some_and(|after| after.len() < before.len() && !after.contains(';'))
    };
    read(root, all, "--", "\0", '\'', escape, begins)
}

fn read(
    root: &Path,
    files: Vec<PathBuf>,
    comment: &str,
    end: &str,
    quote: char,
    escape: fn(&str) -> usize,
    begins: fn(&str) -> bool,
) -> Vec<Text> {
    let mut texts = Vec::new();
    for path in files {
        let source = fs::read_to_string(&path).expect("our own file");
        let source = source.split(end).next().unwrap_or_default();
        let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
        let found = hints(&code(source, comment), quote, escape, begins);
        texts.extend(found.into_iter().map(|(line, text)| Text { place: format!("{name}:{line}"), text }));
    }
    texts
}

/// Words of several parts, as names are written, and whether they are called; parameters that calls name,
/// with the function.
fn names(text: &str) -> Vec<(String, bool)> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(is_part) {
        let end = rest[start..].find(|c: char| !is_part(c)).map_or(rest.len(), |end| start + end);
        let word = rest[start..end].trim_matches('.');
        // A word that begins or ends with a placeholder is no name yet.
        let is_open =
            rest[..start].ends_with(['{', '%', '-', '$']) || rest[end..].starts_with(['{', '%', '*', '…']);
        let is_name = word.contains('_') && word.chars().all(|c| !c.is_ascii_uppercase());
        if is_name && !is_open && !word.starts_with('_') && !word.ends_with('_') {
            found.push((word.to_owned(), rest[end..].starts_with('(')));
        }
        rest = &rest[end..];
    }
    found
}

/// Parameters that a hint gives a function: `name(…, parameter => value)`.
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("(…, ") {
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let name: String = text[..at]
            .chars()
            .rev()
            .take_while(|c| is_part(*c))
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
            .collect();
        let inside = text[at..].split(')').next().unwrap_or_default();
        for part in inside
            .split(" => ")
            .collect::<Vec<_>>()
            .split_last()
            .map(|(_, parts)| parts.to_vec())
            .unwrap_or_default()
        {
            let parameter = part.rsplit(|c: char| !is_part(c)).next().unwrap_or_default();
            found.push((name.clone(), parameter.to_owned()));
        }
    }
    found
}

fn catalog(session: &mut Session) -> (BTreeSet<String>, BTreeSet<String>, BTreeSet<String>) {
    let functions = session.list::<String>(
        "select proname::text from pg_proc join pg_namespace as n on n.oid = pronamespace where n.nspname in ('public', 'steadytext', 'pg_catalog')",
    );
    let others = session.list::<String>(
        "select relname::text from pg_class
         union select attname::text from pg_attribute where attnum > 0
         union select rolname::text from pg_roles
         union select name from pg_settings
         union select substr(name, 15) from pg_settings where name like 'pg_steadytext.%'
         union select key from steadytext_config
         union select unnest(proargnames) from pg_proc
         union select nspname::text from pg_namespace
         union select extname::text from pg_extension
         union select word from unnest(array['pg_hba', 'pg_hba.conf', 'pg_steadytext_models', 'pg_dump', 'pg_cron']) as word",
    );
    let parameters = session.list::<String>(
        "select proname || '.' || parameter from pg_proc, unnest(proargnames) as parameter where pronamespace = 'public'::regnamespace",
    );
    (functions.into_iter().collect(), others.into_iter().collect(), parameters.into_iter().collect())
}

#[test]
fn every_name_in_a_hint_is_that_of_something() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    let (functions, others, of_functions) = catalog(&mut session);
    let (rust, sql) = (of_rust(&root), of_sql(&root));
    // Neither reader has lost its way.
    assert!(rust.len() > 300 && sql.len() > 150, "{} and {} hints", rust.len(), sql.len());
    for (of, text) in [
        (&rust, "steadytext_set_limit()"),
        (&rust, "Raise pg_steadytext.memory_limit_mb"),
        (&sql, "Drop the vectorizer and make another one."),
    ] {
        assert!(of.iter().any(|found| found.text.contains(text)), "{text}");
    }
    let mut wrong = Vec::new();
    let mut looked_at = 0;
    for Text { place, text } in rust.iter().chain(&sql) {
        for (name, is_called) in names(text) {
            looked_at += 1;
            let name = name.strip_prefix("steadytext.").unwrap_or(&name).to_owned();
            // Types of requests are called as the functions are that make them.
            let is_plain =
                !is_called && (others.contains(&name) || functions.contains(&format!("steadytext_{name}")));
            let is_there = functions.contains(&name) || is_plain || OF_OTHERS.contains(&&*name);
            if !is_there {
                wrong.push(format!("{place}: {name} in \"{text}\""));
            }
        }
        for (function, parameter) in parameters(text) {
            if function.starts_with("steadytext_")
                && !of_functions.contains(&format!("{function}.{parameter}"))
            {
                wrong.push(format!("{place}: {function} has no parameter {parameter}"));
            }
        }
    }
    assert!(looked_at > 200, "{looked_at} names");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
