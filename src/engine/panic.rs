//! Panics on engine threads: caught at the edge, told to the request, printed nowhere.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Once;

use crate::Error;

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
    /// The message of the panic that this thread is unwinding from, if it is.
    static CURRENT: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Installs a hook that keeps the standard one from printing panics of engine threads; other threads' go to
/// the hook that was there before.
pub(crate) fn contain() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if CONTAINED.get() {
                PLACE.set(panic.location().map(|at| format!("{}:{}", file_of(at.file()), at.line())));
                CURRENT.set(Some(describe(panic.payload(), PLACE.with_borrow(Clone::clone))));
            } else {
                previous(panic);
            }
        }));
    });
}

/// A source file without the directories of the machine that it was built on.
fn file_of(path: &str) -> &str {
    if std::path::Path::new(path).is_absolute() { path.rsplit('/').next().unwrap_or(path) } else { path }
}

/// Marks the calling thread as one of the engine's.
pub(crate) fn mark_thread() {
    CONTAINED.set(true);
}

/// The standard library quotes a text that is cut in the wrong place, and it may be a prompt.
fn without_text(message: &str) -> &str {
    let quotes = ["; it is inside", " of `", " slicing `"];
    quotes
        .iter()
        .filter_map(|quote| message.split_once(quote))
        .map(|(before, _)| before)
        .min_by_key(|before| before.len())
        .unwrap_or(message)
}

/// A panic on its way to another thread.
pub(crate) struct Panic {
    payload: Box<dyn Any + Send>,
    place: Option<String>,
}

/// Runs `work`; a panic in it can go on elsewhere.
pub(crate) fn hold<T>(work: impl FnOnce() -> T) -> Result<T, Panic> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| Panic { payload, place: PLACE.take() })
}

impl Panic {
    /// Goes on here.
    pub(crate) fn resume(self) -> ! {
        CURRENT.set(Some(describe(&*self.payload, self.place.clone())));
        PLACE.set(self.place);
        resume_unwind(self.payload)
    }
}

/// Runs `work`; a panic in it becomes an error.
pub(crate) fn catch<T>(work: impl FnOnce() -> T) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| Error::Panicked(describe(&*payload, PLACE.take())))
}

/// The message of the panic that the calling thread is unwinding from: for destructors, which have to tell
/// why something has come to nothing.
pub(crate) fn current() -> Option<String> {
    if std::thread::panicking() { CURRENT.with_borrow(Clone::clone) } else { None }
}

fn describe(payload: &(dyn Any + Send), place: Option<String>) -> String {
    let message = match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(message), _) => without_text(message),
        (None, Some(message)) => without_text(message),
        (None, None) => "panic",
    };
    match place {
        Some(place) => format!("{message} at {place}"),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{catch, contain, hold, mark_thread};
    use crate::Error;

    #[test]
    fn a_panic_becomes_an_error_that_says_where() {
        contain();
        mark_thread();
        let Err(Error::Panicked(message)) = catch(|| panic!("number {}", 5)) else { panic!("no error") };
        assert!(message.starts_with("number 5 at ") && message.contains("panic.rs"), "{message}");
        assert_eq!(catch(|| 7).unwrap(), 7);
        // The text that was sliced is not part of the message.
        for place in [1, 100] {
            let text = String::from("ésecret");
            let Err(Error::Panicked(message)) = catch(|| text[place..].len()) else { panic!("no error") };
            assert!(
                message.contains(" at ") && !message.contains("secret") && !message.contains('é'),
                "{message}"
            );
        }
        // Also where it happened on another thread.
        let elsewhere = std::thread::spawn(|| {
            mark_thread();
            hold(|| -> () { panic!("number {}", 6) }).err()
        });
        let panic = elsewhere.join().unwrap().unwrap();
        let Err(Error::Panicked(message)) = catch(|| panic.resume()) else { panic!("no error") };
        assert!(message.starts_with("number 6 at ") && message.contains("panic.rs"), "{message}");
    }
}
