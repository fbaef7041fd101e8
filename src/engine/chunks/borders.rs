//! Borders: the places where a text may be cut, by kind.

use super::Strategy;
use crate::Error;
use crate::memory::{try_grow, try_vec};

/// Most `#` of the mark of a heading.
const MAX_HEADING: usize = 6;

/// The places where lines, sentences and so on begin: the best kind first, in ascending order within a kind.
#[derive(Debug, Default)]
pub(super) struct Borders {
    kinds: Vec<Vec<u32>>,
    /// Number of kinds at which an overlap may not begin, as it would be too long.
    large: usize,
    /// Whether the first kind are headings.
    has_headings: bool,
}

impl Borders {
    /// The borders for a strategy. The beginning of the text is none of them.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(super) fn of(text: &str, strategy: Strategy) -> Result<Borders, Error> {
        Ok(match strategy {
            Strategy::Token => Borders::default(),
            Strategy::Recursive => {
                let LineStarts { blocks, lines, .. } = LineStarts::of(text, false)?;
                let kinds = vec![blocks, lines, sentences(text)?, words(text)?];
                Borders { kinds, large: 2, has_headings: false }
            }
            Strategy::Sentence => {
                Borders { kinds: vec![sentences(text)?, words(text)?], large: 0, has_headings: false }
            }
            Strategy::Markdown => {
                let LineStarts { headings, headed, blocks, lines } = LineStarts::of(text, true)?;
                let mut sentences = sentences(text)?;
                sentences.retain(|at| headed.binary_search(at).is_err());
                let kinds = vec![headings, blocks, lines, sentences, words(text)?];
                Borders { kinds, large: 3, has_headings: true }
            }
        })
    }

    /// The last border of the best kind behind `after` and up to `most`.
    pub(super) fn last(&self, after: usize, most: usize) -> Option<usize> {
        self.kinds.iter().find_map(|kind| {
            let count = kind.partition_point(|at| *at as usize <= most);
            let last = *kind.get(count.checked_sub(1)?)? as usize;
            (last > after).then_some(last)
        })
    }

    /// The number of the best kind with a border there; the number of kinds where there is none.
    pub(super) fn rank(&self, at: usize) -> usize {
        let has = |kind: &Vec<u32>| kind.binary_search(&(at as u32)).is_ok();
        self.kinds.iter().position(has).unwrap_or(self.kinds.len())
    }

    /// Whether a heading begins there.
    pub(super) fn is_heading(&self, at: usize) -> bool {
        let headings = self.kinds.first().filter(|_| self.has_headings);
        headings.is_some_and(|headings| headings.binary_search(&(at as u32)).is_ok())
    }

    /// The first border from `earliest` on and before `cut` at which an overlap may begin: that of a sentence
    /// if there is one, otherwise that of a word where the strategy allows words.
    pub(super) fn first_for_overlap(&self, earliest: usize, cut: usize) -> Option<usize> {
        let mut small = self.kinds.get(self.large..).unwrap_or_default();
        if self.large == 0 {
            small = small.get(..1).unwrap_or_default();
        }
        small.iter().find_map(|kind| {
            let first = kind.partition_point(|at| (*at as usize) < earliest);
            kind.get(first).map(|at| *at as usize).filter(|at| *at < cut)
        })
    }
}

/// Adds a border, unless it is the beginning of the text.
fn add(borders: &mut Vec<u32>, at: usize) -> Result<(), Error> {
    if at > 0 && borders.last() != Some(&(at as u32)) {
        try_grow("the borders in a text", borders, 1)?;
        borders.push(at as u32);
    }
    Ok(())
}

/// The beginnings of lines that are not blank.
struct LineStarts {
    /// Headings of Markdown, outside of fences.
    headings: Vec<u32>,
    /// Lines behind a heading of Markdown, which stay together with it.
    headed: Vec<u32>,
    /// Lines behind a blank line, outside of fences; not behind a heading.
    blocks: Vec<u32>,
    /// All lines, but not those behind a heading.
    lines: Vec<u32>,
}

impl LineStarts {
    fn of(text: &str, markdown: bool) -> Result<LineStarts, Error> {
        let new = || try_vec("the borders in a text", 0);
        let mut found = LineStarts { headings: new()?, headed: new()?, blocks: new()?, lines: new()? };
        let (mut at, mut blank, mut fence, mut behind_heading) = (0, false, None, false);
        for line in text.split_inclusive('\n') {
            let inside = line.trim_start();
            let begin = at + (line.len() - inside.len());
            at += line.len();
            if inside.is_empty() {
                blank = true;
                continue;
            }
            let marks = if markdown { fence_marks(inside) } else { None };
            let open = fence;
            match (fence, marks) {
                (None, Some(marks)) => fence = Some(marks),
                (Some((mark, count)), Some((other, more))) if mark == other && more >= count => fence = None,
                _ => {}
            }
            let heading = markdown && open.is_none() && is_heading(inside);
            if heading {
                add(&mut found.headings, begin)?;
            } else if behind_heading {
                add(&mut found.headed, begin)?;
            } else {
                add(&mut found.lines, begin)?;
                if blank && open.is_none() {
                    add(&mut found.blocks, begin)?;
                }
            }
            (blank, behind_heading) = (false, heading);
        }
        Ok(found)
    }
}

/// The character and the number of marks of a line that opens or closes a fence.
fn fence_marks(line: &str) -> Option<(char, usize)> {
    let mark = line.chars().next().filter(|mark| matches!(mark, '`' | '~'))?;
    let count = line.chars().take_while(|other| *other == mark).count();
    (count >= 3).then_some((mark, count))
}

fn is_heading(line: &str) -> bool {
    let rest = line.trim_start_matches('#');
    let count = line.len() - rest.len();
    (1..=MAX_HEADING).contains(&count) && (rest.starts_with([' ', '\t']) || rest.trim().is_empty())
}

/// The beginnings of sentences: behind the end of a sentence and white space, directly behind such an end in
/// scripts without spaces, and behind a blank line.
fn sentences(text: &str) -> Result<Vec<u32>, Error> {
    let mut borders = try_vec("the borders in a text", 0)?;
    // Whether a sentence has ended, and the number of lines since.
    let (mut ended, mut spaced, mut lines) = (false, false, 0);
    let mut ideographic = false;
    for (at, character) in text.char_indices() {
        if character.is_whitespace() {
            spaced = true;
            lines += usize::from(character == '\n');
            continue;
        }
        if (ended && spaced) || lines > 1 || (ideographic && !is_closing(character) && !is_end(character)) {
            add(&mut borders, at)?;
        }
        if is_end(character) {
            ended = true;
            ideographic = matches!(character, '。' | '！' | '？' | '｡');
        } else if spaced || !is_closing(character) {
            (ended, ideographic) = (false, false);
        }
        (spaced, lines) = (false, 0);
    }
    Ok(borders)
}

fn is_end(character: char) -> bool {
    matches!(character, '.' | '!' | '?' | '…' | '。' | '！' | '？' | '｡' | '؟' | '।')
}

fn is_closing(character: char) -> bool {
    matches!(character, '"' | '\'' | ')' | ']' | '}' | '”' | '’' | '»' | '」' | '』' | '）')
}

/// The beginnings of words behind white space.
fn words(text: &str) -> Result<Vec<u32>, Error> {
    let mut borders = try_vec("the borders in a text", 0)?;
    let mut spaced = false;
    for (at, character) in text.char_indices() {
        let white = character.is_whitespace();
        if spaced && !white {
            add(&mut borders, at)?;
        }
        spaced = white;
    }
    Ok(borders)
}
