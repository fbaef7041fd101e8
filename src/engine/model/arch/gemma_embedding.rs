//! EmbeddingGemma: Gemma 3 whose tokens see each other both ways, with two linear layers behind the mean of a
//! text.
//!
//! Files that llama.cpp's converter wrote without `--sentence-transformers-dense-modules` lack the two
//! layers, and so do their vectors.
//!
//! Reference:
//! [`modeling_gemma3.py`](https://github.com/huggingface/transformers/blob/main/src/transformers/models/gemma3/modeling_gemma3.py)
//! of transformers with `use_bidirectional_attention`; [Vera et al. 2025](https://arxiv.org/abs/2509.20354).

use super::{Family, gemma3};
use crate::Error;
use crate::model::metadata::Metadata;
use crate::model::spec::{HeadActivation, HeadSpec, Kind, ModelSpec, Pooling, Span};

pub(super) const FAMILY: Family = Family { name: "gemma-embedding", spec };

const MODEL_TENSORS: &[&str] =
    &["token_embd.weight", "output_norm.weight", "dense_2.weight", "dense_3.weight"];

fn spec(metadata: &Metadata<'_>) -> Result<ModelSpec, Error> {
    let mut spec = gemma3::common(metadata)?;
    let Kind::Decoder { embedding_scale, output_norm, .. } = spec.kind else {
        return Err(metadata.gguf.unsupported("it is no decoder"));
    };
    for block in &mut spec.blocks {
        block.attention.span = match block.attention.span {
            // Half of the window on each side.
            Span::Window(window) => Span::Near(window / 2),
            _ => Span::BothWays,
        };
    }
    spec.kind = Kind::Encoder {
        embedding_scale,
        embedding_norm: None,
        positions: false,
        output_norm: Some(output_norm),
        projections: projections(metadata, spec.width)?,
        head: HeadSpec { pooling: Pooling::Mean, activation: HeadActivation::Tanh },
    };
    spec.pooling = metadata.pooling(Pooling::Mean, Pooling::Mean)?;
    spec.tensors.model = MODEL_TENSORS;
    Ok(spec)
}

/// The length between the two layers, where the file has them.
fn projections(metadata: &Metadata<'_>, width: usize) -> Result<Option<usize>, Error> {
    let gguf = metadata.gguf;
    let mut lengths = [None; 4];
    let names = ["dense_2_feat_in", "dense_2_feat_out", "dense_3_feat_in", "dense_3_feat_out"];
    for (length, name) in lengths.iter_mut().zip(names) {
        *length = metadata.opt_size(name)?;
    }
    let there = [gguf.opt_tensor("dense_2.weight")?.is_some(), gguf.opt_tensor("dense_3.weight")?.is_some()];
    match (there, lengths) {
        ([false, false], _) => Ok(None),
        ([true, true], [Some(first), Some(inner), Some(again), Some(last)])
            if first == width && inner == again && last == width =>
        {
            Ok(Some(inner))
        }
        _ => Err(gguf.corrupt(format!(
            "tensors \"dense_2.weight\" and \"dense_3.weight\" are no two layers from and to a width of {width}"
        ))),
    }
}
