//! Metadata values: scalars are kept, strings and arrays stay where they are in the file.

use std::ops::Range;

use super::cursor::{Cursor, Problem};

/// The type of a metadata value, by the format's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    fn from_number(number: u32) -> Option<ValueType> {
        use ValueType::*;
        let types = [U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64];
        types.get(usize::try_from(number).ok()?).copied()
    }

    /// Bytes of a scalar; `None` for strings and arrays.
    fn size(self) -> Option<usize> {
        use ValueType::*;
        match self {
            U8 | I8 | Bool => Some(1),
            U16 | I16 => Some(2),
            U32 | I32 | F32 => Some(4),
            U64 | I64 | F64 => Some(8),
            String | Array => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        use ValueType::*;
        match self {
            U8 => "u8",
            I8 => "i8",
            U16 => "u16",
            I16 => "i16",
            U32 => "u32",
            I32 => "i32",
            F32 => "f32",
            Bool => "bool",
            String => "string",
            Array => "array",
            U64 => "u64",
            I64 => "i64",
            F64 => "f64",
        }
    }
}

/// A checked value: ranges lie inside the file, counts fit their ranges.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Raw {
    /// Any integer type.
    Integer(i128),
    Float(f64),
    Bool(bool),
    /// Bytes of a string, not yet checked to be UTF-8.
    String(Range<usize>),
    /// Elements one after the other; strings with their lengths before them.
    Array {
        of: ValueType,
        count: usize,
        bytes: Range<usize>,
    },
}

impl Raw {
    /// The name of its type, for messages.
    pub(super) fn type_name(&self) -> String {
        match self {
            Raw::Integer(_) => "an integer".into(),
            Raw::Float(_) => "a float".into(),
            Raw::Bool(_) => "a bool".into(),
            Raw::String(_) => "a string".into(),
            Raw::Array { of, count, .. } => format!("an array of {count} {}", of.name()),
        }
    }
}

/// Reads the value of `key`: its type, then its bytes.
pub(super) fn read(cursor: &mut Cursor<'_>, key: &str) -> Result<Raw, Problem> {
    let what = || format!("key \"{key}\"");
    let value_type = value_type(cursor, key)?;
    if let Some(size) = value_type.size() {
        let bytes = cursor.take(size as u64, &what)?;
        return scalar(value_type, bytes)
            .ok_or_else(|| Problem::Corrupt(format!("{} is not a valid {}", what(), value_type.name())));
    }
    if value_type == ValueType::String {
        let length = cursor.string(&what)?.len();
        return Ok(Raw::String(cursor.position() - length..cursor.position()));
    }
    let of = self::value_type(cursor, key)?;
    let count = cursor.u64(&what)?;
    let start = cursor.position();
    match of.size() {
        Some(size) => {
            let length = count.saturating_mul(size as u64);
            cursor.take(length, &what)?;
        }
        None if of == ValueType::Array => {
            return Err(Problem::Unsupported {
                reason: format!("{} is an array of arrays", what()),
                hint: None,
            });
        }
        None => {
            // Each string takes 8 bytes at least, so this also bounds the loop by the size of the file.
            if count > cursor.left() as u64 / 8 {
                return Err(Problem::Corrupt(format!(
                    "{} has {count} strings, more than fit into the {} bytes left",
                    what(),
                    cursor.left()
                )));
            }
            for index in 0..count {
                cursor.string(&|| format!("element {index} of key \"{key}\""))?;
            }
        }
    }
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    Ok(Raw::Array { of, count, bytes: start..cursor.position() })
}

fn value_type(cursor: &mut Cursor<'_>, key: &str) -> Result<ValueType, Problem> {
    let number = cursor.u32(&|| format!("the type of key \"{key}\""))?;
    ValueType::from_number(number)
        .ok_or_else(|| Problem::Corrupt(format!("key \"{key}\" has the unknown value type {number}")))
}

/// `None` where the bytes are not one scalar of this type.
pub(super) fn scalar(value_type: ValueType, bytes: &[u8]) -> Option<Raw> {
    use ValueType::*;
    Some(match value_type {
        U8 => Raw::Integer(u8::from_le_bytes(bytes.try_into().ok()?).into()),
        I8 => Raw::Integer(i8::from_le_bytes(bytes.try_into().ok()?).into()),
        U16 => Raw::Integer(u16::from_le_bytes(bytes.try_into().ok()?).into()),
        I16 => Raw::Integer(i16::from_le_bytes(bytes.try_into().ok()?).into()),
        U32 => Raw::Integer(u32::from_le_bytes(bytes.try_into().ok()?).into()),
        I32 => Raw::Integer(i32::from_le_bytes(bytes.try_into().ok()?).into()),
        U64 => Raw::Integer(u64::from_le_bytes(bytes.try_into().ok()?).into()),
        I64 => Raw::Integer(i64::from_le_bytes(bytes.try_into().ok()?).into()),
        F32 => Raw::Float(f32::from_le_bytes(bytes.try_into().ok()?).into()),
        F64 => Raw::Float(f64::from_le_bytes(bytes.try_into().ok()?)),
        Bool => match bytes {
            [0] => Raw::Bool(false),
            [1] => Raw::Bool(true),
            _ => return None,
        },
        String | Array => return None,
    })
}

/// An array of strings, read from the file as it is walked.
#[derive(Debug, Clone)]
pub struct Strings<'a> {
    bytes: &'a [u8],
    left: usize,
}

impl<'a> Strings<'a> {
    /// A view of `count` strings whose lengths were checked; the error is the index of the first that is
    /// not UTF-8.
    pub(super) fn new(bytes: &'a [u8], count: usize) -> Result<Self, usize> {
        let strings = Strings { bytes, left: count };
        let mut walk = strings.clone();
        for index in 0..count {
            if std::str::from_utf8(walk.next_bytes()).is_err() {
                return Err(index);
            }
        }
        Ok(strings)
    }

    fn next_bytes(&mut self) -> &'a [u8] {
        let Some((length, rest)) = self.bytes.split_first_chunk::<8>() else { return &[] };
        let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let (string, rest) = rest.split_at(length.min(rest.len()));
        self.bytes = rest;
        string
    }
}

impl<'a> Iterator for Strings<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        self.left = self.left.checked_sub(1)?;
        // `new` has checked all of them: the empty string is for one that another process has changed since.
        Some(std::str::from_utf8(self.next_bytes()).unwrap_or_default())
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Strings<'_> {}

/// An array of numbers, read from the file as it is walked.
#[derive(Debug, Clone)]
pub struct Numbers<'a, T> {
    pub(super) chunks: std::slice::ChunksExact<'a, u8>,
    pub(super) read: fn(&[u8]) -> T,
}

impl<T> Iterator for Numbers<'_, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.chunks.next().map(self.read)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.chunks.size_hint()
    }
}

impl<T> ExactSizeIterator for Numbers<'_, T> {}
