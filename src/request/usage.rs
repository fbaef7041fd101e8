//! The cost of an answer: tokens, the time to the first of them, and the reason why it ended.

use std::time::{Duration, Instant};

use steadytext_engine::Finish;

/// The known part of an answer's cost. An answer from the cache has none.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// Length of the prompt, template included; of many texts, all of them together.
    pub(crate) prompt_tokens: Option<i32>,
    /// The tokens of a text's prompt that did not have to be computed.
    pub(crate) cached_tokens: Option<i32>,
    /// Tokens of the text.
    pub(crate) generated_tokens: Option<i32>,
    /// The reason why the text ended.
    pub(crate) finish_reason: Option<&'static str>,
    /// Milliseconds to the first token.
    pub(crate) first_token_ms: Option<i32>,
    /// The time to the first token, to more digits.
    pub(crate) first_token: Option<Duration>,
    /// The time until the engine began.
    pub(crate) begun: Option<Duration>,
}

impl Usage {
    /// Tokens of prompt and answer, as far as they are known.
    pub(crate) fn tokens(&self) -> u64 {
        let known = [self.prompt_tokens, self.generated_tokens].into_iter().flatten();
        known.map(|tokens| u64::try_from(tokens).unwrap_or(0)).sum()
    }

    /// Notes how many tokens of a text are there.
    pub(crate) fn grown(&mut self, generated_tokens: usize) {
        self.generated_tokens = Some(number(generated_tokens));
    }

    /// A subtask has begun, of what was asked for at `since`.
    pub(crate) fn started(&mut self, prompt_tokens: usize, since: Instant) {
        self.begun.get_or_insert_with(|| since.elapsed());
        self.prompt_tokens = Some(self.prompt_tokens.unwrap_or(0).saturating_add(number(prompt_tokens)));
    }

    /// The first token of a text that was asked for at `since`; of many texts, there is one that is the
    /// first.
    pub(crate) fn first_token(&mut self, cached_tokens: usize, since: Instant) {
        self.cached_tokens = Some(self.cached_tokens.unwrap_or(0).saturating_add(number(cached_tokens)));
        self.note_first_token(since);
    }

    /// The usage that a worker elsewhere reports.
    pub(crate) fn reported(
        prompt_tokens: Option<u64>,
        cached_tokens: Option<u64>,
        first_token_ms: Option<u64>,
    ) -> Usage {
        let number = |count: Option<u64>| count.map(|count| i32::try_from(count).unwrap_or(i32::MAX));
        Usage {
            prompt_tokens: number(prompt_tokens),
            cached_tokens: number(cached_tokens),
            first_token_ms: number(first_token_ms),
            ..Usage::default()
        }
    }

    /// Notes the end of the answer: of a text its tokens, and why it ended. A text that was known without a
    /// model has had no first token.
    pub(crate) fn ended(&mut self, text: Option<(usize, Finish)>, since: Instant) {
        let Some((generated_tokens, finish)) = text else { return };
        self.cached_tokens.get_or_insert(0);
        self.note_first_token(since);
        self.generated_tokens = Some(number(generated_tokens));
        self.finish_reason = Some(match finish {
            Finish::EndOfText | Finish::Stop => "stop",
            Finish::Length | Finish::Closed => "length",
            Finish::Complete => "constraint",
        });
    }

    fn note_first_token(&mut self, since: Instant) {
        let first = *self.first_token.get_or_insert_with(|| since.elapsed());
        self.first_token_ms = Some(i32::try_from(first.as_millis()).unwrap_or(i32::MAX));
    }
}

fn number(tokens: usize) -> i32 {
    i32::try_from(tokens).unwrap_or(i32::MAX)
}
