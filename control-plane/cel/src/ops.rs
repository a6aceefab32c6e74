//! Operators on values: equality and order across number types, checked arithmetic.

use std::cmp::Ordering;

use crate::budget::Budget;
use crate::error::EvalError;
use crate::library::time;
use crate::syntax::ast::Operator;
use crate::value::{Text, Val};

type Outcome<'a> = Result<Val<'a>, EvalError>;

/// Deepest nesting of values that are compared; JSON that is read has less.
const MAX_DEPTH: usize = 200;

/// `left operator right`
///
/// # Errors
/// [`EvalError::NoSuchOverload`] and arithmetic errors.
pub fn binary<'a>(
    operator: Operator,
    left: &Val<'a>,
    right: &Val<'a>,
    budget: &mut Budget,
) -> Outcome<'a> {
    Ok(Val::Bool(match operator {
        Operator::Equal => equal(left, right, budget)?,
        Operator::NotEqual => !equal(left, right, budget)?,
        Operator::Less => order(left, right, budget)? == Some(Ordering::Less),
        Operator::LessEqual => order(left, right, budget)?.is_some_and(Ordering::is_le),
        Operator::Greater => order(left, right, budget)? == Some(Ordering::Greater),
        Operator::GreaterEqual => order(left, right, budget)?.is_some_and(Ordering::is_ge),
        Operator::In => contains(left, right, budget)?,
        _ => return arithmetic(operator, left, right, budget),
    }))
}

/// Whether two values are the same. Values of different types are not, numbers are by value.
///
/// # Errors
/// [`EvalError::CostExceeded`].
pub fn equal(left: &Val<'_>, right: &Val<'_>, budget: &mut Budget) -> Result<bool, EvalError> {
    equal_at(left, right, budget, 0)
}

fn equal_at(
    left: &Val<'_>,
    right: &Val<'_>,
    budget: &mut Budget,
    depth: usize,
) -> Result<bool, EvalError> {
    if depth > MAX_DEPTH {
        return Err(EvalError::failed(
            "value is nested too deeply to be compared",
        ));
    }
    if let Some(order) = numbers(left, right) {
        return Ok(order == Some(Ordering::Equal));
    }
    if let (Some(a), Some(b)) = (left.as_list(), right.as_list()) {
        if a.len() != b.len() {
            return Ok(false);
        }
        for (x, y) in a.iter().zip(b.iter()) {
            budget.charge(1)?;
            if !equal_at(&x, &y, budget, depth + 1)? {
                return Ok(false);
            }
        }
        return Ok(true);
    }
    if let (Some(a), Some(b)) = (left.as_map(), right.as_map()) {
        if a.len() != b.len() {
            return Ok(false);
        }
        for (key, x) in a.entries() {
            budget.charge(1)?;
            match b.get(&key) {
                Some(y) if equal_at(&x, &y, budget, depth + 1)? => {}
                _ => return Ok(false),
            }
        }
        return Ok(true);
    }
    Ok(match (left, right) {
        (Val::Null, Val::Null) => true,
        (Val::Bool(a), Val::Bool(b)) => a == b,
        (Val::String(a), Val::String(b)) => {
            budget.charge_text(a.as_str().len().min(b.as_str().len()))?;
            a.as_str() == b.as_str()
        }
        (Val::Bytes(a), Val::Bytes(b)) => {
            budget.charge_text(a.len().min(b.len()))?;
            a == b
        }
        (Val::Duration(a), Val::Duration(b)) => a == b,
        (Val::Timestamp(a), Val::Timestamp(b)) => a == b,
        (Val::Type(a), Val::Type(b)) => a == b,
        (Val::Opaque(a), Val::Opaque(b)) => a == b,
        (Val::Optional(a), Val::Optional(b)) => match (a, b) {
            (None, None) => true,
            (Some(a), Some(b)) => equal_at(a, b, budget, depth + 1)?,
            _ => false,
        },
        _ => false,
    })
}

/// Order of two numbers of any types; `None` when one is no number, `Some(None)` for NaN.
fn numbers(left: &Val<'_>, right: &Val<'_>) -> Option<Option<Ordering>> {
    Some(match (left, right) {
        (Val::Int(a), Val::Int(b)) => Some(a.cmp(b)),
        (Val::Uint(a), Val::Uint(b)) => Some(a.cmp(b)),
        (Val::Double(a), Val::Double(b)) => a.partial_cmp(b),
        (Val::Int(a), Val::Uint(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
        (Val::Uint(a), Val::Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
        (Val::Int(a), Val::Double(b)) => whole_to_float(i128::from(*a), *b),
        (Val::Uint(a), Val::Double(b)) => whole_to_float(i128::from(*a), *b),
        (Val::Double(a), Val::Int(b)) => whole_to_float(i128::from(*b), *a).map(Ordering::reverse),
        (Val::Double(a), Val::Uint(b)) => whole_to_float(i128::from(*b), *a).map(Ordering::reverse),
        _ => return None,
    })
}

/// Exact, where a conversion of the whole number would round.
fn whole_to_float(whole: i128, float: f64) -> Option<Ordering> {
    if float.is_nan() {
        return None;
    }
    // Beyond any 64-bit number; the cast saturates.
    let truncated = float.trunc() as i128;
    Some(match whole.cmp(&truncated) {
        Ordering::Equal => 0.0_f64.partial_cmp(&float.fract())?,
        other => other,
    })
}

/// Order; `None` for NaN.
///
/// # Errors
/// [`EvalError::NoSuchOverload`] for what has no order.
pub fn order(
    left: &Val<'_>,
    right: &Val<'_>,
    budget: &mut Budget,
) -> Result<Option<Ordering>, EvalError> {
    if let Some(order) = numbers(left, right) {
        return Ok(order);
    }
    Ok(Some(match (left, right) {
        (Val::Bool(a), Val::Bool(b)) => a.cmp(b),
        (Val::String(a), Val::String(b)) => {
            budget.charge_text(a.as_str().len().min(b.as_str().len()))?;
            a.as_str().cmp(b.as_str())
        }
        (Val::Bytes(a), Val::Bytes(b)) => {
            budget.charge_text(a.len().min(b.len()))?;
            a.cmp(b)
        }
        (Val::Duration(a), Val::Duration(b)) => a.cmp(b),
        (Val::Timestamp(a), Val::Timestamp(b)) => a.cmp(b),
        _ => return Err(EvalError::NoSuchOverload),
    }))
}

fn contains(item: &Val<'_>, range: &Val<'_>, budget: &mut Budget) -> Result<bool, EvalError> {
    if let Some(list) = range.as_list() {
        for candidate in list.iter() {
            budget.charge(1)?;
            if equal(item, &candidate, budget)? {
                return Ok(true);
            }
        }
        return Ok(false);
    }
    match range.as_map() {
        Some(map) => Ok(map.get(item).is_some()),
        None => Err(EvalError::NoSuchOverload),
    }
}

fn arithmetic<'a>(
    operator: Operator,
    left: &Val<'a>,
    right: &Val<'a>,
    budget: &mut Budget,
) -> Outcome<'a> {
    match (left, right) {
        (Val::Int(a), Val::Int(b)) => whole(
            operator,
            (*a, *b, 0),
            [
                i64::checked_add,
                i64::checked_sub,
                i64::checked_mul,
                i64::checked_div,
                i64::checked_rem,
            ],
            "integer",
        )
        .map(Val::Int),
        (Val::Uint(a), Val::Uint(b)) => whole(
            operator,
            (*a, *b, 0),
            [
                u64::checked_add,
                u64::checked_sub,
                u64::checked_mul,
                u64::checked_div,
                u64::checked_rem,
            ],
            "unsigned integer",
        )
        .map(Val::Uint),
        (Val::Double(a), Val::Double(b)) => Ok(Val::Double(match operator {
            Operator::Add => a + b,
            Operator::Subtract => a - b,
            Operator::Multiply => a * b,
            Operator::Divide => a / b,
            _ => return Err(EvalError::NoSuchOverload),
        })),
        _ if operator == Operator::Add => add(left, right, budget),
        _ if operator == Operator::Subtract => time::subtract(left, right),
        _ => Err(EvalError::NoSuchOverload),
    }
}

fn whole<N: Copy + PartialEq>(
    operator: Operator,
    (a, b, zero): (N, N, N),
    [add, subtract, multiply, divide, modulo]: [fn(N, N) -> Option<N>; 5],
    name: &'static str,
) -> Result<N, EvalError> {
    let run = match operator {
        Operator::Add => add,
        Operator::Subtract => subtract,
        Operator::Multiply => multiply,
        Operator::Divide if b == zero => return Err(EvalError::failed("division by zero")),
        Operator::Modulo if b == zero => return Err(EvalError::failed("modulus by zero")),
        Operator::Divide => divide,
        Operator::Modulo => modulo,
        _ => return Err(EvalError::NoSuchOverload),
    };
    run(a, b).ok_or(EvalError::Overflow(name))
}

fn add<'a>(left: &Val<'a>, right: &Val<'a>, budget: &mut Budget) -> Outcome<'a> {
    if let (Val::String(a), Val::String(b)) = (left, right) {
        let (a, b) = (a.as_str(), b.as_str());
        budget.charge_text(a.len() + b.len())?;
        return Ok(Val::String(Text::Shared(format!("{a}{b}").into())));
    }
    if let (Val::Bytes(a), Val::Bytes(b)) = (left, right) {
        budget.charge_text(a.len() + b.len())?;
        return Ok(Val::Bytes([&**a, &**b].concat().into()));
    }
    if let (Some(a), Some(b)) = (left.as_list(), right.as_list()) {
        // Upstream has lazy concatenation at cost 1; here items are copied, and so they are charged.
        budget.charge((a.len() + b.len()) as u64 / 4)?;
        return Ok(Val::list(a.iter().chain(b.iter()).collect()));
    }
    time::add(left, right)
}

/// `-value`
///
/// # Errors
/// Overflow; no such overload.
pub fn negate<'a>(value: &Val<'a>) -> Outcome<'a> {
    match value {
        Val::Int(value) => value
            .checked_neg()
            .map(Val::Int)
            .ok_or(EvalError::Overflow("integer")),
        Val::Double(value) => Ok(Val::Double(-value)),
        Val::Duration(value) => value
            .checked_neg()
            .map(Val::Duration)
            .ok_or(EvalError::Overflow("duration")),
        _ => Err(EvalError::NoSuchOverload),
    }
}
