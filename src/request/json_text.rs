//! JSON as it is written.
//!
//! Invariant: this file knows nothing of requests: a test compiles it by itself.

use serde_json::Value;

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

/// The document without the character that jsonb cannot have; `None` for what is no document. What has none of it stays as it was written.
pub(crate) fn without_zeros(document: &str) -> Option<String> {
    if !document.contains("\\u0000") {
        return Some(document.to_owned());
    }
    let mut value: Value = serde_json::from_str(document).ok()?;
    remove_zeros(&mut value);
    Some(value.to_string())
}

fn remove_zeros(value: &mut Value) {
    match value {
        Value::String(text) => text.retain(|character| character != '\0'),
        Value::Array(elements) => elements.iter_mut().for_each(remove_zeros),
        Value::Object(members) => {
            let names: Vec<String> = members.keys().filter(|name| name.contains('\0')).cloned().collect();
            for name in names {
                if let Some(member) = members.remove(&name) {
                    members.insert(name.replace('\0', ""), member);
                }
            }
            members.values_mut().for_each(remove_zeros);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
