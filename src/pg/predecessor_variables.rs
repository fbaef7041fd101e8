//! The predecessor's variables of the server's environment. Those that have a meaning here are obeyed where
//! no setting says otherwise; the others are listed by steadytext_diagnose().

/// The names of all of them begin so.
pub(crate) const PREFIX: &str = "STEADYTEXT_";
/// The seed where `default_seed` was never set.
pub(crate) const DEFAULT_SEED: &str = "STEADYTEXT_DEFAULT_SEED";
/// Prefers models that are registered as fallbacks for generation.
pub(crate) const USE_FALLBACK_MODEL: &str = "STEADYTEXT_USE_FALLBACK_MODEL";
/// Longest value that is looked at, in bytes.
const MAX_BYTES: usize = 1024;

/// The value of a variable; `None` for an empty one, and for one that is no text.
pub(crate) fn value(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty() && value.len() <= MAX_BYTES)
}

/// Whether a variable says yes.
pub(crate) fn is_on(name: &str) -> bool {
    value(name).is_some_and(|value| ["true", "1", "yes", "on"].contains(&value.to_lowercase().as_str()))
}

/// The variables that are set, by name.
pub(crate) fn all() -> Vec<String> {
    let mut names: Vec<String> = std::env::vars_os()
        .filter_map(|(name, _)| name.into_string().ok())
        .filter(|name| name.starts_with(PREFIX) && name.len() <= 128 && name.is_ascii())
        .collect();
    names.sort_unstable();
    names
}
