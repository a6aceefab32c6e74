//! Words of the label selector language.

/// One word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    /// End of the text.
    End,
    /// A character sequence that is no operator.
    Error,
    /// Key or value.
    Identifier,
    /// `,`
    Comma,
    /// `(`
    Open,
    /// `)`
    Close,
    /// `!`
    Not,
    /// `==`
    DoubleEquals,
    /// `=`
    Equals,
    /// `!=`
    NotEquals,
    /// `>`
    Greater,
    /// `<`
    Less,
    /// `in`
    In,
    /// `notin`
    NotIn,
}

fn is_special(c: char) -> bool {
    matches!(c, '=' | '!' | '(' | ')' | ',' | '>' | '<')
}

fn symbol(text: &str) -> Option<Token> {
    Some(match text {
        ")" => Token::Close,
        "," => Token::Comma,
        "!" => Token::Not,
        "==" => Token::DoubleEquals,
        "=" => Token::Equals,
        ">" => Token::Greater,
        "<" => Token::Less,
        "!=" => Token::NotEquals,
        "(" => Token::Open,
        _ => return None,
    })
}

/// Splits a selector into words. The last one is always [`Token::End`].
pub(super) fn scan(text: &str) -> Vec<(Token, String)> {
    let mut words = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\r', '\n']);
        let Some(first) = rest.chars().next() else {
            words.push((Token::End, String::new()));
            return words;
        };
        let (token, length) = if is_special(first) {
            scan_symbol(rest)
        } else {
            scan_word(rest)
        };
        let (word, tail) = rest.split_at(length);
        let literal = if token == Token::Error {
            format!("error expected: keyword found '{word}'")
        } else {
            word.to_owned()
        };
        words.push((token, literal));
        rest = tail;
    }
}

/// The longest operator at the start of `text`.
fn scan_symbol(text: &str) -> (Token, usize) {
    let run = text.find(|c| !is_special(c)).unwrap_or(text.len());
    for length in (1..=run.min(2)).rev() {
        if let Some(token) = symbol(&text[..length]) {
            return (token, length);
        }
    }
    (Token::Error, run)
}

fn scan_word(text: &str) -> (Token, usize) {
    let end = text
        .find(|c: char| is_special(c) || matches!(c, ' ' | '\t' | '\r' | '\n'))
        .unwrap_or(text.len());
    match &text[..end] {
        "in" => (Token::In, end),
        "notin" => (Token::NotIn, end),
        _ => (Token::Identifier, end),
    }
}
