//! The request model: requests, their work for the engine, and their answers.
//!
//! The queue's trigger, the synchronous calls and the worker share it, so that a request is checked,
//! understood and answered in one way wherever it comes from.
//!
//! Invariant: nothing here depends on where a request comes from. These modules use `pg` and `registry`, and
//! none of those that use them.

mod answer;
mod answer_flaws;
pub(crate) mod arguments;
mod asked;
pub(crate) mod batch_checks;
mod categories;
pub(crate) mod checks;
mod constraint;
pub(crate) mod conversation;
pub(crate) mod defaults;
mod facts;
mod fields;
mod json_text;
mod masking;
pub(crate) mod options;
pub(crate) mod params;
pub(crate) mod prompt_source;
pub(crate) mod prompts;
mod ranking;
mod request_metrics;
mod stages;
mod subtasks;
pub(crate) mod summary;
mod text_spans;
mod text_verbs;
mod usage;
mod values;
pub(crate) mod verb_checks;
mod verbs;
mod work;

pub(crate) use self::answer::{Answer, OnError, unexpected};
pub(crate) use self::answer_flaws::{ForeignAnswer, flaw_of_vectors};
pub(crate) use self::asked::{DEFAULT_MODEL, RawRequest, leave_choice, named_model, wanted};
pub(crate) use self::categories::Categories;
pub(crate) use self::constraint::refused_constraint;
pub(crate) use self::ranking::{Ranked, Ranking};
pub(crate) use self::request_metrics::RequestMetrics;
pub(crate) use self::stages::{EndedRequest, Stages};
pub(crate) use self::subtasks::{Subtasks, description};
pub(crate) use self::usage::Usage;
pub(crate) use self::work::{
    check_model, check_vectors, default_to_remember, model, subtasks, subtasks_elsewhere, task_of, work,
};
