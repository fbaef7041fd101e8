//! A database that was updated from an older version of the extension has what a new one has, to the last
//! comment and privilege.

use std::collections::BTreeSet;

use steadytext_test_server::{
    Cluster, MEMBERS, Migration, Options, OtherVersion, Session, default_version, install_script,
    opening_statement, released_versions,
};

/// Object, property and value.
type Fact = (String, String, String);

fn facts(session: &mut Session) -> BTreeSet<Fact> {
    let rows = session.query(MEMBERS, &[]).unwrap_or_else(|error| panic!("{error:?}"));
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

/// A new database with pgvector, and a session in it.
fn database(cluster: &Cluster, name: &str) -> Session {
    cluster.session("postgres").run(&format!("create database {name}"));
    let mut session = cluster.session(name);
    session.run("create extension vector");
    session
}

/// The objects of a database of this version.
fn installed(cluster: &Cluster, name: &str, version: &str) -> BTreeSet<Fact> {
    let mut session = database(cluster, name);
    session.run(&format!("create extension pg_steadytext version '{version}'"));
    facts(&mut session)
}

/// Whether install and update are one transaction: what the install has granted must outlast the update
/// there, too.
#[derive(Clone, Copy)]
enum Transactions {
    One,
    Two,
}

/// The objects of a database that was updated from one version to another.
fn updated(
    cluster: &Cluster,
    name: &str,
    from: &str,
    to: &str,
    transactions: Transactions,
) -> BTreeSet<Fact> {
    let mut session = database(cluster, name);
    let install = format!("create extension pg_steadytext version '{from}'");
    let update = format!("alter extension pg_steadytext update to '{to}'");
    match transactions {
        Transactions::One => session.run(&format!("begin; {install}; {update}; commit")),
        Transactions::Two => {
            session.run(&install);
            session.run(&update);
        }
    }
    facts(&mut session)
}

/// The objects that only one of them has, as lines.
fn differences(new: &BTreeSet<Fact>, updated: &BTreeSet<Fact>) -> Vec<String> {
    let line = |what: &str, fact: &Fact| format!("{what} has: {}, {}: {:.300}", fact.0, fact.1, fact.2);
    new.difference(updated)
        .map(|fact| line("a new database", fact))
        .chain(updated.difference(new).map(|fact| line("an updated one", fact)))
        .collect()
}

/// A statement of a later version.
struct Addition {
    /// The name by which those refer to it that cannot run without it.
    name: &'static str,
    /// The names of the additions that it cannot run without.
    needs: &'static [&'static str],
    statement: &'static str,
    /// The difference that the walk must report for a database whose update has left it out.
    missed: &'static str,
}

const fn addition(
    name: &'static str,
    needs: &'static [&'static str],
    statement: &'static str,
    missed: &'static str,
) -> Addition {
    Addition { name, needs, statement, missed }
}

/// Behind these two the install script grants privileges, and knows all functions of the API.
const CLOSING: &str = "select steadytext.close_new_objects()";
const TWINS: &str = "select steadytext.make_twins()";

/// Objects and properties of every kind that a later version may bring.
const ADDITIONS: [Addition; 27] = [
    addition(
        "function",
        &[],
        "create function @extschema@.steadytext_probe(x integer, y text default 'a') returns text language sql immutable
             as 'select y || x::pg_catalog.text'",
        "function steadytext_probe(integer,text), exists",
    ),
    addition(
        "",
        &["function"],
        "alter function @extschema@.steadytext_probe(integer, text) parallel safe cost 7",
        "PARALLEL SAFE",
    ),
    addition(
        "",
        &["function"],
        "alter function @extschema@.steadytext_probe(integer, text) set search_path = pg_catalog, pg_temp",
        "SET search_path",
    ),
    addition(
        "",
        &["function"],
        "comment on function @extschema@.steadytext_probe(integer, text) is 'A probe'",
        "function steadytext_probe(integer,text), comment",
    ),
    addition(
        "column",
        &[],
        "alter table @extschema@.steadytext_queue add column probe integer",
        "column probe of table steadytext_queue, properties",
    ),
    addition(
        "",
        &["column"],
        "alter table @extschema@.steadytext_queue alter column probe set default 3",
        "column probe of table steadytext_queue, default",
    ),
    addition(
        "",
        &["column"],
        "alter table @extschema@.steadytext_queue alter column probe set statistics 5",
        "statistics 5",
    ),
    addition(
        "",
        &["column"],
        "comment on column @extschema@.steadytext_queue.probe is 'A probe'",
        "column probe of table steadytext_queue, comment",
    ),
    addition(
        "",
        &["column"],
        "create index steadytext_probe_idx on @extschema@.steadytext_queue (probe) where probe is not null",
        "index steadytext_probe_idx, definition",
    ),
    addition(
        "",
        &["column"],
        "alter table @extschema@.steadytext_queue add constraint probe_check check (probe > 0) not valid",
        "constraint probe_check on table steadytext_queue, definition",
    ),
    addition("", &[], "alter table @extschema@.steadytext_queue set (fillfactor = 71)", "fillfactor=71"),
    addition(
        "table",
        &[],
        "create table @extschema@.steadytext_probes (id bigint generated always as identity primary key, name text not null)",
        "table steadytext_probes, exists",
    ),
    addition(
        "",
        &["table"],
        "select pg_catalog.pg_extension_config_dump('@extschema@.steadytext_probes', 'where id > 7')",
        "dumped steadytext_probes: where id > 7",
    ),
    addition(
        "",
        &["table"],
        "alter table @extschema@.steadytext_probes enable row level security",
        "row security t",
    ),
    addition(
        "policy",
        &["table"],
        "create policy own on @extschema@.steadytext_probes for select to steadytext_user using (name = current_user)",
        "policy own on table steadytext_probes, definition",
    ),
    addition(
        "",
        &["table", "policy"],
        "comment on policy own on @extschema@.steadytext_probes is 'Own ones'",
        "policy own on table steadytext_probes, comment",
    ),
    addition(
        "trigger function",
        &[],
        "create function steadytext.probe() returns trigger language plpgsql set search_path = pg_catalog, pg_temp
             as 'begin return new; end'",
        "function steadytext.probe(), definition",
    ),
    addition(
        "trigger",
        &["table", "trigger function"],
        "create trigger probe before insert on @extschema@.steadytext_probes for each row execute function steadytext.probe()",
        "trigger probe on table steadytext_probes, definition",
    ),
    addition(
        "",
        &["table", "trigger function", "trigger"],
        "alter table @extschema@.steadytext_probes enable always trigger probe",
        "enabled A",
    ),
    addition(
        "",
        &["table"],
        "create view @extschema@.steadytext_probe_names as select name from @extschema@.steadytext_probes",
        "view steadytext_probe_names, definition",
    ),
    addition(
        "enum",
        &[],
        "create type @extschema@.steadytext_probe_kind as enum ('a', 'b')",
        "type steadytext_probe_kind, properties",
    ),
    addition(
        "",
        &["enum"],
        "alter type @extschema@.steadytext_probe_kind add value 'c'",
        "values: a, b, c",
    ),
    addition(
        "",
        &[],
        "insert into @extschema@.steadytext_models (name, task, file, is_default) values ('probe', 'generate', 'probe.gguf', true)",
        "model probe, row",
    ),
    addition("", &[], CLOSING, "privilege EXECUTE of public"),
    addition(
        "",
        &["column"],
        "grant select (probe) on @extschema@.steadytext_queue to steadytext_worker",
        "column probe of table steadytext_queue, privilege SELECT of steadytext_worker",
    ),
    addition(
        "",
        &["function", "table"],
        "grant select on @extschema@.steadytext_probes to steadytext_user;
         grant execute on function @extschema@.steadytext_probe(integer, text) to steadytext_user",
        "privilege SELECT of steadytext_user",
    ),
    addition("", &[], TWINS, "function st_probe(integer,text), exists"),
];

/// The additions but one and those that need it.
fn additions_without(left_out: &str) -> Vec<&'static str> {
    let is_kept = |addition: &&Addition| {
        addition.statement != left_out
            && !ADDITIONS
                .iter()
                .any(|other| other.statement == left_out && addition.needs.contains(&other.name))
    };
    ADDITIONS.iter().filter(is_kept).map(|addition| addition.statement).collect()
}

fn script(statements: &[&str]) -> String {
    statements.iter().map(|statement| format!("{statement};\n")).collect()
}

/// An update from the installed version that brings these.
fn update(additions: &[&str]) -> Migration {
    Migration::write(&format!("{}\n{}", opening_statement(), script(additions)))
}

/// The installed version and all additions, each where the fragments would have it.
fn newer_version() -> OtherVersion {
    let additions = additions_without("");
    let place = |statement| additions.iter().position(|one| *one == statement).expect("it is one of them");
    let (made, granted) = (&additions[..place(CLOSING)], &additions[place(CLOSING) + 1..place(TWINS)]);
    let mut text = install_script();
    for (statement, added) in [(CLOSING, made), (TWINS, granted)] {
        let statement = format!("\n{statement};\n");
        assert_eq!(text.matches(&statement).count(), 1, "{statement}");
        text = text.replace(&statement, &format!("\n{}{statement}", script(added)));
    }
    OtherVersion::write(&text)
}

#[test]
fn an_update_that_brings_all_that_is_new_leaves_no_difference() {
    let cluster = Options::new().start();
    let newer = newer_version();
    let new = installed(&cluster, "fresh", newer.version());
    let migration = update(&additions_without(""));
    for (name, transactions) in [("updated", Transactions::Two), ("at_once", Transactions::One)] {
        let updated = updated(&cluster, name, &default_version(), migration.version(), transactions);
        assert_eq!(differences(&new, &updated), [""; 0], "{name}");
    }
    assert!(new.len() > 5000, "the walk sees {} facts only", new.len());
}

#[test]
fn whatever_an_update_forgets_is_found() {
    let cluster = Options::new().start();
    let newer = newer_version();
    let new = installed(&cluster, "fresh", newer.version());
    let mut unnoticed = Vec::new();
    for (i, Addition { statement, missed, .. }) in ADDITIONS.iter().enumerate() {
        let migration = update(&additions_without(statement));
        let name = format!("forgetful{i}");
        let updated = updated(&cluster, &name, &default_version(), migration.version(), Transactions::Two);
        let found = differences(&new, &updated);
        if !found.iter().any(|line| line.contains(missed)) {
            unnoticed.push(format!("{statement}: {missed} is not in {found:#?}"));
        }
        cluster.session("postgres").run(&format!("drop database {name} with (force)"));
    }
    assert_eq!(unnoticed, [""; 0]);
}

#[test]
fn every_released_version_leads_to_what_a_new_database_has() {
    let cluster = Options::new().start();
    let present = default_version();
    let new = installed(&cluster, "fresh", &present);
    for (i, (version, install_script)) in released_versions().into_iter().enumerate() {
        if version == present {
            continue;
        }
        let older = OtherVersion::released(&version, &install_script);
        let updated =
            updated(&cluster, &format!("released{i}"), older.version(), &present, Transactions::Two);
        assert_eq!(differences(&new, &updated), [""; 0], "from {version} to {present}");
    }
}
