//! Quantities inside objects: canonical form and checks.

use std::collections::BTreeMap;

use serde_json::Value;

use super::walk::{Walk, get_mut, set};
use crate::quantity::Quantity;
use crate::status::FieldErrors;
use crate::validation::Path;

/// What a text must look like to be a quantity.
pub(crate) const SYNTAX: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

/// Amounts by resource name, for example `cpu` and `memory`.
pub type Amounts = BTreeMap<String, Quantity>;

/// The amounts of a resource list; what is no quantity is left out.
#[must_use]
pub fn amounts(list: &Value) -> Amounts {
    list.entries()
        .filter_map(|(name, value)| Some((name.clone(), Quantity::from_value(value).ok()?)))
        .collect()
}

/// The amount, if there is one.
pub(crate) fn amount(value: &Value) -> Option<Quantity> {
    Quantity::from_value(value).ok().filter(|_| value.present())
}

/// The canonical text of an amount, if it is one.
pub(crate) fn canonical(value: &Value) -> Option<String> {
    amount(value).map(|q| q.to_string())
}

/// Brings one amount into canonical form, as Go clients will read it back (`1000m` is `1`).
pub(crate) fn canonicalize_one(holder: &mut Value, key: &str) {
    if let Some(text) = canonical(&holder[key]) {
        set(holder, key, text);
    }
}

/// Brings all amounts of a resource list into canonical form.
pub(crate) fn canonicalize(holder: &mut Value, key: &str) {
    let Some(list) = get_mut(holder, key).and_then(Value::as_object_mut) else {
        return;
    };
    for value in list.values_mut() {
        if let Some(text) = canonical(value) {
            *value = text.into();
        }
    }
}

/// The amount, or an error of syntax or sign.
pub(crate) fn validate_non_negative(
    value: &Value,
    path: &Path,
    errors: &mut FieldErrors,
) -> Option<Quantity> {
    match Quantity::from_value(value) {
        Err(problem) => {
            errors.invalid(path, value.clone(), problem.to_string());
            None
        }
        Ok(amount) => {
            if amount.is_negative() {
                errors.invalid(
                    path,
                    amount.to_string(),
                    "must be greater than or equal to 0",
                );
            }
            Some(amount)
        }
    }
}
