//! URLs, as Go's `url.ParseRequestURI` reads them: absolute, or a path that begins with a slash.

use std::collections::BTreeMap;
use std::sync::Arc;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use super::opaque::Opaque;
use super::{Builtin, Outcome, read};
use crate::budget::Budget;
use crate::error::EvalError;
use crate::value::{Key, Val};

pub const DECLARATIONS: &str = "
url(string): url
isURL(string): bool
url.getScheme(): string
url.getHost(): string
url.getHostname(): string
url.getPort(): string
url.getEscapedPath(): string
url.getQuery(): map(string, list(string))
";

/// What Go's `EscapedPath` escapes.
const PATH: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'#')
    .add(b'`')
    .add(b'{')
    .add(b'}')
    .add(b'^')
    .add(b'|')
    .add(b'\\');

/// A URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    scheme: String,
    host: String,
    path: String,
    query: String,
}

pub fn builtin(name: &str) -> Option<Builtin> {
    Some(match name {
        "url" => |args, budget| {
            let text = read(args, 0, budget)?;
            let url = parse(text)
                .ok_or_else(|| EvalError::failed(format!("URL parse error during conversion from string: parse {text:?}: invalid URI for request")))?;
            Ok(Val::opaque(Opaque::Url(url)))
        },
        "isURL" => |args, budget| Ok(Val::Bool(parse(read(args, 0, budget)?).is_some())),
        "getScheme" => |args, _| Ok(Val::string(url(args)?.scheme.as_str())),
        "getHost" => |args, _| Ok(Val::string(url(args)?.host.as_str())),
        "getHostname" => |args, _| Ok(Val::string(host_and_port(&url(args)?.host).0)),
        "getPort" => |args, _| Ok(Val::string(host_and_port(&url(args)?.host).1)),
        "getEscapedPath" => |args, _| {
            let path = utf8_percent_encode(&url(args)?.path, PATH).to_string();
            Ok(Val::string(path))
        },
        "getQuery" => query,
        _ => return None,
    })
}

fn url<'v>(args: &'v [Val<'_>]) -> Result<&'v Url, EvalError> {
    match args.first() {
        Some(Val::Opaque(value)) => match &**value {
            Opaque::Url(url) => Ok(url),
            _ => Err(EvalError::NoSuchOverload),
        },
        _ => Err(EvalError::NoSuchOverload),
    }
}

fn parse(text: &str) -> Option<Url> {
    if text.is_empty() || text.chars().any(|c| c.is_ascii_control()) {
        return None;
    }
    let (before, query) = text.split_once('?').unwrap_or((text, ""));
    let (scheme, rest) = match before.split_once(':') {
        Some((scheme, rest)) if is_scheme(scheme) => (scheme, rest),
        _ if before.starts_with('/') => ("", before),
        _ => return None,
    };
    let (host, path) = match rest.strip_prefix("//") {
        Some(rest) if !scheme.is_empty() || !before.starts_with("///") => {
            let at = rest.find('/').unwrap_or(rest.len());
            (&rest[..at], &rest[at..])
        }
        _ if rest.starts_with('/') => ("", rest),
        _ => return None,
    };
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    if !is_host(host) || !valid_escapes(path) {
        return None;
    }
    Some(Url {
        scheme: scheme.to_ascii_lowercase(),
        host: host.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
    })
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
}

fn is_host(host: &str) -> bool {
    let (_, port) = host_and_port(host);
    let fits = |c: char| !c.is_whitespace() && !"\"<>\\^`{|}".contains(c);
    let brackets = host.starts_with('[') == host.contains(']');
    brackets && host.chars().all(fits) && port.chars().all(|c| c.is_ascii_digit())
}

fn valid_escapes(text: &str) -> bool {
    text.match_indices('%').all(|(at, _)| {
        text.get(at + 1..at + 3)
            .is_some_and(|hex| hex.chars().all(|c| c.is_ascii_hexdigit()))
    })
}

fn host_and_port(host: &str) -> (&str, &str) {
    if let Some(rest) = host.strip_prefix('[') {
        let (address, port) = rest.split_once(']').unwrap_or((rest, ""));
        return (address, port.strip_prefix(':').unwrap_or(port));
    }
    host.rsplit_once(':').unwrap_or((host, ""))
}

fn query<'a>(args: &[Val<'a>], budget: &mut Budget) -> Outcome<'a> {
    let text = &url(args)?.query;
    budget.charge_text(text.len())?;
    let decode = |part: &str| {
        let spaced = part.replace('+', " ");
        percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
    };
    let mut values: BTreeMap<Key, Vec<Val<'a>>> = BTreeMap::new();
    for pair in text
        .split('&')
        .filter(|p| !p.is_empty() && valid_escapes(p))
    {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        values
            .entry(Key::String(decode(key).into()))
            .or_default()
            .push(Val::string(decode(value)));
    }
    let map = values.into_iter().map(|(k, v)| (k, Val::list(v))).collect();
    Ok(Val::Map(Arc::new(map)))
}
