//! The plan of a request, made from its text and its model's tokenizer: its tokens, or its result where that
//! takes no pass of the model.

use std::sync::Arc;

use super::answer_tree::Answers;
use super::generation::ConstrainedStart;
use super::thoughts::Thoughts;
use crate::chunks::{chunks, room};
use crate::constraints::{Checker, Grammars};
use crate::rerank::Reranker;
use crate::template::{ChatTemplate, Conversation};
use crate::tokenizer::{Encoded, Tokenizer, truncate};
use crate::{Embed, Error, Output, Sampling, Work};

/// The plan of a request, known after tokenizing.
pub(super) struct Plan {
    /// The prompt, and the tokens that every answer begins with.
    pub(super) tokens: Vec<u32>,
    /// Tokens of a second text, which is computed apart.
    pub(super) second: Option<Vec<u32>>,
    /// The first token of the second text where an encoder computes two together; elsewhere, the number of
    /// tokens.
    pub(super) border: usize,
    /// The adapters of an encoder that both texts are computed with.
    pub(super) adapters: [Option<u16>; 2],
    /// Number of these tokens that belong to the prompt.
    pub(super) prompt_tokens: usize,
    pub(super) max_tokens: usize,
    pub(super) constrained: Option<ConstrainedStart>,
    /// The whole answer, where it takes no model but its tokenizer.
    output: Option<Output>,
    /// The parser of the thoughts that may precede the answer.
    pub(super) thoughts: Option<Thoughts>,
    /// The answers whose likelihoods are wanted.
    pub(super) answers: Option<Answers>,
    /// Positions that its state will have.
    pub(super) positions: usize,
}

/// The parts of a model that planning its requests takes.
pub(super) struct DecoderReader {
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) grammars: Arc<Grammars>,
    pub(super) template: Arc<ChatTemplate>,
    pub(super) reranker: Reranker,
    pub(super) context_length: usize,
}

impl Plan {
    /// Tokenizes the request, checks that it fits into the context, and begins its constraint.
    pub(super) fn new(work: &Work, reader: &DecoderReader) -> Result<Plan, Error> {
        let context_length = reader.context_length;
        let tokenizer = &reader.tokenizer;
        if let Work::Chunk(how) = work
            && let Some(beside) = &how.beside
        {
            let conversation = Conversation { prompt: &beside.prompt, ..Conversation::default() };
            let prompt_tokens = reader.template.encode(tokenizer, &conversation)?.tokens.len();
            let room = room(prompt_tokens, beside.answer_tokens, context_length)?;
            return Ok(Plan::answered(Output::Chunks(chunks(how, room.min(how.size), tokenizer)?)));
        }
        if let Some(output) = by_tokenizer(work, tokenizer)? {
            return Ok(Plan::answered(output));
        }
        let (mut thoughts, mut answers) = (None, None);
        let (mut tokens, second) = match work {
            Work::Generate(how) => {
                check_bias(&how.sampling, tokenizer)?;
                let conversation = Conversation {
                    system: how.system.as_deref(),
                    history: &how.history,
                    prompt: &how.prompt,
                    thinking: how.thinking,
                    // A constraint holds for the whole answer, so there are no thoughts before it.
                    direct: how.constraint.is_some(),
                };
                let encoded = reader.template.encode(tokenizer, &conversation)?;
                thoughts = encoded.thoughts.map(|(marks, begun)| Thoughts::new(marks, begun, how.thinking));
                (encoded.tokens, None)
            }
            Work::Embed(how) => (embedding(how, tokenizer, context_length)?, None),
            Work::Verify(_) => {
                return Err(Error::Panicked("a verification is no work for a model".to_owned()));
            }
            Work::Likelihoods(how) => {
                let (system, prompt) = (how.system.as_deref(), how.prompt.as_str());
                let conversation = Conversation { system, prompt, direct: true, ..Conversation::default() };
                let mut tokens = reader.template.encode(tokenizer, &conversation)?.tokens;
                tokens.extend(tokenizer.encode_bytes(how.begin.as_bytes()));
                answers = Some(Answers::new(how.answers.iter().map(String::as_str), tokenizer)?);
                (tokens, None)
            }
            Work::Rerank(how) => match reader.reranker.tokens(how, tokenizer, context_length)? {
                Some(tokens) => (tokens, None),
                None => {
                    let document = embedding(&how.document_by_itself(), tokenizer, context_length)?;
                    let query = match &how.prompts.query {
                        Some(prompt) => tokenizer.encode_embedding(&format!("{prompt}{}", how.query))?,
                        None => tokenizer.encode_embedding(&how.query)?,
                    };
                    (query, Some(document))
                }
            },
            Work::Tokenize { .. } | Work::Chunk(_) => (Vec::new(), None),
        };
        if tokens.is_empty() || second.as_ref().is_some_and(Vec::is_empty) {
            return Err(Error::UnreadableText { reason: "it has no tokens".to_owned() });
        }
        let length = tokens.len().max(second.as_ref().map_or(0, Vec::len));
        let room = match work {
            Work::Generate(_) => context_length.saturating_sub(length),
            // Work that generates nothing may fill the context.
            _ => (context_length + 1).saturating_sub(length),
        };
        let behind = answers.as_ref().map_or(0, Answers::positions);
        if room <= behind {
            return Err(Error::PromptTooLong { prompt_tokens: length + behind, context_length });
        }
        let max_tokens = match work {
            Work::Generate(how) => how.max_tokens.min(room),
            _ => 1 + behind,
        };
        // The last token is never computed.
        let (prompt_tokens, positions) = (tokens.len(), length + max_tokens - 1);
        let mut constrained = None;
        if let Work::Generate(how) = work
            && let Some(constraint) = &how.constraint
        {
            let matcher = reader.grammars.matcher(constraint)?;
            let (begun, forced) =
                ConstrainedStart::begin(matcher, max_tokens, how.max_tokens, &reader.tokenizer)?;
            tokens.extend(forced);
            constrained = Some(begun);
        }
        Ok(Plan {
            tokens,
            second,
            border: prompt_tokens,
            adapters: [None; 2],
            prompt_tokens,
            max_tokens,
            constrained,
            output: None,
            thoughts,
            answers,
            positions,
        })
    }

    /// The plan of a request to an encoder, which keeps no state.
    pub(super) fn encoded(encoded: Encoded, second: Option<Encoded>, adapters: [Option<u16>; 2]) -> Plan {
        let Encoded { tokens, second: border } = encoded;
        let (prompt_tokens, second) = (tokens.len(), second.map(|second| second.tokens));
        Plan {
            tokens,
            second,
            border,
            adapters,
            prompt_tokens,
            max_tokens: 1,
            constrained: None,
            output: None,
            thoughts: None,
            answers: None,
            positions: 0,
        }
    }

    /// The plan of a request that is answered already.
    pub(super) fn answered(output: Output) -> Plan {
        let none = Encoded { tokens: Vec::new(), second: 0 };
        Plan { output: Some(output), ..Plan::encoded(none, None, [None; 2]) }
    }

    /// The whole answer, where it was known without a model, and its checker.
    pub(super) fn take_output(&mut self) -> Option<(Output, Option<Arc<Checker>>)> {
        if let Some(output) = self.output.take() {
            return Some((output, None));
        }
        let constrained = self.constrained.as_mut()?;
        Some((constrained.output.take()?, Some(constrained.checker())))
    }

    /// Length of the prompt.
    pub(super) fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }
}

/// The result of work that takes a tokenizer and nothing else; None for other work.
///
/// # Errors
/// As [`Tokenizer::encode`].
pub(super) fn by_tokenizer(work: &Work, tokenizer: &Tokenizer) -> Result<Option<Output>, Error> {
    Ok(match work {
        Work::Tokenize { text } => Some(Output::Tokens(tokenizer.encode(text)?)),
        Work::Chunk(how) if how.beside.is_some() => {
            return Err(Error::InvalidRequest(
                "the model has no room for prompts: it does not generate".to_owned(),
            ));
        }
        Work::Chunk(how) => Some(Output::Chunks(chunks(how, how.size, tokenizer)?)),
        Work::Generate(_) | Work::Embed(_) | Work::Rerank(_) | Work::Likelihoods(_) | Work::Verify(_) => None,
    })
}

/// Refuses a bias of a token that the model does not have.
fn check_bias(how: &Sampling, tokenizer: &Tokenizer) -> Result<(), Error> {
    let count = tokenizer.vocab_size();
    match how.logit_bias.iter().find(|(token, _)| *token as usize >= count) {
        None => Ok(()),
        Some((token, _)) => Err(Error::InvalidRequest(format!(
            "logit_bias names token {token}, but the model's tokens are 0 to {}",
            count.saturating_sub(1)
        ))),
    }
}

/// The tokens of a text to be embedded, as many as the context has room for where it is to be cut.
fn embedding(how: &Embed, tokenizer: &Tokenizer, context_length: usize) -> Result<Vec<u32>, Error> {
    let mut tokens = tokenizer.encode_embedding(&how.instructed())?;
    if how.truncate && tokens.len() > context_length {
        let before = tokenizer.encode_embedding(&how.instruction())?.len();
        truncate(&mut tokens, before, tokenizer.embedding_suffix_len(), context_length);
    }
    Ok(tokens)
}
