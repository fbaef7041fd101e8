//! The pickled form of numpy's arrays: calls of a few functions with the type, the shape and the bytes.
//!
//! Two forms are in use. Up to protocol 4, and for arrays that do not lie in one piece,
//! `_reconstruct(ndarray, (0,), b'b')` and then the state `(version, shape, dtype, is_fortran, bytes)`; with
//! protocol 5 `_frombuffer(bytes, dtype, shape, order)`. A dtype is `dtype('f4', False, True)` with the state
//! `(3, '<', None, None, None, -1, -1, 0)`. Protocol 2 has no bytes: they are `_codecs.encode(text,
//! 'latin1')`.

use super::reader::{ObjectIndex, PickleMachine, PickleObject};
use super::{Error, MAX_DIMENSIONS};

/// The names that a pickle may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    Reconstruct,
    FromBuffer,
    NdArray,
    Dtype,
    Encode,
}

impl Global {
    /// The function or class `module.name`, if it is one of them. numpy 2 has moved two.
    pub(super) fn named(module: &str, name: &str) -> Option<Self> {
        match (module, name) {
            ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => Some(Global::Reconstruct),
            ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer") => Some(Global::FromBuffer),
            ("numpy", "ndarray") => Some(Global::NdArray),
            ("numpy", "dtype") => Some(Global::Dtype),
            ("_codecs", "encode") => Some(Global::Encode),
            _ => None,
        }
    }
}

/// A type of numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dtype {
    /// Double precision.
    is_double: bool,
    /// The most significant byte comes first.
    is_big_endian: bool,
}

/// The result of REDUCE: the call of `callee` with `arguments`.
pub(super) fn reduce<'p>(
    machine: &PickleMachine<'p>,
    callee: ObjectIndex,
    arguments: ObjectIndex,
) -> Result<PickleObject<'p>, Error> {
    let PickleObject::Global(callee) = machine.get(callee) else { return Err(machine.missing("a function")) };
    let arguments = machine.tuple(arguments).ok_or_else(|| machine.missing("a tuple of arguments"))?;
    match (callee, &arguments[..]) {
        (Global::Encode, [PickleObject::Text(text), PickleObject::Text("latin1" | "latin-1")]) => {
            let bytes: Result<Vec<u8>, _> = text.chars().map(|char| u8::try_from(u32::from(char))).collect();
            bytes.map(PickleObject::Latin1).map_err(|_| machine.missing("a text of Latin-1 characters"))
        }
        (Global::Dtype, [PickleObject::Text(name), ..]) => match *name {
            "f4" | "f8" => Ok(PickleObject::Dtype(Dtype { is_double: *name == "f8", is_big_endian: false })),
            _ => Err(Error::Kind("an array of something else than floats")),
        },
        (Global::Reconstruct, [PickleObject::Global(Global::NdArray), PickleObject::Tuple(_), ..]) => {
            Ok(PickleObject::EmptyArray)
        }
        (Global::FromBuffer, [data, PickleObject::Dtype(dtype), PickleObject::Tuple(shape), ..]) => {
            array(machine, shape, *dtype, data)
        }
        _ => Err(machine.missing("the arguments of numpy's functions")),
    }
}

/// The result of BUILD: the object `of` with its state.
pub(super) fn build<'p>(
    machine: &PickleMachine<'p>,
    of: ObjectIndex,
    state: ObjectIndex,
) -> Result<PickleObject<'p>, Error> {
    let state = machine.tuple(state).ok_or_else(|| machine.missing("a tuple"))?;
    match (machine.get(of), &state[..]) {
        (PickleObject::Dtype(dtype), [PickleObject::Int(3 | 4), PickleObject::Text(order), ..]) => {
            let is_big_endian = match *order {
                "<" => false,
                ">" => true,
                _ => return Err(machine.missing("a byte order")),
            };
            Ok(PickleObject::Dtype(Dtype { is_big_endian, ..*dtype }))
        }
        (
            PickleObject::EmptyArray,
            [PickleObject::Int(1), PickleObject::Tuple(shape), PickleObject::Dtype(dtype), _, data],
        ) => array(machine, shape, *dtype, data),
        _ => Err(machine.missing("an array or a type with its state")),
    }
}

fn array<'p>(
    machine: &PickleMachine<'p>,
    shape: &[ObjectIndex],
    dtype: Dtype,
    data: &PickleObject<'p>,
) -> Result<PickleObject<'p>, Error> {
    let data = match data {
        PickleObject::Bytes(bytes) => bytes,
        PickleObject::Latin1(bytes) => &bytes[..],
        _ => return Err(machine.missing("the bytes of an array")),
    };
    let [dimensions] = shape else { return Err(Error::Kind("an array of several axes")) };
    let PickleObject::Int(dimensions) = machine.get(*dimensions) else {
        return Err(machine.missing("the length of an array"));
    };
    let size = if dtype.is_double { 8 } else { 4 };
    let dimensions = usize::try_from(*dimensions).map_err(|_| machine.missing("the length of an array"))?;
    if dimensions > MAX_DIMENSIONS {
        return Err(Error::Dimensions(dimensions));
    }
    if data.len() != dimensions * size {
        return Err(machine.missing("as many bytes as the array's shape says"));
    }
    let numbers = match (dtype.is_double, dtype.is_big_endian) {
        (false, false) => decode(data, f32::from_le_bytes),
        (false, true) => decode(data, f32::from_be_bytes),
        (true, false) => decode(data, |bytes| f64::from_le_bytes(bytes) as f32),
        (true, true) => decode(data, |bytes| f64::from_be_bytes(bytes) as f32),
    };
    Ok(PickleObject::Array(numbers))
}

fn decode<const N: usize>(data: &[u8], number: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    data.as_chunks().0.iter().map(|bytes| number(*bytes)).collect()
}
