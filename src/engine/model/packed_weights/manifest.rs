//! The manifest: the tensors that are repacked, the places of their panels, and the head of a file of panels.
//!
//! The head is never parsed: the head that belongs to the model's file is made anew and compared byte by
//! byte, so that no length or offset in a file of panels is ever believed.
//!
//! ```text
//! key        magic, version, identity of the model's file, each tensor's name, shape, layout and offset
//! sums       CRC-32 of each tensor's panels, then of key and sums
//! padding    to a multiple of 4,096
//! panels     each tensor at a multiple of 64 bytes
//! ```

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::arch::is_encoder;
use super::panel_format;
use crate::computing::Loading;
use crate::gguf::Gguf;
use crate::kernels::matrix::{Format, Packed, fingerprint};
use crate::mapping::FileId;

/// Changes when the head does; layouts of panels have fingerprints of their own.
const VERSION: u32 = 1;
const MAGIC: &[u8; 8] = b"STPANELS";
const PAGE: usize = 4096;

/// A tensor to be repacked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PackedEntry {
    pub(super) name: String,
    pub(super) format: Format,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    /// The offset of its panels from the first tensor's.
    pub(super) offset: usize,
}

impl PackedEntry {
    /// Bytes of its panels, whole cache lines.
    pub(super) fn size(&self) -> usize {
        Packed::size(self.format, self.inputs, self.outputs)
    }
}

/// All tensors to be repacked, in the order of the file.
#[derive(Debug)]
pub(super) struct Manifest {
    pub(super) entries: Vec<PackedEntry>,
    by_name: HashMap<String, usize>,
    bytes: usize,
}

impl Manifest {
    /// The matrices that a model multiplies, of types that have panels. The token embedding is one of them
    /// where it is the head too.
    pub(super) fn of(gguf: &Gguf) -> Manifest {
        let encoder = is_encoder(gguf).unwrap_or(false);
        let tied = !encoder && !gguf.tensors().any(|tensor| tensor.name == "output.weight");
        let mut manifest = Manifest { entries: Vec::new(), by_name: HashMap::new(), bytes: 0 };
        for tensor in gguf.tensors() {
            let multiplied = match tensor.name {
                "output.weight"
                | "per_layer_model_proj.weight"
                | "altup_proj.weight"
                | "altup_unembd_proj.weight" => true,
                "token_embd.weight" => tied,
                "cls.weight" | "cls.output.weight" | "dense_2.weight" | "dense_3.weight" => encoder,
                // Convolutions and the few coefficients of streams have kernels of their own, and layers that
                // predict further ahead are not computed.
                name if [".nextn.", ".ssm_conv1d.", ".ssm_norm.", ".conv.", ".altup_"]
                    .iter()
                    .any(|part| name.contains(part)) =>
                {
                    false
                }
                name => name.starts_with("blk.") && name.ends_with(".weight"),
            };
            let (Some(format), true) = (panel_format(tensor.kind), multiplied) else { continue };
            let (inputs, outputs) = match tensor.shape {
                [inputs, outputs, rest @ ..] if rest.iter().all(|length| *length == 1) => (*inputs, *outputs),
                // The rows of all experts or of all streams, one after the other.
                [inputs, outputs, count]
                    if tensor.name.ends_with("_exps.weight") || tensor.name.starts_with("altup_") =>
                {
                    (*inputs, outputs * count)
                }
                _ => continue,
            };
            if !inputs.is_multiple_of(format.block()) {
                continue;
            }
            let (name, offset) = (tensor.name.to_owned(), manifest.bytes);
            // Panels are not much larger than the tensors that they are made of, which fit into memory.
            manifest.bytes = manifest.bytes.saturating_add(Packed::size(format, inputs, outputs));
            manifest.by_name.insert(name.clone(), manifest.entries.len());
            manifest.entries.push(PackedEntry { name, format, inputs, outputs, offset });
        }
        manifest
    }

    pub(super) fn entry(&self, name: &str) -> Option<&PackedEntry> {
        self.entries.get(*self.by_name.get(name)?)
    }

    /// Bytes of all panels.
    pub(super) fn panel_bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of a file with these panels.
    pub(super) fn size(&self, key: &[u8]) -> usize {
        head_len(key, self.entries.len()).saturating_add(self.bytes)
    }

    /// The head of a file of these panels.
    pub(super) fn key(&self, id: &FileId) -> Vec<u8> {
        let mut fingerprints: Vec<(Format, u32)> = Vec::new();
        let mut key = MAGIC.to_vec();
        key.extend(VERSION.to_le_bytes());
        for number in [id.device, id.inode, id.size, id.modified_s as u64, id.modified_ns as u64] {
            key.extend(number.to_le_bytes());
        }
        key.extend((self.entries.len() as u64).to_le_bytes());
        for entry in &self.entries {
            let known = fingerprints.iter().find(|(format, _)| *format == entry.format);
            let layout = known.map_or_else(|| fingerprint(entry.format), |(_, layout)| *layout);
            if known.is_none() {
                fingerprints.push((entry.format, layout));
            }
            key.extend((entry.name.len() as u64).to_le_bytes());
            key.extend(entry.name.as_bytes());
            key.extend(layout.to_le_bytes());
            for number in [entry.inputs, entry.outputs, entry.offset] {
                key.extend((number as u64).to_le_bytes());
            }
        }
        key
    }

    /// The checksums in the head of a file that has this key.
    pub(super) fn sums<'a>(&'a self, key: &[u8], file: &'a [u8]) -> impl Iterator<Item = u32> + 'a {
        let sums = file.get(key.len()..).unwrap_or_default();
        sums.as_chunks::<4>().0.iter().take(self.entries.len()).map(|sum| u32::from_le_bytes(*sum))
    }

    /// Whether the panels in a file are those whose checksums are in its head.
    pub(super) fn verify(&self, key: &[u8], file: &[u8], loading: &Loading<'_>) -> bool {
        let start = head_len(key, self.entries.len());
        let sums: Vec<u32> = self.sums(key, file).collect();
        let sound = AtomicBool::new(sums.len() == self.entries.len());
        loading.pool.run(sums.len(), usize::MAX, &|_, index| {
            let entry = &self.entries[index];
            let panels = file.get(start + entry.offset..).and_then(|rest| rest.get(..entry.size()));
            if panels.is_none_or(|panels| crc32fast::hash(panels) != sums[index]) {
                sound.store(false, Ordering::Relaxed);
            }
        });
        sound.into_inner()
    }
}

/// Bytes before the first panel.
pub(super) fn head_len(key: &[u8], entries: usize) -> usize {
    (key.len() + 4 * entries + 4).next_multiple_of(PAGE)
}

/// The head of a file: the key, the tensors' checksums, and that of both, padded.
pub(super) fn head(key: &[u8], sums: &[u32]) -> Vec<u8> {
    let mut head = key.to_vec();
    head.extend(sums.iter().flat_map(|sum| sum.to_le_bytes()));
    head.extend(crc32fast::hash(&head).to_le_bytes());
    head.resize(head_len(key, sums.len()), 0);
    head
}

/// Whether a file begins with the head that belongs to this key, and its checksums are as they were written.
pub(super) fn has_head(file: &[u8], key: &[u8], entries: usize) -> bool {
    let length = key.len() + 4 * entries;
    let Some((checked, rest)) = file.split_at_checked(length) else { return false };
    checked.starts_with(key) && rest.first_chunk::<4>() == Some(&crc32fast::hash(checked).to_le_bytes())
}
