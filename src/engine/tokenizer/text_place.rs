//! Places of texts, for algorithms that encode the beginning of a text otherwise than the rest.

/// The place of a stretch of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextPlace {
    /// At the beginning, or behind a special token.
    First,
    /// Behind other text.
    Later,
}
