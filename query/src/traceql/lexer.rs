//! TraceQL text to tokens, each with where it begins.
//!
//! A `.` belongs to an attribute's name, and so does nearly everything up to the next blank: `span.data-size` is one
//! name, `span.data - 1` is arithmetic.

use super::parser::ParseError;

/// A token and the byte that it begins at.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    pub(super) kind: TokenKind,
    pub(super) at: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum TokenKind {
    /// A bare word: a keyword, an intrinsic or a function.
    Word(String),
    /// `span.http.route` is `("span", "http.route")`, `.x` is `("", "x")`.
    Attribute(&'static str, String),
    /// `span:name`.
    Scoped(&'static str, String),
    Text(String),
    Integer(i64),
    Float(f64),
    /// Nanoseconds.
    Duration(i64),
    Symbol(&'static str),
    End,
}

impl TokenKind {
    /// As an error names it.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Word(word) => word.clone(),
            Self::Attribute(scope, name) => format!("{scope}.{name}"),
            Self::Scoped(scope, name) => format!("{scope}:{name}"),
            Self::Text(text) => format!("{text:?}"),
            Self::Integer(value) => value.to_string(),
            Self::Float(value) => value.to_string(),
            Self::Duration(nanos) => format!("{nanos}ns"),
            Self::Symbol(symbol) => (*symbol).to_owned(),
            Self::End => "end of query".to_owned(),
        }
    }
}

/// Longest first.
const SYMBOLS: &[&str] = &[
    "!>>", "!<<", "&>>", "&<<", "&&", "||", "!>", "!<", "!~", "!=", "&>", "&<", "&~", ">>", "<<", ">=", "<=", "=~",
    "=", ">", "<", "~", "!", "+", "-", "*", "/", "%", "^", "(", ")", "{", "}", ",", "|",
];

const ATTRIBUTE_SCOPES: &[&str] = &["span", "resource", "event", "link", "instrumentation", "parent"];
const INTRINSIC_SCOPES: &[&str] = &["span", "trace", "event", "link", "instrumentation"];

/// Nanoseconds of each unit of a duration.
const UNITS: &[(&str, f64)] = &[
    ("ns", 1.0),
    ("us", 1e3),
    ("µs", 1e3),
    ("μs", 1e3),
    ("ms", 1e6),
    ("s", 1e9),
    ("m", 60e9),
    ("h", 3600e9),
    ("d", 86_400e9),
    ("w", 604_800e9),
    ("y", 31_536_000e9),
];

pub(super) fn tokens(source: &str) -> Result<Vec<Token>, ParseError> {
    let mut lexer = Lexer { source, at: 0 };
    let mut out = Vec::new();
    loop {
        let token = lexer.token()?;
        let end = token.kind == TokenKind::End;
        out.push(token);
        if end {
            return Ok(out);
        }
    }
}

/// Whether a character ends an attribute's name.
pub(super) fn ends_name(c: char) -> bool {
    c.is_whitespace() || "{}()=~!<>&|^,".contains(c)
}

/// Reads `1h30m`, `1.5s`, `100ms` as nanoseconds.
pub fn duration(text: &str) -> Option<i64> {
    let (mut rest, mut nanos) = (text, 0.0_f64);
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|at| *at > 0)?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let (_, unit) = UNITS.iter().find(|(name, _)| **name == rest[..letters])?;
        nanos += number * unit;
        rest = &rest[letters..];
    }
    // Within 2^53 nanoseconds, 104 days, this is exact.
    (nanos < 9.2e18).then_some(nanos.round() as i64)
}

struct Lexer<'a> {
    source: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn error(&self, at: usize, message: impl Into<String>) -> ParseError {
        ParseError::syntax(self.source, at, message)
    }

    fn token(&mut self) -> Result<Token, ParseError> {
        while let Some(c) = self.peek().filter(|c| c.is_whitespace()) {
            self.at += c.len_utf8();
        }
        let at = self.at;
        let Some(c) = self.peek() else { return Ok(Token { kind: TokenKind::End, at }) };
        let kind = match c {
            '"' | '`' => TokenKind::Text(self.text(c)?),
            '.' if self.rest()[1..].starts_with(|next: char| next.is_ascii_digit()) => self.number()?,
            '.' => {
                self.at += 1;
                TokenKind::Attribute("", self.attribute_name(at)?)
            }
            '0'..='9' => self.number()?,
            c if c.is_alphabetic() || c == '_' => self.word(at)?,
            _ => {
                let symbol = SYMBOLS.iter().copied().find(|symbol| self.rest().starts_with(symbol));
                let symbol = symbol.ok_or_else(|| self.error(at, format!("unexpected {c:?}")))?;
                self.at += symbol.len();
                TokenKind::Symbol(symbol)
            }
        };
        Ok(Token { kind, at })
    }

    fn word(&mut self, at: usize) -> Result<TokenKind, ParseError> {
        let word = self.plain_word();
        let known = |scopes: &'static [&'static str]| scopes.iter().copied().find(|scope| *scope == word);
        match (self.peek(), known(ATTRIBUTE_SCOPES), known(INTRINSIC_SCOPES)) {
            (Some('.'), Some(scope), _) => {
                self.at += 1;
                Ok(TokenKind::Attribute(scope, self.attribute_name(at)?))
            }
            (Some('.'), None, _) => {
                Err(self.error(at, format!("unknown scope {word:?}; an attribute without one begins with a dot")))
            }
            (Some(':'), _, Some(scope)) => {
                self.at += 1;
                let name = self.plain_word();
                if name.is_empty() {
                    return Err(self.error(at, format!("a name is missing after {scope}:")));
                }
                Ok(TokenKind::Scoped(scope, name))
            }
            _ => Ok(TokenKind::Word(word)),
        }
    }

    fn plain_word(&mut self) -> String {
        let rest = self.rest();
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        let word = rest[..end].to_owned();
        self.at += end;
        word
    }

    /// A name, or parts of it in quotes: `span."a b".c`.
    fn attribute_name(&mut self, at: usize) -> Result<String, ParseError> {
        let mut name = String::new();
        while let Some(c) = self.peek().filter(|c| !ends_name(*c)) {
            if c == '"' {
                name.push_str(&self.text(c)?);
            } else {
                name.push(c);
                self.at += c.len_utf8();
            }
        }
        if name.is_empty() {
            return Err(self.error(at, "the name of an attribute is missing"));
        }
        Ok(name)
    }

    fn text(&mut self, quote: char) -> Result<String, ParseError> {
        let begun = self.at;
        self.at += 1;
        let mut out = String::new();
        loop {
            let at = self.at;
            let c = self.peek().ok_or_else(|| self.error(begun, "a text has no end"))?;
            self.at += c.len_utf8();
            match c {
                c if c == quote => return Ok(out),
                '\\' if quote == '"' => out.push(self.escape(at)?),
                '\n' if quote == '"' => return Err(self.error(begun, "a text has no end")),
                c => out.push(c),
            }
        }
    }

    /// What follows a backslash.
    fn escape(&mut self, at: usize) -> Result<char, ParseError> {
        let unknown = |lexer: &Self| lexer.error(at, "unknown escape in a text");
        let c = self.peek().ok_or_else(|| unknown(self))?;
        self.at += c.len_utf8();
        Ok(match c {
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            'a' => '\u{7}',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'v' => '\u{b}',
            '\\' | '"' | '\'' => c,
            'x' | 'u' | 'U' => {
                let digits = match c {
                    'x' => 2,
                    'u' => 4,
                    _ => 8,
                };
                let hex = self.rest().get(..digits).filter(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
                let code = hex.and_then(|hex| u32::from_str_radix(hex, 16).ok()).and_then(char::from_u32);
                let code = code.ok_or_else(|| unknown(self))?;
                self.at += digits;
                code
            }
            _ => return Err(unknown(self)),
        })
    }

    fn number(&mut self) -> Result<TokenKind, ParseError> {
        let at = self.at;
        let rest = self.rest();
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let after = &rest[digits..];
        let end = match exponent(after) {
            Some(length) => digits + length,
            None if after.starts_with(|c: char| c.is_alphabetic()) => {
                let end = rest.find(|c: char| !c.is_alphanumeric() && c != '.').unwrap_or(rest.len());
                let text = rest[..end].to_owned();
                self.at += end;
                let nanos = duration(&text).ok_or_else(|| self.error(at, format!("{text:?} is no duration")))?;
                return Ok(TokenKind::Duration(nanos));
            }
            None => digits,
        };
        let text = rest[..end].to_owned();
        self.at += end;
        let bad = || self.error(at, format!("{text:?} is no number, or one out of range"));
        if text.contains(['.', 'e', 'E']) {
            let value: f64 = text.parse().map_err(|_| bad())?;
            return if value.is_finite() { Ok(TokenKind::Float(value)) } else { Err(bad()) };
        }
        text.parse().map(TokenKind::Integer).map_err(|_| bad())
    }
}

/// Length of `e3`, `E-7`.
fn exponent(text: &str) -> Option<usize> {
    let sign = text.strip_prefix(['e', 'E'])?;
    let digits = sign.strip_prefix(['+', '-']).unwrap_or(sign);
    let count = digits.bytes().take_while(u8::is_ascii_digit).count();
    let followed = digits[count..].starts_with(|c: char| c.is_alphabetic());
    (count > 0 && !followed).then(|| text.len() - digits.len() + count)
}
