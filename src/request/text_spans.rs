//! Words of a text, found where they stand as a whole and replaced, and long texts cut into pieces.
//!
//! Invariant: this file knows nothing but texts, and uses nothing: a test compiles it by itself.

/// Bytes of a piece, about.
const PIECE_BYTES: usize = 2000;

/// The text with words replaced by what stands for their number. Of words that overlap the longest have their
/// place, from left to right; of the same words the first number.
pub(crate) fn replaced(
    text: &str,
    mut named: Vec<(String, usize)>,
    mark: impl Fn(usize) -> String,
) -> String {
    named.retain(|(words, _)| !words.is_empty());
    named.sort_unstable();
    named.dedup_by(|(later, _), (before, _)| later == before);
    let mut masked = String::with_capacity(text.len());
    let (mut kept_to, mut at) = (0, 0);
    while let Some(next) = text[at..].chars().next() {
        match longest_at(text, at, &named) {
            Some((end, number)) => {
                masked.push_str(&text[kept_to..at]);
                masked.push_str(&mark(number));
                (kept_to, at) = (end, end);
            }
            None => at += next.len_utf8(),
        }
    }
    masked.push_str(&text[kept_to..]);
    masked
}

/// The end of the longest of some words that stands as a whole at a place of the text, and its number. The
/// words are sorted: those that begin as the text goes on there are narrowed down byte by byte, which takes
/// no longer the more words there are.
fn longest_at(text: &str, begin: usize, named: &[(String, usize)]) -> Option<(usize, usize)> {
    if joins(text[..begin].chars().next_back(), text[begin..].chars().next()) {
        return None;
    }
    let mut left = named;
    let mut longest = None;
    for depth in 0.. {
        if let Some((words, label)) = left.first()
            && words.len() == depth
        {
            let (words, after) = (&text[begin..begin + depth], &text[begin + depth..]);
            if !joins(words.chars().next_back(), after.chars().next()) {
                longest = Some((begin + depth, *label));
            }
            left = &left[1..];
        }
        let Some(byte) = text.as_bytes().get(begin + depth).filter(|_| !left.is_empty()) else { break };
        let at = |words: &String| words.as_bytes()[depth];
        let from = left.partition_point(|(words, _)| at(words) < *byte);
        let to = left.partition_point(|(words, _)| at(words) <= *byte);
        left = &left[from..to];
    }
    longest
}

/// Whether two characters side by side belong to one word.
fn joins(left: Option<char>, right: Option<char>) -> bool {
    left.zip(right).is_some_and(|(left, right)| left.is_alphanumeric() && right.is_alphanumeric())
}

/// The ends of the pieces of a text: behind a line or a sentence, or else between two words, or where it must
/// be.
pub(crate) fn ends(text: &str) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut begin = 0;
    while text.len() - begin > PIECE_BYTES {
        let most = text.floor_char_boundary(begin + PIECE_BYTES);
        let window = &text[begin..most];
        let late = |end: &usize| *end > window.len() / 2;
        let behind = |mark: &str| window.rfind(mark).map(|at| at + mark.len()).filter(late);
        let end = behind("\n").or_else(|| behind(". ")).or_else(|| behind(" ")).unwrap_or(window.len());
        begin += end;
        ends.push(begin);
    }
    ends.push(text.len());
    ends
}
