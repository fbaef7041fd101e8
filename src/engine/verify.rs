//! Compares the two backends' results for the same tokens on the same file: logits of a short text, row by
//! row.
//!
//! They have little in common: the reading of the file and its specification, the widening of element types
//! that candle does not know, the angles of rotations. Packed weights, products, norms, attention and
//! feed-forward are each one's own. So a row that deviates by more than rounding says that one of the two is
//! wrong on this file or on this machine: kernels, packed weights that are no longer those of the file,
//! memory that loses bits.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::backend::BackendKind;
use crate::computing::{Loading, ModelLimits, Segment, WantedRows};
use crate::gguf::{GgmlType, Gguf};
use crate::kernels::Pool;
use crate::kernels::float_environment::Standard;
use crate::kernels::instructions::Instructions;
use crate::memory::{Ledger, watched};
use crate::tokenizer::Tokenizer;
use crate::{Error, ModelIdentity, ModelSource, model};

/// The text that is computed where none is given.
const TEXT: &str = include_str!("verify.txt");
/// Most tokens that are compared.
pub const MAX_POSITIONS: usize = 512;
/// Most bytes of a text; a token stands for one of them at least.
const MAX_TEXT_BYTES: usize = 64 << 10;
/// Tokens of a pass.
const PASS: usize = 32;
/// The purpose of the memory, as errors name it.
const VERIFICATION: &str = "the verification of a model";

/// The extent of a comparison.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verify {
    /// The text; None for one that comes with this crate.
    pub text: Option<String>,
    /// Its first tokens, so many at most: from 1 to [`MAX_POSITIONS`].
    pub positions: usize,
}

/// The deviations between the backends on a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verification {
    /// SHA-256 of the model's file.
    pub hash: [u8; 32],
    /// The element type that the bound is for: the coarsest of the matrices.
    pub quantization: String,
    /// The largest root mean square of a row's deviations that is accepted, in standard deviations of its
    /// logits.
    pub bound: f32,
    /// One for each token.
    pub rows: Vec<Deviation>,
}

/// The deviation between the backends' logits behind a token, in standard deviations of candle's logits in
/// that row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Deviation {
    /// The token's position.
    pub position: usize,
    /// Its text; bytes that are no UTF-8 are replaced.
    pub token: String,
    /// Root mean square.
    pub rms: f32,
    /// The largest.
    pub largest: f32,
    /// Whether both have the same most likely next token.
    pub same_choice: bool,
    /// Whether it is within the bound, and everything was a number.
    pub passed: bool,
}

impl Verification {
    /// Whether all rows are within the bound.
    pub fn passed(&self) -> bool {
        self.rows.iter().all(|row| row.passed)
    }
}

/// The resources of a verification.
pub(crate) struct Means<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) memory: &'a Arc<Ledger>,
    /// Asked now and then: once it says yes, it ends with [`Error::Stopped`].
    pub(crate) stop: &'a (dyn Fn() -> bool + Sync),
}

/// Compares the backends on a model, with so many threads.
///
/// # Errors
/// Errors of opening and loading the model, [`Error::UnsupportedModel`] for one that a backend does not
/// compute, [`Error::InvalidRequest`] for a text that is too long or a number of positions out of range.
pub fn verify(source: &ModelSource, what: &Verify, threads: usize) -> Result<Verification, Error> {
    let start: Arc<dyn Fn() + Send + Sync> = Arc::new(|| {});
    let pool =
        Pool::new(threads.max(1), Instructions::best(), &start).map_err(|error| Error::no_thread(&error))?;
    let memory = Arc::new(Ledger::default());
    verify_with(source, what, &Means { pool: &pool, memory: &memory, stop: &|| false }, &mut |_, _| {})
}

/// As [`verify`]; `started` is told which model it is, and how many tokens are compared.
///
/// # Errors
/// As [`verify`]; [`Error::OutOfMemory`], [`Error::Stopped`].
pub(crate) fn verify_with(
    source: &ModelSource,
    what: &Verify,
    means: &Means<'_>,
    started: &mut dyn FnMut(ModelIdentity, usize),
) -> Result<Verification, Error> {
    let _standard = Standard::enter();
    check(what)?;
    let file = match source {
        ModelSource::Builtin => None,
        ModelSource::File(path) => ModelIdentity::file_of(path).ok(),
    };
    let gguf = source.open()?;
    if model::is_encoder(&gguf)? {
        return Err(gguf.unsupported("it is an encoder, and only decoders can be verified"));
    }
    let context_length = model::spec(&gguf)?.context_length;
    let text = what.text.as_deref().unwrap_or(TEXT);
    let (tokenizer, tokens) = watched(VERIFICATION, 64 * text.len() + (1 << 20), || {
        let tokenizer = Tokenizer::from_gguf(&gguf)?;
        let mut tokens = tokenizer.encode(text)?;
        if let Some(bos) = tokenizer.bos()
            && tokens.first() != Some(&bos)
        {
            tokens.insert(0, bos);
        }
        tokens.truncate(what.positions.min(context_length));
        Ok::<_, Error>((tokenizer, tokens))
    })??;
    if tokens.is_empty() {
        return Err(Error::UnreadableText { reason: "it has no tokens".to_owned() });
    }
    let identity = ModelIdentity::of(source, &gguf, file, means.stop)?;
    started(identity, tokens.len());
    let limits = ModelLimits { rows: PASS, wanted: 1, threads: means.pool.threads() };
    let mut needed = gguf.metadata_bytes().saturating_mul(4);
    for backend in [BackendKind::default(), BackendKind::Candle] {
        needed = needed.max(backend.open(false).bytes(&gguf, limits)?);
    }
    let logits = tokens.len().saturating_mul(tokenizer.vocab_size()).saturating_mul(size_of::<f32>());
    let _held = means.memory.hold(needed.saturating_add(logits as u64), VERIFICATION)?;
    // The one before the other, so that one of them is in memory at a time.
    let mut native = Vec::new();
    crate::memory::try_grow(VERIFICATION, &mut native, logits / size_of::<f32>())?;
    let choices = tokenizer.vocab_size();
    compute(BackendKind::default(), &gguf, &tokens, limits, means, &mut |_, logits| {
        native.extend_from_slice(&logits[..choices.min(logits.len())]);
    })?;
    let (quantization, bound) = bound(&gguf);
    let mut rows = Vec::with_capacity(tokens.len());
    compute(BackendKind::Candle, &gguf, &tokens, limits, means, &mut |position, logits| {
        let logits = &logits[..choices.min(logits.len())];
        let native = &native[position * logits.len()..(position + 1) * logits.len()];
        let token = tokens[position];
        let token = match tokenizer.special_text(token) {
            Some(special) => special.to_owned(),
            None => String::from_utf8_lossy(tokenizer.token_bytes(token)).into_owned(),
        };
        rows.push(Deviation { position, token, ..compare(native, logits, bound) });
    })?;
    Ok(Verification { hash: identity.hash, quantization, bound, rows })
}

/// Refuses what makes no sense.
///
/// # Errors
/// [`Error::InvalidRequest`].
pub(crate) fn check(what: &Verify) -> Result<(), Error> {
    if !(1..=MAX_POSITIONS).contains(&what.positions) {
        return Err(Error::InvalidRequest(format!("positions is not between 1 and {MAX_POSITIONS}")));
    }
    if what.text.as_ref().is_some_and(|text| text.len() > MAX_TEXT_BYTES) {
        return Err(Error::InvalidRequest("the text is longer than 64 KB".to_owned()));
    }
    Ok(())
}

/// Computes the logits behind each token.
fn compute(
    backend: BackendKind,
    gguf: &Gguf,
    tokens: &[u32],
    limits: ModelLimits,
    means: &Means<'_>,
    each: &mut dyn FnMut(usize, &[f32]),
) -> Result<(), Error> {
    let loading = Loading { pool: means.pool, stop: means.stop };
    let mut decoder = backend.open(false).decoder(gguf, limits, &loading)?;
    let vocabulary = decoder.facts().vocabulary;
    if let Some(token) = tokens.iter().find(|token| **token as usize >= vocabulary) {
        return Err(gguf.corrupt(format!("token {token} has no embedding")));
    }
    let mut state = decoder.new_state();
    for pass in tokens.chunks(PASS) {
        let start = state.len();
        state.reserve(start + pass.len())?;
        let mut segments =
            [Segment { state: &mut *state, tokens: pass, wanted: WantedRows::All, fault: None }];
        if !decoder.forward(&mut segments, means.pool, means.stop)? {
            return Err(Error::Stopped);
        }
        for row in 0..pass.len() {
            each(start + row, decoder.logits(&[row], means.pool)?);
        }
    }
    decoder.check_lost()
}

fn compare(native: &[f32], candle: &[f32], bound: f32) -> Deviation {
    let count = candle.len() as f64;
    let mean = candle.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
    let variance =
        candle.iter().map(|x| (f64::from(*x) - mean) * (f64::from(*x) - mean)).sum::<f64>() / count;
    let apart = || native.iter().zip(candle).map(|(a, b)| f64::from(*a) - f64::from(*b));
    // Logits that are all alike are apart by nothing or by anything.
    let unit = variance.sqrt().max(f64::MIN_POSITIVE);
    let rms = (apart().map(|x| x * x).sum::<f64>() / count).sqrt() / unit;
    let largest = apart().map(f64::abs).fold(0.0, f64::max) / unit;
    let choice = |logits: &[f32]| {
        let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        logits.iter().position(|logit| *logit == best)
    };
    let finite = native.iter().chain(candle).all(|x| x.is_finite());
    Deviation {
        position: 0,
        token: String::new(),
        rms: rms as f32,
        largest: largest as f32,
        same_choice: choice(native) == choice(candle),
        passed: finite && rms <= f64::from(bound),
    }
}

/// The coarsest element type of the matrices, and what deviations may be because of it. With floating-point
/// weights both round sums, and one of them keys and values to 16 bits. With the others both round
/// activations to 8 bits, each a little otherwise, so that they are as far from each other as from what is
/// exact; the coarser the weights, the more of a model's small outputs is rounding.
fn bound(gguf: &Gguf) -> (String, f32) {
    let of = |kind: GgmlType| match kind {
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => FLOATS,
        GgmlType::Q8_0 | GgmlType::Q6_K | GgmlType::Q5_K | GgmlType::Q5_0 | GgmlType::Q5_1 => FINE,
        _ => COARSE,
    };
    let matrices = gguf.tensors().filter(|tensor| tensor.shape.len() > 1);
    let coarsest = matrices.map(|tensor| tensor.kind).max_by(|a, b| of(*a).total_cmp(&of(*b)));
    let coarsest = coarsest.unwrap_or(GgmlType::F32);
    (coarsest.to_string(), of(coarsest))
}

/// Bounds of [`Verification::bound`]. Measured at most: 0.16 with Q4_1 and 0.11 with Q4_K, on real weights;
/// 0.04 with Q8_0.
const FLOATS: f32 = 0.005;
const FINE: f32 = 0.15;
const COARSE: f32 = 0.3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviations_are_counted_in_standard_deviations_and_what_is_no_number_never_passes() {
        let candle: Vec<f32> = (0..1000).map(|i| ((i * 7919) % 2003) as f32 / 100.0).collect();
        let mean = candle.iter().sum::<f32>() / 1000.0;
        let deviation = (candle.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / 1000.0).sqrt();
        let moved: Vec<f32> = candle.iter().map(|x| x + 0.25 * deviation).collect();
        let found = compare(&moved, &candle, 0.2);
        assert!((found.rms - 0.25).abs() < 1e-3 && (found.largest - 0.25).abs() < 1e-3, "{found:?}");
        assert!(found.same_choice && !found.passed);
        assert!(compare(&moved, &candle, 0.3).passed);
        let mut broken = candle.clone();
        broken[500] = f32::NAN;
        assert!(!compare(&broken, &candle, 0.3).passed && !compare(&candle, &broken, 0.3).passed);
        assert!(compare(&[1.0; 4], &[1.0; 4], 0.1).passed && !compare(&[1.0; 4], &[1.5; 4], 0.1).passed);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let of = |positions| Verify { text: None, positions };
        for refused in [of(0), of(MAX_POSITIONS + 1), Verify { text: Some(" ".repeat(70_000)), positions: 1 }]
        {
            assert!(matches!(check(&refused), Err(Error::InvalidRequest(_))));
        }
        assert!(check(&of(1)).is_ok() && check(&of(MAX_POSITIONS)).is_ok());
    }
}
