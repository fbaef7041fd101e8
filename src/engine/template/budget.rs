//! The budget of a running template: bytes of text, and sizes of values.
//!
//! Fuel bounds how many instructions run, but a few dozen of them can double a string to terabytes, or nest
//! a list that takes for ever to compare. So every operation that makes a value asks here first.
//!
//! Invariant: no value in a running template has more than [`MAX_NODES`] nodes or [`MAX_BYTES`] bytes when
//! written out, and all values ever made have no more than [`MAX_TOTAL_BYTES`] bytes together.

use std::sync::atomic::{AtomicUsize, Ordering};

use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, Value};

pub(super) const MAX_NODES: usize = 10_000;
const MAX_DEPTH: usize = 16;
const MAX_BYTES: usize = 1 << 20;
const MAX_TOTAL_BYTES: usize = 1 << 23;
/// Bytes that all filters, tests, methods and comparisons may read together: their results may be small even
/// if they read much.
const MAX_READ_BYTES: usize = 1 << 24;
/// Bytes that are counted for a number or a list, beside its contents.
pub(super) const NODE_BYTES: usize = 32;

/// The part of the budget that is used up.
#[derive(Debug, Default)]
pub(super) struct TemplateBudget {
    used_bytes: AtomicUsize,
    read_bytes: AtomicUsize,
}

pub(super) fn refuse(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.into())
}

/// Nodes and bytes of a value when written out.
fn measure(value: &Value, depth: usize, nodes: &mut usize, bytes: &mut usize) -> Result<(), Error> {
    *nodes += 1;
    *bytes += match value.as_str() {
        Some(text) => text.len(),
        None => NODE_BYTES,
    };
    if *nodes > MAX_NODES || *bytes > MAX_BYTES || depth > MAX_DEPTH {
        return Err(refuse("a value is too large"));
    }
    let map = value.kind() == ValueKind::Map;
    if map || matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
        for item in value.try_iter()? {
            measure(&item, depth + 1, nodes, bytes)?;
            if map {
                measure(&value.get_item(&item)?, depth + 1, nodes, bytes)?;
            }
        }
    }
    Ok(())
}

impl TemplateBudget {
    /// Spends bytes that are about to be made.
    pub(super) fn spend(&self, bytes: usize) -> Result<(), Error> {
        let used = self.used_bytes.fetch_add(bytes.min(MAX_TOTAL_BYTES), Ordering::Relaxed);
        if bytes > MAX_BYTES || used.saturating_add(bytes) > MAX_TOTAL_BYTES {
            return Err(refuse("the template makes too much text"));
        }
        Ok(())
    }

    /// Spends bytes that are about to be read.
    pub(super) fn look_at(&self, bytes: usize) -> Result<(), Error> {
        let read = self.read_bytes.fetch_add(bytes.min(MAX_READ_BYTES), Ordering::Relaxed);
        if read.saturating_add(bytes) > MAX_READ_BYTES {
            return Err(refuse("the template reads too much text"));
        }
        Ok(())
    }

    /// Spends the bytes that a comparison of two values reads: of two texts, no more than the shorter one
    /// has.
    fn compare(&self, left: &Value, right: &Value) -> Result<(), Error> {
        let is_large = |value: &Value| {
            !matches!(
                value.kind(),
                ValueKind::Undefined | ValueKind::None | ValueKind::Bool | ValueKind::Number
            )
        };
        match (left.as_str(), right.as_str()) {
            (Some(left), Some(right)) => self.look_at(left.len().min(right.len())),
            _ if is_large(left) && is_large(right) => self.read([left, right]),
            _ => Ok(()),
        }
    }

    /// The comparison operator of this name between two values.
    pub(super) fn comparison(&self, operator: &str, left: &Value, right: &Value) -> Result<bool, Error> {
        self.compare(left, right)?;
        Ok(match operator {
            "==" => left == right,
            "!=" => left != right,
            "<" => left < right,
            "<=" => left <= right,
            ">" => left > right,
            _ => left >= right,
        })
    }

    /// `value in container`.
    pub(super) fn contains(
        &self,
        plain: &Environment<'_>,
        value: &Value,
        container: &Value,
    ) -> Result<bool, Error> {
        match container.as_str() {
            Some(text) => self.look_at(text.len() + value.as_str().map_or(NODE_BYTES, str::len))?,
            None => self.read([value, container])?,
        }
        plain.empty_state().perform_test("in", &[value.clone(), container.clone()])
    }

    /// Spends the bytes of values that are about to be read.
    pub(super) fn read<'v>(&self, values: impl IntoIterator<Item = &'v Value>) -> Result<(), Error> {
        let (mut nodes, mut bytes) = (0, 0);
        for value in values {
            measure(value, 0, &mut nodes, &mut bytes)?;
        }
        self.look_at(bytes)
    }

    /// A new value, if it is small enough.
    pub(super) fn admit(&self, value: Value) -> Result<Value, Error> {
        let (mut nodes, mut bytes) = (0, 0);
        measure(&value, 0, &mut nodes, &mut bytes)?;
        self.spend(bytes)?;
        Ok(value)
    }

    /// Checks a value that is assigned to a namespace. Namespaces are the only values that can change, so one
    /// must not hold anything that could hold the namespace itself.
    pub(super) fn flat(&self, value: Value) -> Result<Value, Error> {
        let scalar = |value: &Value| {
            !matches!(
                value.kind(),
                ValueKind::Seq | ValueKind::Iterable | ValueKind::Map | ValueKind::Plain | ValueKind::Invalid
            )
        };
        let flat = match value.kind() {
            ValueKind::Seq => value.try_iter()?.all(|item| scalar(&item)),
            _ => scalar(&value),
        };
        if flat { Ok(value) } else { Err(refuse("only text, numbers and lists of them go into a namespace")) }
    }
}
