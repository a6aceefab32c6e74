//! CSINodes: which volume drivers run on a node, and under which name the node is known to them.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::csi_driver::validate_driver_name;
use super::declare::{Declaration, without_status};
use super::walk::{Walk, same};
use crate::kind::{Column, Kind, Strategy};
use crate::status::FieldErrors;
use crate::table::{age, age_column, column, name, name_column};
use crate::validation::{Path, names};

/// Longest node ID (CSI specification, "NodeGetInfo").
const NODE_ID_LIMIT: usize = 256;

pub(super) fn kind() -> Arc<Kind> {
    Declaration::cluster("storage.k8s.io", "v1", "CSINode", "csinodes", Nodes).build()
}

struct Nodes;

impl Strategy for Nodes {
    without_status!();

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let path = Path::new("spec").child("drivers");
        let mut seen = BTreeSet::new();
        for (i, driver) in object["spec"]["drivers"].items().iter().enumerate() {
            validate_driver(driver, &path.index(i), &mut errors);
            if !seen.insert(driver["name"].text()) {
                errors.duplicate(path.index(i).child("name"), driver["name"].text());
            }
        }
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> FieldErrors {
        let mut errors = self.validate_create(object);
        let path = Path::new("spec").child("drivers");
        for (i, driver) in object["spec"]["drivers"].items().iter().enumerate() {
            let before = old["spec"]["drivers"]
                .items()
                .iter()
                .find(|d| d["name"] == driver["name"]);
            // What may change is how much the node can take (KEP-4876).
            let identity = ["nodeID", "topologyKeys"];
            if before.is_some_and(|b| identity.iter().any(|f| !same(&b[*f], &driver[*f]))) {
                errors.invalid(path.index(i), driver.clone(), "field is immutable");
            }
        }
        errors
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column("Drivers", "integer", "Number of drivers on the node."),
            age_column(),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            name(object),
            object["spec"]["drivers"].items().len().into(),
            age(object, now),
        ]
    }
}

fn validate_driver(driver: &Value, path: &Path, errors: &mut FieldErrors) {
    validate_driver_name(driver["name"].text(), &path.child("name"), errors);
    let id = driver["nodeID"].text();
    if id.is_empty() {
        errors.required(path.child("nodeID"), "");
    }
    if id.len() > NODE_ID_LIMIT {
        errors.invalid(
            path.child("nodeID"),
            id,
            format!("must be {NODE_ID_LIMIT} characters or less"),
        );
    }
    if driver["allocatable"]["count"].int().is_some_and(|n| n < 0) {
        errors.invalid(
            path.child("allocatable").child("count"),
            driver["allocatable"]["count"].clone(),
            "must be greater than or equal to 0",
        );
    }
    let path = path.child("topologyKeys");
    let mut seen = BTreeSet::new();
    for key in driver["topologyKeys"].items().iter().map(Walk::text) {
        if key.is_empty() {
            errors.required(&path, "");
        }
        if !seen.insert(key) {
            errors.duplicate(&path, key);
        }
        for message in names::qualified_name(key) {
            errors.invalid(&path, key, message);
        }
    }
}
