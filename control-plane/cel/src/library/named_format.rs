//! Named formats: `format.dns1123Label().validate(text)` answers with what is wrong, or nothing.

use std::sync::LazyLock;

use regex::Regex;

use super::opaque::Opaque;
use super::{Builtin, Outcome, read, time};
use crate::budget::Budget;
use crate::error::EvalError;
use crate::value::Val;

pub const DECLARATIONS: &str = "
format::named(string): optional(format)
format::dns1123Label(): format
format::dns1123Subdomain(): format
format::dns1035Label(): format
format::qualifiedName(): format
format::dns1123LabelPrefix(): format
format::dns1123SubdomainPrefix(): format
format::dns1035LabelPrefix(): format
format::labelValue(): format
format::uri(): format
format::uuid(): format
format::byte(): format
format::date(): format
format::datetime(): format
format.validate(string): optional(list(string))
";

/// A format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum NamedFormat {
    Dns1123Label { prefix: bool },
    Dns1123Subdomain { prefix: bool },
    Dns1035Label { prefix: bool },
    QualifiedName,
    LabelValue,
    Uri,
    Uuid,
    Byte,
    Date,
    DateTime,
}

fn named(name: &str) -> Option<NamedFormat> {
    Some(match name {
        "dns1123Label" => NamedFormat::Dns1123Label { prefix: false },
        "dns1123LabelPrefix" => NamedFormat::Dns1123Label { prefix: true },
        "dns1123Subdomain" => NamedFormat::Dns1123Subdomain { prefix: false },
        "dns1123SubdomainPrefix" => NamedFormat::Dns1123Subdomain { prefix: true },
        "dns1035Label" => NamedFormat::Dns1035Label { prefix: false },
        "dns1035LabelPrefix" => NamedFormat::Dns1035Label { prefix: true },
        "qualifiedName" => NamedFormat::QualifiedName,
        "labelValue" => NamedFormat::LabelValue,
        "uri" => NamedFormat::Uri,
        "uuid" => NamedFormat::Uuid,
        "byte" => NamedFormat::Byte,
        "date" => NamedFormat::Date,
        "datetime" => NamedFormat::DateTime,
        _ => return None,
    })
}

/// A function that makes one format.
macro_rules! constant {
    ($name:literal) => {
        |_, _| {
            named($name)
                .map(|format| Val::opaque(Opaque::Format(format)))
                .ok_or(EvalError::NoSuchOverload)
        }
    };
}

pub fn builtin(name: &str) -> Option<Builtin> {
    Some(match name {
        "format.named" => |args, budget| {
            let found = named(read(args, 0, budget)?);
            Ok(found.map_or(Val::Optional(None), |format| {
                Val::some(Val::opaque(Opaque::Format(format)))
            }))
        },
        "format.dns1123Label" => constant!("dns1123Label"),
        "format.dns1123Subdomain" => constant!("dns1123Subdomain"),
        "format.dns1035Label" => constant!("dns1035Label"),
        "format.qualifiedName" => constant!("qualifiedName"),
        "format.dns1123LabelPrefix" => constant!("dns1123LabelPrefix"),
        "format.dns1123SubdomainPrefix" => constant!("dns1123SubdomainPrefix"),
        "format.dns1035LabelPrefix" => constant!("dns1035LabelPrefix"),
        "format.labelValue" => constant!("labelValue"),
        "format.uri" => constant!("uri"),
        "format.uuid" => constant!("uuid"),
        "format.byte" => constant!("byte"),
        "format.date" => constant!("date"),
        "format.datetime" => constant!("datetime"),
        "validate" => validate,
        _ => return None,
    })
}

fn validate<'a>(args: &[Val<'a>], budget: &mut Budget) -> Outcome<'a> {
    let format = match args.first() {
        Some(Val::Opaque(value)) => match &**value {
            Opaque::Format(format) => *format,
            _ => return Err(EvalError::NoSuchOverload),
        },
        _ => return Err(EvalError::NoSuchOverload),
    };
    let problems = format.problems(read(args, 1, budget)?);
    if problems.is_empty() {
        return Ok(Val::Optional(None));
    }
    Ok(Val::some(Val::list(
        problems.into_iter().map(Val::string).collect(),
    )))
}

/// A pattern that is known to compile; a test compiles all.
struct Pattern(LazyLock<Option<Regex>>);

impl Pattern {
    fn fits(&self, text: &str) -> bool {
        self.0.as_ref().is_some_and(|regex| regex.is_match(text))
    }
}

macro_rules! pattern {
    ($name:ident, $text:literal) => {
        static $name: Pattern = Pattern(LazyLock::new(|| Regex::new($text).ok()));
    };
}

pattern!(LABEL, r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$");
pattern!(
    SUBDOMAIN,
    r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
);
pattern!(LABEL_1035, r"^[a-z]([-a-z0-9]*[a-z0-9])?$");
pattern!(NAME, r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$");
pattern!(
    UUID,
    r"^(?i)[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$"
);

impl NamedFormat {
    /// What is wrong with a text.
    fn problems(self, text: &str) -> Vec<String> {
        match self {
            Self::Dns1123Label { prefix } => label(
                text,
                prefix,
                63,
                &LABEL,
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
            ),
            Self::Dns1123Subdomain { prefix } => label(
                text,
                prefix,
                253,
                &SUBDOMAIN,
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
            ),
            Self::Dns1035Label { prefix } => label(
                text,
                prefix,
                63,
                &LABEL_1035,
                "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character",
            ),
            Self::QualifiedName => qualified(text),
            Self::LabelValue if text.is_empty() => Vec::new(),
            Self::LabelValue => label(
                text,
                false,
                63,
                &NAME,
                "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            ),
            Self::Uri => one(
                text.contains("://") || text.starts_with('/'),
                "invalid URI for request",
            ),
            Self::Uuid => one(UUID.fits(text), "does not match the UUID format"),
            Self::Byte => {
                use base64::Engine as _;
                let decoded = base64::engine::general_purpose::STANDARD.decode(text);
                one(decoded.is_ok(), "invalid base64")
            }
            Self::Date => one(
                text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(),
                "invalid date",
            ),
            Self::DateTime => one(time::parse_timestamp(text).is_some(), "invalid datetime"),
        }
    }
}

fn one(fits: bool, problem: &str) -> Vec<String> {
    if fits {
        Vec::new()
    } else {
        vec![problem.to_owned()]
    }
}

fn label(text: &str, prefix: bool, longest: usize, pattern: &Pattern, rule: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if text.len() > longest {
        problems.push(format!("must be no more than {longest} bytes"));
    }
    // A prefix may end in a dash, because something follows it.
    let masked = match text.strip_suffix('-') {
        Some(start) if prefix => format!("{start}a"),
        _ => text.to_owned(),
    };
    if !pattern.fits(&masked) {
        problems.push(rule.to_owned());
    }
    problems
}

fn qualified(text: &str) -> Vec<String> {
    let (prefix, name) = text
        .split_once('/')
        .map_or((None, text), |(p, n)| (Some(p), n));
    let mut problems = Vec::new();
    if let Some(prefix) = prefix {
        let found = NamedFormat::Dns1123Subdomain { prefix: false }.problems(prefix);
        problems.extend(found.into_iter().map(|p| format!("prefix part {p}")));
    }
    let found = label(
        name,
        false,
        63,
        &NAME,
        "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
    );
    problems.extend(found.into_iter().map(|p| format!("name part {p}")));
    problems
}
