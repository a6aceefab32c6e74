//! Checks of `spec.podFailurePolicy`: what a Job does about pods that failed in a certain way (KEP-3329).

use std::collections::BTreeSet;

use serde_json::Value;

use crate::kinds::walk::Walk;
use crate::status::FieldErrors;
use crate::validation::{Path, names};

const MAX_RULES: usize = 20;
const MAX_CONDITIONS: usize = 20;
const MAX_EXIT_CODES: usize = 255;

pub(super) fn validate(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let lists = ["initContainers", "containers"];
    let template = &spec["template"]["spec"];
    let containers: BTreeSet<&str> = lists
        .iter()
        .flat_map(|list| template[*list].items())
        .map(|container| container["name"].text())
        .collect();
    let (rules, path) = (
        spec["podFailurePolicy"]["rules"].items(),
        path.child("rules"),
    );
    if rules.len() > MAX_RULES {
        errors.too_many(&path, rules.len(), MAX_RULES);
    }
    for (i, rule) in rules.iter().enumerate() {
        validate_rule(spec, rule, &containers, &path.index(i), errors);
    }
}

fn validate_rule(
    spec: &Value,
    rule: &Value,
    containers: &BTreeSet<&str>,
    path: &Path,
    errors: &mut FieldErrors,
) {
    let action = path.child("action");
    chosen(
        &rule["action"],
        &["Count", "FailIndex", "FailJob", "Ignore"],
        &action,
        errors,
    );
    if rule["action"] == "FailIndex" && spec["backoffLimitPerIndex"].is_null() {
        let detail = "requires the backoffLimitPerIndex to be set";
        errors.invalid(&action, "FailIndex", detail);
    }
    let (codes, conditions) = (&rule["onExitCodes"], rule["onPodConditions"].items());
    let problem = match (codes.present(), !conditions.is_empty()) {
        (true, true) => Some("specifying both OnExitCodes and OnPodConditions is not supported"),
        (false, false) => Some("specifying one of OnExitCodes and OnPodConditions is required"),
        _ => None,
    };
    if let Some(problem) = problem {
        errors.invalid(path, rule.clone(), problem);
    }
    if codes.present() {
        exit_codes(codes, containers, &path.child("onExitCodes"), errors);
    }
    pod_conditions(conditions, &path.child("onPodConditions"), errors);
}

fn pod_conditions(conditions: &[Value], path: &Path, errors: &mut FieldErrors) {
    if conditions.len() > MAX_CONDITIONS {
        errors.too_many(path, conditions.len(), MAX_CONDITIONS);
    }
    for (i, condition) in conditions.iter().enumerate() {
        let path = path.index(i);
        let type_ = condition["type"].text();
        for message in names::qualified_name(type_) {
            errors.invalid(path.child("type"), type_, message);
        }
        let supported = ["False", "True", "Unknown"];
        chosen(
            &condition["status"],
            &supported,
            &path.child("status"),
            errors,
        );
    }
}

fn exit_codes(codes: &Value, containers: &BTreeSet<&str>, path: &Path, errors: &mut FieldErrors) {
    let (operator, values) = (path.child("operator"), path.child("values"));
    chosen(&codes["operator"], &["In", "NotIn"], &operator, errors);
    if let Some(name) = codes["containerName"].as_str()
        && !containers.contains(name)
    {
        let detail = "must be one of the container or initContainer names in the pod template";
        errors.invalid(path.child("containerName"), name, detail);
    }
    let list = codes["values"].items();
    if list.is_empty() {
        errors.invalid(
            &values,
            codes["values"].clone(),
            "at least one value is required",
        );
    } else if list.len() > MAX_EXIT_CODES {
        errors.too_many(&values, list.len(), MAX_EXIT_CODES);
    }
    let numbers: Vec<i64> = list.iter().filter_map(Walk::int).collect();
    for (i, value) in numbers.iter().enumerate() {
        if *value == 0 && codes["operator"] == "In" {
            let detail = "must not be 0 for the In operator";
            errors.invalid(values.index(i), 0, detail);
        }
        if numbers[..i].contains(value) {
            errors.duplicate(values.index(i), *value);
        }
    }
    if !numbers.is_sorted() {
        errors.invalid(&values, codes["values"].clone(), "must be ordered");
    }
}

/// A choice that has to be made.
fn chosen(value: &Value, supported: &[&str], path: &Path, errors: &mut FieldErrors) {
    match value.text() {
        "" => {
            let list: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
            errors.required(path, format!("valid values: [{}]", list.join(" ")));
        }
        text if supported.contains(&text) => {}
        text => errors.not_supported(path, text, supported),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::workload::fixture::texts;

    fn problems(rule: Value) -> Vec<String> {
        let mut errors = FieldErrors::default();
        let spec = json!({
            "podFailurePolicy": {"rules": [rule]},
            "template": {"spec": {"containers": [{"name": "main"}], "initContainers": [{"name": "init"}]}},
        });
        validate(&spec, &Path::new("p"), &mut errors);
        texts(&errors)
    }

    #[test]
    fn exit_codes_are_of_a_container_that_is_there_and_in_order() {
        let codes = |name: &str, values: Value| json!({"action": "FailJob", "onExitCodes": {"containerName": name, "operator": "In", "values": values}});
        assert!(problems(codes("init", json!([1, 42]))).is_empty());
        assert_eq!(
            problems(codes("other", json!([2, 1, 0]))),
            [
                "p.rules[0].onExitCodes.containerName: Invalid value: \"other\": must be one of the container or initContainer names in the pod template",
                "p.rules[0].onExitCodes.values[2]: Invalid value: 0: must not be 0 for the In operator",
                "p.rules[0].onExitCodes.values: Invalid value: [2,1,0]: must be ordered",
            ]
        );
    }

    #[test]
    fn a_rule_says_what_it_does_and_when() {
        assert_eq!(
            problems(json!({"onPodConditions": [{"type": "Disrupted!", "status": "Yes"}]})),
            [
                "p.rules[0].action: Required value: valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]",
                "p.rules[0].onPodConditions[0].type: Invalid value: \"Disrupted!\": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
                "p.rules[0].onPodConditions[0].status: Unsupported value: \"Yes\": supported values: \"False\", \"True\", \"Unknown\"",
            ]
        );
        assert_eq!(
            problems(json!({"action": "Ignore"})),
            [
                "p.rules[0]: Invalid value: {\"action\":\"Ignore\"}: specifying one of OnExitCodes and OnPodConditions is required"
            ]
        );
    }
}
