//! GGUF model files: metadata keys and tensors over a mapped file.
//!
//! Written for hostile input: every count, length, offset and alignment is checked against the size of the
//! file before it is used; memory is allocated in proportion to the bytes of the file, never to a number in
//! it. Arrays stay views. Errors name the key or the tensor.
//!
//! Invariant: no function here panics or allocates without bound, whatever the bytes are.

mod cursor;
mod kind;
mod map;
mod parse;
mod split;
#[cfg(test)]
mod tests;
mod translated;
mod value;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::Error;
use crate::mapping::{FileId, Mapping};
use cursor::Problem;
use map::GgufBytes;
use parse::{Contents, TensorInfo};
use value::{Raw, ValueType};

pub use kind::GgmlType;
pub use split::parts;
pub(crate) use translated::Translation;
pub use value::{Numbers, Strings};

/// An open model file, or the files of a split one. Clones share the mappings.
#[derive(Debug, Clone)]
pub struct Gguf {
    inner: Arc<GgufInner>,
    /// Other files that belong to it, each with its name in it.
    attached: Arc<[(String, Gguf)]>,
}

#[derive(Debug)]
struct GgufInner {
    /// Its files; keys are in the first one.
    parts: Vec<FilePart>,
    /// Bytes of strings and arrays, where they are not in the file.
    metadata: Option<Vec<u8>>,
    contents: Contents,
}

/// A file of a model.
#[derive(Debug)]
struct FilePart {
    path: PathBuf,
    bytes: GgufBytes,
}

impl FilePart {
    fn check_lost(&self) -> Result<(), Error> {
        match self.bytes.mapping() {
            Some(mapping) if mapping.lost() => Err(Error::LostModel { path: self.path.clone() }),
            _ => Ok(()),
        }
    }
}

/// The error for a file that cannot be used.
fn refused(path: PathBuf, problem: Problem) -> Error {
    match problem {
        Problem::Corrupt(reason) => Error::CorruptModel { path, reason },
        Problem::Unsupported { reason, hint } => {
            Error::UnsupportedModel { path, reason, hint: hint.map(str::to_owned) }
        }
    }
}

/// A tensor of the file.
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// GGML order: `shape[0]` is the length of a row. One to four dimensions, none of them zero.
    pub shape: &'a [usize],
    /// Type of its elements.
    pub kind: GgmlType,
    /// Its bytes, exactly as many as shape and kind ask for.
    pub data: &'a [u8],
}

/// A metadata value, for listings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// Any integer type.
    Integer(i128),
    /// `f32` or `f64`.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Text; `None` where it is not UTF-8.
    String(Option<&'a str>),
    /// An array, by the name of its element type and its length.
    Array(&'static str, usize),
}

impl Gguf {
    /// Maps and checks a file; with the first part of a split model, all of them.
    ///
    /// # Errors
    /// [`Error::ModelFile`] where one cannot be opened, [`Error::CorruptModel`] and
    /// [`Error::UnsupportedModel`] where it cannot be used.
    pub fn open(path: &Path) -> Result<Gguf, Error> {
        let failed = |source| Error::reading(path, source);
        let bytes = GgufBytes::map(path).map_err(failed)?;
        Gguf::new(path.into(), bytes)
    }

    /// Checks bytes that are part of the program. They should begin at a multiple of 64, so that tensors
    /// are as aligned as in a mapped file.
    ///
    /// # Errors
    /// As [`Gguf::open`], with `name` for the path.
    pub fn from_static(name: &str, bytes: &'static [u8]) -> Result<Gguf, Error> {
        Gguf::new(name.into(), GgufBytes::Static(bytes))
    }

    /// Reads as much as possible of a file that [`Gguf::open`] refuses, to describe it; its tensors have no
    /// data.
    ///
    /// # Errors
    /// [`Error::ModelFile`] where it cannot be opened.
    pub(crate) fn survey(path: &Path) -> Result<Gguf, Error> {
        let bytes = GgufBytes::map(path).map_err(|source| Error::reading(path, source))?;
        let contents = parse::survey(&bytes);
        Ok(Gguf::assemble(vec![FilePart { path: path.into(), bytes }], None, contents))
    }

    fn new(path: PathBuf, bytes: GgufBytes) -> Result<Gguf, Error> {
        let parsed = parse::parse(&bytes);
        let first = FilePart { path, bytes };
        first.check_lost()?;
        let mut contents = parsed.map_err(|problem| refused(first.path.clone(), problem))?;
        let parts = split::open_rest(first, &mut contents)?;
        Ok(Gguf::assemble(parts, None, contents))
    }

    fn assemble(parts: Vec<FilePart>, metadata: Option<Vec<u8>>, contents: Contents) -> Gguf {
        Gguf { inner: Arc::new(GgufInner { parts, metadata, contents }), attached: Arc::new([]) }
    }

    /// The same with other files that belong to it, which are part of its identity and of
    /// [`Gguf::check_lost`].
    pub(crate) fn with_attached(self, attached: Vec<(String, Gguf)>) -> Gguf {
        Gguf { attached: attached.into(), ..self }
    }

    /// The files that belong to it, each with its name in it.
    pub(crate) fn attached(&self) -> impl ExactSizeIterator<Item = (&str, &Gguf)> {
        self.attached.iter().map(|(name, gguf)| (&**name, gguf))
    }

    /// The first of its files, by which it is opened.
    pub fn path(&self) -> &Path {
        self.inner.parts.first().map_or(Path::new(""), |part| &part.path)
    }

    /// All of its files.
    pub fn files(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.inner.parts.iter().map(|part| &*part.path)
    }

    /// Bytes of its files.
    pub fn file_size(&self) -> u64 {
        self.inner.parts.iter().map(|part| part.bytes.len() as u64).sum()
    }

    /// Whether its files are of another format, translated to this one.
    pub(crate) fn is_translated(&self) -> bool {
        self.inner.metadata.is_some()
    }

    /// Bytes of everything but tensors.
    pub(crate) fn metadata_bytes(&self) -> u64 {
        let tensors: u64 = self.tensors().map(|tensor| tensor.data.len() as u64).sum();
        let apart = self.inner.metadata.as_ref().map_or(0, Vec::len) as u64;
        self.file_size().saturating_sub(tensors).saturating_add(apart)
    }

    /// All bytes of its files, one after the other, and the metadata that were translated; then those of the
    /// files that belong to it, with their names.
    pub(crate) fn content(&self) -> Vec<&[u8]> {
        [self.own_content(), self.attached_content()].concat()
    }

    /// The first half of [`content`](Gguf::content): what is the model's own.
    pub(crate) fn own_content(&self) -> Vec<&[u8]> {
        self.inner.parts.iter().map(|part| &*part.bytes).chain(self.inner.metadata.as_deref()).collect()
    }

    /// Its second half: what belongs to the model.
    pub(crate) fn attached_content(&self) -> Vec<&[u8]> {
        let mut content = Vec::new();
        for (name, gguf) in self.attached.iter() {
            content.push(name.as_bytes());
            content.extend(gguf.content());
        }
        content
    }

    /// The identity of its files; None for bytes of the program.
    pub(crate) fn file_id(&self) -> Option<FileId> {
        let mut ids = self.inner.parts.iter().map(|part| part.bytes.mapping()?.file_id());
        let first = ids.next()??;
        ids.try_fold(first, |all, id| Some(all.and(&id?)))
    }

    /// [`Error::LostModel`] if a page of a file could not be read since it was opened.
    pub fn check_lost(&self) -> Result<(), Error> {
        self.inner.parts.iter().try_for_each(FilePart::check_lost)?;
        self.attached.iter().try_for_each(|(_, gguf)| gguf.check_lost())
    }

    /// Whether the files at their paths are still those that were opened, without a change since.
    pub(crate) fn is_unchanged(&self) -> bool {
        self.inner.parts.iter().all(|part| {
            let opened = part.bytes.mapping().and_then(Mapping::file_id);
            FileId::of_path(&part.path).is_ok_and(|now| Some(now) == opened)
        })
    }

    /// Gives back the memory of a part of a file; reading it again fetches it again.
    pub(crate) fn release(&self, bytes: &[u8]) {
        // Parts that do not hold it do nothing.
        self.inner
            .parts
            .iter()
            .filter_map(|part| part.bytes.mapping())
            .for_each(|mapping| mapping.release(bytes));
        self.attached.iter().for_each(|(_, gguf)| gguf.release(bytes));
    }

    /// [`Gguf::release`] of all of it.
    pub(crate) fn release_all(&self) {
        self.inner.parts.iter().for_each(|part| self.release(&part.bytes));
        self.attached.iter().for_each(|(_, gguf)| gguf.release_all());
    }

    /// The version of the format, 2 or 3.
    pub fn version(&self) -> u32 {
        self.inner.contents.version
    }

    /// An error about this file: it contradicts itself or the format.
    pub fn corrupt(&self, reason: impl Into<String>) -> Error {
        Error::CorruptModel { path: self.path().into(), reason: reason.into() }
    }

    /// An error about this file: it needs something that the engine cannot do.
    pub fn unsupported(&self, reason: impl Into<String>) -> Error {
        Error::UnsupportedModel { path: self.path().into(), reason: reason.into(), hint: None }
    }

    /// As [`Gguf::unsupported`], with a hint.
    pub fn unsupported_but(&self, reason: impl Into<String>, hint: impl Into<String>) -> Error {
        let (path, reason) = (self.path().into(), reason.into());
        Error::UnsupportedModel { path, reason, hint: Some(hint.into()) }
    }

    /// All keys with their values, in the order of their names.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = (&str, Value<'_>)> {
        self.inner.contents.keys.iter().map(|(name, raw)| (&**name, self.value(raw)))
    }

    fn value(&self, raw: &Raw) -> Value<'_> {
        match raw {
            Raw::Integer(value) => Value::Integer(*value),
            Raw::Float(value) => Value::Float(*value),
            Raw::Bool(value) => Value::Bool(*value),
            Raw::String(range) => Value::String(std::str::from_utf8(self.metadata(range.clone())).ok()),
            Raw::Array { of, count, .. } => Value::Array(of.name(), *count),
        }
    }

    /// All tensors in the order of the file. Those of unknown type have no data.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = Tensor<'_>> {
        self.inner.contents.tensors.iter().map(|info| self.view(info))
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where there is none, [`Error::UnsupportedModel`] where its type is unknown.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>, Error> {
        self.opt_tensor(name)?.ok_or_else(|| self.corrupt(format!("tensor \"{name}\" is missing")))
    }

    /// The tensor of this name, if there is one.
    ///
    /// # Errors
    /// [`Error::UnsupportedModel`] where its type is unknown.
    pub fn opt_tensor(&self, name: &str) -> Result<Option<Tensor<'_>>, Error> {
        let contents = &self.inner.contents;
        let Some(info) = contents.tensor_index.get(name).and_then(|index| contents.tensors.get(*index))
        else {
            return Ok(None);
        };
        if let GgmlType::Unknown(number) = info.kind {
            return Err(self.unsupported_but(
                format!("tensor \"{name}\" has the unknown element type {number}"),
                "Use a file of the same model in another quantization, such as Q8_0 or Q4_K_M.",
            ));
        }
        Ok(Some(self.view(info)))
    }

    fn view<'a>(&'a self, info: &'a TensorInfo) -> Tensor<'a> {
        let data = self.bytes(info.part, info.data.clone());
        Tensor { name: &info.name, shape: &info.shape, kind: info.kind, data }
    }

    /// Bytes of a key's value.
    fn metadata(&self, range: std::ops::Range<usize>) -> &[u8] {
        match &self.inner.metadata {
            Some(metadata) => metadata.get(range).unwrap_or_default(),
            None => self.bytes(0, range),
        }
    }

    /// Ranges were checked when the file was parsed.
    fn bytes(&self, part: usize, range: std::ops::Range<usize>) -> &[u8] {
        self.inner.parts.get(part).and_then(|part| part.bytes.get(range)).unwrap_or_default()
    }

    fn raw(&self, key: &str) -> Option<&Raw> {
        self.inner.contents.keys.get(key)
    }

    fn ill_typed(&self, key: &str, raw: &Raw, expected: &str) -> Error {
        self.corrupt(format!("key \"{key}\" is {}, not {expected}", raw.type_name()))
    }

    fn required<T>(&self, key: &str, value: Option<T>) -> Result<T, Error> {
        value.ok_or_else(|| self.corrupt(format!("key \"{key}\" is missing")))
    }

    /// A string, if the key is there.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where it has another type or is not UTF-8; all methods below return the same.
    pub fn opt_str(&self, key: &str) -> Result<Option<&str>, Error> {
        match self.raw(key) {
            None => Ok(None),
            Some(Raw::String(range)) => std::str::from_utf8(self.metadata(range.clone()))
                .map(Some)
                .map_err(|_| self.corrupt(format!("key \"{key}\" is not valid UTF-8"))),
            Some(other) => Err(self.ill_typed(key, other, "a string")),
        }
    }

    /// An integer of any type that fits, if the key is there.
    pub fn opt_u32(&self, key: &str) -> Result<Option<u32>, Error> {
        match self.raw(key) {
            None => Ok(None),
            Some(Raw::Integer(value)) => u32::try_from(*value)
                .map(Some)
                .map_err(|_| self.corrupt(format!("key \"{key}\" is {value}, out of range"))),
            Some(other) => Err(self.ill_typed(key, other, "an integer")),
        }
    }

    /// A finite float, if the key is there.
    pub fn opt_f32(&self, key: &str) -> Result<Option<f32>, Error> {
        match self.raw(key) {
            None => Ok(None),
            Some(Raw::Float(value)) if (*value as f32).is_finite() => Ok(Some(*value as f32)),
            Some(Raw::Float(value)) => Err(self.corrupt(format!("key \"{key}\" is {value}, not finite"))),
            Some(other) => Err(self.ill_typed(key, other, "a float")),
        }
    }

    /// A truth value, if the key is there.
    pub fn opt_bool(&self, key: &str) -> Result<Option<bool>, Error> {
        match self.raw(key) {
            None => Ok(None),
            Some(Raw::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(self.ill_typed(key, other, "a bool")),
        }
    }

    /// An array of strings, if the key is there.
    pub fn opt_strings(&self, key: &str) -> Result<Option<Strings<'_>>, Error> {
        match self.raw(key) {
            None => Ok(None),
            Some(Raw::Array { of: ValueType::String, count, bytes }) => {
                Strings::new(self.metadata(bytes.clone()), *count).map(Some).map_err(|index| {
                    self.corrupt(format!("element {index} of key \"{key}\" is not valid UTF-8"))
                })
            }
            Some(other) => Err(self.ill_typed(key, other, "an array of strings")),
        }
    }

    /// An array of `i32`, if the key is there; one of `u32` is taken as well, as some writers make them.
    pub fn opt_i32s(&self, key: &str) -> Result<Option<Numbers<'_, i32>>, Error> {
        match self.raw(key) {
            None => Ok(None),
            Some(Raw::Array { of: ValueType::I32 | ValueType::U32, bytes, .. }) => {
                Ok(Some(numbers(self.metadata(bytes.clone()), |chunk| i32::from_le_bytes(four(chunk)))))
            }
            Some(other) => Err(self.ill_typed(key, other, "an array of i32")),
        }
    }

    /// An array of `f32`, if the key is there. Its values may be anything.
    pub fn opt_f32s(&self, key: &str) -> Result<Option<Numbers<'_, f32>>, Error> {
        match self.raw(key) {
            None => Ok(None),
            Some(Raw::Array { of: ValueType::F32, bytes, .. }) => {
                Ok(Some(numbers(self.metadata(bytes.clone()), |chunk| f32::from_le_bytes(four(chunk)))))
            }
            Some(other) => Err(self.ill_typed(key, other, "an array of f32")),
        }
    }

    /// An array of bytes, if the key is there.
    pub fn opt_bytes(&self, key: &str) -> Result<Option<&[u8]>, Error> {
        match self.raw(key) {
            None => Ok(None),
            Some(Raw::Array { of: ValueType::U8 | ValueType::I8, bytes, .. }) => {
                Ok(Some(self.metadata(bytes.clone())))
            }
            Some(other) => Err(self.ill_typed(key, other, "an array of bytes")),
        }
    }

    /// A value for each of `count` layers, if the key is there: an integer or a truth value (as 1 or 0) for
    /// all of them, or an array with one for each.
    pub(crate) fn opt_per_layer(&self, key: &str, count: usize) -> Result<Option<Vec<i64>>, Error> {
        let number = |raw: &Raw| match raw {
            Raw::Integer(value) => i64::try_from(*value).ok(),
            Raw::Bool(value) => Some(i64::from(*value)),
            _ => None,
        };
        match self.raw(key) {
            None => Ok(None),
            Some(Raw::Array { of, count: length, bytes }) if *length == count => {
                let bytes = self.metadata(bytes.clone());
                let size = bytes.len().checked_div(*length).filter(|size| *size > 0).unwrap_or(1);
                let values = bytes.chunks_exact(size).take(count);
                let values = values.map(|value| value::scalar(*of, value).as_ref().and_then(number));
                let values: Option<Vec<i64>> = values.collect();
                values.map(Some).ok_or_else(|| {
                    self.corrupt(format!("key \"{key}\" is an array of {}, not of integers", of.name()))
                })
            }
            Some(raw @ Raw::Array { .. }) => {
                Err(self.corrupt(format!("key \"{key}\" is {}, for {count} layers", raw.type_name())))
            }
            Some(raw) => match number(raw) {
                Some(value) => Ok(Some(vec![value; count])),
                None => Err(self.ill_typed(key, raw, "an integer")),
            },
        }
    }

    /// As [`Gguf::opt_str`], but a missing key is an error; the same holds for all methods below.
    pub fn str(&self, key: &str) -> Result<&str, Error> {
        self.required(key, self.opt_str(key)?)
    }

    /// As [`Gguf::opt_u32`].
    pub fn u32(&self, key: &str) -> Result<u32, Error> {
        self.required(key, self.opt_u32(key)?)
    }

    /// As [`Gguf::opt_f32`].
    pub fn f32(&self, key: &str) -> Result<f32, Error> {
        self.required(key, self.opt_f32(key)?)
    }

    /// As [`Gguf::opt_bool`].
    pub fn bool(&self, key: &str) -> Result<bool, Error> {
        self.required(key, self.opt_bool(key)?)
    }

    /// As [`Gguf::opt_strings`].
    pub fn strings(&self, key: &str) -> Result<Strings<'_>, Error> {
        self.required(key, self.opt_strings(key)?)
    }

    /// As [`Gguf::opt_i32s`].
    pub fn i32s(&self, key: &str) -> Result<Numbers<'_, i32>, Error> {
        self.required(key, self.opt_i32s(key)?)
    }

    /// As [`Gguf::opt_f32s`].
    pub fn f32s(&self, key: &str) -> Result<Numbers<'_, f32>, Error> {
        self.required(key, self.opt_f32s(key)?)
    }
}

fn numbers<T>(bytes: &[u8], read: fn(&[u8]) -> T) -> Numbers<'_, T> {
    Numbers { chunks: bytes.chunks_exact(4), read }
}

/// Chunks of four bytes have four bytes.
fn four(chunk: &[u8]) -> [u8; 4] {
    chunk.try_into().unwrap_or_default()
}
