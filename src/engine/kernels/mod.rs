//! The numeric inner loops: threads, dot products over quantized blocks, norms, RoPE, attention, SwiGLU,
//! GELU.
//!
//! Everything here works on plain slices whose sizes the caller has checked. The loops are written once and
//! compiled twice: portable, and with AVX2, FMA and F16C where the processor has them ([`multiversion`]).
//! They use `mul_add` wherever they mean a fused operation and nothing else fuses, so both give the same
//! bytes.
//!
//! Invariant: the value of an output depends on its own row, its weights and its absolute position only;
//! never on the number of other rows, on the thread that computes it or on the number of threads.

/// Defines the function `$name`, whose first argument is the instructions that may be used. It runs `$body`
/// compiled for AVX2, FMA and F16C where they are among these instructions and the processor has them, and
/// compiled portably elsewhere. `$body` must be `#[inline(always)]`, or it stays portable.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? = $body:path) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, reason = "kernels take their slices one by one")]
        $vis fn $name(instructions: crate::kernels::instructions::Instructions, $($arg: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                #[allow(clippy::too_many_arguments, reason = "kernels take their slices one by one")]
                fn wide($($arg: $type),*) $(-> $result)? {
                    $body($($arg),*)
                }
                if instructions.wide() {
                    // SAFETY: the processor has the features that `wide` is compiled for.
                    #[allow(unsafe_code, reason = "calling code compiled for detected features")]
                    return unsafe { wide($($arg),*) };
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = instructions;
            $body($($arg),*)
        }
    };
}

pub(crate) mod attention;
pub mod bench;
pub(crate) mod convolution;
pub(crate) mod delta_rule;
pub(crate) mod disjoint;
pub(crate) mod exp;
pub(crate) mod float_environment;
mod floats;
pub(crate) mod gelu;
pub(crate) mod ggml;
pub(crate) mod half;
mod highest;
pub(crate) mod instructions;
pub(crate) mod matrix;
pub(crate) mod norm;
pub(crate) mod pool;
pub(crate) mod recurrence;
pub(crate) mod rope;
pub(crate) mod routing;
pub(crate) mod rows;
pub(crate) mod softmax;
pub(crate) mod sparsity;
pub(crate) mod state_space;
pub(crate) mod streams;
pub(crate) mod swiglu;
pub(crate) mod tile;

pub(crate) use floats::Floats;
pub(crate) use highest::highest;
pub(crate) use pool::Pool;
