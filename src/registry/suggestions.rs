//! What may have been meant by a name that nothing has: the hint of the error.
//!
//! Invariant: what is suggested is true of the model: it is here, is to be downloaded, or is asked through
//! the queue.

use strsim::levenshtein;

use super::directory;
use super::elsewhere_only::asks_through_the_queue;
use super::model_files::{is_file_there, is_there};
use super::names::{path_of, shown};
use super::task::{BUILTIN, Task};
use crate::pg::catalog_cache::Models;

/// Models of the directory that are looked at for a hint.
const MAX_SHOWN: usize = 256;

/// Which models of a task could be meant: those whose names are close, or those that are there.
pub(super) fn known(task: Task, name: &str, models: &Models) -> String {
    let rows = models.iter().filter(|model| model.task == task.name());
    let (elsewhere, rows): (Vec<_>, Vec<_>) = rows.partition(|model| model.is_elsewhere());
    let (here, missing): (Vec<_>, Vec<_>) = rows.into_iter().partition(|model| is_file_there(&model.file));
    let mut here: Vec<String> = here.into_iter().map(|model| model.name.clone()).collect();
    let files = directory::entries();
    let files = files.iter().take(MAX_SHOWN).filter(|entry| {
        path_of(entry)
            .is_some_and(|path| is_there(&path) && directory::tasks(&path).contains(&task.of_card()))
    });
    for entry in files {
        let is_of_a_row = models.iter().any(|model| model.file == entry.file);
        if !is_of_a_row && !here.iter().any(|name| name.to_lowercase() == entry.name.to_lowercase()) {
            here.push(entry.name.clone());
        }
    }
    let distance = |known: &str| levenshtein(&shown(name).to_lowercase(), &known.to_lowercase());
    let mut close: Vec<(usize, String)> = Vec::new();
    let mut add = |known: &str, words: &str| {
        let distance = distance(known);
        // A name of the other task's is no misspelling of a short one.
        if distance > 0 && distance <= known.chars().count() / 4 + 1 {
            close.push((distance, format!("\"{known}\"{words}")));
        }
    };
    here.iter().for_each(|known| add(known, ""));
    missing.iter().for_each(|model| add(&model.name, ", which is not downloaded"));
    // Whether its file is here does not matter: nobody looks for it.
    let asked =
        format!(", which workers elsewhere answer when {}() asks", asks_through_the_queue(task.name()));
    elsewhere.iter().for_each(|model| add(&model.name, &asked));
    close.sort();
    if !close.is_empty() {
        let close: Vec<String> = close.into_iter().take(3).map(|(_, name)| name).collect();
        return format!(
            "Did you mean {}? steadytext_model_list() shows the models there are.",
            close.join(", or ")
        );
    }
    let quoted = |name: &str| format!("\"{name}\"");
    let elsewhere =
        elsewhere.iter().take(8).map(|model| format!("{} (computed elsewhere)", quoted(&model.name)));
    let known = here.iter().map(String::as_str).take(8).chain([BUILTIN]).map(quoted);
    let known: Vec<String> = known.chain(elsewhere).collect();
    format!(
        "Models for this task: {}. steadytext_model_list() shows all; administrators add to them with steadytext_model_pull(), in steadytext_models or as files in pg_steadytext.model_dir.",
        known.join(", ")
    )
}
