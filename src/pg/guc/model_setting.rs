//! The settings that choose a model: their names, and where the values of a session come from.

#[cfg(any(feature = "pg14", feature = "pg15"))]
use std::cell::Cell;
use std::ffi::{CStr, CString};

use pgrx::guc::GucSetting;
use pgrx::pg_sys;

pub(super) static GENERATION_MODEL: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c"auto"));
pub(super) static EMBEDDING_MODEL: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c"auto"));
pub(super) static RERANKER_MODEL: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c"auto"));

/// The settings that choose a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ModelSetting {
    /// `pg_steadytext.generation_model`.
    Generation,
    /// `pg_steadytext.embedding_model`.
    Embedding,
    /// `pg_steadytext.reranker_model`.
    Reranker,
}

/// The origin of the value of a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SettingLevel {
    /// postgresql.conf, the command line, or nobody.
    Server,
    /// ALTER DATABASE, or ALTER ROLE ALL.
    Database,
    /// ALTER ROLE, the client, or SET: it is this session's.
    Session,
}

impl ModelSetting {
    /// All of them.
    pub(crate) const ALL: [ModelSetting; 3] =
        [ModelSetting::Generation, ModelSetting::Embedding, ModelSetting::Reranker];

    /// Its name.
    pub(crate) fn name(self) -> &'static CStr {
        match self {
            ModelSetting::Generation => c"pg_steadytext.generation_model",
            ModelSetting::Embedding => c"pg_steadytext.embedding_model",
            ModelSetting::Reranker => c"pg_steadytext.reranker_model",
        }
    }

    /// Its value in this session.
    pub(crate) fn value(self) -> String {
        match self {
            ModelSetting::Generation => text(&GENERATION_MODEL),
            ModelSetting::Embedding => text(&EMBEDDING_MODEL),
            ModelSetting::Reranker => text(&RERANKER_MODEL),
        }
    }

    /// The origin of that value.
    pub(crate) fn level(self) -> SettingLevel {
        use pg_sys::GucSource;
        match source(self).unwrap_or(GucSource::PGC_S_DEFAULT) {
            source if source <= GucSource::PGC_S_ARGV => SettingLevel::Server,
            source if source <= GucSource::PGC_S_DATABASE => SettingLevel::Database,
            _ => SettingLevel::Session,
        }
    }
}

/// Whether any of these settings is made for less than the whole server.
pub(crate) fn any_model_of_session() -> bool {
    ModelSetting::ALL.iter().any(|setting| setting.level() > SettingLevel::Server)
}

/// The source of the value.
#[cfg(any(feature = "pg14", feature = "pg15"))]
fn source(setting: ModelSetting) -> Option<pg_sys::GucSource::Type> {
    thread_local! {
        /// Their addresses, which never change.
        static FOUND: [Cell<*mut pg_sys::config_generic>; 3] =
            const { [const { Cell::new(std::ptr::null_mut()) }; 3] };
    }
    let found = FOUND.with(|found| found[setting as usize].get());
    // SAFETY: the array has that many elements, each of which has a name; looked at in the main thread.
    // Settings that a preloaded library defines are never removed.
    unsafe {
        if let Some(found) = found.as_ref() {
            return Some(found.source);
        }
        let (settings, count) = (pg_sys::get_guc_variables(), pg_sys::GetNumConfigOptions());
        let mut all = (0..usize::try_from(count).ok()?).map(|index| *settings.add(index));
        let found = all.find(|found| CStr::from_ptr((**found).name) == setting.name())?;
        FOUND.with(|known| known[setting as usize].set(found));
        Some((*found).source)
    }
}

/// The source of the value.
#[cfg(not(any(feature = "pg14", feature = "pg15")))]
fn source(setting: ModelSetting) -> Option<pg_sys::GucSource::Type> {
    // SAFETY: a look-up; null where there is no such setting, which is no error.
    unsafe {
        pg_sys::find_option(setting.name().as_ptr(), false, true, pg_sys::DEBUG5 as i32)
            .as_ref()
            .map(|setting| setting.source)
    }
}

/// Whether a value names a file by its path, and not a model.
pub(crate) fn is_path(value: &str) -> bool {
    value.contains('/') || (!value.is_empty() && value.bytes().all(|byte| byte == b'.'))
}

/// The value of a setting that is a text.
pub(super) fn text(setting: &GucSetting<Option<CString>>) -> String {
    setting.get().map(|value| value.to_string_lossy().into_owned()).unwrap_or_default()
}
