//! Panics on engine threads: caught at the edge, told to the request, printed nowhere.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use crate::Error;

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Installs a hook that keeps the standard one from printing panics of engine threads; other threads' go to
/// the hook that was there before.
pub(super) fn contain() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if CONTAINED.get() {
                PLACE.set(panic.location().map(ToString::to_string));
            } else {
                previous(panic);
            }
        }));
    });
}

/// Marks the calling thread as one of the engine's.
pub(crate) fn mark_thread() {
    CONTAINED.set(true);
}

/// Runs `work`; a panic in it becomes an error.
pub(crate) fn catch<T>(work: impl FnOnce() -> T) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let message = match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
            (Some(message), _) => (*message).to_owned(),
            (None, Some(message)) => message.clone(),
            (None, None) => "panic".to_owned(),
        };
        match PLACE.take() {
            Some(place) => Error::Panicked(format!("{message} at {place}")),
            None => Error::Panicked(message),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::{catch, contain, mark_thread};
    use crate::Error;

    #[test]
    fn a_panic_becomes_an_error_that_says_where() {
        contain();
        mark_thread();
        let Err(Error::Panicked(message)) = catch(|| panic!("number {}", 5)) else { panic!("no error") };
        assert!(message.starts_with("number 5 at ") && message.contains("panic.rs"), "{message}");
        assert_eq!(catch(|| 7).unwrap(), 7);
    }
}
