//! The precompiled character map of SentencePiece, which replaces prefixes of a text, such as `ﬁ`.
//!
//! It is a double array ([Darts-clone](https://github.com/s-yata/darts-clone)) over the bytes of prefixes,
//! and the replacements, each of which ends in a zero byte. A unit of the array holds its label in bits 0 to
//! 7, whether a value follows in bit 8, and the offset to its children in the bits from 10 on, times 256
//! where bit 9 is set. A value has bit 31 set; its other bits are the place of the replacement.
//!
//! Invariant: everything that can be reached from the root was checked when the file was read.

use crate::Error;
use crate::gguf::Gguf;

const KEY: &str = "tokenizer.ggml.precompiled_charsmap";
/// Most bytes that are replaced at once; prefixes in SentencePiece's own maps are a fraction of that.
const MAX_PREFIX_BYTES: usize = 128;
/// Most times that a replacement may be longer than its prefix; NFKC's longest is 11 times as long.
const MAX_GROWTH: usize = 16;

/// A map from prefixes of a text to their replacements.
#[derive(Debug, Default)]
pub(super) struct Charsmap {
    units: Vec<u32>,
    replacements: Vec<u8>,
}

impl Charsmap {
    /// The map of the file; it replaces nothing where there is none.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where it points outside itself or its replacements are no text.
    pub(super) fn of(gguf: &Gguf) -> Result<Charsmap, Error> {
        let Some(blob) = gguf.opt_bytes(KEY)? else { return Ok(Charsmap::default()) };
        let parts = blob.split_first_chunk().and_then(|(size, rest)| {
            let (units, replacements) = rest.split_at_checked(u32::from_le_bytes(*size) as usize)?;
            Some((units, replacements))
                .filter(|(units, _)| units.len().is_multiple_of(4) && !units.is_empty())
        });
        let Some((units, replacements)) = parts else {
            return Err(gguf.corrupt(format!("key \"{KEY}\" is not as long as it says")));
        };
        let units = units.chunks_exact(4).map(|unit| unit.try_into().map_or(0, u32::from_le_bytes));
        let map = Charsmap { units: units.collect(), replacements: replacements.to_vec() };
        match map.check() {
            Ok(()) => Ok(map),
            Err(reason) => Err(gguf.corrupt(format!("key \"{KEY}\" {reason}"))),
        }
    }

    /// The longest prefix of the text that the map knows: its length in bytes, and its replacement.
    pub(super) fn replacement(&self, text: &[u8]) -> Option<(usize, &str)> {
        let mut found = None;
        let mut node = self.children(0)?;
        for (at, byte) in text.iter().take(MAX_PREFIX_BYTES).enumerate() {
            let Some(child) = self.child(node, *byte) else { break };
            let Some(children) = self.children(child).map(|offset| child ^ offset) else { break };
            node = children;
            if self.has_value(child)
                && let Some(replacement) = self.value(node)
                && replacement.len() <= MAX_GROWTH * (at + 1)
            {
                found = Some((at + 1, replacement));
            }
        }
        found
    }

    fn unit(&self, at: u32) -> Option<u32> {
        self.units.get(at as usize).copied()
    }

    /// The offset of a unit's children: the number of the unit is XORed with it.
    fn children(&self, at: u32) -> Option<u32> {
        let unit = self.unit(at)?;
        Some((unit >> 10) << ((unit & (1 << 9)) >> 6))
    }

    /// The unit that the byte leads to. Zero ends strings and leads nowhere.
    fn child(&self, node: u32, byte: u8) -> Option<u32> {
        let child = node ^ u32::from(byte);
        let label = self.unit(child)? & (1 << 31 | 0xff);
        (byte != 0 && label == u32::from(byte)).then_some(child)
    }

    fn has_value(&self, at: u32) -> bool {
        self.unit(at).is_some_and(|unit| unit >> 8 & 1 == 1)
    }

    /// The replacement that a value points to.
    fn value(&self, at: u32) -> Option<&str> {
        let start = self.unit(at)? & !(1 << 31);
        let rest = self.replacements.get(start as usize..)?;
        let end = rest.iter().take(MAX_GROWTH * MAX_PREFIX_BYTES + 1).position(|byte| *byte == 0)?;
        std::str::from_utf8(rest.get(..end)?).ok()
    }

    /// Checks every unit that can be reached, each of them once, as equal endings share their units. The
    /// error says what is wrong.
    fn check(&self) -> Result<(), &'static str> {
        const OUTSIDE: &str = "points outside its array";
        let mut seen = vec![false; self.units.len()];
        let mut open = vec![self.children(0).ok_or(OUTSIDE)?];
        while let Some(node) = open.pop() {
            for byte in 1..=u8::MAX {
                let Some(child) = self.child(node, byte) else { continue };
                match seen.get_mut(child as usize) {
                    Some(seen) if !*seen => *seen = true,
                    _ => continue,
                }
                let children = self.children(child).map_or(child, |offset| child ^ offset);
                if self.unit(children).is_none() {
                    return Err(OUTSIDE);
                }
                if self.has_value(child) && self.value(children).is_none() {
                    return Err("has replacements that are no text");
                }
                open.push(children);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A map that replaces `a` by `xy`; the root's children are at 256, those of `a` at 512.
    fn made() -> Charsmap {
        let mut units = vec![0; 1024];
        units[0] = 256 << 10;
        let a = 256 ^ usize::from(b'a');
        units[a] = u32::from(b'a') | 1 << 8 | (a as u32 ^ 512) << 10;
        units[512] = 1 << 31 | 1;
        Charsmap { units, replacements: b"\0xy\0".to_vec() }
    }

    #[test]
    fn what_it_knows_is_replaced() {
        let map = made();
        assert_eq!(map.check(), Ok(()));
        assert_eq!(map.replacement(b"ab"), Some((1, "xy")));
        assert_eq!((map.replacement(b"b"), map.replacement(b""), map.replacement(b"\0")), (None, None, None));
        assert_eq!(Charsmap::default().replacement(b"a"), None);
    }

    #[test]
    fn what_points_outside_is_refused() {
        let a = 256 ^ usize::from(b'a');
        let with = |at: usize, unit: u32| {
            let mut map = made();
            map.units[at] = unit;
            map.check()
        };
        assert!(with(0, 0x1f_ffff << 10).is_ok(), "a root without children replaces nothing");
        assert_eq!(with(a, u32::from(b'a') | 0x1f_fffe << 10), Err("points outside its array"));
        assert_eq!(with(512, 1 << 31 | 9), Err("has replacements that are no text"));
        let mut endless = made();
        endless.replacements = b"\0xy".to_vec();
        assert_eq!(endless.check(), Err("has replacements that are no text"));
    }

    #[test]
    fn circles_and_long_replacements_cost_no_more_than_their_bounds() {
        let a = 256 ^ usize::from(b'a');
        let mut circle = made();
        circle.units[a] = u32::from(b'a') | (a as u32 ^ 256) << 10;
        assert_eq!(circle.check(), Ok(()));
        assert_eq!(circle.replacement(&[b'a'; 1 << 20]), None);
        let mut long = made();
        long.replacements = [&b"\0"[..], &[b'x'; 17], b"\0"].concat();
        assert_eq!((long.check(), long.replacement(b"a")), (Ok(()), None));
        long.replacements = [&b"\0"[..], &[b'x'; MAX_GROWTH * MAX_PREFIX_BYTES + 1], b"\0"].concat();
        assert_eq!(long.check(), Err("has replacements that are no text"));
    }
}
