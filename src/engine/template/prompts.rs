//! Prompt templates: texts in jinja2's language that users keep and fill in with values of their own.
//!
//! They run in the sandbox of chat templates, with jinja2's usual treatment of white space: line breaks stay
//! where they are written.

use minijinja::Value;
use serde_json::{Map, Value as Json};

use super::sandbox::{self, Dialect, TemplateFailure};

/// Longest template, in bytes.
pub const MAX_BYTES: usize = sandbox::MAX_SOURCE_BYTES;

/// The reason why a template cannot be used, or has no text for these values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PromptError {
    /// The text is no template.
    #[error("{0}")]
    Syntax(String),
    /// The template uses a variable that has no value.
    #[error("{0}")]
    Undefined(String),
    /// The template fails with these values, or asks for more time or memory than it may have.
    #[error("{0}")]
    Rendering(String),
}

impl From<TemplateFailure> for PromptError {
    fn from(failure: TemplateFailure) -> PromptError {
        match failure {
            TemplateFailure::Compiling(message) => PromptError::Syntax(message),
            TemplateFailure::Undefined(message) => PromptError::Undefined(message),
            TemplateFailure::Running(message) => PromptError::Rendering(message),
        }
    }
}

/// Names of the variables that a template uses, sorted. This is also how a template is checked.
///
/// # Errors
/// [`PromptError::Syntax`] where it cannot be compiled, [`PromptError::Rendering`] where there is no thread
/// to do it on.
pub fn variables(template: &str) -> Result<Vec<String>, PromptError> {
    Ok(sandbox::variables(Dialect::prompt(true), template)?)
}

/// The text that the template makes of the values. A variable without a value is an error if `strict`, and an
/// empty text otherwise.
///
/// # Errors
/// [`PromptError`].
pub fn render(template: &str, values: &Map<String, Json>, strict: bool) -> Result<String, PromptError> {
    Ok(sandbox::render_as(Dialect::prompt(strict), template, &Value::from_serialize(values))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(template: &str, values: &str, strict: bool) -> Result<String, PromptError> {
        render(template, &serde_json::from_str(values).unwrap(), strict)
    }

    #[test]
    fn a_template_is_filled_in_as_jinja2_does_it() {
        let text = |template, values| filled(template, values, true).unwrap();
        assert_eq!(text("Hello {{ name }}!", r#"{"name": "World"}"#), "Hello World!");
        assert_eq!(
            text(
                "{% for i in items %}{{ i.name }}: {{ i.value }}{% endfor %}",
                r#"{"items": [{"name": "A", "value": 1}, {"name": "B", "value": 2}]}"#
            ),
            "A: 1B: 2"
        );
        // Python writes booleans and None its own way, keeps the point of a number, and drops one line break
        // at the end.
        assert_eq!(text("{{ a }} {{ b }} {{ c }}\n", r#"{"a": true, "b": null, "c": 1.0}"#), "True None 1.0");
        // No line break is lost around a tag.
        assert_eq!(text("a\n  {% if true %}\nb\n{% endif %}\nc", "{}"), "a\n  \nb\n\nc");
        assert_eq!(text("{{ a | tojson }}", r#"{"a": {"b": [1, "<x>"]}}"#), r#"{"b": [1, "<x>"]}"#);
        // A value that looks like a template is text.
        assert_eq!(text("{{ a }}", r#"{"a": "{{ 7 * 7 }}"}"#), "{{ 7 * 7 }}");
    }

    #[test]
    fn what_has_no_value_is_an_error_or_empty() {
        assert!(matches!(filled("{{ a }}", "{}", true), Err(PromptError::Undefined(_))));
        assert_eq!(filled("<{{ a }}>", "{}", false).unwrap(), "<>");
        assert_eq!(filled("{{ a | default('b') }}", "{}", true).unwrap(), "b");
        assert!(matches!(filled("{{ a.b.c }}", "{}", false), Err(PromptError::Undefined(_))));
    }

    #[test]
    fn variables_are_what_the_template_does_not_define() {
        let names = |template| variables(template).unwrap();
        assert_eq!(
            names("{{ b }} {{ a }} {% for x in list %}{{ x }}{{ loop.index }}{% endfor %}"),
            ["a", "b", "list"]
        );
        assert_eq!(names("{% set a = 1 %}{{ a }}{{ range(3) | join(sep) }}"), ["sep"]);
        assert!(names("plain text").is_empty());
    }

    #[test]
    fn no_template_costs_more_than_it_may() {
        for (template, kind) in [
            ("{{ unclosed", "syntax"),
            ("{% include 'x' %}", "syntax"),
            ("{{ a | nonsense }}", "running"),
            ("{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}", "running"),
            (
                "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
                "running",
            ),
            ("{{ a * 999999999 }}", "running"),
            ("{{ raise_exception('no') }}", "running"),
        ] {
            let error = filled(template, r#"{"a": "aaaaaaaa"}"#, true).unwrap_err();
            let found = match &error {
                PromptError::Syntax(_) => "syntax",
                PromptError::Undefined(_) => "undefined",
                PromptError::Rendering(_) => "running",
            };
            assert_eq!(found, kind, "{template}: {error}");
        }
        let error = variables(&"x".repeat(MAX_BYTES + 1)).unwrap_err();
        assert!(matches!(error, PromptError::Syntax(_)), "{error}");
        let error =
            filled(&format!("{{{{ raise_exception('{}') }}}}", "x".repeat(9999)), "{}", true).unwrap_err();
        assert!(error.to_string().len() < 1200, "{error}");
    }
}
