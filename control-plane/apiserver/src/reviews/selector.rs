//! Selectors in reviews: what a list is narrowed to may decide whether it is allowed (KEP-4601).

use balsa_api::selector::{FieldRequirement, FieldSelector};
use balsa_api::status::FieldErrors;
use serde_json::Value;

use super::{strings, text};

/// The field selector of a review. Requirements that cannot be understood are left out: the question is then about
/// a wider list.
pub(super) fn fields(selector: &Value) -> FieldSelector {
    let raw = text(&selector["rawSelector"]);
    if !raw.is_empty() {
        return FieldSelector::parse(&raw).unwrap_or_default();
    }
    let requirements = selector["requirements"].as_array().into_iter().flatten();
    requirements.filter_map(requirement).collect()
}

fn requirement(one: &Value) -> Option<FieldRequirement> {
    let equal = match one["operator"].as_str()? {
        "In" => true,
        "NotIn" => false,
        _ => return None,
    };
    match strings(&one["values"]).as_slice() {
        [value] => Some(FieldRequirement {
            field: text(&one["key"]),
            value: value.clone(),
            equal,
        }),
        _ => None,
    }
}

/// Problems of the selectors of a review's resource attributes.
pub(super) fn check(attributes: &Value, errors: &mut FieldErrors) {
    for name in ["fieldSelector", "labelSelector"] {
        let selector = &attributes[name];
        if selector.is_object() {
            check_one(selector, &format!("spec.resourceAttributes.{name}"), errors);
        }
    }
}

fn check_one(selector: &Value, path: &str, errors: &mut FieldErrors) {
    let raw = text(&selector["rawSelector"]);
    let requirements = selector["requirements"].as_array();
    let requirements = requirements.map_or(&[][..], Vec::as_slice);
    match (raw.is_empty(), requirements.is_empty()) {
        (false, false) => errors.invalid(
            format!("{path}.rawSelector"),
            raw,
            "may not specified at the same time as requirements",
        ),
        (true, true) => errors.required(
            format!("{path}.requirements"),
            "when labelSelector is specified, requirements or rawSelector is required",
        ),
        _ => {}
    }
    for (i, one) in requirements.iter().enumerate() {
        let path = format!("{path}.requirements[{i}]");
        if text(&one["key"]).is_empty() {
            errors.required(format!("{path}.key"), "must be specified");
        }
        let operator = text(&one["operator"]);
        let none = strings(&one["values"]).is_empty();
        match operator.as_str() {
            "In" | "NotIn" if none => errors.required(
                format!("{path}.values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            ),
            "Exists" | "DoesNotExist" if !none => errors.forbidden(
                format!("{path}.values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            ),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => errors.invalid(
                format!("{path}.operator"),
                operator,
                "not a valid selector operator",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_forms_mean_the_same() {
        let raw = fields(&json!({"rawSelector": "spec.nodeName=a1"}));
        let written = json!({"requirements": [
            {"key": "spec.nodeName", "operator": "In", "values": ["a1"]},
            {"key": "x", "operator": "Exists"}]});
        assert_eq!(raw, fields(&written));
        assert_eq!(raw.required("spec.nodeName"), Some("a1"));
    }

    #[test]
    fn what_is_no_selector_is_told() {
        let attributes = json!({"fieldSelector": {"rawSelector": "a=b", "requirements": [
            {"operator": "In"}, {"key": "k", "operator": "Exists", "values": ["v"]}, {"key": "k", "operator": "Odd"}]},
            "labelSelector": {}});
        let mut errors = FieldErrors::default();
        check(&attributes, &mut errors);
        let at = "spec.resourceAttributes";
        let fields: Vec<String> = errors
            .0
            .iter()
            .map(|e| e.field.trim_start_matches(at).to_owned())
            .collect();
        assert_eq!(
            fields,
            [
                ".fieldSelector.rawSelector",
                ".fieldSelector.requirements[0].key",
                ".fieldSelector.requirements[0].values",
                ".fieldSelector.requirements[1].values",
                ".fieldSelector.requirements[2].operator",
                ".labelSelector.requirements"
            ]
        );
    }
}
