//! The operators, filters, tests, functions and methods that a template can call, all within its budget.

use std::sync::Arc;

use minijinja::value::{Kwargs, Rest, ValueKind, from_args};
use minijinja::{Environment, Error, FormatStyle, State, Value};
use minijinja_contrib::pycompat;

use super::budget::{MAX_NODES, NODE_BYTES, TemplateBudget, refuse};
use super::python;

/// Filters whose result is not much larger than their input, or that are checked below.
const FILTERS: [&str; 30] = [
    "abs",
    "bool",
    "capitalize",
    "count",
    "d",
    "default",
    "dictsort",
    "first",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "max",
    "min",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "sort",
    "sum",
    "title",
    "trim",
    "unique",
    "upper",
];

/// Filters that work as in Python here.
const OWN_FILTERS: [&str; 6] = ["float", "format", "int", "map", "string", "tojson"];

impl TemplateBudget {
    /// `a ~ b`, of values that are text, numbers or the like.
    pub(super) fn concatenate(&self, left: &Value, right: &Value) -> Result<Value, Error> {
        self.spend(left.as_str().map_or(NODE_BYTES, str::len) + right.as_str().map_or(NODE_BYTES, str::len))?;
        Ok(Value::from(python::text(left)? + &python::text(right)?))
    }

    /// `a + b`: text, lists or numbers.
    pub(super) fn add(&self, left: &Value, right: &Value) -> Result<Value, Error> {
        match (left.kind(), right.kind()) {
            (ValueKind::String, ValueKind::String) => self.concatenate(left, right),
            (ValueKind::Seq | ValueKind::Iterable, ValueKind::Seq | ValueKind::Iterable) => {
                self.admit(left.try_iter()?.chain(right.try_iter()?).collect())
            }
            (ValueKind::Number, ValueKind::Number) => {
                if let (Ok(a), Ok(b)) = (i64::try_from(left.clone()), i64::try_from(right.clone())) {
                    return a.checked_add(b).map(Value::from).ok_or_else(|| refuse("a number is too large"));
                }
                Ok(Value::from(f64::try_from(left.clone())? + f64::try_from(right.clone())?))
            }
            (a, b) => Err(refuse(format!("cannot add {b} to {a}"))),
        }
    }

    /// A method of Python's strings, lists and dictionaries.
    pub(super) fn method(
        &self,
        state: &State<'_, '_>,
        value: &Value,
        name: &str,
        arguments: &[Value],
    ) -> Result<Value, Error> {
        // A dictionary's methods may look at all of it, a string's at all of its text.
        self.read(arguments.iter().chain((value.kind() != ValueKind::Plain).then_some(value)))?;
        match name {
            // The implementation does not end on an empty string.
            "count" if arguments.first().and_then(Value::as_str) == Some("") => {
                return Err(refuse("cannot count an empty string"));
            }
            "replace" => self.foresee_replace(Some(value), arguments.first(), arguments.get(1))?,
            "join" => self.foresee_join(arguments.first(), Some(value))?,
            _ => {}
        }
        if let Some(text) = value.as_str()
            && let Some(made) = python::string_method(self, text, name, arguments)?
        {
            return self.admit(made);
        }
        self.admit(pycompat::unknown_method_callback(state, value, name, arguments)?)
    }

    fn filter(&self, plain: &Environment<'_>, name: &str, arguments: &[Value]) -> Result<Value, Error> {
        self.read(arguments)?;
        match (name, arguments) {
            ("string", [value]) => return self.admit(Value::from(python::text(value)?)),
            ("tojson", _) => return self.admit(python::to_json(self, arguments)?),
            ("format", [form, rest @ ..]) => {
                let form = form.as_str().ok_or_else(|| refuse("a format is text"))?;
                return python::format(self, FormatStyle::Printf, form, rest);
            }
            ("trim", [value, rest @ ..]) => {
                let made = python::string_method(self, &python::text(value)?, "strip", rest)?;
                return self.admit(made.unwrap_or_default());
            }
            ("int" | "float", [value, rest @ ..]) => {
                let made = plain.empty_state().apply_filter(name, std::slice::from_ref(value));
                let zero = || if name == "int" { Value::from(0) } else { Value::from(0.0) };
                return Ok(made.unwrap_or_else(|_| rest.first().cloned().unwrap_or_else(zero)));
            }
            ("items", [value]) if value.is_undefined() => return Ok(Value::from(Vec::<Value>::new())),
            ("map", _) => return self.map(plain, arguments),
            _ => {}
        }
        match name {
            "replace" => self.foresee_replace(arguments.first(), arguments.get(1), arguments.get(2))?,
            "join" => self.foresee_join(arguments.first(), arguments.get(1))?,
            _ => {}
        }
        self.admit(plain.empty_state().apply_filter(name, arguments)?)
    }

    /// `map`, of an attribute or another filter.
    fn map(&self, plain: &Environment<'_>, arguments: &[Value]) -> Result<Value, Error> {
        let (list, filter, Rest(more)): (Value, Option<Value>, Rest<Value>) = from_args(arguments)?;
        let named = more.last().or(filter.as_ref()).and_then(|last| Kwargs::try_from(last.clone()).ok());
        let mut made = Vec::new();
        for item in list.try_iter()? {
            made.push(match (filter.as_ref().and_then(Value::as_str), &named) {
                (Some("map"), _) => return Err(refuse("map is not mapped")),
                (Some(filter), _) if FILTERS.contains(&filter) || OWN_FILTERS.contains(&filter) => {
                    let arguments: Vec<Value> = std::iter::once(item).chain(more.iter().cloned()).collect();
                    self.filter(plain, filter, &arguments)?
                }
                (None, Some(named)) => {
                    let value = python::attribute(&item, named.get("attribute")?)?;
                    match named.get::<Option<Value>>("default")? {
                        Some(default) if value.is_undefined() => default,
                        _ => value,
                    }
                }
                _ => return Err(refuse("map needs an attribute or a filter")),
            });
        }
        self.admit(Value::from(made))
    }

    /// Refuses a replacement whose result would be too long, before it is made.
    fn foresee_replace(
        &self,
        text: Option<&Value>,
        old: Option<&Value>,
        new: Option<&Value>,
    ) -> Result<(), Error> {
        let length =
            |value: Option<&Value>| value.map_or(0, |value| value.as_str().map_or(NODE_BYTES, str::len));
        let places = length(text) / length(old).max(1) + 1;
        self.spend(length(text).saturating_add(places.saturating_mul(length(new))))
    }

    /// The same for a joined list.
    fn foresee_join(&self, list: Option<&Value>, separator: Option<&Value>) -> Result<(), Error> {
        let items = list.and_then(Value::len).unwrap_or(MAX_NODES);
        let separator = separator.and_then(Value::as_str).map_or(0, str::len);
        self.spend(items.saturating_mul(separator))
    }
}

/// The environment of a template: minijinja's tests, the filters above, Python's methods, all within the
/// budget. Functions that a template can do without are absent, so that a template which tests for them sees
/// it.
pub(super) fn environment(budget: &Arc<TemplateBudget>) -> Environment<'static> {
    let mut environment = Environment::empty();
    let plain = Arc::new(Environment::new());
    for name in FILTERS.into_iter().chain(OWN_FILTERS) {
        let (budget, plain) = (budget.clone(), plain.clone());
        environment.add_filter(name, move |arguments: Rest<Value>| budget.filter(&plain, name, &arguments));
    }
    for name in [
        "boolean",
        "callable",
        "defined",
        "divisibleby",
        "endingwith",
        "eq",
        "equalto",
        "even",
        "false",
        "float",
        "ge",
        "gt",
        "in",
        "integer",
        "iterable",
        "le",
        "lower",
        "lt",
        "mapping",
        "ne",
        "none",
        "number",
        "odd",
        "sameas",
        "sequence",
        "startingwith",
        "string",
        "true",
        "undefined",
        "upper",
    ] {
        let (budget, plain) = (budget.clone(), plain.clone());
        environment.add_test(name, move |arguments: Rest<Value>| {
            budget.read(arguments.iter())?;
            match arguments.first().and_then(|value| python::test(name, value)) {
                Some(holds) => Ok(holds),
                None => plain.empty_state().perform_test(name, &arguments),
            }
        });
    }
    for name in ["range", "dict", "namespace"] {
        let (budget, plain) = (budget.clone(), plain.clone());
        environment.add_function(name, move |state: &State<'_, '_>, arguments: Rest<Value>| {
            let function = plain.empty_state().lookup(name).unwrap_or_default();
            budget.admit(function.call(state, &arguments)?)
        });
    }
    let methods = budget.clone();
    environment.set_unknown_method_callback(move |state, value, name, arguments| {
        methods.method(state, value, name, arguments)
    });
    environment
}
