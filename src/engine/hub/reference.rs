//! References to models at a hub: `owner/name`, with an optional revision and file.
//!
//! Invariant: nothing of a reference can lead out of the hub's address or out of the directory of the models.
//! Names that come from repositories go through the same checks.

use std::fmt;

use super::error::HubError;

/// Characters of a reference at most.
pub const MAX_REFERENCE: usize = 512;
/// Characters of an owner, a repository's name, a revision.
const MAX_NAME: usize = 96;
/// Bytes of each folder's or file's name.
const MAX_STEP: usize = 200;
/// Folders on the way to a file.
const MAX_STEPS: usize = 8;
/// The revision where none is named.
pub(super) const MAIN: &str = "main";
/// Prefixes of references as copied from a browser, or as used on command lines.
const PREFIXES: [&str; 4] = ["https://huggingface.co/", "https://hf.co/", "hf.co/", "hf://"];

/// A model at a hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// `owner/name`.
    pub repository: String,
    /// A branch, a tag or a commit.
    pub revision: String,
    /// The path of a file in the repository, or a word for its quantization; `None` leaves the choice to us.
    pub file: Option<String>,
}

impl Reference {
    /// Reads `owner/name[@revision][:file]`, or the address of one at huggingface.co.
    ///
    /// # Errors
    /// [`HubError::Reference`].
    pub fn parse(text: &str) -> Result<Reference, HubError> {
        let wrong = |reason| HubError::Reference { reference: shown(text), reason };
        if text.chars().count() > MAX_REFERENCE {
            return Err(wrong("it is too long"));
        }
        if text.chars().any(char::is_control) {
            return Err(wrong("it has control characters"));
        }
        let copied = PREFIXES.iter().find_map(|prefix| text.strip_prefix(prefix));
        if copied.is_none() && text.contains("://") {
            return Err(wrong("addresses are understood of huggingface.co only; another hub is a setting"));
        }
        let rest = copied.unwrap_or(text);
        let address = copied.and_then(|rest| Reference::of_address(rest.split('?').next().unwrap_or(rest)));
        let reference = address.unwrap_or_else(|| Reference::of_name(rest));
        reference.check().map_err(wrong)?;
        Ok(reference)
    }

    /// A repository and a file of it, as a registry has them.
    ///
    /// # Errors
    /// [`HubError::Reference`].
    pub fn new(repository: &str, revision: Option<&str>, file: Option<&str>) -> Result<Reference, HubError> {
        let reference = Reference {
            repository: repository.to_owned(),
            revision: revision.unwrap_or(MAIN).to_owned(),
            file: file.map(str::to_owned),
        };
        match reference.check() {
            Ok(()) => Ok(reference),
            Err(reason) => Err(HubError::Reference { reference: shown(&reference.to_string()), reason }),
        }
    }

    fn of_name(text: &str) -> Reference {
        let (repository, file) = match text.split_once(':') {
            Some((repository, file)) => (repository, Some(file.to_owned())),
            None => (text, None),
        };
        let (repository, revision) = repository.split_once('@').unwrap_or((repository, MAIN));
        Reference { repository: repository.to_owned(), revision: revision.to_owned(), file }
    }

    /// `owner/name/resolve/revision/file`, as the hub's pages have it.
    fn of_address(text: &str) -> Option<Reference> {
        let mut steps = text.splitn(5, '/');
        let (owner, name, kind) = (steps.next()?, steps.next()?, steps.next()?);
        if !matches!(kind, "resolve" | "blob" | "tree") {
            return None;
        }
        let revision = steps.next()?.to_owned();
        let file = steps.next().filter(|file| !file.is_empty()).map(str::to_owned);
        Some(Reference { repository: format!("{owner}/{name}"), revision, file })
    }

    fn check(&self) -> Result<(), &'static str> {
        let Some((owner, name)) = self.repository.split_once('/') else {
            return Err("a repository is owner/name");
        };
        if !is_name(owner) || !is_name(name) {
            return Err("owner and name have letters, digits, dots, dashes and underscores only");
        }
        // Branches of pull requests have slashes: refs/pr/1.
        if self.revision.len() > MAX_NAME || !self.revision.split('/').all(is_name) {
            return Err("a revision is the name of a branch or a tag, or a commit");
        }
        match &self.file {
            Some(file) if !is_safe_path(file) => Err("its file is not a path inside of a repository"),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        if self.revision != MAIN {
            write!(f, "@{}", self.revision)?;
        }
        match &self.file {
            Some(file) => write!(f, ":{file}"),
            None => Ok(()),
        }
    }
}

fn is_name(text: &str) -> bool {
    let mut characters = text.bytes();
    characters.next().is_some_and(|first| first.is_ascii_alphanumeric() || first == b'_')
        && text.len() <= MAX_NAME
        && !text.contains("..")
        && characters.all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// Whether a path, of a repository or below the directory of the models, stays inside and is no hidden file.
pub(super) fn is_safe_path(path: &str) -> bool {
    let safe = |step: &str| {
        !step.is_empty()
            && step.len() <= MAX_STEP
            && !step.starts_with('.')
            && !step.chars().any(|c| c.is_control() || matches!(c, '\\' | ':' | '?' | '#'))
    };
    path.split('/').all(safe) && path.split('/').count() <= MAX_STEPS
}

/// The path of an address: everything but letters, digits and a few marks is encoded.
pub(super) fn encoded(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text += &format!("%{byte:02X}");
        }
    }
    text
}

/// The beginning of what somebody gave, fit for a message.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(|c| c.escape_debug().take(8).collect::<Vec<_>>()).collect()
}

#[cfg(test)]
mod tests {
    use super::{Reference, encoded, is_safe_path};

    #[test]
    fn references_are_read_as_people_write_them() {
        for (text, expected) in [
            ("Qwen/Qwen3-0.6B-GGUF", "Qwen/Qwen3-0.6B-GGUF"),
            ("Qwen/Qwen3-0.6B-GGUF:Qwen3-0.6B-Q8_0.gguf", "Qwen/Qwen3-0.6B-GGUF:Qwen3-0.6B-Q8_0.gguf"),
            ("a/b@refs/pr/1:q8/c.gguf", "a/b@refs/pr/1:q8/c.gguf"),
            ("hf.co/a/b:Q4_K_M", "a/b:Q4_K_M"),
            ("hf://a/b", "a/b"),
            ("https://huggingface.co/a/b", "a/b"),
            ("https://huggingface.co/a/b/resolve/main/x/c.gguf?download=true", "a/b:x/c.gguf"),
            ("https://huggingface.co/a/b/blob/v1.0/c.gguf", "a/b@v1.0:c.gguf"),
            ("https://huggingface.co/a/b/tree/v1.0", "a/b@v1.0"),
        ] {
            assert_eq!(Reference::parse(text).unwrap().to_string(), expected, "{text}");
        }
    }

    #[test]
    fn references_that_lead_astray_are_refused() {
        let long = format!("a/{}", "b".repeat(600));
        for text in [
            "",
            "a",
            "a/",
            "/a",
            "a/b/c",
            "../b",
            "a/..",
            "a/b:",
            "a/b:/etc/passwd",
            "a/b:../c",
            "a/b:c/../../d",
            "a/b:.hidden",
            "a/b:c/.git/d",
            "a/b:c//d",
            "a/b:c\\d",
            "a/b\n",
            "a/b:c\u{7}",
            "a b/c",
            "a/b@",
            "a/b@../x",
            "a/b@x//y",
            "http://huggingface.co/a/b",
            "file:///etc/passwd",
            "https://example.org/a/b",
            "https://huggingface.co@example.org/a/b",
            "a/b%2f..",
            "a/b?c",
            "a/b:c?d",
            "a/b:c#d",
            "é/b",
            "a/b:c:d",
            long.as_str(),
        ] {
            let error = Reference::parse(text).unwrap_err();
            assert!(!error.to_string().chars().any(char::is_control), "{text:?}: {error}");
        }
        assert!(Reference::new("a/b", None, Some("../c")).is_err());
        assert!(!is_safe_path(&"a/".repeat(9)), "too deep");
    }

    #[test]
    fn paths_are_encoded() {
        assert_eq!(encoded("a b/ü%.gguf"), "a%20b/%C3%BC%25.gguf");
    }
}
