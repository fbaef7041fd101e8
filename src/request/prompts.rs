//! The prompts of the functions that ask for something in particular: templates in files beside this one,
//! with a version each.
//!
//! The parts that are the same for many rows come before those that differ, so that their keys and values are
//! computed once. A change of a template, even of one byte, needs a new version, which is part of the key of
//! cached answers.
//!
//! A prompt is looked up by its slug in one place, [`find`]. A template that a database keeps under the same
//! name replaces it: [`super::prompt_source`].

/// A prompt with a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Prompt {
    /// `steadytext/…`
    pub(crate) slug: &'static str,
    /// Counted from 1.
    pub(crate) version: i32,
    /// In the language of the registry of prompts, `sql/48_prompts.sql`.
    pub(crate) template: &'static str,
    /// Names that the template takes values for, sorted.
    pub(crate) variables: &'static [&'static str],
    /// The required ones of these: without them a prompt would not ask what the function promises. Empty
    /// where no other prompt can replace this one.
    pub(crate) required: &'static [&'static str],
}

/// A question that is answered with yes or no.
pub(crate) const IF: Prompt = Prompt {
    slug: "steadytext/if",
    version: 1,
    template: include_str!("prompts/if.jinja"),
    variables: &["prompt"],
    required: &["prompt"],
};
/// A question that is answered with a grade.
pub(crate) const SCORE: Prompt = Prompt {
    slug: "steadytext/score",
    version: 1,
    template: include_str!("prompts/score.jinja"),
    variables: &["prompt"],
    required: &["prompt"],
};
/// The system prompt of a classification; the text follows as the user's message.
pub(crate) const CLASSIFY: Prompt = Prompt {
    slug: "steadytext/classify",
    version: 1,
    template: include_str!("prompts/classify.jinja"),
    variables: &["categories", "examples", "task_description"],
    required: &["categories"],
};
/// Whether a text belongs to one category.
pub(crate) const CLASSIFY_MULTI: Prompt = Prompt {
    slug: "steadytext/classify-multi",
    version: 1,
    template: include_str!("prompts/classify_multi.jinja"),
    variables: &["category", "input", "task_description"],
    required: &["category", "input"],
};
/// The system prompt of sentiment analysis; the text follows as the user's message.
pub(crate) const ANALYZE_SENTIMENT: Prompt = Prompt {
    slug: "steadytext/analyze-sentiment",
    version: 1,
    template: include_str!("prompts/analyze_sentiment.jinja"),
    variables: &["categories"],
    required: &["categories"],
};
/// The system prompt of an extraction into a JSON document; the text follows as the user's message.
pub(crate) const EXTRACT: Prompt = Prompt {
    slug: "steadytext/extract",
    version: 1,
    template: include_str!("prompts/extract.jinja"),
    variables: &["fields", "schema"],
    required: &["schema"],
};
/// The system prompt of a translation; the text follows as the user's message.
pub(crate) const TRANSLATE: Prompt = Prompt {
    slug: "steadytext/translate",
    version: 1,
    template: include_str!("prompts/translate.jinja"),
    variables: &["to_language"],
    required: &["to_language"],
};
/// The system prompt of masking; the text follows as the user's message.
pub(crate) const MASK: Prompt = Prompt {
    slug: "steadytext/mask",
    version: 1,
    template: include_str!("prompts/mask.jinja"),
    variables: &["labels"],
    required: &["labels"],
};
/// The system prompt of an extraction of facts; the text follows as the user's message.
pub(crate) const EXTRACT_FACTS: Prompt = Prompt {
    slug: "steadytext/extract-facts",
    version: 1,
    template: include_str!("prompts/extract_facts.jinja"),
    variables: &["max_facts"],
    required: &["max_facts"],
};
/// A question about the values of a group.
pub(crate) const AGG: Prompt = Prompt {
    slug: "steadytext/agg",
    version: 1,
    template: include_str!("prompts/agg.jinja"),
    variables: &["input", "is_part", "max_words", "source", "task_description"],
    required: &[],
};
/// A summary of a text, of the values of a group, or of summaries of either.
pub(crate) const SUMMARIZE: Prompt = Prompt {
    slug: "steadytext/summarize",
    version: 1,
    template: include_str!("prompts/summarize.jinja"),
    variables: &["input", "is_part", "max_words", "metadata", "source"],
    required: &[],
};

/// A question that is answered from what a search has found; `sql/76_rag.sql` renders it.
const RAG: Prompt = Prompt {
    slug: "steadytext/rag",
    version: 1,
    template: include_str!("prompts/rag.jinja"),
    variables: &["question", "sources"],
    required: &["question", "sources"],
};

/// All of them, in the order of their slugs.
pub(crate) const ALL: [Prompt; 12] = [
    AGG,
    ANALYZE_SENTIMENT,
    CLASSIFY,
    CLASSIFY_MULTI,
    EXTRACT,
    EXTRACT_FACTS,
    IF,
    MASK,
    RAG,
    SCORE,
    SUMMARIZE,
    TRANSLATE,
];

/// The prompt of this slug; of this version where one is given.
pub(crate) fn find(slug: &str, version: Option<i64>) -> Option<Prompt> {
    ALL.into_iter().find(|prompt| {
        prompt.slug == slug && version.is_none_or(|wanted| i64::from(prompt.version) == wanted)
    })
}

/// The prompt that requests of a type are asked with; `None` where there is none.
pub(crate) fn of(request_type: &str) -> Option<Prompt> {
    Some(match request_type {
        "if" | "if_score" => IF,
        "score" => SCORE,
        "classify" | "classify_scores" => CLASSIFY,
        "classify_multi" => CLASSIFY_MULTI,
        "analyze_sentiment" => ANALYZE_SENTIMENT,
        "extract" => EXTRACT,
        "translate" => TRANSLATE,
        "mask" => MASK,
        "extract_facts" => EXTRACT_FACTS,
        _ => return None,
    })
}
