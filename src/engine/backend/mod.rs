//! The backends that compute models: this crate's own kernels, and candle. Both are a [`Backend`] of
//! [`crate::computing`].

mod candle;
mod native;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::computing::Backend;
use crate::kernels::tile::KvCacheType;

pub(crate) use candle::Candle;
pub(crate) use native::Native;

/// Changes whenever the native backend computes other bytes of the same model and request, so that cached
/// results of before are no longer valid. [`BackendKind::kernel_version`] is that of any backend.
pub const KERNEL_VERSION: i32 = 2;

/// Changes whenever candle, or the way in which it is used, gives other bytes on the same machine.
const CANDLE_VERSION: i32 = 1;

/// The kinds of backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum BackendKind {
    /// This crate's own kernels, on the CPU, with keys and values of this type: the same bytes on every
    /// machine.
    Native(KvCacheType),
    /// Candle's tensors, on the CPU: the same bytes each time on one machine, and others on another. Keys and
    /// values are f32.
    Candle,
}

impl Default for BackendKind {
    fn default() -> Self {
        BackendKind::Native(KvCacheType::default())
    }
}

/// Added to the kernel version where keys and values have 8 bits.
const Q8_0_VERSION: i32 = 1 << 12;

impl BackendKind {
    /// The backend of this kind. With `whole`, native kernels also keep the keys and values that no window
    /// sees any more, as candle always does.
    pub(crate) fn open(self, whole: bool) -> Arc<dyn Backend> {
        match self {
            BackendKind::Native(kv_cache_type) => Arc::new(Native { kv_cache_type, whole }),
            BackendKind::Candle => Arc::new(Candle::new()),
        }
    }

    /// Changes whenever the backend computes other bytes of the same model and request, and differs from that
    /// of every other backend: the upper 16 bits are the backend's number, the four below them the type of
    /// keys and values, the others its own version. It is stored with every cached result, and is part of its
    /// key.
    pub const fn kernel_version(self) -> i32 {
        match self {
            BackendKind::Native(KvCacheType::F16) => KERNEL_VERSION,
            BackendKind::Native(KvCacheType::Q8_0) => KERNEL_VERSION + Q8_0_VERSION,
            BackendKind::Candle => (1 << 16) | CANDLE_VERSION,
        }
    }
}
