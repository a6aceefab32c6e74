//! ConfigMaps.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::declare::{Declaration, without_status};
use super::walk::{Walk, same};
use crate::kind::{Column, Kind, Strategy};
use crate::status::FieldErrors;
use crate::table::{age, age_column, column, name, name_column};
use crate::validation::{Path, each_invalid, names};

/// Bytes that a ConfigMap's or Secret's values may have together.
pub(super) const SIZE_LIMIT: usize = 1024 * 1024;

pub(super) fn kind() -> Arc<Kind> {
    Declaration::namespaced("", "v1", "ConfigMap", "configmaps", ConfigMaps)
        .short_names(&["cm"])
        .build()
}

/// Problems of an update of an object with `immutable` and data in `fields`.
pub(super) fn validate_frozen(
    object: &Value,
    old: &Value,
    fields: &[&str],
    errors: &mut FieldErrors,
) {
    if !old["immutable"].is_true() {
        return;
    }
    if !object["immutable"].is_true() {
        errors.forbidden("immutable", "field is immutable when `immutable` is set");
    }
    for field in fields {
        if !same(&object[*field], &old[*field]) {
            errors.forbidden(*field, "field is immutable when `immutable` is set");
        }
    }
}

struct ConfigMaps;

impl Strategy for ConfigMaps {
    without_status!();

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let mut size = 0;
        for field in ["data", "binaryData"] {
            for (key, value) in object[field].entries() {
                let path = Path::new(field).key(key);
                each_invalid(&path, key, names::config_map_key(key), &mut errors);
                if field == "data" && object["binaryData"].get(key).is_some() {
                    errors.invalid(
                        &path,
                        key.as_str(),
                        "duplicate of key present in binaryData",
                    );
                }
                // Base64 is a third longer than what it stands for.
                size += if field == "data" {
                    value.text().len()
                } else {
                    value.text().len() / 4 * 3
                };
            }
        }
        if size > SIZE_LIMIT {
            errors.too_long("", SIZE_LIMIT);
        }
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        validate_frozen(object, old, &["data", "binaryData"], &mut errors);
        errors.extend(self.validate_create(object));
        errors
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column("Data", "integer", "How many keys it has."),
            age_column(),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let keys = ["data", "binaryData"]
            .iter()
            .map(|f| object[*f].entries().count())
            .sum::<usize>();
        vec![name(object), keys.into(), age(object, now)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::FieldError;
    use serde_json::json;

    #[test]
    fn keys_are_checked_and_stand_in_one_place() {
        let map = json!({"data": {"a b": "1", "c": "2"}, "binaryData": {"c": "Mg=="}});
        let texts: Vec<String> = ConfigMaps
            .validate_create(&map)
            .0
            .iter()
            .map(FieldError::text)
            .collect();
        assert_eq!(
            texts,
            [
                "data[a b]: Invalid value: \"a b\": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
                "data[c]: Invalid value: \"c\": duplicate of key present in binaryData",
            ]
        );
    }

    #[test]
    fn an_immutable_map_stays_as_it_is() {
        let old = json!({"immutable": true, "data": {"a": "1"}});
        let texts: Vec<String> = ConfigMaps
            .validate_update(&json!({"data": {"a": "2"}}), &old)
            .0
            .iter()
            .map(FieldError::text)
            .collect();
        assert_eq!(
            texts,
            [
                "immutable: Forbidden: field is immutable when `immutable` is set",
                "data: Forbidden: field is immutable when `immutable` is set",
            ]
        );
        assert!(ConfigMaps.validate_update(&old, &old).is_empty());
    }

    #[test]
    fn a_map_over_a_mebibyte_is_too_long() {
        let errors =
            ConfigMaps.validate_create(&json!({"data": {"a": "x".repeat(SIZE_LIMIT + 1)}}));
        assert_eq!(
            errors.0[0].body(),
            "Too long: may not be more than 1048576 bytes"
        );
    }
}
