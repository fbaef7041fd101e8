//! The additions of adapters (LoRA) to products and to embeddings.
//!
//! For a matrix `W` `[outputs, inputs]` an adapter has `A` `[rank, inputs]` and `B` `[outputs, rank]`, and `W
//! x` becomes `W x + scale · B (A x)`, where the scale is alpha / rank. `W` stays as it is, once for all
//! tasks: rows of one product may be of different tasks. In files `A` is `NAME.lora_a` and `B` is
//! `NAME.lora_b`, behind the name of the tensor that they adapt.
//!
//! Reference: [Hu et al. 2021](https://arxiv.org/abs/2106.09685).
//!
//! Invariant: what is added to a row depends on the row and on its adapter alone, and a row without one stays
//! as it is, byte by byte.

use std::ops::Range;
use std::sync::Arc;

use super::tensors::expect_shape;
use super::weights::Matrix;
use crate::Error;
use crate::adapters::{self, Adapter};
use crate::gguf::{GgmlType, Gguf, Tensor};
use crate::kernels::Pool;
use crate::kernels::instructions::Instructions;
use crate::kernels::matrix::each_row;
use crate::kernels::norm::dot;
use crate::kernels::swiglu::add_scaled;
use crate::memory::try_vec;

/// The adapter of a row that has none, among those of other rows.
pub(super) const NO_ADAPTER: u16 = u16::MAX;

/// Most rows of an `A`. Published ones have 4 to 64.
const MAX_RANK: usize = 256;
/// The purpose of the memory, as errors state it.
const WHAT: &str = "the adapters of a model";

/// The ends of the names of an adapter's tensors. The last one is `B` row by row of what it is multiplied
/// with, `[width, rank]` in GGML's order, as transformers store that of an embedding.
const A: &str = ".lora_a";
const B: &str = ".lora_b";
const B_ROWS: &str = ".lora_b_rows";

/// The tensors of blocks that can be adapted, behind `blk.N.`.
const OF_BLOCKS: &[&str] = &[
    "attn_q.weight",
    "attn_k.weight",
    "attn_v.weight",
    "attn_qkv.weight",
    "attn_output.weight",
    "ffn_up.weight",
    "ffn_down.weight",
];
/// The tensors outside of blocks that can be adapted.
const OF_MODEL: &[&str] = &["token_embd.weight", "token_types.weight"];

/// The addition of an adapter to the products of one matrix.
#[derive(Clone)]
struct Lora {
    inputs: usize,
    outputs: usize,
    scale: f32,
    /// `[rank, inputs]`.
    a: Arc<Vec<f32>>,
    /// `[rank, outputs]`, a row for each row of `a`.
    b: Vec<f32>,
}

/// The addition of each adapter of a model to the products of one matrix; empty where no adapter changes it.
#[derive(Clone, Default)]
pub(super) struct Loras(Vec<Option<Lora>>);

/// The embeddings of a model as an adapter changes them.
pub(super) struct AdaptedEmbeddings {
    /// A row `[rank]` for each token, and what that is multiplied with: `[rank, width]`, scaled.
    tokens: Option<(Matrix, Vec<f32>)>,
    /// Embeddings `[width]` of the first and the second text of a pair.
    pub(super) types: [Vec<f32>; 2],
}

impl Loras {
    /// Loads the additions of a model's adapters to its matrix `name`, `[outputs, inputs]`.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] and [`Error::UnsupportedModel`], naming the tensor; [`Error::OutOfMemory`].
    pub(super) fn load(gguf: &Gguf, name: &str, inputs: usize, outputs: usize) -> Result<Loras, Error> {
        let adapters = adapters::list(gguf)?;
        let loras: Vec<Option<Lora>> = adapters
            .iter()
            .map(|adapter| Lora::load(adapter, name, inputs, outputs))
            .collect::<Result<_, _>>()?;
        Ok(Loras(if loras.iter().all(Option::is_none) { Vec::new() } else { loras }))
    }

    /// The additions to some outputs of the matrix only.
    pub(super) fn part(&self, outputs: Range<usize>) -> Loras {
        let part = |lora: &Lora| Lora {
            inputs: lora.inputs,
            outputs: outputs.len(),
            scale: lora.scale,
            a: Arc::clone(&lora.a),
            b: lora.b.chunks_exact(lora.outputs).flat_map(|row| row[outputs.clone()].to_vec()).collect(),
        };
        Loras(self.0.iter().map(|lora| lora.as_ref().map(part)).collect())
    }

    /// Adds to each row of `y` `[rows, outputs]` what the row's adapter makes of its row of `x` `[rows,
    /// inputs]`. `of_rows` has the adapter of each row, or nothing where no row has one.
    pub(super) fn add(&self, of_rows: &[u16], x: &[f32], y: &mut [f32], pool: &Pool) {
        let Some(any) = self.0.iter().flatten().next().filter(|_| !of_rows.is_empty()) else { return };
        let (inputs, outputs, instructions) = (any.inputs, any.outputs, pool.instructions());
        each_row(y, outputs, pool, &|row, y| {
            if let Some(Some(lora)) = self.0.get(usize::from(of_rows[row])) {
                lora.add(instructions, &x[row * inputs..(row + 1) * inputs], y);
            }
        });
    }
}

impl Lora {
    /// Loads the addition of an adapter to a matrix, if it has one.
    fn load(adapter: &Adapter<'_>, name: &str, inputs: usize, outputs: usize) -> Result<Option<Lora>, Error> {
        let Some((a, b, rank)) = halves(adapter, name)? else { return Ok(None) };
        expect_shape(adapter.gguf, &a, &[inputs, rank])?;
        expect_shape(adapter.gguf, &b, &[rank, outputs])?;
        let a = Arc::new(values(adapter.gguf, &a)?);
        let b = turned(&values(adapter.gguf, &b)?, rank, outputs)?;
        Ok(Some(Lora { inputs, outputs, scale: adapter.alpha / rank as f32, a, b }))
    }

    /// `y += scale · B (A x)` of one row.
    fn add(&self, instructions: Instructions, x: &[f32], y: &mut [f32]) {
        for (a, b) in self.a.chunks_exact(self.inputs).zip(self.b.chunks_exact(self.outputs)) {
            add_scaled(instructions, y, b, self.scale * dot(instructions, a, x));
        }
    }

    /// Adds what the adapter adds to row `output` of the matrix itself.
    fn add_to_weight(&self, instructions: Instructions, output: usize, row: &mut [f32]) {
        for (a, b) in self.a.chunks_exact(self.inputs).zip(self.b.chunks_exact(self.outputs)) {
            add_scaled(instructions, row, a, self.scale * b[output]);
        }
    }
}

impl AdaptedEmbeddings {
    /// Loads the embeddings for each adapter of a model whose table of tokens has `vocabulary` rows, and
    /// whose pairs have embeddings `types`, of which the file has `type_count`.
    ///
    /// # Errors
    /// As [`Loras::load`].
    pub(super) fn load_all(
        gguf: &Gguf,
        vocabulary: usize,
        types: &[Vec<f32>; 2],
        type_count: usize,
    ) -> Result<Vec<AdaptedEmbeddings>, Error> {
        let width = types[0].len();
        let adapters = adapters::list(gguf)?;
        let embeddings = adapters.iter().map(|adapter| {
            let mut types = types.clone();
            if let Some(lora) = Lora::load(adapter, "token_types.weight", width, type_count)? {
                // The result is the same for all instructions.
                for (index, row) in types.iter_mut().enumerate().take(type_count) {
                    lora.add_to_weight(Instructions::best(), index, row);
                }
            }
            Ok(AdaptedEmbeddings { tokens: tokens(adapter, vocabulary, width)?, types })
        });
        embeddings.collect()
    }

    /// Adds to the embedding `[width]` of a token what the adapter has for it.
    pub(super) fn add(&self, instructions: Instructions, token: usize, x: &mut [f32]) {
        let Some((table, rows)) = &self.tokens else { return };
        let mut factors = [0.0; MAX_RANK];
        let factors = &mut factors[..table.inputs()];
        table.row(token, factors);
        for (factor, row) in factors.iter().zip(rows.chunks_exact(x.len())) {
            add_scaled(instructions, x, row, *factor);
        }
    }
}

/// The addition of an adapter to the embeddings of tokens, if it has one.
fn tokens(
    adapter: &Adapter<'_>,
    vocabulary: usize,
    width: usize,
) -> Result<Option<(Matrix, Vec<f32>)>, Error> {
    const NAME: &str = "token_embd.weight";
    let Adapter { gguf, prefix, .. } = adapter;
    let Some((a, b, rank)) = halves(adapter, NAME)? else { return Ok(None) };
    // A token chooses a row of this half, which stands where that of a product has its columns.
    let table = Matrix::load(gguf, a.name, rank, vocabulary)?;
    let mut rows = if b.name.strip_prefix(&**prefix).is_some_and(|name| name.ends_with(B_ROWS)) {
        expect_shape(gguf, &b, &[width, rank])?;
        values(gguf, &b)?
    } else {
        expect_shape(gguf, &b, &[rank, width])?;
        turned(&values(gguf, &b)?, rank, width)?
    };
    let scale = adapter.alpha / rank as f32;
    rows.iter_mut().for_each(|value| *value *= scale);
    Ok(Some((table, rows)))
}

/// Both halves of an adapter's addition to a tensor, and their rank, if it has one.
fn halves<'a>(adapter: &Adapter<'a>, name: &str) -> Result<Option<(Tensor<'a>, Tensor<'a>, usize)>, Error> {
    let Adapter { gguf, prefix, .. } = adapter;
    let tensor = |end: &str| gguf.opt_tensor(&format!("{prefix}{name}{end}"));
    let b = match tensor(B)? {
        Some(b) => Some(b),
        None => tensor(B_ROWS)?,
    };
    let (a, b) = match (tensor(A)?, b) {
        (None, None) => return Ok(None),
        (Some(a), Some(b)) => (a, b),
        (a, _) => {
            let missing = if a.is_some() { B } else { A };
            return Err(gguf.corrupt(format!("tensor \"{prefix}{name}{missing}\" is missing")));
        }
    };
    // The `A` of the table of tokens has the rank first, that of a product has it behind the inputs.
    let rank = match (name, a.shape) {
        ("token_embd.weight", [rank, ..]) | (_, [_, rank, ..]) => *rank,
        _ => 1,
    };
    if rank == 0 || rank > MAX_RANK {
        return Err(gguf
            .unsupported(format!("tensor \"{}\" has the rank {rank}, at most {MAX_RANK} is read", a.name)));
    }
    Ok(Some((a, b, rank)))
}

/// The values of a tensor.
fn values(gguf: &Gguf, tensor: &Tensor<'_>) -> Result<Vec<f32>, Error> {
    let format = match (tensor.kind, super::format(tensor.kind)) {
        (GgmlType::F32 | GgmlType::F16 | GgmlType::BF16, Some(format)) => format,
        (other, _) => {
            return Err(gguf.unsupported(format!("tensor \"{}\" has the element type {other}", tensor.name)));
        }
    };
    let count = tensor.shape.iter().product();
    let mut values = try_vec(WHAT, count)?;
    values.resize(count, 0.0);
    format.dequantize_row(tensor.data, &mut values);
    Ok(values)
}

/// `[rows, rank]` as `[rank, rows]`.
fn turned(values: &[f32], rank: usize, rows: usize) -> Result<Vec<f32>, Error> {
    let mut turned = try_vec(WHAT, values.len())?;
    turned.resize(values.len(), 0.0);
    for (at, value) in values.iter().enumerate() {
        turned[at % rank * rows + at / rank] = *value;
    }
    Ok(turned)
}

/// Refuses tensors of adapters that would be left out: those that adapt nothing that the model has, or
/// nothing that can be adapted.
///
/// # Errors
/// [`Error::UnsupportedModel`], naming the tensor.
pub(super) fn refuse_unknown_tensors(gguf: &Gguf) -> Result<(), Error> {
    for Adapter { gguf: file, prefix, .. } in adapters::list(gguf)? {
        for tensor in file.tensors() {
            let Some(name) = tensor.name.strip_prefix(&*prefix) else { continue };
            let adapted = [A, B, B_ROWS].iter().find_map(|end| name.strip_suffix(end));
            let has_place = |adapted: &&str| {
                let of_block = adapted.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
                OF_MODEL.contains(adapted) || of_block.is_some_and(|(_, part)| OF_BLOCKS.contains(&part))
            };
            let adapted = adapted.filter(has_place);
            let exists = adapted.map(|adapted| gguf.opt_tensor(adapted)).transpose()?.flatten().is_some();
            if !exists {
                return Err(
                    file.unsupported(format!("tensor \"{}\" adapts nothing of the model", tensor.name))
                );
            }
        }
    }
    Ok(())
}

/// Bytes that the adapters of a model take beside what their files do.
pub(super) fn bytes(gguf: &Gguf) -> u64 {
    let elements = |tensor: Tensor<'_>| tensor.shape.iter().map(|extent| *extent as u64).product::<u64>();
    let of = |file: &Gguf, prefix: &str| -> u64 {
        let tensors = file.tensors().filter(|tensor| tensor.name.starts_with(prefix));
        tensors.map(elements).fold(0, u64::saturating_add).saturating_mul(size_of::<f32>() as u64)
    };
    let adapters = adapters::list(gguf).unwrap_or_default();
    adapters.iter().map(|adapter| of(adapter.gguf, &adapter.prefix)).fold(0, u64::saturating_add)
}
