//! The four RBAC kinds and what they share: rules, and the two parts of a binding.

pub(super) mod cluster_role;
pub(super) mod cluster_role_binding;
pub(super) mod role;
pub(super) mod role_binding;

use serde_json::Value;

use super::walk::{Walk, child, fill_zero, list_mut, same};
use crate::kind::Column;
use crate::status::FieldErrors;
use crate::table::{age_column, column, name_column, wide};
use crate::validation::{Path, names};

const GROUP: &str = "rbac.authorization.k8s.io";

/// Rules of a role; only cluster roles may name paths.
fn validate_rules(rules: &Value, path: &Path, namespaced: bool, errors: &mut FieldErrors) {
    for (i, rule) in rules.items().iter().enumerate() {
        let path = path.index(i);
        if rule["verbs"].is_empty() {
            errors.required(path.child("verbs"), "verbs must contain at least one value");
        }
        let urls = &rule["nonResourceURLs"];
        if !urls.is_empty() {
            let path = path.child("nonResourceURLs");
            if namespaced {
                errors.invalid(
                    &path,
                    urls.clone(),
                    "namespaced rules cannot apply to non-resource URLs",
                );
            }
            if !rule["apiGroups"].is_empty()
                || !rule["resources"].is_empty()
                || !rule["resourceNames"].is_empty()
            {
                errors.invalid(
                    path,
                    urls.clone(),
                    "rules cannot apply to both regular resources and non-resource URLs",
                );
            }
            continue;
        }
        if rule["apiGroups"].is_empty() {
            errors.required(
                path.child("apiGroups"),
                "resource rules must supply at least one api group",
            );
        }
        if rule["resources"].is_empty() {
            errors.required(
                path.child("resources"),
                "resource rules must supply at least one resource",
            );
        }
    }
}

fn default_binding(object: &mut Value) {
    if let Some(role) = child(object, "roleRef") {
        fill_zero(role, "apiGroup", GROUP);
    }
    for subject in list_mut(object, "subjects") {
        if matches!(subject["kind"].text(), "User" | "Group") {
            fill_zero(subject, "apiGroup", GROUP);
        }
    }
}

fn validate_binding(
    object: &Value,
    role_kinds: &[&str],
    namespaced: bool,
    errors: &mut FieldErrors,
) {
    let role = &object["roleRef"];
    let path = Path::new("roleRef");
    if role["apiGroup"] != GROUP {
        errors.not_supported(path.child("apiGroup"), role["apiGroup"].text(), &[GROUP]);
    }
    if !role_kinds.contains(&role["kind"].text()) {
        errors.not_supported(path.child("kind"), role["kind"].text(), role_kinds);
    }
    match role["name"].text() {
        "" => errors.required(path.child("name"), ""),
        name => {
            for message in names::path_segment(name, false) {
                errors.invalid(path.child("name"), name, message);
            }
        }
    }
    for (i, subject) in object["subjects"].items().iter().enumerate() {
        validate_subject(subject, namespaced, &Path::new("subjects").index(i), errors);
    }
}

fn validate_subject(subject: &Value, namespaced: bool, path: &Path, errors: &mut FieldErrors) {
    let (name, group) = (subject["name"].text(), subject["apiGroup"].text());
    if name.is_empty() {
        errors.required(path.child("name"), "");
    }
    match subject["kind"].text() {
        "ServiceAccount" => {
            if !name.is_empty() {
                for message in names::dns1123_subdomain(name) {
                    errors.invalid(path.child("name"), name, message);
                }
            }
            if !group.is_empty() {
                errors.not_supported(path.child("apiGroup"), group, &[""]);
            }
            if !namespaced && subject["namespace"].is_empty() {
                errors.required(path.child("namespace"), "");
            }
        }
        "User" | "Group" => {
            if group != GROUP {
                errors.not_supported(path.child("apiGroup"), group, &[GROUP]);
            }
        }
        other => errors.not_supported(
            path.child("kind"),
            other,
            &["ServiceAccount", "User", "Group"],
        ),
    }
}

/// The role of a binding stays; its subjects may change.
fn validate_role_kept(object: &Value, old: &Value, errors: &mut FieldErrors) {
    if !same(&object["roleRef"], &old["roleRef"]) {
        errors.invalid(
            "roleRef",
            object["roleRef"].clone(),
            "cannot change roleRef",
        );
    }
}

fn binding_columns() -> Vec<Column> {
    vec![
        name_column(),
        column("Role", "string", "Role that is granted."),
        age_column(),
        wide("Users", "string", "Users that it is granted to."),
        wide("Groups", "string", "Groups that it is granted to."),
        wide(
            "ServiceAccounts",
            "string",
            "ServiceAccounts that it is granted to.",
        ),
    ]
}

fn binding_row(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let role = &object["roleRef"];
    let subjects = |kind: &str| {
        let texts: Vec<String> = object["subjects"]
            .items()
            .iter()
            .filter(|s| s["kind"] == kind)
            .map(|s| match kind {
                "ServiceAccount" => format!("{}/{}", s["namespace"].text(), s["name"].text()),
                _ => s["name"].text().to_owned(),
            })
            .collect();
        Value::from(texts.join(", "))
    };
    vec![
        crate::table::name(object),
        format!("{}/{}", role["kind"].text(), role["name"].text()).into(),
        crate::table::age(object, now),
        subjects("User"),
        subjects("Group"),
        subjects("ServiceAccount"),
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::status::FieldError;
    use serde_json::json;

    fn texts(errors: &FieldErrors) -> Vec<String> {
        errors.0.iter().map(FieldError::text).collect()
    }

    #[test]
    fn rules_need_verbs_groups_and_resources() {
        let mut errors = FieldErrors::default();
        let rules = json!([{}, {"verbs": ["get"], "nonResourceURLs": ["/healthz"]}]);
        validate_rules(&rules, &Path::new("rules"), true, &mut errors);
        assert_eq!(
            texts(&errors),
            [
                "rules[0].verbs: Required value: verbs must contain at least one value",
                "rules[0].apiGroups: Required value: resource rules must supply at least one api group",
                "rules[0].resources: Required value: resource rules must supply at least one resource",
                "rules[1].nonResourceURLs: Invalid value: [\"/healthz\"]: namespaced rules cannot apply to non-resource URLs",
            ]
        );
    }

    #[test]
    fn a_binding_is_defaulted_checked_and_shown() {
        let mut binding = json!({
            "metadata": {"name": "b"},
            "roleRef": {"kind": "ClusterRole", "name": "view"},
            "subjects": [{"kind": "User", "name": "ann"}, {"kind": "ServiceAccount", "name": "sa", "namespace": "n"}, {"kind": "Robot", "name": "r"}],
        });
        default_binding(&mut binding);
        let mut errors = FieldErrors::default();
        validate_binding(&binding, &["ClusterRole"], false, &mut errors);
        assert_eq!(
            texts(&errors),
            [
                "subjects[2].kind: Unsupported value: \"Robot\": supported values: \"ServiceAccount\", \"User\", \"Group\""
            ]
        );
        let row = binding_row(&binding, "2026-01-01T00:00:00Z".parse().unwrap());
        assert_eq!(
            row,
            ["b", "ClusterRole/view", "<unknown>", "ann", "", "n/sa"]
        );
    }

    #[test]
    fn the_role_of_a_binding_stays() {
        let mut errors = FieldErrors::default();
        validate_role_kept(
            &json!({"roleRef": {"name": "b"}}),
            &json!({"roleRef": {"name": "a"}}),
            &mut errors,
        );
        assert_eq!(
            texts(&errors),
            ["roleRef: Invalid value: {\"name\":\"b\"}: cannot change roleRef"]
        );
    }
}
