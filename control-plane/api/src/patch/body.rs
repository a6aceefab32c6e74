//! The body of a PATCH request: read once, applied to as many states of the object as the write needs, with what
//! strict field validation has against it.
//!
//! Source of the rules and words: apiserver `endpoints/handlers/patch.go`.

use std::fmt::Write as _;

use serde_json::Value;

use super::{PatchType, merge, operate, strategic_merge, undecodable};
use crate::schema::Type;
use crate::schema::decode::{Parsed, read_json};
use crate::status::{FieldErrors, Status};

/// Fields of one operation of a JSON patch (RFC 6902, section 4).
const OPERATION: [&str; 4] = ["op", "path", "from", "value"];

/// A patch that has been read. Apply patches are none: they are objects (see [`crate::apply`]).
#[derive(Debug)]
pub struct Patch {
    body: Body,
    problems: Vec<String>,
}

#[derive(Debug)]
enum Body {
    Json {
        operations: json_patch::Patch,
        text: String,
    },
    Merge {
        patch: Value,
        text: String,
    },
    Strategic(Value),
}

impl Patch {
    /// Reads the body of a patch of a form other than apply.
    ///
    /// # Errors
    /// 400 for what is no patch of this form.
    pub fn read(form: PatchType, bytes: &[u8]) -> Result<Self, Status> {
        let Parsed { value, duplicates } = read_json(bytes).map_err(|e| undecodable(&e))?;
        let text = || String::from_utf8_lossy(bytes).into_owned();
        if form != PatchType::Json && !value.is_object() {
            return Err(undecodable(&"it must be a JSON object"));
        }
        let (body, problems) = match form {
            PatchType::Json => {
                let problems = duplicates.problems(unknown_fields(&value));
                let problems = problems.into_iter().map(|p| format!("json patch {p}"));
                let operations = serde_json::from_value(value).map_err(|e| undecodable(&e))?;
                let text = text();
                (Body::Json { operations, text }, problems.collect())
            }
            PatchType::Merge => {
                let (patch, text) = (value, text());
                let problems = duplicates.problems(Vec::new());
                (Body::Merge { patch, text }, problems)
            }
            PatchType::Strategic => (Body::Strategic(value), duplicates.problems(Vec::new())),
            PatchType::Apply => {
                return Err(Status::internal("an apply patch is not applied here"));
            }
        };
        Ok(Self { body, problems })
    }

    /// Applies it to an object; `type_` says how lists merge.
    ///
    /// # Errors
    /// 400 for a malformed directive, 413 for too many operations, 422 for a patch that does not fit the object.
    pub fn apply(&self, type_: Option<Type<'_>>, object: Value) -> Result<Value, Status> {
        match &self.body {
            Body::Json { operations, .. } => operate(object, operations),
            Body::Merge { patch, .. } => Ok(merge(object, patch)),
            Body::Strategic(patch) => strategic_merge(type_, object, patch.clone()),
        }
    }

    /// What is written twice in it and, in a JSON patch, what no operation has: one text each.
    #[must_use]
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// The 422 for a patch whose outcome is no object of the kind, or that strict field validation refuses.
    /// `outcome` is the object it made, when the fault is in there.
    #[must_use]
    pub fn refuse(&self, outcome: Option<&Value>, why: &str) -> Status {
        let quoted = match (&self.body, outcome) {
            (Body::Strategic(patch), _) => {
                let mut text = String::new();
                go_text(patch, &mut text);
                text
            }
            (_, Some(outcome)) => outcome.to_string(),
            (Body::Json { text, .. } | Body::Merge { text, .. }, None) => text.clone(),
        };
        let mut errors = FieldErrors::default();
        errors.invalid("patch", quoted, why);
        Status::invalid("", "", "", &errors)
    }
}

fn unknown_fields(operations: &Value) -> Vec<String> {
    let mut unknown = Vec::new();
    for (i, operation) in operations.as_array().into_iter().flatten().enumerate() {
        for name in operation.as_object().into_iter().flat_map(|o| o.keys()) {
            if !OPERATION.contains(&name.as_str()) {
                unknown.push(format!("unknown field \"[{i}].{name}\""));
            }
        }
    }
    unknown
}

/// A document as Go's `%+v` writes it, which is how upstream quotes strategic patches.
fn go_text(value: &Value, out: &mut String) {
    match value {
        Value::Null => out.push_str("<nil>"),
        Value::String(text) => out.push_str(text),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(' ');
                }
                go_text(item, out);
            }
            out.push(']');
        }
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(name, _)| *name);
            out.push_str("map[");
            for (i, (name, value)) in entries.into_iter().enumerate() {
                let space = if i > 0 { " " } else { "" };
                // Writing to a String cannot fail.
                let _ = write!(out, "{space}{name}:");
                go_text(value, out);
            }
            out.push(']');
        }
        other => {
            let _ = write!(out, "{other}");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn problems(form: PatchType, text: &str) -> Vec<String> {
        Patch::read(form, text.as_bytes()).unwrap().problems
    }

    #[test]
    fn what_a_patch_says_twice_is_told_by_its_path() {
        let twice =
            r#"{"spec":{"paused":true,"containers":[{"name":"a","name":"b"}],"paused":false}}"#;
        let expected = [
            "duplicate field \"spec.containers[0].name\"",
            "duplicate field \"spec.paused\"",
        ];
        assert_eq!(problems(PatchType::Merge, twice), expected);
        assert_eq!(problems(PatchType::Strategic, twice), expected);
    }

    #[test]
    fn an_operation_has_four_fields() {
        let patch = r#"[{"op":"add","path":"/a","path":"/b","value":{"x":1},"foo":2}]"#;
        assert_eq!(
            problems(PatchType::Json, patch),
            [
                "json patch duplicate field \"[0].path\"",
                "json patch unknown field \"[0].foo\""
            ]
        );
    }

    #[test]
    fn a_refusal_quotes_the_patch_as_upstream_does() {
        let patch = Patch::read(
            PatchType::Strategic,
            br#"{"b":[1,"x",null],"a":{"c":true}}"#,
        );
        let status = patch.unwrap().refuse(None, "strict decoding error: x");
        assert_eq!(
            status.message,
            " \"\" is invalid: patch: Invalid value: \"map[a:map[c:true] b:[1 x <nil>]]\": strict decoding error: x"
        );
        assert_eq!(status.code, 422);
    }

    #[test]
    fn only_patches_are_read() {
        for (form, text) in [
            (PatchType::Merge, "[]"),
            (PatchType::Strategic, "1"),
            (PatchType::Json, "{}"),
            (PatchType::Json, r#"[{"op":"fly"}]"#),
            (PatchType::Merge, "{"),
        ] {
            let status = Patch::read(form, text.as_bytes()).unwrap_err();
            assert_eq!(status.code, 400, "{text}");
            assert!(
                status.message.starts_with("error decoding patch: "),
                "{text}"
            );
        }
    }
}
