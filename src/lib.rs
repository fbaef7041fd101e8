//! pg_steadytext
