//! CSIDrivers: how a volume driver wants to be treated.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::declare::{Declaration, advance_generation, set_generation};
use super::walk::{Walk, child, fill, same};
use crate::kind::{Column, Kind, Strategy};
use crate::status::FieldErrors;
use crate::table::{age, age_column, column, name, name_column, or_none};
use crate::validation::{Path, immutable, names};

/// Longest name of a CSI driver (CSI specification, "GetPluginInfo").
const NAME_LIMIT: usize = 63;

pub(super) fn kind() -> Arc<Kind> {
    Declaration::cluster("storage.k8s.io", "v1", "CSIDriver", "csidrivers", Drivers).build()
}

/// Name of a CSI driver: 63 bytes at most, a subdomain but for upper case letters.
pub(super) fn validate_driver_name(driver: &str, path: &Path, errors: &mut FieldErrors) {
    if driver.is_empty() {
        errors.required(path, "");
    }
    if driver.len() > NAME_LIMIT {
        errors.too_long(path, NAME_LIMIT);
    }
    for message in names::dns1123_subdomain(&driver.to_lowercase()) {
        errors.invalid(path, driver, message);
    }
}

struct Drivers;

impl Strategy for Drivers {
    fn default(&self, object: &mut Value) {
        let Some(spec) = child(object, "spec") else {
            return;
        };
        fill(spec, "attachRequired", true);
        fill(spec, "podInfoOnMount", false);
        fill(spec, "storageCapacity", false);
        fill(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
        if spec["volumeLifecycleModes"].is_empty() {
            super::walk::set(spec, "volumeLifecycleModes", json!(["Persistent"]));
        }
        fill(spec, "requiresRepublish", false);
        fill(spec, "seLinuxMount", false);
    }

    fn prepare_create(&self, object: &mut Value) {
        set_generation(object, 1);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        let changed = !same(&object["spec"], &old["spec"]);
        advance_generation(object, old, changed);
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        *object = old.clone();
    }

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let name = object["metadata"]["name"].text();
        if name.len() > NAME_LIMIT {
            errors.too_long("metadata.name", NAME_LIMIT);
        }
        let (spec, path) = (&object["spec"], Path::new("spec"));
        for field in ["attachRequired", "podInfoOnMount", "storageCapacity"] {
            if spec[field].is_null() {
                errors.required(path.child(field), "");
            }
        }
        let policies = ["File", "None", "ReadWriteOnceWithFSType"];
        if !policies.contains(&spec["fsGroupPolicy"].text()) {
            errors.not_supported(
                path.child("fsGroupPolicy"),
                spec["fsGroupPolicy"].text(),
                &policies,
            );
        }
        for (i, mode) in spec["volumeLifecycleModes"].items().iter().enumerate() {
            let modes = ["Ephemeral", "Persistent"];
            if !modes.contains(&mode.text()) {
                errors.not_supported(
                    path.child("volumeLifecycleModes").index(i),
                    mode.text(),
                    &modes,
                );
            }
        }
        validate_token_requests(
            &spec["tokenRequests"],
            &path.child("tokenRequests"),
            &mut errors,
        );
        if spec["nodeAllocatableUpdatePeriodSeconds"]
            .int()
            .is_some_and(|seconds| seconds < 10)
        {
            errors.invalid(
                path.child("nodeAllocatableUpdatePeriodSeconds"),
                spec["nodeAllocatableUpdatePeriodSeconds"].clone(),
                "must be greater than or equal to 10 seconds",
            );
        }
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> FieldErrors {
        let mut errors = self.validate_create(object);
        let path = Path::new("spec");
        for field in ["attachRequired", "volumeLifecycleModes"] {
            immutable(
                &object["spec"][field],
                &old["spec"][field],
                &path.child(field),
                &mut errors,
            );
        }
        errors
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column(
                "AttachRequired",
                "boolean",
                "Whether volumes are attached to nodes first.",
            ),
            column(
                "PodInfoOnMount",
                "boolean",
                "Whether the driver is told of the pod.",
            ),
            column(
                "StorageCapacity",
                "boolean",
                "Whether pods are placed by free storage.",
            ),
            column(
                "TokenRequests",
                "string",
                "Audiences of the tokens the driver gets.",
            ),
            column(
                "RequiresRepublish",
                "boolean",
                "Whether volumes are published again and again.",
            ),
            column("Modes", "string", "Kinds of volume: Persistent, Ephemeral."),
            age_column(),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = &object["spec"];
        let modes: Vec<&str> = spec["volumeLifecycleModes"]
            .items()
            .iter()
            .map(Walk::text)
            .collect();
        let audiences: Vec<&str> = spec["tokenRequests"]
            .items()
            .iter()
            .map(|request| request["audience"].text())
            .collect();
        let tokens = if spec["tokenRequests"].is_null() {
            "<unset>".to_owned()
        } else {
            audiences.join(",")
        };
        vec![
            name(object),
            spec["attachRequired"].as_bool().unwrap_or(true).into(),
            spec["podInfoOnMount"].is_true().into(),
            spec["storageCapacity"].is_true().into(),
            tokens.into(),
            spec["requiresRepublish"].is_true().into(),
            or_none(&modes.join(",")),
            age(object, now),
        ]
    }
}

fn validate_token_requests(requests: &Value, path: &Path, errors: &mut FieldErrors) {
    let mut audiences = BTreeSet::new();
    for (i, request) in requests.items().iter().enumerate() {
        let path = path.index(i);
        let audience = request["audience"].text();
        if !audiences.insert(audience) {
            errors.duplicate(path.child("audience"), audience);
        }
        let Some(seconds) = request["expirationSeconds"].int() else {
            continue;
        };
        let path = path.child("expirationSeconds");
        if seconds < 600 {
            errors.invalid(
                &path,
                seconds,
                "may not specify a duration less than 10 minutes",
            );
        }
        if seconds > 1 << 32 {
            errors.invalid(
                &path,
                seconds,
                "may not specify a duration larger than 2^32 seconds",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_says_nothing_attaches_persistent_volumes() {
        let mut driver = json!({"metadata": {"name": "disk.example.com"}, "spec": {}});
        Drivers.default(&mut driver);
        assert!(Drivers.validate_create(&driver).is_empty());
        let mut other = driver.clone();
        other["spec"]["attachRequired"] = json!(false);
        assert_eq!(
            Drivers.validate_update(&other, &driver).0[0].text(),
            "spec.attachRequired: Invalid value: false: field is immutable"
        );
    }
}
