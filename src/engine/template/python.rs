//! Differences between Python and minijinja in values and operations: text of values, JSON, tests, operators
//! and methods of strings.
//!
//! Templates are written for Python's jinja2 and make use of it down to the spelling of `None`. What makes
//! text of any length (formats with a width, repetition, JSON with indentation) says how many bytes it is
//! going to make before it makes them.

use std::fmt::Write as _;

use minijinja::value::{Kwargs, ValueKind, from_args};
use minijinja::{Error, FormatStyle, Value, format_filter};

use super::budget::{NODE_BYTES, TemplateBudget, refuse};

/// Widths, precisions and indentations in real templates are a few characters.
const MAX_WIDTH: usize = 1000;
const MAX_INDENT: usize = 32;

/// Whether `str.isspace` holds of it.
pub(super) fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

/// `str(value)` of a value other than a list or a dictionary; those have a spelling in Python that no
/// template needs.
pub(super) fn text(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::String | ValueKind::Number => Ok(value.to_string()),
        ValueKind::Undefined => Ok(String::new()),
        ValueKind::None => Ok("None".into()),
        ValueKind::Bool => Ok(if value.is_true() { "True" } else { "False" }.into()),
        kind => Err(refuse(format!("cannot write a {kind}"))),
    }
}

/// `json.dumps` as transformers calls it: nothing escaped for HTML, keys in their order.
pub(super) fn to_json(budget: &TemplateBudget, arguments: &[Value]) -> Result<Value, Error> {
    let (value, kwargs): (Value, Kwargs) = from_args(arguments)?;
    let indent: Option<usize> = kwargs.get("indent")?;
    kwargs.get::<Option<bool>>("ensure_ascii")?;
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    let sorted = kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    kwargs.assert_all_used()?;
    if indent.is_some_and(|indent| indent > MAX_INDENT) {
        return Err(refuse("an indentation is too wide"));
    }
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(refuse("there are two separators")),
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
    };
    if item.len() + key.len() > MAX_INDENT {
        return Err(refuse("a separator is too long"));
    }
    let value = budget.admit(value)?;
    let mut json = Json { text: String::new(), budget, indent, item, key, sorted };
    json.write(&value, 0)?;
    Ok(Value::from(json.text))
}

/// JSON in the making.
struct Json<'a> {
    text: String,
    budget: &'a TemplateBudget,
    indent: Option<usize>,
    item: String,
    key: String,
    sorted: bool,
}

impl Json<'_> {
    fn write(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => self.text.push_str("null"),
            ValueKind::Bool => self.text.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => {
                // Writing to a string cannot fail.
                let _ = write!(self.text, "{value}");
            }
            ValueKind::String => self.string(value.as_str().unwrap_or_default())?,
            ValueKind::Seq | ValueKind::Iterable => {
                self.text.push('[');
                let mut empty = true;
                for item in value.try_iter()? {
                    self.begin_item(&mut empty, depth + 1)?;
                    self.write(&item, depth + 1)?;
                }
                self.end_items(empty, depth)?;
                self.text.push(']');
            }
            ValueKind::Map => {
                self.text.push('{');
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sorted {
                    keys.sort();
                }
                let mut empty = true;
                for key in keys {
                    self.begin_item(&mut empty, depth + 1)?;
                    self.string(key.as_str().ok_or_else(|| refuse("keys of JSON are text"))?)?;
                    self.text.push_str(&self.key);
                    self.write(&value.get_item(&key)?, depth + 1)?;
                }
                self.end_items(empty, depth)?;
                self.text.push('}');
            }
            kind => return Err(refuse(format!("a {kind} is no JSON"))),
        }
        Ok(())
    }

    fn begin_item(&mut self, empty: &mut bool, depth: usize) -> Result<(), Error> {
        if !std::mem::replace(empty, false) {
            self.text.push_str(&self.item);
        }
        self.line(depth)
    }

    fn end_items(&mut self, empty: bool, depth: usize) -> Result<(), Error> {
        if empty { Ok(()) } else { self.line(depth) }
    }

    fn line(&mut self, depth: usize) -> Result<(), Error> {
        if let Some(indent) = self.indent {
            self.budget.spend(indent * depth)?;
            self.text.push('\n');
            self.text.extend(std::iter::repeat_n(' ', indent * depth));
        }
        Ok(())
    }

    fn string(&mut self, value: &str) -> Result<(), Error> {
        // Escaping makes at most six bytes of one.
        self.budget.spend(value.len().saturating_mul(6))?;
        self.text.push('"');
        for character in value.chars() {
            match character {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                '\u{8}' => self.text.push_str("\\b"),
                '\u{c}' => self.text.push_str("\\f"),
                control if control < ' ' => {
                    let _ = write!(self.text, "\\u{:04x}", control as u32);
                }
                other => self.text.push(other),
            }
        }
        self.text.push('"');
        Ok(())
    }
}

/// A test on which Python decides otherwise than minijinja.
pub(super) fn test(name: &str, value: &Value) -> Option<bool> {
    let kind = value.kind();
    Some(match name {
        "iterable" => kind == ValueKind::Undefined || kind != ValueKind::None && value.try_iter().is_ok(),
        "sequence" => {
            matches!(kind, ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Undefined)
        }
        "number" => matches!(kind, ValueKind::Number | ValueKind::Bool),
        "callable" => kind == ValueKind::Plain,
        _ => return None,
    })
}

/// `left * right`: numbers, and repetition of text and lists.
pub(super) fn multiply(budget: &TemplateBudget, left: &Value, right: &Value) -> Result<Value, Error> {
    let repeated =
        |value: &Value| matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Iterable);
    let (value, times) = if repeated(right) { (right, left) } else { (left, right) };
    if !repeated(value) {
        let number = |value: &Value| match value.kind() {
            ValueKind::Number => Ok(value.clone()),
            ValueKind::Bool => Ok(Value::from(i64::from(value.is_true()))),
            kind => Err(refuse(format!("cannot multiply a {kind}"))),
        };
        let (left, right) = (number(left)?, number(right)?);
        if let (true, true, Ok(a), Ok(b)) =
            (left.is_integer(), right.is_integer(), i64::try_from(left.clone()), i64::try_from(right.clone()))
        {
            return a.checked_mul(b).map(Value::from).ok_or_else(|| refuse("a number is too large"));
        }
        return Ok(Value::from(f64::try_from(left)? * f64::try_from(right)?));
    }
    if !times.is_integer() {
        return Err(refuse("text and lists are multiplied by whole numbers"));
    }
    // Python takes negative factors as 0.
    let times = usize::try_from(i64::try_from(times.clone())?).unwrap_or(0);
    match value.as_str() {
        Some(text) => {
            budget.spend(text.len().saturating_mul(times))?;
            Ok(Value::from(if text.is_empty() { String::new() } else { text.repeat(times) }))
        }
        None => {
            let items: Vec<Value> = value.try_iter()?.collect();
            budget.spend(items.len().max(1).saturating_mul(times).saturating_mul(NODE_BYTES))?;
            budget.admit(Value::from(std::iter::repeat_n(items, times).flatten().collect::<Vec<_>>()))
        }
    }
}

/// `left % right`: the remainder of numbers, or formatting.
pub(super) fn remainder(budget: &TemplateBudget, left: &Value, right: &Value) -> Result<Value, Error> {
    if let Some(form) = left.as_str() {
        // Real templates have a tuple where minijinja has a list.
        let arguments = match right.kind() {
            ValueKind::Seq => right.try_iter()?.collect(),
            _ => vec![right.clone()],
        };
        return format(budget, FormatStyle::Printf, form, &arguments);
    }
    if let (true, true, Ok(a), Ok(b)) =
        (left.is_integer(), right.is_integer(), i64::try_from(left.clone()), i64::try_from(right.clone()))
    {
        // The sign is that of the divisor.
        let remainder = a.checked_rem(b).ok_or_else(|| refuse("division by zero"))?;
        let wrong_sign = remainder != 0 && (remainder < 0) != (b < 0);
        return Ok(Value::from(if wrong_sign { remainder + b } else { remainder }));
    }
    let (a, b) = (f64::try_from(left.clone())?, f64::try_from(right.clone())?);
    if b == 0.0 {
        return Err(refuse("division by zero"));
    }
    Ok(Value::from(a - b * (a / b).floor()))
}

/// `form % arguments`, `form | format(…)` or `form.format(…)`.
pub(super) fn format(
    budget: &TemplateBudget,
    style: FormatStyle,
    form: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    let mut longest = NODE_BYTES;
    let mut admit = |value: &Value| {
        longest = longest.max(value.as_str().map_or(0, str::len));
        Ok::<_, Error>(match value.kind() {
            ValueKind::None | ValueKind::Bool => Value::from(text(value)?),
            ValueKind::String | ValueKind::Number | ValueKind::Undefined => value.clone(),
            kind => return Err(refuse(format!("cannot format a {kind}"))),
        })
    };
    let mut shown = Vec::with_capacity(arguments.len());
    for argument in arguments {
        shown.push(match Kwargs::try_from(argument.clone()) {
            Ok(named) if argument.kind() == ValueKind::Map => {
                let named: Result<Vec<(String, Value)>, Error> = named
                    .args()
                    .map(|name| Ok((name.to_owned(), admit(&named.get::<Value>(name)?)?)))
                    .collect();
                Value::from(Kwargs::from_iter(named?))
            }
            _ => admit(argument)?,
        });
    }
    // Every width and precision is a run of digits.
    let (mut widths, mut number, mut fields) = (0_usize, 0_usize, 0_usize);
    for character in form.chars() {
        number = character
            .to_digit(10)
            .map_or(0, |digit| number.saturating_mul(10).saturating_add(digit as usize));
        if number > MAX_WIDTH {
            return Err(refuse("a width is too large"));
        }
        widths += number;
        fields += usize::from(matches!(character, '{' | '%'));
    }
    let bytes =
        fields.saturating_mul(longest).saturating_add(widths.saturating_mul(4)).saturating_add(form.len());
    budget.spend(bytes)?;
    Ok(Value::from(format_filter(style, form, &shown)?))
}

/// A method of strings, where minijinja's Python methods lack it or count bytes; `None` for all others.
pub(super) fn string_method(
    budget: &TemplateBudget,
    value: &str,
    name: &str,
    arguments: &[Value],
) -> Result<Option<Value>, Error> {
    let trimmed = |arguments: &[Value], start: bool, end: bool| {
        let (characters,): (Option<String>,) = from_args(arguments)?;
        let drops = |character: char| match &characters {
            Some(characters) => characters.contains(character),
            None => is_space(character),
        };
        let value = if start { value.trim_start_matches(drops) } else { value };
        Ok::<_, Error>(Value::from(if end { value.trim_end_matches(drops) } else { value }))
    };
    let all = |holds: fn(char) -> bool| {
        let () = from_args(arguments)?;
        Ok::<_, Error>(Value::from(!value.is_empty() && value.chars().all(holds)))
    };
    let characters_before = |found: Option<usize>| match found {
        Some(at) => Value::from(value.get(..at).unwrap_or_default().chars().count()),
        None => Value::from(-1),
    };
    Ok(Some(match name {
        "strip" => trimmed(arguments, true, true)?,
        "lstrip" => trimmed(arguments, true, false)?,
        "rstrip" => trimmed(arguments, false, true)?,
        "split" => split(value, arguments, false)?,
        "rsplit" => split(value, arguments, true)?,
        "splitlines" => lines(value, arguments)?,
        "format" => format(budget, FormatStyle::StrFormat, value, arguments)?,
        "find" => {
            let (what,): (String,) = from_args(arguments)?;
            characters_before(value.find(&what))
        }
        "rfind" => {
            let (what,): (String,) = from_args(arguments)?;
            characters_before(value.rfind(&what))
        }
        "index" => {
            let (what,): (String,) = from_args(arguments)?;
            characters_before(Some(value.find(&what).ok_or_else(|| refuse("substring not found"))?))
        }
        "removeprefix" => {
            let (prefix,): (String,) = from_args(arguments)?;
            Value::from(value.strip_prefix(prefix.as_str()).unwrap_or(value))
        }
        "removesuffix" => {
            let (suffix,): (String,) = from_args(arguments)?;
            Value::from(value.strip_suffix(suffix.as_str()).unwrap_or(value))
        }
        "partition" | "rpartition" => {
            let (separator,): (String,) = from_args(arguments)?;
            if separator.is_empty() {
                return Err(refuse("empty separator"));
            }
            let parts = match name {
                "partition" => value.split_once(&separator),
                _ => value.rsplit_once(&separator),
            };
            let parts = match (parts, name) {
                (Some((before, after)), _) => [before, separator.as_str(), after],
                (None, "partition") => [value, "", ""],
                (None, _) => ["", "", value],
            };
            parts.into_iter().map(Value::from).collect()
        }
        "isspace" => all(is_space)?,
        "isdigit" => all(|character| character.is_ascii_digit())?,
        "isalpha" => all(char::is_alphabetic)?,
        "isalnum" => all(char::is_alphanumeric)?,
        _ => return Ok(None),
    }))
}

/// `str.split` and `str.rsplit`.
fn split(value: &str, arguments: &[Value], from_end: bool) -> Result<Value, Error> {
    let (separator, most, kwargs): (Option<Value>, Option<i64>, Kwargs) = from_args(arguments)?;
    let separator = match separator {
        Some(separator) => Some(separator),
        None => kwargs.get("sep")?,
    };
    let most = match most {
        Some(most) => Some(most),
        None => kwargs.get("maxsplit")?,
    };
    kwargs.assert_all_used()?;
    let most = most.and_then(|most| usize::try_from(most).ok());
    let separator = separator.filter(|separator| !separator.is_none());
    let Some(separator) = separator else {
        return Ok(words(value, most, from_end).into_iter().map(Value::from).collect());
    };
    let separator = separator.as_str().ok_or_else(|| refuse("a separator is text"))?;
    if separator.is_empty() {
        return Err(refuse("empty separator"));
    }
    let parts: Vec<&str> = match (most, from_end) {
        (None, _) => value.split(separator).collect(),
        (Some(most), false) => value.splitn(most.saturating_add(1), separator).collect(),
        (Some(most), true) => {
            let mut parts: Vec<&str> = value.rsplitn(most.saturating_add(1), separator).collect();
            parts.reverse();
            parts
        }
    };
    Ok(parts.into_iter().map(Value::from).collect())
}

/// Parts between white space; after the last cut, the rest keeps the white space at its other end.
fn words(value: &str, most: Option<usize>, from_end: bool) -> Vec<&str> {
    let mut rest = value;
    let mut words = Vec::new();
    loop {
        rest = if from_end { rest.trim_end_matches(is_space) } else { rest.trim_start_matches(is_space) };
        if rest.is_empty() {
            break;
        }
        let cut = match most {
            Some(most) if words.len() >= most => None,
            _ if from_end => {
                Some(rest.trim_end_matches(|character| !is_space(character)).len()).filter(|at| *at > 0)
            }
            _ => rest.find(is_space),
        };
        let Some((before, after)) = cut.and_then(|at| rest.split_at_checked(at)) else {
            words.push(rest);
            break;
        };
        let (word, left) = if from_end { (after, before) } else { (before, after) };
        words.push(word);
        rest = left;
    }
    if from_end {
        words.reverse();
    }
    words
}

/// `str.splitlines`, which knows several ends of lines.
fn lines(value: &str, arguments: &[Value]) -> Result<Value, Error> {
    let (kept, kwargs): (Option<bool>, Kwargs) = from_args(arguments)?;
    let kept = kept.or(kwargs.get("keepends")?).unwrap_or(false);
    kwargs.assert_all_used()?;
    let ends = |character: char| {
        matches!(
            character,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines = Vec::new();
    let mut rest = value;
    while let Some(at) = rest.find(ends) {
        let end = rest.get(at..).unwrap_or_default();
        let length = if end.starts_with("\r\n") { 2 } else { end.chars().next().map_or(0, char::len_utf8) };
        lines.push(rest.get(..if kept { at + length } else { at }).unwrap_or_default().to_owned());
        rest = rest.get(at + length..).unwrap_or_default();
    }
    if !rest.is_empty() {
        lines.push(rest.to_owned());
    }
    Ok(Value::from(lines))
}

/// An item of a list or a dictionary by a dotted path, as in `map(attribute='a.b')`.
pub(super) fn attribute(value: &Value, path: &str) -> Result<Value, Error> {
    path.split('.').try_fold(value.clone(), |value, name| match name.parse::<i64>() {
        Ok(index) => value.get_item(&Value::from(index)),
        Err(_) => value.get_attr(name),
    })
}
