//! VolumeAttributesClasses: settings of a driver that claims can change (KEP-3751).

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::csi_driver::validate_driver_name;
use super::declare::{Declaration, without_status};
use super::walk::{Walk, same};
use crate::kind::{Column, Kind, Strategy};
use crate::status::FieldErrors;
use crate::table::{age, age_column, column, name, name_column};
use crate::validation::Path;

/// Limits of `parameters`: how many, and bytes of all keys and values.
const PARAMETERS: (usize, usize) = (512, 256 * 1024);

pub(super) fn kind() -> Arc<Kind> {
    Declaration::cluster(
        "storage.k8s.io",
        "v1",
        "VolumeAttributesClass",
        "volumeattributesclasses",
        Classes,
    )
    .short_names(&["vac"])
    .build()
}

struct Classes;

impl Strategy for Classes {
    without_status!();

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        validate_driver_name(
            object["driverName"].text(),
            &Path::new("driverName"),
            &mut errors,
        );
        let parameters = &object["parameters"];
        let (count, size) = PARAMETERS;
        if parameters.is_empty() {
            errors.required("parameters", "must contain at least one key/value pair");
        }
        if parameters.entries().count() > count {
            errors.too_long("parameters", count);
        }
        let bytes: usize = parameters
            .entries()
            .map(|(key, value)| key.len() + value.text().len())
            .sum();
        if parameters.entries().any(|(key, _)| key.is_empty()) {
            errors.invalid("parameters", "", "field can not be empty.");
        }
        if bytes > size {
            errors.too_long("parameters", size);
        }
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> FieldErrors {
        let mut errors = self.validate_create(object);
        for field in ["driverName", "parameters"] {
            if !same(&object[field], &old[field]) {
                errors.forbidden(field, format!("updates to {field} are forbidden."));
            }
        }
        errors
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column("DriverName", "string", "The driver."),
            age_column(),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            name(object),
            object["driverName"].text().into(),
            age(object, now),
        ]
    }
}
