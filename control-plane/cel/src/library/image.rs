//! References to container images: `image('registry.k8s.io/pause:3.10').tag()`.

use super::opaque::Opaque;
use super::{Builtin, Outcome, read};
use crate::error::EvalError;
use crate::value::Val;

pub const DECLARATIONS: &str = "
image(string): image
isImage(string): bool
image.registry(): string
image.repository(): string
image.identifier(): string
image.tag(): string
image.digest(): string
image.containsDigest(): bool
";

/// A reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    registry: String,
    repository: String,
    tag: String,
    digest: String,
}

pub fn builtin(name: &str) -> Option<Builtin> {
    Some(match name {
        "image" => |args, budget| {
            let text = read(args, 0, budget)?;
            let image = parse(text)
                .ok_or_else(|| EvalError::failed(format!("could not parse reference: {text}")))?;
            Ok(Val::opaque(Opaque::Image(image)))
        },
        "isImage" => |args, budget| Ok(Val::Bool(parse(read(args, 0, budget)?).is_some())),
        "registry" => |args, _| part(args, |i| &i.registry),
        "repository" => |args, _| part(args, |i| &i.repository),
        "identifier" => |args, _| {
            part(args, |i| {
                if i.digest.is_empty() {
                    &i.tag
                } else {
                    &i.digest
                }
            })
        },
        "tag" => |args, _| part(args, |i| &i.tag),
        "digest" => |args, _| part(args, |i| &i.digest),
        "containsDigest" => |args, _| Ok(Val::Bool(!image(args)?.digest.is_empty())),
        _ => return None,
    })
}

fn image<'v>(args: &'v [Val<'_>]) -> Result<&'v Image, EvalError> {
    match args.first() {
        Some(Val::Opaque(value)) => match &**value {
            Opaque::Image(image) => Ok(image),
            _ => Err(EvalError::NoSuchOverload),
        },
        _ => Err(EvalError::NoSuchOverload),
    }
}

fn part<'a>(args: &[Val<'a>], of: fn(&Image) -> &String) -> Outcome<'a> {
    Ok(Val::string(of(image(args)?).as_str()))
}

fn parse(text: &str) -> Option<Image> {
    let (name, digest) = text.split_once('@').map_or((text, ""), |(n, d)| (n, d));
    if text.contains('@') && !is_digest(digest) {
        return None;
    }
    // A colon behind the last slash begins a tag; one before it is a port.
    let slash = name.rfind('/').map_or(0, |at| at + 1);
    let (name, tag) = match name[slash..].split_once(':') {
        Some((last, tag)) => (&name[..slash + last.len()], tag),
        None => (name, ""),
    };
    let fits = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if tag.len() > 128 || !tag.chars().all(fits) {
        return None;
    }
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
        _ => ("index.docker.io", name),
    };
    let is_path = !repository.is_empty()
        && repository.split('/').all(|part| {
            !part.is_empty()
                && part
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_.-".contains(c))
        });
    if !is_path {
        return None;
    }
    let official = registry == "index.docker.io" && !repository.contains('/');
    let tag = match (tag, digest) {
        ("", "") => "latest",
        (tag, _) => tag,
    };
    Some(Image {
        registry: registry.to_owned(),
        repository: if official {
            format!("library/{repository}")
        } else {
            repository.to_owned()
        },
        tag: tag.to_owned(),
        digest: digest.to_owned(),
    })
}

fn is_digest(text: &str) -> bool {
    text.split_once(':').is_some_and(|(algorithm, hex)| {
        !algorithm.is_empty() && hex.len() >= 32 && hex.chars().all(|c| c.is_ascii_hexdigit())
    })
}
