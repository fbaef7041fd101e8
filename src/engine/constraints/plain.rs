//! A schema in plain form: references by identifiers, anchors and relative addresses become pointers from its
//! root, and identifiers are removed. All later readers of the schema then find the same parts in the same
//! way.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::invalid;
use crate::Error;

/// Keywords whose value is a schema.
const SCHEMAS: [&str; 13] = [
    "not",
    "if",
    "then",
    "else",
    "items",
    "additionalItems",
    "contains",
    "unevaluatedItems",
    "additionalProperties",
    "propertyNames",
    "unevaluatedProperties",
    "extends",
    "disallow",
];
/// Keywords whose value is, or may be, a list of schemas.
const LISTS: [&str; 5] = ["allOf", "anyOf", "oneOf", "prefixItems", "items"];
/// Keywords whose value maps names to schemas.
const MAPS: [&str; 6] =
    ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"];
/// Keywords that name a schema, or change the meaning of its references.
const NAMES: [&str; 5] = ["$id", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "id"];
/// Known drafts, without the scheme and an empty fragment.
const DRAFTS: [&str; 5] = [
    "//json-schema.org/draft-04/schema",
    "//json-schema.org/draft-06/schema",
    "//json-schema.org/draft-07/schema",
    "//json-schema.org/draft/2019-09/schema",
    "//json-schema.org/draft/2020-12/schema",
];
/// Most bytes of all pointers to the schemas inside a schema.
const MAX_BYTES: usize = 16 << 20;

/// The draft of an address: without a fragment, with the scheme that drafts have.
pub(super) fn draft(address: &str) -> Option<String> {
    let bare = address.trim_end_matches('#');
    let bare = bare.strip_prefix("https:").or_else(|| bare.strip_prefix("http:"))?;
    let index = DRAFTS.iter().position(|draft| *draft == bare)?;
    Some(format!("{}{}", if index < 3 { "http:" } else { "https:" }, DRAFTS[index]))
}

/// Whether a reference is to the schema of a draft, or to a part of that.
pub(super) fn is_draft(reference: &str) -> bool {
    reference.split('#').next().is_some_and(|address| draft(address).is_some())
}

/// Makes a schema plain.
///
/// # Errors
/// [`Error::InvalidRequest`] for references that lead out of it, or to parts that do not exist.
pub(super) fn plain(mut schema: Value) -> Result<Value, Error> {
    let mut survey = Survey::default();
    survey.walk(&schema, String::new(), "");
    let mut rewritten: Vec<(String, Option<String>)> = Vec::new();
    let mut done = 0;
    while let Some((pointer, base)) = survey.found.get(done).cloned() {
        done += 1;
        let Some(Value::Object(keywords)) = schema.pointer(&pointer) else { continue };
        let reference =
            ["$ref", "$dynamicRef", "$recursiveRef"].into_iter().find_map(|name| keywords.get(name));
        let mut target = None;
        if let Some(Value::String(reference)) = reference
            && !is_draft(reference)
        {
            let found = survey.target(&schema, &base, reference)?;
            // A part that no keyword leads to is a schema as well, if a reference leads to it.
            if !survey.seen.contains(&found) {
                let part = schema.pointer(&found).unwrap_or(&Value::Null);
                survey.walk(part, found.clone(), &base);
            }
            target = Some(format!("#{}", escaped(&found)));
        }
        rewritten.push((pointer, target));
    }
    if survey.bytes > MAX_BYTES {
        return invalid("the schema has too many parts, and too deep");
    }
    for (pointer, target) in rewritten {
        let Some(Value::Object(keywords)) = schema.pointer_mut(&pointer) else { continue };
        for name in NAMES {
            // A name with a value of another type is no keyword here.
            if keywords.get(name).is_some_and(|value| value.is_string() || value.is_boolean()) {
                keywords.shift_remove(name);
            }
        }
        if let Some(target) = target {
            for name in ["$dynamicRef", "$recursiveRef"] {
                keywords.shift_remove(name);
            }
            keywords.insert("$ref".to_owned(), Value::String(target));
        }
        let known = keywords.get("$schema").and_then(Value::as_str).and_then(draft);
        keywords.shift_remove("$schema");
        if let Some(draft) = known.filter(|_| pointer.is_empty()) {
            keywords.insert("$schema".to_owned(), Value::String(draft));
        }
    }
    Ok(schema)
}

/// The schemas inside a schema, and their names.
#[derive(Default)]
struct Survey {
    /// Their pointers, with the base addresses of references in them.
    found: Vec<(String, String)>,
    seen: HashSet<String>,
    /// Bytes of all pointers found.
    bytes: usize,
    /// Pointers by address, with an anchor where there is one.
    names: HashMap<String, String>,
    /// The pointer to the schema that an address names, which pointers in references start from.
    roots: HashMap<String, String>,
}

impl Survey {
    /// Recurses as deep as the schema is nested.
    fn walk(&mut self, schema: &Value, pointer: String, base: &str) {
        self.bytes += pointer.len() + base.len();
        if self.bytes > MAX_BYTES || !self.seen.insert(pointer.clone()) {
            return;
        }
        let Value::Object(keywords) = schema else { return };
        let mut base = base.to_owned();
        let id = ["$id", "id"].into_iter().find_map(|name| keywords.get(name)).and_then(Value::as_str);
        if let Some(id) = id {
            let (address, anchor) = id.split_once('#').unwrap_or((id, ""));
            if !address.is_empty() {
                base = resolved(&base, address);
                self.roots.entry(base.clone()).or_insert_with(|| pointer.clone());
            }
            if !anchor.is_empty() {
                self.names.entry(format!("{base}#{anchor}")).or_insert_with(|| pointer.clone());
            }
        }
        if pointer.is_empty() {
            self.roots.entry(base.clone()).or_default();
            self.roots.entry(String::new()).or_default();
        }
        for name in ["$anchor", "$dynamicAnchor"] {
            if let Some(Value::String(anchor)) = keywords.get(name) {
                self.names.entry(format!("{base}#{anchor}")).or_insert_with(|| pointer.clone());
            }
        }
        self.found.push((pointer.clone(), base.clone()));
        for (keyword, value) in keywords {
            let inside = |rest: &str| format!("{pointer}/{}{rest}", segment(keyword));
            match value {
                Value::Object(members) if MAPS.contains(&keyword.as_str()) => {
                    for (key, member) in members {
                        self.walk(member, inside(&format!("/{}", segment(key))), &base);
                    }
                }
                Value::Array(items) if LISTS.contains(&keyword.as_str()) => {
                    for (index, item) in items.iter().enumerate() {
                        self.walk(item, inside(&format!("/{index}")), &base);
                    }
                }
                _ if SCHEMAS.contains(&keyword.as_str()) => self.walk(value, inside(""), &base),
                _ => {}
            }
        }
    }

    /// The pointer to the target of a reference.
    fn target(&self, schema: &Value, base: &str, reference: &str) -> Result<String, Error> {
        let (address, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        let address = if address.is_empty() { base.to_owned() } else { resolved(base, address) };
        let Some(root) = self.roots.get(&address) else {
            return invalid("the schema refers to something that is not part of it");
        };
        let fragment = unescaped(fragment);
        let found = if fragment.is_empty() {
            Some(root.clone())
        } else if fragment.starts_with('/') {
            let whole = format!("{root}{fragment}");
            // A pointer may also start from the root of the whole schema, where a part with an identifier of
            // its own was embedded without changing its references.
            [whole, fragment].into_iter().find(|pointer| schema.pointer(pointer).is_some())
        } else {
            self.names.get(&format!("{address}#{fragment}")).cloned()
        };
        found.map_or_else(|| invalid("the schema refers to a part of it that is not there"), Ok)
    }
}

/// A key as part of a pointer.
fn segment(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

/// A pointer as part of a URI.
fn escaped(pointer: &str) -> String {
    let mut text = String::with_capacity(pointer.len());
    for byte in pointer.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b'$' => {
                text.push(char::from(byte));
            }
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

/// A part of a URI with its percent signs decoded. If that is not UTF-8, no part has such a name.
pub(super) fn unescaped(pointer: &str) -> String {
    let bytes = pointer.as_bytes();
    let mut text = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%').then(|| pointer.get(at + 1..at + 3)).flatten();
        match escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                text.push(byte);
                at += 3;
            }
            None => {
                text.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// An address that is relative to another, without their fragments.
fn resolved(base: &str, address: &str) -> String {
    let scheme = |text: &str| {
        let end = text.find(':')?;
        let letters = text[..end].bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
        (letters && text.starts_with(|first: char| first.is_ascii_alphabetic())).then_some(end + 1)
    };
    let Some(scheme_end) = scheme(base) else { return address.to_owned() };
    if scheme(address).is_some() {
        return address.to_owned();
    }
    if address.starts_with("//") {
        return format!("{}{address}", &base[..scheme_end]);
    }
    let authority = base[scheme_end..]
        .strip_prefix("//")
        .map_or(scheme_end, |rest| scheme_end + 2 + rest.find('/').unwrap_or(rest.len()));
    let path = if address.starts_with('/') {
        address.to_owned()
    } else {
        let directory = base[authority..].rfind('/').map_or("/", |end| &base[authority..=authority + end]);
        format!("{directory}{address}")
    };
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/').skip(1) {
        match part {
            "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("{}/{}", &base[..authority], parts.join("/"))
}

/// Visits a schema and the schemas inside it, the outer ones first.
pub(super) fn visit(schema: &mut Value, see: &mut impl FnMut(&mut Map<String, Value>)) {
    let Value::Object(keywords) = schema else { return };
    see(keywords);
    for (keyword, value) in keywords.iter_mut() {
        match value {
            Value::Object(members) if MAPS.contains(&keyword.as_str()) => {
                members.values_mut().for_each(|member| visit(member, see));
            }
            Value::Array(items) if LISTS.contains(&keyword.as_str()) => {
                items.iter_mut().for_each(|item| visit(item, see));
            }
            value if SCHEMAS.contains(&keyword.as_str()) => visit(value, see),
            _ => {}
        }
    }
}

/// The schemas directly inside a schema, each with the keyword that it belongs to.
pub(super) fn inside<'a>(schema: &'a Value, see: &mut impl FnMut(&'a str, &'a Value)) {
    let Value::Object(keywords) = schema else { return };
    for (keyword, value) in keywords {
        match value {
            Value::Object(members) if MAPS.contains(&keyword.as_str()) => {
                members.values().for_each(|member| see(keyword, member));
            }
            Value::Array(items) if LISTS.contains(&keyword.as_str()) => {
                items.iter().for_each(|item| see(keyword, item));
            }
            value if SCHEMAS.contains(&keyword.as_str()) => see(keyword, value),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{draft, plain, resolved};

    #[test]
    fn addresses_are_resolved_as_uris_are() {
        for (base, address, expected) in [
            ("https://a.b/c/d.json", "e", "https://a.b/c/e"),
            ("https://a.b/c/d.json", "/e", "https://a.b/e"),
            ("https://a.b/c/d.json", "../e", "https://a.b/e"),
            ("https://a.b", "e", "https://a.b/e"),
            ("https://a.b/c", "//x/y", "https://x/y"),
            ("https://a.b/c", "urn:x", "urn:x"),
            ("", "e.json", "e.json"),
        ] {
            assert_eq!(resolved(base, address), expected, "{base} {address}");
        }
    }

    #[test]
    fn references_become_pointers_and_identifiers_go() {
        let schema = json!({
            "$schema": "http://json-schema.org/draft-07/schema",
            "$id": "https://a.b/root.json",
            "properties": {
                "id": { "$ref": "other.json#/properties/x" },
                "anchor": { "$ref": "#here" },
                "elsewhere": { "$ref": "#/x-parts/a~1b" },
                "draft": { "$ref": "http://json-schema.org/draft-07/schema#" }
            },
            "$defs": {
                "a": { "$id": "other.json", "properties": { "x": { "$ref": "#/properties/y" }, "y": true } },
                "b": { "$anchor": "here", "type": "null" }
            },
            "x-parts": { "a/b": { "$ref": "#" } }
        });
        let expected = json!({
            "$schema": "http://json-schema.org/draft-07/schema",
            "properties": {
                "id": { "$ref": "#/$defs/a/properties/x" },
                "anchor": { "$ref": "#/$defs/b" },
                "elsewhere": { "$ref": "#/x-parts/a~1b" },
                "draft": { "$ref": "http://json-schema.org/draft-07/schema#" }
            },
            "$defs": {
                "a": { "properties": { "x": { "$ref": "#/$defs/a/properties/y" }, "y": true } },
                "b": { "type": "null" }
            },
            "x-parts": { "a/b": { "$ref": "#" } }
        });
        assert_eq!(plain(schema).unwrap(), expected);
        for reference in ["https://a.b/other", "#nowhere", "#/properties/a"] {
            assert!(plain(json!({ "$ref": reference })).is_err(), "{reference}");
        }
        assert_eq!(
            draft("https://json-schema.org/draft/2020-12/schema#").unwrap(),
            "https://json-schema.org/draft/2020-12/schema"
        );
        assert_eq!(draft("http://json-schema.org/draft-03/schema"), None);
    }

    #[test]
    fn long_names_of_many_parts_are_too_much() {
        let parts = (0..5000).map(|i| (i.to_string(), json!({}))).collect::<serde_json::Map<_, _>>();
        let schema = json!({ "properties": { "x".repeat(100_000): { "properties": parts } } });
        assert!(plain(schema).is_err());
    }
}
