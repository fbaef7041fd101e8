//! The stack machine that reads a pickle.
//!
//! Objects live in one arena and are referred to by their index, on the stack, in the memo and in each other,
//! so that shared objects cost nothing and cycles do no harm. Texts and bytes stay where they are in the
//! pickle.

use super::numpy::{self, Dtype, Global};
use super::{Error, MAX_DIMENSIONS, MAX_TEXT_BYTES, PickleValue, opcode};

/// Objects at most: a list of [`MAX_DIMENSIONS`] floats has as many, and each may be put into the memo.
const MAX_OBJECTS: usize = 4 * MAX_DIMENSIONS;

/// Items of a tuple that is a function's arguments or an object's state, at most. numpy's longest has 8.
const MAX_ARGUMENTS: usize = 16;

/// An index into [`PickleMachine::objects`].
pub(super) type ObjectIndex = usize;

/// An object of the pickle machine.
#[derive(Debug, Clone)]
pub(super) enum PickleObject<'p> {
    None,
    Bool,
    Int(i64),
    Float(f64),
    Text(&'p str),
    Bytes(&'p [u8]),
    /// Bytes that were written as a text of their Latin-1 characters.
    Latin1(Vec<u8>),
    List(Vec<ObjectIndex>),
    Tuple(Vec<ObjectIndex>),
    Global(Global),
    Dtype(Dtype),
    /// The result of `_reconstruct`, until BUILD fills it.
    EmptyArray,
    Array(Vec<f32>),
}

/// Reads a pickle.
///
/// # Errors
///
/// It is damaged, or holds anything else than a text or a vector.
pub fn read(pickle: &[u8]) -> Result<PickleValue, Error> {
    PickleMachine::new(pickle).run()
}

pub(super) struct PickleMachine<'p> {
    pickle: &'p [u8],
    /// The next byte.
    next: usize,
    /// The instruction that is being executed, and where it is.
    opcode: &'static str,
    at: usize,
    objects: Vec<PickleObject<'p>>,
    stack: Vec<ObjectIndex>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: Vec<Option<ObjectIndex>>,
    /// Bytes of what was made by calls, which could make much out of little.
    made_bytes: usize,
}

impl<'p> PickleMachine<'p> {
    fn new(pickle: &'p [u8]) -> Self {
        PickleMachine {
            pickle,
            next: 0,
            opcode: "PROTO",
            at: 0,
            objects: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: Vec::new(),
            made_bytes: 0,
        }
    }

    fn run(mut self) -> Result<PickleValue, Error> {
        while let Some(&byte) = self.pickle.get(self.next) {
            self.at = self.next;
            self.next += 1;
            self.opcode = opcode::name(byte).ok_or(Error::NoOpcode { byte, at: self.at })?;
            if byte == b'.' {
                let value = self.pop("a value")?;
                if !self.stack.is_empty() || !self.marks.is_empty() {
                    return Err(self.missing("a single value"));
                }
                if self.next != self.pickle.len() {
                    return Err(Error::Trailing { at: self.next });
                }
                return self.value(value);
            }
            self.step(byte)?;
        }
        Err(Error::Unfinished)
    }

    fn step(&mut self, byte: u8) -> Result<(), Error> {
        match byte {
            0x80 => match self.byte()? {
                2..=5 => Ok(()),
                other => Err(Error::Protocol(other)),
            },
            // Frames only say how far to read ahead.
            0x95 => self.length8().map(|_| ()),
            b'N' => self.push(PickleObject::None),
            0x88 | 0x89 => self.push(PickleObject::Bool),
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.push(PickleObject::Int(value.into()))
            }
            b'K' => {
                let value = self.byte()?;
                self.push(PickleObject::Int(value.into()))
            }
            b'M' => {
                let value = u16::from_le_bytes(self.array()?);
                self.push(PickleObject::Int(value.into()))
            }
            b'G' => {
                let value = f64::from_be_bytes(self.array()?);
                self.push(PickleObject::Float(value))
            }
            b'X' | 0x8c | 0x8d => {
                let length = self.length(byte == 0x8c, byte == 0x8d)?;
                let text = text(self.bytes(length)?)?;
                self.push(PickleObject::Text(text))
            }
            b'B' | b'C' | 0x8e | 0x96 => {
                let length = self.length(byte == b'C', byte >= 0x8e)?;
                let bytes = self.bytes(length)?;
                self.push(PickleObject::Bytes(bytes))
            }
            b'(' => {
                self.marks.push(self.stack.len());
                self.limit(self.marks.len())
            }
            b')' => self.push(PickleObject::Tuple(Vec::new())),
            0x85..=0x87 => {
                let from = self.stack.len().checked_sub(usize::from(byte) - 0x84);
                let items = self.take_from(from)?;
                self.push(PickleObject::Tuple(items))
            }
            b't' => {
                let from = self.marks.pop();
                let items = self.take_from(from)?;
                self.push(PickleObject::Tuple(items))
            }
            b']' => self.push(PickleObject::List(Vec::new())),
            b'a' => {
                let item = self.pop("an item")?;
                self.append(vec![item])
            }
            b'e' => {
                let from = self.marks.pop();
                let items = self.take_from(from)?;
                self.append(items)
            }
            b'q' => {
                let index = self.byte()?.into();
                self.memoize(index)
            }
            b'r' => {
                let index = self.length4()?;
                self.memoize(index)
            }
            0x94 => self.memoize(self.memo.len()),
            b'h' => {
                let index = self.byte()?.into();
                self.recall(index)
            }
            b'j' => {
                let index = self.length4()?;
                self.recall(index)
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)
            }
            0x93 => {
                let (name, module) = (self.pop("a name")?, self.pop("a module")?);
                match (&self.objects[module], &self.objects[name]) {
                    (&PickleObject::Text(module), &PickleObject::Text(name)) => self.global(module, name),
                    _ => Err(self.missing("two names")),
                }
            }
            b'R' => {
                let (arguments, callee) = (self.pop("arguments")?, self.pop("a function")?);
                let object = numpy::reduce(self, callee, arguments)?;
                self.account(&object)?;
                self.push(object)
            }
            b'b' => {
                let (state, of) = (self.pop("a state")?, self.top()?);
                let object = numpy::build(self, of, state)?;
                self.account(&object)?;
                self.objects[of] = object;
                Ok(())
            }
            _ => Err(Error::Opcode { opcode: self.opcode, at: self.at }),
        }
    }

    /// The value that the pickle's program has made.
    fn value(&self, handle: ObjectIndex) -> Result<PickleValue, Error> {
        match &self.objects[handle] {
            PickleObject::Text(text) => match text.len() {
                length if length > MAX_TEXT_BYTES => Err(Error::TextTooLong(length)),
                _ if text.contains('\0') => Err(Error::InvalidText),
                _ => Ok(PickleValue::Text((*text).to_owned())),
            },
            PickleObject::List(items) | PickleObject::Tuple(items) => {
                let numbers: Result<Vec<f32>, Error> = items
                    .iter()
                    .map(|item| match &self.objects[*item] {
                        PickleObject::Float(number) => Ok(*number as f32),
                        PickleObject::Int(number) => Ok(*number as f32),
                        _ => Err(Error::Kind("a list with something else than numbers")),
                    })
                    .collect();
                vector(numbers?)
            }
            PickleObject::Array(numbers) => vector(numbers.clone()),
            PickleObject::None => Err(Error::Kind("None")),
            PickleObject::Bool | PickleObject::Int(_) | PickleObject::Float(_) => {
                Err(Error::Kind("a number"))
            }
            PickleObject::Bytes(_) | PickleObject::Latin1(_) => Err(Error::Kind("bytes")),
            PickleObject::Global(_) | PickleObject::Dtype(_) => Err(Error::Kind("a type")),
            PickleObject::EmptyArray => Err(Error::Kind("an array without content")),
        }
    }

    /// An object.
    pub(super) fn get(&self, handle: ObjectIndex) -> &PickleObject<'p> {
        &self.objects[handle]
    }

    /// The items of a short tuple. A long one is none of numpy's, and to look at it again and again takes
    /// time without end.
    pub(super) fn tuple(&self, handle: ObjectIndex) -> Option<Vec<&PickleObject<'p>>> {
        match &self.objects[handle] {
            PickleObject::Tuple(items) if items.len() <= MAX_ARGUMENTS => {
                Some(items.iter().map(|item| &self.objects[*item]).collect())
            }
            _ => None,
        }
    }

    /// The error of an instruction that does not find what it needs.
    pub(super) fn missing(&self, expected: &'static str) -> Error {
        Error::Stack { opcode: self.opcode, at: self.at, expected }
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), Error> {
        match Global::named(module, name) {
            Some(global) => self.push(PickleObject::Global(global)),
            None => {
                let name = format!("{module}.{name}").chars().take(80).flat_map(char::escape_debug).collect();
                Err(Error::Global { name, opcode: self.opcode })
            }
        }
    }

    fn account(&mut self, object: &PickleObject<'p>) -> Result<(), Error> {
        self.made_bytes += match object {
            PickleObject::Latin1(bytes) => bytes.len(),
            PickleObject::Array(numbers) => size_of_val(&numbers[..]),
            _ => 0,
        };
        // Protocol 2 makes an array of bytes that it makes of a text.
        if self.made_bytes > 2 * self.pickle.len() { Err(Error::TooMuchData) } else { Ok(()) }
    }

    fn append(&mut self, items: Vec<ObjectIndex>) -> Result<(), Error> {
        let list = self.top()?;
        match &mut self.objects[list] {
            PickleObject::List(list) => {
                list.extend(items);
                let count = list.len();
                self.limit(count)
            }
            _ => Err(self.missing("a list")),
        }
    }

    fn push(&mut self, object: PickleObject<'p>) -> Result<(), Error> {
        self.limit(self.objects.len() + 1)?;
        self.stack.push(self.objects.len());
        self.objects.push(object);
        Ok(())
    }

    fn pop(&mut self, expected: &'static str) -> Result<ObjectIndex, Error> {
        if self.marks.last() == Some(&self.stack.len()) {
            return Err(self.missing(expected));
        }
        self.stack.pop().ok_or_else(|| self.missing(expected))
    }

    fn top(&self) -> Result<ObjectIndex, Error> {
        self.stack.last().copied().ok_or_else(|| self.missing("an object"))
    }

    /// Everything on the stack from height `from` on.
    fn take_from(&mut self, from: Option<usize>) -> Result<Vec<ObjectIndex>, Error> {
        let lowest = self.marks.last().copied().unwrap_or(0);
        match from {
            Some(from) if from >= lowest && from <= self.stack.len() => Ok(self.stack.split_off(from)),
            _ => Err(self.missing("as many objects")),
        }
    }

    fn memoize(&mut self, index: usize) -> Result<(), Error> {
        self.limit(index.saturating_add(1))?;
        let top = self.top()?;
        if index >= self.memo.len() {
            self.memo.resize(index + 1, None);
        }
        self.memo[index] = Some(top);
        Ok(())
    }

    fn recall(&mut self, index: usize) -> Result<(), Error> {
        let handle =
            self.memo.get(index).copied().flatten().ok_or_else(|| self.missing("that place in the memo"))?;
        self.limit(self.stack.len() + 1)?;
        self.stack.push(handle);
        Ok(())
    }

    fn limit(&self, count: usize) -> Result<(), Error> {
        if count > MAX_OBJECTS { Err(Error::TooManyObjects(MAX_OBJECTS)) } else { Ok(()) }
    }

    fn bytes(&mut self, length: usize) -> Result<&'p [u8], Error> {
        let bytes = self.next.checked_add(length).and_then(|end| self.pickle.get(self.next..end));
        self.next += length.min(self.pickle.len());
        bytes.ok_or(Error::Truncated { opcode: self.opcode, at: self.at })
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let truncated = Error::Truncated { opcode: self.opcode, at: self.at };
        self.bytes(N)?.try_into().map_err(|_| truncated)
    }

    fn byte(&mut self) -> Result<u8, Error> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn length(&mut self, short: bool, long: bool) -> Result<usize, Error> {
        match (short, long) {
            (true, _) => self.byte().map(usize::from),
            (_, true) => self.length8(),
            _ => self.length4(),
        }
    }

    fn length4(&mut self) -> Result<usize, Error> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    /// A length that the address space cannot hold is beyond the end in any case.
    fn length8(&mut self) -> Result<usize, Error> {
        Ok(usize::try_from(u64::from_le_bytes(self.array()?)).unwrap_or(usize::MAX))
    }

    fn line(&mut self) -> Result<&'p str, Error> {
        let rest = self.pickle.get(self.next..).unwrap_or_default();
        let length = rest.iter().position(|byte| *byte == b'\n');
        let length = length.ok_or(Error::Truncated { opcode: self.opcode, at: self.at })?;
        self.next += length + 1;
        text(&rest[..length])
    }
}

fn text(bytes: &[u8]) -> Result<&str, Error> {
    std::str::from_utf8(bytes).map_err(|_| Error::InvalidText)
}

fn vector(numbers: Vec<f32>) -> Result<PickleValue, Error> {
    if numbers.is_empty() || numbers.len() > MAX_DIMENSIONS {
        Err(Error::Dimensions(numbers.len()))
    } else if !numbers.iter().all(|number| number.is_finite()) {
        Err(Error::NotFinite)
    } else if numbers.iter().all(|number| *number == 0.0) {
        Err(Error::Zeros)
    } else {
        Ok(PickleValue::Vector(numbers))
    }
}
