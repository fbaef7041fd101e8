//! Repacking all tensors of a manifest on all threads, piece by piece.
//!
//! Pages of the model's file are released as soon as they were read, so that weights are in memory once.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use super::manifest::Manifest;
use crate::computing::Loading;
use crate::gguf::Gguf;
use crate::kernels::matrix::{PANEL, pack, panel_size};

/// Bytes of panels that are made at a time, at least one panel.
const PIECE_BYTES: usize = 1 << 20;

/// The destination of panels.
pub(super) enum PanelsTarget<'a> {
    /// A file, from byte `start` on.
    File { file: &'a File, start: u64 },
    /// Memory for all of them, zeroed.
    Memory(&'a mut [u8]),
    /// No destination: only the checksums are wanted.
    Nothing,
}

/// The reason why there are no panels.
#[derive(Debug)]
pub(super) enum PanelsFailure {
    /// The file could not be written.
    Write,
    Stopped,
}

impl From<io::Error> for PanelsFailure {
    fn from(_: io::Error) -> Self {
        PanelsFailure::Write
    }
}

/// Some panels of a tensor.
struct PanelsPiece {
    entry: usize,
    panels: Range<usize>,
    /// Their place among all panels, and their bytes.
    offset: usize,
    bytes: usize,
}

/// Makes all panels; returns a checksum for each entry (none for memory).
///
/// # Errors
/// [`PanelsFailure`].
pub(super) fn build(
    gguf: &Gguf,
    manifest: &Manifest,
    loading: &Loading<'_>,
    target: PanelsTarget<'_>,
) -> Result<Vec<u32>, PanelsFailure> {
    let pieces = pieces(manifest);
    let mut parts = Vec::new();
    let file = match target {
        PanelsTarget::File { file, start } => Some((file, start)),
        PanelsTarget::Memory(mut rest) => {
            for piece in &pieces {
                let (part, after) = std::mem::take(&mut rest).split_at_mut(piece.bytes);
                parts.push(Mutex::new(part));
                rest = after;
            }
            None
        }
        PanelsTarget::Nothing => None,
    };
    let sums: Vec<Mutex<crc32fast::Hasher>> = pieces.iter().map(|_| Mutex::default()).collect();
    let scratch: Vec<Mutex<Vec<u8>>> = (0..loading.pool.threads()).map(|_| Mutex::default()).collect();
    let failure = Mutex::new(None);
    loading.pool.run(pieces.len(), usize::MAX, &|worker, index| {
        if (loading.stop)() {
            lock(&failure).get_or_insert(PanelsFailure::Stopped);
        }
        if lock(&failure).is_some() {
            return;
        }
        let piece = &pieces[index];
        if let Some(part) = parts.get(index) {
            repack(gguf, manifest, piece, &mut lock(part));
            return;
        }
        let mut panels = lock(&scratch[worker]);
        panels.clear();
        panels.resize(piece.bytes, 0);
        repack(gguf, manifest, piece, &mut panels);
        lock(&sums[index]).update(&panels);
        if let Some((file, start)) = file
            && file.write_all_at(&panels, start + piece.offset as u64).is_err()
        {
            lock(&failure).get_or_insert(PanelsFailure::Write);
        }
    });
    if let Some(failure) = lock(&failure).take() {
        return Err(failure);
    }
    let mut of_entries = vec![crc32fast::Hasher::new(); manifest.entries.len()];
    for (piece, sum) in pieces.iter().zip(&sums) {
        of_entries[piece.entry].combine(&lock(sum));
    }
    Ok(of_entries.into_iter().map(crc32fast::Hasher::finalize).collect())
}

/// All panels in pieces, in the order of their offsets and without gaps.
fn pieces(manifest: &Manifest) -> Vec<PanelsPiece> {
    let mut pieces = Vec::new();
    for (index, entry) in manifest.entries.iter().enumerate() {
        let size = panel_size(entry.format, entry.inputs);
        let (count, step) = (entry.outputs.div_ceil(PANEL), (PIECE_BYTES / size.max(1)).max(1));
        for first in (0..count).step_by(step) {
            let panels = first..count.min(first + step);
            let (offset, bytes) = (entry.offset + first * size, panels.len() * size);
            pieces.push(PanelsPiece { entry: index, panels, offset, bytes });
        }
    }
    pieces
}

fn repack(gguf: &Gguf, manifest: &Manifest, piece: &PanelsPiece, target: &mut [u8]) {
    let entry = &manifest.entries[piece.entry];
    // The manifest was made of tensors of this file.
    let Some(tensor) = gguf.opt_tensor(&entry.name).ok().flatten() else { return };
    let row_bytes = tensor.data.len() / entry.outputs;
    let end = entry.outputs.min(piece.panels.end * PANEL);
    let rows = &tensor.data[piece.panels.start * PANEL * row_bytes..end * row_bytes];
    pack(entry.format, rows, entry.inputs, target);
    gguf.release(rows);
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A panic ends the whole build, so no partial result is used.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
