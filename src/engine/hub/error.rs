//! Errors of downloads, distinguished by what the user can do about them.
//!
//! Messages name repositories, files and hosts, and never a token or the address that a hub has signed for a
//! download.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An error of a download.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HubError {
    /// The reference is none, or leads where no reference may.
    #[error("\"{reference}\" is no reference to a model: {reason}")]
    Reference {
        /// The given text, shortened.
        reference: String,
        /// The reason why it is refused.
        reason: &'static str,
    },
    /// A setting cannot be used.
    #[error("{setting} cannot be used: {reason}")]
    Setting {
        /// The setting, in words.
        setting: &'static str,
        /// The reason why it cannot be used.
        reason: String,
    },
    /// The model is not there, and downloads are switched off.
    #[error("\"{what}\" is not there, and downloads are switched off")]
    Offline {
        /// The reference of the model that was to be fetched.
        what: String,
    },
    /// No answer, or none to the end, however often it was tried.
    #[error("{place} could not be reached{}: {reason}", through(proxy.as_deref()))]
    Unreachable {
        /// Its host and port.
        place: String,
        /// Host and port of the proxy, if there is one.
        proxy: Option<String>,
        /// The failure of the last attempt.
        reason: String,
    },
    /// The hub does not have it.
    #[error("{host} has no {what}")]
    NotFound {
        /// Repository, revision or file.
        what: String,
        /// The host.
        host: String,
    },
    /// The hub has it, but not for everybody, or does not say.
    #[error("{host} does not give {what} away: {reason}")]
    Denied {
        /// Repository or file.
        what: String,
        /// The host.
        host: String,
        /// Why.
        reason: &'static str,
        /// Whether a token was shown.
        with_token: bool,
    },
    /// The hub went on asking for patience.
    #[error("{host} answers too many requests already")]
    TooManyRequests {
        /// The host.
        host: String,
    },
    /// The answer is not what the protocol of the hub says.
    #[error("{host} gave an unexpected answer: {reason}")]
    Protocol {
        /// The host.
        host: String,
        /// The unexpected part of the answer.
        reason: String,
    },
    /// The repository holds no model that this engine could use, or too many.
    #[error("repository \"{repository}\" {reason}")]
    NoModel {
        /// The repository.
        repository: String,
        /// Why.
        reason: String,
        /// Advice on the repository or file to name instead.
        hint: String,
    },
    /// The fetched file is not the one that the hub announced.
    #[error("the download of \"{file}\" is not the file that the hub announced: {reason}")]
    Damaged {
        /// The file.
        file: String,
        /// Size or checksum.
        reason: String,
    },
    /// The hub's file is not the registered one.
    #[error("\"{file}\" at the hub is not the registered file: its SHA-256 is {found}, not {expected}")]
    NotRegistered {
        /// The file.
        file: String,
        /// Hexadecimal digits.
        expected: String,
        /// Hexadecimal digits.
        found: String,
    },
    /// Another model has the name.
    #[error("\"{file}\" is there already, and {from}")]
    Taken {
        /// The file or folder, below the directory of the models.
        file: String,
        /// Where it came from, in words.
        from: String,
    },
    /// The disk has not enough room.
    #[error("\"{file}\" needs {needed_mb} MB of room in \"{}\", and {available_mb} MB are free", directory.display())]
    DiskFull {
        /// The file, or the model.
        file: String,
        /// The directory of the models.
        directory: PathBuf,
        /// Megabytes that are still to be written.
        needed_mb: u64,
        /// Megabytes that are free.
        available_mb: u64,
    },
    /// A file of ours cannot be made, read or renamed.
    #[error("could not write \"{}\": {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: Arc<io::Error>,
    },
    /// Somebody has stopped it.
    #[error("the download was stopped")]
    Cancelled,
}

/// The mention of a proxy in a message; empty without one.
fn through(proxy: Option<&str>) -> String {
    proxy.map_or_else(String::new, |proxy| format!(" through the proxy {proxy}"))
}

impl HubError {
    /// The error for a failed operation on a file.
    pub(super) fn file(path: &Path, source: io::Error) -> HubError {
        HubError::File { path: path.to_owned(), source: Arc::new(source) }
    }

    /// Advice to the user, if there is any.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            HubError::Reference { .. } => {
                "Write owner/name, owner/name:file.gguf, or owner/name@revision:file.gguf."
            }
            HubError::Offline { .. } => "Allow downloads, or put the file into the directory of the models.",
            HubError::Unreachable { .. } => {
                "Look at the network, and at the proxy, which the variables HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY of the environment name. What has arrived is kept: the next download goes on from there."
            }
            HubError::NotFound { .. } => {
                "Look at the names of the repository and its files, upper and lower case included."
            }
            HubError::Denied { with_token: true, .. } => {
                "Accept the conditions of the model at the hub with the account of the token, or use another token."
            }
            HubError::Denied { with_token: false, .. } => {
                "The name may be wrong. If it is right, the hub wants a token of somebody who may read it: put one into a file."
            }
            HubError::TooManyRequests { .. } => "Try again later. What has arrived is kept.",
            HubError::NoModel { hint, .. } => return Some(hint.clone()),
            HubError::Damaged { .. } => {
                "Somebody on the way has changed it, or the hub is broken. What was wrong has been removed; try again."
            }
            HubError::NotRegistered { .. } => {
                "The repository may have another version by now: correct sha256 of the model, or its revision, if the new one is right."
            }
            HubError::Taken { .. } => {
                "Remove that model with its file first, or register this one under a file name of its own and download it by the registered name."
            }
            HubError::DiskFull { .. } => {
                "Make room, or choose a smaller quantization. What has arrived is kept."
            }
            HubError::Cancelled => "What has arrived is kept: the next download goes on from there.",
            HubError::Setting { .. } | HubError::Protocol { .. } | HubError::File { .. } => return None,
        };
        Some(hint.to_owned())
    }
}
