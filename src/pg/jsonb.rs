//! Values of type jsonb, read where they lie: keys, counts and lengths are looked at before anything is
//! copied, and only values that are used are converted.
//!
//! The form on disk has not changed since PostgreSQL 9.4, and binary upgrades need it to stay. A container
//! has a word with its kind and the number of its elements, a word for each element (of an object: first the
//! keys, then the values), and their data.
//!
//! Invariant: a malformed value ends in `None`, and never in a read beyond its bytes.

use pgrx::callconv::{Arg, ArgAbi};
use pgrx::nullable::Nullable;
use pgrx::{FromDatum, pg_sys};
use serde_json::Value;

const COUNT_MASK: u32 = 0x0fff_ffff;
const IS_SCALAR: u32 = 0x1000_0000;
const IS_OBJECT: u32 = 0x2000_0000;
const IS_ARRAY: u32 = 0x4000_0000;

const ENTRY_LENGTH_MASK: u32 = 0x0fff_ffff;
const ENTRY_KIND_MASK: u32 = 0x7000_0000;
/// The entry has the end of its data rather than their length.
const ENTRY_HAS_END: u32 = 0x8000_0000;
const WORD: usize = 4;

/// Levels that are followed, at most.
const MAX_DEPTH: usize = 128;

/// An array or an object.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Container<'a> {
    /// Its bytes from the first word on.
    bytes: &'a [u8],
    header: u32,
}

/// A value.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Item<'a> {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number, as type numeric has it.
    Number(Number<'a>),
    /// A text.
    Text(&'a str),
    /// An array.
    Array(Container<'a>),
    /// An object.
    Object(Container<'a>),
}

/// A value of type jsonb.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Jsonb<'a> {
    bytes: &'a [u8],
}

impl<'a> Jsonb<'a> {
    /// Its bytes.
    pub(crate) fn len(self) -> usize {
        self.bytes.len()
    }

    /// The value itself.
    pub(crate) fn root(self) -> Option<Item<'a>> {
        let root = Container::at(self.bytes)?;
        match (root.header & IS_SCALAR != 0, root.header & IS_OBJECT != 0) {
            (true, _) => root.values().next()?,
            (false, true) => Some(Item::Object(root)),
            (false, false) => Some(Item::Array(root)),
        }
    }
}

impl FromDatum for Jsonb<'_> {
    unsafe fn from_polymorphic_datum(datum: pg_sys::Datum, is_null: bool, _: pg_sys::Oid) -> Option<Self> {
        if is_null {
            return None;
        }
        // SAFETY: the caller's datum is a jsonb. Unpacked, its data are aligned as they were written; it
        // lives as long as the memory that is current, or as the datum.
        let bytes = unsafe {
            let value = pg_sys::pg_detoast_datum(datum.cast_mut_ptr());
            let data: *const u8 = pgrx::vardata_any(value).cast();
            std::slice::from_raw_parts(data, pgrx::varsize_any_exhdr(value))
        };
        Some(Jsonb { bytes })
    }
}

// SAFETY: it is read from its datum, as the types of pgrx are.
unsafe impl<'fcx> ArgAbi<'fcx> for Jsonb<'fcx> {
    unsafe fn unbox_arg_unchecked(arg: Arg<'_, 'fcx>) -> Self {
        // SAFETY: the caller's argument is a jsonb.
        let value = unsafe { arg.unbox_arg_using_from_datum() };
        value.unwrap_or(Jsonb { bytes: &[] })
    }

    unsafe fn unbox_nullable_arg(arg: Arg<'_, 'fcx>) -> Nullable<Self> {
        // SAFETY: as above.
        unsafe { arg.unbox_arg_using_from_datum().into() }
    }
}

impl<'a> Container<'a> {
    fn at(bytes: &'a [u8]) -> Option<Self> {
        Some(Container { bytes, header: word(bytes, 0)? })
    }

    /// The number of its elements, or of its pairs.
    pub(crate) fn len(self) -> usize {
        (self.header & COUNT_MASK) as usize
    }

    fn words(self) -> usize {
        if self.header & IS_OBJECT != 0 { 2 * self.len() } else { self.len() }
    }

    fn run(self) -> Run<'a> {
        Run { container: self, index: 0, offset: 0 }
    }

    /// Its elements, or the values of its pairs. `None` among them, and at their end, for what cannot be
    /// read.
    pub(crate) fn values(self) -> impl Iterator<Item = Option<Item<'a>>> {
        let mut run = self.run();
        if self.header & IS_OBJECT != 0 {
            run.pass(self.len());
        }
        run
    }

    /// The pairs of an object, in the order of their keys.
    pub(crate) fn pairs(self) -> impl Iterator<Item = Option<(&'a str, Item<'a>)>> {
        self.run().take(self.len()).zip(self.values()).map(|(key, value)| match key? {
            Item::Text(key) => Some((key, value?)),
            _ => None,
        })
    }
}

/// Walks through the elements of a container.
struct Run<'a> {
    container: Container<'a>,
    index: usize,
    /// Offset of the element's data behind the words.
    offset: usize,
}

impl<'a> Run<'a> {
    /// The element's word, and where its data are.
    fn step(&mut self) -> Option<(u32, &'a [u8], usize)> {
        let bytes = self.container.bytes;
        let entry = word(bytes, WORD * (1 + self.index))?;
        let length = (entry & ENTRY_LENGTH_MASK) as usize;
        let start = self.offset;
        let end = if entry & ENTRY_HAS_END != 0 { length } else { start + length };
        let base = WORD * (1 + self.container.words());
        let data = bytes.get(base + start..base + end)?;
        (self.index, self.offset) = (self.index + 1, end);
        Some((entry, data, start))
    }

    fn pass(&mut self, count: usize) {
        for _ in 0..count {
            if self.step().is_none() {
                // The container is broken: nothing behind this value can be found.
                self.index = self.container.words();
                return;
            }
        }
    }

    fn item(&mut self) -> Option<Item<'a>> {
        let (entry, data, start) = self.step()?;
        // Numbers and containers begin at multiples of four; what was left free before is part of their
        // length.
        let aligned = || data.get(start.next_multiple_of(WORD) - start..);
        match entry & ENTRY_KIND_MASK {
            0 => std::str::from_utf8(data).ok().map(Item::Text),
            0x1000_0000 => Number::at(aligned()?).map(Item::Number),
            0x2000_0000 => Some(Item::Bool(false)),
            0x3000_0000 => Some(Item::Bool(true)),
            0x4000_0000 => Some(Item::Null),
            0x5000_0000 => {
                let container = Container::at(aligned()?)?;
                match container.header & (IS_ARRAY | IS_OBJECT) {
                    IS_ARRAY => Some(Item::Array(container)),
                    IS_OBJECT => Some(Item::Object(container)),
                    _ => None,
                }
            }
            _ => None,
        }
    }
}

impl<'a> Iterator for Run<'a> {
    type Item = Option<Item<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.index >= self.container.words() {
            return None;
        }
        let item = self.item();
        if item.is_none() {
            self.index = self.container.words();
        }
        Some(item)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + WORD)?.try_into().ok()?))
}

/// A number: groups of four decimal digits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Number<'a> {
    is_negative: bool,
    /// The first group counts 10,000 to this power.
    weight: i32,
    /// Digits that are shown behind the point.
    shown: usize,
    /// Two bytes for each group.
    groups: &'a [u8],
}

impl<'a> Number<'a> {
    fn at(bytes: &'a [u8]) -> Option<Self> {
        // Little-endian or big-endian, PostgreSQL's macros know the size's form; these are aligned and never
        // compressed.
        let header = word(bytes, 0)?;
        let size = if cfg!(target_endian = "big") { header & 0x3fff_ffff } else { header >> 2 } as usize;
        let is_long = if cfg!(target_endian = "big") { header >> 30 == 0 } else { header & 3 == 0 };
        let body = bytes.get(WORD..size).filter(|_| is_long)?;
        let half = |at: usize| Some(u16::from_ne_bytes(body.get(at..at + 2)?.try_into().ok()?));
        let first = half(0)?;
        match first & 0xc000 {
            // The short form.
            0x8000 => Some(Number {
                is_negative: first & 0x2000 != 0,
                weight: i32::from(first & 0x3f) - if first & 0x40 != 0 { 64 } else { 0 },
                shown: usize::from((first & 0x1f80) >> 7),
                groups: &body[2..],
            }),
            // Infinite, or no number: JSON has none of these.
            0xc000 => None,
            sign => Some(Number {
                is_negative: sign == 0x4000,
                weight: i32::from(half(2)? as i16),
                shown: usize::from(first & 0x3fff),
                groups: body.get(4..)?,
            }),
        }
    }

    fn groups(self) -> impl ExactSizeIterator<Item = u16> {
        self.groups.as_chunks::<2>().0.iter().map(|group| u16::from_ne_bytes(*group))
    }

    /// The number as an integer, if it is one: 16.0 is 16.
    pub(crate) fn integer(self) -> Option<i64> {
        let count = self.groups().len() as i32;
        if count == 0 {
            return Some(0);
        }
        // Zeros at the end are not stored.
        if self.weight + 1 < count || self.weight > 4 {
            return None;
        }
        let value = self.groups().fold(0i128, |value, group| value * 10_000 + i128::from(group));
        let value = value * 10_000i128.pow((self.weight + 1 - count) as u32);
        i64::try_from(if self.is_negative { -value } else { value }).ok()
    }

    /// The nearest number of this type; `None` where that is infinite.
    pub(crate) fn float(self) -> Option<f64> {
        use std::fmt::Write;
        let mut text = String::with_capacity(4 * self.groups().len() + 16);
        text.push_str(if self.is_negative { "-0" } else { "0" });
        let count = self.groups().len() as i32;
        self.groups().try_for_each(|group| write!(text, "{group:04}")).ok()?;
        write!(text, "e{}", 4 * (self.weight + 1 - count)).ok()?;
        text.parse().ok().filter(|value: &f64| value.is_finite())
    }

    /// The number as PostgreSQL writes it. Its length is not bounded by that of the value: a few bytes can
    /// say 1e100000.
    fn text(self) -> String {
        use std::fmt::Write;
        let mut text = String::from(if self.is_negative { "-" } else { "" });
        let group =
            |power: i32| usize::try_from(self.weight - power).ok().and_then(|at| self.groups().nth(at));
        // The first group is written without its zeros.
        let _ = write!(text, "{}", group(self.weight.max(0)).unwrap_or(0));
        (0..self.weight.max(0)).rev().for_each(|power| {
            let _ = write!(text, "{:04}", group(power).unwrap_or(0));
        });
        if self.shown > 0 {
            text.push('.');
            let end = text.len() + self.shown;
            (1..).map(|power: i32| group(-power).unwrap_or(0)).take(self.shown.div_ceil(4)).for_each(
                |group| {
                    let _ = write!(text, "{group:04}");
                },
            );
            text.truncate(end);
        }
        text
    }

    /// The number as serde_json reads its text; `None` where that is out of its range.
    fn json(self) -> Option<Value> {
        /// Powers of 10,000 beyond all numbers of type double.
        const MAX_WEIGHT: i32 = 80;
        if self.weight > MAX_WEIGHT || self.groups().len() as i32 > 2 * MAX_WEIGHT || self.shown > 1100 {
            return serde_json::Number::from_f64(self.float()?).map(Value::Number);
        }
        serde_json::from_str(&self.text()).ok()
    }
}

/// The reason why [`tree`] has made none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TreeError {
    /// The document is nested too deeply.
    Depth,
    /// The document has too many elements.
    Elements,
    /// The document has a number out of range.
    Unreadable,
}

/// The whole of a value, if it has no more than `most` elements.
pub(crate) fn tree(item: Item<'_>, most: usize) -> Result<Value, TreeError> {
    let mut left = most;
    grow(item, MAX_DEPTH, &mut left)
}

fn grow(item: Item<'_>, depth: usize, left: &mut usize) -> Result<Value, TreeError> {
    let container = match item {
        Item::Null => return Ok(Value::Null),
        Item::Bool(value) => return Ok(Value::Bool(value)),
        Item::Number(number) => return number.json().ok_or(TreeError::Unreadable),
        Item::Text(text) => return Ok(Value::from(text)),
        Item::Array(container) | Item::Object(container) => container,
    };
    let depth = depth.checked_sub(1).ok_or(TreeError::Depth)?;
    *left = left.checked_sub(container.len()).ok_or(TreeError::Elements)?;
    if matches!(item, Item::Array(_)) {
        let values = container.values().map(|value| grow(value.ok_or(TreeError::Unreadable)?, depth, left));
        return values.collect::<Result<_, _>>().map(Value::Array);
    }
    let pairs = container.pairs().map(|pair| {
        let (key, value) = pair.ok_or(TreeError::Unreadable)?;
        Ok((key.to_owned(), grow(value, depth, left)?))
    });
    pairs.collect::<Result<_, _>>().map(Value::Object)
}
