//! The floating-point environment: how the processor rounds, and whether it flushes subnormal numbers to
//! zero.
//!
//! It belongs to a thread, and a new thread inherits that of its parent: a library that another part of the
//! process has loaded may have changed it (code that is compiled with -ffast-math does so when it is loaded).
//! Results must not depend on it, so the engine's own threads set IEEE 754's defaults ([`set`]), and
//! computations on a caller's thread set them for their duration ([`Standard`]).
#![allow(unsafe_code, reason = "a control register that only assembly reaches")]

/// Round to nearest, ties to even; subnormal numbers are kept; exceptions raise no signal.
#[cfg(target_arch = "x86_64")]
const STANDARD: Word = 0x1f80;
#[cfg(target_arch = "aarch64")]
const STANDARD: Word = 0;

/// The bits of the register that are no settings: flags of past exceptions.
#[cfg(target_arch = "x86_64")]
const FLAGS: Word = 0x3f;
#[cfg(target_arch = "aarch64")]
const FLAGS: Word = 0;

/// MXCSR.
#[cfg(target_arch = "x86_64")]
type Word = u32;
/// FPCR.
#[cfg(target_arch = "aarch64")]
type Word = u64;

#[cfg(target_arch = "x86_64")]
fn read() -> Word {
    let mut word = 0;
    // SAFETY: stores 32 bits where they belong.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut word, options(nostack, preserves_flags)) };
    word
}

/// # Safety
/// No bits that are reserved are set.
#[cfg(target_arch = "x86_64")]
unsafe fn write(word: Word) {
    // SAFETY: loads 32 bits of a variable; the caller's promise.
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const word, options(nostack, preserves_flags)) };
}

#[cfg(target_arch = "aarch64")]
fn read() -> Word {
    let word: Word;
    // SAFETY: reads a register that every thread may read.
    unsafe { std::arch::asm!("mrs {}, fpcr", out(reg) word, options(nostack, preserves_flags)) };
    word
}

/// # Safety
/// No bits that are reserved are set.
#[cfg(target_arch = "aarch64")]
unsafe fn write(word: Word) {
    // SAFETY: the caller's promise; every thread may write its register.
    unsafe { std::arch::asm!("msr fpcr, {}", in(reg) word, options(nostack, preserves_flags)) };
}

/// Sets the standard environment while it lives; then restores the one before.
#[must_use]
pub(crate) struct Standard {
    /// The environment to restore.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    before: Option<Word>,
    /// The environment belongs to this thread, so the guard must not leave it.
    thread: std::marker::PhantomData<*const ()>,
}

impl Standard {
    /// Sets it for the calling thread.
    pub(crate) fn enter() -> Standard {
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        let before = {
            let now = read();
            // Reading costs next to nothing, while writing waits for the operations under way.
            let differs = now & !FLAGS != STANDARD;
            if differs {
                // SAFETY: a value without reserved bits.
                unsafe { write(STANDARD) };
            }
            differs.then_some(now)
        };
        Standard {
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            before,
            thread: std::marker::PhantomData,
        }
    }
}

impl Drop for Standard {
    fn drop(&mut self) {
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        if let Some(before) = self.before {
            // SAFETY: the value was read from the register.
            unsafe { write(before) };
        }
    }
}

/// Sets the standard environment for the calling thread, from here to its end.
pub(crate) fn set() {
    std::mem::forget(Standard::enter());
}

#[cfg(test)]
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod tests {
    use crossbeam_channel::unbounded;

    use super::{FLAGS, STANDARD, Standard, read, write};
    use crate::{Config, Embed, Engine, EventKind, Generate, ModelSource, Output, Probe, Reply, Request};
    use crate::{Sampling, Work};

    /// Rounds towards minus infinity, and flushes subnormal numbers to zero.
    #[cfg(target_arch = "x86_64")]
    const ODD: u32 = STANDARD | 1 << 15 | 1 << 6 | 1 << 13;
    #[cfg(target_arch = "aarch64")]
    const ODD: u64 = STANDARD | 1 << 24 | 0b10 << 22;

    fn in_odd_mode<T: Send>(work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                // SAFETY: a value without reserved bits.
                unsafe { write(ODD) };
                let result = work();
                let after = read();
                // SAFETY: as above.
                unsafe { write(STANDARD) };
                assert_eq!(after & !FLAGS, ODD, "the caller's environment is put back");
                result
            });
            thread.join().unwrap()
        })
    }

    #[test]
    fn the_environment_is_that_of_the_standard_and_then_that_of_before() {
        in_odd_mode(|| {
            let third = std::hint::black_box(1.0f32) / std::hint::black_box(3.0);
            let standard = Standard::enter();
            assert_eq!(read() & !FLAGS, STANDARD);
            let nearest = std::hint::black_box(1.0f32) / std::hint::black_box(3.0);
            let small = std::hint::black_box(f32::MIN_POSITIVE) / std::hint::black_box(2.0);
            assert!(small > 0.0, "numbers that are not normal are there");
            drop(standard);
            assert!(third < nearest, "{third} {nearest}");
            assert_eq!(std::hint::black_box(f32::MIN_POSITIVE) / std::hint::black_box(2.0), 0.0);
        });
    }

    /// Logits, a text, a drawn text and a vector.
    fn computed() -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut probe = Probe::open(&ModelSource::Builtin, 2).unwrap();
        let tokens: Vec<u32> = (0..40).map(|i| i * 7919 % 6144).collect();
        probe
            .extend_each(&tokens, |logits| bytes.extend(logits.iter().flat_map(|logit| logit.to_le_bytes())))
            .unwrap();
        let last = probe.extend(&[1, 2, 3]).unwrap().unwrap();
        bytes.extend(last.iter().flat_map(|logit| logit.to_le_bytes()));
        let engine = Engine::start(Config { threads: 2, nice: 0, ..Config::default() }).unwrap();
        let generate = |temperature| {
            Work::Generate(Generate {
                prompt: "What does VACUUM do?".to_owned(),
                max_tokens: 24,
                sampling: Sampling { temperature, seed: 7, ..Sampling::default() },
                stop: Vec::new(),
                ..Generate::default()
            })
        };
        let text = Embed::passage("An index is a structure.");
        for work in [generate(0.0), generate(0.9), Work::Embed(text)] {
            let (sender, events) = unbounded();
            let request = Request { key: 0, model: ModelSource::Builtin, salt: 0, dedup_key: None, work };
            engine.submit(request, Reply::new(sender));
            for event in events {
                match event.kind {
                    EventKind::Done(Output::Text { text, .. }) => bytes.extend(text.into_bytes()),
                    EventKind::Done(Output::Embedding(vector)) => {
                        bytes.extend(vector.iter().flat_map(|value| value.to_le_bytes()));
                    }
                    EventKind::Failed(error) => panic!("{error}"),
                    _ => {}
                }
            }
        }
        bytes
    }

    /// The engine's threads inherit the environment of the thread that starts it, and a probe computes on its
    /// caller's thread.
    #[test]
    fn no_byte_depends_on_the_environment_of_who_calls_the_engine() {
        let expected = computed();
        assert!(in_odd_mode(computed) == expected);
    }
}
