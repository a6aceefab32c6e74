//! Variables that containers before wrote into a file of a volume (KEP-3721).
//!
//! The format is a small part of the shell's: `NAME='value'`, one after the other, values in single quotes and
//! taken as they are, line feeds included; comments begin with `#`.

use k8s_openapi::api::core::v1::FileKeySelector;

use crate::volumes::{self, Prepared};

/// Largest file that is read.
const MAX_FILE: u64 = 1 << 20;

/// The value that the selector names; `None` if it is missing and may be. The error is for people.
pub(super) fn value(
    prepared: &Prepared,
    selector: &FileKeySelector,
) -> Result<Option<String>, String> {
    let FileKeySelector {
        key,
        path,
        volume_name,
        ..
    } = selector;
    let optional = selector.optional.unwrap_or(false);
    let placed = prepared.get(volume_name).ok_or_else(|| {
        format!("cannot find the volume {volume_name:?} referenced by FileKeyRef")
    })?;
    let text = match volumes::read_file(&placed.path, path, MAX_FILE) {
        Ok(text) => text,
        Err(error) if optional && error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("couldn't read env file {path:?}: {error}")),
    };
    let found = parse(&String::from_utf8_lossy(&text), key);
    match found.map_err(|error| format!("couldn't parse env file {path:?}: {error}"))? {
        Some(value) => Ok(Some(value)),
        None if optional => Ok(None),
        None => Err(format!(
            "environment variable key {key:?} not found in file {path:?}"
        )),
    }
}

/// The value of the first variable of that name. What comes before it must be well formed.
fn parse(text: &str, key: &str) -> Result<Option<String>, String> {
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let bad = |what: &str| format!("invalid format at line {}: {what}", index + 1);
        let line = line.trim_start_matches([' ', '\t']);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, rest) = line.split_once('=').ok_or_else(|| bad("missing '='"))?;
        if name.is_empty() {
            return Err(bad("empty variable name"));
        }
        if name.ends_with([' ', '\t']) {
            return Err(bad("whitespace before '=' is not allowed"));
        }
        let value = if rest.starts_with([' ', '\t']) {
            // As in a shell: nothing was assigned.
            String::new()
        } else {
            let opened = rest
                .strip_prefix('\'')
                .ok_or_else(|| bad("value must be enclosed in single quotes"))?;
            let more = lines.by_ref().map(|(_, line)| line);
            quoted(opened, more).map_err(bad)?
        };
        if name == key {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

/// What stands between the quotes, which may go on over more lines.
fn quoted<'a>(
    first: &'a str,
    mut more: impl Iterator<Item = &'a str>,
) -> Result<String, &'static str> {
    let mut value = String::new();
    let mut line = first;
    loop {
        if let Some((inside, after)) = line.split_once('\'') {
            value.push_str(inside);
            let after = after.trim_start_matches([' ', '\t']);
            if !after.is_empty() && !after.starts_with('#') {
                return Err("unexpected content after closing quote");
            }
            return Ok(value);
        }
        value.push_str(line);
        value.push('\n');
        line = more.next().ok_or("unclosed single quote")?;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const FILE: &str = "# made by init\n\n  A='one' # first\nB='two\nlines'\nC= 'x'\nD='$A \\n'\n";

    #[test]
    fn values_are_taken_as_they_stand_between_the_quotes() {
        let get = |key| parse(FILE, key).unwrap();
        assert_eq!(get("A").as_deref(), Some("one"));
        assert_eq!(get("B").as_deref(), Some("two\nlines"));
        assert_eq!(get("C").as_deref(), Some(""));
        assert_eq!(get("D").as_deref(), Some("$A \\n"));
        assert_eq!(get("E"), None);
    }

    #[test]
    fn what_is_not_of_the_format_is_refused() {
        for bad in ["A", "='x'", "A ='x'", "A=x", "A='x", "A='x'y"] {
            assert!(parse(bad, "A").is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn a_missing_file_or_key_is_an_error_unless_it_may_be_missing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("env"), FILE).unwrap();
        let placed = volumes::Placed {
            path: dir.path().to_owned(),
            ..volumes::Placed::default()
        };
        let prepared = Prepared::from([("v".to_owned(), placed)]);
        let get = |path: &str, key: &str, optional| {
            let selector = FileKeySelector {
                key: key.to_owned(),
                path: path.to_owned(),
                volume_name: "v".to_owned(),
                optional: Some(optional),
            };
            value(&prepared, &selector)
        };
        assert_eq!(get("env", "A", false).unwrap().as_deref(), Some("one"));
        assert_eq!(get("none", "A", true).unwrap(), None);
        assert_eq!(get("env", "E", true).unwrap(), None);
        assert!(get("none", "A", false).is_err() && get("env", "E", false).is_err());
        assert!(get("../env", "A", false).is_err(), "left the volume");
    }
}
