//! The engine that all databases share.
//!
//! Invariant: it computes with the servers' settings that decide bytes: the type of kept keys and values, the
//! backend, the length of a context. A server whose settings differ from the first one's is not served.

use std::sync::{Arc, Mutex, PoisonError};

use steadytext_engine::{BackendChoice, Config, Engine, KvCacheType};

use crate::options::WorkerOptions;

/// Settings of a server on which bytes depend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) kv_cache_type: KvCacheType,
    pub(crate) backend: BackendChoice,
    pub(crate) context_length: usize,
}

/// The reason why there is no engine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    #[error(
        "kv_cache_type, backend or context_length of pg_steadytext are others than those of the first server: run a worker of its own for this one"
    )]
    OtherTerms,
    #[error(transparent)]
    Engine(#[from] steadytext_engine::Error),
}

/// The one engine of the program. It starts when the first server has said its terms.
#[derive(Debug, Default)]
pub(crate) struct SharedEngine {
    started: Mutex<Option<Started>>,
}

struct Started {
    terms: Terms,
    engine: Arc<Engine>,
}

impl std::fmt::Debug for Started {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Started").field("terms", &self.terms).finish_non_exhaustive()
    }
}

impl SharedEngine {
    /// The engine on a server's terms.
    ///
    /// # Errors
    ///
    /// [`EngineError`].
    pub(crate) fn on(&self, terms: Terms, options: &WorkerOptions) -> Result<Arc<Engine>, EngineError> {
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(started) = started.as_ref() {
            return if started.terms == terms {
                Ok(Arc::clone(&started.engine))
            } else {
                Err(EngineError::OtherTerms)
            };
        }
        let engine = Arc::new(Engine::start(Config {
            threads: options.threads,
            max_running: options.concurrency.clamp(1, 64),
            queue_capacity: 4096,
            context_length: terms.context_length,
            kv_cache_mb: options.kv_cache_mb,
            kv_cache_type: terms.kv_cache_type,
            memory_limit_mb: options.memory_limit_mb,
            backend: terms.backend,
            ..Config::default()
        })?);
        *started = Some(Started { terms, engine: Arc::clone(&engine) });
        Ok(engine)
    }

    /// Names of the loaded models.
    pub(crate) fn models(&self) -> Vec<String> {
        let started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        let models = started.as_ref().map(|started| started.engine.loaded_models()).unwrap_or_default();
        models.into_iter().map(|model| model.name).collect()
    }

    /// Ends it, once nobody uses it any more.
    pub(crate) fn stop(&self) {
        self.started.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}
