//! The patch formats of the API: JSON patch (RFC 6902), JSON merge patch (RFC 7386) and strategic merge patch.
//! Server-side apply, the fourth, is [`crate::apply`].

mod body;
mod order;
mod strategic;

#[cfg(test)]
mod tests;

use serde_json::Value;

use crate::status::{Cause, Details, Status};

pub use body::Patch;
pub use strategic::strategic_merge;

/// Operations accepted in one JSON patch.
const MAX_OPERATIONS: usize = 10_000;

/// The format of a PATCH body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchType {
    /// `application/json-patch+json`
    Json,
    /// `application/merge-patch+json`
    Merge,
    /// `application/strategic-merge-patch+json`
    Strategic,
    /// `application/apply-patch+yaml`
    Apply,
}

impl PatchType {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Json, "application/json-patch+json"),
        (Self::Merge, "application/merge-patch+json"),
        (Self::Strategic, "application/strategic-merge-patch+json"),
        (Self::Apply, "application/apply-patch+yaml"),
    ];

    /// Reads a Content-Type header; parameters after `;` are ignored. Custom kinds have no `strategic` patch.
    ///
    /// # Errors
    /// 415 `UnsupportedMediaType`, naming what is accepted.
    pub fn from_content_type(content_type: &str, strategic: bool) -> Result<Self, Status> {
        let media = content_type.split(';').next().unwrap_or_default().trim();
        let accepted = || {
            Self::ALL
                .into_iter()
                .filter(|(t, _)| strategic || *t != Self::Strategic)
        };
        accepted().find(|(_, name)| *name == media).map(|(t, _)| t).ok_or_else(|| {
            let list: Vec<&str> = accepted().map(|(_, name)| name).collect();
            let message = format!(
                "the body of the request was in an unknown format - accepted media types include: {}",
                list.join(", ")
            );
            Status::new(415, "UnsupportedMediaType", message)
        })
    }
}

/// 422 with the reason as its only cause, as kubectl prints it after `The request is invalid: `.
pub(crate) fn unprocessable(why: impl Into<String>) -> Status {
    let cause = Cause {
        reason: "UnexpectedServerResponse".to_owned(),
        message: why.into(),
        field: String::new(),
    };
    Status {
        code: 422,
        reason: "Invalid",
        message: "the server rejected our request due to an error in our request".to_owned(),
        details: Some(Details {
            causes: vec![cause],
            ..Details::default()
        }),
    }
}

/// Applies a JSON patch: all of its operations or none.
///
/// # Errors
/// 400 for a patch that is no patch, 413 for one with too many operations, 422 for one that does not fit the
/// object.
pub fn json(object: Value, patch: &[u8]) -> Result<Value, Status> {
    let operations: json_patch::Patch =
        serde_json::from_slice(patch).map_err(|e| undecodable(&e))?;
    operate(object, &operations)
}

fn undecodable(why: &dyn std::fmt::Display) -> Status {
    Status::bad_request(format!("error decoding patch: {why}"))
}

fn operate(mut object: Value, patch: &json_patch::Patch) -> Result<Value, Status> {
    if patch.0.len() > MAX_OPERATIONS {
        let count = patch.0.len();
        let message = format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {count}"
        );
        return Err(Status::new(413, "RequestEntityTooLarge", message));
    }
    // Nothing is undone: an object that a patch fails on is dropped. (The library's undoing panics on some patches.)
    json_patch::patch_unsafe(&mut object, patch).map_err(|e| unprocessable(e.to_string()))?;
    Ok(object)
}

/// Applies a JSON merge patch: objects merge, null removes, everything else replaces.
#[must_use]
pub fn merge(mut object: Value, patch: &Value) -> Value {
    json_patch::merge(&mut object, patch);
    object
}
