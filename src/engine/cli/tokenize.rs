//! `tokenize`: the tokens of a text.

use steadytext_engine::template::Conversation;
use steadytext_engine::tokenizer::Tokenizer;

use super::Error;
use super::arguments::Arguments;
use super::json::JsonObject;

/// Prints one line with the ids and what each stands for; or one for each line of the text, which then is a
/// JSON string.
pub(super) fn run(arguments: &Arguments) -> Result<(), Error> {
    let gguf = arguments.gguf()?;
    let tokenizer = Tokenizer::from_gguf(&gguf)?;
    let text = arguments.text()?;
    if arguments.jsonl {
        return text.lines().try_for_each(|line| {
            let text: String = serde_json::from_str(line)
                .map_err(|error| Error::Usage(format!("a line is no JSON string: {error}")))?;
            print(&tokenizer, &tokenizer.encode(&text)?)
        });
    }
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
    } else if gguf.opt_str("tokenizer.ggml.model")? == Some("bert") {
        // Encoders see no text without the tokens around it.
        tokenizer.encode_embedding(&text)?
    } else {
        tokenizer.encode(&text)?
    };
    print(&tokenizer, &ids)
}

fn print(tokenizer: &Tokenizer, ids: &[u32]) -> Result<(), Error> {
    let pieces = ids.iter().map(|id| match tokenizer.special_text(*id) {
        Some(special) => special.to_owned(),
        None => String::from_utf8_lossy(tokenizer.token_bytes(*id)).into_owned(),
    });
    JsonObject::default()
        .number("count", ids.len())
        .numbers("ids", ids.iter())
        .texts("tokens", pieces)
        .print()
}
