//! Texts as a model's tokenizer sees them: their tokens, and pieces of so many tokens. The engine does it,
//! which has the model.

use pgrx::prelude::*;
use steadytext_engine::{Chunk, Chunking, MAX_CHUNK_TOKENS, Strategy, Work};

use super::answers;
use crate::pg::catalog_cache::{self, ModelRegistry};
use crate::pg::error::{OrRaise, PgError};
use crate::registry::{self, ModelTask, RequestedModel, Resolved};
use crate::request::checks::{check_length, invalid};
use crate::request::{Answer, Subtasks, unexpected};

/// The number of tokens of a text, without any that a model wants around it.
#[pg_extern(immutable, parallel_safe)]
fn count_tokens(input: Option<&str>, model: Option<&str>) -> Option<i32> {
    let tokens = tokens(input?, model).or_raise();
    Some(i32::try_from(tokens.len()).unwrap_or(i32::MAX))
}

/// The tokens of a text, without any that a model wants around it.
#[pg_extern(immutable, parallel_safe)]
fn tokenize(input: Option<&str>, model: Option<&str>) -> Option<Vec<i32>> {
    let tokens = tokens(input?, model).or_raise();
    // A vocabulary has far fewer.
    Some(tokens.into_iter().map(|token| i32::try_from(token).unwrap_or(i32::MAX)).collect())
}

/// A text in pieces, which are counted from 1, as characters are.
#[pg_extern(immutable, parallel_safe)]
fn chunk_text(
    input: Option<String>,
    chunk_size: Option<i64>,
    chunk_overlap: Option<i64>,
    strategy: Option<&str>,
    model: Option<&str>,
) -> TableIterator<
    'static,
    (name!(seq, i32), name!(chunk, String), name!(start_offset, i32), name!(tokens, i32)),
> {
    let Some(text) = input else { return TableIterator::new([]) };
    let models = catalog_cache::models().or_raise();
    let model = whatever_it_is_for(model, &models).or_raise();
    let chunks = chunks(&text, chunk_size, chunk_overlap, strategy, model).or_raise();
    TableIterator::new(pieces(text, chunks))
}

/// The chunks of a text that is to be embedded: without a name, by the model that embeds.
#[pg_extern(immutable, parallel_safe)]
fn chunk_for_embedding(
    input: Option<String>,
    chunk_size: Option<i64>,
    chunk_overlap: Option<i64>,
    strategy: Option<&str>,
    model: Option<&str>,
) -> TableIterator<
    'static,
    (name!(seq, i32), name!(chunk, String), name!(start_offset, i32), name!(tokens, i32)),
> {
    let Some(text) = input else { return TableIterator::new([]) };
    let models = catalog_cache::models().or_raise();
    let wanted = model.map_or(RequestedModel::Default, RequestedModel::Named);
    let model = registry::resolve(ModelTask::Embed, wanted, &models).or_raise();
    let chunks = chunks(&text, chunk_size, chunk_overlap, strategy, model).or_raise();
    TableIterator::new(pieces(text, chunks))
}

fn pieces(text: String, chunks: Vec<Chunk>) -> impl Iterator<Item = (i32, String, i32, i32)> {
    chunks.into_iter().enumerate().map(move |(index, chunk)| {
        let Chunk { start, bytes, characters_before, tokens } = chunk;
        let piece = text.get(start..start + bytes).unwrap_or_default().to_owned();
        (index as i32 + 1, piece, characters_before as i32 + 1, tokens as i32)
    })
}

fn tokens(text: &str, model: Option<&str>) -> Result<Vec<u32>, PgError> {
    let models = catalog_cache::models()?;
    let model = whatever_it_is_for(model, &models)?;
    match tokenized(Work::Tokenize { text: text.to_owned() }, model)? {
        Answer::Tokens(tokens) => Ok(tokens),
        _ => Err(unexpected()),
    }
}

fn chunks(
    text: &str,
    size: Option<i64>,
    overlap: Option<i64>,
    strategy: Option<&str>,
    model: Resolved,
) -> Result<Vec<Chunk>, PgError> {
    const SIZE: i64 = 400;
    const OVERLAP: i64 = 50;
    let size = size.unwrap_or(SIZE);
    let size =
        usize::try_from(size).ok().filter(|size| (1..=MAX_CHUNK_TOKENS).contains(size)).ok_or_else(|| {
            invalid(format!("chunk_size must be between 1 and {MAX_CHUNK_TOKENS} tokens"))
                .hint("400 is the default; no more than what the model that reads the pieces can take.")
        })?;
    // More would be mostly repetition, and the default is for the usual size.
    let overlap = usize::try_from(overlap.unwrap_or(OVERLAP))
        .map_err(|_| {
            invalid("chunk_overlap must not be negative")
                .hint("It is the tokens that a piece repeats of the one before; 0 for none.")
        })?
        .min(size / 2);
    let strategy = match strategy {
        None | Some("recursive") => Strategy::Recursive,
        Some("token") => Strategy::Token,
        Some("sentence") => Strategy::Sentence,
        Some("markdown") => Strategy::Markdown,
        Some(_) => {
            return Err(invalid("strategy must be token, recursive, sentence or markdown")
                .hint("recursive, the default, cuts between paragraphs, sentences or words, where it can."));
        }
    };
    let how = Chunking { text: text.to_owned(), size, overlap, strategy, beside: None };
    match tokenized(Work::Chunk(how), model)? {
        Answer::Chunks(chunks) => Ok(chunks),
        _ => Err(unexpected()),
    }
}

fn tokenized(work: Work, model: Resolved) -> Result<Answer, PgError> {
    check_length(work.text_bytes(), &*catalog_cache::config()?)?;
    let models = catalog_cache::models()?;
    answers::outcome("tokenize", Subtasks::One(work), model, models)
}

/// The model of this name, whatever task it has; the one that generates where none is named.
fn whatever_it_is_for(name: Option<&str>, models: &ModelRegistry) -> Result<Resolved, PgError> {
    let wanted = name.map_or(RequestedModel::Default, RequestedModel::Named);
    let found = registry::resolve(ModelTask::Generate, wanted, models);
    let of_another_task =
        |error: &PgError| name.is_some() && error.code == PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE;
    [ModelTask::Embed, ModelTask::Rerank].into_iter().fold(found, |found, task| match found {
        Err(error) if of_another_task(&error) => registry::resolve(task, wanted, models),
        found => found,
    })
}
