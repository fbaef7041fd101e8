//! The arguments of `serve`.

use steadytext_engine::Config;

/// The engine that a server asks for.
#[derive(Debug)]
pub(super) struct Serving {
    /// The build of the server's library.
    pub(super) build: Option<String>,
    pub(super) nice: i32,
    pub(super) max_running: usize,
    pub(super) kv_cache_mb: u64,
    /// 0: no limit.
    pub(super) memory_limit_mb: u64,
    /// 0: models stay.
    pub(super) idle_timeout_s: f64,
    /// PLACE:FILE, for tests: where the engine panics as long as the file is there.
    pub(super) fault: Option<String>,
}

impl Default for Serving {
    fn default() -> Serving {
        let Config { nice, max_running, kv_cache_mb, memory_limit_mb, model_idle_timeout, .. } =
            Config::default();
        let idle_timeout_s = model_idle_timeout.map_or(0.0, |timeout| timeout.as_secs_f64());
        Serving { build: None, nice, max_running, kv_cache_mb, memory_limit_mb, idle_timeout_s, fault: None }
    }
}
