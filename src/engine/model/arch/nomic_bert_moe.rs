//! Nomic's BERT with a mixture of experts in every second block (nomic-embed-text 2).
//!
//! Reference:
//! [`modeling_hf_nomic_bert.py`](https://huggingface.co/nomic-ai/nomic-bert-2048/blob/main/modeling_hf_nomic_bert.py);
//! [Nussbaum and Duderstadt 2025](https://arxiv.org/abs/2502.07972).

use super::Family;
use super::bert::{ATTENTION_TENSORS, MODEL_TENSORS, PLAIN_TENSORS};
use super::nomic_bert::rotated;
use crate::Error;
use crate::kernels::routing::Weighting;
use crate::model::metadata::Metadata;
use crate::model::spec::{ModelSpec, TensorNames};

pub(super) const FAMILY: Family = Family { name: "nomic-bert-moe", spec };

const EXPERTS: &[&str] = &["ffn_gate_inp.weight", "ffn_up_exps.weight", "ffn_down_exps.weight"];

fn spec(metadata: &Metadata<'_>) -> Result<ModelSpec, Error> {
    let mut spec = rotated(metadata)?;
    let period = metadata.opt_size("moe_every_n_layers")?.unwrap_or(0);
    if period > 0 {
        let experts = metadata.experts(Weighting::Softmax)?;
        for block in spec.blocks.iter_mut().skip(1).step_by(period) {
            block.feed_forward.experts = Some(experts);
        }
    }
    spec.tensors = TensorNames { model: MODEL_TENSORS, block: &[ATTENTION_TENSORS, PLAIN_TENSORS, EXPERTS] };
    Ok(spec)
}
