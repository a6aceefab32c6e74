//! Conditions of the form that all kinds share (`meta/v1` Condition).

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Path, each_invalid, names, non_negative, one_of};
use crate::kinds::walk::Walk;
use crate::status::FieldErrors;

const REASON_LIMIT: usize = 1024;
const MESSAGE_LIMIT: usize = 32 * 1024;
const REASON_FORM: &str = "[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?";
/// What Go writes for no time.
const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

/// Reports what is wrong with a list of conditions.
pub fn validate_conditions(conditions: &Value, path: &Path, errors: &mut FieldErrors) {
    let mut seen = BTreeSet::new();
    for (i, condition) in conditions.items().iter().enumerate() {
        let path = path.index(i);
        let type_ = condition["type"].text();
        if type_.is_empty() {
            errors.required(path.child("type"), "must be set");
        } else {
            let problems = names::qualified_name(type_);
            each_invalid(&path.child("type"), type_, problems, errors);
        }
        if !seen.insert(type_) {
            errors.duplicate(path.child("type"), type_);
        }
        one_condition(condition, &path, errors);
    }
}

fn one_condition(condition: &Value, path: &Path, errors: &mut FieldErrors) {
    one_of(
        &condition["status"],
        &["False", "True", "Unknown"],
        &path.child("status"),
        errors,
    );
    let generation = "observedGeneration";
    non_negative(&condition[generation], &path.child(generation), errors);
    if matches!(condition["lastTransitionTime"].text(), "" | ZERO_TIME) {
        errors.required(path.child("lastTransitionTime"), "must be set");
    }
    let (reason, at) = (condition["reason"].text(), path.child("reason"));
    if reason.is_empty() {
        errors.required(at, "must be set");
    } else if reason.len() > REASON_LIMIT {
        errors.too_long(at, REASON_LIMIT);
    } else if !is_reason(reason) {
        let example = "e.g. 'my_name',  or 'MY_NAME',  or 'MyName',  or 'ReasonA,ReasonB',  or 'ReasonA:ReasonB'";
        errors.invalid(
            at,
            reason,
            format!(
                "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', and must end with an alphanumeric character or '_' ({example}, regex used for validation is '{REASON_FORM}')"
            ),
        );
    }
    if condition["message"].text().len() > MESSAGE_LIMIT {
        errors.too_long(path.child("message"), MESSAGE_LIMIT);
    }
}

fn is_reason(text: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.ends_with(word)
        && text.chars().all(|c| word(c) || c == ',' || c == ':')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::FieldError;
    use serde_json::json;

    fn problems(conditions: Value) -> Vec<String> {
        let mut errors = FieldErrors::default();
        validate_conditions(&conditions, &Path::new("status.conditions"), &mut errors);
        errors.0.iter().map(FieldError::text).collect()
    }

    #[test]
    fn whole_conditions_pass() {
        let condition = json!({"type": "example.com/Ready", "status": "Unknown", "reason": "A:b,c_1",
            "message": "", "observedGeneration": 0, "lastTransitionTime": "2026-01-01T00:00:00Z"});
        assert_eq!(problems(json!([condition])), Vec::<String>::new());
    }

    #[test]
    fn each_part_is_checked() {
        let half =
            json!({"type": "Ready", "status": "yes", "reason": "1", "observedGeneration": -1});
        let found = problems(
            json!([half, {"type": "Ready", "status": "True", "reason": "A",
            "lastTransitionTime": ZERO_TIME}, {}]),
        );
        let starts = [
            "status.conditions[0].status: Unsupported value: \"yes\"",
            "status.conditions[0].observedGeneration: Invalid value: -1",
            "status.conditions[0].lastTransitionTime: Required value: must be set",
            "status.conditions[0].reason: Invalid value: \"1\": a condition reason must",
            "status.conditions[1].type: Duplicate value: \"Ready\"",
            "status.conditions[1].lastTransitionTime: Required value: must be set",
            "status.conditions[2].type: Required value: must be set",
            "status.conditions[2].status: Required value",
            "status.conditions[2].lastTransitionTime: Required value: must be set",
            "status.conditions[2].reason: Required value: must be set",
        ];
        assert_eq!(found.len(), starts.len(), "{found:?}");
        for (text, start) in found.iter().zip(starts) {
            assert!(text.starts_with(start), "{text}");
        }
    }
}
