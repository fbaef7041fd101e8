//! The alphabet of byte-level BPE: each of the 256 bytes is written as one printable character, so that
//! a vocabulary can be text. Printable Latin-1 stands for itself, the rest for U+0100 and up, in order
//! (GPT-2's `bytes_to_unicode`).

/// Whether a byte stands for itself.
fn printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// The character that stands for each byte.
pub(super) fn characters() -> [char; 256] {
    let mut next = 0x100;
    std::array::from_fn(|byte| {
        let byte = byte as u8;
        if printable(byte) {
            return char::from(byte);
        }
        let character = char::from_u32(next).unwrap_or_default();
        next += 1;
        character
    })
}

/// The inverse: the byte that a character stands for, by its code point.
pub(super) struct CharacterBytes {
    table: [Option<u8>; 0x144],
}

impl CharacterBytes {
    pub(super) fn new() -> Self {
        let mut table = [None; 0x144];
        for (byte, character) in characters().iter().enumerate() {
            if let Some(slot) = table.get_mut(*character as usize) {
                *slot = Some(byte as u8);
            }
        }
        CharacterBytes { table }
    }

    /// `None` for characters outside the alphabet.
    pub(super) fn byte(&self, character: char) -> Option<u8> {
        self.table.get(character as usize).copied().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_character_of_its_own_and_comes_back() {
        let (characters, bytes) = (characters(), CharacterBytes::new());
        for (byte, character) in characters.iter().enumerate() {
            assert_eq!(bytes.byte(*character), Some(byte as u8));
        }
        assert_eq!(characters[usize::from(b' ')], 'Ġ');
        assert_eq!(characters[usize::from(b'\n')], 'Ċ');
        assert_eq!(bytes.byte(' '), None);
        assert_eq!(bytes.byte('語'), None);
    }
}
