//! The choice of the kernel that multiplies a format of weights, by the available instructions.
#![allow(unsafe_code, reason = "calling code compiled for detected features")]

use super::layout::Format;
use super::{BlockTile, portable};
use crate::kernels::instructions::Instructions;

/// Formats of weights of [`super::avx2`] and [`super::avx512`].
#[cfg(target_arch = "x86_64")]
macro_rules! simple {
    () => {
        Format::Q8_0 | Format::Q4_0 | Format::Q4_K | Format::Q6_K
    };
}

/// Formats of weights of [`super::avx2::blocks_32`] and [`super::avx512::blocks_32`].
#[cfg(target_arch = "x86_64")]
macro_rules! small {
    () => {
        Format::Q4_1 | Format::Q5_0 | Format::Q5_1 | Format::IQ4_NL | Format::MXFP4
    };
}

impl Instructions {
    /// Adds the blocks of a tile to its sums. Instructions that the processor does not have are replaced.
    pub(super) fn multiply(self, format: Format, tile: &mut BlockTile<'_>) {
        #[cfg(target_arch = "x86_64")]
        if self.present() {
            use super::{avx2, avx512};
            // SAFETY: the processor has the instructions.
            unsafe {
                match (self, format) {
                    (Instructions::Portable | Instructions::Neon, _) => {}
                    (Instructions::Avx2, Format::Q8_0) if tile.unpacked => return avx2::wide::multiply(tile),
                    (Instructions::Avx2, simple!()) => return avx2::multiply(format, tile),
                    (Instructions::Avx2, small!()) => return avx2::blocks_32::multiply(format, tile),
                    (Instructions::Avx2, _) => return avx2::blocks_256::multiply(format, tile),
                    (Instructions::Avx512, simple!()) => return avx512::multiply(format, tile),
                    (Instructions::Avx512, small!()) => return avx512::blocks_32::multiply(format, tile),
                    (Instructions::Avx512, _) => return avx512::blocks_256::multiply(format, tile),
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        if self == Instructions::Neon && self.present() {
            // SAFETY: the processor has the instructions.
            return unsafe { super::neon::multiply(format, tile) };
        }
        portable::multiply(format, tile);
    }

    /// Whether [`Instructions::unpack`] exists for these.
    pub(super) fn unpacks(self, format: Format) -> bool {
        match self {
            Instructions::Portable | Instructions::Neon => false,
            Instructions::Avx2 => format.block() == 256 || self.widens(format),
            Instructions::Avx512 => format.block() == 256,
        }
    }

    /// Whether quants are unpacked to 16 bits, for wide activations, rather than to bytes.
    pub(super) fn widens(self, format: Format) -> bool {
        self == Instructions::Avx2 && format == Format::Q8_0
    }

    /// Unpacks the quants of blocks into bytes, or 16 bits each where they are widened, in the form that
    /// [`Instructions::multiply`] takes with the same instructions.
    pub(super) fn unpack(self, format: Format, quants: &[u8], blocks: usize, out: &mut [u8]) {
        assert!(self.unpacks(format) && self.present());
        // SAFETY: the processor has the instructions.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            match (self, format) {
                (Instructions::Avx512, simple!()) => super::avx512::unpack(format, quants, blocks, out),
                (Instructions::Avx512, _) => super::avx512::blocks_256::unpack(format, quants, blocks, out),
                (_, Format::Q8_0) => super::avx2::wide::unpack(quants, blocks, out),
                (_, Format::Q4_0 | Format::Q4_K | Format::Q6_K) => {
                    super::avx2::unpack(format, quants, blocks, out)
                }
                (_, _) => super::avx2::blocks_256::unpack(format, quants, blocks, out),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (format, quants, blocks, out);
    }
}
