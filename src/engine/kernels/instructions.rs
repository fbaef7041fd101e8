//! Instruction sets that kernels are compiled for, and the detection at run time of those that the processor
//! has.

/// Instruction sets with kernels, in ascending order. Results do not depend on them.
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

    /// Whether kernels compiled for AVX2, FMA and F16C may be used, and the processor can run them.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn wide(self) -> bool {
        matches!(self, Instructions::Avx2 | Instructions::Avx512) && Instructions::Avx2.present()
    }

    /// The best set that the processor has.
    pub fn best() -> Instructions {
        let best = [Instructions::Avx512, Instructions::Avx2, Instructions::Neon]
            .into_iter()
            .find(|set| set.present());
        best.unwrap_or(Instructions::Portable)
    }
}
