//! The types of requests that an endpoint can answer. The others are not claimed.

use super::guided::knows_patterns;
use super::settings::{Api, EndpointSettings, Guided, Judgements};

/// Types of texts alone, of those with a schema or choices, and of judgements.
const PLAIN: [&str; 1] = ["generate"];
const TOLD: [&str; 1] = ["translate"];
const GUIDED: [&str; 2] = ["generate_json", "generate_choice"];
const PATTERNS: [&str; 1] = ["generate_regex"];
const WRITTEN: [&str; 3] = ["extract", "mask", "extract_facts"];
const JUDGED: [&str; 7] =
    ["if", "if_score", "score", "classify", "classify_scores", "classify_multi", "analyze_sentiment"];
/// Types of vectors. Of a model that embeds, classifications are always those that compare vectors.
const EMBEDDED: [&str; 7] = [
    "embed",
    "batch_embed",
    "similarity",
    "deduplicate_facts",
    "classify",
    "classify_scores",
    "classify_multi",
];
const RANKED: [&str; 2] = ["rerank", "batch_rerank"];

/// All that an endpoint can answer.
pub(super) fn of(settings: &EndpointSettings) -> Vec<&'static str> {
    let is_guided = settings.guided != Guided::None;
    let parts: &[(&[&'static str], bool)] = match settings.api {
        Api::Embeddings => &[(&EMBEDDED, true)],
        Api::Rerank => &[(&RANKED, true)],
        Api::Completions => {
            &[(&PLAIN, true), (&GUIDED, is_guided), (&PATTERNS, knows_patterns(settings.guided))]
        }
        Api::Chat => &[
            (&PLAIN, true),
            (&TOLD, true),
            (&GUIDED, is_guided),
            (&WRITTEN, is_guided),
            (&PATTERNS, knows_patterns(settings.guided)),
            (&JUDGED, settings.judgements == Judgements::Choice),
        ],
    };
    parts.iter().filter(|(_, can)| *can).flat_map(|(types, _)| types.iter().copied()).collect()
}
