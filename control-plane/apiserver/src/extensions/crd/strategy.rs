//! What is particular to a custom kind, read from its definition.

use std::sync::Arc;

use balsa_api::crd::columns::Columns;
use balsa_api::crd::schema::Node;
use balsa_api::crd::{defaults, embedded, lists, prune, validate};
use balsa_api::kind::{Column, Name, ScalePaths, Strategy};
use balsa_api::object;
use balsa_api::status::FieldErrors;
use serde_json::Value;

use super::rules::{self, Rules};

/// See the module.
pub(super) struct CustomStrategy {
    pub node: Arc<Node>,
    pub rules: Rules,
    /// Has `/status`.
    pub has_status: bool,
    pub scale: Option<ScalePaths>,
    pub columns: Columns,
    /// Names of selectable fields, and JSON pointers to them.
    pub selectable: Vec<(String, String)>,
    pub list_kind: String,
}

impl CustomStrategy {
    fn check(&self, object: &Value, old: Option<&Value>) -> FieldErrors {
        let mut errors = validate::check(&self.node, object, old);
        // Lists that were not unique before may stay so.
        if old.is_none_or(|old| !same_but_metadata(old, object)) {
            let mut more = FieldErrors::default();
            lists::check(&self.node, object, None, &mut more);
            embedded::check(&self.node, object, None, &mut more);
            if let Some(old) = old {
                let mut before = FieldErrors::default();
                lists::check(&self.node, old, None, &mut before);
                embedded::check(&self.node, old, None, &mut before);
                more.0.retain(|error| !before.0.contains(error));
            }
            errors.extend(more);
        }
        if !self.rules.is_empty() {
            if rules::blocks(&errors) {
                errors.invalid(
                    "<nil>",
                    Value::Null,
                    "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation",
                );
            } else {
                errors.extend(self.rules.check(&self.node, object, old));
            }
        }
        errors
    }
}

fn same_but_metadata(a: &Value, b: &Value) -> bool {
    let rest = |value: &Value| -> Option<Vec<(String, Value)>> {
        let map = value.as_object()?;
        let counted = map.iter().filter(|(name, _)| *name != "metadata");
        Some(counted.map(|(k, v)| (k.clone(), v.clone())).collect())
    };
    rest(a) == rest(b)
}

impl Strategy for CustomStrategy {
    fn default(&self, object: &mut Value) {
        prune::prune(&self.node, object);
        defaults::fill(&self.node, object);
    }

    fn prepare_create(&self, object: &mut Value) {
        if self.has_status
            && let Some(map) = object.as_object_mut()
        {
            map.remove("status");
        }
        object::set_generation(object, 1);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        if self.has_status
            && let Some(map) = object.as_object_mut()
        {
            match old.get("status") {
                Some(status) => map.insert("status".to_owned(), status.clone()),
                None => map.remove("status"),
            };
        }
        let counts = |name: &String| name != "metadata" && !(self.has_status && name == "status");
        let rest = |value: &Value| -> Vec<(String, Value)> {
            let map = value.as_object().into_iter().flatten();
            map.filter(|(name, _)| counts(name))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect()
        };
        let before = object::generation(old);
        let changed = rest(object) != rest(old);
        object::set_generation(object, if changed { before + 1 } else { before });
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        let mut new = old.clone();
        if let Some(map) = new.as_object_mut() {
            match object.get("status") {
                Some(status) => map.insert("status".to_owned(), status.clone()),
                None => map.remove("status"),
            };
        }
        for field in ["managedFields", "resourceVersion"] {
            let metadata = object::metadata_mut(&mut new);
            match object["metadata"].get(field) {
                Some(value) => metadata.insert(field.to_owned(), value.clone()),
                None => metadata.remove(field),
            };
        }
        *object = new;
    }

    fn validate_create(&self, object: &Value) -> FieldErrors {
        self.check(object, None)
    }

    fn validate_update(&self, object: &Value, old: &Value) -> FieldErrors {
        self.check(object, Some(old))
    }

    fn validate_status_update(&self, object: &Value, old: &Value) -> FieldErrors {
        self.check(object, Some(old))
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(Name, String)> {
        let text = |value: Option<&Value>| match value {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        self.selectable
            .iter()
            .map(|(name, pointer)| (name.clone().into(), text(object.pointer(pointer))))
            .collect()
    }

    fn selects(&self, field: &str) -> bool {
        self.selectable.iter().any(|(name, _)| name == field)
    }

    fn list_kind(&self) -> Option<&str> {
        Some(&self.list_kind)
            .filter(|k| !k.is_empty())
            .map(String::as_str)
    }

    fn columns(&self) -> Vec<Column> {
        self.columns.definitions()
    }

    fn row(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        self.columns.row(object, now)
    }

    fn scale(&self) -> Option<ScalePaths> {
        self.scale.clone()
    }
}
