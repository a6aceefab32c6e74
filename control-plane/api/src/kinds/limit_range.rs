//! LimitRanges: least, greatest and default amounts of resources in a namespace.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::Value;

use super::amounts::{self, Amounts};
use super::declare::{Declaration, default_table, without_status};
use super::walk::{Walk, child, fill, list_mut};
use crate::kind::{Kind, Strategy};
use crate::status::FieldErrors;
use crate::validation::{Path, names};

const LISTS: [&str; 5] = [
    "min",
    "max",
    "default",
    "defaultRequest",
    "maxLimitRequestRatio",
];

pub(super) fn kind() -> Arc<Kind> {
    Declaration::namespaced("", "v1", "LimitRange", "limitranges", LimitRanges)
        .short_names(&["limits"])
        .build()
}

struct LimitRanges;

impl Strategy for LimitRanges {
    /// For containers the greatest limit is the default limit, which (or else the least) is the default request.
    fn default(&self, object: &mut Value) {
        let Some(spec) = child(object, "spec") else {
            return;
        };
        for item in list_mut(spec, "limits") {
            for list in LISTS {
                amounts::canonicalize(item, list);
            }
            if item["type"] != "Container" {
                continue;
            }
            for (from, to) in [
                ("max", "default"),
                ("default", "defaultRequest"),
                ("min", "defaultRequest"),
            ] {
                let source = item[from].clone();
                if source.is_empty() {
                    continue;
                }
                if let Some(target) = child(item, to) {
                    for (name, amount) in source.entries() {
                        fill(target, name, amount.clone());
                    }
                }
            }
        }
    }

    without_status!();
    default_table!();

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let list = Path::new("spec").child("limits");
        let mut seen = BTreeSet::new();
        for (i, item) in object["spec"]["limits"].items().iter().enumerate() {
            let path = list.index(i);
            let type_ = item["type"].text();
            for message in names::qualified_name(type_) {
                errors.invalid(path.child("type"), type_, message);
            }
            if !seen.insert(type_) {
                errors.duplicate(path.child("type"), type_);
            }
            validate_item(item, &path, &mut errors);
        }
        errors
    }

    fn validate_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        self.validate_create(object)
    }
}

fn validate_item(item: &Value, path: &Path, errors: &mut FieldErrors) {
    for list in LISTS {
        for (name, amount) in item[list].entries() {
            amounts::validate_non_negative(amount, &path.child(list).key(name), errors);
        }
    }
    if item["type"] == "Pod" {
        for list in ["default", "defaultRequest"] {
            if !item[list].is_empty() {
                errors.forbidden(
                    path.child(list),
                    "may not be specified when `type` is 'Pod'",
                );
            }
        }
    }
    let [min, max, default, request]: [Amounts; 4] =
        ["min", "max", "default", "defaultRequest"].map(|list| amounts::amounts(&item[list]));
    let pairs = [
        (&min, "min", &max, "max", "min"),
        (&min, "min", &request, "default request", "defaultRequest"),
        (&request, "default request", &max, "max", "defaultRequest"),
        (
            &request,
            "default request",
            &default,
            "default limit",
            "defaultRequest",
        ),
        (&min, "min", &default, "default", "default"),
        (&default, "default", &max, "max", "default"),
    ];
    for (low, low_name, high, high_name, field) in pairs {
        for (name, amount) in low {
            if let Some(limit) = high.get(name).filter(|limit| amount > *limit) {
                errors.invalid(
                    path.child(field).key(name),
                    amount.to_string(),
                    format!("{low_name} value {amount} is greater than {high_name} value {limit}"),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_maximum_of_a_container_is_its_default() {
        let mut range = json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "1000m"}, "min": {"memory": "1Mi"}}]}});
        LimitRanges.default(&mut range);
        assert_eq!(
            range["spec"]["limits"][0],
            json!({"type": "Container", "max": {"cpu": "1"}, "min": {"memory": "1Mi"}, "default": {"cpu": "1"}, "defaultRequest": {"cpu": "1", "memory": "1Mi"}})
        );
        assert!(LimitRanges.validate_create(&range).is_empty());
    }

    #[test]
    fn the_least_is_not_above_the_greatest() {
        let errors = LimitRanges.validate_create(&json!({"spec": {"limits": [{"type": "Pod", "min": {"cpu": "2"}, "max": {"cpu": "1"}}]}}));
        assert_eq!(
            errors.0[0].text(),
            "spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1"
        );
    }
}
