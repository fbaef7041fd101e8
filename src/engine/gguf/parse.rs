//! Parsing bytes to keys and tensors, with every number checked before it is used.
//!
//! The layout is that of ggml's `docs/gguf.md`, versions 2 and 3: magic, version, counts, keys, tensor
//! descriptions, padding, tensor data.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::cursor::{Cursor, Problem};
use super::kind::GgmlType;
use super::value::{self, Raw};

/// Bounds far above any real model, so that a hostile file cannot cost much before it is refused.
pub(super) const MAX_KEYS: u64 = 65_536;
pub(super) const MAX_TENSORS: u64 = 65_536;
const MAX_KEY_BYTES: usize = 65_535;
/// ggml's own limit, its closing zero byte not counted.
const MAX_TENSOR_NAME_BYTES: usize = 63;
const MAX_DIMENSIONS: u32 = 4;
const MAX_ALIGNMENT: u32 = 65_536;
const DEFAULT_ALIGNMENT: u32 = 32;

/// The description of a tensor; `data` lies inside its file. Unknown types have no data, as their size is
/// unknown.
#[derive(Debug)]
pub(super) struct TensorInfo {
    pub(super) name: Box<str>,
    pub(super) shape: Vec<usize>,
    pub(super) kind: GgmlType,
    /// The index of the model's file that it is in, from 0 on.
    pub(super) part: usize,
    pub(super) data: Range<usize>,
}

/// The description of a file, without the data of tensors.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) version: u32,
    pub(super) keys: BTreeMap<Box<str>, Raw>,
    /// The tensors in the order of the file.
    pub(super) tensors: Vec<TensorInfo>,
    /// Position in `tensors` by name.
    pub(super) tensor_index: HashMap<Box<str>, usize>,
}

pub(super) fn parse(bytes: &[u8]) -> Result<Contents, Problem> {
    let mut contents = Contents::default();
    read(bytes, &mut contents)?;
    Ok(contents)
}

/// Reads as much as possible of a file that [`parse`] refuses, to describe it to people. Tensors have no
/// data.
pub(super) fn survey(bytes: &[u8]) -> Contents {
    let mut contents = Contents::default();
    if read(bytes, &mut contents).is_err() {
        contents.tensors.iter_mut().for_each(|tensor| tensor.data = 0..0);
    }
    contents
}

/// Fills `contents` from the beginning of the file on, up to the first error.
fn read(bytes: &[u8], contents: &mut Contents) -> Result<(), Problem> {
    let mut cursor = Cursor::new(bytes);
    let header = || "the GGUF header".to_owned();
    if bytes.is_empty() {
        return Err(Problem::Corrupt("the file is empty".into()));
    }
    if !bytes.starts_with(b"GGUF") {
        return Err(Problem::Corrupt("it is not a GGUF file: it does not begin with \"GGUF\"".into()));
    }
    cursor.take(4, &header)?;
    let version = cursor.u32(&header)?;
    match version {
        2 | 3 => {}
        1 => {
            return Err(Problem::Unsupported {
                reason: "it is in version 1 of GGUF, only 2 and 3 are read".into(),
                hint: Some("Fetch a newer file of the model, or convert it again with a current llama.cpp."),
            });
        }
        other if matches!(other.swap_bytes(), 1..=3) => {
            return Err(Problem::Unsupported {
                reason: "it was written for big-endian machines".into(),
                hint: Some(
                    "Fetch the model's little-endian file, or convert this one with gguf_convert_endian.py of llama.cpp.",
                ),
            });
        }
        other => {
            return Err(Problem::Corrupt(format!("unknown GGUF version {other}, only 2 and 3 are read")));
        }
    }
    contents.version = version;
    let tensor_count = cursor.u64(&header)?;
    let key_count = cursor.u64(&header)?;
    // The smallest key: name of one byte, type, one byte. The smallest tensor: name of one byte, no
    // dimension, type, offset.
    bound("keys", key_count, MAX_KEYS, 14, cursor.left())?;
    bound("tensors", tensor_count, MAX_TENSORS, 25, cursor.left())?;

    keys(&mut cursor, key_count, &mut contents.keys)?;
    let alignment = alignment(&contents.keys)?;
    descriptions(&mut cursor, tensor_count, &mut contents.tensors)?;
    let data_start = cursor.position().next_multiple_of(alignment);
    place(&mut contents.tensors, bytes.len(), data_start, alignment)?;
    contents.index(0)
}

impl Contents {
    /// Fills the index with the tensors from number `first` on.
    pub(super) fn index(&mut self, first: usize) -> Result<(), Problem> {
        for (index, tensor) in self.tensors.iter().enumerate().skip(first) {
            if self.tensor_index.insert(tensor.name.clone(), index).is_some() {
                return Err(Problem::Corrupt(format!("tensor \"{}\" occurs twice", tensor.name)));
            }
        }
        Ok(())
    }
}

/// A count that neither the limit nor the rest of the file allows is refused before anything is read.
fn bound(what: &str, count: u64, limit: u64, least_bytes: u64, left: usize) -> Result<(), Problem> {
    if count > limit {
        return Err(Problem::Corrupt(format!("the header counts {count} {what}, at most {limit} are read")));
    }
    if count.saturating_mul(least_bytes) > left as u64 {
        return Err(Problem::Corrupt(format!(
            "the header counts {count} {what}, more than fit into the {left} bytes left"
        )));
    }
    Ok(())
}

fn keys(cursor: &mut Cursor<'_>, count: u64, keys: &mut BTreeMap<Box<str>, Raw>) -> Result<(), Problem> {
    for index in 0..count {
        let name = cursor.name(MAX_KEY_BYTES, &|| format!("key number {index}"))?;
        let value = value::read(cursor, name)?;
        if keys.insert(Box::from(name), value).is_some() {
            return Err(Problem::Corrupt(format!("key \"{name}\" occurs twice")));
        }
    }
    Ok(())
}

fn alignment(keys: &BTreeMap<Box<str>, Raw>) -> Result<usize, Problem> {
    let alignment = match keys.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(Raw::Integer(value)) => u32::try_from(*value).unwrap_or(0),
        Some(other) => {
            return Err(Problem::Corrupt(format!(
                "key \"general.alignment\" is {}, not an integer",
                other.type_name()
            )));
        }
    };
    // The format asks for a multiple of 8, ggml for a power of two.
    if !alignment.is_power_of_two() || !(8..=MAX_ALIGNMENT).contains(&alignment) {
        return Err(Problem::Corrupt(format!(
            "key \"general.alignment\" is {alignment}, not a power of two from 8 to {MAX_ALIGNMENT}"
        )));
    }
    Ok(alignment as usize)
}

/// Reads the descriptions; `data` is the range relative to the start of the data, not yet checked.
fn descriptions(cursor: &mut Cursor<'_>, count: u64, tensors: &mut Vec<TensorInfo>) -> Result<(), Problem> {
    for index in 0..count {
        let name = cursor.name(MAX_TENSOR_NAME_BYTES, &|| format!("tensor number {index}"))?;
        let what = || format!("tensor \"{name}\"");
        let dimensions = cursor.u32(&what)?;
        if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
            return Err(Problem::Corrupt(format!(
                "{} has {dimensions} dimensions, 1 to {MAX_DIMENSIONS} are allowed",
                what()
            )));
        }
        let mut shape = Vec::with_capacity(dimensions as usize);
        for _ in 0..dimensions {
            let extent = cursor.u64(&what)?;
            match usize::try_from(extent) {
                Ok(extent) if extent > 0 => shape.push(extent),
                _ => {
                    return Err(Problem::Corrupt(format!("{} has a dimension of {extent}", what())));
                }
            }
        }
        let kind = GgmlType::from_number(cursor.u32(&what)?);
        let offset = cursor.u64(&what)?;
        let size = size_bytes(&shape, kind, &what)?;
        let start = usize::try_from(offset).ok();
        let data = start.and_then(|start| Some(start..start.checked_add(size)?));
        let Some(data) = data else {
            return Err(Problem::Corrupt(format!("{} lies at the impossible offset {offset}", what())));
        };
        tensors.push(TensorInfo { name: name.into(), shape, kind, part: 0, data });
    }
    Ok(())
}

/// Bytes of the data; 0 for unknown types.
fn size_bytes(shape: &[usize], kind: GgmlType, what: &dyn Fn() -> String) -> Result<usize, Problem> {
    let elements = shape.iter().try_fold(1usize, |product, extent| product.checked_mul(*extent));
    let Some(elements) = elements.filter(|elements| *elements <= isize::MAX as usize) else {
        return Err(Problem::Corrupt(format!("{} has the impossible shape {shape:?}", what())));
    };
    let Some((block, bytes)) = kind.block() else { return Ok(0) };
    let row = shape.first().copied().unwrap_or_default();
    if !row.is_multiple_of(block) {
        return Err(Problem::Corrupt(format!(
            "{} has rows of {row} elements, {kind} needs a multiple of {block}",
            what()
        )));
    }
    (elements / block)
        .checked_mul(bytes)
        .ok_or_else(|| Problem::Corrupt(format!("{} has the impossible shape {shape:?}", what())))
}

/// Turns offsets into ranges of the file: aligned, inside it, no two tensors over the same bytes.
fn place(
    tensors: &mut [TensorInfo],
    file_size: usize,
    data_start: usize,
    alignment: usize,
) -> Result<(), Problem> {
    for tensor in &mut *tensors {
        let Range { start, end } = tensor.data.clone();
        if !start.is_multiple_of(alignment) {
            return Err(Problem::Corrupt(format!(
                "tensor \"{}\" lies at offset {start}, not a multiple of {alignment}",
                tensor.name
            )));
        }
        let range = data_start.checked_add(start).zip(data_start.checked_add(end));
        tensor.data = match range {
            Some((start, end)) if end <= file_size => start..end,
            _ => {
                return Err(Problem::Corrupt(format!(
                    "tensor \"{}\" needs {} bytes at offset {start} of the data, the file has {} bytes of data",
                    tensor.name,
                    end - start,
                    file_size.saturating_sub(data_start)
                )));
            }
        };
    }
    let mut ranges: Vec<(usize, usize, &str)> =
        tensors.iter().map(|tensor| (tensor.data.start, tensor.data.end, &*tensor.name)).collect();
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        if let [(_, end, first), (start, next_end, second)] = pair
            && start < end
            && start < next_end
        {
            return Err(Problem::Corrupt(format!("tensors \"{first}\" and \"{second}\" overlap")));
        }
    }
    Ok(())
}
