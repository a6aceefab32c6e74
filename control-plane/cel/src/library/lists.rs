//! Lists and sets: Kubernetes' list functions and cel-go's `sets`.

use std::cmp::Ordering;

use super::{Builtin, Outcome, read, strings, text, whole};
use crate::budget::Budget;
use crate::error::EvalError;
use crate::ops;
use crate::syntax::ast::Operator;
use crate::value::{ListView, Val};

pub const DECLARATIONS: &str = "
list(A).isSorted(): bool
list(int).sum(): int
list(uint).sum(): uint
list(double).sum(): double
list(duration).sum(): duration
list(A).min(): A
list(A).max(): A
list(A).indexOf(A): int
list(A).lastIndexOf(A): int
sets::contains(list(A), list(A)): bool
sets::equivalent(list(A), list(A)): bool
sets::intersects(list(A), list(A)): bool
";

pub fn builtin(name: &str) -> Option<Builtin> {
    Some(match name {
        "isSorted" => is_sorted,
        "sum" => sum,
        "min" => |args, budget| extreme(args, budget, Ordering::Less),
        "max" => |args, budget| extreme(args, budget, Ordering::Greater),
        "indexOf" => index_of,
        "lastIndexOf" => last_index_of,
        "sets.contains" => |args, budget| {
            let (set, part) = (list(args, 0)?, list(args, 1)?);
            Ok(Val::Bool(has_all(&set, &part, budget)?))
        },
        "sets.equivalent" => |args, budget| {
            let (a, b) = (list(args, 0)?, list(args, 1)?);
            Ok(Val::Bool(
                has_all(&a, &b, budget)? && has_all(&b, &a, budget)?,
            ))
        },
        "sets.intersects" => |args, budget| {
            let (a, b) = (list(args, 0)?, list(args, 1)?);
            for item in a.iter() {
                if has(&b, &item, budget)? {
                    return Ok(Val::Bool(true));
                }
            }
            Ok(Val::Bool(false))
        },
        _ => return None,
    })
}

fn list<'v, 'a>(args: &'v [Val<'a>], index: usize) -> Result<ListView<'v, 'a>, EvalError> {
    args.get(index)
        .and_then(Val::as_list)
        .ok_or(EvalError::NoSuchOverload)
}

fn has(set: &ListView<'_, '_>, item: &Val<'_>, budget: &mut Budget) -> Result<bool, EvalError> {
    for candidate in set.iter() {
        budget.charge(1)?;
        if ops::equal(&candidate, item, budget)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn has_all(
    set: &ListView<'_, '_>,
    part: &ListView<'_, '_>,
    budget: &mut Budget,
) -> Result<bool, EvalError> {
    for item in part.iter() {
        if !has(set, &item, budget)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn is_sorted<'a>(args: &[Val<'a>], budget: &mut Budget) -> Outcome<'a> {
    let mut previous: Option<Val<'a>> = None;
    for item in list(args, 0)?.iter() {
        budget.charge(1)?;
        if let Some(previous) = &previous
            && ops::order(previous, &item, budget)? == Some(Ordering::Greater)
        {
            return Ok(Val::Bool(false));
        }
        previous = Some(item);
    }
    Ok(Val::Bool(true))
}

fn sum<'a>(args: &[Val<'a>], budget: &mut Budget) -> Outcome<'a> {
    let mut total: Option<Val<'a>> = None;
    for item in list(args, 0)?.iter() {
        budget.charge(1)?;
        total = Some(match total {
            None => item,
            Some(total) => ops::binary(Operator::Add, &total, &item, budget)?,
        });
    }
    // The zero of an empty list is an int: its elements' type is not known here.
    Ok(total.unwrap_or(Val::Int(0)))
}

fn extreme<'a>(args: &[Val<'a>], budget: &mut Budget, wanted: Ordering) -> Outcome<'a> {
    let mut best: Option<Val<'a>> = None;
    for item in list(args, 0)?.iter() {
        budget.charge(1)?;
        let better = match &best {
            None => true,
            Some(best) => ops::order(&item, best, budget)? == Some(wanted),
        };
        if better {
            best = Some(item);
        }
    }
    best.ok_or_else(|| {
        let name = if wanted == Ordering::Less {
            "min"
        } else {
            "max"
        };
        EvalError::failed(format!("{name} called on empty list"))
    })
}

/// `indexOf` of lists and of texts.
pub fn index_of<'a>(args: &[Val<'a>], budget: &mut Budget) -> Outcome<'a> {
    if let Some(Val::String(_)) = args.first() {
        let subject = read(args, 0, budget)?;
        return strings::index_of(subject, text(args, 1)?, whole(args, 2)?).map(Val::Int);
    }
    let wanted = args.get(1).ok_or(EvalError::NoSuchOverload)?;
    for (i, item) in list(args, 0)?.iter().enumerate() {
        budget.charge(1)?;
        if ops::equal(&item, wanted, budget)? {
            return Ok(Val::Int(i as i64));
        }
    }
    Ok(Val::Int(-1))
}

/// `lastIndexOf` of lists and of texts.
pub fn last_index_of<'a>(args: &[Val<'a>], budget: &mut Budget) -> Outcome<'a> {
    if let Some(Val::String(_)) = args.first() {
        let subject = read(args, 0, budget)?;
        return strings::last_index_of(subject, text(args, 1)?, whole(args, 2)?).map(Val::Int);
    }
    let wanted = args.get(1).ok_or(EvalError::NoSuchOverload)?;
    let list = list(args, 0)?;
    for i in (0..list.len()).rev() {
        budget.charge(1)?;
        if let Some(item) = list.get(i)
            && ops::equal(&item, wanted, budget)?
        {
            return Ok(Val::Int(i as i64));
        }
    }
    Ok(Val::Int(-1))
}
