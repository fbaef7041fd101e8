//! Keys of changed rows of vectorized tables, on their way into `steadytext_vectorizer_work`.
//!
//! The first few keys of a statement become a row each, at once. Later ones are gathered in this process's
//! memory and become a row for [`GATHERED`] of them, so that a statement that inserts many rows pays for few:
//! gathered keys are written when there are enough of them, and before the transaction commits or is
//! prepared. Keys that a subtransaction has gathered are forgotten when it is rolled back, as its rows are.
//!
//! Invariant: a key is written by the transaction that changed its row, at the level of its subtransaction or
//! above: both are seen together or not at all.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use pgrx::pg_sys;

use super::catalog;
use super::catalog_cache::{self, Installation};
use super::error::{OrRaise, PgError};
use super::privilege::with_rights_of;
use super::spi::{self, Arg, Mode, SavedPlan};
use super::transaction;

/// Keys of a statement that are written at once.
const PROMPT: usize = 16;
/// Keys of one row, at most.
const GATHERED: usize = 250;
/// Bytes of a row's keys from which on it is written: beyond two thousand PostgreSQL would compress them.
const GATHERED_BYTES: usize = 1900;
/// Bytes that may be gathered: beyond that, as in a transaction of very many subtransactions, keys are
/// written at once.
const MOST_BYTES: usize = 4 << 20;

/// The place where a key is noted: the definition, as its trigger names it, and the table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoteTarget<'a> {
    /// The definition's number.
    pub(crate) definition: &'a str,
    /// The table.
    pub(crate) table: pg_sys::Oid,
    /// Its owner.
    pub(crate) owner: pg_sys::Oid,
    /// Whether it has its trigger as a partition.
    pub(crate) is_clone: bool,
}

/// Keys of one place that are not written yet.
struct Gathered {
    /// The depth of the subtransaction; 1 is the transaction itself.
    level: i32,
    definition: String,
    table: pg_sys::Oid,
    owner: pg_sys::Oid,
    is_clone: bool,
    /// The elements of a JSON array of keys.
    keys: String,
    count: usize,
}

impl Gathered {
    fn place(&self) -> NoteTarget<'_> {
        NoteTarget {
            definition: &self.definition,
            table: self.table,
            owner: self.owner,
            is_clone: self.is_clone,
        }
    }
}

thread_local! {
    /// Deeper levels come later.
    static GATHERING: RefCell<Vec<Gathered>> = const { RefCell::new(Vec::new()) };
    /// Keys that a statement has written at once, and which one: when the client has sent it.
    static WRITTEN: Cell<(usize, i64)> = const { Cell::new((0, 0)) };
    static BYTES: Cell<usize> = const { Cell::new(0) };
    static INSERT: Rc<SavedPlan> = Rc::new(SavedPlan::new());
    /// The owners of definitions, as long as no definition has changed.
    static OWNERS: RefCell<Owners> = RefCell::new(Owners::default());
}

/// The owners of definitions, by a definition's number as triggers name it.
#[derive(Default)]
struct Owners {
    /// The generation of the catalog cache in which they were read.
    generation: u64,
    owners: HashMap<String, pg_sys::Oid>,
}

/// Notes a key, a JSON array; `None`: the table as a whole.
///
/// # Errors
///
/// The extension is not as it should be. Errors of PostgreSQL's are raised.
pub(crate) fn note(place: NoteTarget<'_>, key: Option<&str>) -> Result<(), PgError> {
    let Some(key) = key else { return write(place, None, None) };
    let statement = transaction::statement_started_at();
    let written = WRITTEN.get();
    let written = if written.1 == statement { written.0 } else { 0 };
    if written < PROMPT {
        WRITTEN.set((written + 1, statement));
        return write(place, Some(key), None);
    }
    if BYTES.get() + key.len() > MOST_BYTES {
        return write(place, Some(key), None);
    }
    BYTES.set(BYTES.get() + key.len() + 1);
    let level = transaction::nest_level();
    let full = GATHERING.with_borrow_mut(|gathering| {
        let last = gathering
            .iter()
            .rposition(|known| known.level == level && known.place() == place)
            .unwrap_or_else(|| {
                gathering.push(Gathered {
                    level,
                    definition: place.definition.to_owned(),
                    table: place.table,
                    owner: place.owner,
                    is_clone: place.is_clone,
                    keys: String::new(),
                    count: 0,
                });
                gathering.len() - 1
            });
        let found = &mut gathering[last];
        if found.count > 0 {
            found.keys.push(',');
        }
        found.keys.push_str(key);
        found.count += 1;
        (found.count >= GATHERED || found.keys.len() >= GATHERED_BYTES).then(|| gathering.remove(last))
    });
    full.map_or(Ok(()), |full| write_gathered(&full))
}

/// Writes what is gathered: the transaction is about to commit or to be prepared. Errors are raised.
pub(super) fn committing() {
    if GATHERING.with_borrow(Vec::is_empty) {
        return;
    }
    if catalog::extension_oid().is_none() {
        // The transaction has dropped it, and all definitions with it.
        return ended();
    }
    /// A transaction that has made itself read-only has written before.
    struct Writable(bool);
    impl Drop for Writable {
        fn drop(&mut self) {
            // SAFETY: a plain global of this process.
            unsafe { pg_sys::XactReadOnly = self.0 };
        }
    }
    // SAFETY: as above.
    let _writable = Writable(unsafe { std::ptr::replace(&raw mut pg_sys::XactReadOnly, false) });
    transaction::with_latest_snapshot(|| {
        for gathered in GATHERING.take() {
            write_gathered(&gathered).or_raise();
        }
    });
}

/// The transaction has ended. Never raises an error.
pub(super) fn ended() {
    GATHERING.with_borrow_mut(Vec::clear);
    BYTES.set(0);
}

/// A subtransaction ended. Never raises an error.
pub(super) fn end_subtransaction(committed: bool) {
    let level = transaction::nest_level();
    GATHERING.with_borrow_mut(|gathering| {
        while let Some(ended) = gathering.pop_if(|known| known.level >= level) {
            if !committed {
                BYTES.set(BYTES.get().saturating_sub(ended.keys.len()));
                continue;
            }
            let above = gathering
                .iter_mut()
                .rev()
                .find(|known| known.level == level - 1 && known.place() == ended.place())
                .filter(|known| known.count + ended.count <= GATHERED)
                .filter(|known| known.keys.len() + ended.keys.len() < GATHERED_BYTES);
            if let Some(above) = above {
                above.keys.push(',');
                above.keys.push_str(&ended.keys);
                above.count += ended.count;
            } else {
                // Behind those of the levels above, before others that end with it.
                let index = gathering.partition_point(|known| known.level < level);
                gathering.insert(index, Gathered { level: level - 1, ..ended });
            }
        }
    });
}

fn write_gathered(gathered: &Gathered) -> Result<(), PgError> {
    BYTES.set(BYTES.get().saturating_sub(gathered.keys.len()));
    let keys = format!("[{}]", gathered.keys);
    write(gathered.place(), None, Some((&keys, gathered.count)))
}

/// Adds a row to the work. Only the table of the definition's owner counts: others may put triggers on tables
/// of their own, and name any definition in these.
fn write(place: NoteTarget<'_>, key: Option<&str>, keys: Option<(&str, usize)>) -> Result<(), PgError> {
    let extension = catalog_cache::installation()?;
    let is_known = owner_of(&extension, place.definition)?.is_some_and(|owner| {
        if place.is_clone { catalog::has_ancestor_of(place.table, owner) } else { place.owner == owner }
    });
    if !is_known {
        return Ok(());
    }
    let args: [Arg; 4] = [
        place.definition.into(),
        key.into(),
        keys.map(|keys| keys.0).into(),
        keys.map_or(1, |keys| i32::try_from(keys.1).unwrap_or(i32::MAX)).into(),
    ];
    let sql = || {
        format!(
            "insert into {}.steadytext_vectorizer_work (vectorizer_id, key, keys, key_count)
             values ($1::pg_catalog.uuid, $2::pg_catalog.jsonb, $3::pg_catalog.json, $4)",
            extension.schema
        )
    };
    let plan = INSERT.with(Rc::clone);
    with_rights_of(extension.owner, || plan.insert_one::<()>(extension.extension, sql, &args))?;
    Ok(())
}

/// The owner of a definition; `None` where there is no such one.
fn owner_of(extension: &Installation, definition: &str) -> Result<Option<pg_sys::Oid>, PgError> {
    let generation = catalog_cache::generation();
    let known = OWNERS.with_borrow_mut(|known| {
        if known.generation != generation {
            *known = Owners { generation, owners: HashMap::new() };
        }
        known.owners.get(definition).copied()
    });
    if known.is_some() {
        return Ok(known);
    }
    let sql = format!(
        "select owner_role::pg_catalog.oid from {}.steadytext_vectorizers where id operator(pg_catalog.=) $1::pg_catalog.uuid",
        extension.schema
    );
    let read = || spi::query_one(&sql, vec![definition.into()], Mode::ReadOnly, |row| row.get(1));
    let owner = catalog_cache::read_as_owner(extension, read)?.flatten();
    if let Some(owner) = owner
        && catalog_cache::may_keep()
        && catalog_cache::generation() == generation
    {
        OWNERS.with_borrow_mut(|known| known.owners.insert(definition.to_owned(), owner));
    }
    Ok(owner)
}
