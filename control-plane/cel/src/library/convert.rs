//! Conversions between types, and `size`. CEL specification, "Standard definitions".

use std::sync::Arc;

use super::opaque::Opaque;
use super::{Builtin, Outcome, time};
use crate::budget::Budget;
use crate::error::EvalError;
use crate::value::Val;

pub const DECLARATIONS: &str = "
size(string): int
size(bytes): int
size(list(A)): int
size(map(A, B)): int
string.size(): int
bytes.size(): int
list(A).size(): int
map(A, B).size(): int
type(A): type(A)
dyn(A): dyn
int(int): int
int(uint): int
int(double): int
int(string): int
int(timestamp): int
uint(int): uint
uint(uint): uint
uint(double): uint
uint(string): uint
double(int): double
double(uint): double
double(double): double
double(string): double
bool(bool): bool
bool(string): bool
bytes(bytes): bytes
bytes(string): bytes
string(string): string
string(bool): string
string(int): string
string(uint): string
string(double): string
string(bytes): string
string(timestamp): string
string(duration): string
string(ip): string
string(cidr): string
duration(duration): duration
duration(string): duration
duration(int): duration
timestamp(timestamp): timestamp
timestamp(string): timestamp
timestamp(int): timestamp
";

pub fn builtin(name: &str) -> Option<Builtin> {
    Some(match name {
        "size" => size,
        "type" => type_of,
        "dyn" => |args, _| first(args).cloned(),
        "int" => to_int,
        "uint" => to_uint,
        "double" => to_double,
        "bool" => to_bool,
        "bytes" => to_bytes,
        "string" => to_string,
        "duration" => to_duration,
        "timestamp" => to_timestamp,
        _ => return None,
    })
}

fn first<'v, 'a>(args: &'v [Val<'a>]) -> Result<&'v Val<'a>, EvalError> {
    args.first().ok_or(EvalError::NoSuchOverload)
}

fn size<'a>(args: &[Val<'a>], budget: &mut Budget) -> Outcome<'a> {
    let value = first(args)?;
    let size = match value {
        Val::String(text) => {
            budget.charge_text(text.as_str().len())?;
            text.as_str().chars().count()
        }
        Val::Bytes(bytes) => bytes.len(),
        _ => match (value.as_list(), value.as_map()) {
            (Some(list), _) => list.len(),
            (_, Some(map)) => map.len(),
            _ => return Err(EvalError::NoSuchOverload),
        },
    };
    Ok(Val::Int(size as i64))
}

fn type_of<'a>(args: &[Val<'a>], _budget: &mut Budget) -> Outcome<'a> {
    Ok(Val::Type(first(args)?.type_name()))
}

fn to_int<'a>(args: &[Val<'a>], _budget: &mut Budget) -> Outcome<'a> {
    let overflow = EvalError::Overflow("integer");
    Ok(Val::Int(match first(args)? {
        Val::Int(value) => *value,
        Val::Uint(value) => i64::try_from(*value).map_err(|_| overflow)?,
        // 2^63 itself is a double and is too large.
        Val::Double(value) if value.abs() < 9_223_372_036_854_775_808.0 => *value as i64,
        Val::Double(_) => return Err(overflow),
        Val::String(text) => text
            .as_str()
            .parse()
            .map_err(|_| unparsable(text.as_str(), "int"))?,
        Val::Timestamp(time) => time.as_second(),
        _ => return Err(EvalError::NoSuchOverload),
    }))
}

fn to_uint<'a>(args: &[Val<'a>], _budget: &mut Budget) -> Outcome<'a> {
    let overflow = EvalError::Overflow("unsigned integer");
    Ok(Val::Uint(match first(args)? {
        Val::Uint(value) => *value,
        Val::Int(value) => u64::try_from(*value).map_err(|_| overflow)?,
        Val::Double(value) if *value > -1.0 && *value < 18_446_744_073_709_551_616.0 => {
            *value as u64
        }
        Val::Double(_) => return Err(overflow),
        Val::String(text) => text
            .as_str()
            .parse()
            .map_err(|_| unparsable(text.as_str(), "uint"))?,
        _ => return Err(EvalError::NoSuchOverload),
    }))
}

fn to_double<'a>(args: &[Val<'a>], _budget: &mut Budget) -> Outcome<'a> {
    Ok(Val::Double(match first(args)? {
        Val::Double(value) => *value,
        Val::Int(value) => *value as f64,
        Val::Uint(value) => *value as f64,
        Val::String(text) => text
            .as_str()
            .parse()
            .map_err(|_| unparsable(text.as_str(), "double"))?,
        _ => return Err(EvalError::NoSuchOverload),
    }))
}

fn to_bool<'a>(args: &[Val<'a>], _budget: &mut Budget) -> Outcome<'a> {
    Ok(Val::Bool(match first(args)? {
        Val::Bool(value) => *value,
        Val::String(text) => match text.as_str() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
            "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
            other => return Err(unparsable(other, "bool")),
        },
        _ => return Err(EvalError::NoSuchOverload),
    }))
}

fn to_bytes<'a>(args: &[Val<'a>], budget: &mut Budget) -> Outcome<'a> {
    match first(args)? {
        Val::Bytes(bytes) => Ok(Val::Bytes(Arc::clone(bytes))),
        Val::String(text) => {
            budget.charge_text(text.as_str().len())?;
            Ok(Val::Bytes(text.as_str().as_bytes().into()))
        }
        _ => Err(EvalError::NoSuchOverload),
    }
}

fn to_string<'a>(args: &[Val<'a>], budget: &mut Budget) -> Outcome<'a> {
    let value = first(args)?;
    Ok(Val::string(match value {
        Val::String(_) => return Ok(value.clone()),
        Val::Bool(value) => value.to_string(),
        Val::Int(value) => value.to_string(),
        Val::Uint(value) => value.to_string(),
        Val::Double(value) => value.to_string(),
        Val::Bytes(bytes) => {
            budget.charge_text(bytes.len())?;
            String::from_utf8(bytes.to_vec()).map_err(|_| {
                EvalError::failed("invalid UTF-8 in bytes, cannot convert to string")
            })?
        }
        Val::Timestamp(time) => time.to_string(),
        Val::Duration(nanos) => time::format_duration(*nanos),
        Val::Opaque(value) => match &**value {
            Opaque::Ip(ip) => ip.to_string(),
            Opaque::Cidr(cidr) => cidr.to_string(),
            _ => return Err(EvalError::NoSuchOverload),
        },
        _ => return Err(EvalError::NoSuchOverload),
    }))
}

fn to_duration<'a>(args: &[Val<'a>], budget: &mut Budget) -> Outcome<'a> {
    match first(args)? {
        Val::Duration(nanos) => Ok(Val::Duration(*nanos)),
        Val::Int(seconds) => seconds
            .checked_mul(1_000_000_000)
            .map(Val::Duration)
            .ok_or(EvalError::Overflow("duration")),
        Val::String(text) => {
            budget.charge_text(text.as_str().len())?;
            time::parse_duration(text.as_str())
                .map(Val::Duration)
                .ok_or_else(|| unparsable(text.as_str(), "duration"))
        }
        _ => Err(EvalError::NoSuchOverload),
    }
}

fn to_timestamp<'a>(args: &[Val<'a>], budget: &mut Budget) -> Outcome<'a> {
    match first(args)? {
        Val::Timestamp(time) => Ok(Val::Timestamp(*time)),
        Val::Int(seconds) => jiff::Timestamp::from_second(*seconds)
            .map(Val::Timestamp)
            .map_err(|_| EvalError::Overflow("timestamp")),
        Val::String(text) => {
            budget.charge_text(text.as_str().len())?;
            time::parse_timestamp(text.as_str())
                .map(Val::Timestamp)
                .ok_or_else(|| unparsable(text.as_str(), "timestamp"))
        }
        _ => Err(EvalError::NoSuchOverload),
    }
}

fn unparsable(text: &str, type_: &str) -> EvalError {
    EvalError::failed(format!(
        "type conversion error from 'string' to '{type_}': cannot parse {text:?}"
    ))
}
