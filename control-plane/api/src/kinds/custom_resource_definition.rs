//! CustomResourceDefinitions: kinds that clients declare.

use std::sync::Arc;

use serde_json::{Value, json};

use super::declare::{
    Declaration, advance_generation, default_table, set_generation, update_only_status,
};
use super::walk::{Walk, carry_over, child, fill, fill_zero, get_mut, list_mut, same, set};
use crate::crd::definition;
use crate::kind::{Kind, Strategy};
use crate::status::FieldErrors;

pub(super) fn kind() -> Arc<Kind> {
    Declaration::cluster(
        crate::crd::GROUP,
        "v1",
        "CustomResourceDefinition",
        crate::crd::PLURAL,
        Definitions,
    )
    .short_names(&["crd", "crds"])
    .categories(&["api-extensions"])
    .status()
    .build()
}

struct Definitions;

/// Adds the storage version to those that objects may be stored in.
fn note_storage_version(object: &mut Value) {
    let storage = object["spec"]["versions"]
        .items()
        .iter()
        .find(|v| v["storage"].is_true())
        .map(|v| v["name"].clone());
    let Some(status) = child(object, "status") else {
        return;
    };
    let mut stored = status["storedVersions"].items().to_vec();
    if let Some(version) = storage.filter(|v| !stored.contains(v)) {
        stored.push(version);
    }
    set(status, "storedVersions", stored);
}

impl Strategy for Definitions {
    fn default(&self, object: &mut Value) {
        let Some(spec) = get_mut(object, "spec") else {
            return;
        };
        if let Some(names) = get_mut(spec, "names") {
            let kind = names["kind"].text().to_owned();
            if !kind.is_empty() {
                fill_zero(names, "singular", kind.to_lowercase());
                fill_zero(names, "listKind", format!("{kind}List"));
            }
        }
        fill(spec, "conversion", json!({"strategy": "None"}));
        if let Some(service) = get_mut(spec, "conversion")
            .and_then(|c| get_mut(c, "webhook"))
            .and_then(|w| get_mut(w, "clientConfig"))
            .and_then(|c| get_mut(c, "service"))
        {
            fill(service, "port", 443);
        }
        for version in list_mut(spec, "versions") {
            fill(version, "served", false);
            fill(version, "storage", false);
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        set(
            object,
            "status",
            json!({"acceptedNames": {"plural": "", "kind": ""}, "conditions": [], "storedVersions": []}),
        );
        note_storage_version(object);
        set_generation(object, 1);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        carry_over(object, old, "status");
        let changed = !same(&object["spec"], &old["spec"]);
        advance_generation(object, old, changed);
        note_storage_version(object);
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        update_only_status(object, old);
    }

    fn validate_create(&self, object: &Value) -> FieldErrors {
        definition::check_new(object)
    }

    fn validate_update(&self, object: &Value, old: &Value) -> FieldErrors {
        definition::check_update(object, old)
    }

    fn validate_status_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        definition::check_status(object)
    }

    default_table!();
}
