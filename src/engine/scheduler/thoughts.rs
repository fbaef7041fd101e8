//! Separates the thoughts of a model from its answer.

use std::borrow::Cow;

use crate::template::ThoughtMarks;

/// Most white space before thoughts; text behind more of it is the answer.
const MAX_SPACE_BYTES: usize = 64;

/// Parser of the marks around thoughts in an answer. Small: it is copied with every token.
#[derive(Debug, Clone)]
pub(crate) struct Thoughts {
    marks: &'static ThoughtMarks,
    /// Whether thoughts are part of the text.
    keep: bool,
    /// Whether thoughts have begun in the prompt.
    begun: bool,
    stage: ThoughtStage,
    /// Bytes that may belong to a mark. At [`ThoughtStage::Beginning`], all bytes so far, of which none was
    /// passed on; at [`ThoughtStage::Thinking`], the last ones, in which the closing mark may have begun.
    held: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ThoughtStage {
    /// Only white space was said, and perhaps the beginning of a mark.
    Beginning,
    Thinking,
    /// The thoughts are over, and white space follows them.
    Between,
    Answering,
}

impl Thoughts {
    /// Before the first token; `begun` where the prompt ends in the mark of their beginning.
    pub(crate) fn new(marks: &'static ThoughtMarks, begun: bool, keep: bool) -> Thoughts {
        let stage = if begun { ThoughtStage::Thinking } else { ThoughtStage::Beginning };
        Thoughts { marks, keep, begun, stage, held: Vec::new() }
    }

    /// Text to put before the answer: the opening mark where the prompt ends in it and thoughts are kept.
    pub(crate) fn beginning(&self) -> &'static str {
        if self.begun && self.keep { self.marks.open } else { "" }
    }

    /// Takes bytes of the answer, and returns those that the text goes on with.
    pub(crate) fn take<'a>(&mut self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        match self.stage {
            ThoughtStage::Beginning => Cow::Owned(self.begin(bytes)),
            ThoughtStage::Thinking => {
                let answer = self.think(bytes);
                if self.keep { Cow::Borrowed(bytes) } else { Cow::Owned(answer) }
            }
            ThoughtStage::Between if !self.keep => {
                let answer = bytes.trim_ascii_start();
                if !answer.is_empty() {
                    self.stage = ThoughtStage::Answering;
                }
                Cow::Borrowed(answer)
            }
            ThoughtStage::Between | ThoughtStage::Answering => Cow::Borrowed(bytes),
        }
    }

    /// The same for a control token, which is text only as part of a mark.
    pub(crate) fn take_mark<'a>(&mut self, mark: &'a str) -> Cow<'a, [u8]> {
        let marks = self.marks.open.contains(mark) || self.marks.close.contains(mark);
        match self.stage {
            ThoughtStage::Beginning | ThoughtStage::Thinking if marks => self.take(mark.as_bytes()),
            _ => Cow::Borrowed(&[]),
        }
    }

    /// Bytes still to be added where the answer has ended at [`ThoughtStage::Beginning`].
    pub(crate) fn held(self) -> Vec<u8> {
        if self.stage == ThoughtStage::Beginning { self.held } else { Vec::new() }
    }

    fn begin(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(bytes);
        let said = self.held.trim_ascii_start();
        let space = self.held.len() - said.len();
        let open = self.marks.open.as_bytes();
        if said.starts_with(open) && space <= MAX_SPACE_BYTES {
            let said = said.to_vec();
            let all = std::mem::take(&mut self.held);
            self.stage = ThoughtStage::Thinking;
            let answer = self.think(&said);
            return if self.keep { all } else { answer };
        }
        if open.starts_with(said) && space <= MAX_SPACE_BYTES {
            return Vec::new();
        }
        self.stage = ThoughtStage::Answering;
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
                self.stage = if answer.is_empty() { ThoughtStage::Between } else { ThoughtStage::Answering };
                answer.to_vec()
            }
            None => {
                self.held.drain(..self.held.len().saturating_sub(close.len() - 1));
                Vec::new()
            }
        }
    }
}
