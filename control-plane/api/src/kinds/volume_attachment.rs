//! VolumeAttachments: the wish that a volume be attached to a node, and what came of it.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::csi_driver::validate_driver_name;
use super::declare::{Declaration, keep_generation, update_only_status};
use super::walk::{Walk, carry_over, set};
use crate::kind::{Column, Kind, Strategy};
use crate::status::FieldErrors;
use crate::table::{age, age_column, column, name, name_column};
use crate::validation::{Path, immutable, names};

pub(super) fn kind() -> Arc<Kind> {
    Declaration::cluster(
        "storage.k8s.io",
        "v1",
        "VolumeAttachment",
        "volumeattachments",
        Attachments,
    )
    .status()
    .build()
}

struct Attachments;

impl Strategy for Attachments {
    fn prepare_create(&self, object: &mut Value) {
        set(object, "status", json!({"attached": false}));
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        carry_over(object, old, "status");
        keep_generation(object, old);
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        update_only_status(object, old);
    }

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let (spec, path) = (&object["spec"], Path::new("spec"));
        validate_driver_name(
            spec["attacher"].text(),
            &path.child("attacher"),
            &mut errors,
        );
        if spec["nodeName"].is_empty() {
            errors.required(path.child("nodeName"), "");
        } else {
            for message in names::dns1123_subdomain(spec["nodeName"].text()) {
                errors.invalid(path.child("nodeName"), spec["nodeName"].text(), message);
            }
        }
        let source = path.child("source");
        let volume = &spec["source"]["persistentVolumeName"];
        let inline = &spec["source"]["inlineVolumeSpec"];
        match (volume.is_null(), inline.is_null()) {
            (true, true) => errors.required(
                source,
                "must specify exactly one of inlineVolumeSpec and persistentVolumeName",
            ),
            (false, false) => errors.forbidden(
                source,
                "must specify exactly one of inlineVolumeSpec and persistentVolumeName",
            ),
            (false, true) if volume.text().is_empty() => errors.required(
                source.child("persistentVolumeName"),
                "must specify non empty persistentVolumeName",
            ),
            _ => {}
        }
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> FieldErrors {
        let mut errors = self.validate_create(object);
        immutable(
            &object["spec"],
            &old["spec"],
            &Path::new("spec"),
            &mut errors,
        );
        errors
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column("Attacher", "string", "Driver that attaches."),
            column("PV", "string", "The volume."),
            column("Node", "string", "The node."),
            column("Attached", "boolean", "Whether it is attached."),
            age_column(),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = &object["spec"];
        vec![
            name(object),
            spec["attacher"].text().into(),
            spec["source"]["persistentVolumeName"].text().into(),
            spec["nodeName"].text().into(),
            object["status"]["attached"].is_true().into(),
            age(object, now),
        ]
    }
}
