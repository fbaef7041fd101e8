//! The models that ALTER DATABASE and ALTER ROLE ALL choose for the sessions of a database. A process has
//! them as they were when it began, and may live for months.

use pgrx::prelude::*;

use super::error::PgError;
use super::guc::{ModelSetting, SettingLevel};
use super::spi::{self, Mode};

/// Whether a session that began now would have other ones than this process. In a transaction.
///
/// # Errors
///
/// As [`spi::query`].
pub(crate) fn have_changed() -> Result<bool, PgError> {
    // What is set for the database comes before what is set for all.
    const QUESTION: &str = "
        select o.option
        from pg_catalog.pg_db_role_setting as s
        cross join pg_catalog.unnest(s.setconfig) with ordinality as o (option, place)
        where s.setrole operator(pg_catalog.=) 0::pg_catalog.oid
            and s.setdatabase operator(pg_catalog.=) any (array[0::pg_catalog.oid, $1])
        order by s.setdatabase operator(pg_catalog.=) 0::pg_catalog.oid, o.place";
    // SAFETY: a plain global of this process.
    let database = unsafe { pg_sys::MyDatabaseId };
    let options = spi::query(QUESTION, vec![database.into()], Mode::ReadWrite, |row| row.get::<String>(1))?;
    let set = |setting: ModelSetting| {
        let mut options = options.iter().flatten().filter_map(|option| option.split_once('='));
        let name = setting.name().to_string_lossy();
        options.find(|(key, _)| key.eq_ignore_ascii_case(&name)).map(|(_, value)| value.to_owned())
    };
    Ok(ModelSetting::ALL.into_iter().any(|setting| match setting.level() {
        SettingLevel::Server => set(setting).is_some(),
        SettingLevel::Database => set(setting).as_deref() != Some(&setting.value()),
        // What is set for the role of this process hides it, and is nobody else's.
        SettingLevel::Session => false,
    }))
}
