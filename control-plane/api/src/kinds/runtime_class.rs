//! RuntimeClasses: which runtime handler of a node runs a pod.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::amounts::{canonicalize, validate_non_negative};
use super::declare::{Declaration, without_status};
use super::pod::validate::validate_tolerations;
use super::walk::{Walk, get_mut};
use crate::kind::{Column, Kind, Strategy};
use crate::status::FieldErrors;
use crate::table::{age, age_column, column, name, name_column};
use crate::validation::metadata::validate_labels;
use crate::validation::{Path, each_invalid, immutable, names};

pub(super) fn kind() -> Arc<Kind> {
    Declaration::cluster(
        "node.k8s.io",
        "v1",
        "RuntimeClass",
        "runtimeclasses",
        RuntimeClasses,
    )
    .build()
}

struct RuntimeClasses;

impl Strategy for RuntimeClasses {
    fn default(&self, object: &mut Value) {
        if let Some(overhead) = get_mut(object, "overhead") {
            canonicalize(overhead, "podFixed");
        }
    }

    without_status!();

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let handler = object["handler"].text();
        each_invalid(
            &Path::new("handler"),
            handler,
            names::dns1123_label(handler),
            &mut errors,
        );
        let path = Path::new("overhead").child("podFixed");
        for (resource, amount) in object["overhead"]["podFixed"].entries() {
            validate_non_negative(amount, &path.key(resource), &mut errors);
        }
        let (scheduling, path) = (&object["scheduling"], Path::new("scheduling"));
        validate_labels(
            &scheduling["nodeSelector"],
            &path.child("nodeSelector"),
            &mut errors,
        );
        validate_tolerations(
            &scheduling["tolerations"],
            &path.child("tolerations"),
            &mut errors,
        );
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> FieldErrors {
        let mut errors = self.validate_create(object);
        immutable(
            &object["handler"],
            &old["handler"],
            &Path::new("handler"),
            &mut errors,
        );
        errors
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column("Handler", "string", "Handler of the container runtime."),
            age_column(),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            name(object),
            object["handler"].text().into(),
            age(object, now),
        ]
    }
}
