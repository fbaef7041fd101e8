//! A model of another format, translated to this one: keys from other files, tensors in mapped files.
//!
//! All users of models know GGUF only. A reader of another format translates its files once.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::PathBuf;

use super::kind::GgmlType;
use super::map::GgufBytes;
use super::parse::{Contents, TensorInfo};
use super::value::{Raw, ValueType};
use super::{FilePart, Gguf};
use crate::Error;

/// Keys and tensors, as they are found.
#[derive(Debug, Default)]
pub(crate) struct Translation {
    keys: BTreeMap<Box<str>, Raw>,
    /// Bytes of strings and arrays, and of all other values, so that models can be told apart by them.
    metadata: Vec<u8>,
    tensors: Vec<TensorInfo>,
    tensor_index: HashMap<Box<str>, usize>,
}

impl Translation {
    /// Maps the files that hold the tensors, and lets `describe` add keys and tensors.
    ///
    /// # Errors
    /// [`Error::ModelFile`] where a file cannot be mapped, [`Error::LostModel`] where one is cut short
    /// meanwhile; those of `describe`.
    pub(crate) fn open(
        paths: &[PathBuf],
        describe: impl FnOnce(&[&[u8]]) -> Result<Translation, Error>,
    ) -> Result<Gguf, Error> {
        let mut parts = Vec::with_capacity(paths.len());
        for path in paths {
            let bytes = GgufBytes::map(path).map_err(|source| Error::reading(path, source))?;
            parts.push(FilePart { path: path.clone(), bytes });
        }
        let described = describe(&parts.iter().map(|part| &*part.bytes).collect::<Vec<_>>());
        parts.iter().try_for_each(FilePart::check_lost)?;
        let Translation { keys, metadata, tensors, tensor_index } = described?;
        let contents = Contents { version: 3, keys, tensors, tensor_index };
        Ok(Gguf::assemble(parts, Some(metadata), contents))
    }

    /// Tensors that were added up to now.
    pub(crate) fn tensors(&self) -> usize {
        self.tensors.len()
    }

    /// Sets a key to an integer.
    pub(crate) fn integer(&mut self, key: &str, value: u32) {
        self.note(key, &value.to_le_bytes());
        self.keys.insert(key.into(), Raw::Integer(value.into()));
    }

    /// Sets a key to a float.
    pub(crate) fn float(&mut self, key: &str, value: f64) {
        self.note(key, &value.to_le_bytes());
        self.keys.insert(key.into(), Raw::Float(value));
    }

    /// Sets a key to a truth value.
    pub(crate) fn bool(&mut self, key: &str, value: bool) {
        self.note(key, &[u8::from(value)]);
        self.keys.insert(key.into(), Raw::Bool(value));
    }

    /// Sets a key to a string.
    pub(crate) fn string(&mut self, key: &str, value: &str) {
        self.note(key, &[]);
        let start = self.metadata.len();
        self.metadata.extend_from_slice(value.as_bytes());
        self.keys.insert(key.into(), Raw::String(start..self.metadata.len()));
    }

    /// Sets a key to an array of strings.
    pub(crate) fn strings<'s>(&mut self, key: &str, values: impl Iterator<Item = &'s str>) {
        let start = self.metadata.len();
        let mut count = 0;
        for value in values {
            self.metadata.extend((value.len() as u64).to_le_bytes());
            self.metadata.extend_from_slice(value.as_bytes());
            count += 1;
        }
        let bytes = start..self.metadata.len();
        self.keys.insert(key.into(), Raw::Array { of: ValueType::String, count, bytes });
    }

    /// Sets a key to an array of integers.
    pub(crate) fn i32s(&mut self, key: &str, values: impl Iterator<Item = i32>) {
        let start = self.metadata.len();
        self.metadata.extend(values.flat_map(i32::to_le_bytes));
        let bytes = start..self.metadata.len();
        self.keys.insert(key.into(), Raw::Array { of: ValueType::I32, count: bytes.len() / 4, bytes });
    }

    /// Sets a key to an array of floats.
    pub(crate) fn f32s(&mut self, key: &str, values: impl Iterator<Item = f32>) {
        let start = self.metadata.len();
        self.metadata.extend(values.flat_map(f32::to_le_bytes));
        let bytes = start..self.metadata.len();
        self.keys.insert(key.into(), Raw::Array { of: ValueType::F32, count: bytes.len() / 4, bytes });
    }

    /// Sets a key to an array of bytes.
    pub(crate) fn bytes(&mut self, key: &str, values: &[u8]) {
        let start = self.metadata.len();
        self.metadata.extend_from_slice(values);
        let bytes = start..self.metadata.len();
        self.keys.insert(key.into(), Raw::Array { of: ValueType::U8, count: bytes.len(), bytes });
    }

    /// Records that a key is set, with its value, for [`Gguf::content`].
    fn note(&mut self, key: &str, value: &[u8]) {
        self.metadata.extend_from_slice(key.as_bytes());
        self.metadata.extend_from_slice(value);
    }

    /// Adds a tensor whose bytes are at `data` of mapped file `part`; false if there is one of this name.
    pub(crate) fn tensor(
        &mut self,
        name: String,
        shape: Vec<usize>,
        kind: GgmlType,
        part: usize,
        data: Range<usize>,
    ) -> bool {
        let name = name.into_boxed_str();
        let new = self.tensor_index.insert(name.clone(), self.tensors.len()).is_none();
        self.tensors.push(TensorInfo { name, shape, kind, part, data });
        new
    }
}
