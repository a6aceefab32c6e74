//! Optional values.

use super::{Builtin, Outcome};
use crate::error::EvalError;
use crate::value::Val;

pub const DECLARATIONS: &str = "
optional::of(A): optional(A)
optional::none(): optional(A)
optional::ofNonZeroValue(A): optional(A)
optional::unwrap(list(optional(A))): list(A)
list(optional(A)).unwrapOpt(): list(A)
optional(A).hasValue(): bool
optional(A).value(): A
optional(A).or(optional(A)): optional(A)
optional(A).orValue(A): A
";

pub fn builtin(name: &str) -> Option<Builtin> {
    Some(match name {
        "optional.of" => |args, _| match args {
            [value] => Ok(Val::some(value.clone())),
            _ => Err(EvalError::NoSuchOverload),
        },
        "optional.none" => |_, _| Ok(Val::Optional(None)),
        "optional.ofNonZeroValue" => |args, _| match args {
            [value] if is_zero(value) => Ok(Val::Optional(None)),
            [value] => Ok(Val::some(value.clone())),
            _ => Err(EvalError::NoSuchOverload),
        },
        "optional.unwrap" | "unwrapOpt" => |args, _| unwrap(args),
        "hasValue" => |args, _| match args {
            [Val::Optional(inner)] => Ok(Val::Bool(inner.is_some())),
            _ => Err(EvalError::NoSuchOverload),
        },
        "value" => |args, _| match args {
            [Val::Optional(Some(inner))] => Ok((**inner).clone()),
            [Val::Optional(None)] => Err(EvalError::failed("optional.none() dereference")),
            _ => Err(EvalError::NoSuchOverload),
        },
        // The interpreter calls these only with an empty first argument.
        "or" => |args, _| match args {
            [Val::Optional(None), other @ Val::Optional(_)] => Ok(other.clone()),
            _ => Err(EvalError::NoSuchOverload),
        },
        "orValue" => |args, _| match args {
            [Val::Optional(None), other] => Ok(other.clone()),
            _ => Err(EvalError::NoSuchOverload),
        },
        _ => return None,
    })
}

fn unwrap<'a>(args: &[Val<'a>]) -> Outcome<'a> {
    let list = args
        .first()
        .and_then(Val::as_list)
        .ok_or(EvalError::NoSuchOverload)?;
    let full = list.iter().filter_map(|item| match item {
        Val::Optional(inner) => inner.map(|v| (*v).clone()),
        other => Some(other),
    });
    Ok(Val::list(full.collect()))
}

fn is_zero(value: &Val<'_>) -> bool {
    match value {
        Val::Null | Val::Bool(false) | Val::Int(0) | Val::Uint(0) | Val::Duration(0) => true,
        Val::Double(number) => *number == 0.0,
        Val::String(text) => text.as_str().is_empty(),
        Val::Bytes(bytes) => bytes.is_empty(),
        Val::Optional(None) => true,
        other => match (other.as_list(), other.as_map()) {
            (Some(list), _) => list.is_empty(),
            (_, Some(map)) => map.is_empty(),
            _ => false,
        },
    }
}
