//! Publication of the engine's figures.
//!
//! The engine's thread publishes them some times a second while it works, and once more before it waits for
//! work. Nobody has to ask for them, and no receiver can hold the thread up.

use std::time::{Duration, Instant};

use crate::config::Config;
use crate::{Figures, FiguresSink};

/// The interval while there is work.
const INTERVAL: Duration = Duration::from_millis(250);

/// The receiver of the figures, and the time at which they were last published.
pub(super) struct FiguresWatch {
    publish: Option<FiguresSink>,
    published_at: Option<Instant>,
    /// Whether nothing has happened since.
    is_published: bool,
}

impl FiguresWatch {
    pub(super) fn new(config: &Config) -> FiguresWatch {
        FiguresWatch { publish: config.figures.clone(), published_at: None, is_published: false }
    }

    /// Notes that work is done; true if it is time to publish the figures.
    pub(super) fn is_due(&mut self) -> bool {
        self.is_published = false;
        self.publish.is_some() && self.published_at.is_none_or(|at| at.elapsed() >= INTERVAL)
    }

    /// Whether work was done since the figures were published.
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
