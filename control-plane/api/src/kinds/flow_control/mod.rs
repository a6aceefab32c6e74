//! API priority and fairness: which requests belong together, and how much room each level of priority has
//! (KEP-1040).

pub(super) mod flow_schema;
pub(super) mod priority_level_configuration;

use std::collections::BTreeSet;

use serde_json::Value;

use super::walk::Walk;
use crate::status::FieldErrors;
use crate::validation::Path;

/// Their group.
const GROUP: &str = "flowcontrol.apiserver.k8s.io";

/// Conditions have a type, each once.
fn validate_conditions(object: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let path = Path::new("status").child("conditions");
    let mut seen = BTreeSet::new();
    for (i, condition) in object["status"]["conditions"].items().iter().enumerate() {
        let (path, type_) = (path.index(i).child("type"), condition["type"].text());
        if !seen.insert(type_) {
            errors.duplicate(&path, type_);
        }
        if type_.is_empty() {
            errors.required(&path, "must not be empty");
        }
    }
    errors
}
