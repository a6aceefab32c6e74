//! Roles: what may be done in one namespace.

use std::sync::Arc;

use serde_json::Value;

use super::{GROUP, validate_rules};
use crate::kind::{Kind, Strategy};
use crate::kinds::declare::{Declaration, default_table, without_status};
use crate::status::FieldErrors;
use crate::validation::Path;

pub(in crate::kinds) fn kind() -> Arc<Kind> {
    Declaration::namespaced(GROUP, "v1", "Role", "roles", Roles).build()
}

struct Roles;

impl Strategy for Roles {
    without_status!();
    default_table!();

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        validate_rules(&object["rules"], &Path::new("rules"), true, &mut errors);
        errors
    }

    fn validate_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        self.validate_create(object)
    }
}
