//! Where texts stand, for algorithms that begin one otherwise than what comes behind it.

/// Where a stretch of text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextPlace {
    /// At the beginning, or behind a special token.
    First,
    /// Behind other text.
    Later,
}
