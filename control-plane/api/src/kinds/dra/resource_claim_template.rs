//! ResourceClaimTemplates: what the claim of each new pod looks like.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::GROUP;
use super::requests::{default_claim_spec, validate_claim_spec};
use crate::kind::{Column, Kind, Strategy};
use crate::kinds::declare::{Declaration, without_status};
use crate::kinds::walk::get_mut;
use crate::status::FieldErrors;
use crate::table::{age, age_column, name, name_column};
use crate::validation::metadata::{validate_annotations, validate_labels};
use crate::validation::{Path, immutable};

pub(in crate::kinds) fn kind() -> Arc<Kind> {
    Declaration::namespaced(
        GROUP,
        "v1",
        "ResourceClaimTemplate",
        "resourceclaimtemplates",
        Templates,
    )
    .build()
}

struct Templates;

impl Strategy for Templates {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = get_mut(object, "spec").and_then(|s| get_mut(s, "spec")) {
            default_claim_spec(spec);
        }
    }

    without_status!();

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let (spec, path) = (&object["spec"], Path::new("spec"));
        let (metadata, at) = (&spec["metadata"], path.child("metadata"));
        validate_labels(&metadata["labels"], &at.child("labels"), &mut errors);
        validate_annotations(
            &metadata["annotations"],
            &at.child("annotations"),
            &mut errors,
        );
        validate_claim_spec(&spec["spec"], &path.child("spec"), &mut errors);
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
        vec![name_column(), age_column()]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![name(object), age(object, now)]
    }
}
