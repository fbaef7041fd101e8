//! A process's cache of the extension in its database: where its tables are, the configuration, the registry
//! of models.
//!
//! These are needed for every request and change seldom, so they are read once and kept until one of these
//! tables changes, in any session.
//!
//! PostgreSQL sends every process a message when a table's definition changes; the triggers on
//! steadytext_config and steadytext_models use the same message for changed rows ([`invalidate`]), so it
//! arrives with the commit.

use std::cell::{Cell, RefCell};
use std::ops::Deref;
use std::rc::Rc;

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::error::PgError;
use super::predecessor_variables;
use super::privilege::as_owner;
use super::spi::{self, Mode};
use super::transaction::{in_parallel_query, is_parallel_worker, with_latest_snapshot};

/// The extension of this database.
#[derive(Debug, Clone)]
pub(crate) struct Installation {
    /// pg_extension's OID.
    pub(crate) extension: pg_sys::Oid,
    /// Its version.
    pub(crate) version: String,
    /// The schema of its tables, quoted for use in SQL.
    pub(crate) schema: String,
    /// The role that owns the queue: protocol functions run as it.
    pub(crate) owner: pg_sys::Oid,
    /// The role that owns the protocol functions, which run with its rights.
    pub(crate) protocol_owner: pg_sys::Oid,
    /// The table in which answers are kept; `None` in a database whose extension is older than the library.
    pub(crate) cache: Option<CacheTable>,
    /// The versions of prompts; invalid in a database whose extension is older than the library.
    pub(super) prompt_versions: pg_sys::Oid,
    /// The limits of roles; invalid in a database whose extension is older than the library.
    pub(super) rate_limits: pg_sys::Oid,
    /// The definitions of vectorizers and enrichments; invalid in a database whose extension is older than
    /// the library.
    pub(crate) definitions: pg_sys::Oid,
    tables: [pg_sys::Oid; 8],
    /// Whether its schema bears the name that its functions know.
    keeps_its_name: bool,
}

/// The table steadytext_cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CacheTable {
    /// Its OID.
    pub(crate) table: pg_sys::Oid,
    /// The index on key_hash.
    pub(crate) key_index: pg_sys::Oid,
}

/// One of the two tables with default rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Registry {
    /// The table's name.
    pub(crate) name: &'static str,
    /// The column that is its primary key.
    pub(crate) key: &'static str,
}

impl Installation {
    /// The table steadytext_queue.
    pub(crate) fn queue(&self) -> pg_sys::Oid {
        let [queue, ..] = self.tables;
        queue
    }

    /// The name and the key column of a table that has default rows; `None` for the other tables.
    pub(crate) fn registry(&self, table: pg_sys::Oid) -> Option<Registry> {
        let [_, config, models, ..] = self.tables;
        if table == config {
            Some(Registry { name: "steadytext_config", key: "key" })
        } else if table == models {
            Some(Registry { name: "steadytext_models", key: "name" })
        } else {
            None
        }
    }
}

/// The part of steadytext_config that the library uses.
#[derive(Debug, Clone)]
pub(crate) struct DatabaseConfig {
    /// `generation_model`, `embedding_model` and `reranker_model`.
    pub(crate) models: [Option<String>; 3],
    /// `default_max_tokens`, if it is there.
    pub(crate) default_max_tokens: Option<i64>,
    /// `default_seed`, if it is there, or else the one of the server's environment.
    pub(crate) default_seed: Option<i64>,
    /// `max_tokens_limit`.
    pub(crate) max_tokens_limit: i64,
    /// `max_queue_size`.
    pub(crate) max_queue_size: i64,
    /// `max_queue_size_per_role`.
    pub(crate) max_queue_size_per_role: i64,
    /// `max_batch_size`.
    pub(crate) max_batch_size: i64,
    /// `max_prompt_bytes`.
    pub(crate) max_prompt_bytes: i64,
    /// `worker_poll_interval`, in seconds.
    pub(crate) worker_poll_interval_s: f64,
    /// `queue_retention_hours`; 0 keeps everything.
    pub(crate) queue_retention_hours: i64,
    /// `worker_paused`.
    pub(crate) worker_paused: bool,
    /// `cache_eviction_enabled`.
    pub(crate) cache_eviction_enabled: bool,
    /// `cache_eviction_interval`, in seconds.
    pub(crate) cache_eviction_interval_s: u64,
    /// `cache_eviction_batch_size`.
    pub(crate) cache_eviction_batch_size: usize,
    /// `cache_enabled`.
    pub(crate) cache_enabled: bool,
    /// `cache_max_entry_bytes`.
    pub(crate) cache_max_entry_bytes: i64,
}

/// A row of steadytext_models.
#[derive(Debug, Clone)]
pub(crate) struct RegisteredModel {
    /// The name in requests.
    pub(crate) name: String,
    /// `generate`, `embed` or `rerank`.
    pub(crate) task: String,
    /// Relative to pg_steadytext.model_dir, or absolute.
    pub(crate) file: String,
    /// The expected SHA-256 of the file, if the registry has it.
    pub(crate) sha256: Option<[u8; 32]>,
    /// The repository that the file comes from, if that is written down.
    pub(crate) repository: Option<String>,
    /// `auto` takes it first.
    pub(crate) is_preferred: bool,
    /// Whether it stands in where the usual model cannot be used.
    pub(crate) is_fallback: bool,
    /// Whether the row came with the extension, and says nothing of what is wanted here.
    pub(crate) is_default: bool,
    /// The prefix of queries.
    pub(crate) query_prompt: Option<String>,
    /// The prefix of the texts that queries are to find.
    pub(crate) passage_prompt: Option<String>,
    /// Lengths that vectors may be cut to.
    pub(crate) dimensions: Vec<u32>,
    /// The workers that compute it: `server`, `elsewhere` or `any`.
    pub(crate) placement: String,
}

impl RegisteredModel {
    /// Whether only workers on other machines compute it.
    pub(crate) fn is_elsewhere(&self) -> bool {
        self.placement == "elsewhere"
    }
}

/// The registry, in the order in which `auto` looks, and the models that the configuration makes defaults:
/// generation, embedding, reranker.
#[derive(Debug, Default)]
pub(crate) struct ModelRegistry {
    rows: Vec<RegisteredModel>,
    pub(crate) defaults: [Option<String>; 3],
}

impl Deref for ModelRegistry {
    type Target = [RegisteredModel];

    fn deref(&self) -> &[RegisteredModel] {
        &self.rows
    }
}

#[derive(Default)]
struct CachedCatalog {
    installation: Option<Rc<Installation>>,
    config: Option<Rc<DatabaseConfig>>,
    models: Option<Rc<ModelRegistry>>,
}

thread_local! {
    static CACHED: RefCell<CachedCatalog> = RefCell::default();
    /// The tables whose change empties the cache; 0: none is cached.
    static WATCHED: Cell<[u32; 8]> = const { Cell::new([0; 8]) };
    static STALE: Cell<bool> = const { Cell::new(false) };
    /// The installation is being read. After an error it stays so until it is read again, which does no harm.
    static LOADING: Cell<bool> = const { Cell::new(false) };
    static REGISTERED: Cell<bool> = const { Cell::new(false) };
    static GENERATION: Cell<u64> = const { Cell::new(0) };
}

/// The extension of this database. Inside a transaction.
///
/// # Errors
///
/// 55000 if it is not installed.
pub(crate) fn installation() -> Result<Rc<Installation>, PgError> {
    empty_if_stale();
    if let Some(known) = CACHED.with_borrow(|cached| cached.installation.clone()) {
        return Ok(known);
    }
    // A change while it is read is noticed whatever it is about, because nobody knows yet what to watch.
    register();
    LOADING.set(true);
    let found = with_new_snapshot(read_installation);
    LOADING.set(false);
    let found = found?.ok_or_else(|| {
        PgError::new(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "extension pg_steadytext is not installed in this database",
        )
        .hint("Run CREATE EXTENSION pg_steadytext.")
    })?;
    // Its functions name their tables by the schema's name: under that name there may be somebody else's
    // tables now.
    if !found.keeps_its_name {
        return Err(PgError::new(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("the schema of pg_steadytext was renamed to {}", found.schema),
        )
        .hint("Give it back the name that steadytext.installed_schema() tells."));
    }
    watch(&found);
    let found = Rc::new(found);
    CACHED.with_borrow_mut(|cached| cached.installation = Some(found.clone()));
    Ok(found)
}

/// Whether this is likely to be the schema of the extension's tables and functions, as it is written in SQL.
/// Looks nothing up: a process that does not know the extension takes it to be where CREATE EXTENSION puts
/// it.
pub(super) fn may_be_schema(schema: &[u8]) -> bool {
    CACHED.with(|cached| {
        let cached = cached.try_borrow().ok();
        let known = cached.as_ref().and_then(|cached| cached.installation.as_ref());
        known.map_or(b"public".as_slice(), |known| known.schema.as_bytes()) == schema
    })
}

/// Whether a name is written with quotes depends on quote_all_identifiers of the session that installed.
fn read_installation() -> Result<Option<Installation>, PgError> {
    spi::query_one(
        "select e.oid, e.extversion::pg_catalog.text, pg_catalog.quote_ident(n.nspname), q.relowner, q.oid, c.oid, m.oid, p.proowner,
                h.oid, k.conindid,
                i.prosrc operator(pg_catalog.=) any (array[
                    pg_catalog.format('select %L::text', w.quoted),
                    pg_catalog.format('select %L::text', case
                        when n.nspname::pg_catalog.text operator(pg_catalog.~) '^[a-z_][a-z0-9_]*$' then n.nspname::pg_catalog.text
                        else w.quoted
                    end)]),
                v.oid, r.oid, d.oid, t.oid
           from pg_catalog.pg_extension e
           join pg_catalog.pg_namespace n on n.oid operator(pg_catalog.=) e.extnamespace
          cross join lateral (select '\"' operator(pg_catalog.||) pg_catalog.replace(n.nspname::pg_catalog.text, '\"', '\"\"')
                operator(pg_catalog.||) '\"' as quoted) w
           join pg_catalog.pg_class q on q.relnamespace operator(pg_catalog.=) n.oid and q.relname operator(pg_catalog.=) 'steadytext_queue'
           join pg_catalog.pg_class c on c.relnamespace operator(pg_catalog.=) n.oid and c.relname operator(pg_catalog.=) 'steadytext_config'
           join pg_catalog.pg_class m on m.relnamespace operator(pg_catalog.=) n.oid and m.relname operator(pg_catalog.=) 'steadytext_models'
           join pg_catalog.pg_namespace s on s.nspname operator(pg_catalog.=) 'steadytext'
           join pg_catalog.pg_proc p on p.pronamespace operator(pg_catalog.=) s.oid and p.proname operator(pg_catalog.=) 'claim_requests'
           left join pg_catalog.pg_proc i on i.pronamespace operator(pg_catalog.=) s.oid and i.proname operator(pg_catalog.=) 'installed_schema'
           left join pg_catalog.pg_class v on v.relnamespace operator(pg_catalog.=) n.oid and v.relname operator(pg_catalog.=) 'steadytext_prompt_versions'
           left join pg_catalog.pg_class r on r.relnamespace operator(pg_catalog.=) n.oid and r.relname operator(pg_catalog.=) 'steadytext_rate_limits'
           left join pg_catalog.pg_class d on d.relnamespace operator(pg_catalog.=) n.oid and d.relname operator(pg_catalog.=) 'steadytext_vectorizers'
           left join pg_catalog.pg_class t on t.relnamespace operator(pg_catalog.=) n.oid and t.relname operator(pg_catalog.=) 'steadytext_prompts'
           left join pg_catalog.pg_class h on h.relnamespace operator(pg_catalog.=) n.oid and h.relname operator(pg_catalog.=) 'steadytext_cache'
           left join pg_catalog.pg_constraint k on k.conrelid operator(pg_catalog.=) h.oid and k.conname operator(pg_catalog.=) 'steadytext_cache_key_hash_key'
          where e.extname operator(pg_catalog.=) 'pg_steadytext'",
        vec![],
        Mode::ReadOnly,
        |row| {
            let oid = |column| row.get::<pg_sys::Oid>(column).unwrap_or(pg_sys::InvalidOid);
            Installation {
                extension: oid(1),
                version: row.get(2).unwrap_or_default(),
                schema: row.get(3).unwrap_or_default(),
                owner: oid(4),
                protocol_owner: oid(8),
                cache: row
                    .get::<pg_sys::Oid>(9)
                    .zip(row.get::<pg_sys::Oid>(10))
                    .map(|(table, key_index)| CacheTable { table, key_index }),
                prompt_versions: oid(12),
                rate_limits: oid(13),
                definitions: oid(14),
                tables: [oid(5), oid(6), oid(7), oid(9), oid(12), oid(13), oid(14), oid(15)],
                keeps_its_name: row.get(11).unwrap_or(true),
            }
        },
    )
}

/// This database's configuration. Inside a transaction.
///
/// # Errors
///
/// As [`installation`].
pub(crate) fn config() -> Result<Rc<DatabaseConfig>, PgError> {
    let installation = installation()?;
    if let Some(known) = CACHED.with_borrow(|cached| cached.config.clone()) {
        return Ok(known);
    }
    let sql =
        format!("select key, value #>> '{{}}', is_default from {}.steadytext_config", installation.schema);
    let rows = read_as_owner(&installation, || {
        spi::query(&sql, vec![], Mode::ReadOnly, |row| {
            (row.get::<String>(1), row.get::<String>(2), row.get::<bool>(3))
        })
    })?;
    let row = |key: &str| rows.iter().find(|(k, ..)| k.as_deref() == Some(key));
    let text = |key: &str| row(key).and_then(|(_, value, _)| value.as_deref());
    let seed_is_set = row("default_seed").is_some_and(|(.., is_default)| *is_default != Some(true));
    let server_seed = || {
        predecessor_variables::value(predecessor_variables::DEFAULT_SEED)?
            .parse()
            .ok()
            .filter(|seed| *seed >= 0)
    };
    let number = |key: &str, default: i64| text(key).and_then(whole).unwrap_or(default);
    let config = Rc::new(DatabaseConfig {
        models: ["generation_model", "embedding_model", "reranker_model"]
            .map(|key| text(key).map(str::to_owned)),
        default_max_tokens: text("default_max_tokens").and_then(whole),
        default_seed: (!seed_is_set)
            .then(server_seed)
            .flatten()
            .or_else(|| text("default_seed").and_then(whole)),
        max_tokens_limit: number("max_tokens_limit", 4096),
        max_queue_size: number("max_queue_size", 1_000_000),
        max_queue_size_per_role: number("max_queue_size_per_role", 250_000),
        max_batch_size: number("max_batch_size", 1000),
        max_prompt_bytes: number("max_prompt_bytes", 1_048_576),
        worker_poll_interval_s: text("worker_poll_interval")
            .and_then(|value| value.parse().ok())
            .filter(|seconds: &f64| seconds.is_finite())
            .unwrap_or(1.0),
        queue_retention_hours: number("queue_retention_hours", 168),
        worker_paused: text("worker_paused") == Some("true"),
        cache_eviction_enabled: text("cache_eviction_enabled") != Some("false"),
        cache_eviction_interval_s: number("cache_eviction_interval", 300).max(1) as u64,
        cache_eviction_batch_size: number("cache_eviction_batch_size", 100).max(1) as usize,
        cache_enabled: text("cache_enabled") != Some("false"),
        cache_max_entry_bytes: number("cache_max_entry_bytes", 1_048_576),
    });
    if may_keep() {
        CACHED.with_borrow_mut(|cached| cached.config = Some(config.clone()));
    }
    Ok(config)
}

/// A whole number in any of the forms that JSON has for it. The trigger leaves one only, but a restore may
/// have gone past it.
fn whole(text: &str) -> Option<i64> {
    let float = || text.parse::<f64>().ok().filter(|number| number.is_finite());
    text.parse().ok().or_else(|| float().map(|number| number as i64))
}

/// The registry of models, in the order in which `auto` looks for one that is there. Inside a transaction.
///
/// # Errors
///
/// As [`installation`].
pub(crate) fn models() -> Result<Rc<ModelRegistry>, PgError> {
    let installation = installation()?;
    if let Some(known) = CACHED.with_borrow(|cached| cached.models.clone()) {
        return Ok(known);
    }
    let generation = generation();
    let sql = format!(
        "select name, task, file, sha256, repo, is_fallback, is_default, is_preferred, query_prompt, passage_prompt, dimensions, placement from {}.steadytext_models order by is_preferred desc, is_fallback, name",
        installation.schema
    );
    let rows = read_as_owner(&installation, || {
        spi::query(&sql, vec![], Mode::ReadOnly, |row| RegisteredModel {
            name: row.get(1).unwrap_or_default(),
            task: row.get(2).unwrap_or_default(),
            file: row.get(3).unwrap_or_default(),
            sha256: row.get::<String>(4).as_deref().and_then(from_hex),
            repository: row.get(5),
            is_fallback: row.get(6).unwrap_or_default(),
            is_default: row.get(7).unwrap_or_default(),
            is_preferred: row.get(8).unwrap_or_default(),
            query_prompt: row.get(9),
            passage_prompt: row.get(10),
            dimensions: lengths(row.get(11)),
            placement: row.get(12).unwrap_or_default(),
        })
    })?;
    // The configuration may be read anew, and with that the news be taken in that the rows have changed since
    // they were read.
    let models = Rc::new(ModelRegistry { rows, defaults: config()?.models.clone() });
    if may_keep() && self::generation() == generation {
        CACHED.with_borrow_mut(|cached| cached.models = Some(models.clone()));
    }
    Ok(models)
}

/// The lengths of an array column, which a trigger keeps free of numbers that are no lengths.
fn lengths(column: Option<Vec<i32>>) -> Vec<u32> {
    column.unwrap_or_default().into_iter().filter_map(|length| u32::try_from(length).ok()).collect()
}

/// The 32 bytes that 64 hexadecimal digits stand for.
fn from_hex(digits: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// Reads a table whatever the caller may see, and under the latest snapshot: an old one, kept in the cache,
/// would outlive the transaction it belongs to. PostgreSQL gives none within a parallel query, where the
/// query's own must do.
pub(super) fn read_as_owner<T>(installation: &Installation, read: impl FnOnce() -> T) -> T {
    as_owner(installation.owner, || with_new_snapshot(read))
}

fn with_new_snapshot<T>(read: impl FnOnce() -> T) -> T {
    if in_parallel_query() { read() } else { with_latest_snapshot(read) }
}

/// Whether what was read may be kept: not under a snapshot that others have chosen, except in a process that
/// ends with the query.
pub(super) fn may_keep() -> bool {
    !in_parallel_query() || is_parallel_worker()
}

/// Tells every process, at commit, that rows of `table` have changed.
pub(crate) fn invalidate(table: pg_sys::Oid) {
    // SAFETY: queues a message in the caller's transaction.
    unsafe { pg_sys::CacheInvalidateRelcacheByRelid(table) };
}

/// Empties this process's cache. A worker that is woken by the commit that changed something is faster than
/// the message about it: PostgreSQL sends that only after the commit callback.
pub(crate) fn forget() {
    STALE.set(true);
}

/// The generation of this cache: it is incremented whenever the cache is emptied. Other caches about the
/// extension's tables are valid for one generation.
pub(crate) fn generation() -> u64 {
    GENERATION.get()
}

fn empty_if_stale() {
    // SAFETY: reads the messages that have arrived, as every statement does at its start.
    unsafe { pg_sys::AcceptInvalidationMessages() };
    if STALE.replace(false) {
        CACHED.take();
        GENERATION.set(GENERATION.get() + 1);
        WATCHED.set([0; 8]);
    }
}

fn register() {
    if !REGISTERED.replace(true) {
        // SAFETY: the callback lives as long as the library; registered once per process.
        unsafe {
            pg_sys::CacheRegisterRelcacheCallback(Some(relation_changed), pg_sys::Datum::from(0));
            let namespaces = pg_sys::SysCacheIdentifier::NAMESPACEOID as i32;
            pg_sys::CacheRegisterSyscacheCallback(namespaces, Some(schema_changed), pg_sys::Datum::from(0));
        }
    }
}

/// The schema may have been renamed. Schemas change seldom, so that it is not asked which.
#[pg_guard]
unsafe extern "C-unwind" fn schema_changed(_arg: pg_sys::Datum, _cache: i32, _hash: u32) {
    STALE.set(true);
}

fn watch(installation: &Installation) {
    WATCHED.set(installation.tables.map(|oid| oid.to_u32()));
}

/// Called in the middle of anything: it only notes what it heard.
#[pg_guard]
unsafe extern "C-unwind" fn relation_changed(_arg: pg_sys::Datum, relation: pg_sys::Oid) {
    if LOADING.get() || relation == pg_sys::InvalidOid || WATCHED.get().contains(&relation.to_u32()) {
        STALE.set(true);
    }
}

/// The columns of a row of steadytext_models that a download must know.
#[derive(Debug, Clone)]
pub(crate) struct Pullable {
    /// `generate`, `embed` or `rerank`.
    pub(crate) task: String,
    /// Relative to pg_steadytext.model_dir, or absolute.
    pub(crate) file: String,
    /// `owner/name`.
    pub(crate) repository: Option<String>,
    /// A branch, a tag or a commit of that.
    pub(crate) revision: Option<String>,
    /// The expected SHA-256 of the file.
    pub(crate) sha256: Option<[u8; 32]>,
    /// The short name of its licence.
    pub(crate) licence: Option<String>,
    /// The prefix of queries.
    pub(crate) query_prompt: Option<String>,
    /// The prefix of the texts that queries are to find.
    pub(crate) passage_prompt: Option<String>,
    /// Lengths that vectors may be cut to.
    pub(crate) dimensions: Vec<u32>,
}

/// The row of a model, which is not kept: downloads are seldom. Inside a transaction.
///
/// # Errors
///
/// As [`installation`].
pub(crate) fn pullable(name: &str) -> Result<Option<Pullable>, PgError> {
    let installation = installation()?;
    let sql = format!(
        "select task, file, repo, revision, sha256, licence, query_prompt, passage_prompt, dimensions from {}.steadytext_models
           where name operator(pg_catalog.=) $1",
        installation.schema
    );
    let rows = read_as_owner(&installation, || {
        spi::query(&sql, vec![name.into()], Mode::ReadOnly, |row| Pullable {
            task: row.get(1).unwrap_or_default(),
            file: row.get(2).unwrap_or_default(),
            repository: row.get(3),
            revision: row.get(4),
            sha256: row.get::<String>(5).as_deref().and_then(from_hex),
            licence: row.get(6),
            query_prompt: row.get(7),
            passage_prompt: row.get(8),
            dimensions: lengths(row.get(9)),
        })
    })?;
    Ok(rows.into_iter().next())
}
