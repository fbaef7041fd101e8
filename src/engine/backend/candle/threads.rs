//! Candle's operations ask rayon for threads, and rayon starts one for each core. Here it gets none: a thread
//! that computes with candle counts as a pool of one by itself, so that whatever asks is done by the thread
//! that asks. What is worth more threads, the products with weights, goes to the engine's own
//! ([`crate::kernels::ggml`]), which are as many as the settings say, block signals and give way as they do.
//!
//! There is one thing that is beyond its reach: elementwise operations on 65,536 values and more are shared
//! with threads that candle starts for all its life, one for each core but one, or as many as the
//! environment's `CANDLE_NUM_THREADS` says less one. The first of our threads that has such an operation
//! starts them, so that they have its blocked signals and its niceness. They change no byte, as each value is
//! computed by itself.

use std::cell::Cell;

use crate::Error;

thread_local! {
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Keeps what the calling thread computes with candle on that thread, from now on.
///
/// # Errors
/// [`Error::Panicked`] where rayon refuses.
pub(super) fn stay_alone() -> Result<(), Error> {
    if ALONE.get() {
        return Ok(());
    }
    // A thread of some other pool of rayon's asks that one, which somebody has sized.
    if rayon::current_thread_index().is_none() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build();
        pool.map_err(|error| Error::Panicked(format!("rayon: {error}")))?;
    }
    ALONE.set(true);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::stay_alone;

    #[test]
    fn a_thread_that_computes_with_candle_is_a_pool_of_its_own() {
        std::thread::spawn(|| {
            stay_alone().unwrap();
            stay_alone().unwrap();
            assert_eq!(rayon::current_num_threads(), 1);
            let here = std::thread::current().id();
            let (left, right) = rayon::join(|| std::thread::current().id(), || std::thread::current().id());
            assert_eq!((left, right), (here, here));
        })
        .join()
        .unwrap();
    }
}
