//! ResourceSlices: devices that a driver offers, of one node or of many.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::GROUP;
use crate::kind::{Column, Kind, Name, Strategy};
use crate::kinds::csi_driver::validate_driver_name;
use crate::kinds::declare::{Declaration, advance_generation, set_generation};
use crate::kinds::walk::{Walk, same};
use crate::status::{ErrorKind, FieldError, FieldErrors};
use crate::table::{age, age_column, column, name, name_column, or_none};
use crate::validation::{Path, immutable, names};

/// Most devices in one slice.
const DEVICES_LIMIT: usize = 128;
/// Longest name of a pool.
const POOL_NAME_LIMIT: usize = 253;

pub(in crate::kinds) fn kind() -> Arc<Kind> {
    Declaration::cluster(GROUP, "v1", "ResourceSlice", "resourceslices", Slices).build()
}

struct Slices;

impl Strategy for Slices {
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
        let (spec, path) = (&object["spec"], Path::new("spec"));
        validate_driver_name(spec["driver"].text(), &path.child("driver"), &mut errors);
        validate_pool(&spec["pool"], &path.child("pool"), &mut errors);
        validate_place(spec, &path, &mut errors);
        let (devices, at) = (spec["devices"].items(), path.child("devices"));
        if devices.len() > DEVICES_LIMIT {
            errors.0.push(FieldError {
                kind: ErrorKind::TooMany,
                field: at.to_string(),
                value: Some(devices.len().into()),
                detail: format!("must have at most {DEVICES_LIMIT} items"),
            });
        }
        let mut seen = BTreeSet::new();
        for (i, device) in devices.iter().map(|d| d["name"].text()).enumerate() {
            let at = at.index(i).child("name");
            if device.is_empty() {
                errors.required(&at, "");
                continue;
            }
            for message in names::dns1123_label(device) {
                errors.invalid(&at, device, message);
            }
            if !seen.insert(device) {
                errors.duplicate(&at, device);
            }
        }
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> FieldErrors {
        let mut errors = self.validate_create(object);
        let (new, before, path) = (&object["spec"], &old["spec"], Path::new("spec"));
        for field in ["driver", "nodeName"] {
            immutable(&new[field], &before[field], &path.child(field), &mut errors);
        }
        immutable(
            &new["pool"]["name"],
            &before["pool"]["name"],
            &path.child("pool").child("name"),
            &mut errors,
        );
        errors
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(Name, String)> {
        let spec = &object["spec"];
        vec![
            ("spec.nodeName".into(), spec["nodeName"].text().to_owned()),
            ("spec.driver".into(), spec["driver"].text().to_owned()),
        ]
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["spec.nodeName", "spec.driver"]
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column("Node", "string", "The node whose devices they are."),
            column("Driver", "string", "The driver that offers them."),
            column("Pool", "string", "The pool that the slice is part of."),
            age_column(),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = &object["spec"];
        vec![
            name(object),
            or_none(spec["nodeName"].text()),
            spec["driver"].text().into(),
            spec["pool"]["name"].text().into(),
            age(object, now),
        ]
    }
}

fn validate_pool(pool: &Value, path: &Path, errors: &mut FieldErrors) {
    let (name, at) = (pool["name"].text(), path.child("name"));
    if name.is_empty() {
        errors.required(&at, "");
    } else if name.len() > POOL_NAME_LIMIT {
        errors.too_long(&at, POOL_NAME_LIMIT);
    }
    for part in name.split('/').filter(|_| !name.is_empty()) {
        for message in names::dns1123_subdomain(part) {
            errors.invalid(&at, part, message);
        }
    }
    if pool["resourceSliceCount"].int().unwrap_or_default() <= 0 {
        errors.invalid(
            path.child("resourceSliceCount"),
            pool["resourceSliceCount"].clone(),
            "must be greater than zero",
        );
    }
    if pool["generation"].int().is_some_and(|n| n < 0) {
        errors.invalid(
            path.child("generation"),
            pool["generation"].clone(),
            "must be greater than or equal to zero",
        );
    }
}

/// Exactly one way to say which nodes reach the devices.
fn validate_place(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let ways = [
        !spec["nodeName"].is_empty(),
        spec["nodeSelector"].present(),
        spec["allNodes"].is_true(),
        spec["perDeviceNodeSelection"].is_true(),
    ];
    let list = "`nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection`";
    match ways.iter().filter(|way| **way).count() {
        0 => errors.required(path, format!("exactly one of {list} is required")),
        1 => {}
        _ => errors.invalid(
            path,
            Value::Null,
            format!("exactly one of {list} is required, but multiple fields are set"),
        ),
    }
    if let Some(node) = spec["nodeName"].as_str().filter(|n| !n.is_empty()) {
        for message in names::dns1123_subdomain(node) {
            errors.invalid(path.child("nodeName"), node, message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_slice_says_where_its_devices_are() {
        let mut slice = json!({"spec": {
            "driver": "gpu.example.com", "nodeName": "a1",
            "pool": {"name": "a1", "generation": 1, "resourceSliceCount": 1}, "devices": [{"name": "gpu-0"}],
        }});
        assert!(Slices.validate_create(&slice).is_empty());
        slice["spec"]["allNodes"] = json!(true);
        slice["spec"]["devices"] = json!([{"name": "a"}, {"name": "a"}]);
        let fields: Vec<String> = Slices
            .validate_create(&slice)
            .0
            .into_iter()
            .map(|e| e.field)
            .collect();
        assert_eq!(fields, ["spec", "spec.devices[1].name"]);
    }
}
