//! `matchLabelKeys` and `mismatchLabelKeys` become requirements of the selectors beside them when a pod is made
//! (KEP-3633 for pod affinity, KEP-3243 for topology spread): a label that changes later moves nothing.

use serde_json::{Value, json};

use super::super::walk::{Walk, child, get_mut, list_mut};

const AFFINITIES: [&str; 2] = ["podAffinity", "podAntiAffinity"];
const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// Puts the values of a new pod's own labels into the selectors of its terms.
pub(super) fn merge(pod: &mut Value) {
    let labels = pod["metadata"]["labels"].clone();
    let Some(spec) = get_mut(pod, "spec") else {
        return;
    };
    if let Some(affinity) = get_mut(spec, "affinity") {
        for kind in AFFINITIES {
            let Some(terms) = get_mut(affinity, kind) else {
                continue;
            };
            list_mut(terms, REQUIRED).for_each(|term| merge_into(term, &labels));
            list_mut(terms, PREFERRED)
                .filter_map(|weighted| get_mut(weighted, "podAffinityTerm"))
                .for_each(|term| merge_into(term, &labels));
        }
    }
    list_mut(spec, "topologySpreadConstraints")
        .for_each(|constraint| merge_into(constraint, &labels));
}

/// A key that the pod has no label for asks nothing, and without a selector there is nothing to narrow.
fn merge_into(term: &mut Value, labels: &Value) {
    let requirements = |list: &str, operator: &str| -> Vec<Value> {
        let keys = term[list].items().iter().map(Walk::text);
        keys.filter_map(|key| {
            let value = labels.get(key)?.as_str()?;
            Some(json!({"key": key, "operator": operator, "values": [value]}))
        })
        .collect()
    };
    let mut wanted = requirements("matchLabelKeys", "In");
    wanted.extend(requirements("mismatchLabelKeys", "NotIn"));
    if wanted.is_empty() {
        return;
    }
    if let Some(selector) = get_mut(term, "labelSelector")
        && let Some(expressions) = child(selector, "matchExpressions")
    {
        let mut all = expressions.items().to_vec();
        all.extend(wanted);
        *expressions = all.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_take_up_the_pods_own_values() {
        let mut pod = json!({
            "metadata": {"labels": {"app": "web", "hash": "1"}},
            "spec": {
                "affinity": {
                    "podAffinity": {PREFERRED: [{"podAffinityTerm": {
                        "labelSelector": {}, "matchLabelKeys": ["hash", "absent"]}}]},
                    "podAntiAffinity": {REQUIRED: [{
                        "labelSelector": {"matchExpressions": [{"key": "app", "operator": "Exists"}]},
                        "mismatchLabelKeys": ["hash"]}]}},
                "topologySpreadConstraints": [{"matchLabelKeys": ["hash"]},
                    {"labelSelector": {"matchLabels": {"app": "web"}}, "matchLabelKeys": ["hash"]}]},
        });
        merge(&mut pod);
        let is = json!({"key": "hash", "operator": "In", "values": ["1"]});
        let is_not = json!({"key": "hash", "operator": "NotIn", "values": ["1"]});
        let spec = &pod["spec"];
        assert_eq!(
            spec["affinity"]["podAffinity"][PREFERRED][0]["podAffinityTerm"]["labelSelector"]["matchExpressions"],
            json!([is])
        );
        assert_eq!(
            spec["affinity"]["podAntiAffinity"][REQUIRED][0]["labelSelector"]["matchExpressions"],
            json!([{"key": "app", "operator": "Exists"}, is_not])
        );
        let spread = &spec["topologySpreadConstraints"];
        assert!(spread[0].get("labelSelector").is_none());
        assert_eq!(spread[1]["labelSelector"]["matchExpressions"], json!([is]));
    }
}
