//! JSON as it is written.
//!
//! Invariant: this file knows nothing of requests: a test compiles it by itself.

use serde::de::IgnoredAny;

/// The elements of an array that is known to be JSON, as they are written.
pub(crate) fn elements(json: &str) -> Vec<&str> {
    let inside = json.trim().strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or_default();
    let (mut elements, mut begin, mut depth) = (Vec::new(), 0, 0_usize);
    let (mut in_string, mut escaped) = (false, false);
    for (at, byte) in inside.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            b',' if depth == 0 => {
                elements.push(inside[begin..at].trim());
                begin = at + 1;
            }
            _ => {}
        }
    }
    elements.push(inside[begin..].trim());
    elements.retain(|element| !element.is_empty());
    elements
}

/// The document without the character that jsonb cannot have; `None` for what is no document. All else stays
/// as it was written, numbers with as many digits as they have.
pub(crate) fn without_zeros(document: &str) -> Option<String> {
    const ZERO: &str = "\\u0000";
    if !document.contains(ZERO) {
        return Some(document.to_owned());
    }
    serde_json::from_str::<IgnoredAny>(document).ok()?;
    let (mut kept, mut rest) = (String::with_capacity(document.len()), document);
    // A backslash stands inside of strings only, and takes at least one character along.
    while let Some(at) = rest.find('\\') {
        kept.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(behind) = rest.strip_prefix(ZERO) {
            rest = behind;
            continue;
        }
        let end = rest.char_indices().nth(2).map_or(rest.len(), |(end, _)| end);
        kept.push_str(&rest[..end]);
        rest = &rest[end..];
    }
    kept.push_str(rest);
    Some(kept)
}
