//! Declarations of functions as text: `string.startsWith(string): bool` is a member, `size(string): int` is not,
//! and `sets::contains(list(A), list(A)): bool` is `sets.contains`. One upper-case letter is a type parameter.

use super::{Overload, opaque};
use crate::types::Type;

/// Reads one declaration: the function's name and the overload.
pub fn parse(line: &str) -> Option<(String, Overload)> {
    let line = line.trim();
    let (head, result) = line.rsplit_once("): ")?;
    let result = type_of(result)?;
    // The parameters' bracket is the last that opens at the outermost level.
    let open = outer_bracket(head)?;
    let (name, params) = (&head[..open], &head[open + 1..]);
    let mut types = Vec::new();
    let (name, member) = match name.rsplit_once('.') {
        Some((target, name)) => {
            types.push(type_of(target)?);
            (name.to_owned(), true)
        }
        None => (name.replace("::", "."), false),
    };
    for param in split(params) {
        types.push(type_of(param)?);
    }
    Some((
        name,
        Overload {
            member,
            params: types,
            result,
        },
    ))
}

fn outer_bracket(head: &str) -> Option<usize> {
    let mut depth = 0;
    let mut open = None;
    for (at, c) in head.char_indices() {
        match c {
            '(' => {
                if depth == 0 {
                    open = Some(at);
                }
                depth += 1;
            }
            ')' => depth -= 1,
            _ => {}
        }
    }
    open
}

/// Splits at commas that are not in brackets.
fn split(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    let last = text[start..].trim();
    if !last.is_empty() {
        parts.push(last);
    }
    parts
}

fn type_of(text: &str) -> Option<Type> {
    let text = text.trim();
    if let Some((name, inner)) = text.strip_suffix(')').and_then(|t| t.split_once('(')) {
        let mut inner = split(inner).into_iter().map(type_of);
        let first = inner.next()??;
        return match name {
            "list" => Some(Type::list(first)),
            "optional" => Some(Type::optional(first)),
            "type" => Some(Type::Type(first.into())),
            "map" => Some(Type::map(first, inner.next()??)),
            _ => None,
        };
    }
    Some(match text {
        "dyn" => Type::Dyn,
        "null" => Type::Null,
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::STRING,
        "bytes" => Type::BYTES,
        "duration" => Type::Duration,
        "timestamp" => Type::Timestamp,
        _ => {
            let mut chars = text.chars();
            match (chars.next(), chars.next()) {
                (Some(c), None) if c.is_ascii_uppercase() => Type::Param(c),
                _ => Type::Opaque(opaque::full_name(text)?),
            }
        }
    })
}
