//! The table of a safetensors file: eight bytes of length, that many bytes of JSON, then the tensors.
//!
//! Every offset is checked: tensors lie inside the file, are as long as shape and type ask for, and no two of
//! them share a byte.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::gguf::GgmlType;

/// Most bytes of the table; that of a real model has a hundred for each tensor.
const MAX_HEADER_BYTES: u64 = 8 << 20;
pub(super) const MAX_TENSORS: usize = 65_536;
const MAX_DIMENSIONS: usize = 4;

/// A tensor of the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TensorEntry {
    pub(super) name: String,
    /// As in the file, with the length of a row last.
    pub(super) shape: Vec<usize>,
    /// The type of its elements; None for types that no weight has, such as integers.
    pub(super) kind: Option<GgmlType>,
    /// Its bytes in the file.
    pub(super) data: Range<usize>,
}

/// A tensor as the file describes it.
#[derive(Deserialize)]
struct Described {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// All descriptions, in the order of the file.
struct TensorTable(Vec<(String, Described)>);

impl<'de> Deserialize<'de> for TensorTable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;

        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = TensorTable;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TensorTable, A::Error> {
                let mut table = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    if table.len() == MAX_TENSORS {
                        return Err(serde::de::Error::custom(format!("more than {MAX_TENSORS} tensors")));
                    }
                    table.push((name, map.next_value()?));
                }
                Ok(TensorTable(table))
            }
        }

        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// The tensors of a file; the error is the reason why it cannot be read.
pub(super) fn read(bytes: &[u8]) -> Result<Vec<TensorEntry>, String> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err("the file is too short for a header".to_owned());
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(format!("its header has {length} bytes, at most {MAX_HEADER_BYTES} are read"));
    }
    // A copy, as another process might change the file after it was checked.
    let Some(header) = rest.get(..length as usize).map(<[u8]>::to_vec) else {
        return Err(format!("its header has {length} bytes, the file {}", bytes.len()));
    };
    let start = 8 + header.len();
    let TensorTable(table) =
        serde_json::from_slice(&header).map_err(|error| format!("its header: {error}"))?;
    let mut entries = Vec::with_capacity(table.len());
    for (name, described) in table {
        entries.push(entry(name, &described, start, bytes.len())?);
    }
    no_overlap(&entries)?;
    Ok(entries)
}

fn entry(name: String, described: &Described, start: usize, file_size: usize) -> Result<TensorEntry, String> {
    if name.len() > 1024 {
        return Err("the name of a tensor has more than 1024 bytes".to_owned());
    }
    let shape: Option<Vec<usize>> =
        described.shape.iter().map(|extent| usize::try_from(*extent).ok()).collect();
    let shape = shape.filter(|shape| shape.len() <= MAX_DIMENSIONS);
    let Some((kind, size)) = element(&described.dtype) else {
        let shown: String = described.dtype.chars().take(16).collect();
        return Err(format!("tensor \"{name}\" has the unknown element type \"{shown}\""));
    };
    let bytes = shape
        .as_ref()
        .and_then(|shape| shape.iter().try_fold(size, |product, extent| product.checked_mul(*extent)));
    let (Some(shape), Some(bytes)) = (shape, bytes) else {
        return Err(format!("tensor \"{name}\" has an impossible shape"));
    };
    let [first, end] = described.data_offsets;
    let place = |offset: u64| usize::try_from(offset).ok().and_then(|offset| start.checked_add(offset));
    match (place(first), place(end)) {
        (Some(first), Some(end)) if first <= end && end <= file_size && end - first == bytes => {
            Ok(TensorEntry { name, shape, kind, data: first..end })
        }
        _ => Err(format!(
            "tensor \"{name}\" of {bytes} bytes lies from {first} to {end} of {} bytes of data",
            file_size.saturating_sub(start)
        )),
    }
}

/// The element types of the format: GGML's type, where it has one, and the bytes of an element.
fn element(name: &str) -> Option<(Option<GgmlType>, usize)> {
    Some(match name {
        "F32" => (Some(GgmlType::F32), 4),
        "F16" => (Some(GgmlType::F16), 2),
        "BF16" => (Some(GgmlType::BF16), 2),
        "F64" | "I64" | "U64" => (None, 8),
        "I32" | "U32" => (None, 4),
        "I16" | "U16" => (None, 2),
        "BOOL" | "I8" | "U8" | "F8_E5M2" | "F8_E4M3" => (None, 1),
        _ => return None,
    })
}

fn no_overlap(entries: &[TensorEntry]) -> Result<(), String> {
    let mut names = BTreeMap::new();
    let mut ranges: Vec<(usize, usize, &str)> = Vec::with_capacity(entries.len());
    for entry in entries {
        if names.insert(&*entry.name, ()).is_some() {
            return Err(format!("tensor \"{}\" occurs twice", entry.name));
        }
        ranges.push((entry.data.start, entry.data.end, &entry.name));
    }
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        if let [(_, end, first), (start, _, second)] = pair
            && start < end
        {
            return Err(format!("tensors \"{first}\" and \"{second}\" overlap"));
        }
    }
    Ok(())
}
