//! Tokens, by the lexical rules of the CEL specification.

use std::sync::Arc;

use super::ast::Literal;
use super::literal;
use crate::error::Issue;

/// A token.
#[derive(Debug, Clone, PartialEq)]
pub enum Token {
    /// A name.
    Ident(Arc<str>),
    /// A name in backticks, allowed behind a dot.
    Quoted(Arc<str>),
    /// A constant. Numbers come without their sign.
    Literal(Literal),
    /// The magnitude of the smallest int, which only a minus in front makes valid.
    MinMagnitude,
    /// Operators and brackets.
    Sign(&'static str),
    /// The end.
    End,
}

/// A token with its place.
#[derive(Debug, Clone)]
pub struct Lexeme {
    /// What.
    pub token: Token,
    /// Where it begins.
    pub at: usize,
    /// Where it ends.
    pub end: usize,
}

/// Longest first.
const SIGNS: [&str; 24] = [
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "+", "-", "*", "/", "%", "!", "?", ":", ".", ",",
    "(", ")", "[", "]", "{", "}",
];

/// Splits a source into tokens.
///
/// # Errors
/// For text that begins no token, and strings without end.
pub fn lex(source: &str) -> Result<Vec<Lexeme>, Issue> {
    let mut lexer = Lexer { source, at: 0 };
    let mut found = Vec::new();
    loop {
        lexer.skip_blanks();
        let at = lexer.at;
        let token = lexer.token()?;
        let done = token == Token::End;
        found.push(Lexeme {
            token,
            at,
            end: lexer.at,
        });
        if done {
            return Ok(found);
        }
    }
}

struct Lexer<'s> {
    source: &'s str,
    at: usize,
}

impl<'s> Lexer<'s> {
    fn rest(&self) -> &'s str {
        &self.source[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn skip_blanks(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start_matches([' ', '\t', '\n', '\r', '\x0c']);
            self.at += rest.len() - trimmed.len();
            if !trimmed.starts_with("//") {
                return;
            }
            self.at += trimmed.find('\n').unwrap_or(trimmed.len());
        }
    }

    fn issue(&self, at: usize, message: impl Into<String>) -> Issue {
        Issue::new(at, format!("Syntax error: {}", message.into()))
    }

    fn take_while(&mut self, test: impl Fn(char) -> bool) -> &'s str {
        let rest = self.rest();
        let length = rest.find(|c| !test(c)).unwrap_or(rest.len());
        self.at += length;
        &rest[..length]
    }

    fn token(&mut self) -> Result<Token, Issue> {
        let Some(first) = self.peek() else {
            return Ok(Token::End);
        };
        if let Some(length) = literal::string_prefix(self.rest()) {
            return self.string(length);
        }
        if first.is_ascii_alphabetic() || first == '_' {
            let word = self.take_while(|c| c.is_ascii_alphanumeric() || c == '_');
            return Ok(match word {
                "true" => Token::Literal(Literal::Bool(true)),
                "false" => Token::Literal(Literal::Bool(false)),
                "null" => Token::Literal(Literal::Null),
                "in" => Token::Sign("in"),
                _ => Token::Ident(word.into()),
            });
        }
        let fraction = first == '.'
            && self
                .rest()
                .chars()
                .nth(1)
                .is_some_and(|c| c.is_ascii_digit());
        if first.is_ascii_digit() || fraction {
            return self.number();
        }
        if first == '`' {
            return self.quoted();
        }
        for sign in SIGNS {
            if self.rest().starts_with(sign) {
                self.at += sign.len();
                return Ok(Token::Sign(sign));
            }
        }
        Err(self.issue(self.at, format!("token recognition error at: '{first}'")))
    }

    fn quoted(&mut self) -> Result<Token, Issue> {
        let start = self.at;
        let name = self.rest()[1..].split('`').next().unwrap_or_default();
        let closed = self.rest()[1..].len() > name.len();
        let fits = |c: char| c.is_ascii_alphanumeric() || "_.-/ ".contains(c);
        if !closed || name.is_empty() || !name.chars().all(fits) {
            return Err(self.issue(start, "token recognition error at: '`'"));
        }
        self.at += name.len() + 2;
        Ok(Token::Quoted(name.into()))
    }

    fn string(&mut self, prefix: usize) -> Result<Token, Issue> {
        let start = self.at;
        match literal::string(self.rest(), prefix) {
            Ok((literal, length)) => {
                self.at += length;
                Ok(Token::Literal(literal))
            }
            Err(message) => Err(self.issue(start, message)),
        }
    }

    fn number(&mut self) -> Result<Token, Issue> {
        let start = self.at;
        let rest = self.rest();
        if rest.starts_with("0x") || rest.starts_with("0X") {
            self.at += 2;
            let digits = self.take_while(|c| c.is_ascii_hexdigit());
            return self.whole(start, u64::from_str_radix(digits, 16).ok());
        }
        self.take_while(|c| c.is_ascii_digit());
        let mut float = false;
        let mut after = self.rest().chars();
        if after.next() == Some('.') && after.next().is_some_and(|c| c.is_ascii_digit()) {
            float = true;
            self.at += 1;
            self.take_while(|c| c.is_ascii_digit());
        }
        if let Some(exponent) = self.rest().strip_prefix(['e', 'E']) {
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            if digits.starts_with(|c: char| c.is_ascii_digit()) {
                float = true;
                self.at += 1 + (exponent.len() - digits.len());
                self.take_while(|c| c.is_ascii_digit());
            }
        }
        let text = &self.source[start..self.at];
        if float {
            return match text.parse::<f64>() {
                Ok(number) if number.is_finite() => Ok(Token::Literal(Literal::Double(number))),
                _ => Err(self.issue(start, "invalid double literal")),
            };
        }
        self.whole(start, text.parse().ok())
    }

    fn whole(&mut self, start: usize, number: Option<u64>) -> Result<Token, Issue> {
        let unsigned = self.rest().starts_with(['u', 'U']);
        if unsigned {
            self.at += 1;
        }
        match (number, unsigned) {
            (Some(number), true) => Ok(Token::Literal(Literal::Uint(number))),
            (Some(number), false) if number == 1 << 63 => Ok(Token::MinMagnitude),
            (Some(number), false) if number < 1 << 63 => {
                Ok(Token::Literal(Literal::Int(number as i64)))
            }
            (_, true) => Err(self.issue(start, "invalid uint literal")),
            (_, false) => Err(self.issue(start, "invalid int literal")),
        }
    }
}
