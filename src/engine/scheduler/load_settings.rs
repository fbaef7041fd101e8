//! The settings of the engine that models are loaded with.

use std::sync::Arc;

use crate::computing::ModelLimits;
use crate::config::{BackendChoice, Config};
use crate::kernels::instructions::Instructions;
use crate::kernels::tile::KvCacheType;
use crate::memory::Ledger;

/// Most rows of one forward pass that belong to prompts.
pub(super) const MAX_PREFILL_ROWS: usize = 256;

/// Settings that models are loaded with.
#[derive(Debug, Clone)]
pub(super) struct LoadSettings {
    /// The longest context of any model, 0 for none.
    pub(super) context_length: usize,
    max_running: usize,
    pub(super) threads: usize,
    /// Whether answers end at their limit only.
    pub(super) endless: bool,
    pub(super) instructions: Instructions,
    pub(super) memory: Arc<Ledger>,
    /// The backend that computes the models.
    pub(super) backend: BackendChoice,
    pub(super) kv_cache_type: KvCacheType,
    pub(super) whole_windows: bool,
}

impl LoadSettings {
    pub(super) fn of(config: &Config, memory: &Arc<Ledger>) -> LoadSettings {
        LoadSettings {
            context_length: config.context_length,
            max_running: config.max_running.max(1),
            threads: config.compute_threads(),
            endless: config.endless,
            instructions: config.instructions,
            memory: Arc::clone(memory),
            backend: config.backend,
            kv_cache_type: config.kv_cache_type,
            whole_windows: config.whole_windows,
        }
    }

    /// Limits of the passes that models are loaded for.
    pub(super) fn limits(&self) -> ModelLimits {
        limits(self.max_running, self.threads)
    }
}

/// Limits of the passes of an engine that runs so many requests at a time.
pub(crate) fn limits(max_running: usize, threads: usize) -> ModelLimits {
    ModelLimits { rows: MAX_PREFILL_ROWS + max_running, wanted: max_running, threads }
}
