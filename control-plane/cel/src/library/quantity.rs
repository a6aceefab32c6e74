//! Quantities, and the comparisons that they share with versions.

use std::cmp::Ordering;

use balsa_api::quantity::Quantity;

use super::opaque::Opaque;
use super::{Builtin, read};
use crate::error::EvalError;
use crate::value::Val;

pub const DECLARATIONS: &str = "
quantity(string): quantity
isQuantity(string): bool
quantity.sign(): int
quantity.isInteger(): bool
quantity.asInteger(): int
quantity.asApproximateFloat(): double
quantity.add(quantity): quantity
quantity.add(int): quantity
quantity.sub(quantity): quantity
quantity.sub(int): quantity
quantity.isLessThan(quantity): bool
quantity.isGreaterThan(quantity): bool
quantity.compareTo(quantity): int
";

const NANO: i128 = 1_000_000_000;

pub fn builtin(name: &str) -> Option<Builtin> {
    Some(match name {
        "quantity" => |args, budget| {
            let text = read(args, 0, budget)?;
            let quantity: Quantity = text
                .parse()
                .map_err(|error| EvalError::failed(format!("{error}")))?;
            Ok(Val::opaque(Opaque::Quantity(quantity)))
        },
        "isQuantity" => |args, budget| {
            Ok(Val::Bool(
                read(args, 0, budget)?.parse::<Quantity>().is_ok(),
            ))
        },
        "sign" => |args, _| Ok(Val::Int(quantity(args, 0)?.nanos().signum() as i64)),
        "isInteger" => |args, _| Ok(Val::Bool(as_integer(quantity(args, 0)?).is_some())),
        "asInteger" => |args, _| {
            as_integer(quantity(args, 0)?)
                .map(Val::Int)
                .ok_or_else(|| EvalError::failed("cannot convert value to integer"))
        },
        "asApproximateFloat" => |args, _| Ok(Val::Double(quantity(args, 0)?.as_f64())),
        "add" => |args, _| {
            Ok(Val::opaque(Opaque::Quantity(
                quantity(args, 0)? + operand(args)?,
            )))
        },
        "sub" => |args, _| {
            Ok(Val::opaque(Opaque::Quantity(
                quantity(args, 0)? - operand(args)?,
            )))
        },
        "isLessThan" => |args, _| Ok(Val::Bool(compare(args)? == Ordering::Less)),
        "isGreaterThan" => |args, _| Ok(Val::Bool(compare(args)? == Ordering::Greater)),
        "compareTo" => |args, _| Ok(Val::Int(compare(args)? as i64)),
        _ => return None,
    })
}

fn quantity(args: &[Val<'_>], index: usize) -> Result<Quantity, EvalError> {
    match args.get(index) {
        Some(Val::Opaque(value)) => match &**value {
            Opaque::Quantity(quantity) => Ok(*quantity),
            _ => Err(EvalError::NoSuchOverload),
        },
        _ => Err(EvalError::NoSuchOverload),
    }
}

fn operand(args: &[Val<'_>]) -> Result<Quantity, EvalError> {
    match args.get(1) {
        Some(Val::Int(units)) => Ok(Quantity::from_units(*units)),
        _ => quantity(args, 1),
    }
}

fn as_integer(quantity: Quantity) -> Option<i64> {
    (quantity.nanos() % NANO == 0)
        .then(|| i64::try_from(quantity.nanos() / NANO).ok())
        .flatten()
}

/// Order of two quantities or two versions.
fn compare(args: &[Val<'_>]) -> Result<Ordering, EvalError> {
    match args {
        [Val::Opaque(a), Val::Opaque(b)] => match (&**a, &**b) {
            (Opaque::Quantity(a), Opaque::Quantity(b)) => Ok(a.cmp(b)),
            (Opaque::Semver(a), Opaque::Semver(b)) => Ok(a.cmp(b)),
            _ => Err(EvalError::NoSuchOverload),
        },
        _ => Err(EvalError::NoSuchOverload),
    }
}
