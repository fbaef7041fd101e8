//! Which instructions multiply: found at run time.

use std::sync::atomic::{AtomicU8, Ordering};

use super::layout::Format;
use super::{Tile, portable};

/// Sets of instructions that there are kernels for, in ascending order. Results do not depend on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Instructions {
    /// Any processor; the definition of the results.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW and VNNI.
    Avx512,
}

const ALL: [Instructions; 3] = [Instructions::Portable, Instructions::Avx2, Instructions::Avx512];

/// The most that may be used, as an index into `ALL`.
static LIMIT: AtomicU8 = AtomicU8::new(2);

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
                Instructions::Avx2 => avx2(),
                Instructions::Avx512 => {
                    avx2()
                        && std::arch::is_x86_feature_detected!("avx512f")
                        && std::arch::is_x86_feature_detected!("avx512bw")
                        && std::arch::is_x86_feature_detected!("avx512vnni")
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Instructions::Portable
        }
    }

    /// Lets the whole process use these and lesser ones only: for tests, which find that nothing changes.
    pub fn limit(self) {
        LIMIT.store(self as u8, Ordering::Relaxed);
    }

    /// The best that the processor has and the limit lets.
    pub fn best() -> Instructions {
        let limit = usize::from(LIMIT.load(Ordering::Relaxed));
        let allowed = ALL[..=limit.min(2)].iter().rev();
        allowed.copied().find(|instructions| instructions.present()).unwrap_or(Instructions::Portable)
    }

    /// Adds the blocks of a tile to its sums. Instructions that the processor does not have are replaced.
    pub(super) fn multiply(self, format: Format, tile: &mut Tile<'_>) {
        #[cfg(target_arch = "x86_64")]
        if self.present() {
            // SAFETY: the processor has the instructions.
            #[allow(unsafe_code, reason = "calling code compiled for detected features")]
            unsafe {
                match self {
                    Instructions::Avx512 => return super::avx512::multiply(format, tile),
                    Instructions::Avx2 => return super::avx2::multiply(format, tile),
                    Instructions::Portable => {}
                }
            }
        }
        portable::multiply(format, tile);
    }

    /// Unpacks a K-quant's quants into bytes; not for [`Instructions::Portable`].
    pub(super) fn unpack(self, format: Format, quants: &[u8], blocks: usize, out: &mut [u8]) {
        assert!(self != Instructions::Portable && self.present());
        // SAFETY: the processor has the instructions.
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code, reason = "calling code compiled for detected features")]
        unsafe {
            match self {
                Instructions::Avx512 => super::avx512::unpack(format, quants, blocks, out),
                _ => super::avx2::unpack(format, quants, blocks, out),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (format, quants, blocks, out);
    }
}
