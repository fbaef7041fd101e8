//! What an engine is doing now, for those who watch it.
//!
//! The engine's thread tells it some times a second while it works, and once more before it waits for work. Nobody has to
//! ask, and nobody who watches can hold it up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::Statistics;
use crate::config::Config;

/// How often it is told while there is work.
const INTERVAL: Duration = Duration::from_millis(250);

/// What an engine is doing, and what it has done since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Figures {
    /// Requests that are being computed.
    pub running: u64,
    /// Requests that have given their places away for a while, or whose reader is behind.
    pub suspended: u64,
    /// Requests that have not begun.
    pub waiting: u64,
    /// Bytes of keys and values that requests have or are going to have.
    pub kv_used_bytes: u64,
    /// Bytes of keys and values that are kept for requests to come, and that nobody has.
    pub kv_kept_bytes: u64,
    /// Bytes that keys and values may take.
    pub kv_limit_bytes: u64,
    /// Models that are loaded.
    pub models: u64,
    /// Bytes of models that are loaded or being loaded: weights, vocabularies and workspaces.
    pub model_bytes: u64,
    /// Bytes of prompts that wait, of constraints, and of messages on their way.
    pub request_bytes: u64,
    /// Bytes that all of it may take; 0 for no limit.
    pub limit_bytes: u64,
    /// What was done since the start.
    pub statistics: Statistics,
}

/// Takes them. It must not block or panic.
pub type FiguresSink = Arc<dyn Fn(&Figures) + Send + Sync>;

/// Who gets the figures, and when that was last.
pub(super) struct Watch {
    publish: Option<FiguresSink>,
    published_at: Option<Instant>,
    /// Nothing has happened since.
    is_published: bool,
}

impl Watch {
    pub(super) fn new(config: &Config) -> Watch {
        Watch { publish: config.figures.clone(), published_at: None, is_published: false }
    }

    /// Notes that something is being done. Whether it is time to publish the figures.
    pub(super) fn is_due(&mut self) -> bool {
        self.is_published = false;
        self.publish.is_some() && self.published_at.is_none_or(|at| at.elapsed() >= INTERVAL)
    }

    /// Whether something was done that is not published.
    pub(super) fn is_behind(&self) -> bool {
        self.publish.is_some() && !self.is_published
    }

    /// Publishes the figures.
    pub(super) fn publish(&mut self, figures: &Figures) {
        (self.published_at, self.is_published) = (Some(Instant::now()), true);
        if let Some(publish) = &self.publish {
            publish(figures);
        }
    }
}
