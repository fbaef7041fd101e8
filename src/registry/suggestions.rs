//! Suggestions for an unknown name of a model: the hint of the error.
//!
//! Invariant: what is suggested is true of the model: it is here, is to be downloaded, is asked through the
//! queue, or is for another task.

use strsim::levenshtein;

use super::directory;
use super::model_files::{is_file_there, is_there};
use super::names::{path_of, shown};
use super::task::{BUILTIN, ModelTask};
use crate::pg::catalog_cache::{ModelRegistry, RegisteredModel};

/// Models of the directory that are looked at for a hint.
const MAX_SHOWN: usize = 256;

/// A hint with the models of a task whose names are close, or else with those that are there.
pub(super) fn known(task: ModelTask, name: &str, models: &ModelRegistry) -> String {
    if let Some(close) = close_to(&[task], name, models) {
        return close;
    }
    let quoted = |name: &str| format!("\"{name}\"");
    let (elsewhere, rows): (Vec<_>, Vec<_>) =
        rows_for(&[task], models).partition(|model| model.is_elsewhere());
    let elsewhere =
        elsewhere.iter().take(8).map(|model| format!("{} (computed elsewhere)", quoted(&model.name)));
    let here = here(&[task], &rows, models);
    let known = here.iter().map(String::as_str).take(8).chain([BUILTIN]).map(quoted);
    let known: Vec<String> = known.chain(elsewhere).collect();
    format!(
        "Models for this task: {}. steadytext_model_list() shows all; administrators add to them with steadytext_model_pull(), in steadytext_models or as files in pg_steadytext.model_dir.",
        known.join(", ")
    )
}

/// A hint with the models of any task whose names are close. `None` where there are none.
pub(crate) fn close(name: &str, models: &ModelRegistry) -> Option<String> {
    close_to(&ModelTask::ALL, name, models)
}

/// The rows of some tasks.
fn rows_for<'a>(tasks: &[ModelTask], models: &'a ModelRegistry) -> impl Iterator<Item = &'a RegisteredModel> {
    models.iter().filter(|model| tasks.iter().any(|task| task.name() == model.task))
}

/// The names of models whose files are here, for some tasks.
fn here(tasks: &[ModelTask], rows: &[&RegisteredModel], models: &ModelRegistry) -> Vec<String> {
    let of_rows = rows.iter().filter(|model| is_file_there(&model.file));
    let mut here: Vec<String> = of_rows.map(|model| model.name.clone()).collect();
    let files = directory::entries();
    let files = files.iter().take(MAX_SHOWN).filter(|entry| {
        path_of(entry).is_some_and(|path| {
            let has = |task: &ModelTask| directory::tasks(&path).is_ok_and(|of| of.contains(&task.of_card()));
            is_there(&path) && (tasks.len() == ModelTask::ALL.len() || tasks.iter().any(has))
        })
    });
    for entry in files {
        let is_of_a_row = models.iter().any(|model| model.file == entry.file);
        if !is_of_a_row && !here.iter().any(|name| name.to_lowercase() == entry.name.to_lowercase()) {
            here.push(entry.name.clone());
        }
    }
    here
}

/// Names of some tasks' models that are close to one that nothing has, as a question: those first that differ
/// from it by case only, which makes another name of rows and of the builtin model.
fn close_to(tasks: &[ModelTask], name: &str, models: &ModelRegistry) -> Option<String> {
    let name = shown(name);
    let lower = name.to_lowercase();
    let mut close: Vec<(usize, String)> = Vec::new();
    let mut add = |known: &str, words: &str| {
        let distance = levenshtein(&lower, &known.to_lowercase());
        // A name of the other task's is no misspelling of a short one.
        if known != name && distance <= known.chars().count() / 4 + 1 {
            close.push((distance, format!("\"{known}\"{words}")));
        }
    };
    let (elsewhere, rows): (Vec<_>, Vec<_>) = rows_for(tasks, models).partition(|model| model.is_elsewhere());
    here(tasks, &rows, models).iter().for_each(|known| add(known, ""));
    for model in rows.iter().filter(|model| !is_file_there(&model.file)) {
        add(&model.name, ", which is not downloaded");
    }
    // Whether its file is here does not matter: nobody looks for it.
    for model in elsewhere {
        let asks = asks_through_the_queue(&model.task);
        add(&model.name, &format!(", which workers elsewhere answer when {asks}() asks"));
    }
    add(BUILTIN, "");
    let differs_by_case = |model: &&RegisteredModel| model.name.to_lowercase() == lower;
    for model in models.iter().filter(differs_by_case) {
        if !tasks.iter().any(|task| task.name() == model.task) {
            add(&model.name, &format!(", which is for task {}", model.task));
        }
    }
    close.sort();
    let close: Vec<String> = close.into_iter().take(3).map(|(_, name)| name).collect();
    (!close.is_empty()).then(|| {
        format!("Did you mean {}? steadytext_model_list() shows the models there are.", close.join(", or "))
    })
}

/// The function that asks a model through the queue which is for this task.
pub(super) fn asks_through_the_queue(task: &str) -> &'static str {
    match task {
        "embed" => "steadytext_embed_async",
        "rerank" => "steadytext_rerank_async",
        _ => "steadytext_generate_async",
    }
}
