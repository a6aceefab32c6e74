//! PodTemplates: a template without a controller.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::declare::{Declaration, advance_generation, set_generation};
use super::pod::validate::validate_pod_template;
use super::walk::same;
use super::workload;
use crate::kind::{Column, Kind, Strategy};
use crate::status::FieldErrors;
use crate::table::{column, container_cells, labels, name, name_column};
use crate::validation::Path;

pub(super) fn kind() -> Arc<Kind> {
    Declaration::namespaced("", "v1", "PodTemplate", "podtemplates", PodTemplates).build()
}

struct PodTemplates;

impl Strategy for PodTemplates {
    fn default(&self, object: &mut Value) {
        workload::default_template(object);
    }

    fn prepare_create(&self, object: &mut Value) {
        set_generation(object, 1);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        let changed = !same(&object["template"], &old["template"]);
        advance_generation(object, old, changed);
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        *object = old.clone();
    }

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        validate_pod_template(&object["template"], &Path::new("template"), &mut errors);
        errors
    }

    fn validate_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        self.validate_create(object)
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column(
                "Containers",
                "string",
                "Names of each container in the template.",
            ),
            column(
                "Images",
                "string",
                "Images referenced by each container in the template.",
            ),
            column("Pod Labels", "string", "Labels of the template's pods."),
        ]
    }

    fn row(&self, object: &Value, _now: Timestamp) -> Vec<Value> {
        let [containers, images] = container_cells(&object["template"]);
        vec![
            name(object),
            containers,
            images,
            labels(&object["template"]["metadata"]["labels"]),
        ]
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn a_template_is_defaulted_and_shown() {
        let mut object = json!({"metadata": {"name": "t"}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}});
        PodTemplates.default(&mut object);
        assert!(PodTemplates.validate_create(&object).is_empty());
        let row = PodTemplates.row(&object, "2026-01-01T00:00:00Z".parse().unwrap());
        assert_eq!(row, ["t", "c", "i", "a=b"]);
    }
}
