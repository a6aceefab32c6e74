//! CSIStorageCapacities: how much storage a driver can still provide where.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::amounts::{canonical, canonicalize_one, validate_non_negative};
use super::declare::{Declaration, without_status};
use super::walk::Walk;
use crate::kind::{Column, Kind, Strategy};
use crate::status::FieldErrors;
use crate::table::{column, name, name_column};
use crate::validation::selector::validate_label_selector;
use crate::validation::{Path, each_invalid, immutable, names};

pub(super) fn kind() -> Arc<Kind> {
    Declaration::namespaced(
        "storage.k8s.io",
        "v1",
        "CSIStorageCapacity",
        "csistoragecapacities",
        Capacities,
    )
    .build()
}

struct Capacities;

impl Strategy for Capacities {
    fn default(&self, object: &mut Value) {
        canonicalize_one(object, "capacity");
        canonicalize_one(object, "maximumVolumeSize");
    }

    without_status!();

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let class = object["storageClassName"].text();
        each_invalid(
            &Path::new("storageClassName"),
            class,
            names::dns1123_subdomain(class),
            &mut errors,
        );
        validate_label_selector(
            &object["nodeTopology"],
            &Path::new("nodeTopology"),
            &mut errors,
        );
        for field in ["capacity", "maximumVolumeSize"] {
            if object[field].present() {
                validate_non_negative(&object[field], &Path::new(field), &mut errors);
            }
        }
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> FieldErrors {
        let mut errors = self.validate_create(object);
        for field in ["nodeTopology", "storageClassName"] {
            immutable(&object[field], &old[field], &Path::new(field), &mut errors);
        }
        errors
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column(
                "StorageClassName",
                "string",
                "The StorageClass it is about.",
            ),
            column("Capacity", "string", "Storage that is left."),
        ]
    }

    fn row(&self, object: &Value, _now: Timestamp) -> Vec<Value> {
        vec![
            name(object),
            object["storageClassName"].text().into(),
            canonical(&object["capacity"])
                .unwrap_or_else(|| "<unset>".into())
                .into(),
        ]
    }
}
