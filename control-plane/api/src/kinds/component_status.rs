//! ComponentStatuses: whether the parts of the control plane work. Made up when they are asked for; not stored.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::declare::{Declaration, without_status};
use super::walk::Walk;
use crate::kind::{Column, Kind, Strategy};
use crate::status::FieldErrors;
use crate::table::{column, name, name_column};

/// Names that tools look for.
pub const COMPONENTS: [&str; 3] = ["controller-manager", "etcd-0", "scheduler"];

pub(super) fn kind() -> Arc<Kind> {
    Declaration::cluster("", "v1", "ComponentStatus", "componentstatuses", Components)
        .short_names(&["cs"])
        .verbs(&["get", "list"])
        .build()
}

/// What is said of a component; `health` is why it does not work.
#[must_use]
pub fn component_status(name: &str, health: &Result<(), String>) -> Value {
    let condition = match health {
        Ok(()) => json!({"type": "Healthy", "status": "True", "message": "ok"}),
        Err(why) => json!({"type": "Healthy", "status": "False", "message": why}),
    };
    json!({"kind": "ComponentStatus", "apiVersion": "v1", "metadata": {"name": name}, "conditions": [condition]})
}

struct Components;

impl Strategy for Components {
    without_status!();

    fn deprecation(&self) -> Option<&'static str> {
        Some("v1 ComponentStatus is deprecated in v1.19+")
    }

    fn validate_create(&self, _object: &Value) -> FieldErrors {
        FieldErrors::default()
    }

    fn validate_update(&self, _object: &Value, _old: &Value) -> FieldErrors {
        FieldErrors::default()
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column("Status", "string", "Whether the component works."),
            column("Message", "string", "What the component says of itself."),
            column("Error", "string", "Why it could not be asked."),
        ]
    }

    fn row(&self, object: &Value, _now: Timestamp) -> Vec<Value> {
        let healthy = object["conditions"]
            .items()
            .iter()
            .find(|c| c["type"] == "Healthy");
        let (mut status, mut message, mut error) = ("Unknown", "", "");
        if let Some(healthy) = healthy {
            status = match healthy["status"].text() {
                "True" => "Healthy",
                "False" => "Unhealthy",
                _ => "Unknown",
            };
            message = healthy["message"].text();
            error = healthy["error"].text();
        }
        vec![name(object), status.into(), message.into(), error.into()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_row_says_what_is_wrong() {
        let now = Timestamp::UNIX_EPOCH;
        let row = |health| Components.row(&component_status("etcd-0", &health), now);
        assert_eq!(row(Ok(())), ["etcd-0", "Healthy", "ok", ""]);
        let down = Err("no quorum".to_owned());
        assert_eq!(row(down), ["etcd-0", "Unhealthy", "no quorum", ""]);
    }
}
