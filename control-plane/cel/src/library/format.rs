//! `string.format`: `%s %d %f %e %b %o %x %X %%`, as cel-go's string extension has it.

use super::{Outcome, text, time};
use crate::budget::Budget;
use crate::error::EvalError;
use crate::value::Val;

/// Largest precision; cel-go has none, and a server must.
const MAX_PRECISION: usize = 100;

pub fn format<'a>(args: &[Val<'a>], budget: &mut Budget) -> Outcome<'a> {
    let pattern = text(args, 0)?;
    let values = args
        .get(1)
        .and_then(Val::as_list)
        .ok_or(EvalError::NoSuchOverload)?;
    budget.charge_text(pattern.len())?;
    let mut out = String::new();
    let mut next = 0;
    let mut rest = pattern;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            out.push('%');
            rest = after;
            continue;
        }
        let mut precision = None;
        if let Some(after) = rest.strip_prefix('.') {
            let digits = after.len() - after.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let wanted = after[..digits].parse().map_err(|_| {
                EvalError::failed("could not parse formatting clause: missing precision")
            })?;
            if wanted > MAX_PRECISION {
                return Err(EvalError::failed(
                    "could not parse formatting clause: precision is too large",
                ));
            }
            precision = Some(wanted);
            rest = &after[digits..];
        }
        let verb = rest.chars().next().ok_or_else(|| {
            EvalError::failed("could not parse formatting clause: unexpected end of string")
        })?;
        rest = &rest[verb.len_utf8()..];
        let value = values
            .get(next)
            .ok_or_else(|| EvalError::failed(format!("index {next} out of range")))?;
        next += 1;
        let made = clause(verb, precision, &value)?;
        budget.charge_text(made.len())?;
        out.push_str(&made);
    }
    out.push_str(rest);
    Ok(Val::string(out))
}

fn clause(verb: char, precision: Option<usize>, value: &Val<'_>) -> Result<String, EvalError> {
    let precise = precision.unwrap_or(6);
    let unfit = |what: &str| {
        EvalError::failed(format!(
            "error during formatting: {what}, was given {}",
            value.type_name()
        ))
    };
    Ok(match (verb, value) {
        ('s', value) => shown(value),
        ('d', Val::Int(n)) => n.to_string(),
        ('d', Val::Uint(n)) => n.to_string(),
        ('d', _) => return Err(unfit("decimal clause can only be used on integers")),
        ('f', value) => match float(value) {
            Some(f) if f.is_finite() => format!("{f:.precise$}"),
            Some(f) => special(f),
            None => return Err(unfit("fixed-point clause can only be used on doubles")),
        },
        ('e', value) => match float(value) {
            Some(f) if f.is_finite() => exponent(&format!("{f:.precise$e}")),
            Some(f) => special(f),
            None => return Err(unfit("scientific clause can only be used on doubles")),
        },
        ('b', Val::Int(n)) => signed(*n, |m| format!("{m:b}")),
        ('b', Val::Uint(n)) => format!("{n:b}"),
        ('b', Val::Bool(b)) => u8::from(*b).to_string(),
        ('b', _) => return Err(unfit("only integers and bools can be formatted as binary")),
        ('o', Val::Int(n)) => signed(*n, |m| format!("{m:o}")),
        ('o', Val::Uint(n)) => format!("{n:o}"),
        ('o', _) => return Err(unfit("octal clause can only be used on integers")),
        ('x' | 'X', value) => {
            let hex = match value {
                Val::Int(n) => signed(*n, |m| format!("{m:x}")),
                Val::Uint(n) => format!("{n:x}"),
                Val::String(text) => bytes_hex(text.as_str().as_bytes()),
                Val::Bytes(bytes) => bytes_hex(bytes),
                _ => {
                    return Err(unfit(
                        "only integers, byte buffers, and strings can be formatted as hex",
                    ));
                }
            };
            if verb == 'X' {
                hex.to_ascii_uppercase()
            } else {
                hex
            }
        }
        _ => {
            return Err(EvalError::failed(format!(
                "could not parse formatting clause: unrecognized formatting clause {verb:?}"
            )));
        }
    })
}

fn signed(number: i64, digits: impl Fn(u64) -> String) -> String {
    let sign = if number < 0 { "-" } else { "" };
    format!("{sign}{}", digits(number.unsigned_abs()))
}

fn bytes_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn float(value: &Val<'_>) -> Option<f64> {
    match value {
        Val::Double(f) => Some(*f),
        Val::Int(n) => Some(*n as f64),
        Val::Uint(n) => Some(*n as f64),
        _ => None,
    }
}

fn special(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value > 0.0 {
        "Infinity".to_owned()
    } else {
        "-Infinity".to_owned()
    }
}

/// `1.5e2` as `1.5e+02`.
fn exponent(text: &str) -> String {
    match text.split_once('e') {
        Some((mantissa, exponent)) => {
            let (sign, digits) = match exponent.strip_prefix('-') {
                Some(digits) => ('-', digits),
                None => ('+', exponent),
            };
            format!("{mantissa}e{sign}{digits:0>2}")
        }
        None => text.to_owned(),
    }
}

/// As `%s` shows a value.
fn shown(value: &Val<'_>) -> String {
    if let Some(list) = value.as_list() {
        let items: Vec<String> = list.iter().map(|item| shown(&item)).collect();
        return format!("[{}]", items.join(", "));
    }
    if let Some(map) = value.as_map() {
        let entries: Vec<String> = map
            .entries()
            .iter()
            .map(|(key, value)| format!("{}: {}", shown(key), shown(value)))
            .collect();
        return format!("{{{}}}", entries.join(", "));
    }
    match value {
        Val::Null => "null".to_owned(),
        Val::Bool(b) => b.to_string(),
        Val::Int(n) => n.to_string(),
        Val::Uint(n) => n.to_string(),
        Val::Double(f) if f.is_finite() => f.to_string(),
        Val::Double(f) => special(*f),
        Val::String(text) => text.as_str().to_owned(),
        Val::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Val::Duration(nanos) => time::format_duration(*nanos),
        Val::Timestamp(time) => time.to_string(),
        Val::Type(name) => name.to_string(),
        other => other.type_name().to_string(),
    }
}

/// A text with quotes and escapes.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
