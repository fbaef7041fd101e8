//! Requests for downloads, by the row of a registered model or by a reference to one at a hub, as they are
//! passed to the process that downloads.

use serde::{Deserialize, Serialize};

use pgrx::prelude::*;
use steadytext_engine::card::{Card, Task};

use super::model_files::locate;
use super::suggestions::close;
use crate::pg::catalog_cache::{self, ModelRegistry, Pullable};
use crate::pg::error::PgError;
use crate::pg::guc;

/// A model that is to be downloaded.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct DownloadRequest {
    /// The name shown to users.
    pub(crate) label: String,
    /// A reference as the engine reads it, where it is not a registered model.
    pub(crate) reference: Option<String>,
    /// `owner/name`, of a registered one.
    pub(crate) repository: String,
    /// The revision of that.
    pub(crate) revision: Option<String>,
    /// The file below the directory of the models, of a registered one.
    pub(crate) file: Option<String>,
    /// The SHA-256 that is registered.
    pub(crate) sha256: Option<[u8; 32]>,
    /// The values of the row, for the card.
    pub(crate) card: Card,
}

impl DownloadRequest {
    /// Of a name in the registry, or a reference. In a transaction.
    ///
    /// # Errors
    ///
    /// 42704 for a name that is not registered, 22023 for a row that cannot be downloaded, 42501 for one
    /// whose file is none of the directory of the models.
    pub(crate) fn of(name: &str, models: &ModelRegistry) -> Result<DownloadRequest, PgError> {
        if name.contains('/') {
            return Ok(DownloadRequest {
                label: name.to_owned(),
                reference: Some(name.to_owned()),
                repository: String::new(),
                revision: None,
                file: None,
                sha256: None,
                card: Card::default(),
            });
        }
        let shown: String = name.chars().take(64).collect();
        let row = catalog_cache::pullable(name)?.ok_or_else(|| {
            PgError::new(
                PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
                format!("model \"{shown}\" is not registered"),
            )
            .hint(close(name, models).unwrap_or_else(|| {
                "Name a row of steadytext_models, or a repository as owner/name or owner/name:file.gguf."
                    .to_owned()
            }))
        })?;
        DownloadRequest::of_row(name, row)
    }

    /// The download of the file of a registered model that a request waits for.
    ///
    /// # Errors
    ///
    /// As [`DownloadRequest::of`]; 58P01 where nothing says where the file comes from.
    pub(crate) fn for_request(name: &str) -> Result<DownloadRequest, PgError> {
        let row = catalog_cache::pullable(name)?;
        if row.is_some_and(|row| row.repository.is_none()) {
            let shown: String = name.chars().take(64).collect();
            return Err(PgError::new(
                PgSqlErrorCode::ERRCODE_UNDEFINED_FILE,
                format!("the file of model \"{shown}\" is not there, and nothing says where to download it from"),
            )
            .hint("Put the file into pg_steadytext.model_dir, or owner/name into repo of its row in steadytext_models."));
        }
        DownloadRequest::of(name, &*catalog_cache::models()?)
    }

    fn of_row(name: &str, row: Pullable) -> Result<DownloadRequest, PgError> {
        let Some(repository) = row.repository else {
            return Err(PgError::new(
                PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("nothing says where model \"{name}\" comes from"),
            )
            .hint("Put owner/name into repo of its row in steadytext_models."));
        };
        if row.file.starts_with('/') {
            return Err(PgError::new(
                PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("model \"{name}\" is registered by an absolute path, where nothing is downloaded to"),
            )
            .hint("Register it by a path below pg_steadytext.model_dir."));
        }
        if locate(std::path::Path::new(&guc::model_dir()), &row.file).is_err() {
            return Err(PgError::new(
                PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("the file of model \"{name}\" leads out of pg_steadytext.model_dir"),
            )
            .hint("Register it by a path below that directory, without a link out of it."));
        }
        let task =
            [Task::Generate, Task::Embed, Task::Rerank].into_iter().find(|task| task.name() == row.task);
        let card = Card {
            tasks: task.into_iter().collect(),
            licence: row.licence,
            query_prompt: row.query_prompt,
            passage_prompt: row.passage_prompt,
            dimensions: row.dimensions,
            ..Card::default()
        };
        Ok(DownloadRequest {
            label: name.to_owned(),
            reference: None,
            repository,
            revision: row.revision,
            file: Some(row.file),
            sha256: row.sha256,
            card,
        })
    }

    /// Key of the download, the same in each database.
    pub(crate) fn key(&self) -> String {
        match &self.reference {
            Some(reference) => reference.clone(),
            None => {
                let revision = self.revision.as_deref().unwrap_or_default();
                format!("{}@{revision}:{}", self.repository, self.file.as_deref().unwrap_or_default())
            }
        }
    }
}
