//! Chunking: a text is cut into pieces of at most so many tokens of a model, which may overlap.
//!
//! The text is read once. A chunk takes as many tokens as fit, and ends at the last border of the best kind
//! among them: a heading before a paragraph, a paragraph before a line, and so on ([`borders`]). The next one
//! begins there, or a little before, unless the overlap would break a unit that fits without it. The ends of
//! tokens are those of the whole text, whose tokens may differ from those of a piece: so each chunk is
//! tokenized by itself in the end, and shortened if it is too long.
//!
//! Invariant: chunks are stretches of the text, in their order, each of which ends behind the one before;
//! none begins or ends inside a character. A chunk has at most the wanted number of tokens, unless it is one
//! character.
//!
//! Invariant: the work is within a few times that of tokenizing the text: chunks overlap by half at most, and
//! of two successive chunks, at least one ends as far behind the other as there was room for.

mod borders;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::memory::try_vec;
use crate::tokenizer::Tokenizer;
use borders::Borders;

/// Most tokens of a chunk.
pub const MAX_CHUNK_TOKENS: usize = 1_000_000;

/// A text that is to be cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunking {
    /// The text.
    pub text: String,
    /// Most tokens of a chunk.
    pub size: usize,
    /// Most tokens that a chunk has in common with the one before; at most half of `size`.
    pub overlap: usize,
    /// The places where it is cut.
    pub strategy: Strategy,
    /// The prompt that shares the context of the model with each chunk; the model must generate then, and
    /// `size` is only the upper limit of a chunk.
    pub beside: Option<Beside>,
}

/// A prompt to which a piece of a text is added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beside {
    /// The prompt without the piece; the model's chat template is put around it.
    pub prompt: String,
    /// Most tokens of the answer. Pieces leave room for them, up to half of the room.
    pub answer_tokens: usize,
}

/// The places where a text is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Strategy {
    /// Behind any token: chunks are as long as possible, with the white space at their ends.
    Token,
    /// Between paragraphs; where these are too long between lines, then sentences, words, tokens.
    Recursive,
    /// Between sentences; where these are too long between words, then tokens. Chunks overlap by whole
    /// sentences.
    Sentence,
    /// Before headings; then between blocks of which none is inside a fence, lines, sentences, words, tokens.
    Markdown,
}

/// A piece of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Bytes of the text before it.
    pub start: usize,
    /// Its bytes.
    pub bytes: usize,
    /// Characters of the text before it.
    pub characters_before: usize,
    /// Tokens that it has by itself.
    pub tokens: usize,
}

impl Chunking {
    /// Refuses sizes that make no sense.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`].
    pub(crate) fn check(&self) -> Result<(), Error> {
        let invalid = |reason: String| Err(Error::InvalidRequest(reason));
        if !(1..=MAX_CHUNK_TOKENS).contains(&self.size) {
            return invalid(format!("a chunk has between 1 and {MAX_CHUNK_TOKENS} tokens"));
        }
        if self.overlap > self.size / 2 {
            return invalid("chunks overlap by half of their size at most".to_owned());
        }
        Ok(())
    }
}

/// Fewest tokens of a piece that is worth a request to a model, and the tokens that a piece may have more in
/// the middle of a prompt than by itself.
const LEAST_ROOM: usize = 64;
const SPARE_TOKENS: usize = 8;

/// Number of tokens of a text that fit beside a prompt of `prompt_tokens` tokens and its answer.
///
/// # Errors
/// [`Error::PromptTooLong`] where that is less than [`LEAST_ROOM`].
pub(crate) fn room(
    prompt_tokens: usize,
    answer_tokens: usize,
    context_length: usize,
) -> Result<usize, Error> {
    let left = context_length.saturating_sub(prompt_tokens + SPARE_TOKENS);
    let room = left - answer_tokens.min(left / 2);
    if room < LEAST_ROOM {
        return Err(Error::PromptTooLong { prompt_tokens, context_length });
    }
    Ok(room)
}

/// Cuts a text into pieces of at most `size` tokens, in place of the size in `how`.
///
/// # Errors
/// As [`Tokenizer::encode`]; [`Error::OutOfMemory`].
pub(crate) fn chunks(how: &Chunking, size: usize, tokenizer: &Tokenizer) -> Result<Vec<Chunk>, Error> {
    let cutter = Cutter {
        how,
        size,
        tokenizer,
        ends: token_ends(&how.text, tokenizer)?,
        borders: Borders::of(&how.text, how.strategy)?,
    };
    cutter.chunks()
}

struct Cutter<'a> {
    how: &'a Chunking,
    size: usize,
    tokenizer: &'a Tokenizer,
    /// The end of each token of the text, ascending.
    ends: Vec<u32>,
    borders: Borders,
}

impl Cutter<'_> {
    fn chunks(&self) -> Result<Vec<Chunk>, Error> {
        let text = self.how.text.as_str();
        let mut chunks: Vec<Chunk> = Vec::new();
        // The place up to which characters were counted, and their number.
        let (mut counted, mut characters) = (0, 0);
        let (mut from, mut cut) = (self.begin(0), 0);
        while from < text.len() {
            let Some((start, end, next_cut, tokens)) = self.chunk_at_best(from, cut)? else {
                // The overlap would leave no room for new text.
                from = self.begin(cut);
                continue;
            };
            cut = next_cut;
            if start < end {
                characters += text[counted..start].chars().count();
                counted = start;
                chunks.push(Chunk { start, bytes: end - start, characters_before: characters, tokens });
            }
            if self.begin(cut) >= text.len() {
                break;
            }
            from = self.next_start(from.max(start), cut);
        }
        Ok(chunks)
    }

    /// As [`Cutter::chunk`], but it overlaps the chunk before only where that does not break a unit that is
    /// whole without the overlap.
    fn chunk_at_best(
        &self,
        from: usize,
        before: usize,
    ) -> Result<Option<(usize, usize, usize, usize)>, Error> {
        let found = self.chunk(from, before)?;
        let Some((_, _, cut, _)) = found else { return Ok(None) };
        let (behind, rank) = (self.begin(before), self.rank(cut));
        if from < behind && rank > 0 {
            let alone = self.chunk(behind, before)?;
            if alone.is_some_and(|(_, _, cut, _)| self.rank(cut) < rank) {
                return Ok(alone);
            }
        }
        Ok(found)
    }

    /// The rank of a place to cut: the end of the text is the best one.
    fn rank(&self, cut: usize) -> usize {
        if cut >= self.how.text.len() { 0 } else { self.borders.rank(cut) }
    }

    /// The chunk that begins at `from` and is cut behind `before`: its beginning and end without white space,
    /// the place of the cut, behind the white space, and its tokens. `None` where there is no such chunk.
    fn chunk(&self, from: usize, before: usize) -> Result<Option<(usize, usize, usize, usize)>, Error> {
        let text = self.how.text.as_str();
        let first = self.tokens_before(from);
        let (mut room, mut tries) = (self.size, 0u32);
        let shortest = text.ceil_char_boundary(from + 1);
        loop {
            let most = match self.ends.get(first + room) {
                // Up to the beginning of the first token that has no room.
                Some(_) => self.ends.get((first + room).wrapping_sub(1)).map_or(0, |end| *end as usize),
                None => text.len(),
            };
            let most = text.floor_char_boundary(most).max(shortest);
            if most <= before {
                return Ok(None);
            }
            // White space before a border is left out, and needs no room.
            let reach = self.begin(most);
            let cut = if reach >= text.len() {
                text.len()
            } else {
                self.borders.last(before.max(from), reach).unwrap_or(most)
            };
            let (start, end) = self.trimmed(from, cut);
            let tokens = self.tokenizer.encode(&text[start..end])?.len();
            if tokens <= self.size || cut <= shortest {
                return Ok(Some((start, end, self.begin(cut), tokens)));
            }
            // The end moves back by the excess, counted from the actual end rather than from the place tried,
            // and by more each time, so that there are few tries.
            let excess = (tokens - self.size).saturating_mul(1 << tries.min(20));
            tries += 1;
            let now = self.tokens_before(cut).saturating_sub(first).min(room);
            room = now.saturating_sub(excess).min(room - 1);
            if room == 0 {
                let end = shortest;
                if end <= before {
                    return Ok(None);
                }
                let (start, end) = self.trimmed(from, end);
                let tokens = self.tokenizer.encode(&text[start..end])?.len();
                return Ok(Some((start, end, self.begin(shortest), tokens)));
            }
        }
    }

    /// The beginning of the next chunk, where the current one begins at `from` and is cut at `cut`.
    fn next_start(&self, from: usize, cut: usize) -> usize {
        let text = self.how.text.as_str();
        let behind = self.begin(cut);
        // A section does not begin with the end of the one before.
        if self.how.overlap == 0 || self.borders.is_heading(cut) {
            return behind;
        }
        let first = self.tokens_before(cut).saturating_sub(self.how.overlap);
        let earliest = if first == 0 { 0 } else { self.ends[first - 1] as usize };
        let earliest = text.ceil_char_boundary(earliest).max(text.ceil_char_boundary(from + 1));
        if earliest >= cut {
            return behind;
        }
        match self.how.strategy {
            Strategy::Token => earliest,
            _ => self.borders.first_for_overlap(earliest, cut).unwrap_or_else(|| {
                // A chunk does not begin inside a word, unless there are no words at all.
                let has_words = self.borders.first_for_overlap(from + 1, cut).is_some();
                if has_words || self.how.strategy == Strategy::Sentence { behind } else { earliest }
            }),
        }
    }

    /// Number of tokens that end at `at` or before.
    fn tokens_before(&self, at: usize) -> usize {
        self.ends.partition_point(|end| *end as usize <= at)
    }

    /// The first character to keep of a chunk that begins at `at`: white space before it is skipped.
    fn begin(&self, at: usize) -> usize {
        match self.how.strategy {
            Strategy::Token => at,
            _ => {
                let rest = &self.how.text[at..];
                at + (rest.len() - rest.trim_start().len())
            }
        }
    }

    fn trimmed(&self, from: usize, to: usize) -> (usize, usize) {
        match self.how.strategy {
            Strategy::Token => (from, to),
            _ => {
                let start = self.begin(from).min(to);
                (start, start + self.how.text[start..to].trim_end().len())
            }
        }
    }
}

/// The end of each token of a text. Where the tokens do not spell the text, such as those of WordPiece, the
/// tokens of each word are spread over it.
fn token_ends(text: &str, tokenizer: &Tokenizer) -> Result<Vec<u32>, Error> {
    let tokens = tokenizer.encode(text)?;
    let mut ends: Vec<u32> = try_vec("the ends of tokens", tokens.len())?;
    let bytes: usize = tokens.iter().map(|token| tokenizer.token_bytes(*token).len()).sum();
    // A space that was put before the text.
    let added = bytes.checked_sub(text.len()).filter(|added| *added <= 1);
    if let Some(added) = added {
        let mut end = 0;
        ends.extend(tokens.iter().map(|token| {
            end += tokenizer.token_bytes(*token).len();
            end.saturating_sub(added) as u32
        }));
        return Ok(ends);
    }
    let mut at = 0;
    for word in text.split_inclusive(char::is_whitespace) {
        let count = tokenizer.encode(word)?.len();
        let length = word.len();
        ends.extend((1..=count).map(|number| (at + length * number / count) as u32));
        at += length;
    }
    Ok(ends)
}

#[cfg(test)]
mod tests {
    use super::{Chunk, Chunking, Strategy, chunks, room};
    use crate::builtin;
    use crate::tokenizer::Tokenizer;

    const STRATEGIES: [Strategy; 4] =
        [Strategy::Token, Strategy::Recursive, Strategy::Sentence, Strategy::Markdown];

    fn tokenizer() -> Tokenizer {
        Tokenizer::from_gguf(&builtin::gguf().unwrap()).unwrap()
    }

    fn cut(text: &str, size: usize, overlap: usize, strategy: Strategy) -> Vec<Chunk> {
        let how = Chunking { text: text.to_owned(), size, overlap, strategy, beside: None };
        how.check().unwrap();
        chunks(&how, size, &tokenizer()).unwrap()
    }

    fn texts<'a>(text: &'a str, chunks: &[Chunk]) -> Vec<&'a str> {
        chunks.iter().map(|chunk| &text[chunk.start..chunk.start + chunk.bytes]).collect()
    }

    /// A random text with everything that matters for cutting.
    fn made_up(seed: u64, words: usize) -> String {
        let pieces = [
            "word",
            " ",
            " ",
            " ",
            "VACUUM reclaims storage",
            ". ",
            "! ",
            "\n",
            "\n\n",
            "\n \n\t",
            "\n# Title\n",
            "\n```\ncode\n\n# none\n```\n",
            "ä€😀",
            "。",
            "漢字",
            "\u{1f468}\u{200d}\u{1f469}",
            "...",
            "antidisestablish",
            "\r\n",
            "   ",
            "- item",
            "1234567890",
        ];
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize
        };
        (0..words).map(|_| pieces[next() % pieces.len()]).collect()
    }

    #[test]
    fn chunks_are_stretches_of_the_text_in_order_within_their_size_and_nothing_is_lost() {
        let tokenizer = tokenizer();
        for seed in 0..60 {
            let text = made_up(seed, 120);
            for strategy in STRATEGIES {
                for (size, overlap) in [(1, 0), (2, 1), (7, 0), (7, 3), (40, 20), (10_000, 50)] {
                    let found = cut(&text, size, overlap, strategy);
                    let context = format!("seed {seed}, {strategy:?}, {size}, {overlap}: {text:?}");
                    let mut behind = 0;
                    let mut before = None;
                    for chunk in &found {
                        let end = chunk.start + chunk.bytes;
                        let piece = &text[chunk.start..end];
                        assert!(!piece.is_empty(), "{context}");
                        assert_eq!(text[..chunk.start].chars().count(), chunk.characters_before, "{context}");
                        assert_eq!(tokenizer.encode(piece).unwrap().len(), chunk.tokens, "{context}");
                        assert!(chunk.tokens <= size || piece.chars().count() == 1, "{piece:?}, {context}");
                        assert!(end > behind && before < Some(chunk.start), "{context}");
                        let lost = text.get(behind..chunk.start).unwrap_or_default();
                        assert!(lost.trim().is_empty(), "{lost:?}, {context}");
                        if overlap == 0 {
                            assert!(chunk.start >= behind, "{context}");
                        }
                        if strategy == Strategy::Token {
                            assert!(lost.is_empty(), "{context}");
                        }
                        (behind, before) = (end, Some(chunk.start));
                    }
                    assert!(text[behind..].trim().is_empty(), "{context}");
                }
            }
        }
    }

    #[test]
    fn a_text_is_cut_at_its_best_borders() {
        let text = "One two three. Four five six.\n\nSeven eight nine. Ten.\nEleven twelve.";
        let all = cut(text, 1000, 0, Strategy::Recursive);
        assert_eq!(texts(text, &all), [text]);
        let size = all[0].tokens - 1;
        let recursive = cut(text, size, 0, Strategy::Recursive);
        assert_eq!(
            texts(text, &recursive),
            ["One two three. Four five six.", "Seven eight nine. Ten.\nEleven twelve."]
        );
        let longest = tokenizer().encode("Seven eight nine. Ten.").unwrap().len();
        let first = tokenizer().encode("One two three. Four five six.").unwrap().len();
        let lines = cut(text, longest.max(first), 0, Strategy::Recursive);
        assert_eq!(
            texts(text, &lines),
            ["One two three. Four five six.", "Seven eight nine. Ten.", "Eleven twelve."]
        );
        let sentences = ["One two three.", "Four five six.", "Seven eight nine.", "Ten.\nEleven twelve."];
        let size = sentences.iter().map(|text| tokenizer().encode(text).unwrap().len()).max().unwrap();
        let found = cut(text, size, 0, Strategy::Sentence);
        assert!(texts(text, &found).iter().all(|piece| piece.ends_with('.')), "{:?}", texts(text, &found));
    }

    #[test]
    fn headings_begin_chunks_but_not_inside_of_fences() {
        let text = "Intro.\n\n# One\nText of one.\n\n```\n# no heading\n\ncode\n```\n\n## Two\nText of two.";
        let whole = tokenizer().encode(text).unwrap().len();
        let found = cut(text, whole - 1, 0, Strategy::Markdown);
        let found = texts(text, &found);
        assert_eq!(found.len(), 2);
        assert!(found[1].starts_with("## Two") && found[0].ends_with("```"), "{found:?}");
        // A heading is not separated from its section, and no part of the section before is repeated.
        let text = "# Title\n\nSome words of an introduction. And more!\n\n## Part\n\nThe end of it all, in a few words.";
        let found = cut(
            text,
            tokenizer().encode("# Title\n\nSome words of an introduction.").unwrap().len(),
            4,
            Strategy::Markdown,
        );
        let found = texts(text, &found);
        assert_eq!(found[0], "# Title\n\nSome words of an introduction.");
        assert!(found.iter().any(|piece| piece.starts_with("## Part\n\nThe end")), "{found:?}");
    }

    #[test]
    fn what_overlaps_is_the_end_of_the_chunk_before() {
        let text = "Aa bb cc. Dd ee ff. Gg hh ii. Jj kk ll. Mm nn oo. Pp qq rr.";
        let sentence = tokenizer().encode(" Dd ee ff.").unwrap().len();
        let found = cut(text, 3 * sentence, sentence + 1, Strategy::Sentence);
        let pieces = texts(text, &found);
        assert!(pieces.len() > 1);
        for pair in found.windows(2) {
            let end = pair[0].start + pair[0].bytes;
            assert!(pair[1].start < end, "{pieces:?}");
            assert!(pieces.iter().all(|piece| piece.ends_with('.')), "{pieces:?}");
        }
    }

    #[test]
    fn what_would_be_whole_is_not_broken_for_an_overlap() {
        let text = "A tuple is a row version. A page holds several. VACUUM reclaims them.";
        let found = cut(text, 12, 6, Strategy::Sentence);
        let found = texts(text, &found);
        assert!(found.len() > 1 && found.iter().all(|piece| piece.ends_with('.')), "{found:?}");
        let fence = "```\nselect one;\nselect two;\n```";
        let text = format!("Words before the code.\n\n{fence}\n\nWords behind the code.");
        let size = tokenizer().encode(fence).unwrap().len() + 1;
        let found = cut(&text, size, size / 2, Strategy::Markdown);
        let found = texts(&text, &found);
        assert!(found.iter().any(|piece| piece.contains(fence)), "{found:?}");
    }

    #[test]
    fn no_text_has_no_chunks() {
        for strategy in STRATEGIES {
            assert_eq!(cut("", 5, 0, strategy), []);
        }
        assert_eq!(cut(" \n ", 5, 0, Strategy::Recursive), []);
        assert_eq!(texts(" \n ", &cut(" \n ", 5, 0, Strategy::Token)), [" \n "]);
    }

    #[test]
    fn sizes_that_make_no_sense_are_refused() {
        for (size, overlap) in [(0, 0), (10, 6), (2_000_000, 0)] {
            let how =
                Chunking { text: String::new(), size, overlap, strategy: Strategy::Token, beside: None };
            assert!(how.check().is_err());
        }
    }

    #[test]
    fn a_piece_leaves_room_for_its_answer_but_never_less_than_half_for_itself() {
        assert_eq!(room(92, 300, 1100).unwrap(), 700);
        assert_eq!(room(92, 100_000, 1100).unwrap(), 500);
        assert!(room(1000, 10, 1024).is_err() && room(5000, 10, 1024).is_err());
    }
}
