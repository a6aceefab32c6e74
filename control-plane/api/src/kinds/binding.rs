//! Bindings: what the scheduler posts to put a pod on a node. Not stored.

use std::sync::Arc;

use serde_json::Value;

use super::declare::{CREATE_ONLY, Declaration, default_table, without_status};
use super::walk::Walk;
use crate::kind::{Kind, Strategy};
use crate::status::FieldErrors;

pub(super) fn kind() -> Arc<Kind> {
    Declaration::namespaced("", "v1", "Binding", "bindings", Bindings)
        .verbs(CREATE_ONLY)
        .build()
}

/// Problems of a Binding.
fn validate_binding(binding: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let target = &binding["target"];
    if !matches!(target["kind"].text(), "" | "Node") {
        errors.not_supported("target.kind", target["kind"].text(), &["Node", "<empty>"]);
    }
    if target["name"].is_empty() {
        errors.required("target.name", "");
    }
    errors
}

struct Bindings;

impl Strategy for Bindings {
    without_status!();
    default_table!();

    fn validate_create(&self, object: &Value) -> FieldErrors {
        validate_binding(object)
    }

    fn validate_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        validate_binding(object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_binding_names_a_node() {
        assert!(validate_binding(&json!({"target": {"kind": "Node", "name": "a1"}})).is_empty());
        let errors = validate_binding(&json!({"target": {"kind": "Pod"}}));
        assert_eq!(
            errors.0[0].text(),
            "target.kind: Unsupported value: \"Pod\": supported values: \"Node\", \"<empty>\""
        );
        assert_eq!(errors.0[1].text(), "target.name: Required value");
    }
}
