//! The stacks of threads that compute.

/// Bytes of the stack of each of them; the masks of constraints are computed on it.
pub(crate) const COMPUTING_STACK_BYTES: usize = 16 << 20;
