//! String and bytes literals and their escapes.

use super::ast::Literal;

/// How a string literal begins.
struct Prefix {
    bytes: bool,
    raw: bool,
    length: usize,
}

fn prefix(text: &str) -> Prefix {
    let mut found = Prefix {
        bytes: false,
        raw: false,
        length: 0,
    };
    for c in text.chars().take(2) {
        match c {
            'b' | 'B' if !found.bytes => found.bytes = true,
            'r' | 'R' if !found.raw => found.raw = true,
            _ => break,
        }
        found.length += 1;
    }
    found
}

/// Length of the `b` and `r` in front of a string literal; `None` when there is no string.
pub fn string_prefix(text: &str) -> Option<usize> {
    let length = prefix(text).length;
    text[length..].starts_with(['"', '\'']).then_some(length)
}

/// Reads a string literal; returns it and the length of its text.
///
/// # Errors
/// In words that go behind "Syntax error: ".
pub fn string(text: &str, length: usize) -> Result<(Literal, usize), String> {
    let how = prefix(text);
    let body = &text[length..];
    let quote = &body[..1];
    let triple = quote.repeat(3);
    let mark: &str = if body.starts_with(&triple) {
        &triple
    } else {
        quote
    };
    let inside = &body[mark.len()..];
    let end =
        end_of(inside, mark, how.raw).ok_or("token recognition error at: unterminated string")?;
    let whole = length + mark.len() * 2 + end;
    let content = inside[..end].replace("\r\n", "\n").replace('\r', "\n");
    let decoded = if how.raw {
        content.into_bytes()
    } else {
        unescape(&content, how.bytes)?
    };
    let literal = if how.bytes {
        Literal::Bytes(decoded.into())
    } else {
        let text =
            String::from_utf8(decoded).map_err(|_| "invalid unicode code point".to_owned())?;
        Literal::String(text.into())
    };
    Ok((literal, whole))
}

/// Where the closing mark is.
fn end_of(text: &str, mark: &str, raw: bool) -> Option<usize> {
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with(mark) {
            return Some(at);
        }
        let c = rest.chars().next()?;
        if mark.len() == 1 && matches!(c, '\n' | '\r') {
            return None;
        }
        at += c.len_utf8();
        if c == '\\' && !raw {
            at += text[at..].chars().next()?.len_utf8();
        }
    }
    None
}

fn unescape(text: &str, bytes: bool) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        if c != '\\' {
            push(&mut out, c);
            continue;
        }
        let Some(kind) = rest.chars().next() else {
            return Err("unable to unescape string".to_owned());
        };
        rest = &rest[kind.len_utf8()..];
        let simple = match kind {
            'a' => Some('\x07'),
            'b' => Some('\x08'),
            'f' => Some('\x0c'),
            'n' => Some('\n'),
            'r' => Some('\r'),
            't' => Some('\t'),
            'v' => Some('\x0b'),
            '\\' | '?' | '"' | '\'' | '`' => Some(kind),
            _ => None,
        };
        if let Some(simple) = simple {
            push(&mut out, simple);
            continue;
        }
        let (digits, radix, skip) = match kind {
            'x' | 'X' => (2, 16, 0),
            'u' if !bytes => (4, 16, 0),
            'U' if !bytes => (8, 16, 0),
            '0'..='3' => (3, 8, 1),
            _ => return Err(format!("unable to unescape string: \\{kind}")),
        };
        // An octal escape begins with the digit that was just read.
        let from = if skip == 1 {
            format!("{kind}{rest}")
        } else {
            rest.to_owned()
        };
        let code = from
            .get(..digits)
            .filter(|d| d.chars().all(|c| c.is_digit(radix)))
            .and_then(|d| u32::from_str_radix(d, radix).ok())
            .ok_or_else(|| format!("unable to unescape string: \\{kind}"))?;
        rest = &rest[digits - skip..];
        if bytes {
            out.push(u8::try_from(code).map_err(|_| "byte escape out of range".to_owned())?);
        } else {
            push(
                &mut out,
                char::from_u32(code).ok_or("invalid unicode code point")?,
            );
        }
    }
    Ok(out)
}

fn push(out: &mut Vec<u8>, c: char) {
    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}
