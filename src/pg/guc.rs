//! The server's settings, prefix `pg_steadytext.`: those of a process and of the machine. Settings of one
//! database are in its table steadytext_config.
//!
//! The models that answer are settings that every session may have its own values of, as long as they name no
//! path: files are for superusers to name.

#[cfg(any(feature = "pg14", feature = "pg15"))]
use std::cell::Cell;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::OnceLock;
use std::time::Duration;

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};
use pgrx::{pg_guard, pg_sys};
use steadytext_engine::{BackendChoice, BackendKind, KvCacheType};

static GENERATION_MODEL: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c"auto"));
static EMBEDDING_MODEL: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c"auto"));
static RERANKER_MODEL: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c"auto"));
static MODEL_DIR: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c"pg_steadytext_models"));
static EXCHANGE_DIR: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static THREADS: GucSetting<i32> = GucSetting::<i32>::new(0);
static NICE: GucSetting<i32> = GucSetting::<i32>::new(10);
static MAX_RUNNING: GucSetting<i32> = GucSetting::<i32>::new(16);
static CONTEXT_LENGTH: GucSetting<i32> = GucSetting::<i32>::new(0);
static KV_CACHE_MB: GucSetting<i32> = GucSetting::<i32>::new(1024);
static KV_CACHE_TYPE: GucSetting<KvCacheSetting> = GucSetting::<KvCacheSetting>::new(KvCacheSetting::F16);
static MEMORY_LIMIT_MB: GucSetting<f64> = GucSetting::<f64>::new(0.0);
static MODEL_IDLE_TIMEOUT: GucSetting<f64> = GucSetting::<f64>::new(600.0);
static CALL_PRIORITY: GucSetting<i32> = GucSetting::<i32>::new(8);
static HUB_ENDPOINT: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static HUB_TOKEN_FILE: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static HUB_OFFLINE: GucSetting<bool> = GucSetting::<bool>::new(false);
static AUTO_PULL: GucSetting<bool> = GucSetting::<bool>::new(false);
static NOTIFY: GucSetting<bool> = GucSetting::<bool>::new(false);
static ENGINE_PROCESS: GucSetting<EngineProcess> = GucSetting::<EngineProcess>::new(EngineProcess::Worker);
static ENGINE_HANG_TIMEOUT: GucSetting<f64> = GucSetting::<f64>::new(120.0);
static BACKEND: GucSetting<Backend> = GucSetting::<Backend>::new(Backend::Auto);

/// `pg_steadytext.backend`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
enum Backend {
    #[name = c"auto"]
    Auto,
    #[name = c"native"]
    Native,
    #[name = c"candle"]
    Candle,
}

/// `pg_steadytext.kv_cache_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
enum KvCacheSetting {
    /// [`KvCacheType::F16`].
    #[name = c"f16"]
    F16,
    /// [`KvCacheType::Q8_0`].
    #[name = c"q8_0"]
    Q8_0,
}

/// `pg_steadytext.engine_process`: where the engine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
pub(crate) enum EngineProcess {
    /// The engine runs in the process of the worker that leads.
    #[name = c"worker"]
    Worker,
    /// The engine runs in a program that this worker starts.
    #[name = c"separate"]
    Separate,
}

/// The settings that an engine is started with; a change of any of them starts a new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EngineSettings {
    /// Threads that compute; 0: as many as the machine has cores.
    pub(crate) threads: usize,
    /// Their nice value.
    pub(crate) nice: i32,
    /// Requests computed together, at most.
    pub(crate) max_running: usize,
    /// Tokens of context per request, at most; 0: as many as the model has.
    pub(crate) context_length: usize,
    /// Memory for keys and values.
    pub(crate) kv_cache_mb: u64,
    /// Format of the keys and values.
    pub(crate) kv_cache_type: KvCacheType,
    /// Memory for the engine; 0: computed from what the machine has.
    pub(crate) memory_limit_mb: u64,
    /// Time after which an unused model is unloaded; `None`: never.
    pub(crate) model_idle_timeout: Option<Duration>,
    /// The backend that computes models.
    pub(crate) backend: BackendChoice,
    /// The process in which the engine runs.
    pub(crate) process: EngineProcess,
}

/// The current [`EngineSettings`].
pub(crate) fn engine() -> EngineSettings {
    let positive = |setting: &GucSetting<i32>| u64::try_from(setting.get()).unwrap_or(0);
    EngineSettings {
        threads: positive(&THREADS) as usize,
        nice: NICE.get(),
        max_running: positive(&MAX_RUNNING).max(1) as usize,
        context_length: positive(&CONTEXT_LENGTH) as usize,
        kv_cache_mb: positive(&KV_CACHE_MB),
        kv_cache_type: kv_cache_type(),
        // A value of less than 1 is refused where it is set, so that 0 is said and never rounded to.
        memory_limit_mb: MEMORY_LIMIT_MB.get().round() as u64,
        model_idle_timeout: duration(&MODEL_IDLE_TIMEOUT),
        backend: backend_choice(),
        process: ENGINE_PROCESS.get(),
    }
}

/// `pg_steadytext.engine_hang_timeout`: for how long an engine may have something to do and give no sign of
/// life; `None`: for ever.
#[cfg(not(feature = "noop-engine"))]
pub(crate) fn engine_hang_timeout() -> Option<Duration> {
    duration(&ENGINE_HANG_TIMEOUT)
}

/// The duration of a setting in seconds; `None` for 0, which means for ever.
fn duration(setting: &GucSetting<f64>) -> Option<Duration> {
    Duration::try_from_secs_f64(setting.get()).ok().filter(|duration| !duration.is_zero())
}

/// `pg_steadytext.backend`: the backend that computes models.
fn backend_choice() -> BackendChoice {
    match BACKEND.get() {
        Backend::Auto => BackendChoice::Auto,
        Backend::Native => BackendChoice::Native,
        Backend::Candle => BackendChoice::Candle,
    }
}

fn kv_cache_type() -> KvCacheType {
    match KV_CACHE_TYPE.get() {
        KvCacheSetting::F16 => KvCacheType::F16,
        KvCacheSetting::Q8_0 => KvCacheType::Q8_0,
    }
}

/// The backend of an engine that is started with the current settings.
pub(crate) fn backend() -> BackendKind {
    backend_choice().expected(kv_cache_type())
}

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
pub(crate) enum Level {
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
    pub(crate) fn level(self) -> Level {
        use pg_sys::GucSource;
        match source(self).unwrap_or(GucSource::PGC_S_DEFAULT) {
            source if source <= GucSource::PGC_S_ARGV => Level::Server,
            source if source <= GucSource::PGC_S_DATABASE => Level::Database,
            _ => Level::Session,
        }
    }
}

/// Whether any of these settings is made for less than the whole server.
pub(crate) fn any_model_of_session() -> bool {
    ModelSetting::ALL.iter().any(|setting| setting.level() > Level::Server)
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

/// A check of the name of a model that somebody sets, in a transaction.
type Look = fn(ModelSetting, &str);

/// It comes from a module that stands above this one.
static LOOK: OnceLock<Look> = OnceLock::new();

/// Has `look` called for each name of a model that somebody sets, before it holds.
pub(crate) fn on_model_set(look: Look) {
    // The library is initialized once.
    let _ = LOOK.set(look);
}

/// The check hook of `pg_steadytext.generation_model`.
#[pg_guard]
unsafe extern "C-unwind" fn check_generation_model(
    value: *mut *mut c_char,
    _extra: *mut *mut c_void,
    source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: the caller's.
    unsafe { check_model(ModelSetting::Generation, value, source) }
}

/// The check hook of `pg_steadytext.embedding_model`.
#[pg_guard]
unsafe extern "C-unwind" fn check_embedding_model(
    value: *mut *mut c_char,
    _extra: *mut *mut c_void,
    source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: the caller's.
    unsafe { check_model(ModelSetting::Embedding, value, source) }
}

/// The check hook of `pg_steadytext.reranker_model`.
#[pg_guard]
unsafe extern "C-unwind" fn check_reranker_model(
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

/// `pg_steadytext.model_dir`; relative to the data directory, which is every server process's working
/// directory.
pub(crate) fn model_dir() -> String {
    text(&MODEL_DIR)
}

/// `pg_steadytext.exchange_dir`; relative to the data directory. Empty: none.
pub(crate) fn exchange_dir() -> String {
    text(&EXCHANGE_DIR)
}

/// `pg_steadytext.call_priority`: how urgent the synchronous calls of this session are.
pub(crate) fn call_priority() -> u8 {
    u8::try_from(CALL_PRIORITY.get()).unwrap_or(8)
}

/// `pg_steadytext.hub_endpoint`; empty: that of the environment, or the one that everybody means.
pub(crate) fn hub_endpoint() -> String {
    text(&HUB_ENDPOINT)
}

/// `pg_steadytext.hub_token_file`; relative to the data directory. Empty: none.
pub(crate) fn hub_token_file() -> String {
    text(&HUB_TOKEN_FILE)
}

/// `pg_steadytext.hub_offline`.
pub(crate) fn hub_offline() -> bool {
    HUB_OFFLINE.get()
}

/// `pg_steadytext.auto_pull`.
pub(crate) fn auto_pull() -> bool {
    AUTO_PULL.get()
}

/// `pg_steadytext.notify`.
pub(crate) fn notify() -> bool {
    NOTIFY.get()
}

fn text(setting: &GucSetting<Option<CString>>) -> String {
    setting.get().map(|value| value.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Defines the settings. Only while shared_preload_libraries is processed.
pub(crate) fn define() {
    super::request_log::define();
    model(
        c"pg_steadytext.generation_model",
        &GENERATION_MODEL,
        check_generation_model,
        c"Model that generates text where a request names none.",
        c"\"auto\" leaves the choice to the database and its registry, and to what is in pg_steadytext.model_dir; otherwise the name of a model, or \"builtin\". Superusers may give a path.",
    );
    model(
        c"pg_steadytext.embedding_model",
        &EMBEDDING_MODEL,
        check_embedding_model,
        c"Model that computes embeddings where a request names none.",
        c"As pg_steadytext.generation_model.",
    );
    model(
        c"pg_steadytext.reranker_model",
        &RERANKER_MODEL,
        check_reranker_model,
        c"Model that ranks documents where a request names none.",
        c"As pg_steadytext.generation_model.",
    );
    string(
        c"pg_steadytext.model_dir",
        &MODEL_DIR,
        c"Directory of the model files.",
        c"Relative to the data directory.",
    );
    string(
        c"pg_steadytext.exchange_dir",
        &EXCHANGE_DIR,
        c"Directory of the files that steadytext_cache_import() reads and steadytext_cache_export() writes.",
        c"Relative to the data directory. Empty: neither function works.",
    );
    int(
        c"pg_steadytext.threads",
        &THREADS,
        0,
        1024,
        c"Number of threads that compute.",
        c"0 means the number of cores of the machine.",
        GucFlags::default(),
    );
    int(
        c"pg_steadytext.nice",
        &NICE,
        0,
        19,
        c"Nice value of the threads that compute.",
        c"Higher values leave more of the processor to the other backends.",
        GucFlags::default(),
    );
    int(
        c"pg_steadytext.max_running",
        &MAX_RUNNING,
        1,
        256,
        c"Maximum number of requests that are computed together.",
        c"",
        GucFlags::default(),
    );
    int(
        c"pg_steadytext.context_length",
        &CONTEXT_LENGTH,
        0,
        1_048_576,
        c"Maximum number of tokens of prompt and answer together.",
        c"0 means the number that the model was made for, up to 32768.",
        GucFlags::default(),
    );
    int(
        c"pg_steadytext.kv_cache_mb",
        &KV_CACHE_MB,
        16,
        1_048_576,
        c"Memory for the keys and values of running requests.",
        c"",
        GucFlags::UNIT_MB,
    );
    GucRegistry::define_enum_guc(
        c"pg_steadytext.kv_cache_type",
        c"Type of stored keys and values: f16 or q8_0.",
        c"q8_0 takes about half the memory. Answers differ a little, so that cached answers of the other type are not given again. The backend candle has neither.",
        &KV_CACHE_TYPE,
        GucContext::Sighup,
        GucFlags::default(),
    );
    zero_or_more(
        c"pg_steadytext.memory_limit_mb",
        &MEMORY_LIMIT_MB,
        16_777_216.0,
        c"Memory for models and their caches.",
        c"Requests that do not fit are refused. 0 means four fifths of the machine's memory, or of its control group's where that is less, less shared_buffers.",
        GucFlags::UNIT_MB,
    );
    zero_or_more(
        c"pg_steadytext.model_idle_timeout",
        &MODEL_IDLE_TIMEOUT,
        2_147_483.0,
        c"Time after which an unused model is unloaded.",
        c"0 keeps models loaded.",
        GucFlags::UNIT_S,
    );
    GucRegistry::define_enum_guc(
        c"pg_steadytext.backend",
        c"Backend that computes models.",
        c"\"native\" gives the same bytes on every machine; \"candle\" is another implementation, for decoders only; \"auto\" takes candle for what native does not compute.",
        &BACKEND,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_enum_guc(
        c"pg_steadytext.engine_process",
        c"Process that runs the engine: a worker, or a program of its own.",
        c"\"separate\": a crash of the engine, or one for want of memory, ends no session of the server.",
        &ENGINE_PROCESS,
        GucContext::Sighup,
        GucFlags::default(),
    );
    zero_or_more(
        c"pg_steadytext.engine_hang_timeout",
        &ENGINE_HANG_TIMEOUT,
        86_400.0,
        c"Time for which the engine may have something to do and make no progress.",
        c"After it, a program (engine_process = separate) is killed and another one started; about an engine in a worker's process a message is written to the server log. 0 waits for ever.",
        GucFlags::UNIT_S,
    );
    GucRegistry::define_int_guc(
        c"pg_steadytext.call_priority",
        c"Priority of synchronous calls, 1 to 10, on the same scale as that of requests in the queue.",
        c"A call takes the place of a running request of a lower priority, which goes on later.",
        &CALL_PRIORITY,
        1,
        10,
        GucContext::Userset,
        GucFlags::default(),
    );
    string(
        c"pg_steadytext.hub_endpoint",
        &HUB_ENDPOINT,
        c"Address of the hub that models are downloaded from.",
        c"Empty: HF_ENDPOINT of the server's environment, or https://huggingface.co.",
    );
    GucRegistry::define_string_guc(
        c"pg_steadytext.hub_token_file",
        c"File with the token that is sent to the hub.",
        c"Relative to the data directory. Empty: HF_TOKEN of the server's environment, or none.",
        &HUB_TOKEN_FILE,
        GucContext::Sighup,
        GucFlags::SUPERUSER_ONLY,
    );
    for (name, setting, short, long) in [
        (c"pg_steadytext.hub_offline", &HUB_OFFLINE, c"Whether all downloads are switched off.", c""),
        (
            c"pg_steadytext.auto_pull",
            &AUTO_PULL,
            c"Whether a request for a registered model whose file is missing waits until it is downloaded.",
            c"Otherwise it fails.",
        ),
    ] {
        GucRegistry::define_bool_guc(name, short, long, setting, GucContext::Sighup, GucFlags::default());
    }
    GucRegistry::define_bool_guc(c"pg_steadytext.notify", c"Whether to send NOTIFY when a request is enqueued or ends.",
        c"The channels are steadytext_queue and steadytext_result, the payload is the request id. NOTIFY slows concurrent commits.",
        &NOTIFY, GucContext::Sighup, GucFlags::default());
    // SAFETY: a prefix of this library's own settings, after all of them are defined.
    #[cfg(not(feature = "pg14"))]
    unsafe {
        pgrx::pg_sys::MarkGUCPrefixReserved(c"pg_steadytext".as_ptr());
    }
}

fn string(
    name: &'static CStr,
    setting: &'static GucSetting<Option<CString>>,
    short: &'static CStr,
    long: &'static CStr,
) {
    GucRegistry::define_string_guc(name, short, long, setting, GucContext::Sighup, GucFlags::default());
}

/// A check hook, as PostgreSQL calls it for a text.
type Check = unsafe extern "C-unwind" fn(*mut *mut c_char, *mut *mut c_void, pg_sys::GucSource::Type) -> bool;

fn model(
    name: &'static CStr,
    setting: &'static GucSetting<Option<CString>>,
    check: Check,
    short: &'static CStr,
    long: &'static CStr,
) {
    // SAFETY: the hook is what PostgreSQL expects of one.
    unsafe {
        GucRegistry::define_string_guc_with_hooks(
            name,
            short,
            long,
            setting,
            GucContext::Userset,
            GucFlags::default(),
            Some(check),
            None,
            None,
        );
    }
}

fn int(
    name: &'static CStr,
    setting: &'static GucSetting<i32>,
    min: i32,
    max: i32,
    short: &'static CStr,
    long: &'static CStr,
    flags: GucFlags,
) {
    GucRegistry::define_int_guc(name, short, long, setting, min, max, GucContext::Sighup, flags);
}

/// A setting with a unit, of which 0 means something else than very little.
///
/// It is no integer, because PostgreSQL would round `100ms` to 0 seconds, and what was meant to be short
/// would be for ever.
fn zero_or_more(
    name: &'static CStr,
    setting: &'static GucSetting<f64>,
    max: f64,
    short: &'static CStr,
    long: &'static CStr,
    flags: GucFlags,
) {
    GucRegistry::define_float_guc_with_hooks(
        name,
        short,
        long,
        setting,
        0.0,
        max,
        GucContext::Sighup,
        flags,
        Some(check_zero_or_more),
        None,
        None,
    );
}

/// The check hook of [`zero_or_more`].
#[pg_guard]
unsafe extern "C-unwind" fn check_zero_or_more(
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

/// The value in force of any of the server's settings.
pub(crate) fn server_setting(name: &CStr) -> Option<String> {
    // SAFETY: the string is copied before anything can change it.
    unsafe {
        let value = pgrx::pg_sys::GetConfigOption(name.as_ptr(), true, false);
        (!value.is_null()).then(|| CStr::from_ptr(value).to_string_lossy().into_owned())
    }
}
