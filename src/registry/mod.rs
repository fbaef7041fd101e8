//! The registry of models: from the name of a model, or the settings, to the file that answers.
//!
//! A name is that of a row of steadytext_models; otherwise that of a file or folder directly below
//! pg_steadytext.model_dir; otherwise `builtin`. Where none is named, [`defaults`] says which one was set,
//! and [`choice`] takes one where none was.
//!
//! Invariant: a request can only name such a model. Paths are given by administrators in the registry, and by
//! superusers in settings.

mod adapter_folders;
mod choice;
mod defaults;
pub(crate) mod directory;
mod download_request;
mod elsewhere;
mod embedding;
mod model_files;
mod names;
mod remembered;
mod resolve;
pub(crate) mod restored;
mod setting_checks;
mod status;
mod suggestions;
mod task;

pub(crate) use self::adapter_folders::stray_adapters;
pub(crate) use self::choice::{MOST_REPLACED, Resolved};
pub(crate) use self::defaults::is_obeyed;
pub(crate) use self::download_request::DownloadRequest;
pub(crate) use self::elsewhere::{default_embedding_name, default_names, resolve_elsewhere};
pub(crate) use self::embedding::Embedding;
pub(crate) use self::model_files::{is_there, registered_path};
pub(crate) use self::names::{gives_way, incomplete_file, is_known, named_file, path_of, there_without_pull};
pub(crate) use self::remembered::to_remember;
pub(crate) use self::resolve::{builtin_warning, check, check_content, looking_once, of_any_task, resolve};
pub(crate) use self::setting_checks::{warn_of_key, warn_of_setting};
pub(crate) use self::status::status;
pub(crate) use self::suggestions::close;
pub(crate) use self::task::{AUTO, BUILTIN, ModelTask, RequestedModel};
