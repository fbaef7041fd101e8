//! `logits`: the tokens that the model expects after a text.

use std::fs::File;
use std::io::{BufWriter, Write};

use steadytext_engine::tokenizer::Tokenizer;
use steadytext_engine::{Instructions, Probe};

use super::Error;
use super::arguments::Arguments;
use super::json::JsonObject;

/// Most likely tokens that are shown for each row.
const SHOWN: usize = 5;

/// Prints tokens and their most likely successors; writes all logits with `--out`.
pub(super) fn run(arguments: &Arguments) -> Result<(), Error> {
    let mut probe = Probe::open_on(
        arguments.backend.expected(arguments.kv_cache_type),
        &arguments.source(),
        arguments.compute_threads(),
        Instructions::best(),
    )?;
    let tokenizer = Tokenizer::from_gguf(probe.gguf())?;
    let text = arguments.text()?;
    let mut tokens =
        if arguments.marked { tokenizer.encode_marked(&text)? } else { tokenizer.encode(&text)? };
    if let Some(bos) = tokenizer.bos()
        && tokens.first() != Some(&bos)
    {
        tokens.insert(0, bos);
    }
    let mut out = arguments.out.as_ref().map(File::create).transpose()?.map(BufWriter::new);
    let mut rows = 0;
    let mut failed = None;
    let mut row = |position: usize, logits: &[f32]| {
        rows += 1;
        let written = show(&tokenizer, position, tokens[position], logits).and_then(|()| match &mut out {
            Some(out) => logits.iter().try_for_each(|logit| Ok(out.write_all(&logit.to_le_bytes())?)),
            None => Ok(()),
        });
        if let Err(error) = written {
            failed.get_or_insert(error);
        }
    };
    if arguments.all {
        let mut position = 0;
        probe.extend_each(&tokens, |logits| {
            row(position, logits);
            position += 1;
        })?;
    } else if let Some(logits) = probe.extend(&tokens)? {
        row(tokens.len() - 1, logits);
    }
    if let Some(error) = failed {
        return Err(error);
    }
    if let Some(mut out) = out {
        out.flush()?;
    }
    JsonObject::default()
        .numbers("tokens", &tokens)
        .number("rows", rows)
        .number("vocabulary", probe.vocabulary())
        .print()
}

/// Prints one row: a token and the most likely ones after it.
fn show(tokenizer: &Tokenizer, position: usize, token: u32, logits: &[f32]) -> Result<(), Error> {
    let text = |id: u32| String::from_utf8_lossy(tokenizer.token_bytes(id)).into_owned();
    let mut best: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
    best.sort_by(|a, b| b.1.total_cmp(&a.1));
    best.truncate(SHOWN);
    let next = best.iter().map(|(id, logit)| {
        JsonObject::default().number("id", id).text("text", &text(*id)).number("logit", logit).json()
    });
    JsonObject::default()
        .number("position", position)
        .number("token", token)
        .text("text", &text(token))
        .numbers("next", next)
        .print()
}
