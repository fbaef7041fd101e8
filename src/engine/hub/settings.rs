//! Settings of a hub for downloads, and the token that is shown to it.

use std::fmt;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use super::error::HubError;

/// The hub that everybody means.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
/// Bytes of a file with a token.
const MAX_TOKEN: u64 = 4096;

/// The settings of a hub, with the time limits and retries for its downloads.
#[derive(Debug, Clone)]
pub struct Hub {
    /// `https://huggingface.co`, or that of a mirror.
    pub endpoint: String,
    /// The token of the account that asks; `None` asks as anybody.
    pub token: Option<Token>,
    /// Whether downloads are switched off.
    pub offline: bool,
    /// Whether the downloading thread slows down while others want all processors.
    pub gives_way: bool,
    /// Longest time to wait for the response, and for each read and write of a connection.
    pub silence: Duration,
    /// Number of attempts in a row that may bring nothing before the download fails.
    pub tries: u32,
    /// The pause after the first of them; it doubles each time, up to a minute.
    pub first_pause: Duration,
}

impl Default for Hub {
    fn default() -> Hub {
        Hub {
            endpoint: DEFAULT_ENDPOINT.to_owned(),
            token: None,
            offline: false,
            gives_way: false,
            silence: Duration::from_secs(60),
            tries: 6,
            first_pause: Duration::from_secs(1),
        }
    }
}

/// A token, which no message shows.
#[derive(Clone)]
pub struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

impl Token {
    /// The token itself, which only the hub may be shown.
    pub(super) fn secret(&self) -> &str {
        &self.0
    }

    /// A token as somebody has it; `None` where there is nothing but space.
    ///
    /// # Errors
    /// [`HubError::Setting`] for what no header may have.
    pub fn new(text: &str) -> Result<Option<Token>, HubError> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(None);
        }
        if text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Ok(Some(Token(text.to_owned())));
        }
        Err(HubError::Setting {
            setting: "the token",
            reason: "it has characters that no token has".to_owned(),
        })
    }

    /// The token in a file.
    ///
    /// # Errors
    /// [`HubError::Setting`].
    pub fn read(path: &Path) -> Result<Option<Token>, HubError> {
        let wrong = |reason: String| HubError::Setting {
            setting: "the token's file",
            reason: format!("\"{}\": {reason}", path.display()),
        };
        let file = std::fs::File::open(path).map_err(|error| wrong(error.to_string()))?;
        let mut text = String::new();
        file.take(MAX_TOKEN + 1).read_to_string(&mut text).map_err(|error| wrong(error.to_string()))?;
        match text.len() as u64 {
            length if length > MAX_TOKEN => Err(wrong("it is too long for a token".to_owned())),
            _ => Token::new(&text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Token;

    #[test]
    fn a_token_shows_itself_to_nobody_and_is_one_word() {
        let token = Token::new(" hf_secret\n").unwrap().unwrap();
        assert!(!format!("{token:?}").contains("secret"));
        assert!(Token::new(" \n").unwrap().is_none());
        let error = Token::new("hf_secret\r\nX: y").unwrap_err();
        assert!(!error.to_string().contains("secret"));
    }
}
