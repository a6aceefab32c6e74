//! Scopes: which pods, and claims, a quota is about.

use serde_json::Value;

/// True when all of the quota's scopes are the object's.
pub(super) fn matches(spec: &Value, group: &str, plural: &str, object: &Value) -> bool {
    let plain = spec
        .get("scopes")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let plain = plain
        .filter_map(Value::as_str)
        .map(|scope| (scope, "Exists", &Value::Null));
    let selected = spec
        .pointer("/scopeSelector/matchExpressions")
        .and_then(Value::as_array);
    let selected = selected.into_iter().flatten().map(|expression| {
        let text = |field| {
            expression
                .get(field)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        (
            text("scopeName"),
            text("operator"),
            expression.get("values").unwrap_or(&Value::Null),
        )
    });
    let mut all = plain.chain(selected);
    all.all(|(scope, operator, values)| match (group, plural) {
        ("", "pods") => pod(scope, operator, values, object),
        ("", "persistentvolumeclaims") => {
            scope == "VolumeAttributesClass" && claim(operator, values, object)
        }
        _ => false,
    })
}

fn pod(scope: &str, operator: &str, values: &Value, pod: &Value) -> bool {
    match scope {
        "Terminating" => is_terminating(pod),
        "NotTerminating" => !is_terminating(pod),
        "BestEffort" => is_best_effort(pod),
        "NotBestEffort" => !is_best_effort(pod),
        "CrossNamespacePodAffinity" => crosses_namespaces(pod),
        "PriorityClass" => {
            let class = pod
                .pointer("/spec/priorityClassName")
                .and_then(Value::as_str);
            holds(
                operator,
                values,
                class.filter(|class| !class.is_empty()).into_iter(),
            )
        }
        _ => false,
    }
}

fn claim(operator: &str, values: &Value, claim: &Value) -> bool {
    let text = |pointer: &str| claim.pointer(pointer).and_then(Value::as_str);
    let names = [
        "/spec/volumeAttributesClassName",
        "/status/currentVolumeAttributesClassName",
        "/status/modifyVolumeStatus/targetVolumeAttributesClassName",
    ];
    holds(
        operator,
        values,
        names
            .into_iter()
            .filter_map(text)
            .filter(|name| !name.is_empty()),
    )
}

fn holds<'a>(operator: &str, values: &Value, mut names: impl Iterator<Item = &'a str>) -> bool {
    let listed = |name: &str| {
        let mut values = values
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        values.any(|value| value == name)
    };
    match operator {
        "Exists" => names.next().is_some(),
        "DoesNotExist" => names.next().is_none(),
        "In" => names.any(listed),
        "NotIn" => !names.any(listed),
        _ => false,
    }
}

fn is_terminating(pod: &Value) -> bool {
    pod.pointer("/spec/activeDeadlineSeconds")
        .is_some_and(|value| !value.is_null())
}

/// No container, nor the pod as a whole, asks for or limits CPU or memory.
fn is_best_effort(pod: &Value) -> bool {
    let Some(spec) = pod.get("spec") else {
        return true;
    };
    let asks = |holder: &Value| {
        ["requests", "limits"].iter().any(|what| {
            ["cpu", "memory"].iter().any(|resource| {
                let amount = holder.pointer(&format!("/resources/{what}/{resource}"));
                amount.is_some_and(|amount| !matches!(amount.as_str(), Some("0")))
            })
        })
    };
    let containers = ["containers", "initContainers"]
        .into_iter()
        .flat_map(|field| {
            spec.get(field)
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
        });
    !asks(spec) && !containers.into_iter().any(asks)
}

/// A (anti-)affinity term looks at pods of other namespaces.
fn crosses_namespaces(pod: &Value) -> bool {
    let crosses = |term: &Value| {
        let named = term.get("namespaces").and_then(Value::as_array);
        named.is_some_and(|names| !names.is_empty())
            || term
                .get("namespaceSelector")
                .is_some_and(|selector| !selector.is_null())
    };
    let terms = |kind: &str, list: &str| {
        let pointer = format!("/spec/affinity/{kind}/{list}IgnoredDuringExecution");
        pod.pointer(&pointer)
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default()
    };
    ["podAffinity", "podAntiAffinity"].into_iter().any(|kind| {
        terms(kind, "requiredDuringScheduling").iter().any(crosses)
            || terms(kind, "preferredDuringScheduling")
                .iter()
                .any(|weighted| weighted.get("podAffinityTerm").is_some_and(crosses))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn in_scopes(spec: &Value, pod: &Value) -> bool {
        matches(spec, "", "pods", pod)
    }

    #[test]
    fn scopes_are_all_to_be_met() {
        let plain = json!({"spec": {"containers": [{"name": "a"}]}});
        let deadline = json!({"spec": {"containers": [{"name": "a"}], "activeDeadlineSeconds": 5}});
        let both = json!({"scopes": ["BestEffort", "Terminating"]});
        assert!(!in_scopes(&both, &plain));
        assert!(in_scopes(&both, &deadline));
        let sized = json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "1"}}}]}});
        assert!(in_scopes(
            &json!({"scopes": ["NotBestEffort", "NotTerminating"]}),
            &sized
        ));
    }

    #[test]
    fn priority_classes_are_selected_by_name() {
        let quota = |operator: &str, values: Value| {
            json!({"scopeSelector": {"matchExpressions": [
                {"scopeName": "PriorityClass", "operator": operator, "values": values},
            ]}})
        };
        let high = json!({"spec": {"priorityClassName": "high"}});
        let none = json!({"spec": {}});
        assert!(in_scopes(&quota("In", json!(["high"])), &high));
        assert!(!in_scopes(&quota("In", json!(["high"])), &none));
        assert!(in_scopes(&quota("NotIn", json!(["high"])), &none));
        assert!(in_scopes(&quota("Exists", json!([])), &high));
        assert!(in_scopes(&quota("DoesNotExist", json!([])), &none));
    }

    #[test]
    fn affinity_to_other_namespaces_is_seen() {
        let term = json!({"topologyKey": "x", "namespaceSelector": {}});
        let pod = json!({"spec": {"affinity": {"podAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [term],
        }}}});
        let quota = json!({"scopes": ["CrossNamespacePodAffinity"]});
        assert!(in_scopes(&quota, &pod));
        assert!(!in_scopes(&quota, &json!({"spec": {}})));
    }
}
