//! Marks of the thoughts of models before their answers.

/// The marks of a family.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ThoughtMarks {
    /// Mark with which thoughts begin.
    pub(crate) open: &'static str,
    /// Mark behind which the answer begins.
    pub(crate) close: &'static str,
    /// The one of the two that a template of the family contains.
    known_by: &'static str,
    /// Text behind which an answer without thoughts begins.
    direct: &'static str,
}

const fn marks(open: &'static str, close: &'static str) -> ThoughtMarks {
    ThoughtMarks { open, close, known_by: close, direct: "" }
}

/// The first family whose mark is in a template is the template's.
static FAMILIES: [ThoughtMarks; 12] = [
    // Other channels than the final one are thoughts.
    ThoughtMarks {
        open: "<|channel|>",
        close: "<|channel|>final<|message|>",
        known_by: "<|channel|>final",
        direct: "<|channel|>final<|message|>",
    },
    marks("<|open|>think<|sep|>", "<|open|>response<|sep|>"),
    marks("<seed:think>", "</seed:think>"),
    marks("<mm:think>", "</mm:think>"),
    marks("<think:opensource>", "</think:opensource>"),
    marks("[THINK]", "[/THINK]"),
    marks("<|START_THINKING|>", "<|END_THINKING|>"),
    marks("<|inner_prefix|>", "<|inner_suffix|>"),
    marks("<|channel>", "<channel|>"),
    ThoughtMarks { open: "<|think|>", close: "<|content|>", known_by: "<|think|>", direct: "" },
    marks("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
    marks("<think>", "</think>"),
];

impl ThoughtMarks {
    /// The marks of the family that these texts of a template belong to.
    pub(crate) fn of(texts: &[&str]) -> Option<&'static ThoughtMarks> {
        FAMILIES.iter().find(|marks| texts.iter().any(|text| text.contains(marks.known_by)))
    }

    /// Whether thoughts have begun at the end of a template's text.
    pub(super) fn are_open(&self, text: &str) -> bool {
        match (text.rfind(self.open), text.rfind(self.close)) {
            (Some(open), Some(close)) => open > close,
            (open, _) => open.is_some(),
        }
    }

    /// The text that a prompt which ends in `text` needs behind it, so that the answer follows without
    /// thoughts.
    pub(super) fn closing(&self, text: &str) -> String {
        match self.are_open(text) {
            true if text.ends_with('\n') => format!("\n{}\n\n", self.close),
            true => self.close.to_owned(),
            false if self.direct.is_empty() || text.ends_with(self.direct) => String::new(),
            false => self.direct.to_owned(),
        }
    }
}
