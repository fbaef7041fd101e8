//! Errors on their way to SQL: SQLSTATE, message, hint; and the context that PostgreSQL adds to them.
//!
//! An error that is raised while COPY has a row comes with the beginning of its line as CONTEXT, which shows
//! the row's contents to the client and in the server's log. [`hide_copied_row`] takes that away.

use std::ffi::CString;

use pgrx::pg_sys::panic::{CaughtError, ErrorReport};
use pgrx::prelude::*;
use steadytext_engine::Error as EngineError;

use super::guc;

/// A number and what is counted, whose name in the plural ends with an s.
pub(crate) fn counted(count: u64, what: &str) -> String {
    match count {
        1 => format!("1 {}", what.strip_suffix('s').unwrap_or(what)),
        _ => format!("{count} {what}"),
    }
}

/// An error as PostgreSQL shows it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub(crate) struct PgError {
    /// Its SQLSTATE.
    pub(crate) code: PgSqlErrorCode,
    /// The message. Never contains a prompt.
    pub(crate) message: String,
    /// The hint, which says what to do about it.
    pub(crate) hint: Option<String>,
    /// The one of many texts that it is about. Never contains a word of it.
    pub(crate) detail: Option<String>,
    /// Whether it is about what was asked, and will be so again: then the row cannot be answered.
    pub(crate) lasting: bool,
    /// The registered model whose file is not there: it may be on the way, or be fetched.
    pub(crate) missing_model: Option<String>,
}

impl PgError {
    /// An error with a code of its own.
    pub(crate) fn new(code: PgSqlErrorCode, message: impl Into<String>) -> Self {
        PgError {
            code,
            message: message.into(),
            hint: None,
            detail: None,
            lasting: false,
            missing_model: None,
        }
    }

    /// An error with the predecessor's words, which were raised without a code of their own.
    pub(crate) fn raised(message: impl Into<String>) -> Self {
        PgError::new(PgSqlErrorCode::ERRCODE_RAISE_EXCEPTION, message)
    }

    /// A bug.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        PgError::new(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, message)
    }

    /// Sets the hint.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Sets the detail.
    pub(crate) fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Marks the error as one about a text that can be answered neither now nor later.
    pub(crate) fn lasting(mut self) -> Self {
        self.lasting = true;
        self
    }

    /// Marks the error as one about the missing file of a registered model.
    pub(crate) fn missing(mut self, model: &str) -> Self {
        self.missing_model = Some(model.to_owned());
        self
    }

    /// Raises it as an ERROR.
    pub(crate) fn raise(self) -> ! {
        self.report(PgLogLevel::ERROR);
        unreachable!("an ERROR does not return")
    }

    /// Reports it at any level; returns for levels below ERROR.
    pub(crate) fn report(self, level: PgLogLevel) {
        let mut report = ErrorReport::new(self.code, self.message, "pg_steadytext");
        if let Some(detail) = self.detail {
            report = report.set_detail(detail);
        }
        if let Some(hint) = self.hint {
            report = report.set_hint(hint);
        }
        report.report(level);
    }

    /// Reports it as a WARNING to the client alone: the server log has it already.
    pub(crate) fn warn_client(self) {
        let message = CString::new(self.message).unwrap_or_default();
        let hint = self.hint.and_then(|hint| CString::new(hint).ok());
        // SAFETY: the all-zero pattern is an empty report; PostgreSQL copies what it points to before it
        // returns, which it does for levels below ERROR.
        unsafe {
            let mut report: pg_sys::ErrorData = std::mem::zeroed();
            report.elevel = pg_sys::WARNING_CLIENT_ONLY as i32;
            report.sqlerrcode = self.code as i32;
            report.message = message.as_ptr().cast_mut();
            report.hint = hint.as_ref().map_or(std::ptr::null_mut(), |hint| hint.as_ptr().cast_mut());
            report.assoc_context = pg_sys::CurrentMemoryContext;
            pg_sys::ThrowErrorData(&mut report);
        }
    }

    /// The five characters of its SQLSTATE.
    pub(crate) fn sqlstate(&self) -> String {
        PgError::unpack(self.code as i32)
    }

    /// The five characters of a packed SQLSTATE.
    pub(crate) fn unpack(code: i32) -> String {
        let mut code = code;
        (0..5)
            .map(|_| {
                let character = char::from((b'0' as i32 + (code & 0x3f)) as u8);
                code >>= 6;
                character
            })
            .collect()
    }

    /// Whether trying again later can help: the error is about this moment, not about the request.
    pub(crate) fn is_transient(&self) -> bool {
        use PgSqlErrorCode as Code;
        matches!(
            self.code,
            Code::ERRCODE_T_R_SERIALIZATION_FAILURE
                | Code::ERRCODE_T_R_DEADLOCK_DETECTED
                | Code::ERRCODE_LOCK_NOT_AVAILABLE
                | Code::ERRCODE_QUERY_CANCELED
                | Code::ERRCODE_DISK_FULL
                | Code::ERRCODE_OUT_OF_MEMORY
                | Code::ERRCODE_INSUFFICIENT_RESOURCES
                | Code::ERRCODE_TOO_MANY_CONNECTIONS
                | Code::ERRCODE_READ_ONLY_SQL_TRANSACTION
                | Code::ERRCODE_IO_ERROR
        )
    }

    /// Whether it says that a table, function or schema is not there: the extension may be being dropped.
    pub(crate) fn is_about_missing_objects(&self) -> bool {
        use PgSqlErrorCode as Code;
        matches!(
            self.code,
            Code::ERRCODE_UNDEFINED_TABLE
                | Code::ERRCODE_UNDEFINED_FUNCTION
                | Code::ERRCODE_INVALID_SCHEMA_NAME
                | Code::ERRCODE_UNDEFINED_OBJECT
                | Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE
                | Code::ERRCODE_INTERNAL_ERROR
        )
    }
}

/// Raises the error of a result as an ERROR.
pub(crate) trait OrRaise<T> {
    /// The value, or no return.
    fn or_raise(self) -> T;
}

impl<T> OrRaise<T> for Result<T, PgError> {
    fn or_raise(self) -> T {
        self.unwrap_or_else(|error| error.raise())
    }
}

impl From<CaughtError> for PgError {
    fn from(caught: CaughtError) -> Self {
        let report = match &caught {
            CaughtError::PostgresError(report)
            | CaughtError::ErrorReport(report)
            | CaughtError::RustPanic { ereport: report, .. } => report,
        };
        PgError {
            code: report.sql_error_code(),
            message: report.message().to_owned(),
            hint: report.hint().map(str::to_owned),
            detail: None,
            lasting: false,
            missing_model: None,
        }
    }
}

/// The error that SQL sees of a download that has failed.
#[cfg(feature = "hub")]
pub(crate) fn of_hub(error: &steadytext_engine::hub::HubError) -> PgError {
    use PgSqlErrorCode as Code;
    use steadytext_engine::hub::HubError;
    let (code, setting) = match error {
        HubError::Reference { .. } => (Code::ERRCODE_INVALID_PARAMETER_VALUE, None),
        HubError::Setting { .. } => (
            Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            Some(
                "Look at pg_steadytext.hub_endpoint, pg_steadytext.hub_token_file and the server's environment.",
            ),
        ),
        HubError::Offline { .. } => (
            Code::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            Some("The setting is pg_steadytext.hub_offline."),
        ),
        HubError::Unreachable { .. } => {
            const SETTINGS: &str = "Another hub, such as a mirror, is named by pg_steadytext.hub_endpoint; a server without a network is told so by pg_steadytext.hub_offline, and models are put into pg_steadytext.model_dir by hand.";
            (Code::ERRCODE_CONNECTION_FAILURE, Some(SETTINGS))
        }
        HubError::NotFound { .. } | HubError::NoModel { .. } => (Code::ERRCODE_UNDEFINED_OBJECT, None),
        HubError::Denied { .. } => {
            (Code::ERRCODE_INSUFFICIENT_PRIVILEGE, Some("The setting is pg_steadytext.hub_token_file."))
        }
        HubError::TooManyRequests { .. } => (Code::ERRCODE_INSUFFICIENT_RESOURCES, None),
        HubError::Protocol { .. } => (Code::ERRCODE_PROTOCOL_VIOLATION, None),
        HubError::Damaged { .. } | HubError::NotRegistered { .. } => (Code::ERRCODE_DATA_CORRUPTED, None),
        HubError::Taken { .. } => (Code::ERRCODE_DUPLICATE_FILE, None),
        HubError::DiskFull { .. } => (Code::ERRCODE_DISK_FULL, None),
        HubError::File { .. } => (Code::ERRCODE_IO_ERROR, None),
        HubError::Cancelled => (Code::ERRCODE_QUERY_CANCELED, None),
    };
    let hint: Vec<String> = error.hint().into_iter().chain(setting.map(str::to_owned)).collect();
    let said = PgError::new(code, beginning(&error.to_string()));
    if hint.is_empty() { said } else { said.hint(beginning(&hint.join(" "))) }
}

/// As much of a text as a message may have: parts of it come from elsewhere.
#[cfg(feature = "hub")]
fn beginning(text: &str) -> String {
    const MOST: usize = 1000;
    text.chars().take(MOST).collect()
}

/// The failure of a request that met an engine error.
#[derive(Debug, Clone)]
pub(crate) struct RequestFailure {
    /// The error that its row keeps.
    pub(crate) error: PgError,
    /// Whether the request is tried again.
    pub(crate) retry: bool,
}

impl From<EngineError> for RequestFailure {
    fn from(error: EngineError) -> Self {
        use PgSqlErrorCode as Code;
        let message = match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        let (code, retry, hint) = match &error {
            EngineError::ModelFile { .. } => (
                Code::ERRCODE_IO_ERROR,
                false,
                Some(
                    "Check that the file exists and that the operating system user of the server can read it; pg_steadytext.model_dir and steadytext_models say where it is looked for.",
                ),
            ),
            EngineError::LostModel { .. } => (
                Code::ERRCODE_IO_ERROR,
                true,
                Some(
                    "The file was cut short, or the disk could not read it. Put it back in order; the next request opens it anew.",
                ),
            ),
            EngineError::CorruptModel { .. } => {
                (Code::ERRCODE_DATA_CORRUPTED, false, Some("Fetch the file again and compare its checksum."))
            }
            EngineError::UnsupportedModel { .. } => (
                Code::ERRCODE_FEATURE_NOT_SUPPORTED,
                false,
                Some(error.hint().unwrap_or(
                    "steadytext-engine inspect FILE says what the file needs, and docs/models.md which models run.",
                )),
            ),
            EngineError::Template { .. } => (
                Code::ERRCODE_DATA_CORRUPTED,
                false,
                Some("Use a GGUF file with a working tokenizer.chat_template."),
            ),
            EngineError::PromptTooLong { context_length, .. } => (
                Code::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
                false,
                Some(if *context_length == guc::engine().context_length {
                    "Shorten the text, or raise pg_steadytext.context_length; embeddings and rankings can also cut it (truncate => true)."
                } else {
                    "The limit is the model's own: shorten the text, or use a model with a longer context; embeddings and rankings can also cut it (truncate => true)."
                }),
            ),
            EngineError::UnreadableText { .. } => (
                Code::ERRCODE_INVALID_PARAMETER_VALUE,
                false,
                Some("Use another model, or leave out the characters that it does not know."),
            ),
            EngineError::UnknownTask { hint } => (Code::ERRCODE_INVALID_PARAMETER_VALUE, false, Some(&**hint)),
            EngineError::InvalidRequest(_) => (
                Code::ERRCODE_INVALID_PARAMETER_VALUE,
                false,
                Some("Leave the parameter out, or give it another value: docs/sql.md says what each one does."),
            ),
            EngineError::OutOfMemory { .. } => (
                Code::ERRCODE_OUT_OF_MEMORY,
                true,
                Some(
                    "Raise pg_steadytext.memory_limit_mb or pg_steadytext.kv_cache_mb, or use a smaller model.",
                ),
            ),
            EngineError::QueueFull { .. } => (Code::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED, true, None),
            EngineError::NonFinite { .. } => (
                Code::ERRCODE_DATA_CORRUPTED,
                false,
                Some("The model file is damaged or its quantization does not suit it; use another one."),
            ),
            EngineError::InvalidText { .. } => {
                (Code::ERRCODE_CHARACTER_NOT_IN_REPERTOIRE, false, Some("Use another model, prompt or seed."))
            }
            EngineError::Unfinished { .. } | EngineError::TooFewTokens { .. } => (
                Code::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
                false,
                Some("Raise max_tokens, or allow shorter answers (maxLength, maxItems, fewer properties)."),
            ),
            EngineError::Constraint { .. } => {
                (Code::ERRCODE_STATEMENT_TOO_COMPLEX, false, Some("Simplify the schema or the pattern."))
            }
            EngineError::Mismatch { .. } => (
                Code::ERRCODE_DATA_EXCEPTION,
                false,
                Some("Simplify the schema, or use another prompt, model or seed."),
            ),
            EngineError::Cancelled => (Code::ERRCODE_QUERY_CANCELED, false, None),
            EngineError::Stopped => (Code::ERRCODE_ADMIN_SHUTDOWN, true, None),
            EngineError::Panicked(_) => (
                Code::ERRCODE_INTERNAL_ERROR,
                true,
                Some("This is a bug in pg_steadytext; please report it."),
            ),
        };
        let lasting = matches!(
            error,
            EngineError::PromptTooLong { .. }
                | EngineError::UnknownTask { .. }
                | EngineError::UnreadableText { .. }
                | EngineError::InvalidText { .. }
                | EngineError::Unfinished { .. }
                | EngineError::TooFewTokens { .. }
                | EngineError::Constraint { .. }
                | EngineError::Mismatch { .. }
        );
        let hint = hint.map(str::to_owned);
        RequestFailure {
            error: PgError { code, message, hint, detail: None, lasting, missing_model: None },
            retry,
        }
    }
}

// Declared here because pgrx would give the address of a function of its own.
unsafe extern "C-unwind" {
    fn CopyFromErrorCallback(arg: *mut core::ffi::c_void);
}

/// The contexts of errors as they were, for [`show_copied_row`].
#[must_use]
pub(crate) struct HiddenRow(*mut pg_sys::ErrorContextCallback);

/// From now on, errors do not say what COPY was reading, if this was called by it. An error ends that by
/// itself, as it restores the contexts of whoever catches it; where there is none, [`show_copied_row`] must
/// end it: hence this is nothing that is done on dropping a value, which errors do too early.
pub(crate) fn hide_copied_row() -> HiddenRow {
    // SAFETY: a global of this process; its first entry belongs to a function that has called this one and is
    // alive.
    unsafe {
        let contexts = pg_sys::error_context_stack;
        let is_copy = |callback: unsafe extern "C-unwind" fn(*mut core::ffi::c_void)| {
            callback as usize == CopyFromErrorCallback as *const () as usize
        };
        if !contexts.is_null() && (*contexts).callback.is_some_and(is_copy) {
            pg_sys::error_context_stack = (*contexts).previous;
        }
        HiddenRow(contexts)
    }
}

/// Errors say again what they said before.
pub(crate) fn show_copied_row(hidden: HiddenRow) {
    // SAFETY: the entry that was there at `hide_copied_row` is there still, as this is called from the same
    // function.
    unsafe { pg_sys::error_context_stack = hidden.0 };
}
