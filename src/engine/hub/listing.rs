//! The contents of a repository, as the hub lists them.

use hf_hub::api::RepoInfo;
use serde::Deserialize;

use super::client::is_sha256;
use super::error::HubError;
use super::reference::{Reference, is_safe_path, shown};
use crate::card::Task;

/// A repository at a commit.
#[derive(Debug, Clone)]
pub(super) struct RepositoryListing {
    pub(super) repository: String,
    /// The commit: what is fetched is of one and the same, whatever is pushed meanwhile.
    pub(super) commit: String,
    /// The files whose names are safe.
    pub(super) files: Vec<Remote>,
    /// Parameters of the model, if the hub knows them.
    pub(super) parameters: Option<u64>,
    pub(super) licence: Option<String>,
    /// The task that the hub names for the model, if it is one of ours.
    pub(super) task: Option<Task>,
}

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Remote {
    pub(super) path: String,
    pub(super) size: Option<u64>,
    /// In hexadecimal digits; of large files only.
    pub(super) sha256: Option<String>,
    /// The hub's blob identifier, which identifies its content as well.
    pub(super) blob: Option<String>,
}

impl Remote {
    pub(super) fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }
}

/// The parts of the hub's answer that hf-hub does not read.
#[derive(Deserialize)]
struct Details {
    siblings: Vec<Sibling>,
    gguf: Option<Total>,
    safetensors: Option<Total>,
    #[serde(default, rename = "cardData")]
    card: serde_json::Value,
    #[serde(default)]
    tags: Vec<serde_json::Value>,
    pipeline_tag: Option<String>,
}

#[derive(Deserialize)]
struct Sibling {
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    // Older answers and some mirrors say oid.
    #[serde(alias = "oid")]
    sha256: Option<String>,
    size: Option<u64>,
}

#[derive(Deserialize)]
struct Total {
    total: Option<u64>,
}

impl RepositoryListing {
    /// Reads the answer of the hub.
    ///
    /// # Errors
    /// [`HubError::Protocol`].
    pub(super) fn parse(
        reference: &Reference,
        host: &str,
        bytes: &[u8],
    ) -> Result<RepositoryListing, HubError> {
        let wrong = |reason: String| HubError::Protocol { host: host.to_owned(), reason };
        // It may quote what the hub has sent, however long that is.
        let unread = |error: serde_json::Error| wrong(shown(&error.to_string()));
        let info: RepoInfo = serde_json::from_slice(bytes).map_err(unread)?;
        let details: Details = serde_json::from_slice(bytes).map_err(unread)?;
        if info.sha.is_empty()
            || !info.sha.bytes().all(|byte| byte.is_ascii_alphanumeric())
            || info.sha.len() > 64
        {
            return Err(wrong("a commit that is none".to_owned()));
        }
        let files = info.siblings.into_iter().zip(details.siblings).filter_map(|(named, sibling)| {
            is_safe_path(&named.rfilename).then(|| {
                let lfs = sibling.lfs;
                let sha256 = lfs.as_ref().and_then(|lfs| lfs.sha256.clone()).filter(|hash| is_sha256(hash));
                Remote {
                    path: named.rfilename,
                    size: lfs.and_then(|lfs| lfs.size).or(sibling.size),
                    sha256: sha256.map(|hash| hash.to_ascii_lowercase()),
                    blob: sibling
                        .blob
                        .filter(|blob| blob.len() <= 64 && blob.bytes().all(|b| b.is_ascii_alphanumeric())),
                }
            })
        });
        let total = |total: Option<Total>| total.and_then(|total| total.total);
        Ok(RepositoryListing {
            repository: reference.repository.clone(),
            commit: info.sha,
            files: files.collect(),
            parameters: total(details.gguf).or(total(details.safetensors)),
            licence: licence(&details.card, &details.tags),
            task: details.pipeline_tag.as_deref().and_then(task),
        })
    }

    pub(super) fn file(&self, path: &str) -> Option<&Remote> {
        self.files.iter().find(|file| file.path == path)
    }
}

/// The licence by its short name; what is called `other` has a name of its own.
fn licence(card: &serde_json::Value, tags: &[serde_json::Value]) -> Option<String> {
    let field = |name: &str| card.get(name).and_then(|value| value.as_str());
    let named = match field("license") {
        Some("other") => field("license_name").or(Some("other")),
        named => named,
    };
    let tag = || tags.iter().filter_map(|tag| tag.as_str()).find_map(|tag| tag.strip_prefix("license:"));
    let licence = named.or_else(tag)?;
    let fits = licence.len() <= 100 && !licence.chars().any(char::is_control);
    fits.then(|| licence.to_owned())
}

fn task(tag: &str) -> Option<Task> {
    match tag {
        "text-generation" | "text2text-generation" | "image-text-to-text" | "any-to-any" => {
            Some(Task::Generate)
        }
        "feature-extraction" | "sentence-similarity" => Some(Task::Embed),
        "text-ranking" => Some(Task::Rerank),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{Reference, Remote, RepositoryListing};
    use crate::card::Task;

    fn parse(text: &str) -> Result<RepositoryListing, String> {
        let reference = Reference::parse("a/b").unwrap();
        RepositoryListing::parse(&reference, "hub", text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_repository_is_read_as_the_hub_describes_it() {
        let hash = "AB".repeat(32);
        let listing = parse(&format!(
            r#"{{"id": "a/b", "sha": "c0ffee", "pipeline_tag": "text-generation", "tags": ["gguf", "license:mit"],
                "cardData": {{"license": "other", "license_name": "gemma"}}, "gguf": {{"total": 600, "architecture": "x"}},
                "siblings": [
                    {{"rfilename": "README.md", "blobId": "b1", "size": 3}},
                    {{"rfilename": "../../etc/passwd", "size": 3}},
                    {{"rfilename": "m.gguf", "blobId": "b2", "size": 9, "lfs": {{"sha256": "{hash}", "size": 9, "pointerSize": 1}}}}]}}"#
        ))
        .unwrap();
        assert_eq!(listing.commit, "c0ffee");
        assert_eq!((listing.parameters, listing.task), (Some(600), Some(Task::Generate)));
        assert_eq!(listing.licence.as_deref(), Some("gemma"));
        let file = |path: &str, size, sha256, blob: &str| Remote {
            path: path.to_owned(),
            size: Some(size),
            sha256,
            blob: Some(blob.to_owned()),
        };
        let expected = [file("README.md", 3, None, "b1"), file("m.gguf", 9, Some("ab".repeat(32)), "b2")];
        assert_eq!(listing.files, expected, "a name that leads out is not there");
        assert_eq!(
            parse(r#"{"sha": "1", "siblings": [], "tags": ["license:mit"]}"#).unwrap().licence.unwrap(),
            "mit"
        );
    }

    #[test]
    fn other_answers_are_errors() {
        let deep = format!(
            r#"{{"sha": "1", "siblings": [], "cardData": {}1{}}}"#,
            "[".repeat(9999),
            "]".repeat(9999)
        );
        for text in [
            "",
            "[]",
            "null",
            r#"{"siblings": []}"#,
            r#"{"sha": "../x", "siblings": []}"#,
            r#"{"sha": "1", "siblings": [{}]}"#,
            "<html>",
            &deep,
        ] {
            assert!(parse(text).unwrap_err().contains("hub gave an unexpected answer"), "{text:.60}");
        }
        let long = format!(r#"{{"sha": "1", "siblings": "{}\n"}}"#, "x".repeat(1_000_000));
        let error = parse(&long).unwrap_err();
        assert!(error.contains("invalid type: string") && error.len() < 1000, "{} bytes", error.len());
    }
}
