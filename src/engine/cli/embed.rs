//! `embed`: the embedding of a text.

use steadytext_engine::{Embed, Work};

use super::Error;
use super::arguments::Arguments;

/// Prints the events of the request, the last one with the vector.
pub(super) fn run(arguments: &Arguments) -> Result<(), Error> {
    super::generate::follow(arguments, Work::Embed(Embed::passage(arguments.text()?)))
}
