//! The head of a cross-encoder: scores from the hidden state of a text.
//!
//! `cls` is BERT's pooler, a linear layer with an activation; `cls.output` is the classifier behind it. Files
//! have one of them or both.

use super::super::layers::{Dense, Norm};
use super::super::packed_weights::PackedWeights;
use super::super::spec::{HeadActivation, HeadSpec};
use crate::Error;
use crate::gguf::Gguf;
use crate::kernels::Pool;
use crate::kernels::gelu::{gelu, tanh};
use crate::kernels::matrix::Activations;

/// Most labels that a classifier may tell apart.
const MAX_OUTPUTS: usize = 1024;

/// Pooler and classifier.
pub(super) struct EncoderHead {
    /// `[width, width]`; `[outputs, width]` where there is no classifier behind it.
    pooler: Option<Dense>,
    /// The norm behind the pooler where its activation is GELU; otherwise the activation is the hyperbolic
    /// tangent.
    norm: Option<Norm>,
    /// `[outputs, width]`.
    classifier: Option<Dense>,
}

impl EncoderHead {
    /// The head of the file, if it has one.
    ///
    /// # Errors
    /// As [`Dense::load`].
    pub(super) fn load(
        gguf: &Gguf,
        packed: Option<&PackedWeights>,
        spec: HeadSpec,
        width: usize,
    ) -> Result<Option<EncoderHead>, Error> {
        let classified = gguf.opt_tensor("cls.output.weight")?.is_some();
        let dense = |name: &str, wanted: Option<usize>| -> Result<Option<Dense>, Error> {
            let Some(tensor) = gguf.opt_tensor(&format!("{name}.weight"))? else { return Ok(None) };
            let outputs = wanted.unwrap_or_else(|| tensor.shape.get(1).copied().unwrap_or(1));
            if wanted.is_none() && outputs > MAX_OUTPUTS {
                return Err(gguf.unsupported(format!("tensor \"{name}.weight\" has {outputs} rows")));
            }
            Ok(Some(Dense::load(gguf, packed, name, width, outputs)?.with_bias()))
        };
        let pooler = dense("cls", classified.then_some(width))?;
        let classifier = dense("cls.output", None)?;
        let norm = match spec.activation {
            HeadActivation::GeluNorm(norm) if pooler.is_some() => {
                Some(Norm::load(gguf, "cls.norm", norm, width)?)
            }
            _ => None,
        };
        Ok((pooler.is_some() || classifier.is_some()).then_some(EncoderHead { pooler, norm, classifier }))
    }

    /// Number of scores of each text.
    pub(super) fn outputs(&self) -> usize {
        let last = self.classifier.as_ref().or(self.pooler.as_ref());
        last.map_or(0, |dense| dense.weight.outputs())
    }

    /// The scores `[states, outputs]` for some hidden states `[states, width]`.
    pub(super) fn scores(&self, mut states: Vec<f32>, scratch: &mut Activations, pool: &Pool) -> Vec<f32> {
        let mut apply = |dense: &Dense, states: &mut Vec<f32>| {
            let outputs = dense.weight.outputs();
            let rows = states.len() / dense.weight.inputs();
            let mut results = vec![0.0; rows * outputs];
            dense.weight.multiply(states, None, &mut results, scratch, pool);
            results.chunks_exact_mut(outputs).for_each(|row| dense.add_bias(pool.instructions(), row));
            *states = results;
        };
        if let Some(pooler) = &self.pooler {
            apply(pooler, &mut states);
            match &self.norm {
                None => tanh(pool.instructions(), &mut states),
                Some(norm) => {
                    let no_bias = vec![0.0; pooler.weight.outputs()];
                    for state in states.chunks_exact_mut(no_bias.len()) {
                        gelu(pool.instructions(), state, &no_bias);
                        // A value that is not finite stays so, and is noticed in the scores.
                        norm.apply_in_place(pool.instructions(), state);
                    }
                }
            }
        }
        if let Some(classifier) = &self.classifier {
            apply(classifier, &mut states);
        }
        states
    }
}
