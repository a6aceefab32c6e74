//! Estimated costs of operators and functions: cel-go's model and Kubernetes' additions for its libraries
//! (`apiserver/pkg/cel/library/cost.go`). All are upper bounds.

use crate::syntax::ast::Operator;
use crate::types::Type;

/// A tenth of a size, rounded up: looking through a text.
fn traversal(size: u64) -> u64 {
    match size {
        u64::MAX => u64::MAX,
        size => size.div_ceil(10),
    }
}

fn is_text(type_: &Type) -> bool {
    matches!(type_, Type::String(_) | Type::Bytes(_))
}

/// What an operator costs, without its operands.
pub fn operator(operator: Operator, a: &Type, b: &Type) -> u64 {
    use Operator as O;
    match operator {
        O::Add if is_text(a) && is_text(b) => {
            traversal(a.size().0.saturating_add(b.size().0)).max(1)
        }
        O::Equal | O::NotEqual | O::Less | O::LessEqual | O::Greater | O::GreaterEqual => {
            let sized = is_text(a) || matches!(a, Type::List(..) | Type::Map(..));
            match sized {
                true => traversal(a.size().0.min(b.size().0)).max(1),
                false => 1,
            }
        }
        O::In => match b {
            Type::List(_, size) => size.0,
            _ => 1,
        },
        _ => 1,
    }
}

/// What a call costs, without its arguments, and the size of its result where that is known.
pub fn call(function: &str, args: &[Type]) -> (u64, Option<u64>) {
    let size = |index: usize| args.get(index).map_or(0, |t| t.size().0);
    let subject = size(0);
    match function {
        "check" => (350_000, None),
        "startsWith" | "endsWith" => (traversal(size(1)).max(1), None),
        "contains" => (
            traversal(subject).saturating_mul(traversal(size(1)).max(1)),
            None,
        ),
        "matches" | "find" | "findAll" => {
            let text = traversal(subject.saturating_add(1));
            let cost = text.saturating_mul(size(1).div_ceil(4).max(1));
            (cost, (function != "matches").then_some(subject))
        }
        "isSorted" | "sum" | "min" | "max" | "indexOf" | "lastIndexOf" => match args.first() {
            Some(Type::List(item, size)) if is_text(item) => (
                size.0
                    .saturating_mul(traversal(item.size().0).saturating_add(1)),
                None,
            ),
            Some(Type::List(_, size)) => (size.0, None),
            _ => (traversal(subject), None),
        },
        "lowerAscii" | "upperAscii" | "substring" | "trim" => (traversal(subject), Some(subject)),
        "replace" => {
            let longest = match size(1) {
                0 => subject
                    .saturating_add(1)
                    .saturating_mul(size(2).saturating_add(1)),
                old => subject.max(subject.div_ceil(old).saturating_mul(size(2))),
            };
            (traversal(subject).saturating_mul(2), Some(longest))
        }
        "split" => (traversal(subject).saturating_mul(2), Some(subject)),
        "join" => {
            let item = match args.first() {
                Some(Type::List(item, _)) => item.size().0,
                _ => u64::MAX,
            };
            let length = subject.saturating_mul(item.saturating_add(size(1)));
            (traversal(length), Some(length))
        }
        "string" | "bytes" | "url" | "isURL" | "quantity" | "isQuantity" | "isIP" | "cidr"
        | "isCIDR" | "ip" | "semver" | "isSemver" | "image" | "isImage" | "duration"
        | "timestamp" | "format" | "strings.quote"
            if args.first().is_some_and(is_text) =>
        {
            (traversal(subject).max(1), Some(subject))
        }
        "ip.isCanonical" => (traversal(subject).saturating_mul(2), None),
        "validate" => (traversal(size(1)), None),
        "containsIP" | "containsCIDR" => (
            8_u64.saturating_add(match args.get(1) {
                Some(other) if is_text(other) => traversal(other.size().0),
                _ => 0,
            }),
            None,
        ),
        "sets.contains" | "sets.intersects" => (subject.saturating_mul(size(1)).max(1), None),
        "sets.equivalent" => (
            subject.saturating_mul(size(1)).saturating_mul(2).max(1),
            None,
        ),
        _ => (1, None),
    }
}
