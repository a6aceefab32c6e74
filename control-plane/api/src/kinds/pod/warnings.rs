//! What is allowed in pods and their templates and yet seldom what somebody wants. Clients show these as
//! `Warning:` lines.
//!
//! Source: upstream's `pkg/api/pod/warnings.go`.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::kinds::amounts;
use crate::kinds::walk::Walk;
use crate::validation::{Path, names};

/// Node labels that have other names now.
const OLD_LABELS: [(&str, &str, &str); 6] = [
    ("beta.kubernetes.io/arch", "v1.14", "kubernetes.io/arch"),
    ("beta.kubernetes.io/os", "v1.14", "kubernetes.io/os"),
    (
        "failure-domain.beta.kubernetes.io/region",
        "v1.17",
        "topology.kubernetes.io/region",
    ),
    (
        "failure-domain.beta.kubernetes.io/zone",
        "v1.17",
        "topology.kubernetes.io/zone",
    ),
    (
        "beta.kubernetes.io/instance-type",
        "v1.17",
        "node.kubernetes.io/instance-type",
    ),
    (
        "node-role.kubernetes.io/master",
        "v1.20",
        "node-role.kubernetes.io/control-plane",
    ),
];

/// Volume sources whose drivers are gone or going, with what upstream says of them.
const OLD_VOLUMES: [(&str, &str); 9] = [
    (
        "gitRepo",
        "deprecated in v1.11, and disabled by default in v1.33+",
    ),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
    (
        "photonPersistentDisk",
        "deprecated in v1.11, non-functional in v1.16+",
    ),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
    ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
];

/// Warnings of a Pod.
#[must_use]
pub fn pod_warnings(pod: &Value) -> Vec<String> {
    let mut warnings = Vec::new();
    let name = pod["metadata"]["name"].text();
    let problems = names::dns1123_label(name);
    if !name.is_empty() && !problems.is_empty() {
        warnings.push(format!(
            "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: [{}]",
            problems.join(" ")
        ));
    }
    warnings.extend(spec_warnings(&pod["spec"], &Path::new("spec")));
    warnings
}

/// Warnings of a workload: of its name, which is part of its pods' names, and of its template.
#[must_use]
pub fn workload_warnings(object: &Value, template: &Value, path: &Path) -> Vec<String> {
    let mut warnings = Vec::new();
    let name = object["metadata"]["name"].text();
    let problems = names::dns1123_label(name);
    if !name.is_empty() && !problems.is_empty() {
        warnings.push(format!(
            "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: [{}]",
            problems.join(" ")
        ));
    }
    warnings.extend(spec_warnings(&template["spec"], &path.child("spec")));
    warnings
}

/// Warnings of a pod's spec.
#[must_use]
pub fn spec_warnings(spec: &Value, path: &Path) -> Vec<String> {
    let mut warnings = Vec::new();
    for (key, _) in spec["nodeSelector"].entries() {
        if let Some((_, since, new)) = OLD_LABELS.iter().find(|(old, ..)| old == key) {
            let at = path.child("nodeSelector").key(key);
            warnings.push(format!(
                "{at}: deprecated since {since}; use {new:?} instead"
            ));
        }
    }
    for (i, volume) in spec["volumes"].items().iter().enumerate() {
        let at = path.child("volumes").index(i);
        for (source, text) in OLD_VOLUMES {
            if volume[source].present() {
                warnings.push(format!("{}: {text}", at.child(source)));
            }
        }
    }
    if spec["terminationGracePeriodSeconds"]
        .int()
        .is_some_and(|s| s < 0)
    {
        let at = path.child("terminationGracePeriodSeconds");
        warnings.push(format!(
            "{at}: must be >= 0; negative values are invalid and will be treated as 1"
        ));
    }
    for (i, secret) in spec["imagePullSecrets"].items().iter().enumerate() {
        if secret["name"].is_empty() {
            let at = path.child("imagePullSecrets").index(i).child("name");
            warnings.push(format!("{at}: invalid empty name \"\""));
        }
    }
    for list in ["containers", "initContainers"] {
        for (i, container) in spec[list].items().iter().enumerate() {
            container_warnings(container, &path.child(list).index(i), &mut warnings);
        }
    }
    warnings
}

fn container_warnings(container: &Value, path: &Path, warnings: &mut Vec<String>) {
    let mut seen: BTreeMap<&str, &Value> = BTreeMap::new();
    for (i, variable) in container["env"].items().iter().enumerate() {
        let name = variable["name"].text();
        let at = path.child("env").index(i);
        match seen.insert(name, variable) {
            // A value that is made of the earlier one is meant to follow it.
            Some(_) if variable["value"].text().contains(&format!("$({name})")) => {}
            Some(_) => warnings.push(format!(
                "{at}: hides previous definition of {name:?}, which may be dropped when using apply"
            )),
            None => {}
        }
    }
    let mut ports = BTreeMap::new();
    for (i, port) in container["ports"].items().iter().enumerate() {
        let at = path.child("ports").index(i);
        let key = (port["containerPort"].int(), port["protocol"].text());
        if let Some(first) = ports.insert(key, at.clone()) {
            warnings.push(format!("{at}: duplicate port definition with {first}"));
        }
    }
    for side in ["limits", "requests"] {
        for resource in ["memory", "ephemeral-storage"] {
            let value = &container["resources"][side][resource];
            let Some(amount) = amounts::amount(value) else {
                continue;
            };
            if amount.nanos() % 1_000_000_000 != 0 {
                let at = path.child("resources").child(side).key(resource);
                warnings.push(format!(
                    "{at}: fractional byte value \"{amount}\" is invalid, must be an integer"
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_allowed_but_odd_is_told() {
        let pod = json!({"metadata": {"name": "a.b"}, "spec": {
            "nodeSelector": {"beta.kubernetes.io/os": "linux"},
            "containers": [{
                "name": "c", "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}, {"name": "A", "value": "$(A)3"}],
                "ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 80, "protocol": "TCP"}],
                "resources": {"limits": {"memory": "100m"}},
            }],
        }});
        assert_eq!(
            pod_warnings(&pod),
            [
                "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: [must not contain dots]",
                "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
                "spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply",
                "spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]",
                "spec.containers[0].resources.limits[memory]: fractional byte value \"100m\" is invalid, must be an integer",
            ]
        );
        assert!(pod_warnings(&json!({"metadata": {"name": "a"}, "spec": {}})).is_empty());
    }
}
