//! Check hooks: what PostgreSQL asks before a value of a setting holds.
//!
//! Invariant: a model is refused for the form of its name alone. Whether it can answer is said in a warning,
//! because it may be downloaded or registered later.

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_void};
use std::sync::OnceLock;

use pgrx::{pg_guard, pg_sys};

use super::model_setting::{ModelSetting, is_path};

/// A check hook, as PostgreSQL calls it for a text.
pub(super) type StringCheckHook =
    unsafe extern "C-unwind" fn(*mut *mut c_char, *mut *mut c_void, pg_sys::GucSource::Type) -> bool;

/// A look at the name of a model that somebody sets, in a transaction.
type ModelNameLook = fn(ModelSetting, &str);

/// It comes from a module that stands above this one.
static LOOK: OnceLock<ModelNameLook> = OnceLock::new();

/// Has `look` called for each name of a model that somebody sets, before it holds.
pub(crate) fn on_model_set(look: ModelNameLook) {
    // The library is initialized once.
    let _ = LOOK.set(look);
}

/// The check hook of `pg_steadytext.generation_model`.
#[pg_guard]
pub(super) unsafe extern "C-unwind" fn check_generation_model(
    value: *mut *mut c_char,
    _extra: *mut *mut c_void,
    source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: the caller's.
    unsafe { check_model(ModelSetting::Generation, value, source) }
}

/// The check hook of `pg_steadytext.embedding_model`.
#[pg_guard]
pub(super) unsafe extern "C-unwind" fn check_embedding_model(
    value: *mut *mut c_char,
    _extra: *mut *mut c_void,
    source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: the caller's.
    unsafe { check_model(ModelSetting::Embedding, value, source) }
}

/// The check hook of `pg_steadytext.reranker_model`.
#[pg_guard]
pub(super) unsafe extern "C-unwind" fn check_reranker_model(
    value: *mut *mut c_char,
    _extra: *mut *mut c_void,
    source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: the caller's.
    unsafe { check_model(ModelSetting::Reranker, value, source) }
}

/// Checks a setting that chooses a model: a path is a superuser's to give. What the server's files, ALTER
/// DATABASE and ALTER ROLE have set was checked when that was done.
///
/// # Safety
///
/// `value` is what PostgreSQL hands to a check hook.
unsafe fn check_model(
    setting: ModelSetting,
    value: *mut *mut c_char,
    source: pg_sys::GucSource::Type,
) -> bool {
    use pg_sys::GucSource;
    // SAFETY: the value is a string, or null.
    let name = unsafe {
        if value.is_null() || (*value).is_null() {
            return true;
        }
        CStr::from_ptr(*value).to_string_lossy().into_owned()
    };
    if !may_name(&name, source) {
        return false;
    }
    // SET, set_config(), ALTER ROLE and ALTER DATABASE: somebody reads what is said about it. Other sources
    // are read outside of transactions, or on behalf of somebody who is not there.
    let is_interactive = source >= GucSource::PGC_S_INTERACTIVE;
    // SAFETY: getters.
    let may_look = unsafe {
        pg_sys::IsTransactionState()
            && pg_sys::MyDatabaseId != pg_sys::InvalidOid
            && !pg_sys::InitializingParallelWorker
            && pg_sys::ParallelWorkerNumber < 0
    };
    if is_interactive
        && may_look
        && let Some(look) = LOOK.get()
        && is_news(setting, &name)
    {
        look(setting, &name);
    }
    true
}

/// Whether a statement of the client sets a model for the first time. A function with a SET clause does so at
/// each of its calls, of which there may be one for each row of a table.
fn is_news(setting: ModelSetting, name: &str) -> bool {
    thread_local! {
        static LAST: RefCell<Option<(i64, ModelSetting, String)>> = const { RefCell::new(None) };
    }
    // SAFETY: a plain getter.
    let now = unsafe { pg_sys::GetCurrentStatementStartTimestamp() };
    LAST.with_borrow_mut(|last| {
        let is_same =
            |(at, of, known): &(i64, ModelSetting, String)| *at == now && *of == setting && known == name;
        if last.as_ref().is_some_and(is_same) {
            return false;
        }
        *last = Some((now, setting, name.to_owned()));
        true
    })
}

/// Whether the name of a model may be given, which a path may by superusers only; otherwise what is wrong is
/// left for PostgreSQL to say.
fn may_name(name: &str, source: pg_sys::GucSource::Type) -> bool {
    use pg_sys::GucSource;
    if !is_path(name) {
        return true;
    }
    // SAFETY: globals of this process. PostgreSQL frees the texts.
    unsafe {
        // A parallel worker gets what its leader has.
        if source < GucSource::PGC_S_CLIENT || pg_sys::InitializingParallelWorker || pg_sys::superuser() {
            return true;
        }
        pg_sys::GUC_check_errcode(pgrx::PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE as i32);
        pg_sys::GUC_check_errmsg_string = copied(c"only superusers may name a model by the path of its file");
        pg_sys::GUC_check_errhint_string =
            copied(c"Give the name of a model: steadytext_model_list() shows which there are.");
        false
    }
}

/// A copy for PostgreSQL.
fn copied(text: &CStr) -> *mut c_char {
    // SAFETY: allocates in the current memory context, which outlives the report.
    unsafe { pg_sys::pstrdup(text.as_ptr()) }
}

/// The check hook of settings with a unit, of which 0 means something else than very little.
#[pg_guard]
pub(super) unsafe extern "C-unwind" fn check_zero_or_more(
    value: *mut f64,
    _extra: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: the value is a number; the rest are globals of this process. PostgreSQL frees the texts.
    unsafe {
        if value.is_null() || *value == 0.0 || *value >= 1.0 {
            return true;
        }
        pg_sys::GUC_check_errdetail_string =
            copied(c"It is less than one of the setting's unit, and not 0, which has a meaning of its own.");
        pg_sys::GUC_check_errhint_string =
            copied(c"Give one second or one megabyte at least, or 0: pg_settings says what that means.");
        false
    }
}
