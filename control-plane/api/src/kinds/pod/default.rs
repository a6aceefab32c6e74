//! Defaults of pods and of pod templates.
//!
//! Source of rules: `pkg/apis/core/v1/defaults.go`. What upstream defaults for Pods alone (requests from
//! limits, `enableServiceLinks`, host ports) is not filled into templates.

use serde_json::{Value, json};

use crate::kinds::amounts::canonicalize;
use crate::kinds::walk::{Walk, child, fill, fill_zero, get_mut, list_mut, set};

const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];
const FILE_MODE: i64 = 0o644;

/// Defaults of a Pod.
pub fn default_pod(pod: &mut Value) {
    let Some(spec) = child(pod, "spec") else {
        return;
    };
    default_pod_spec(spec);
    fill(spec, "enableServiceLinks", true);
    let host_network = spec["hostNetwork"].is_true();
    for list in ["initContainers", "containers"] {
        for container in list_mut(spec, list) {
            default_requests(container);
            if host_network {
                default_host_ports(container);
            }
        }
    }
    if spec["resources"].present() {
        default_requests(spec);
    }
}

/// Defaults of a pod template's spec, and the part of a Pod's that is the same.
pub fn default_pod_spec(spec: &mut Value) {
    fill_zero(spec, "dnsPolicy", "ClusterFirst");
    fill_zero(spec, "restartPolicy", "Always");
    fill(spec, "securityContext", json!({}));
    fill(spec, "terminationGracePeriodSeconds", 30);
    fill_zero(spec, "schedulerName", "default-scheduler");
    mirror_service_account(spec);
    for list in CONTAINER_LISTS {
        for container in list_mut(spec, list) {
            default_container(container);
        }
    }
    for volume in list_mut(spec, "volumes") {
        default_volume(volume);
    }
    canonicalize(spec, "overhead");
    if let Some(resources) = get_mut(spec, "resources") {
        canonicalize(resources, "limits");
        canonicalize(resources, "requests");
    }
}

/// The deprecated `serviceAccount` always says what `serviceAccountName` says.
fn mirror_service_account(spec: &mut Value) {
    let name = match spec["serviceAccountName"].text() {
        "" => spec["serviceAccount"].text().to_owned(),
        name => name.to_owned(),
    };
    if !name.is_empty() {
        set(spec, "serviceAccountName", name.as_str());
        set(spec, "serviceAccount", name);
    }
}

/// `Always` for images without tag or tagged `latest`, else `IfNotPresent`.
#[must_use]
pub fn pull_policy(image: &str) -> &'static str {
    if image.contains('@') {
        return "IfNotPresent";
    }
    let last = image.rsplit('/').next().unwrap_or_default();
    match last.split_once(':') {
        None | Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

fn default_container(container: &mut Value) {
    let policy = pull_policy(container["image"].text());
    fill_zero(container, "imagePullPolicy", policy);
    fill_zero(container, "terminationMessagePath", "/dev/termination-log");
    fill_zero(container, "terminationMessagePolicy", "File");
    fill(container, "resources", json!({}));
    if let Some(resources) = get_mut(container, "resources") {
        canonicalize(resources, "limits");
        canonicalize(resources, "requests");
    }
    for port in list_mut(container, "ports") {
        fill_zero(port, "protocol", "TCP");
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = get_mut(container, probe) {
            default_probe(probe);
        }
    }
    if let Some(lifecycle) = get_mut(container, "lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(hook) = get_mut(lifecycle, hook) {
                default_http(hook);
            }
        }
    }
    for variable in list_mut(container, "env") {
        if let Some(source) = get_mut(variable, "valueFrom") {
            default_field_sources(source);
        }
    }
}

fn default_probe(probe: &mut Value) {
    for (field, value) in [
        ("timeoutSeconds", 1),
        ("periodSeconds", 10),
        ("successThreshold", 1),
        ("failureThreshold", 3),
    ] {
        fill_zero(probe, field, value);
    }
    if let Some(grpc) = get_mut(probe, "grpc") {
        fill(grpc, "service", "");
    }
    default_http(probe);
}

fn default_http(handler: &mut Value) {
    if let Some(http) = get_mut(handler, "httpGet") {
        fill_zero(http, "path", "/");
        fill_zero(http, "scheme", "HTTP");
    }
}

/// `fieldRef` and `resourceFieldRef` of an environment variable or of a downward API file.
fn default_field_sources(source: &mut Value) {
    if let Some(field) = get_mut(source, "fieldRef") {
        fill_zero(field, "apiVersion", "v1");
    }
    if let Some(resource) = get_mut(source, "resourceFieldRef") {
        // Go prints the zero divisor of a Quantity that is no pointer.
        fill(resource, "divisor", "0");
    }
}

fn default_volume(volume: &mut Value) {
    let has_source = volume
        .entries()
        .any(|(key, value)| key != "name" && value.present());
    if !has_source {
        set(volume, "emptyDir", json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = get_mut(volume, source) {
            fill(source, "defaultMode", FILE_MODE);
        }
    }
    if let Some(downward) = get_mut(volume, "downwardAPI") {
        list_mut(downward, "items").for_each(default_field_sources);
    }
    if let Some(projected) = get_mut(volume, "projected") {
        list_mut(projected, "sources").for_each(default_projection);
    }
    if let Some(host_path) = get_mut(volume, "hostPath") {
        fill(host_path, "type", "");
    }
    if let Some(empty_dir) = get_mut(volume, "emptyDir") {
        crate::kinds::amounts::canonicalize_one(empty_dir, "sizeLimit");
    }
    if let Some(image) = get_mut(volume, "image") {
        let policy = pull_policy(image["reference"].text());
        fill_zero(image, "pullPolicy", policy);
    }
    if let Some(template) =
        get_mut(volume, "ephemeral").and_then(|e| get_mut(e, "volumeClaimTemplate"))
        && let Some(spec) = child(template, "spec")
    {
        fill(spec, "volumeMode", "Filesystem");
    }
    if let Some(iscsi) = get_mut(volume, "iscsi") {
        fill_zero(iscsi, "iscsiInterface", "default");
    }
}

fn default_projection(source: &mut Value) {
    if let Some(token) = get_mut(source, "serviceAccountToken") {
        fill(token, "expirationSeconds", 3600);
    }
    if let Some(downward) = get_mut(source, "downwardAPI") {
        list_mut(downward, "items").for_each(default_field_sources);
    }
}

/// A limit without a request is also the request.
fn default_requests(holder: &mut Value) {
    let Some(resources) = get_mut(holder, "resources") else {
        return;
    };
    let limits = resources["limits"].clone();
    if limits.is_empty() {
        return;
    }
    if let Some(requests) = child(resources, "requests") {
        for (name, limit) in limits.entries() {
            fill(requests, name, limit.clone());
        }
    }
}

fn default_host_ports(container: &mut Value) {
    for port in list_mut(container, "ports") {
        let number = port["containerPort"].clone();
        fill_zero(port, "hostPort", number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minimal_pod_gets_everything_the_agent_needs() {
        let mut pod = json!({"spec": {"containers": [{
            "name": "c", "image": "nginx:1.14.2",
            "ports": [{"containerPort": 80}],
            "resources": {"limits": {"cpu": "0.5", "memory": "1024Ki"}, "requests": {"cpu": "100m"}},
            "livenessProbe": {"httpGet": {"port": 80}},
            "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        }], "volumes": [{"name": "v"}, {"name": "s", "secret": {"secretName": "x"}}]}});
        default_pod(&mut pod);
        let expected = json!({"spec": {
            "containers": [{
                "name": "c", "image": "nginx:1.14.2", "imagePullPolicy": "IfNotPresent",
                "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "resources": {"limits": {"cpu": "500m", "memory": "1Mi"}, "requests": {"cpu": "100m", "memory": "1Mi"}},
                "livenessProbe": {
                    "httpGet": {"port": 80, "path": "/", "scheme": "HTTP"},
                    "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3,
                },
                "env": [{"name": "IP", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}}}],
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
            }],
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "x", "defaultMode": 420}}],
            "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "securityContext": {},
            "terminationGracePeriodSeconds": 30, "schedulerName": "default-scheduler", "enableServiceLinks": true,
        }});
        assert_eq!(pod, expected);
        let once = pod.clone();
        default_pod(&mut pod);
        assert_eq!(pod, once, "defaulting twice changes nothing");
    }

    #[test]
    fn the_pull_policy_follows_the_tag() {
        assert_eq!(pull_policy("nginx"), "Always");
        assert_eq!(pull_policy("localhost:5000/nginx"), "Always");
        assert_eq!(pull_policy("nginx:latest"), "Always");
        assert_eq!(pull_policy("localhost:5000/nginx:1"), "IfNotPresent");
        assert_eq!(pull_policy("nginx@sha256:00"), "IfNotPresent");
    }

    #[test]
    fn templates_do_not_get_what_only_pods_get() {
        let mut spec = json!({"hostNetwork": true, "serviceAccount": "sa", "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 1}], "resources": {"limits": {"cpu": "1"}}}]});
        default_pod_spec(&mut spec);
        assert!(spec["enableServiceLinks"].is_null());
        assert!(spec["containers"][0]["resources"]["requests"].is_null());
        assert!(spec["containers"][0]["ports"][0]["hostPort"].is_null());
        assert_eq!(spec["serviceAccountName"], "sa");
    }

    #[test]
    fn host_network_pods_publish_their_ports() {
        let mut pod = json!({"spec": {"hostNetwork": true, "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}]}]}});
        default_pod(&mut pod);
        assert_eq!(pod["spec"]["containers"][0]["ports"][0]["hostPort"], 80);
    }
}
