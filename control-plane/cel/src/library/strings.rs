//! Texts: the standard functions and cel-go's string extension, version 2. Positions count characters.

use super::{Builtin, Outcome, format, lists, read, text, whole};
use crate::budget::Budget;
use crate::error::EvalError;
use crate::value::Val;

pub const DECLARATIONS: &str = "
string.contains(string): bool
string.startsWith(string): bool
string.endsWith(string): bool
string.charAt(int): string
string.indexOf(string): int
string.indexOf(string, int): int
string.lastIndexOf(string): int
string.lastIndexOf(string, int): int
string.lowerAscii(): string
string.upperAscii(): string
string.replace(string, string): string
string.replace(string, string, int): string
string.split(string): list(string)
string.split(string, int): list(string)
string.substring(int): string
string.substring(int, int): string
string.trim(): string
string.format(list(dyn)): string
list(string).join(): string
list(string).join(string): string
strings::quote(string): string
";

pub fn builtin(name: &str) -> Option<Builtin> {
    Some(match name {
        "contains" => contains,
        "startsWith" => |args, budget| {
            let (subject, part) = (text(args, 0)?, read(args, 1, budget)?);
            Ok(Val::Bool(subject.starts_with(part)))
        },
        "endsWith" => |args, budget| {
            let (subject, part) = (text(args, 0)?, read(args, 1, budget)?);
            Ok(Val::Bool(subject.ends_with(part)))
        },
        "charAt" => char_at,
        "indexOf" => lists::index_of,
        "lastIndexOf" => lists::last_index_of,
        "lowerAscii" => |args, budget| Ok(Val::string(read(args, 0, budget)?.to_ascii_lowercase())),
        "upperAscii" => |args, budget| Ok(Val::string(read(args, 0, budget)?.to_ascii_uppercase())),
        "replace" => replace,
        "split" => split,
        "substring" => substring,
        "trim" => |args, budget| Ok(Val::string(read(args, 0, budget)?.trim())),
        "format" => format::format,
        "join" => join,
        "strings.quote" => |args, budget| Ok(Val::string(format::quote(read(args, 0, budget)?))),
        _ => return None,
    })
}

fn contains<'a>(args: &[Val<'a>], budget: &mut Budget) -> Outcome<'a> {
    let (subject, part) = (text(args, 0)?, text(args, 1)?);
    budget.charge((subject.len() as u64).div_ceil(10) * (part.len() as u64).div_ceil(10))?;
    Ok(Val::Bool(subject.contains(part)))
}

fn char_at<'a>(args: &[Val<'a>], budget: &mut Budget) -> Outcome<'a> {
    let subject = read(args, 0, budget)?;
    let index = whole(args, 1)?.ok_or(EvalError::NoSuchOverload)?;
    let out = || EvalError::failed(format!("index out of range: {index}"));
    let at = usize::try_from(index).map_err(|_| out())?;
    match subject.chars().nth(at) {
        Some(c) => Ok(Val::string(c.to_string())),
        None if at == subject.chars().count() => Ok(Val::string("")),
        None => Err(out()),
    }
}

/// Position of a part in a text, from a position on; -1 when it is not there.
pub fn index_of(subject: &str, part: &str, from: Option<i64>) -> Result<i64, EvalError> {
    let start = byte_at(subject, from.unwrap_or(0))?;
    Ok(subject[start..]
        .find(part)
        .map_or(-1, |at| subject[..start + at].chars().count() as i64))
}

/// Position of the last occurrence that begins no later than a position.
pub fn last_index_of(subject: &str, part: &str, until: Option<i64>) -> Result<i64, EvalError> {
    let found = match until {
        None => subject.rfind(part),
        Some(until) => {
            let last = byte_at(subject, until)?;
            let mut end = (last + part.len()).min(subject.len());
            while !subject.is_char_boundary(end) {
                end += 1;
            }
            subject[..end].rfind(part)
        }
    };
    Ok(found.map_or(-1, |at| subject[..at].chars().count() as i64))
}

/// The byte where the character with a number begins; the end is a valid position.
fn byte_at(subject: &str, index: i64) -> Result<usize, EvalError> {
    let out = || EvalError::failed(format!("index out of range: {index}"));
    let wanted = usize::try_from(index).map_err(|_| out())?;
    subject
        .char_indices()
        .map(|(at, _)| at)
        .chain([subject.len()])
        .nth(wanted)
        .ok_or_else(out)
}

/// Charges for a text of a length before it is made, so that it is not made when it would be too long.
fn charge_made(length: usize, budget: &mut Budget) -> Result<(), EvalError> {
    budget.charge_text(length)
}

fn replace<'a>(args: &[Val<'a>], budget: &mut Budget) -> Outcome<'a> {
    let (subject, old, new) = (read(args, 0, budget)?, text(args, 1)?, text(args, 2)?);
    let limit = match whole(args, 3)? {
        Some(limit) if limit >= 0 => limit as usize,
        _ => usize::MAX,
    };
    let count = subject.matches(old).count().min(limit);
    charge_made(
        subject
            .len()
            .saturating_add(count.saturating_mul(new.len())),
        budget,
    )?;
    Ok(Val::string(subject.replacen(old, new, limit)))
}

fn split<'a>(args: &[Val<'a>], budget: &mut Budget) -> Outcome<'a> {
    let (subject, separator) = (read(args, 0, budget)?, text(args, 1)?);
    budget.charge_text(subject.len())?;
    let limit = match whole(args, 2)? {
        Some(0) => return Ok(Val::list(Vec::new())),
        Some(limit) if limit > 0 => limit as usize,
        _ => usize::MAX,
    };
    if !separator.is_empty() {
        let parts = subject.splitn(limit, separator).map(Val::string);
        return Ok(Val::list(parts.collect()));
    }
    // Nothing between characters separates them; the last part has what is left.
    let mut parts = Vec::new();
    let mut rest = subject;
    while let Some(c) = rest.chars().next() {
        if parts.len() + 1 == limit {
            parts.push(Val::string(rest));
            break;
        }
        parts.push(Val::string(c.to_string()));
        rest = &rest[c.len_utf8()..];
    }
    Ok(Val::list(parts))
}

fn substring<'a>(args: &[Val<'a>], budget: &mut Budget) -> Outcome<'a> {
    let subject = read(args, 0, budget)?;
    let from = whole(args, 1)?.ok_or(EvalError::NoSuchOverload)?;
    let start = byte_at(subject, from)?;
    let end = match whole(args, 2)? {
        Some(to) if to < from => {
            return Err(EvalError::failed(format!(
                "invalid substring range. start: {from}, end: {to}"
            )));
        }
        Some(to) => byte_at(subject, to)?,
        None => subject.len(),
    };
    Ok(Val::string(&subject[start..end]))
}

fn join<'a>(args: &[Val<'a>], budget: &mut Budget) -> Outcome<'a> {
    let list = args
        .first()
        .and_then(Val::as_list)
        .ok_or(EvalError::NoSuchOverload)?;
    let separator = match args.get(1) {
        Some(_) => text(args, 1)?,
        None => "",
    };
    let mut joined = String::new();
    for (i, item) in list.iter().enumerate() {
        let item = item.as_str().ok_or(EvalError::NoSuchOverload)?.to_owned();
        charge_made(item.len() + separator.len(), budget)?;
        if i > 0 {
            joined.push_str(separator);
        }
        joined.push_str(&item);
    }
    Ok(Val::string(joined))
}
