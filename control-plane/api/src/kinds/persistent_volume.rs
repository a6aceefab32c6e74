//! PersistentVolumes: a piece of storage.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::amounts;
use super::declare::{Declaration, keep_generation};
use super::pod::validate::validate_node_selector;
use super::walk::{Walk, carry_over, child, fill_zero, same, set};
use crate::kind::{Column, Kind, Name, Strategy};
use crate::status::FieldErrors;
use crate::table::{age, age_column, column, name, name_column, wide};
use crate::validation::{Path, each_invalid, immutable, names, one_of};

const MODES: &[&str] = &[
    "ReadOnlyMany",
    "ReadWriteMany",
    "ReadWriteOnce",
    "ReadWriteOncePod",
];
const SOURCES: &[&str] = &[
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "csi",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "glusterfs",
    "hostPath",
    "iscsi",
    "local",
    "nfs",
    "photonPersistentDisk",
    "portworxVolume",
    "quobyte",
    "rbd",
    "scaleIO",
    "storageos",
    "vsphereVolume",
];

pub(super) fn kind() -> Arc<Kind> {
    Declaration::cluster("", "v1", "PersistentVolume", "persistentvolumes", Volumes)
        .short_names(&["pv"])
        .status()
        .build()
}

/// Access modes of a volume or a claim.
pub(super) fn validate_access_modes(modes: &Value, path: &Path, errors: &mut FieldErrors) {
    let list = modes.items();
    if list.is_empty() {
        errors.required(path, "at least 1 access mode is required");
    }
    for mode in list {
        if !MODES.contains(&mode.text()) {
            errors.not_supported(path, mode.text(), MODES);
        }
    }
    if list.len() > 1 && list.iter().any(|m| m == "ReadWriteOncePod") {
        errors.forbidden(path, "may not use ReadWriteOncePod with other access modes");
    }
}

/// Access modes in short: `RWO,ROX`.
pub(super) fn access_modes(modes: &Value) -> String {
    [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ]
    .iter()
    .filter(|(mode, _)| modes.items().iter().any(|m| m == mode))
    .map(|(_, short)| *short)
    .collect::<Vec<_>>()
    .join(",")
}

struct Volumes;

impl Strategy for Volumes {
    fn default(&self, object: &mut Value) {
        let Some(spec) = child(object, "spec") else {
            return;
        };
        fill_zero(spec, "persistentVolumeReclaimPolicy", "Retain");
        fill_zero(spec, "volumeMode", "Filesystem");
        amounts::canonicalize(spec, "capacity");
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
        validate_access_modes(
            &spec["accessModes"],
            &path.child("accessModes"),
            &mut errors,
        );
        match &spec["capacity"]["storage"] {
            Value::Null => errors.required(path.child("capacity"), ""),
            amount => {
                amounts::validate_non_negative(
                    amount,
                    &path.child("capacity").key("storage"),
                    &mut errors,
                );
            }
        }
        one_of(
            &spec["persistentVolumeReclaimPolicy"],
            &["Delete", "Recycle", "Retain"],
            &path.child("persistentVolumeReclaimPolicy"),
            &mut errors,
        );
        one_of(
            &spec["volumeMode"],
            &["Block", "Filesystem"],
            &path.child("volumeMode"),
            &mut errors,
        );
        let mut sources = SOURCES.iter().filter(|s| spec[**s].present());
        if sources.next().is_none() {
            errors.required(&path, "must specify a volume type");
        }
        for second in sources {
            errors.forbidden(
                path.child(second),
                "may not specify more than 1 volume type",
            );
        }
        let required = &spec["nodeAffinity"]["required"];
        if spec["nodeAffinity"].present() && required.is_null() {
            errors.required(
                path.child("nodeAffinity").child("required"),
                "must specify required node constraints",
            );
        } else if required.present() {
            let path = path.child("nodeAffinity").child("required");
            validate_node_selector(required, &path, &mut errors);
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
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> FieldErrors {
        let mut errors = self.validate_create(object);
        let (spec, before, path) = (&object["spec"], &old["spec"], Path::new("spec"));
        if SOURCES.iter().any(|s| !same(&spec[*s], &before[*s])) {
            errors.forbidden(
                path.child("persistentvolumesource"),
                "spec.persistentvolumesource is immutable after creation",
            );
        }
        immutable(
            &spec["volumeMode"],
            &before["volumeMode"],
            &path.child("volumeMode"),
            &mut errors,
        );
        if before["nodeAffinity"].present() {
            immutable(
                &spec["nodeAffinity"],
                &before["nodeAffinity"],
                &path.child("nodeAffinity"),
                &mut errors,
            );
        }
        errors
    }

    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        if object["spec"]["persistentVolumeReclaimPolicy"] != "Recycle" {
            return Vec::new();
        }
        vec!["spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.".to_owned()]
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(Name, String)> {
        vec![("name".into(), object["metadata"]["name"].text().into())]
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["name"]
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column("Capacity", "string", "Size."),
            column("Access Modes", "string", "How it can be mounted."),
            column(
                "Reclaim Policy",
                "string",
                "What happens when its claim is deleted.",
            ),
            column("Status", "string", "Whether it has a claim."),
            column("Claim", "string", "Its claim."),
            column("StorageClass", "string", "Its class."),
            column(
                "VolumeAttributesClass",
                "string",
                "Class of changeable attributes.",
            ),
            column("Reason", "string", "Why it is in its state."),
            age_column(),
            wide("VolumeMode", "string", "File system or block device."),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let claim = &spec["claimRef"];
        let unset = |text: &str| Value::from(if text.is_empty() { "<unset>" } else { text });
        let phase = if object["metadata"]["deletionTimestamp"].present() {
            "Terminating"
        } else {
            status["phase"].text()
        };
        vec![
            name(object),
            spec["capacity"]["storage"].text().into(),
            access_modes(&spec["accessModes"]).into(),
            spec["persistentVolumeReclaimPolicy"].text().into(),
            phase.into(),
            if claim.is_null() {
                "".into()
            } else {
                format!("{}/{}", claim["namespace"].text(), claim["name"].text()).into()
            },
            spec["storageClassName"].text().into(),
            unset(spec["volumeAttributesClassName"].text()),
            status["reason"].text().into(),
            age(object, now),
            unset(spec["volumeMode"].text()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_has_one_source_for_good() {
        let mut volume = json!({"spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce", "ReadOnlyMany"], "hostPath": {"path": "/a"}}});
        Volumes.default(&mut volume);
        assert!(Volumes.validate_create(&volume).is_empty());
        assert_eq!(access_modes(&volume["spec"]["accessModes"]), "RWO,ROX");
        let mut new = volume.clone();
        new["spec"]["hostPath"]["path"] = json!("/b");
        assert_eq!(
            Volumes.validate_update(&new, &volume).0[0].text(),
            "spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation"
        );
    }
}
