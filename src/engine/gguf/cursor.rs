//! Reading forward through untrusted bytes.
//!
//! Invariant: every read is checked against what is left, and nothing is allocated here.

/// The reason why a file cannot be read; the path is added where it is known.
#[derive(Debug)]
pub(super) enum Problem {
    /// The file contradicts itself or the format.
    Corrupt(String),
    /// The file is sound, but this reader cannot use it.
    Unsupported {
        reason: String,
        /// A hint for the user.
        hint: Option<&'static str>,
    },
}

/// A position in the file.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Cursor { bytes, position: 0 }
    }

    /// Offset of the next byte.
    pub(super) fn position(&self) -> usize {
        self.position
    }

    /// Bytes between here and the end of the file.
    pub(super) fn left(&self) -> usize {
        self.bytes.len() - self.position
    }

    /// The next `length` bytes; `what` names them in errors.
    pub(super) fn take(&mut self, length: u64, what: &dyn Fn() -> String) -> Result<&'a [u8], Problem> {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        match usize::try_from(length).ok().and_then(|length| rest.get(..length)) {
            Some(taken) => {
                self.position += taken.len();
                Ok(taken)
            }
            None => Err(Problem::Corrupt(format!(
                "{} needs {length} bytes at offset {}, the file has {} left",
                what(),
                self.position,
                rest.len()
            ))),
        }
    }

    fn array<const N: usize>(&mut self, what: &dyn Fn() -> String) -> Result<[u8; N], Problem> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self, what: &dyn Fn() -> String) -> Result<u32, Problem> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &dyn Fn() -> String) -> Result<u64, Problem> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// The bytes of a string: its length, then its bytes.
    pub(super) fn string(&mut self, what: &dyn Fn() -> String) -> Result<&'a [u8], Problem> {
        let length = self.u64(what)?;
        self.take(length, what)
    }

    /// A name of at most `limit` bytes: UTF-8, not empty, without control characters, so that it can stand in
    /// messages.
    pub(super) fn name(&mut self, limit: usize, what: &dyn Fn() -> String) -> Result<&'a str, Problem> {
        let bytes = self.string(what)?;
        if bytes.is_empty() || bytes.len() > limit {
            return Err(Problem::Corrupt(format!(
                "{} is named by {} bytes, 1 to {limit} are allowed",
                what(),
                bytes.len()
            )));
        }
        match std::str::from_utf8(bytes) {
            Ok(name) if !name.contains(char::is_control) => Ok(name),
            _ => Err(Problem::Corrupt(format!("the name of {} is not text", what()))),
        }
    }
}
