//! A loaded encoder with all that belongs to it.

use std::sync::Arc;

use super::load_settings::LoadSettings;
use super::plan::{Plan, by_tokenizer};
use crate::computing::{Backend, Encoder, Loading};
use crate::gguf::Gguf;
use crate::tokenizer::{Encoded, Tokenizer, truncate};
use crate::{Embed, Error, Purpose, Rerank, Work, adapters};

/// An encoder, with the pass that it computes, and its tokenizer.
pub(super) struct LoadedEncoder {
    pub(super) encoder: Box<dyn Encoder>,
    reader: EncoderReader,
}

/// Plans the requests of an encoder: tokenizes their texts and puts prompts before them.
#[derive(Clone)]
pub(super) struct EncoderReader {
    tokenizer: Arc<Tokenizer>,
    prompts: Arc<PromptPrefixes>,
    /// The adapters in the order of their numbers.
    adapters: Arc<[LoadedAdapter]>,
    /// Tokens that a text may have.
    context_length: usize,
    /// The model's file, to name in errors about work that an encoder cannot do.
    gguf: Gguf,
    /// Scores that its head gives a pair of texts; 0 where it has none.
    labels: usize,
}

/// Prefixes that the model expects before a text, from the `prompts` of sentence-transformers.
#[derive(Debug)]
struct PromptPrefixes {
    query: String,
    passage: String,
}

/// An adapter of the model, which computes texts of a task.
#[derive(Debug)]
struct LoadedAdapter {
    task: String,
    /// The prefix of such a text, where the adapter has one of its own.
    prompt: Option<String>,
}

/// A text as it is computed: its tokens, and the number of the adapter.
type PreparedText = (Encoded, Option<u16>);

impl LoadedEncoder {
    /// Loads it.
    pub(super) fn new(
        gguf: &Gguf,
        backend: &dyn Backend,
        settings: &LoadSettings,
        loading: &Loading<'_>,
    ) -> Result<LoadedEncoder, Error> {
        let encoder = backend.encoder(gguf, settings.limits(), loading)?;
        let facts = encoder.facts();
        let tokenizer = Tokenizer::from_gguf(gguf)?;
        if tokenizer.vocab_size() > facts.vocabulary {
            return Err(gguf.corrupt(format!(
                "it has {} tokens, but tensor \"token_embd.weight\" has {} rows",
                tokenizer.vocab_size(),
                facts.vocabulary
            )));
        }
        let prompt = |name: &str| -> Result<String, Error> {
            Ok(gguf.opt_str(&format!("steadytext.prompt.{name}"))?.unwrap_or_default().to_owned())
        };
        let adapters = adapters::list(gguf)?.into_iter().map(|adapter| LoadedAdapter {
            task: adapter.task.to_owned(),
            prompt: adapter.prompt.map(str::to_owned),
        });
        let adapters = adapters.collect();
        let declared = facts.context_length;
        let reader = EncoderReader {
            tokenizer: Arc::new(tokenizer),
            prompts: Arc::new(PromptPrefixes { query: prompt("query")?, passage: prompt("passage")? }),
            adapters,
            context_length: match settings.context_length {
                0 => declared,
                limit => declared.min(limit),
            },
            gguf: gguf.clone(),
            labels: facts.scores_per_text,
        };
        // The metadata were read once more.
        gguf.release_all();
        encoder.check_lost()?;
        Ok(LoadedEncoder { encoder, reader })
    }

    /// The reader that tokenizes its texts.
    pub(super) fn reader(&self) -> EncoderReader {
        self.reader.clone()
    }
}

impl EncoderReader {
    /// Tokenizes a request and checks that it fits into the context.
    pub(super) fn plan(&self, work: &Work) -> Result<Plan, Error> {
        if let Some(output) = by_tokenizer(work, &self.tokenizer)? {
            return Ok(Plan::answered(output));
        }
        let ((first, adapter), second) = match work {
            Work::Embed(how) => (self.text(how)?, None),
            Work::Rerank(how) => self.pair(how)?,
            Work::Generate(_)
            | Work::Likelihoods(_)
            | Work::Tokenize { .. }
            | Work::Chunk(_)
            | Work::Verify(_) => {
                return Err(self.gguf.unsupported("it is an encoder, which generates no text"));
            }
        };
        let (second, other_adapter) = second.unzip();
        let adapters = [adapter, other_adapter.flatten()];
        let prompt_tokens = first.tokens.len().max(second.as_ref().map_or(0, |second| second.tokens.len()));
        if prompt_tokens > self.context_length {
            return Err(Error::PromptTooLong { prompt_tokens, context_length: self.context_length });
        }
        Ok(Plan::encoded(first, second, adapters))
    }

    /// A query and a document: together for the head of a cross-encoder, otherwise apart, for their vectors.
    fn pair(&self, how: &Rerank) -> Result<(PreparedText, Option<PreparedText>), Error> {
        match self.labels {
            0 => {
                let query = Embed { prompt: how.prompts.query.clone(), ..Embed::query(&how.query, None) };
                let query = self.text(&query)?;
                let document = how.document_by_itself();
                Ok((query, Some(self.text(&document)?)))
            }
            1 | 2 => {
                let mut pair = self.tokenizer.encode_pair(&how.query, &how.document)?;
                if how.truncate {
                    truncate(&mut pair.tokens, pair.second, 1, self.context_length);
                }
                Ok(((pair, None), None))
            }
            labels => {
                Err(self.gguf.unsupported(format!("its head has {labels} labels, one or two rank documents")))
            }
        }
    }

    /// The number of the adapter that texts of a purpose are computed with.
    ///
    /// # Errors
    /// [`Error::UnknownTask`] for a task that no adapter has.
    fn adapter(&self, purpose: &Purpose) -> Result<Option<u16>, Error> {
        let Some(task) = purpose.adapter_task() else { return Ok(None) };
        let found = self.adapters.iter().position(|adapter| adapter.task == task);
        let is_named = matches!(purpose, Purpose::Query { task: Some(_) });
        if found.is_none() && is_named && !self.adapters.is_empty() {
            return Err(adapters::unknown_task(self.adapters.iter().map(|adapter| &*adapter.task)));
        }
        Ok(found.and_then(|number| u16::try_from(number).ok()))
    }

    fn text(&self, how: &Embed) -> Result<PreparedText, Error> {
        let adapter = self.adapter(&how.purpose)?;
        let of_adapter = adapter.and_then(|number| self.adapters.get(usize::from(number))?.prompt.as_ref());
        // Model and prompt were trained together: where there are adapters, none stands before a text that is
        // computed without.
        let given = how.prompt.as_ref().filter(|_| adapter.is_some() || self.adapters.is_empty());
        let prompt = match (given, of_adapter, &how.purpose) {
            (Some(prompt), ..) | (None, Some(prompt), _) => prompt,
            (
                None,
                None,
                Purpose::Query { task: Some(_) } | Purpose::Similarity | Purpose::Classification,
            ) if adapter.is_some() => "",
            (
                None,
                None,
                Purpose::Passage | Purpose::Document | Purpose::Similarity | Purpose::Classification,
            ) => &self.prompts.passage,
            (None, None, Purpose::Query { task: None }) => &self.prompts.query,
            (None, None, Purpose::Query { task: Some(_) }) => {
                return Err(Error::InvalidRequest("the model takes no task".to_owned()));
            }
        };
        let mut tokens = if prompt.is_empty() {
            self.tokenizer.encode_embedding(&how.text)?
        } else {
            self.tokenizer.encode_embedding(&format!("{prompt}{}", how.text))?
        };
        if how.truncate && tokens.len() > self.context_length {
            let before = 1 + self.tokenizer.encode(prompt)?.len();
            truncate(&mut tokens, before, 1, self.context_length);
        }
        Ok((Encoded { second: tokens.len(), tokens }, adapter))
    }
}
