//! Regular expressions: `matches`, `find`, `findAll`. They run in linear time, and are read as Go reads them.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use balsa_api::crd::pattern;
use regex::Regex;

use super::{Builtin, Outcome, text, whole};
use crate::budget::Budget;
use crate::error::EvalError;
use crate::value::Val;

pub const DECLARATIONS: &str = "
matches(string, string): bool
string.matches(string): bool
string.find(string): string
string.findAll(string): list(string)
string.findAll(string, int): list(string)
";

pub fn builtin(name: &str) -> Option<Builtin> {
    Some(match name {
        "matches" => matches,
        "find" => find,
        "findAll" => find_all,
        _ => return None,
    })
}

/// Largest compiled expression, in bytes.
const SIZE_LIMIT: usize = 1 << 20;
/// Expressions that are kept compiled.
const KEPT: usize = 256;

static COMPILED: LazyLock<Mutex<HashMap<String, Regex>>> = LazyLock::new(Mutex::default);

/// Compiles an expression, or finds it compiled.
///
/// # Errors
/// In the words of the regular expression library.
pub fn compile(source: &str) -> Result<Regex, String> {
    let mut kept = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(regex) = kept.get(source) {
        return Ok(regex.clone());
    }
    let regex = pattern::compile_within(source, SIZE_LIMIT).map_err(|error| error.to_string())?;
    if kept.len() >= KEPT {
        kept.clear();
    }
    kept.insert(source.to_owned(), regex.clone());
    Ok(regex)
}

/// Text and expression, charged by both their lengths.
fn operands<'v>(args: &'v [Val<'_>], budget: &mut Budget) -> Result<(&'v str, Regex), EvalError> {
    let (subject, pattern) = (text(args, 0)?, text(args, 1)?);
    let lengths = (subject.len() as u64 + 1).div_ceil(10) * (pattern.len() as u64).div_ceil(4);
    budget.charge(lengths)?;
    Ok((subject, compile(pattern).map_err(EvalError::Failed)?))
}

fn matches<'a>(args: &[Val<'a>], budget: &mut Budget) -> Outcome<'a> {
    let (subject, regex) = operands(args, budget)?;
    Ok(Val::Bool(regex.is_match(subject)))
}

fn find<'a>(args: &[Val<'a>], budget: &mut Budget) -> Outcome<'a> {
    let (subject, regex) = operands(args, budget)?;
    Ok(Val::string(regex.find(subject).map_or("", |m| m.as_str())))
}

fn find_all<'a>(args: &[Val<'a>], budget: &mut Budget) -> Outcome<'a> {
    let (subject, regex) = operands(args, budget)?;
    let limit = match whole(args, 2)? {
        Some(limit) if limit >= 0 => limit as usize,
        _ => usize::MAX,
    };
    let found = regex
        .find_iter(subject)
        .take(limit)
        .map(|m| Val::string(m.as_str()));
    Ok(Val::list(found.collect()))
}
