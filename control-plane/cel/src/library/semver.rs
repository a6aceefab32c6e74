//! Versions by semver.org 2.0.0.

use std::cmp::Ordering;

use super::opaque::Opaque;
use super::{Builtin, quantity, read};
use crate::budget::Budget;
use crate::error::EvalError;
use crate::value::Val;

pub const DECLARATIONS: &str = "
semver(string): semver
semver(string, bool): semver
isSemver(string): bool
isSemver(string, bool): bool
semver.major(): int
semver.minor(): int
semver.patch(): int
semver.isLessThan(semver): bool
semver.isGreaterThan(semver): bool
semver.compareTo(semver): int
";

/// A version. Build metadata does not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Semver {
    numbers: [u64; 3],
    pre: Vec<Identifier>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Identifier {
    Number(u64),
    Text(String),
}

impl PartialOrd for Semver {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Semver {
    fn cmp(&self, other: &Self) -> Ordering {
        self.numbers.cmp(&other.numbers).then_with(|| {
            match (self.pre.is_empty(), other.pre.is_empty()) {
                // A pre-release comes before the release.
                (true, false) => Ordering::Greater,
                (false, true) => Ordering::Less,
                _ => self.pre.cmp(&other.pre),
            }
        })
    }
}

pub fn builtin(name: &str) -> Option<Builtin> {
    Some(match name {
        "semver" => |args, budget| {
            let version = given(args, budget)?.map_err(EvalError::failed)?;
            Ok(Val::opaque(Opaque::Semver(version)))
        },
        "isSemver" => |args, budget| Ok(Val::Bool(given(args, budget)?.is_ok())),
        "major" => |args, _| number(args, 0),
        "minor" => |args, _| number(args, 1),
        "patch" => |args, _| number(args, 2),
        // Shared with quantities.
        "isLessThan" | "isGreaterThan" | "compareTo" => return quantity::builtin(name),
        _ => return None,
    })
}

type Parsed = Result<Semver, String>;

fn given(args: &[Val<'_>], budget: &mut Budget) -> Result<Parsed, EvalError> {
    let text = read(args, 0, budget)?;
    let normalize = match args.get(1) {
        None => false,
        Some(Val::Bool(normalize)) => *normalize,
        Some(_) => return Err(EvalError::NoSuchOverload),
    };
    Ok(if normalize {
        parse(&normalized(text))
    } else {
        parse(text)
    })
}

fn number<'a>(args: &[Val<'a>], index: usize) -> super::Outcome<'a> {
    match args.first() {
        Some(Val::Opaque(value)) => match &**value {
            Opaque::Semver(version) => Ok(Val::Int(
                i64::try_from(version.numbers[index]).unwrap_or(i64::MAX),
            )),
            _ => Err(EvalError::NoSuchOverload),
        },
        _ => Err(EvalError::NoSuchOverload),
    }
}

/// Without `v`, leading zeroes, and with three numbers.
fn normalized(text: &str) -> String {
    let text = text.strip_prefix('v').unwrap_or(text);
    let end = text.find(['-', '+']).unwrap_or(text.len());
    let (core, rest) = text.split_at(end);
    let mut numbers: Vec<String> = core
        .split('.')
        .map(|part| match part.trim_start_matches('0') {
            "" if !part.is_empty() => "0".to_owned(),
            trimmed => trimmed.to_owned(),
        })
        .collect();
    while numbers.len() < 3 {
        numbers.push("0".to_owned());
    }
    format!("{}{rest}", numbers.join("."))
}

fn parse(text: &str) -> Parsed {
    let (text, build) = text
        .split_once('+')
        .map_or((text, None), |(v, b)| (v, Some(b)));
    let (core, pre) = text
        .split_once('-')
        .map_or((text, None), |(v, p)| (v, Some(p)));
    let parts: Vec<&str> = core.split('.').collect();
    let &[major, minor, patch] = parts.as_slice() else {
        return Err("No Major.Minor.Patch elements found".to_owned());
    };
    let is_identifier = |part: &str| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    if let Some(build) = build
        && !build.split('.').all(is_identifier)
    {
        return Err("Invalid character(s) found in build meta data".to_owned());
    }
    let mut identifiers = Vec::new();
    for part in pre.into_iter().flat_map(|p| p.split('.')) {
        if !is_identifier(part) {
            return Err(format!("Invalid character(s) found in prerelease {part:?}"));
        }
        identifiers.push(if part.chars().all(|c| c.is_ascii_digit()) {
            Identifier::Number(whole(part)?)
        } else {
            Identifier::Text(part.to_owned())
        });
    }
    Ok(Semver {
        numbers: [whole(major)?, whole(minor)?, whole(patch)?],
        pre: identifiers,
    })
}

fn whole(text: &str) -> Result<u64, String> {
    if text.len() > 1 && text.starts_with('0') {
        return Err(format!(
            "Version number must not contain leading zeroes {text:?}"
        ));
    }
    if !text.chars().all(|c| c.is_ascii_digit()) {
        return Err(format!("Invalid character(s) found in number {text:?}"));
    }
    text.parse()
        .map_err(|_| format!("Invalid number {text:?} in version"))
}
