//! StorageClasses: how volumes are made for claims.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::declare::{Declaration, without_status};
use super::walk::{Walk, fill};
use crate::kind::{Column, Kind, Strategy};
use crate::status::FieldErrors;
use crate::table::{age, age_column, column, name_column};
use crate::validation::{Path, each_invalid, immutable, names, one_of};

const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";

pub(super) fn kind() -> Arc<Kind> {
    Declaration::cluster(
        "storage.k8s.io",
        "v1",
        "StorageClass",
        "storageclasses",
        StorageClasses,
    )
    .short_names(&["sc"])
    .build()
}

struct StorageClasses;

impl Strategy for StorageClasses {
    fn default(&self, object: &mut Value) {
        fill(object, "reclaimPolicy", "Delete");
        fill(object, "volumeBindingMode", "Immediate");
    }

    without_status!();

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let provisioner = object["provisioner"].text();
        let path = Path::new("provisioner");
        if provisioner.is_empty() {
            errors.required(path, "");
        } else {
            each_invalid(
                &path,
                provisioner,
                names::qualified_name(&provisioner.to_lowercase()),
                &mut errors,
            );
        }
        one_of(
            &object["reclaimPolicy"],
            &["Delete", "Retain"],
            &Path::new("reclaimPolicy"),
            &mut errors,
        );
        one_of(
            &object["volumeBindingMode"],
            &["Immediate", "WaitForFirstConsumer"],
            &Path::new("volumeBindingMode"),
            &mut errors,
        );
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> FieldErrors {
        let mut errors = self.validate_create(object);
        if object["parameters"] != old["parameters"] {
            errors.forbidden("parameters", "updates to parameters are forbidden.");
        }
        if object["provisioner"] != old["provisioner"] {
            errors.forbidden("provisioner", "updates to provisioner are forbidden.");
        }
        if object["reclaimPolicy"] != old["reclaimPolicy"] {
            errors.forbidden("reclaimPolicy", "updates to reclaimPolicy are forbidden.");
        }
        let mode = "volumeBindingMode";
        immutable(&object[mode], &old[mode], &Path::new(mode), &mut errors);
        errors
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column("Provisioner", "string", "Who makes the volumes."),
            column(
                "ReclaimPolicy",
                "string",
                "What happens to a volume when its claim is deleted.",
            ),
            column("VolumeBindingMode", "string", "When a volume is made."),
            column(
                "AllowVolumeExpansion",
                "string",
                "Whether volumes can grow.",
            ),
            age_column(),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let name = object["metadata"]["name"].text();
        let default = object["metadata"]["annotations"][DEFAULT_CLASS] == "true";
        vec![
            if default {
                format!("{name} (default)")
            } else {
                name.to_owned()
            }
            .into(),
            object["provisioner"].text().into(),
            object["reclaimPolicy"].text().into(),
            object["volumeBindingMode"].text().into(),
            object["allowVolumeExpansion"].is_true().into(),
            age(object, now),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_class_is_fixed_once_made() {
        let mut old = json!({"provisioner": "example.com/disk"});
        StorageClasses.default(&mut old);
        assert!(StorageClasses.validate_create(&old).is_empty());
        let mut new = old.clone();
        new["reclaimPolicy"] = json!("Retain");
        assert_eq!(
            StorageClasses.validate_update(&new, &old).0[0].text(),
            "reclaimPolicy: Forbidden: updates to reclaimPolicy are forbidden."
        );
    }
}
