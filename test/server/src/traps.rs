//! Objects by which somebody who may create in a schema tries to be run by somebody stronger.

/// Plants operators, functions and types in schema public, each of which notes in `public.caught` who runs it. Wants two
/// temporary tables: `script (body text)` and `own_functions (name text, arguments text[])`.
pub const TRAPS: &str = include_str!("traps.sql");
