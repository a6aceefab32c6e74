//! ClusterRoles: what may be done anywhere, to paths too; possibly put together from other ClusterRoles.

use std::sync::Arc;

use serde_json::Value;

use super::{GROUP, validate_rules};
use crate::kind::{Kind, Strategy};
use crate::kinds::declare::{Declaration, default_table, without_status};
use crate::kinds::walk::Walk;
use crate::status::FieldErrors;
use crate::validation::Path;
use crate::validation::selector::validate_label_selector;

pub(in crate::kinds) fn kind() -> Arc<Kind> {
    Declaration::cluster(GROUP, "v1", "ClusterRole", "clusterroles", ClusterRoles).build()
}

struct ClusterRoles;

impl Strategy for ClusterRoles {
    without_status!();
    default_table!();

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        validate_rules(&object["rules"], &Path::new("rules"), false, &mut errors);
        let rule = &object["aggregationRule"];
        let path = Path::new("aggregationRule").child("clusterRoleSelectors");
        if rule.present() && rule["clusterRoleSelectors"].is_empty() {
            errors.required(
                &path,
                "at least one clusterRoleSelector required if aggregationRule is non-nil",
            );
        }
        for (i, selector) in rule["clusterRoleSelectors"].items().iter().enumerate() {
            validate_label_selector(selector, &path.index(i), &mut errors);
        }
        errors
    }

    fn validate_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        self.validate_create(object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_aggregation_needs_a_selector() {
        let errors = ClusterRoles.validate_create(&json!({"aggregationRule": {}}));
        assert_eq!(errors.0[0].field, "aggregationRule.clusterRoleSelectors");
        assert!(
            ClusterRoles
                .validate_create(&json!({"rules": [{"verbs": ["get"], "nonResourceURLs": ["/*"]}]}))
                .is_empty()
        );
    }
}
