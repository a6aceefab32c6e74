//! How `kubectl get --subresource=scale` shows a Scale.

use std::sync::LazyLock;

use balsa_api::kind::{Column, Kind, Scope, Strategy};
use balsa_api::status::FieldErrors;
use balsa_api::table::{age, age_column, column, name_column};
use jiff::Timestamp;
use serde_json::Value;

struct Scales;

impl Strategy for Scales {
    fn prepare_create(&self, _object: &mut Value) {}

    fn prepare_update(&self, _object: &mut Value, _old: &Value) {}

    fn prepare_status_update(&self, _object: &mut Value, _old: &Value) {}

    fn validate_create(&self, _object: &Value) -> FieldErrors {
        FieldErrors::default()
    }

    fn validate_update(&self, _object: &Value, _old: &Value) -> FieldErrors {
        FieldErrors::default()
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column("Desired", "integer", "How many replicas are wanted."),
            column("Available", "integer", "How many replicas there are."),
            age_column(),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let count = |part: &str| object[part]["replicas"].as_i64().unwrap_or_default().into();
        vec![
            object["metadata"]["name"].clone(),
            count("spec"),
            count("status"),
            age(object, now),
        ]
    }
}

/// What says how Scales are shown. It is no kind of the registry: they are views of other objects.
pub(super) static SCALE: LazyLock<Kind> = LazyLock::new(|| Kind {
    group: "autoscaling".into(),
    version: "v1".into(),
    kind: "Scale".into(),
    plural: "scales".into(),
    singular: "".into(),
    short_names: Vec::new(),
    categories: Vec::new(),
    scope: Scope::Namespaced,
    verbs: &[],
    subresources: Vec::new(),
    strategy: Box::new(Scales),
});
