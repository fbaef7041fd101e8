//! Texts with a given number of tokens, all of them different: nothing of one is found in a cache of another.

/// Makes texts; the same ones in every run.
#[derive(Debug)]
pub(crate) struct Prompts {
    state: u64,
}

impl Prompts {
    pub(crate) fn new() -> Self {
        Prompts { state: 0x9e37_79b9_7f4a_7c15 }
    }

    /// A text of made-up words which `count` finds to have exactly `tokens` tokens.
    pub(crate) fn text(&mut self, tokens: usize, count: impl Fn(&str) -> usize) -> String {
        let mut text = self.letters(6);
        while count(&text) + 12 < tokens {
            text += &format!(" {}", self.letters(3));
        }
        for _ in 0..10_000 {
            match count(&text) {
                now if now == tokens => return text,
                now if now > tokens => {
                    text.pop();
                }
                _ => {
                    let length = 1 + self.below(3);
                    text += &format!("{}{}", if length == 1 { "" } else { " " }, self.letters(length));
                }
            }
        }
        panic!("no text of {tokens} tokens was found");
    }

    fn letters(&mut self, count: usize) -> String {
        (0..count).map(|_| char::from(b'a' + self.below(26) as u8)).collect()
    }

    /// Xorshift.
    fn below(&mut self, bound: usize) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 33) as usize % bound
    }
}
