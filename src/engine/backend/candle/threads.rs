//! Candle's operations ask rayon for threads, and rayon starts one for each core. Here it gets none: a thread
//! that computes with candle counts as a pool of one by itself, so that all work is done by the thread that
//! asks for it. The products with weights, which are worth more threads, go to the engine's own
//! ([`crate::kernels::ggml`]): their number is that of the settings, and they block signals and give way as
//! these say.
//!
//! One thing cannot be avoided: elementwise operations on 65,536 values and more are shared with threads that
//! candle starts once and keeps, one for each core but one, or as many as the environment's
//! `CANDLE_NUM_THREADS` says less one. The first of our threads that has such an operation starts them, so
//! that they inherit its blocked signals and its niceness. They change no byte, as each value is computed by
//! itself.

use std::cell::Cell;

use crate::Error;

thread_local! {
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Keeps candle's computations of the calling thread on that thread, from now on.
///
/// # Errors
/// [`Error::Panicked`] where rayon refuses.
pub(super) fn stay_alone() -> Result<(), Error> {
    if ALONE.get() {
        return Ok(());
    }
    // A thread of another rayon pool asks that pool, whose size its owner has chosen.
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
