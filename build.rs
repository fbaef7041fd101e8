//! Gathers what the library must know of the install script: the names of its functions, by which
//! `src/pg/own_context.rs` knows them in an error, where nobody may look anything up.
#![allow(clippy::print_stdout, reason = "what Cargo reads of a build script")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs, io};

/// How the definition of a function of the API begins, in each fragment.
const CREATES: &str = "create function @extschema@.";

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=sql");
    let mut names = BTreeSet::new();
    for fragment in fs::read_dir("sql")? {
        let text = fs::read_to_string(fragment?.path())?;
        let created = text.lines().filter_map(|line| line.strip_prefix(CREATES));
        names.extend(created.filter_map(|rest| Some(rest.split_once('(')?.0.to_owned())));
    }
    let mut code = String::from("/// In the order of their bytes.\nconst OWN_FUNCTIONS: &[&str] = &[\n");
    for name in names {
        writeln!(code, "    {name:?},").map_err(io::Error::other)?;
    }
    code.push_str("];\n");
    let folder = env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("Cargo says no OUT_DIR"))?;
    fs::write(Path::new(&folder).join("own_functions.rs"), code)
}
