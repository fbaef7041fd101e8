//! `tokenize`: the tokens of a text.

use steadytext_engine::template::Conversation;
use steadytext_engine::tokenizer::{Tokenizer, WordPiece};

use super::Error;
use super::arguments::Arguments;
use super::json::Object;

/// Prints one line with the ids and what each stands for.
pub(super) fn run(arguments: &Arguments) -> Result<(), Error> {
    let gguf = arguments.gguf()?;
    if gguf.opt_str("tokenizer.ggml.model")? == Some("bert") {
        let ids = WordPiece::from_gguf(&gguf)?.encode_text(&arguments.text()?).tokens;
        return Object::default().number("count", ids.len()).numbers("ids", ids.iter()).print();
    }
    let tokenizer = Tokenizer::from_gguf(&gguf)?;
    let text = arguments.text()?;
    let ids = if arguments.chat {
        let conversation = Conversation {
            system: arguments.system.as_deref(),
            prompt: &text,
            thinking: arguments.thinking,
            ..Conversation::default()
        };
        arguments.chat_template(&gguf)?.encode(&tokenizer, &conversation)?.tokens
    } else if arguments.marked {
        tokenizer.encode_marked(&text)?
    } else {
        tokenizer.encode(&text)?
    };
    let pieces = ids.iter().map(|id| match tokenizer.special_text(*id) {
        Some(special) => special.to_owned(),
        None => String::from_utf8_lossy(tokenizer.token_bytes(*id)).into_owned(),
    });
    Object::default().number("count", ids.len()).numbers("ids", ids.iter()).texts("tokens", pieces).print()
}
