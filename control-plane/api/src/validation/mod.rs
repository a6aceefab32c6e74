//! Checks that many kinds share: names, metadata, label selectors. Wording and field paths are upstream's,
//! because people search for them.

pub mod conditions;
pub mod metadata;
pub mod names;
mod path;
pub mod pem;
pub mod selector;

pub use conditions::validate_conditions;
pub use metadata::{NameRule, validate_metadata_create, validate_metadata_update};
pub use path::Path;

use serde_json::Value;

use crate::kinds::walk::{Walk, same};
use crate::status::FieldErrors;

/// Adds an error when an integer is there and negative.
pub fn non_negative(value: &Value, path: &Path, errors: &mut FieldErrors) {
    if let Some(number) = value.int().filter(|n| *n < 0) {
        errors.invalid(path, number, "must be greater than or equal to 0");
    }
}

/// Adds an error when a field differs from what it was.
pub fn immutable(new: &Value, old: &Value, path: &Path, errors: &mut FieldErrors) {
    if !same(new, old) {
        errors.invalid(path, new.clone(), "field is immutable");
    }
}

/// Adds an error for a text that is empty (required) or none of the supported ones.
pub fn one_of(value: &Value, supported: &[&str], path: &Path, errors: &mut FieldErrors) {
    match value.text() {
        "" => errors.required(path, ""),
        text if supported.contains(&text) => {}
        text => errors.not_supported(path, text, supported),
    }
}

/// Adds an error for a text that is there and none of the supported ones.
pub fn one_of_or_none(value: &Value, supported: &[&str], path: &Path, errors: &mut FieldErrors) {
    if value.present() {
        one_of(value, supported, path, errors);
    }
}

/// Adds one error per message, all about the same value.
pub fn each_invalid(path: &Path, value: &str, messages: Vec<String>, errors: &mut FieldErrors) {
    for message in messages {
        errors.invalid(path, value, message);
    }
}
