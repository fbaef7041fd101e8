//! Names that somebody may have meant, by the number of letters that differ.

/// Longest word that is compared; nobody mistypes longer ones.
const MAX_LETTERS: usize = 64;

/// The candidates that are a few letters away from a word, the nearest first; those at the same distance in
/// their order.
pub fn all<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> impl Iterator<Item = &'a str> {
    let allowed = 1 + word.chars().count() / 4;
    let mut near: Vec<(usize, &str)> = candidates
        .filter_map(|candidate| Some((distance(word, candidate)?, candidate)))
        .filter(|(distance, _)| *distance <= allowed)
        .collect();
    near.sort_by_key(|(distance, _)| *distance);
    near.into_iter().map(|(_, candidate)| candidate).take(3)
}

/// The nearest of them.
pub fn one<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    all(word, candidates).next()
}

/// Letters that have to be put in, left out or replaced to make one word of the other (Levenshtein's
/// distance); letters in upper and lower case are the same. None for words that are too long.
fn distance(left: &str, right: &str) -> Option<usize> {
    let letters =
        |word: &str| word.chars().flat_map(char::to_lowercase).take(MAX_LETTERS + 1).collect::<Vec<_>>();
    let (left, right) = (letters(left), letters(right));
    if left.len().max(right.len()) > MAX_LETTERS {
        return None;
    }
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (index, letter) in left.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = index + 1;
        for (column, other) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != other);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row.last().copied()
}

#[cfg(test)]
mod tests {
    use super::{all, distance, one};

    #[test]
    fn distances_count_letters() {
        assert_eq!(distance("", "abc"), Some(3));
        assert_eq!(distance("kitten", "sitting"), Some(3));
        assert_eq!(distance("Qwen3", "qwen3"), Some(0));
        assert_eq!(distance(&"x".repeat(65), "x"), None);
    }

    #[test]
    fn the_nearest_comes_first_and_strangers_not_at_all() {
        let names = ["llama", "qwen2", "qwen3", "bert"];
        assert_eq!(all("qwen3x", names.into_iter()).collect::<Vec<_>>(), ["qwen3", "qwen2"]);
        assert_eq!(one("lama", names.into_iter()), Some("llama"));
        assert_eq!(one("starcoder", names.into_iter()), None);
        assert_eq!(one(&"llama".repeat(1000), names.into_iter()), None);
    }
}
