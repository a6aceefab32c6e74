//! LimitRanger: a namespace's LimitRanges give containers requests and limits that they do not name, and refuse pods
//! and claims that ask for too little or too much.
//!
//! Rules: upstream `plugin/pkg/admission/limitranger`.

use std::sync::Arc;

use async_trait::async_trait;
use balsa_api::kinds::amounts::{Amounts, amounts};
use balsa_api::kinds::walk::Walk;
use balsa_api::kinds::{pod_limits, pod_requests};
use balsa_api::object;
use balsa_api::quantity::Quantity;
use balsa_api::status::Status;
use serde_json::{Value, json};

use super::{aggregate, is, refuse};
use crate::seam::{Admission, AdmissionRequest, ObjectReader, Operation};

/// Annotation that tells what was filled in.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";

/// See the module.
pub struct LimitRanger {
    reader: Arc<dyn ObjectReader>,
}

impl LimitRanger {
    /// Over the LimitRanges of a reader.
    #[must_use]
    pub fn new(reader: Arc<dyn ObjectReader>) -> Self {
        Self { reader }
    }

    fn ranges(&self, namespace: &str) -> Vec<Arc<Value>> {
        self.reader.list("", "limitranges", Some(namespace))
    }
}

/// Pods when they are made or resized, claims whenever they are written.
fn concerns(request: &AdmissionRequest<'_>) -> bool {
    match request.operation {
        Operation::Create => is(request, "", "pods") || is(request, "", "persistentvolumeclaims"),
        Operation::Update => {
            is(request, "", "persistentvolumeclaims")
                || (request.kind.group.is_empty()
                    && request.kind.plural == "pods"
                    && request.subresource == "resize")
        }
        _ => false,
    }
}

#[async_trait]
impl Admission for LimitRanger {
    async fn mutate(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if !concerns(request) || request.kind.plural != "pods" {
            return Ok(());
        }
        let ranges = self.ranges(request.namespace);
        if let Some(pod) = request.object.as_deref_mut() {
            for range in ranges {
                fill_in(pod, &range);
            }
        }
        Ok(())
    }

    async fn validate(&self, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        if !concerns(request) {
            return Ok(());
        }
        let Some(object) = request.object.as_deref() else {
            return Ok(());
        };
        let is_pod = request.kind.plural == "pods";
        for range in self.ranges(request.namespace) {
            let problems = if is_pod {
                pod_problems(object, &range)
            } else {
                claim_problems(object, &range)
            };
            if !problems.is_empty() {
                return Err(refuse(request, &aggregate(&problems)));
            }
        }
        Ok(())
    }
}

/// Gives containers what the range has as defaults and they do not name.
fn fill_in(pod: &mut Value, range: &Value) {
    let items = range["spec"]["limits"].items();
    let Some(item) = items.iter().find(|i| i["type"] == "Container") else {
        return;
    };
    let mut notes = Vec::new();
    for (list, what) in [
        ("containers", "container"),
        ("initContainers", "init container"),
    ] {
        let containers = pod["spec"][list].as_array_mut();
        for container in containers.into_iter().flatten() {
            for (from, to, word) in [
                ("defaultRequest", "requests", "request"),
                ("default", "limits", "limit"),
            ] {
                let added = merge(container, to, &item[from]);
                if !added.is_empty() {
                    let name = container["name"].text();
                    notes.push(format!("{} {word} for {what} {name}", added.join(", ")));
                }
            }
        }
    }
    if !notes.is_empty() {
        let text = format!("LimitRanger plugin set: {}", notes.join("; "));
        object::set_annotation(pod, ANNOTATION, &text);
    }
}

/// Adds amounts that are not there; returns their names.
fn merge(container: &mut Value, field: &str, defaults: &Value) -> Vec<String> {
    let mut added = Vec::new();
    for (name, amount) in defaults.entries() {
        if !container["resources"][field][name].is_null() {
            continue;
        }
        if !container["resources"].is_object() {
            container["resources"] = json!({});
        }
        if !container["resources"][field].is_object() {
            container["resources"][field] = json!({});
        }
        container["resources"][field][name] = amount.clone();
        added.push(name.clone());
    }
    added.sort();
    added
}

/// What one thing (a container, the pod, a claim) asks for.
struct Asked {
    requests: Amounts,
    limits: Amounts,
}

fn pod_problems(pod: &Value, range: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    for item in range["spec"]["limits"].items() {
        match item["type"].text() {
            "Container" => {
                for list in ["containers", "initContainers"] {
                    for container in pod["spec"][list].items() {
                        let resources = &container["resources"];
                        let asked = Asked {
                            requests: amounts(&resources["requests"]),
                            limits: amounts(&resources["limits"]),
                        };
                        check(item, &asked, &mut problems);
                    }
                }
            }
            "Pod" => {
                let asked = Asked {
                    requests: pod_requests(pod),
                    limits: pod_limits(pod),
                };
                check(item, &asked, &mut problems);
            }
            _ => {}
        }
    }
    problems
}

fn claim_problems(claim: &Value, range: &Value) -> Vec<String> {
    let requests = amounts(&claim["spec"]["resources"]["requests"]);
    let mut problems = Vec::new();
    let items = range["spec"]["limits"].items();
    for item in items
        .iter()
        .filter(|i| i["type"] == "PersistentVolumeClaim")
    {
        let type_ = item["type"].text();
        for (name, least) in amounts(&item["min"]) {
            if let Some(problem) = too_little(type_, &name, least, requests.get(&name), None) {
                problems.push(problem);
            }
        }
        for (name, most) in amounts(&item["max"]) {
            let bound = format!("maximum {name} usage per {type_} is {most}");
            match requests.get(&name) {
                None => problems.push(format!("{bound}.  No request is specified")),
                Some(request) if *request > most => {
                    problems.push(format!("{bound}, but request is {request}"));
                }
                Some(_) => {}
            }
        }
    }
    problems
}

fn check(item: &Value, asked: &Asked, problems: &mut Vec<String>) {
    let type_ = item["type"].text();
    for (name, least) in amounts(&item["min"]) {
        let (request, limit) = (asked.requests.get(&name), asked.limits.get(&name));
        problems.extend(too_little(type_, &name, least, request, limit));
    }
    for (name, most) in amounts(&item["max"]) {
        let (request, limit) = (asked.requests.get(&name), asked.limits.get(&name));
        problems.extend(too_much(type_, &name, most, request, limit));
    }
    for (name, ratio) in amounts(&item["maxLimitRequestRatio"]) {
        let (request, limit) = (asked.requests.get(&name), asked.limits.get(&name));
        problems.extend(too_steep(type_, &name, ratio, request, limit));
    }
}

fn too_little(
    type_: &str,
    name: &str,
    least: Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
) -> Option<String> {
    let bound = format!("minimum {name} usage per {type_} is {least}");
    match (request, limit) {
        (None, _) => Some(format!("{bound}.  No request is specified")),
        (Some(request), _) if *request < least => {
            Some(format!("{bound}, but request is {request}"))
        }
        (_, Some(limit)) if *limit < least => Some(format!("{bound}, but limit is {limit}")),
        _ => None,
    }
}

fn too_much(
    type_: &str,
    name: &str,
    most: Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
) -> Option<String> {
    let bound = format!("maximum {name} usage per {type_} is {most}");
    match (request, limit) {
        (_, None) => Some(format!("{bound}.  No limit is specified")),
        (_, Some(limit)) if *limit > most => Some(format!("{bound}, but limit is {limit}")),
        (Some(request), _) if *request > most => Some(format!("{bound}, but request is {request}")),
        _ => None,
    }
}

fn too_steep(
    type_: &str,
    name: &str,
    most: Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
) -> Option<String> {
    let bound = format!("{name} max limit to request ratio per {type_} is {most}");
    let given = |amount: Option<&Quantity>| amount.copied().filter(|q| !q.is_zero());
    let Some(request) = given(request) else {
        return Some(format!(
            "{bound}, but no request is specified or request is 0"
        ));
    };
    let Some(limit) = given(limit) else {
        return Some(format!("{bound}, but no limit is specified or limit is 0"));
    };
    let ratio = limit.as_f64() / request.as_f64();
    (ratio > most.as_f64()).then(|| format!("{bound}, but provided ratio is {ratio:.6}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(item: Value) -> Value {
        json!({"spec": {"limits": [item]}})
    }

    #[test]
    fn containers_get_what_they_do_not_name_and_the_pod_says_so() {
        let mut pod = json!({"metadata": {}, "spec": {"containers": [
            {"name": "a", "resources": {"requests": {"cpu": "1"}}}], "initContainers": [{"name": "i"}]}});
        fill_in(
            &mut pod,
            &range(json!({"type": "Container",
            "default": {"cpu": "2", "memory": "1Gi"}, "defaultRequest": {"cpu": "100m", "memory": "1Gi"}})),
        );
        let resources = &pod["spec"]["containers"][0]["resources"];
        assert_eq!(
            *resources,
            json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "1Gi"}})
        );
        assert_eq!(
            pod["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: memory request for container a; cpu, memory limit for container a; \
             cpu, memory request for init container i; cpu, memory limit for init container i"
        );
    }

    #[test]
    fn too_little_too_much_and_too_steep_are_refused_in_upstreams_words() {
        let pod = json!({"spec": {"containers": [
            {"name": "a", "resources": {"requests": {"cpu": "50m"}, "limits": {"cpu": "400m"}}}]}});
        let problems = |item| pod_problems(&pod, &range(item));
        assert_eq!(
            problems(json!({"type": "Container", "min": {"cpu": "100m"}})),
            ["minimum cpu usage per Container is 100m, but request is 50m"]
        );
        assert_eq!(
            problems(json!({"type": "Pod", "max": {"cpu": "300m"}})),
            ["maximum cpu usage per Pod is 300m, but limit is 400m"]
        );
        assert_eq!(
            problems(json!({"type": "Container", "max": {"memory": "1Gi"}})),
            ["maximum memory usage per Container is 1Gi.  No limit is specified"]
        );
        assert_eq!(
            problems(json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "4"}})),
            ["cpu max limit to request ratio per Container is 4, but provided ratio is 8.000000"]
        );
        assert!(
            problems(json!({"type": "Container", "min": {"cpu": "50m"}, "max": {"cpu": "400m"}}))
                .is_empty()
        );
    }

    #[test]
    fn claims_are_measured_by_what_they_request() {
        let claim = json!({"spec": {"resources": {"requests": {"storage": "10Gi"}}}});
        let problems = claim_problems(
            &claim,
            &range(json!({"type": "PersistentVolumeClaim", "max": {"storage": "5Gi"}})),
        );
        assert_eq!(
            problems,
            ["maximum storage usage per PersistentVolumeClaim is 5Gi, but request is 10Gi"]
        );
    }
}
