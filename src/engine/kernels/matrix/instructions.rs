//! Which instructions multiply: found at run time.
#![allow(unsafe_code, reason = "calling code compiled for detected features")]

use super::layout::Format;
use super::{Tile, portable};

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

/// Sets of instructions that there are kernels for, in ascending order. Results do not depend on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instructions {
    /// Any processor; the definition of the results.
    Portable,
    /// NEON with the dot product (64-bit ARM).
    Neon,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW and VNNI.
    Avx512,
}

impl Instructions {
    /// Whether the processor has them.
    pub fn present(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = || {
                std::arch::is_x86_feature_detected!("avx2")
                    && std::arch::is_x86_feature_detected!("fma")
                    && std::arch::is_x86_feature_detected!("f16c")
            };
            match self {
                Instructions::Portable => true,
                Instructions::Neon => false,
                Instructions::Avx2 => avx2(),
                Instructions::Avx512 => {
                    avx2()
                        && std::arch::is_x86_feature_detected!("avx512f")
                        && std::arch::is_x86_feature_detected!("avx512bw")
                        && std::arch::is_x86_feature_detected!("avx512vnni")
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        match self {
            Instructions::Portable => true,
            Instructions::Neon => std::arch::is_aarch64_feature_detected!("dotprod"),
            Instructions::Avx2 | Instructions::Avx512 => false,
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        {
            self == Instructions::Portable
        }
    }

    /// Whether the versions of the kernels that are compiled for AVX2, FMA and F16C may run, and can.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn wide(self) -> bool {
        matches!(self, Instructions::Avx2 | Instructions::Avx512) && Instructions::Avx2.present()
    }

    /// The best that the processor has.
    pub fn best() -> Instructions {
        let best = [Instructions::Avx512, Instructions::Avx2, Instructions::Neon]
            .into_iter()
            .find(|set| set.present());
        best.unwrap_or(Instructions::Portable)
    }

    /// Adds the blocks of a tile to its sums. Instructions that the processor does not have are replaced.
    pub(super) fn multiply(self, format: Format, tile: &mut Tile<'_>) {
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

    /// Whether there is [`Instructions::unpack`] for these.
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

    /// Unpacks the quants of blocks into bytes, or 16 bits each where they are widened, as [`Instructions::multiply`]
    /// with the same instructions takes them.
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
