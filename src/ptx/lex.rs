//! PTX text cut into tokens. A word keeps its dots (`ld.global.v4.f32`, `%tid.x`, `.reg`), for no rule of the language
//! wants them apart.

use super::module::ParseError;

/// One token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Token<'a> {
    /// A name, an opcode with its modifiers, or a directive.
    Word(&'a str),
    /// An integer, in two's complement once its sign is applied.
    Integer(u64),
    /// `0f…`: the bits of an f32.
    F32(u32),
    /// `0d…` or a decimal fraction.
    F64(f64),
    /// The inside of a pair of quotes.
    Text(&'a str),
    Punctuation(char),
}

/// A token and the line that it stands in, from 1.
pub(super) type Located<'a> = (Token<'a>, u32);

/// All tokens of `text`.
pub(super) fn tokens(text: &str) -> Result<Vec<Located<'_>>, ParseError> {
    let mut lexer = Lexer { rest: text, line: 1 };
    let mut out = Vec::new();
    while lexer.skip_blanks()? {
        let line = lexer.line;
        out.push((lexer.token()?, line));
    }
    Ok(out)
}

struct Lexer<'a> {
    rest: &'a str,
    line: u32,
}

impl<'a> Lexer<'a> {
    fn error(&self, reason: impl Into<String>) -> ParseError {
        ParseError { line: self.line, reason: reason.into() }
    }

    /// Skips blanks and comments; whether anything is left.
    fn skip_blanks(&mut self) -> Result<bool, ParseError> {
        loop {
            let trimmed = self.rest.trim_start();
            self.advance(self.rest.len() - trimmed.len());
            if self.rest.starts_with("//") {
                self.advance(self.rest.find('\n').unwrap_or(self.rest.len()));
            } else if self.rest.starts_with("/*") {
                let end = self.rest.find("*/").ok_or_else(|| self.error("a comment has no end"))?;
                self.advance(end + 2);
            } else {
                return Ok(!self.rest.is_empty());
            }
        }
    }

    fn advance(&mut self, bytes: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(bytes);
        self.line += taken.bytes().filter(|b| *b == b'\n').count() as u32;
        self.rest = rest;
        taken
    }

    fn token(&mut self) -> Result<Token<'a>, ParseError> {
        let Some(first) = self.rest.chars().next() else { return Err(self.error("the text ends here")) };
        match first {
            '0'..='9' => self.number(),
            '"' => {
                let end = self.rest[1..].find('"').ok_or_else(|| self.error("a text has no closing quote"))?;
                Ok(Token::Text(&self.advance(end + 2)[1..end + 1]))
            }
            c if is_word(c) || c == '.' => Ok(Token::Word(self.word())),
            c if "@!,;:{}[]()<>=+-|".contains(c) => {
                self.advance(1);
                Ok(Token::Punctuation(c))
            }
            c => Err(self.error(format!("`{}` has no meaning here", c.escape_default()))),
        }
    }

    fn word(&mut self) -> &'a str {
        let bytes = self.rest.as_bytes();
        let mut end = 0;
        while let Some(b) = bytes.get(end) {
            match b {
                b'.' => end += 1,
                b':' if bytes.get(end + 1) == Some(&b':') => end += 2,
                b if is_word(*b as char) => end += 1,
                _ => break,
            }
        }
        self.advance(end)
    }

    fn number(&mut self) -> Result<Token<'a>, ParseError> {
        let bytes = self.rest.as_bytes();
        let mut end = 0;
        while let Some(b) = bytes.get(end) {
            let exponent = end > 0 && matches!(b, b'+' | b'-') && matches!(bytes[end - 1], b'e' | b'E');
            // `1e-5` has a sign inside; `0x1e-5` is a difference, which nothing generates.
            if b.is_ascii_alphanumeric() || *b == b'.' || (exponent && !is_prefixed(bytes)) {
                end += 1;
            } else {
                break;
            }
        }
        let text = self.advance(end);
        number(text).ok_or_else(|| self.error(format!("`{text}` is not a number")))
    }
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '%')
}

fn is_prefixed(bytes: &[u8]) -> bool {
    bytes[0] == b'0' && bytes.get(1).is_some_and(|b| b"xXfFdDbB".contains(b))
}

fn number(text: &str) -> Option<Token<'static>> {
    let digits = text.get(2..).unwrap_or("");
    match text.get(..2) {
        Some("0f" | "0F") if digits.len() == 8 => return u32::from_str_radix(digits, 16).ok().map(Token::F32),
        Some("0d" | "0D") if digits.len() == 16 => {
            return u64::from_str_radix(digits, 16).ok().map(|bits| Token::F64(f64::from_bits(bits)));
        }
        _ => {}
    }
    let integer = text.trim_end_matches('U');
    let parsed = match integer.get(..2) {
        Some("0x" | "0X") => u64::from_str_radix(integer.get(2..)?, 16),
        Some("0b" | "0B") => u64::from_str_radix(integer.get(2..)?, 2),
        _ if integer.len() > 1 && integer.starts_with('0') && !integer.contains(['.', 'e', 'E']) => {
            u64::from_str_radix(&integer[1..], 8)
        }
        _ => integer.parse(),
    };
    match parsed {
        Ok(value) => Some(Token::Integer(value)),
        Err(_) if text.contains(['.', 'e', 'E']) => text.parse().ok().map(Token::F64),
        Err(_) => None,
    }
}
