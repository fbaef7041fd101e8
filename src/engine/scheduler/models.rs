//! The loaded models: opened on first use, kept by their source, unloaded when idle or in the way.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::prefix::Prefixes;
use crate::config::Config;
use crate::gguf::Gguf;
use crate::kernels::Pool;
use crate::model::{Hyperparameters, Loading, Model, Workspace};
use crate::template::ChatTemplate;
use crate::tokenizer::Tokenizer;
use crate::{Error, ModelSource, builtin};

/// Most rows of one forward pass that belong to prompts.
pub(super) const MAX_PREFILL_ROWS: usize = 256;

/// A model that is loaded, for listings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedModel {
    /// `builtin`, or the path of its file.
    pub name: String,
    /// Memory that it takes, keys and values of its requests apart.
    pub memory_mb: u64,
}

/// A model with all that belongs to it.
pub(super) struct Loaded {
    source: ModelSource,
    pub(super) model: Model,
    pub(super) tokenizer: Tokenizer,
    pub(super) template: ChatTemplate,
    pub(super) workspace: Workspace,
    /// Blocks of keys and values kept for the next requests.
    pub(super) prefixes: Prefixes,
    /// Tokens that a request may have in all.
    pub(super) context_length: usize,
    bytes: u64,
    used: Instant,
    /// Seconds that a row of a pass with a slice of prompts takes, a running average.
    pub(super) row_seconds: Option<f64>,
}

impl Loaded {
    /// Bytes of a block of keys and values.
    fn block_bytes(&self) -> u64 {
        self.model.cache_shape().block_bytes()
    }
}

/// Why a model is not there.
pub(super) enum Missing {
    /// Its memory is taken by models that are in use; later, perhaps.
    NoRoom,
    Failed(Error),
}

/// All loaded models.
pub(super) struct Models {
    loaded: Vec<Loaded>,
    /// What [`crate::Engine::loaded_models`] shows.
    listing: Arc<Mutex<Vec<LoadedModel>>>,
    limit_bytes: u64,
    idle_timeout: Option<Duration>,
    context_length: usize,
    rows: usize,
    threads: usize,
}

impl Models {
    pub(super) fn new(config: &Config, listing: Arc<Mutex<Vec<LoadedModel>>>) -> Models {
        Models {
            loaded: Vec::new(),
            listing,
            limit_bytes: match config.memory_limit_mb {
                0 => u64::MAX,
                mb => mb.saturating_mul(1 << 20),
            },
            idle_timeout: config.model_idle_timeout,
            context_length: config.context_length,
            rows: MAX_PREFILL_ROWS + config.max_running.max(1),
            threads: config.compute_threads(),
        }
    }

    /// Bytes left for keys and values, beside the models and what is reserved already.
    pub(super) fn room(&self, reserved: u64) -> u64 {
        self.limit_bytes.saturating_sub(reserved).saturating_sub(self.bytes())
    }

    /// Bytes of kept blocks that running requests hold.
    pub(super) fn held_bytes(&self) -> u64 {
        self.loaded.iter().map(|loaded| loaded.prefixes.held() as u64 * loaded.block_bytes()).sum()
    }

    /// Frees kept blocks until they take at most `bytes` in all, as far as running requests do not hold them.
    /// Those of the models that were not used for the longest time go first.
    pub(super) fn trim_prefixes(&mut self, bytes: u64) {
        let kept = |loaded: &Loaded| loaded.prefixes.len() as u64 * loaded.block_bytes();
        let mut total: u64 = self.loaded.iter().map(kept).sum();
        if total <= bytes {
            return;
        }
        let mut by_age: Vec<&mut Loaded> = self.loaded.iter_mut().collect();
        by_age.sort_by_key(|loaded| loaded.used);
        for loaded in by_age {
            while total > bytes && loaded.prefixes.evict() {
                total -= loaded.block_bytes();
            }
        }
    }

    fn bytes(&self) -> u64 {
        self.loaded.iter().map(|loaded| loaded.bytes).sum()
    }

    /// Whether the model is there without loading it.
    pub(super) fn has(&self, source: &ModelSource) -> bool {
        self.loaded.iter().any(|loaded| loaded.source == *source)
    }

    /// The model, if it is there.
    pub(super) fn get(&mut self, source: &ModelSource) -> Option<&mut Loaded> {
        let loaded = self.loaded.iter_mut().find(|loaded| loaded.source == *source)?;
        loaded.used = Instant::now();
        Some(loaded)
    }

    /// The model, loaded if need be. `in_use` says which models have running requests, `reserved` how many
    /// bytes of keys and values those have.
    pub(super) fn load(
        &mut self,
        source: &ModelSource,
        in_use: &dyn Fn(&ModelSource) -> bool,
        reserved: u64,
    ) -> Result<&mut Loaded, Missing> {
        if !self.has(source) {
            let gguf = match source {
                ModelSource::Builtin => builtin::gguf(),
                ModelSource::File(path) => Gguf::open(path),
            }
            .map_err(Missing::Failed)?;
            let sizes = Hyperparameters::of(&gguf).map_err(Missing::Failed)?;
            // The file counts once, although pages of it whose weights were repacked are soon dropped; beside
            // it vocabulary and merges, which are built from it, and what panels take beyond what they replace.
            let bytes = gguf.file_size()
                + gguf.file_size().min(64 << 20)
                + Model::repacked_bytes(&gguf)
                + Model::workspace_bytes(&sizes, self.rows, self.threads);
            self.make_room(&gguf, bytes, in_use, reserved)?;
            let loaded = self.open(source, &gguf, bytes).map_err(Missing::Failed)?;
            self.loaded.push(loaded);
            self.list();
        }
        self.get(source).ok_or(Missing::NoRoom)
    }

    fn open(&self, source: &ModelSource, gguf: &Gguf, bytes: u64) -> Result<Loaded, Error> {
        let start: Arc<dyn Fn() + Send + Sync> = Arc::new(|| {});
        let pool = Pool::new(self.threads, &start).map_err(|error| Error::Panicked(error.to_string()))?;
        let model = Model::load(gguf, &Loading { pool: &pool, stop: &|| false })?;
        let tokenizer = Tokenizer::from_gguf(gguf)?;
        if tokenizer.vocab_size() > model.vocabulary() {
            return Err(gguf.corrupt(format!(
                "it has {} tokens, but tensor \"token_embd.weight\" has {} rows",
                tokenizer.vocab_size(),
                model.vocabulary()
            )));
        }
        let declared = model.sizes().context_length;
        let context_length =
            if self.context_length == 0 { declared } else { declared.min(self.context_length) };
        Ok(Loaded {
            source: source.clone(),
            template: ChatTemplate::from_gguf(gguf)?,
            workspace: model.workspace(self.rows, self.threads),
            prefixes: Prefixes::default(),
            model,
            tokenizer,
            context_length,
            bytes,
            used: Instant::now(),
            row_seconds: None,
        })
    }

    /// Unloads idle models, the longest unused first, until `bytes` fit.
    fn make_room(
        &mut self,
        gguf: &Gguf,
        bytes: u64,
        in_use: &dyn Fn(&ModelSource) -> bool,
        reserved: u64,
    ) -> Result<(), Missing> {
        if bytes > self.limit_bytes {
            return Err(Missing::Failed(Error::OutOfMemory {
                what: format!("model file \"{}\"", gguf.path().display()),
                needed_mb: bytes.div_ceil(1 << 20),
                limit_mb: Some(self.limit_bytes >> 20),
            }));
        }
        while bytes > self.room(reserved) {
            let idle = self.loaded.iter().enumerate().filter(|(_, loaded)| !in_use(&loaded.source));
            let Some((oldest, _)) = idle.min_by_key(|(_, loaded)| loaded.used) else {
                return Err(Missing::NoRoom);
            };
            self.loaded.remove(oldest);
            self.list();
        }
        let others =
            self.bytes().saturating_add(bytes).saturating_add(reserved.saturating_sub(self.held_bytes()));
        self.trim_prefixes(self.limit_bytes.saturating_sub(others));
        Ok(())
    }

    /// Unloads models that were idle for too long; returns how long the next one has left.
    pub(super) fn unload_idle(&mut self, in_use: &dyn Fn(&ModelSource) -> bool) -> Option<Duration> {
        let timeout = self.idle_timeout?;
        let before = self.loaded.len();
        self.loaded.retain(|loaded| in_use(&loaded.source) || loaded.used.elapsed() < timeout);
        if self.loaded.len() != before {
            self.list();
        }
        self.loaded.iter().map(|loaded| timeout.saturating_sub(loaded.used.elapsed())).min()
    }

    /// What is wrong with a model's file, if it can no longer be read.
    pub(super) fn lost(&self, source: &ModelSource) -> Option<Error> {
        let loaded = self.loaded.iter().find(|loaded| loaded.source == *source)?;
        loaded.model.check_lost().err()
    }

    /// Unloads the models whose files can no longer be read.
    pub(super) fn unload_lost(&mut self) -> Vec<(ModelSource, Error)> {
        let lost = |loaded: &Loaded| Some((loaded.source.clone(), loaded.model.check_lost().err()?));
        let lost: Vec<_> = self.loaded.iter().filter_map(lost).collect();
        if !lost.is_empty() {
            self.loaded.retain(|loaded| loaded.model.check_lost().is_ok());
            self.list();
        }
        lost
    }

    /// Unloads everything.
    pub(super) fn clear(&mut self) {
        self.loaded.clear();
        self.list();
    }

    fn list(&self) {
        let models = self.loaded.iter().map(|loaded| LoadedModel {
            name: source_name(&loaded.source),
            memory_mb: loaded.bytes.div_ceil(1 << 20),
        });
        *self.listing.lock().unwrap_or_else(PoisonError::into_inner) = models.collect();
    }
}

fn source_name(source: &ModelSource) -> String {
    match source {
        ModelSource::Builtin => builtin::NAME.to_owned(),
        ModelSource::File(path) => path.display().to_string(),
    }
}
