//! Jina's XLM-RoBERTa with rotated positions (jina-embeddings-v3), with or without its adapters, one for each
//! task.
//!
//! Reference:
//! [`modeling_xlm_roberta.py`](https://huggingface.co/jinaai/xlm-roberta-flash-implementation/blob/main/modeling_xlm_roberta.py),
//! [`modeling_lora.py`](https://huggingface.co/jinaai/xlm-roberta-flash-implementation/blob/main/modeling_lora.py);
//! [Sturua et al. 2024](https://arxiv.org/abs/2409.10173).

use super::Family;
use super::nomic_bert::rotated;
use crate::Error;
use crate::model::metadata::Metadata;
use crate::model::spec::ModelSpec;

pub(super) const FAMILY: Family = Family { name: "jina-bert-v3", spec };

fn spec(metadata: &Metadata<'_>) -> Result<ModelSpec, Error> {
    metadata.refuse_experts()?;
    rotated(metadata)
}
