//! Settings of an engine.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::{BackendKind, Candle};
use crate::computing::ModelLimits;
use crate::gguf::Gguf;
use crate::kernels::instructions::Instructions;
use crate::kernels::tile::KvCacheType;
use crate::model::is_encoder;
use crate::{Error, FiguresSink, model};

/// The condition for guesses at tokens that stand in the prompt or in what was generated, by which the engine
/// computes several of them in one pass. Results do not depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PromptLookup {
    /// The engine guesses where few requests run and the guesses turn out right.
    #[default]
    Auto,
    /// The engine guesses whenever there is something to guess from.
    On,
    /// The engine never guesses.
    Off,
}

/// The choice of the backend that computes models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum BackendChoice {
    /// The native backend where it computes a model, otherwise candle's.
    #[default]
    Auto,
    /// The native one only.
    Native,
    /// Candle's only.
    Candle,
}

impl BackendChoice {
    /// The choice of a name in settings.
    pub fn named(name: &str) -> Option<BackendChoice> {
        Some(match name {
            "auto" => BackendChoice::Auto,
            "native" => BackendChoice::Native,
            "candle" => BackendChoice::Candle,
            _ => return None,
        })
    }

    /// The backend that models are expected to be computed by, which keeps keys and values in this way if it
    /// can. Where another one has computed an answer, its [identity](crate::ModelIdentity) says so.
    pub fn expected(self, kv_cache_type: KvCacheType) -> BackendKind {
        match self {
            BackendChoice::Auto | BackendChoice::Native => BackendKind::Native(kv_cache_type),
            // Candle keeps keys and values in one way only.
            BackendChoice::Candle => BackendKind::Candle,
        }
    }

    /// The backend for a model's file.
    ///
    /// # Errors
    /// [`Error::CorruptModel`], for what no backend could compute.
    pub(crate) fn of(
        self,
        gguf: &Gguf,
        kv_cache_type: KvCacheType,
        limits: ModelLimits,
    ) -> Result<BackendKind, Error> {
        let expected = self.expected(kv_cache_type);
        if self != BackendChoice::Auto || is_encoder(gguf)? {
            return Ok(expected);
        }
        // A model that neither backend computes is refused with the native backend's error.
        let checked = model::check(gguf, kv_cache_type, limits.rows, false);
        let refused = matches!(checked, Err(Error::UnsupportedModel { .. }));
        Ok(if refused && Candle::computes(gguf) { BackendKind::Candle } else { expected })
    }
}

/// Settings of an engine, fixed from its start to its end.
#[derive(Clone)]
pub struct Config {
    /// Threads that compute; 0 for one per core. Results do not depend on it.
    pub threads: usize,
    /// Nice value of the engine's threads, 0 to 19 (Linux).
    pub nice: i32,
    /// Most requests that are worked on at a time.
    pub max_running: usize,
    /// Most requests that wait; one more is refused.
    pub queue_capacity: usize,
    /// Most tokens of prompt and answer together; 0 for what the model can, at most 32,768.
    pub context_length: usize,
    /// Memory for the keys and values of all running requests, and of those kept for the next ones.
    pub kv_cache_mb: u64,
    /// Format of keys and values. Results depend on it.
    pub kv_cache_type: KvCacheType,
    /// Memory for models, keys and values together; 0 for no limit.
    pub memory_limit_mb: u64,
    /// Time without a request after which a model is unloaded; None for never.
    pub model_idle_timeout: Option<Duration>,
    /// Whether keys and values are kept, for requests that begin like others before them.
    pub prefix_reuse: bool,
    /// The backend that computes models.
    pub backend: BackendChoice,
    /// Whether tokens are guessed.
    pub prompt_lookup: PromptLookup,
    /// Rows of prompts in one step after another, over and over; empty to let the engine choose, which
    /// depends on time. For tests: results do not depend on it.
    #[doc(hidden)]
    pub prefill_rows: Vec<usize>,
    /// Whether keys and values that no window of a layer covers any more are kept all the same. For tests:
    /// results do not depend on it.
    #[doc(hidden)]
    pub whole_windows: bool,
    /// No token ends an answer, so that it goes on to its limit whatever the model says. For benchmarks.
    #[doc(hidden)]
    pub endless: bool,
    /// Instructions that the kernels may use. Results do not depend on it.
    pub instructions: Instructions,
    /// Run first on every thread that the engine starts.
    pub thread_start: Option<Arc<dyn Fn() + Send + Sync>>,
    /// Called when the engine's thread has ended without being told to. It must not block or panic.
    pub ended: Option<Arc<dyn Fn() + Send + Sync>>,
    /// Called by the engine's thread some times a second while it works, and once more before it waits for
    /// work.
    pub figures: Option<FiguresSink>,
    /// Called by the engine's thread at some places, with their names. For tests, which make it panic there.
    #[doc(hidden)]
    pub fault: Option<Arc<dyn Fn(&'static str) + Send + Sync>>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            threads: 0,
            nice: 10,
            max_running: 16,
            queue_capacity: 1024,
            context_length: 0,
            kv_cache_mb: 1024,
            kv_cache_type: KvCacheType::default(),
            memory_limit_mb: 0,
            model_idle_timeout: Some(Duration::from_secs(600)),
            prefix_reuse: true,
            backend: BackendChoice::Auto,
            prompt_lookup: PromptLookup::Auto,
            prefill_rows: Vec::new(),
            whole_windows: false,
            endless: false,
            instructions: Instructions::best(),
            thread_start: None,
            ended: None,
            figures: None,
            fault: None,
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("threads", &self.threads)
            .field("nice", &self.nice)
            .field("max_running", &self.max_running)
            .field("queue_capacity", &self.queue_capacity)
            .field("context_length", &self.context_length)
            .field("kv_cache_mb", &self.kv_cache_mb)
            .field("kv_cache_type", &self.kv_cache_type)
            .field("memory_limit_mb", &self.memory_limit_mb)
            .field("model_idle_timeout", &self.model_idle_timeout)
            .field("prefix_reuse", &self.prefix_reuse)
            .field("backend", &self.backend)
            .field("prompt_lookup", &self.prompt_lookup)
            .field("prefill_rows", &self.prefill_rows)
            .field("endless", &self.endless)
            .field("instructions", &self.instructions)
            .finish_non_exhaustive()
    }
}

impl Config {
    /// Threads that compute, at least one.
    pub(crate) fn compute_threads(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        }
    }

    /// The function that every thread of the engine runs first: the caller's hook, then its niceness, raised
    /// by `more` for a thread that gives way to the others.
    pub(crate) fn on_thread_start(&self, more: i32) -> Arc<dyn Fn() + Send + Sync> {
        let (hook, nice) = (self.thread_start.clone(), self.nice.saturating_add(more));
        Arc::new(move || {
            if let Some(hook) = &hook {
                hook();
            }
            set_nice(nice);
        })
    }
}

/// Sets the niceness of the calling thread. Only Linux has one for each thread; there, a value that the
/// system refuses (giving way less than it does already) leaves things as they are.
fn set_nice(nice: i32) {
    #[cfg(target_os = "linux")]
    if nice != 0 {
        let _ = rustix::process::setpriority_process(None, nice.clamp(0, 19));
    }
    #[cfg(not(target_os = "linux"))]
    let _ = nice;
}
