//! IngressClasses: which controller serves an Ingress.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::declare::{Declaration, advance_generation, set_generation};
use super::walk::{Walk, fill, get_mut, same};
use crate::kind::{Column, Kind, Strategy};
use crate::status::FieldErrors;
use crate::table::{age, age_column, column, name, name_column};
use crate::validation::{Path, immutable};

pub(super) fn kind() -> Arc<Kind> {
    Declaration::cluster(
        "networking.k8s.io",
        "v1",
        "IngressClass",
        "ingressclasses",
        IngressClasses,
    )
    .build()
}

struct IngressClasses;

impl Strategy for IngressClasses {
    fn default(&self, object: &mut Value) {
        if let Some(parameters) = get_mut(object, "spec").and_then(|s| get_mut(s, "parameters")) {
            fill(parameters, "scope", "Cluster");
        }
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
        let controller = object["spec"]["controller"].text();
        if controller.len() > 250 {
            errors.too_long("spec.controller", 250);
        }
        match controller.split_once('/') {
            _ if controller.is_empty() => errors.required("spec.controller", ""),
            Some((domain, path)) if !domain.is_empty() && !path.is_empty() => {}
            _ => errors.invalid(
                "spec.controller",
                controller,
                "must be a domain-prefixed path (such as \"acme.io/foo\")",
            ),
        }
        let parameters = &object["spec"]["parameters"];
        if parameters.present() {
            let path = Path::new("spec").child("parameters");
            for field in ["kind", "name"] {
                if parameters[field].is_empty() {
                    errors.required(path.child(field), "");
                }
            }
            match (
                parameters["scope"].text(),
                parameters["namespace"].is_empty(),
            ) {
                ("Namespace", true) => {
                    errors.required(
                        path.child("namespace"),
                        "`parameters.scope` is set to 'Namespace'",
                    );
                }
                ("Cluster", false) => {
                    errors.forbidden(
                        path.child("namespace"),
                        "`parameters.scope` is set to 'Cluster'",
                    );
                }
                ("Namespace" | "Cluster", _) => {}
                (other, _) => {
                    errors.not_supported(path.child("scope"), other, &["Cluster", "Namespace"])
                }
            }
        }
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> FieldErrors {
        let mut errors = self.validate_create(object);
        let path = Path::new("spec").child("controller");
        immutable(
            &object["spec"]["controller"],
            &old["spec"]["controller"],
            &path,
            &mut errors,
        );
        errors
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column("Controller", "string", "The controller's name."),
            column("Parameters", "string", "Object with parameters."),
            age_column(),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let parameters = &object["spec"]["parameters"];
        let text = if parameters.is_null() {
            "<none>".to_owned()
        } else {
            match parameters["apiGroup"].text() {
                "" => format!(
                    "{}/{}",
                    parameters["kind"].text(),
                    parameters["name"].text()
                ),
                group => format!(
                    "{}.{group}/{}",
                    parameters["kind"].text(),
                    parameters["name"].text()
                ),
            }
        };
        vec![
            name(object),
            object["spec"]["controller"].text().into(),
            text.into(),
            age(object, now),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_controller_has_a_domain() {
        assert!(
            IngressClasses
                .validate_create(&json!({"spec": {"controller": "example.com/x"}}))
                .is_empty()
        );
        assert_eq!(
            IngressClasses
                .validate_create(&json!({"spec": {"controller": "x"}}))
                .0[0]
                .text(),
            "spec.controller: Invalid value: \"x\": must be a domain-prefixed path (such as \"acme.io/foo\")"
        );
    }
}
