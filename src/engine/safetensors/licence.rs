//! The licence of a folder, as its repository names it: its README.md begins with a block of YAML, of which
//! two lines are read.

use std::path::Path;

use super::json::bytes;

/// Most bytes of a README.md that is read; those with MTEB's results are long.
const MAX_BYTES: u64 = 4 << 20;
/// Most characters of a licence.
const MAX_CHARACTERS: usize = 512;

/// The value of `license`, or, where that is `other`, of `license_name`. None where it cannot be read.
pub(crate) fn licence(folder: &Path) -> Option<String> {
    let bytes = bytes(&folder.join("README.md"), MAX_BYTES).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines();
    if lines.next()?.trim_end() != "---" {
        return None;
    }
    let (mut licence, mut name) = (None, None);
    for line in lines.take_while(|line| line.trim_end() != "---") {
        // Indented lines belong to another key.
        licence = licence.or_else(|| value(line, "license:"));
        name = name.or_else(|| value(line, "license_name:"));
    }
    match licence.as_deref() {
        Some("other") => name.or(licence),
        _ => licence,
    }
}

/// The text behind a key.
fn value(line: &str, key: &str) -> Option<String> {
    let text = line.strip_prefix(key)?.trim().trim_matches(['"', '\'']);
    let is_word = !text.is_empty()
        && text.chars().count() <= MAX_CHARACTERS
        && !text.chars().any(char::is_control)
        && !text.starts_with(['[', '{', '|', '>', '-', '#']);
    is_word.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::licence;

    #[test]
    fn the_licence_is_what_the_block_at_the_beginning_says_and_nothing_where_it_says_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let of = |text: &str| {
            std::fs::write(folder.path().join("README.md"), text).unwrap();
            licence(folder.path())
        };
        assert_eq!(licence(folder.path()), None);
        for (text, expected) in [
            ("---\nlanguage: en\nlicense: apache-2.0\ntags:\n- x\n---\n# A model\n", Some("apache-2.0")),
            ("---\r\nlicense: 'mit'\r\n---\r\n", Some("mit")),
            ("---\nlicense: other\nlicense_name: jina\n---\n", Some("jina")),
            ("---\nlicense_name: jina\nlicense: other\n---\n", Some("jina")),
            ("---\nlicense: other\n---\nlicense_name: jina\n", Some("other")),
            ("---\nlicense:\n- mit\n---\n", None),
            ("---\nmodel:\n  license: mit\n---\n", None),
            ("# A model\nlicense: mit\n", None),
            ("---\nlicense: a\u{7}b\n---\n", None),
            ("", None),
        ] {
            assert_eq!(of(text).as_deref(), expected, "{text:?}");
        }
        assert_eq!(of(&format!("---\nlicense: {}\n---\n", "x".repeat(600))), None);
    }
}
