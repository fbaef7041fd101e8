//! Summaries of a text, or of the values of a group, of any length.
//!
//! A text that is longer than the context has room for is cut by the model's own tokenizer, each piece is
//! summarised, and the summaries, one after the other, are a text again, until one piece is left: the summary
//! of that one is the answer. All pieces of a level are asked about at once.
//!
//! Invariant: there are few levels. The pieces of a level are fewer than those of the level before, or else
//! the next summaries are shorter, down to a length of which several fit into a piece.

use std::ops::Range;
use std::rc::Rc;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};
use steadytext_engine::{Beside, Chunking, Finish, Generate, MAX_CHUNK_TOKENS, Output, Strategy, Work};

use super::answer::{Answer, unexpected};
use super::prompt_source::PromptSource;
use super::prompts;
use super::values::{empty_text, too_long};
use crate::pg::error::PgError;
use pgrx::PgSqlErrorCode;

/// Words of a summary at most: what may be asked for, and what the summary of a piece has.
pub(crate) const MOST_WORDS: i64 = 1000;
const WORDS_OF_PART: i64 = 50;
/// Words of what is said about a group.
const WORDS_OF_TASK: i64 = 100;
/// Tokens of the summary of a piece: at first, and at least.
const PART_TOKENS: usize = 128;
const LEAST_PART_TOKENS: usize = 16;
/// A model that says more than it is asked for does not go on for ever.
const MOST_LEVELS: usize = 32;
/// A text is tokenized in pieces of so many bytes at most.
const CUT_BYTES: usize = 1 << 18;
/// Bytes of metadata as they stand in the prompt.
pub(crate) const MOST_METADATA_BYTES: usize = 8192;
/// Bytes of the text that the cache shows.
const SHOWN_BYTES: usize = 1000;

/// The source of the text to summarise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
enum SummarySource {
    Text,
    Rows,
}

/// A request for a summary.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Summary {
    #[serde(serialize_with = "as_text")]
    text: Rc<str>,
    source: SummarySource,
    /// Metadata of the text, as the prompt has it.
    metadata: String,
    /// The caller's question about the values of a group; `None` for a summary of them.
    task_description: Option<String>,
    max_words: i64,
    /// The setting, on which depends where the text is cut.
    context_length: usize,
    prompt: PromptSource,
}

/// A value of a group, and what is known about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SummaryRow<'a> {
    /// The value.
    pub(crate) value: &'a str,
    /// Empty where nothing is.
    pub(crate) note: &'a str,
}

fn as_text<S: Serializer>(text: &Rc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

impl Summary {
    /// The summary of a text.
    ///
    /// # Errors
    ///
    /// P0001 for an empty text, 22023 and 54000 for metadata.
    pub(crate) fn of_text(text: &str, params: &Value, context_length: usize) -> Result<Summary, PgError> {
        if text.trim().is_empty() {
            return Err(empty_text("Text input cannot be empty"));
        }
        let metadata = match params.get("metadata") {
            None | Some(Value::Null) => String::new(),
            Some(Value::Object(metadata)) => in_words(metadata)?,
            Some(_) => return Err(not_an_object()),
        };
        Ok(Summary {
            text: text.into(),
            source: SummarySource::Text,
            metadata,
            task_description: None,
            max_words: params.get("max_words").and_then(Value::as_i64).unwrap_or(super::defaults::MAX_WORDS),
            context_length,
            prompt: PromptSource::of(prompts::SUMMARIZE, &Value::Null),
        })
    }

    /// The summary of the values of a group, in this order; `max_words` may be enough for several of them to
    /// be kept.
    pub(crate) fn of_rows(rows: &[SummaryRow<'_>], max_words: i64, context_length: usize) -> Summary {
        let common = rows.first().map_or("", |row| row.note);
        let is_common = rows.iter().all(|row| row.note == common);
        let note_bytes = |row: &SummaryRow<'_>| if is_common { 0 } else { row.note.len() };
        let bytes = rows.iter().map(|row| row.value.len() + note_bytes(row) + 8).sum();
        let mut text = String::with_capacity(bytes);
        for row in rows {
            text.push_str("- ");
            text.push_str(row.value.trim());
            if !is_common && !row.note.is_empty() {
                text.push_str(" (");
                text.push_str(row.note);
                text.push(')');
            }
            text.push('\n');
        }
        Summary {
            text: text.into(),
            source: SummarySource::Rows,
            metadata: if is_common { common.to_owned() } else { String::new() },
            task_description: None,
            max_words,
            context_length,
            prompt: PromptSource::of(prompts::SUMMARIZE, &Value::Null),
        }
    }

    /// The answer to what is asked about the values of a group, in this order.
    pub(crate) fn of_task(rows: &[SummaryRow<'_>], task_description: &str, context_length: usize) -> Summary {
        let rows: Vec<SummaryRow<'_>> =
            rows.iter().map(|row| SummaryRow { value: row.value, note: "" }).collect();
        Summary {
            task_description: Some(task_description.trim().to_owned()),
            prompt: PromptSource::of(prompts::AGG, &Value::Null),
            ..Summary::of_rows(&rows, WORDS_OF_TASK, context_length)
        }
    }

    /// The text.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The beginning of the text.
    pub(crate) fn beginning(&self) -> &str {
        &self.text[..self.text.floor_char_boundary(SHOWN_BYTES)]
    }

    /// The prompt about a piece; about the summaries of pieces, from the second level on; a part of more, or
    /// all there is.
    fn prompt(&self, input: &str, level: usize, is_part: bool) -> Result<String, PgError> {
        let source = match (level, self.source) {
            (0, SummarySource::Text) => "text",
            (0, SummarySource::Rows) => "rows",
            _ => "summaries",
        };
        let variables = json!({
            "input": input,
            "max_words": if is_part { WORDS_OF_PART } else { self.max_words },
            "metadata": self.metadata,
            "source": source,
            "is_part": is_part,
            "task_description": self.task_description,
        });
        self.prompt.render(variables.as_object().unwrap_or(&Map::new()))
    }

    fn answer_tokens(&self) -> usize {
        usize::try_from(self.max_words).unwrap_or(1) * 2 + 16
    }
}

/// Metadata as they stand in the prompt.
///
/// # Errors
///
/// 54000 for too much of it.
pub(crate) fn in_words(metadata: &Map<String, Value>) -> Result<String, PgError> {
    let words = metadata.iter().map(|(key, value)| match value {
        Value::String(text) => format!("{key}: {text}"),
        other => format!("{key}: {other}"),
    });
    let words = words.collect::<Vec<_>>().join(", ");
    if words.len() > MOST_METADATA_BYTES {
        return Err(PgError::new(
            PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            format!("the metadata have {} bytes, {MOST_METADATA_BYTES} are allowed", words.len()),
        )
        .hint("Metadata are part of every prompt: give a few words, such as {\"topic\": \"databases\"}."));
    }
    Ok(words)
}

/// The error that metadata are something else than an object.
pub(crate) fn not_an_object() -> PgError {
    PgError::new(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, "metadata must be a JSON object")
        .hint("As {\"topic\": \"databases\"}.")
}

/// A summary at one of its levels.
#[derive(Debug, Clone)]
pub(crate) struct SummaryLevel {
    summary: Rc<Summary>,
    number: usize,
    /// Pieces of the level before.
    pieces_before: usize,
    /// Most tokens of the summary of a piece.
    part_tokens: usize,
    stage: SummaryStage,
}

#[derive(Debug, Clone)]
enum SummaryStage {
    /// A text is cut, stretch by stretch.
    Cut(Rc<str>, Vec<Range<usize>>),
    /// Its pieces are summarised.
    Ask(Vec<String>),
}

/// The outcome of a stage.
pub(crate) enum After {
    /// The end.
    Answer(Answer),
    /// Another stage.
    Level(SummaryLevel),
}

impl SummaryLevel {
    /// The first one.
    pub(crate) fn first(summary: Summary) -> SummaryLevel {
        let stage = cut(Rc::clone(&summary.text));
        let summary = Rc::new(summary);
        SummaryLevel { summary, number: 0, pieces_before: usize::MAX, part_tokens: PART_TOKENS, stage }
    }

    /// The request.
    pub(crate) fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Its number, from 1; `None` before it is known how many pieces it has.
    pub(crate) fn number(&self) -> Option<usize> {
        matches!(self.stage, SummaryStage::Ask(_)).then_some(self.number + 1)
    }

    /// The number of subtasks, at least one.
    pub(crate) fn len(&self) -> usize {
        match &self.stage {
            SummaryStage::Cut(_, stretches) => stretches.len(),
            SummaryStage::Ask(pieces) => pieces.len(),
        }
    }

    /// Looks whether its prompts can be rendered.
    ///
    /// # Errors
    ///
    /// As [`Prompt::render`].
    pub(crate) fn check_prompt(&self) -> Result<(), PgError> {
        self.beside().map(|_| ())
    }

    /// The engine's work for subtask `index`.
    pub(crate) fn work(&self, index: usize) -> Work {
        match &self.stage {
            SummaryStage::Cut(text, stretches) => Work::Chunk(Chunking {
                text: text[stretches[index].clone()].to_owned(),
                size: MAX_CHUNK_TOKENS,
                overlap: 0,
                strategy: Strategy::Recursive,
                beside: self.beside().ok(),
            }),
            SummaryStage::Ask(pieces) => {
                let is_part = pieces.len() > 1;
                // Level::check_prompt has looked at it.
                let prompt = self.summary.prompt(&pieces[index], self.number, is_part).unwrap_or_default();
                let max_tokens = if is_part { self.part_tokens } else { self.summary.answer_tokens() };
                Work::Generate(Generate { prompt, max_tokens, ..Generate::default() })
            }
        }
    }

    /// The longer one of both prompts, and of both answers.
    fn beside(&self) -> Result<Beside, PgError> {
        let [part, whole] = [true, false].map(|is_part| self.summary.prompt("", self.number, is_part));
        let (part, whole) = (part?, whole?);
        Ok(Beside {
            prompt: if part.len() > whole.len() { part } else { whole },
            answer_tokens: self.summary.answer_tokens().max(self.part_tokens),
        })
    }

    /// Makes the answer or the next level from the outputs of this stage.
    ///
    /// # Errors
    ///
    /// 54000 where summaries of pieces do not get fewer, or the model has used up its tokens without a word
    /// of one; XX000 for an output of another kind than its work: a bug.
    pub(crate) fn after(&self, outputs: Vec<Output>) -> Result<After, PgError> {
        match &self.stage {
            SummaryStage::Cut(text, stretches) => {
                let mut pieces = Vec::new();
                for (stretch, output) in stretches.iter().zip(outputs) {
                    let Output::Chunks(chunks) = output else { return Err(unexpected()) };
                    let stretch = &text[stretch.clone()];
                    let mut before = 0;
                    for chunk in chunks {
                        // They may come from another machine: together they are no longer than the text.
                        let end = chunk.start.checked_add(chunk.bytes).filter(|_| chunk.start >= before);
                        before = end.ok_or_else(unexpected)?;
                        pieces.push(stretch.get(chunk.start..before).ok_or_else(unexpected)?.to_owned());
                    }
                }
                if pieces.is_empty() {
                    return Ok(After::Answer(Answer::Text(String::new())));
                }
                let shrinks = pieces.len() < self.pieces_before;
                let part_tokens = if shrinks { self.part_tokens } else { self.part_tokens / 2 };
                Ok(After::Level(SummaryLevel {
                    pieces_before: pieces.len(),
                    part_tokens: part_tokens.max(LEAST_PART_TOKENS),
                    stage: SummaryStage::Ask(pieces),
                    summary: Rc::clone(&self.summary),
                    number: self.number,
                }))
            }
            SummaryStage::Ask(pieces) => {
                let texts = outputs.into_iter().map(|output| match output {
                    Output::Text { text, finish: Finish::Length, generated_tokens, .. }
                        if text.trim().is_empty() =>
                    {
                        Err(wordless(generated_tokens))
                    }
                    Output::Text { text, .. } => Ok(text.trim().to_owned()),
                    _ => Err(unexpected()),
                });
                let mut texts = texts.collect::<Result<Vec<_>, _>>()?;
                if pieces.len() == 1 {
                    return Ok(After::Answer(Answer::Text(texts.pop().unwrap_or_default())));
                }
                if self.number + 1 >= MOST_LEVELS {
                    return Err(PgError::new(
                        PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
                        "the summaries of the parts of a text are too long to become one",
                    )
                    .hint("Use a model with a longer context, or fewer max_words.")
                    .lasting());
                }
                texts.retain(|text| !text.is_empty());
                Ok(After::Level(SummaryLevel {
                    number: self.number + 1,
                    stage: cut(texts.join("\n").into()),
                    summary: Rc::clone(&self.summary),
                    ..*self
                }))
            }
        }
    }
}

/// The error that a model has not begun with a summary when its tokens were used up: its thoughts are no part
/// of it.
fn wordless(generated_tokens: usize) -> PgError {
    too_long(format!("the model has used {generated_tokens} tokens without a word of a summary"))
        .hint("Use a model that does not think before it answers, or allow more max_words.")
        .lasting()
}

/// A text in stretches that are short enough to be tokenized, each of which ends with a line, a word or a
/// character.
fn cut(text: Rc<str>) -> SummaryStage {
    let mut stretches = Vec::new();
    let mut from = 0;
    while text.len() - from > CUT_BYTES {
        let most = text.floor_char_boundary(from + CUT_BYTES);
        let whole = text[from..most].rfind('\n').or_else(|| text[from..most].rfind(char::is_whitespace));
        let to = whole.map_or(most, |at| text.ceil_char_boundary(from + at + 1));
        stretches.push(from..to);
        from = to;
    }
    stretches.push(from..text.len());
    SummaryStage::Cut(text, stretches)
}
