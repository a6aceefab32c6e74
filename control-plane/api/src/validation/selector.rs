//! Checks of label selectors (meta.k8s.io/v1 LabelSelector).

use serde_json::Value;

use super::{Path, metadata::validate_labels, names};
use crate::kinds::walk::Walk;
use crate::selector::Selector;
use crate::status::FieldErrors;

/// Problems of a label selector; an absent one has none.
pub fn validate_label_selector(selector: &Value, path: &Path, errors: &mut FieldErrors) {
    validate_labels(&selector["matchLabels"], &path.child("matchLabels"), errors);
    let path = path.child("matchExpressions");
    for (i, requirement) in selector["matchExpressions"].items().iter().enumerate() {
        validate_requirement(requirement, &path.index(i), errors);
    }
}

fn validate_requirement(requirement: &Value, path: &Path, errors: &mut FieldErrors) {
    let values = requirement["values"].items();
    match requirement["operator"].text() {
        "In" | "NotIn" => {
            if values.is_empty() {
                errors.required(
                    path.child("values"),
                    "must be specified when `operator` is 'In' or 'NotIn'",
                );
            }
        }
        "Exists" | "DoesNotExist" => {
            if !values.is_empty() {
                errors.forbidden(
                    path.child("values"),
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                );
            }
        }
        other => errors.invalid(
            path.child("operator"),
            other,
            "not a valid selector operator",
        ),
    }
    let key = requirement["key"].text();
    for message in names::qualified_name(key) {
        errors.invalid(path.child("key"), key, message);
    }
    for (i, value) in values.iter().enumerate() {
        for message in names::label_value(value.text()) {
            errors.invalid(path.child("values").index(i), value.text(), message);
        }
    }
}

/// Whether a selector has neither labels nor expressions (and so selects everything).
#[must_use]
pub fn selects_everything(selector: &Value) -> bool {
    selector["matchLabels"].is_empty() && selector["matchExpressions"].is_empty()
}

/// Whether a valid selector matches a map of labels. An absent selector matches nothing, an empty one all.
#[must_use]
pub fn selector_matches(selector: &Value, labels: &Value) -> bool {
    let parsed = Selector::from_label_selector(Some(selector).filter(|s| s.present()));
    parsed.is_ok_and(|s| s.matches(&labels.as_object()))
}

/// A selector as `kubectl` prints it: `app=web,tier in (a,b)`; `<none>` when it is empty.
#[must_use]
pub fn format_label_selector(selector: &Value) -> String {
    let mut parts: Vec<(&str, String)> = selector["matchLabels"]
        .entries()
        .map(|(key, value)| (key.as_str(), format!("{key}={}", value.text())))
        .collect();
    for requirement in selector["matchExpressions"].items() {
        let key = requirement["key"].text();
        let mut values: Vec<&str> = requirement["values"]
            .items()
            .iter()
            .map(Walk::text)
            .collect();
        values.sort_unstable();
        let values = values.join(",");
        let text = match requirement["operator"].text() {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        };
        parts.push((key, text));
    }
    if parts.is_empty() {
        return "<none>".into();
    }
    parts.sort_by_key(|(key, _)| *key);
    parts
        .into_iter()
        .map(|(_, text)| text)
        .collect::<Vec<_>>()
        .join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn operators_want_or_refuse_values() {
        let mut errors = FieldErrors::default();
        let selector = json!({"matchExpressions": [
            {"key": "a", "operator": "In"},
            {"key": "a", "operator": "Exists", "values": ["x"]},
            {"key": "a", "operator": "Gt", "values": ["1"]},
        ]});
        validate_label_selector(&selector, &Path::new("spec").child("selector"), &mut errors);
        let texts: Vec<String> = errors
            .0
            .iter()
            .map(crate::status::FieldError::text)
            .collect();
        assert_eq!(
            texts,
            [
                "spec.selector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'",
                "spec.selector.matchExpressions[1].values: Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                "spec.selector.matchExpressions[2].operator: Invalid value: \"Gt\": not a valid selector operator",
            ]
        );
    }

    #[test]
    fn selectors_match_and_print() {
        let selector = json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [{"key": "tier", "operator": "In", "values": ["b", "a"]}, {"key": "old", "operator": "DoesNotExist"}],
        });
        assert!(selector_matches(
            &selector,
            &json!({"app": "web", "tier": "a"})
        ));
        assert!(!selector_matches(
            &selector,
            &json!({"app": "web", "tier": "c"})
        ));
        assert!(!selector_matches(
            &selector,
            &json!({"app": "web", "tier": "a", "old": "1"})
        ));
        assert_eq!(
            format_label_selector(&selector),
            "app=web,!old,tier in (a,b)"
        );
        assert!(!selector_matches(&Value::Null, &json!({})));
        assert_eq!(format_label_selector(&json!({})), "<none>");
    }
}
