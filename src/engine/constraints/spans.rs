//! The place of a part of a document in its text.

use std::ops::Range;

/// The bytes of the value that a pointer leads to, or of the last existing value on its path. The text is a
/// valid document.
pub(super) fn span(text: &str, pointer: &str) -> Range<usize> {
    let bytes = text.as_bytes();
    let mut at = skip_space(bytes, 0);
    for part in pointer.split('/').skip(1) {
        let part = part.replace("~1", "/").replace("~0", "~");
        let Some(next) = inside(text, at, &part) else { break };
        at = next;
    }
    at..end(bytes, at)
}

/// The beginning of the member or item of a value.
fn inside(text: &str, start: usize, part: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let open = *bytes.get(start)?;
    let mut at = skip_space(bytes, start + 1);
    let mut index = 0;
    while at < bytes.len() && !matches!(bytes[at], b'}' | b']') {
        let found = match open {
            b'{' => {
                let key = at..end(bytes, at);
                at = skip_space(bytes, key.end) + 1;
                serde_json::from_str::<String>(text.get(key)?).ok()? == part
            }
            b'[' => part.parse() == Ok(index),
            _ => return None,
        };
        at = skip_space(bytes, at);
        if found {
            return Some(at);
        }
        at = skip_space(bytes, end(bytes, at));
        if bytes.get(at) == Some(&b',') {
            at = skip_space(bytes, at + 1);
        }
        index += 1;
    }
    None
}

/// The end of the value that begins at a place.
fn end(bytes: &[u8], start: usize) -> usize {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for (at, byte) in bytes.iter().enumerate().skip(start) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => {
                in_string = !in_string;
                if !in_string && depth == 0 {
                    return at + 1;
                }
            }
            _ if in_string => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth <= 1 => return if depth == 1 { at + 1 } else { at },
            b'}' | b']' => depth -= 1,
            b',' | b':' | b' ' | b'\t' | b'\n' | b'\r' if depth == 0 => return at,
            _ => {}
        }
    }
    bytes.len()
}

fn skip_space(bytes: &[u8], mut at: usize) -> usize {
    while bytes.get(at).is_some_and(u8::is_ascii_whitespace) {
        at += 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::span;

    #[test]
    fn each_part_is_found_in_the_text() {
        let text = r#"{"a": [1, {"b/c": "x\"]y"}, [true , null]], "~": -1.5e3}"#;
        for (pointer, part) in [
            ("", text),
            ("/a/0", "1"),
            ("/a/1", r#"{"b/c": "x\"]y"}"#),
            ("/a/1/b~1c", r#""x\"]y""#),
            ("/a/2/0", "true"),
            ("/a/2/1", "null"),
            ("/~0", "-1.5e3"),
            // The last value on the path that exists.
            ("/a/2/7", "[true , null]"),
            ("/b", text),
        ] {
            assert_eq!(&text[span(text, pointer)], part, "{pointer}");
        }
    }
}
