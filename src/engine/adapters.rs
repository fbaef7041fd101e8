//! Adapters (LoRA) of a model, one for each of its tasks: where they come from, and what their files say of
//! them.
//!
//! A folder that transformers wrote has adapters among its weights. Beside a GGUF file they are files of
//! their own, as llama.cpp's converter writes them: those of `NAME.gguf` lie in the folder
//! `NAME.gguf.adapters`. The task of each is what its file says, or else its name: `TASK.gguf`, or
//! `lora-TASK-….gguf` as the converter has it.
//!
//! Invariant: names alone decide which files are read. Neither a card nor a model says a path, and no link is
//! followed. Two files of one task are none.

use std::io;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::gguf::Gguf;
use crate::mapping::FileId;
use crate::sidecar;

/// Suffix that makes the name of a model's file that of the folder with its adapters.
pub const SUFFIX: &str = ".adapters";

/// The ending of the names of adapters' files.
const ENDING: &str = ".gguf";
/// Prefix that llama.cpp's converter puts before the task in the name of an adapter's file.
const PREFIX: &str = "lora-";
/// The key by which an adapter's file says its task.
const TASK_KEY: &str = "adapter.lora.task_name";
/// The tasks that models are published with.
pub(crate) const PUBLISHED: [&str; 5] =
    ["retrieval.query", "retrieval.passage", "separation", "classification", "text-matching"];

/// Adapters of a model at most.
pub(crate) const MAX_ADAPTERS: usize = 64;
/// Characters of a task at most, and of what stands before a text.
const MAX_TASK: usize = 128;
const MAX_PROMPT: usize = 4096;

/// The keys by which a folder's adapters are told: their tasks, what stands before a text of each, and the
/// numerator of their scale.
pub(crate) const TASKS_KEY: &str = "steadytext.adapter.tasks";
/// See [`TASKS_KEY`].
pub(crate) const PROMPTS_KEY: &str = "steadytext.adapter.prompts";
/// See [`TASKS_KEY`].
pub(crate) const ALPHA_KEY: &str = "steadytext.adapter.alpha";

/// An adapter, as its file describes it.
#[derive(Debug, Clone)]
pub(crate) struct Adapter<'a> {
    /// The task that it is for.
    pub(crate) task: &'a str,
    /// The prompt that stands before a text of the task; `None` where the file says nothing about it.
    pub(crate) prompt: Option<&'a str>,
    /// Numerator of the scale: the addition is multiplied by this, divided by the rank.
    pub(crate) alpha: f32,
    /// The file with its tensors.
    pub(crate) gguf: &'a Gguf,
    /// Prefix of the names of those tensors, before the name of the adapted tensor.
    pub(crate) prefix: String,
}

/// The beginning of the names of the tensors of a folder's adapter.
pub(crate) fn prefix(index: usize) -> String {
    format!("adapter.{index}.")
}

/// Whether a tensor of a folder belongs to an adapter.
pub(crate) fn has_prefix(name: &str) -> bool {
    name.starts_with("adapter.")
}

/// The folder with the adapters of a model's file.
fn folder(model: &Path) -> PathBuf {
    sidecar::with_suffix(model, SUFFIX)
}

/// The files of the adapters beside a model's file, each with its name without the ending, in the order of
/// these.
///
/// # Errors
/// The system's; `InvalidData` for what is no regular file, for a name that is none, and for too many of
/// them.
fn files(model: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let folder = folder(model);
    let invalid = |reason: &str| Err(io::Error::new(io::ErrorKind::InvalidData, reason.to_owned()));
    match folder.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return invalid("what should be the folder of its adapters is none"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    }
    let mut files = Vec::new();
    for entry in folder.read_dir()? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(stem) = name.to_str().and_then(without_ending) else { continue };
        if stem.is_empty() || stem.chars().any(char::is_control) {
            return invalid("the name of a file of its adapters is no task");
        }
        if !entry.file_type()?.is_file() {
            return invalid("a file of its adapters is no regular file");
        }
        if files.len() == MAX_ADAPTERS {
            return invalid("it has too many adapters");
        }
        files.push((stem.to_owned(), entry.path()));
    }
    files.sort_unstable();
    if files.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        return invalid("two files of its adapters are called by the same task");
    }
    Ok(files)
}

/// The task that the name of an adapter's file says, without its ending; `None` where it could be several.
pub(crate) fn task_of_name<'n>(model: &Path, stem: &'n str) -> Option<&'n str> {
    let Some(rest) = after_prefix(stem) else { return Some(stem) };
    // Behind the task stands the name of the model, and there may be dashes in both.
    if let Some(task) = published(rest) {
        return Some(task);
    }
    let model = model.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let task = rest.len().checked_sub(model.len()).and_then(|end| {
        let (task, name) = (rest.get(..end)?, rest.get(end..)?);
        task.strip_suffix('-').filter(|_| name.eq_ignore_ascii_case(model))
    });
    task.or(Some(rest).filter(|rest| !rest.contains('-'))).filter(|task| !task.is_empty())
}

/// The task of the adapter in a published file of that name without its ending, where that is one of those
/// that models are published with.
#[cfg(feature = "hub")]
pub(crate) fn published_task_of(stem: &str) -> Option<&str> {
    published(after_prefix(stem)?)
}

/// The file that has the adapter of a task beside a model, or is to have it.
#[cfg(feature = "hub")]
pub(crate) fn path_for(model: &Path, task: &str) -> PathBuf {
    let is_for = |(stem, path): &(String, PathBuf)| {
        let said = Gguf::open(path).ok().and_then(|file| task_of(model, stem, &file).ok());
        said.as_deref().or_else(|| task_of_name(model, stem)) == Some(task)
    };
    let found = files(model).unwrap_or_default().into_iter().find(is_for);
    found.map_or_else(|| folder(model).join(format!("{task}.gguf")), |(_, path)| path)
}

/// The part of a name behind `lora-`, in upper or lower case; `None` for other names.
fn after_prefix(stem: &str) -> Option<&str> {
    let prefix = stem.get(..PREFIX.len())?;
    prefix.eq_ignore_ascii_case(PREFIX).then(|| &stem[PREFIX.len()..])
}

/// The task among those of published models that a name is, or begins with.
fn published(name: &str) -> Option<&str> {
    let is_whole =
        |task: &&&str| name.strip_prefix(**task).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
    PUBLISHED.iter().find(is_whole).map(|task| &name[..task.len()])
}

/// The task of the adapter in a file of that name.
///
/// # Errors
/// [`Error::UnsupportedModel`] and [`Error::CorruptModel`] where nothing says it, where name and content say
/// two of the tasks that there are, and for what cannot be one.
fn task_of(model: &Path, stem: &str, file: &Gguf) -> Result<String, Error> {
    const HINT: &str = "Call it TASK.gguf, after the task that it is for.";
    let said = file.opt_str(TASK_KEY)?;
    let named = task_of_name(model, stem);
    if let (Some(said), Some(named)) = (said, named.filter(|named| PUBLISHED.contains(named)))
        && said != named
    {
        let reason = format!(
            "it lies among adapters, and its key \"{TASK_KEY}\" is \"{}\", not \"{named}\"",
            said.escape_debug()
        );
        return Err(file.unsupported_but(reason, HINT));
    }
    let Some(task) = said.or(named) else {
        let reason = "it lies among adapters, and neither its name nor what it says of itself is a task";
        return Err(file.unsupported_but(reason, HINT));
    };
    if !is_task(task) {
        return Err(file.unsupported_but("it lies among adapters, and its task is no name of one", HINT));
    }
    Ok(task.to_owned())
}

/// The adapters beside a model's file, opened, in the order of their tasks.
///
/// # Errors
/// [`Error::ModelFile`] where one cannot be read, [`Error::CorruptModel`] and [`Error::UnsupportedModel`]
/// where it is none, or its task that of another one.
fn open(model: &Path) -> Result<Vec<(String, Gguf)>, Error> {
    let files = files(model).map_err(|source| Error::reading(&folder(model), source))?;
    let mut adapters = Vec::with_capacity(files.len());
    for (stem, path) in files {
        let file = Gguf::open(&path)?;
        adapters.push((task_of(model, &stem, &file)?, file));
    }
    adapters.sort_by(|(one, _), (other, _)| one.cmp(other));
    for pair in adapters.windows(2) {
        let [(task, first), (other, second)] = pair else { continue };
        if task == other {
            let name = first.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
            return Err(second.unsupported_but(
                format!("it is an adapter for the task \"{task}\", and so is \"{name}\" beside it"),
                "Leave one of the two there, and put the other one elsewhere.",
            ));
        }
    }
    Ok(adapters)
}

/// The name of an adapter's file without its ending, which may be in any case, as that of a model's file may.
fn without_ending(name: &str) -> Option<&str> {
    let (task, ending) = name.split_at_checked(name.len().checked_sub(ENDING.len())?)?;
    ending.eq_ignore_ascii_case(ENDING).then_some(task)
}

/// Whether a text can be a task's name.
pub(crate) fn is_task(task: &str) -> bool {
    !task.is_empty() && task.chars().count() <= MAX_TASK && !task.chars().any(char::is_control)
}

/// Whether a text can stand before others.
pub(crate) fn is_prompt(prompt: &str) -> bool {
    !prompt.contains('\0') && prompt.chars().count() <= MAX_PROMPT
}

/// The error of a task that is not among those of a model.
pub fn unknown_task<'t>(tasks: impl Iterator<Item = &'t str>) -> Error {
    Error::UnknownTask { hint: format!("Name one of its tasks: {}.", tasks.collect::<Vec<_>>().join(", ")) }
}

/// The files of the adapters beside a model's file.
///
/// # Errors
/// The system's; `InvalidData` for a folder that holds what it should not.
pub(crate) fn paths_beside(model: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(files(model)?.into_iter().map(|(_, path)| path).collect())
}

/// The file or folder that says which tasks a model has.
pub fn described_in(model: &Path) -> PathBuf {
    if model.is_dir() { model.join("config.json") } else { folder(model) }
}

/// The state of what says which tasks a model has; another one as soon as that changes. `None` where nothing
/// says it, or it cannot be read.
pub fn described_state(model: &Path) -> Option<FileId> {
    let described = FileId::of_path(&described_in(model)).ok()?;
    if model.is_dir() { Some(described) } else { state(model, described).ok() }
}

/// The tasks of the adapters beside a model's file, in their order. Of each its description is read.
///
/// # Errors
/// [`Error::ModelFile`] where one cannot be read, or the folder holds what it should not;
/// [`Error::CorruptModel`] and [`Error::UnsupportedModel`] where one is none.
pub(crate) fn tasks_beside(model: &Path) -> Result<Vec<String>, Error> {
    Ok(open(model)?.into_iter().map(|(task, _)| task).collect())
}

/// The state of a model's file together with that of its adapters: `state`, where there are none.
///
/// # Errors
/// The system's.
pub(crate) fn state(model: &Path, mut state: FileId) -> io::Result<FileId> {
    for (name, path) in files(model)? {
        // Under another name it may be another task's.
        for byte in name.bytes() {
            state.inode = (state.inode ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        state = state.and(&FileId::of_path(&path)?);
    }
    Ok(state)
}

/// The model of a file with the adapters beside it.
///
/// # Errors
/// [`Error::ModelFile`] where one cannot be read, [`Error::CorruptModel`] and [`Error::UnsupportedModel`]
/// where it is none.
pub(crate) fn attach(model: &Path, gguf: Gguf) -> Result<Gguf, Error> {
    let adapters = open(model)?;
    if adapters.is_empty() {
        return Ok(gguf);
    }
    let gguf = gguf.with_attached(adapters);
    list(&gguf)?;
    Ok(gguf)
}

/// The adapters of a model.
///
/// # Errors
/// [`Error::CorruptModel`] and [`Error::UnsupportedModel`], naming the file of the adapter.
pub(crate) fn list(gguf: &Gguf) -> Result<Vec<Adapter<'_>>, Error> {
    let mut adapters = Vec::new();
    if gguf.is_translated()
        && let Some(tasks) = gguf.opt_strings(TASKS_KEY)?
    {
        let (prompts, alpha) = (gguf.strings(PROMPTS_KEY)?, gguf.f32(ALPHA_KEY)?);
        for (index, (task, prompt)) in tasks.zip(prompts).enumerate() {
            adapters.push(Adapter { task, prompt: Some(prompt), alpha, gguf, prefix: prefix(index) });
        }
    }
    for (task, file) in gguf.attached() {
        let expect = |key: &str, wanted: &str| {
            match file.opt_str(key)? {
            Some(found) if found == wanted => Ok(()),
            found => Err(file.unsupported_but(
                format!(
                    "it lies among adapters, and its key \"{key}\" is {}, not \"{wanted}\"",
                    found.map_or("missing".to_owned(), |found| format!("\"{}\"", found.escape_debug()))
                ),
                "Put files there that llama.cpp's converter wrote beside the model, each called by its task, such as retrieval.query.gguf.",
            )),
        }
        };
        expect("general.type", "adapter")?;
        expect("adapter.type", "lora")?;
        expect("general.architecture", gguf.str("general.architecture")?)?;
        if file.keys().any(|(key, _)| key.starts_with("adapter.alora.")) {
            return Err(file.unsupported("it is an adapter that begins in the middle of a text"));
        }
        let prompt = file.opt_str("adapter.lora.prompt_prefix")?;
        if prompt.is_some_and(|prompt| !is_prompt(prompt)) {
            return Err(file.corrupt(format!(
                "key \"adapter.lora.prompt_prefix\" has a zero character, or more than {MAX_PROMPT} characters"
            )));
        }
        let alpha = file.f32("adapter.lora.alpha")?;
        if alpha <= 0.0 {
            return Err(file.corrupt(format!("key \"adapter.lora.alpha\" is {alpha}, not positive")));
        }
        adapters.push(Adapter { task, prompt, alpha, gguf: file, prefix: String::new() });
    }
    Ok(adapters)
}
