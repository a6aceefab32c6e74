//! The functions of Kubernetes' CEL environment, one file per library. Each declares its functions as text and
//! implements them by name; [`functions`] is the table of all.

pub mod authorizer;
mod convert;
mod format;
mod image;
mod lists;
mod named_format;
mod net;
pub mod opaque;
mod optional;
mod quantity;
mod regex;
mod semver;
mod signature;
mod strings;
pub mod time;
mod url;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use crate::budget::Budget;
use crate::error::EvalError;
use crate::types::Type;
use crate::value::Val;

pub use self::regex::compile as compile_regex;

/// A function's implementation: all overloads of a name. For members the target is the first argument.
pub type Builtin = for<'a> fn(&[Val<'a>], &mut Budget) -> Result<Val<'a>, EvalError>;

/// What functions answer.
pub type Outcome<'a> = Result<Val<'a>, EvalError>;

/// One overload.
#[derive(Debug, Clone)]
pub struct Overload {
    /// `target.name(...)`; the target is the first parameter.
    pub member: bool,
    /// Types of the parameters.
    pub params: Vec<Type>,
    /// Type of the result.
    pub result: Type,
}

/// A function.
pub struct Function {
    /// In the order of declaration.
    pub overloads: Vec<Overload>,
    /// What runs.
    pub builtin: Builtin,
}

type Library = (&'static str, fn(&str) -> Option<Builtin>);

const LIBRARIES: [Library; 13] = [
    (convert::DECLARATIONS, convert::builtin),
    (strings::DECLARATIONS, strings::builtin),
    (lists::DECLARATIONS, lists::builtin),
    (regex::DECLARATIONS, regex::builtin),
    (time::DECLARATIONS, time::builtin),
    (optional::DECLARATIONS, optional::builtin),
    (url::DECLARATIONS, url::builtin),
    (net::DECLARATIONS, net::builtin),
    (quantity::DECLARATIONS, quantity::builtin),
    (semver::DECLARATIONS, semver::builtin),
    (named_format::DECLARATIONS, named_format::builtin),
    (image::DECLARATIONS, image::builtin),
    (authorizer::DECLARATIONS, authorizer::builtin),
];

static FUNCTIONS: LazyLock<HashMap<Arc<str>, Function>> = LazyLock::new(|| {
    let mut functions: HashMap<Arc<str>, Function> = HashMap::new();
    for (declarations, builtin) in LIBRARIES {
        for line in declarations.lines().filter(|l| !l.trim().is_empty()) {
            // Both are covered by a test over all declarations.
            let Some((name, overload)) = signature::parse(line) else {
                continue;
            };
            let Some(builtin) = builtin(&name) else {
                continue;
            };
            functions
                .entry(name.into())
                .or_insert_with(|| Function {
                    overloads: Vec::new(),
                    builtin,
                })
                .overloads
                .push(overload);
        }
    }
    functions
});

/// A function by its name, namespace included.
#[must_use]
pub fn function(name: &str) -> Option<&'static Function> {
    FUNCTIONS.get(name)
}

/// The value of a type's name.
#[must_use]
pub fn type_value(name: &str) -> Option<Arc<str>> {
    const NAMES: [&str; 14] = [
        "bool",
        "int",
        "uint",
        "double",
        "string",
        "bytes",
        "list",
        "map",
        "null_type",
        "type",
        "optional_type",
        "google.protobuf.Duration",
        "google.protobuf.Timestamp",
        "net.IP",
    ];
    NAMES.contains(&name).then(|| name.into())
}

/// A text argument.
fn text<'v>(args: &'v [Val<'_>], index: usize) -> Result<&'v str, EvalError> {
    args.get(index)
        .and_then(Val::as_str)
        .ok_or(EvalError::NoSuchOverload)
}

/// A text argument that is looked through, and charged for.
fn read<'v>(args: &'v [Val<'_>], index: usize, budget: &mut Budget) -> Result<&'v str, EvalError> {
    let text = text(args, index)?;
    budget.charge_text(text.len())?;
    Ok(text)
}

/// A whole number argument, if it is there.
fn whole(args: &[Val<'_>], index: usize) -> Result<Option<i64>, EvalError> {
    match args.get(index) {
        None => Ok(None),
        Some(Val::Int(number)) => Ok(Some(*number)),
        Some(_) => Err(EvalError::NoSuchOverload),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_declaration_parses_and_is_implemented() {
        for (declarations, builtin) in LIBRARIES {
            for line in declarations.lines().filter(|l| !l.trim().is_empty()) {
                let (name, _) = signature::parse(line).unwrap_or_else(|| panic!("{line}"));
                assert!(builtin(&name).is_some(), "{name}");
            }
        }
    }
}
