//! The templates that a database keeps under the names of the library's prompts, which are used in place of
//! the library's own.
//!
//! Every verb looks here, and hardly any database keeps such templates: they are read once and cached until
//! the extension's tables change.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use pgrx::pg_sys;

use super::catalog_cache::{self, Installation, may_keep, read_as_owner};
use super::error::PgError;
use super::spi::{self, Mode};

type Templates = Rc<BTreeMap<String, String>>;

thread_local! {
    /// The templates, and for which generation of the catalog cache they are good.
    static KNOWN: RefCell<Option<(u64, Templates)>> = const { RefCell::new(None) };
}

/// The current templates, by their slugs. Inside a transaction.
///
/// # Errors
///
/// 55000 if the extension is not installed.
pub(crate) fn all() -> Result<Templates, PgError> {
    let installation = catalog_cache::installation()?;
    let generation = catalog_cache::generation();
    let known = KNOWN.with_borrow(|known| {
        known.as_ref().filter(|(of, _)| *of == generation).map(|(_, templates)| Rc::clone(templates))
    });
    if let Some(known) = known {
        return Ok(known);
    }
    let templates = Rc::new(read(&installation)?);
    // If something changed while they were read, they are of another generation.
    if may_keep() && catalog_cache::generation() == generation {
        KNOWN.with_borrow_mut(|known| *known = Some((generation, Rc::clone(&templates))));
    }
    Ok(templates)
}

fn read(installation: &Installation) -> Result<BTreeMap<String, String>, PgError> {
    if installation.prompt_versions == pg_sys::InvalidOid {
        return Ok(BTreeMap::new());
    }
    let schema = &installation.schema;
    let sql = format!(
        "select p.slug, (
                select v.template
                  from {schema}.steadytext_prompt_versions as v
                 where v.prompt_id operator(pg_catalog.=) p.id
                 order by v.version desc
                 limit 1)
           from {schema}.steadytext_prompts as p
          where pg_catalog.starts_with(p.slug, 'steadytext/')"
    );
    let rows = read_as_owner(installation, || {
        spi::query(&sql, vec![], Mode::ReadOnly, |row| row.get::<String>(1).zip(row.get::<String>(2)))
    })?;
    Ok(rows.into_iter().flatten().collect())
}
