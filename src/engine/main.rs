//! `steadytext-engine`: tries a model without a server.

mod cli;

use std::process::ExitCode;

use steadytext_engine::memory::Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> ExitCode {
    cli::run(std::env::args_os().skip(1).collect())
}
