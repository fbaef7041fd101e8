//! A GGUF file in the making: keys and tensors that can be altered before they are written, so that tests
//! can make files that are wrong in exactly one way.

use std::io::{self, Write};

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the names are the documentation")]
pub enum Value {
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Strings(Vec<String>),
    I32s(Vec<i32>),
    Bools(Vec<bool>),
    F32s(Vec<f32>),
}

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// GGML order: the length of a row first.
    pub shape: Vec<usize>,
    /// Number of its type in `enum ggml_type`.
    pub kind: u32,
    /// Its bytes.
    pub data: Vec<u8>,
}

/// A whole file.
#[derive(Debug, Clone, PartialEq)]
pub struct File {
    /// Version of the format.
    pub version: u32,
    /// Keys in the order in which they are written.
    pub keys: Vec<(String, Value)>,
    /// Tensors in the order in which they are written.
    pub tensors: Vec<Tensor>,
}

/// Tensors begin at multiples of this many bytes.
const ALIGNMENT: usize = 32;

impl File {
    /// Sets a key, replacing its value if it is there.
    pub fn set(&mut self, key: &str, value: Value) {
        match self.keys.iter_mut().find(|(name, _)| name == key) {
            Some((_, old)) => *old = value,
            None => self.keys.push((key.into(), value)),
        }
    }

    /// Removes a key.
    pub fn remove(&mut self, key: &str) {
        self.keys.retain(|(name, _)| name != key);
    }

    /// The tensor of this name.
    pub fn tensor_mut(&mut self, name: &str) -> Option<&mut Tensor> {
        self.tensors.iter_mut().find(|tensor| tensor.name == name)
    }

    /// Writes the file.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut header = Vec::new();
        header.extend_from_slice(b"GGUF");
        header.extend(self.version.to_le_bytes());
        header.extend((self.tensors.len() as u64).to_le_bytes());
        header.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            string(&mut header, key);
            value.write(&mut header);
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            string(&mut header, &tensor.name);
            header.extend((tensor.shape.len() as u32).to_le_bytes());
            for extent in &tensor.shape {
                header.extend((*extent as u64).to_le_bytes());
            }
            header.extend(tensor.kind.to_le_bytes());
            header.extend((offset as u64).to_le_bytes());
            offset = (offset + tensor.data.len()).next_multiple_of(ALIGNMENT);
        }
        header.resize(header.len().next_multiple_of(ALIGNMENT), 0);
        out.write_all(&header)?;
        for tensor in &self.tensors {
            out.write_all(&tensor.data)?;
            let padding = tensor.data.len().next_multiple_of(ALIGNMENT) - tensor.data.len();
            out.write_all(&[0; ALIGNMENT][..padding])?;
        }
        out.flush()
    }
}

impl Value {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Value::U32(value) => {
                out.extend(4u32.to_le_bytes());
                out.extend(value.to_le_bytes());
            }
            Value::I32(value) => {
                out.extend(5u32.to_le_bytes());
                out.extend(value.to_le_bytes());
            }
            Value::F32(value) => {
                out.extend(6u32.to_le_bytes());
                out.extend(value.to_le_bytes());
            }
            Value::Bool(value) => {
                out.extend(7u32.to_le_bytes());
                out.push(u8::from(*value));
            }
            Value::String(value) => {
                out.extend(8u32.to_le_bytes());
                string(out, value);
            }
            Value::Strings(values) => {
                array(out, 8, values.len());
                values.iter().for_each(|value| string(out, value));
            }
            Value::I32s(values) => {
                array(out, 5, values.len());
                values.iter().for_each(|value| out.extend(value.to_le_bytes()));
            }
            Value::Bools(values) => {
                array(out, 7, values.len());
                out.extend(values.iter().map(|value| u8::from(*value)));
            }
            Value::F32s(values) => {
                array(out, 6, values.len());
                values.iter().for_each(|value| out.extend(value.to_le_bytes()));
            }
        }
    }
}

fn array(out: &mut Vec<u8>, of: u32, length: usize) {
    out.extend(9u32.to_le_bytes());
    out.extend(of.to_le_bytes());
    out.extend((length as u64).to_le_bytes());
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}
