//! The predicates that the scheduler and the controllers must agree on: which node a pod's spec selects, and
//! which taints it tolerates.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration,
};

/// True when the toleration covers the taint (core/v1 Toleration: an empty key with `Exists` matches all,
/// an empty effect matches every effect).
#[must_use]
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    let key = toleration.key.as_deref().unwrap_or_default();
    if !key.is_empty() && key != taint.key {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => true,
        "Equal" | "" => {
            !key.is_empty()
                && toleration.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default()
        }
        _ => false,
    }
}

/// The first taint with one of `effects` that none of the tolerations covers.
#[must_use]
pub fn untolerated<'a>(
    taints: &'a [Taint],
    tolerations: &[Toleration],
    effects: &[&str],
) -> Option<&'a Taint> {
    taints.iter().find(|taint| {
        effects.contains(&taint.effect.as_str())
            && !tolerations.iter().any(|given| tolerates(given, taint))
    })
}

/// One requirement against the value under its key (core/v1 NodeSelectorRequirement).
fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let compare = |test: fn(i64, i64) -> bool| {
        let parsed = value
            .and_then(|v| v.parse().ok())
            .zip(values.first().and_then(|v| v.parse().ok()));
        parsed.is_some_and(|(have, want)| test(have, want))
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|v| values.iter().any(|x| x == v)),
        "NotIn" => value.is_none_or(|v| !values.iter().any(|x| x == v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|have, want| have > want),
        "Lt" => compare(|have, want| have < want),
        _ => false,
    }
}

/// A term matches when all its requirements hold; an empty term matches nothing. The only field is
/// `metadata.name`.
#[must_use]
pub fn term_matches(
    term: &NodeSelectorTerm,
    name: &str,
    labels: Option<&BTreeMap<String, String>>,
) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let label = |key: &str| labels?.get(key).map(String::as_str);
    expressions.iter().all(|r| holds(r, label(&r.key)))
        && fields
            .iter()
            .all(|r| r.key == "metadata.name" && holds(r, Some(name)))
}

/// True when one of the selector's terms matches the node.
#[must_use]
pub fn selects_node(selector: &NodeSelector, node: &Node) -> bool {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    selector
        .node_selector_terms
        .iter()
        .any(|term| term_matches(term, name, node.metadata.labels.as_ref()))
}

/// True when a pod's `nodeSelector` and required node affinity allow the node.
#[must_use]
pub fn wants_node(spec: &PodSpec, node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let selected = spec
        .node_selector
        .iter()
        .flatten()
        .all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value));
    let affinity = spec
        .affinity
        .as_ref()
        .and_then(|all| all.node_affinity.as_ref());
    let required = affinity.and_then(|node| {
        node.required_during_scheduling_ignored_during_execution
            .as_ref()
    });
    selected && required.is_none_or(|selector| selects_node(selector, node))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, from_value, json};

    use super::*;

    fn wants(spec: Value) -> bool {
        let node = json!({"metadata": {"name": "a", "labels": {"disk": "ssd", "cores": "8"}}});
        let mut spec = spec;
        spec["containers"] = json!([]);
        wants_node(&from_value(spec).unwrap(), &from_value(node).unwrap())
    }

    fn required(terms: Value) -> Value {
        json!({"affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}})
    }

    #[test]
    fn selector_and_affinity_must_both_match() {
        assert!(wants(json!({"nodeSelector": {"disk": "ssd"}})));
        assert!(!wants(json!({"nodeSelector": {"disk": "hdd"}})));
        let gt =
            json!([{"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["4"]}]}]);
        assert!(wants(required(gt)));
        let name = |name: &str| json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]}]);
        assert!(wants(required(name("a"))));
        assert!(!wants(required(name("b"))));
        assert!(!wants(required(json!([{}]))));
    }

    #[test]
    fn only_the_asked_effects_are_in_the_way() {
        let taint = |effect: &str| Taint {
            key: "gpu".into(),
            effect: effect.into(),
            ..Taint::default()
        };
        let taints = [taint("NoSchedule")];
        assert!(untolerated(&taints, &[], &["NoSchedule", "NoExecute"]).is_some());
        assert!(untolerated(&taints, &[], &["NoExecute"]).is_none());
        let all = Toleration {
            operator: Some("Exists".into()),
            ..Toleration::default()
        };
        assert!(untolerated(&taints, &[all], &["NoSchedule"]).is_none());
    }
}
