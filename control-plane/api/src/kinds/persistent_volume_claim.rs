//! PersistentVolumeClaims: a wish for storage.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::amounts;
use super::declare::{Declaration, keep_generation};
use super::persistent_volume::{access_modes, validate_access_modes};
use super::walk::{Walk, carry_over, child, fill_zero, get_mut, same, set};
use crate::kind::{Column, Kind, Strategy};
use crate::status::FieldErrors;
use crate::table::{age, age_column, column, name, name_column, wide};
use crate::validation::selector::validate_label_selector;
use crate::validation::{Path, each_invalid, names, one_of};

pub(super) fn kind() -> Arc<Kind> {
    Declaration::namespaced(
        "",
        "v1",
        "PersistentVolumeClaim",
        "persistentvolumeclaims",
        Claims,
    )
    .short_names(&["pvc"])
    .status()
    .build()
}

/// Defaults of a claim, also of those in a StatefulSet.
pub(super) fn default_claim(claim: &mut Value) {
    let Some(spec) = child(claim, "spec") else {
        return;
    };
    fill_zero(spec, "volumeMode", "Filesystem");
    if let Some(resources) = get_mut(spec, "resources") {
        amounts::canonicalize(resources, "requests");
        amounts::canonicalize(resources, "limits");
    }
}

struct Claims;

impl Strategy for Claims {
    fn default(&self, object: &mut Value) {
        default_claim(object);
    }

    fn prepare_create(&self, object: &mut Value) {
        set(object, "status", json!({ "phase": "Pending" }));
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        carry_over(object, old, "status");
        keep_generation(object, old);
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        carry_over(object, old, "spec");
        keep_generation(object, old);
    }

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let (spec, path) = (&object["spec"], Path::new("spec"));
        validate_label_selector(&spec["selector"], &path.child("selector"), &mut errors);
        validate_access_modes(
            &spec["accessModes"],
            &path.child("accessModes"),
            &mut errors,
        );
        let storage = path.child("resources").key("storage");
        match &spec["resources"]["requests"]["storage"] {
            Value::Null => errors.required(storage, ""),
            amount => {
                if amounts::validate_non_negative(amount, &storage, &mut errors)
                    .is_some_and(|a| a.is_zero())
                {
                    errors.invalid(storage, "0", "must be greater than zero");
                }
            }
        }
        let class = spec["storageClassName"].text();
        if !class.is_empty() {
            each_invalid(
                &path.child("storageClassName"),
                class,
                names::dns1123_subdomain(class),
                &mut errors,
            );
        }
        one_of(
            &spec["volumeMode"],
            &["Block", "Filesystem"],
            &path.child("volumeMode"),
            &mut errors,
        );
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> FieldErrors {
        let mut errors = self.validate_create(object);
        let bound = old["status"]["phase"] == "Bound";
        let mut spec = object["spec"].clone();
        // Binding sets the volume's name once; a bound claim may grow.
        if old["spec"]["volumeName"].is_empty() {
            carry_over(&mut spec, &old["spec"], "volumeName");
        }
        // An unbound claim without a class gets the default one once there is one.
        let classless = old["spec"]["storageClassName"].is_null();
        if classless && old["spec"]["volumeName"].is_empty() {
            carry_over(&mut spec, &old["spec"], "storageClassName");
        }
        if bound {
            carry_over(&mut spec, &old["spec"], "volumeAttributesClassName");
            if let Some(resources) = get_mut(&mut spec, "resources") {
                carry_over(resources, &old["spec"]["resources"], "requests");
            }
        }
        if !same(&spec, &old["spec"]) {
            errors.forbidden(
                "spec",
                "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
            );
        }
        let request = |o: &Value| amounts::amount(&o["spec"]["resources"]["requests"]["storage"]);
        // A growth that failed may be taken back, though never below the size that the volume has.
        let size = amounts::amount(&old["status"]["capacity"]["storage"]).unwrap_or_default();
        if let (Some(new), Some(before)) = (request(object), request(old))
            && new < before
            && new <= size
        {
            errors.forbidden(
                "spec.resources.requests.storage",
                "field can not be less than status.capacity",
            );
        }
        errors
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column("Status", "string", "Whether the claim has a volume."),
            column("Volume", "string", "Volume of the claim."),
            column("Capacity", "string", "Size of the volume."),
            column("Access Modes", "string", "How the volume can be mounted."),
            column("StorageClass", "string", "Class of the volume."),
            column(
                "VolumeAttributesClass",
                "string",
                "Class of changeable attributes.",
            ),
            age_column(),
            wide("VolumeMode", "string", "File system or block device."),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let phase = if object["metadata"]["deletionTimestamp"].present() {
            "Terminating"
        } else {
            status["phase"].text()
        };
        let bound = !spec["volumeName"].is_empty();
        let capacity = if bound {
            status["capacity"]["storage"].text()
        } else {
            ""
        };
        let modes = if bound {
            access_modes(&status["accessModes"])
        } else {
            String::new()
        };
        let attributes = spec["volumeAttributesClassName"].text();
        vec![
            name(object),
            phase.into(),
            spec["volumeName"].text().into(),
            capacity.into(),
            modes.into(),
            spec["storageClassName"].text().into(),
            if attributes.is_empty() {
                "<unset>"
            } else {
                attributes
            }
            .into(),
            age(object, now),
            match spec["volumeMode"].text() {
                "" => "<unset>",
                mode => mode,
            }
            .into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_needs_modes_and_a_size() {
        let mut claim = json!({"spec": {}});
        Claims.default(&mut claim);
        let texts: Vec<String> = Claims
            .validate_create(&claim)
            .0
            .iter()
            .map(crate::status::FieldError::text)
            .collect();
        assert_eq!(
            texts,
            [
                "spec.accessModes: Required value: at least 1 access mode is required",
                "spec.resources[storage]: Required value",
            ]
        );
    }

    #[test]
    fn only_bound_claims_may_grow() {
        let claim = |phase: &str, size: &str| {
            let mut claim = json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}, "status": {"phase": phase, "capacity": {"storage": "1Gi"}}});
            Claims.default(&mut claim);
            claim
        };
        assert!(
            Claims
                .validate_update(&claim("Bound", "2Gi"), &claim("Bound", "1Gi"))
                .is_empty()
        );
        assert!(
            !Claims
                .validate_update(&claim("Pending", "2Gi"), &claim("Pending", "1Gi"))
                .is_empty()
        );
        assert!(
            !Claims
                .validate_update(&claim("Bound", "1Gi"), &claim("Bound", "2Gi"))
                .is_empty()
        );
    }
}
