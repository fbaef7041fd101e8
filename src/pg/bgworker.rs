//! Starting background workers and connecting them.

use std::sync::OnceLock;

use pgrx::pg_sys;

use super::shmem::{PACES, VectorizerPace};

/// Defines the function by which PostgreSQL enters a worker, and a constant with its name: it is found by its
/// symbol and gets the worker's argument.
macro_rules! entry_point {
    ($(#[$doc:meta])* $constant:ident = $name:ident => $run:expr) => {
        $(#[$doc])*
        const $constant: &str = stringify!($name);

        $(#[$doc])*
        #[pgrx::pg_guard]
        #[unsafe(no_mangle)]
        #[allow(unsafe_code, unreachable_pub, reason = "an exported symbol")]
        pub extern "C-unwind" fn $name(argument: pgrx::pg_sys::Datum) {
            let run: fn(usize) = $run;
            run(argument.value());
        }
    };
}
pub(crate) use entry_point;

/// The names of the functions by which PostgreSQL enters the workers.
#[derive(Debug)]
pub(crate) struct EntryPoints {
    /// The entry point of the launcher.
    pub(crate) launcher: &'static str,
    /// The entry point of a database's worker.
    pub(crate) worker: &'static str,
    /// The entry point of a process that only runs the engine.
    pub(crate) engine: &'static str,
    /// The entry point of a process that downloads a model.
    pub(crate) download: &'static str,
    /// The entry point of the processes for a database's vectorizers.
    pub(crate) vectorizer: &'static str,
}

/// The names of this library's entry points. The postmaster sets them before it forks.
static ENTRY_POINTS: OnceLock<EntryPoints> = OnceLock::new();

/// Registers the launcher, and keeps the names for the workers that are started later. Only while
/// shared_preload_libraries is processed.
pub(crate) fn register_launcher(entry_points: EntryPoints) {
    let entry_points = ENTRY_POINTS.get_or_init(|| entry_points);
    let mut worker = template("pg_steadytext launcher", entry_points.launcher);
    worker.bgw_start_time = pg_sys::BgWorkerStartTime::BgWorkerStart_ConsistentState;
    worker.bgw_restart_time = 5;
    // SAFETY: a filled-in description, copied by the callee.
    unsafe { pg_sys::RegisterBackgroundWorker(&mut worker) };
}

/// A dynamic worker that this process has started.
pub(crate) struct Handle(*mut pg_sys::BackgroundWorkerHandle);

impl Handle {
    /// Whether the worker has ended (or will never start).
    pub(crate) fn has_ended(&self) -> bool {
        let mut pid = 0;
        // SAFETY: a handle from `start_worker`, alive until dropped.
        let status = unsafe { pg_sys::GetBackgroundWorkerPid(self.0, &mut pid) };
        !matches!(
            status,
            pg_sys::BgwHandleStatus::BGWH_STARTED | pg_sys::BgwHandleStatus::BGWH_NOT_YET_STARTED
        )
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: allocated by RegisterDynamicBackgroundWorker for its caller.
        unsafe { pg_sys::pfree(self.0.cast()) };
    }
}

/// Starts the worker of a slot. `None` if all of max_worker_processes are in use.
pub(crate) fn start_worker(slot: usize, database: pg_sys::Oid) -> Option<Handle> {
    let name = format!("pg_steadytext worker for database {}", database.to_u32());
    let mut worker = template(&name, ENTRY_POINTS.get()?.worker);
    fill(&mut worker.bgw_type, "pg_steadytext worker");
    worker.bgw_start_time = pg_sys::BgWorkerStartTime::BgWorkerStart_RecoveryFinished;
    worker.bgw_main_arg = pg_sys::Datum::from(slot);
    worker.bgw_extra[..4]
        .copy_from_slice(&database.to_u32().to_ne_bytes().map(|byte| byte as std::ffi::c_char));
    start(worker)
}

fn start(mut worker: pg_sys::BackgroundWorker) -> Option<Handle> {
    worker.bgw_restart_time = pg_sys::BGW_NEVER_RESTART;
    // SAFETY: the handle is allocated in a context that lives as long as this process.
    unsafe {
        worker.bgw_notify_pid = pg_sys::MyProcPid;
        let before = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
        let mut handle = std::ptr::null_mut();
        let started = pg_sys::RegisterDynamicBackgroundWorker(&mut worker, &mut handle);
        pg_sys::MemoryContextSwitchTo(before);
        started.then(|| Handle(handle))
    }
}

/// Starts a process that only runs the engine, also while the server is a standby. `None` if all of
/// max_worker_processes are in use.
pub(crate) fn start_engine() -> Option<Handle> {
    let mut worker = template("pg_steadytext engine", ENTRY_POINTS.get()?.engine);
    worker.bgw_start_time = pg_sys::BgWorkerStartTime::BgWorkerStart_ConsistentState;
    start(worker)
}

/// Starts the process of a download, also while the server is a standby. False if all of max_worker_processes
/// are in use.
pub(crate) fn start_download(index: usize) -> bool {
    let Some(entry_points) = ENTRY_POINTS.get() else { return false };
    let mut worker = template("pg_steadytext download", entry_points.download);
    worker.bgw_start_time = pg_sys::BgWorkerStartTime::BgWorkerStart_ConsistentState;
    worker.bgw_main_arg = pg_sys::Datum::from(index);
    start(worker).is_some()
}

/// Starts a process that works for the vectorizers of a slot's database. False if all of max_worker_processes
/// are in use.
pub(crate) fn start_vectorizer(slot: usize, pace: VectorizerPace, database: pg_sys::Oid) -> bool {
    let name = match pace {
        VectorizerPace::Fast => "pg_steadytext vectorizer",
        VectorizerPace::Slow => "pg_steadytext slow vectorizer",
    };
    let Some(entry_points) = ENTRY_POINTS.get() else { return false };
    let mut worker = template(name, entry_points.vectorizer);
    worker.bgw_start_time = pg_sys::BgWorkerStartTime::BgWorkerStart_RecoveryFinished;
    worker.bgw_main_arg = pg_sys::Datum::from(slot * PACES + pace as usize);
    worker.bgw_extra[..4]
        .copy_from_slice(&database.to_u32().to_ne_bytes().map(|byte| byte as std::ffi::c_char));
    start(worker).is_some()
}

/// Makes the calling thread give way to all others. Unlike a thread that is merely nice, it preempts no other
/// thread when it wakes up (SCHED_IDLE).
#[cfg(not(feature = "noop-engine"))]
pub(crate) fn run_when_idle() {
    // SAFETY: 0 is the calling thread; where the system refuses, it goes on as it is.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, 19);
        libc::sched_setscheduler(0, libc::SCHED_IDLE, &libc::sched_param { sched_priority: 0 });
    }
}

/// The database that this worker was started for.
pub(crate) fn my_assignment() -> pg_sys::Oid {
    // SAFETY: set by PostgreSQL before the worker's main function is called.
    let extra = unsafe { (*pg_sys::MyBgworkerEntry).bgw_extra };
    pg_sys::Oid::from(u32::from_ne_bytes([extra[0] as u8, extra[1] as u8, extra[2] as u8, extra[3] as u8]))
}

/// Whether this process, which is a background worker, was started by this library.
#[cfg(any(feature = "pg17", feature = "pg18"))]
pub(super) fn is_own() -> bool {
    // SAFETY: set by PostgreSQL before the worker's main function is called.
    let library = unsafe { &(*pg_sys::MyBgworkerEntry).bgw_library_name };
    let library: Vec<u8> = library.iter().take_while(|byte| **byte != 0).map(|byte| *byte as u8).collect();
    library == b"pg_steadytext"
}

/// Whether this process is a background worker of this extension's.
pub(crate) fn is_worker() -> bool {
    super::slots::mine().is_some_and(|slot| {
        // SAFETY: a plain global of this process.
        slot.pid.load(std::sync::atomic::Ordering::Relaxed) == unsafe { pg_sys::MyProcPid }
    })
}

/// Connects this worker to `database` as the bootstrap superuser; without one, to the shared catalogs only.
pub(crate) fn connect(database: Option<pg_sys::Oid>) {
    // SAFETY: once per worker, after signals were let in.
    unsafe {
        match database {
            Some(oid) => pg_sys::BackgroundWorkerInitializeConnectionByOid(oid, pg_sys::InvalidOid, 0),
            None => pg_sys::BackgroundWorkerInitializeConnection(std::ptr::null(), std::ptr::null(), 0),
        }
        // pg_stat_activity has the kind of a worker as backend_type; programs look at the name of the
        // application.
        let kind = &(*pg_sys::MyBgworkerEntry).bgw_type;
        let kind = std::ffi::CStr::from_ptr(kind.as_ptr()).to_owned();
        set(c"application_name", &kind);
    }
}

/// Says in the title of this process, which `ps` shows, what it is doing.
pub(crate) fn show(activity: &str) {
    let Ok(activity) = std::ffi::CString::new(activity) else { return };
    // SAFETY: a string that ends with a zero, copied by the callee.
    unsafe {
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        pg_sys::set_ps_display(activity.as_ptr());
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        pg_sys::set_ps_display_with_len(activity.as_ptr(), activity.as_bytes().len() as _);
    }
}

/// Settings of the session that the database or the role may have changed, but on which the worker relies.
pub(crate) fn pin_settings() {
    let mut settings = vec![
        (c"search_path", c"pg_catalog, pg_temp"),
        (c"default_transaction_isolation", c"read committed"),
        (c"default_transaction_read_only", c"off"),
        (c"default_transaction_deferrable", c"off"),
        (c"session_replication_role", c"origin"),
        (c"statement_timeout", c"0"),
        (c"lock_timeout", c"500ms"),
        (c"idle_in_transaction_session_timeout", c"0"),
        (c"row_security", c"on"),
        (c"jit", c"off"),
        (c"bytea_output", c"hex"),
        (c"DateStyle", c"ISO, YMD"),
        (c"IntervalStyle", c"postgres"),
        (c"TimeZone", c"UTC"),
        (c"extra_float_digits", c"1"),
    ];
    if cfg!(any(feature = "pg17", feature = "pg18")) {
        settings.push((c"transaction_timeout", c"0"));
    }
    for (name, value) in settings {
        set(name, value);
    }
    // "off" could lose a result that a client has seen.
    let weakest = super::guc::server_setting(c"synchronous_commit");
    if weakest.as_deref() == Some("off") {
        set(c"synchronous_commit", c"local");
    }
}

fn set(name: &std::ffi::CStr, value: &std::ffi::CStr) {
    // SAFETY: C strings; the session's own value outranks those of database, role and configuration file.
    unsafe {
        pg_sys::SetConfigOption(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_SESSION,
        );
    }
}

fn template(name: &str, function: &str) -> pg_sys::BackgroundWorker {
    let mut worker = pg_sys::BackgroundWorker {
        bgw_flags: (pg_sys::BGWORKER_SHMEM_ACCESS | pg_sys::BGWORKER_BACKEND_DATABASE_CONNECTION) as i32,
        ..Default::default()
    };
    fill(&mut worker.bgw_name, name);
    fill(&mut worker.bgw_type, name);
    fill(&mut worker.bgw_library_name, "pg_steadytext");
    fill(&mut worker.bgw_function_name, function);
    worker
}

fn fill(field: &mut [std::ffi::c_char], text: &str) {
    let room = field.len() - 1;
    for (target, byte) in field[..room].iter_mut().zip(text.bytes()) {
        *target = byte as std::ffi::c_char;
    }
    field[text.len().min(room)..].fill(0);
}
