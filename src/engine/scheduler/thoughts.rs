//! Separates the thoughts of a model from its answer.

use std::borrow::Cow;

use crate::template::Marks;

/// Most white space before thoughts; text behind more of it is the answer.
const MAX_SPACE_BYTES: usize = 64;

/// Parser of the marks around thoughts in an answer. Small: it is copied with every token.
#[derive(Debug, Clone)]
pub(crate) struct Thoughts {
    marks: &'static Marks,
    /// Whether thoughts are part of the text.
    keep: bool,
    /// Whether thoughts have begun in the prompt.
    begun: bool,
    stage: Stage,
    /// Bytes that may belong to a mark. At [`Stage::Beginning`], all bytes so far, of which none was passed
    /// on; at [`Stage::Thinking`], the last ones, in which the closing mark may have begun.
    held: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Only white space was said, and perhaps the beginning of a mark.
    Beginning,
    Thinking,
    /// The thoughts are over, and white space follows them.
    Between,
    Answering,
}

impl Thoughts {
    /// Before the first token; `begun` where the prompt ends in the mark of their beginning.
    pub(crate) fn new(marks: &'static Marks, begun: bool, keep: bool) -> Thoughts {
        let stage = if begun { Stage::Thinking } else { Stage::Beginning };
        Thoughts { marks, keep, begun, stage, held: Vec::new() }
    }

    /// Text to put before the answer: the opening mark where the prompt ends in it and thoughts are kept.
    pub(crate) fn beginning(&self) -> &'static str {
        if self.begun && self.keep { self.marks.open } else { "" }
    }

    /// Takes bytes of the answer, and returns those that the text goes on with.
    pub(crate) fn take<'a>(&mut self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        match self.stage {
            Stage::Beginning => Cow::Owned(self.begin(bytes)),
            Stage::Thinking => {
                let answer = self.think(bytes);
                if self.keep { Cow::Borrowed(bytes) } else { Cow::Owned(answer) }
            }
            Stage::Between if !self.keep => {
                let answer = bytes.trim_ascii_start();
                if !answer.is_empty() {
                    self.stage = Stage::Answering;
                }
                Cow::Borrowed(answer)
            }
            Stage::Between | Stage::Answering => Cow::Borrowed(bytes),
        }
    }

    /// The same for a control token, which is text only as part of a mark.
    pub(crate) fn take_mark<'a>(&mut self, mark: &'a str) -> Cow<'a, [u8]> {
        let marks = self.marks.open.contains(mark) || self.marks.close.contains(mark);
        match self.stage {
            Stage::Beginning | Stage::Thinking if marks => self.take(mark.as_bytes()),
            _ => Cow::Borrowed(&[]),
        }
    }

    /// Bytes still to be added where the answer has ended at [`Stage::Beginning`].
    pub(crate) fn held(self) -> Vec<u8> {
        if self.stage == Stage::Beginning { self.held } else { Vec::new() }
    }

    fn begin(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(bytes);
        let said = self.held.trim_ascii_start();
        let space = self.held.len() - said.len();
        let open = self.marks.open.as_bytes();
        if said.starts_with(open) && space <= MAX_SPACE_BYTES {
            let said = said.to_vec();
            let all = std::mem::take(&mut self.held);
            self.stage = Stage::Thinking;
            let answer = self.think(&said);
            return if self.keep { all } else { answer };
        }
        if open.starts_with(said) && space <= MAX_SPACE_BYTES {
            return Vec::new();
        }
        self.stage = Stage::Answering;
        std::mem::take(&mut self.held)
    }

    /// Goes on thinking; returns the beginning of the answer.
    fn think(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(bytes);
        let close = self.marks.close.as_bytes();
        match self.held.windows(close.len()).position(|window| window == close) {
            Some(at) => {
                let held = std::mem::take(&mut self.held);
                let answer = held.get(at + close.len()..).unwrap_or_default().trim_ascii_start();
                self.stage = if answer.is_empty() { Stage::Between } else { Stage::Answering };
                answer.to_vec()
            }
            None => {
                self.held.drain(..self.held.len().saturating_sub(close.len() - 1));
                Vec::new()
            }
        }
    }
}
