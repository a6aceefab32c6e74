//! One small valid object per kind.

use serde_json::{Value, json};

fn template() -> Value {
    json!({
        "metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": "nginx:1"}]},
    })
}

fn selector() -> Value {
    json!({"matchLabels": {"app": "web"}})
}

fn policy() -> Value {
    json!({"resourceRules": [{
        "operations": ["CREATE"], "apiGroups": ["example.com"], "apiVersions": ["v1"], "resources": ["things"],
    }]})
}

fn hook() -> Value {
    json!({"webhooks": [{
        "name": "a.b.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": {"url": "https://127.0.0.1:1/hook"},
        "rules": [{"operations": ["CREATE"], "apiGroups": ["example.com"], "apiVersions": ["v1"], "resources": ["things"]}],
    }]})
}

fn claim() -> Value {
    json!({"devices": {"requests": [{"name": "gpu", "exactly": {"deviceClassName": "gpu.example.com"}}]}})
}

/// A certificate request of `O=dev, CN=ann`.
pub(crate) const REQUEST: &str = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUlIVk1INENBUUF3SERFTU1Bb0dBMVVFQ2d3RFpHVjJNUXd3Q2dZRFZRUUREQU5oYm00d1dUQVRCZ2NxaGtqTwpQUUlCQmdncWhrak9QUU1CQndOQ0FBVFdGTVpzc3hYaWQvWm1uWm02cUZJY2hTcDRQb0ZERUpmdmJpbWlBZVFRCnJkYkN6Z0c3eG83SGRpbEdEaFpGbXUxTGRpUVFESHpWOHFMNUdmNmZTZDRGb0FBd0NnWUlLb1pJemowRUF3SUQKUndBd1JBSWdQQUVMUmRSM0ZjSkkzblN6cDdlTWZaY2xwY3hPYUZtaXFvc2JqZjd0VEVzQ0lFVDNLcTBDalBPWAp0TGVuQ2V6RGhJc1FvQkVjR1diMWJWSHBraVRvNzEwbwotLS0tLUVORCBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0K";

/// The body, without what the path says; `None` for a kind that has no sample.
pub(super) fn sample(group: &str, kind: &str) -> Option<Value> {
    let target = json!({"kind": "Deployment", "name": "web", "apiVersion": "apps/v1"});
    Some(match (group, kind) {
        ("", "ConfigMap" | "Secret") => json!({"data": {"k": "dg=="}}),
        ("" | "events.k8s.io", "Event") => event(group),
        ("", "LimitRange") => {
            json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "1"}}]}})
        }
        ("", "Endpoints" | "Namespace" | "Node" | "ServiceAccount") => json!({}),
        ("", "PersistentVolume") => json!({"spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/tmp/v"},
        }}),
        ("", "PersistentVolumeClaim") => json!({"spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
        }}),
        ("", "Pod") => json!({"spec": template()["spec"]}),
        ("", "PodTemplate") => json!({"template": template()}),
        ("", "ReplicationController") => {
            json!({"spec": {"selector": {"app": "web"}, "template": template()}})
        }
        ("", "ResourceQuota") => json!({"spec": {"hard": {"pods": "10"}}}),
        ("", "Service") => json!({"spec": {"ports": [{"port": 80}], "selector": {"app": "web"}}}),
        ("apps", "ControllerRevision") => json!({"revision": 1, "data": {"a": 1}}),
        ("apps", "StatefulSet") => {
            json!({"spec": {"serviceName": "web", "selector": selector(), "template": template()}})
        }
        ("apps", _) => json!({"spec": {"selector": selector(), "template": template()}}),
        ("batch", "Job") => job(),
        ("batch", "CronJob") => {
            json!({"spec": {"schedule": "*/5 * * * *", "jobTemplate": job()}})
        }
        ("autoscaling", _) => json!({"spec": {"maxReplicas": 3, "scaleTargetRef": target}}),
        ("certificates.k8s.io", _) => json!({"spec": {
            "request": REQUEST, "signerName": "example.com/own", "usages": ["client auth"],
        }}),
        ("coordination.k8s.io", "Lease") => json!({"spec": {"holderIdentity": "a"}}),
        ("discovery.k8s.io", _) => {
            json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.1.2.3"]}], "ports": []})
        }
        ("networking.k8s.io", "Ingress") => {
            json!({"spec": {"defaultBackend": {"service": {"name": "web", "port": {"number": 80}}}}})
        }
        ("networking.k8s.io", "IngressClass") => {
            json!({"spec": {"controller": "example.com/ingress"}})
        }
        ("networking.k8s.io", "IPAddress") => {
            json!({"spec": {"parentRef": {"resource": "services", "namespace": "d", "name": "web"}}})
        }
        ("networking.k8s.io", "NetworkPolicy") => json!({"spec": {"podSelector": {}}}),
        ("networking.k8s.io", "ServiceCIDR") => json!({"spec": {"cidrs": ["10.200.0.0/16"]}}),
        ("node.k8s.io", "RuntimeClass") => json!({"handler": "kata"}),
        ("policy", _) => json!({"spec": {"minAvailable": 1, "selector": selector()}}),
        _ => return sample_of_rest(group, kind),
    })
}

fn sample_of_rest(group: &str, kind: &str) -> Option<Value> {
    Some(match (group, kind) {
        ("rbac.authorization.k8s.io", "Role" | "ClusterRole") => {
            json!({"rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]})
        }
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => json!({
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "view"},
            "subjects": [{"kind": "User", "name": "ann", "apiGroup": group}],
        }),
        ("scheduling.k8s.io", _) => json!({"value": 5}),
        ("storage.k8s.io", "CSIDriver") => json!({"spec": {}}),
        ("storage.k8s.io", "CSINode") => {
            json!({"spec": {"drivers": [{"name": "disk.example.com", "nodeID": "a1"}]}})
        }
        ("storage.k8s.io", "CSIStorageCapacity") => {
            json!({"storageClassName": "fast", "capacity": "1Gi"})
        }
        ("storage.k8s.io", "StorageClass") => json!({"provisioner": "disk.example.com"}),
        ("storage.k8s.io", "VolumeAttachment") => json!({"spec": {
            "attacher": "disk.example.com", "nodeName": "a1", "source": {"persistentVolumeName": "v"},
        }}),
        ("storage.k8s.io", "VolumeAttributesClass") => {
            json!({"driverName": "disk.example.com", "parameters": {"iops": "100"}})
        }
        (_, "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration") => hook(),
        (_, "ValidatingAdmissionPolicy") => {
            json!({"spec": {"matchConstraints": policy(), "validations": [{"expression": "true"}]}})
        }
        (_, "MutatingAdmissionPolicy") => json!({"spec": {
            "matchConstraints": policy(), "reinvocationPolicy": "Never",
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": "[]"}}],
        }}),
        (_, "ValidatingAdmissionPolicyBinding") => {
            json!({"spec": {"policyName": "p", "validationActions": ["Deny"]}})
        }
        (_, "MutatingAdmissionPolicyBinding") => json!({"spec": {"policyName": "p"}}),
        ("apiregistration.k8s.io", _) => json!({"spec": {
            "group": "example.com", "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 10,
            "service": {"namespace": "d", "name": "web"}, "insecureSkipTLSVerify": true,
        }}),
        ("apiextensions.k8s.io", _) => json!({"spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing", "singular": "thing", "listKind": "ThingList"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}],
        }}),
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => json!({"spec": {
            "priorityLevelConfiguration": {"name": "workload-low"},
            "rules": [{"subjects": [{"kind": "User", "user": {"name": "ann"}}], "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]}],
        }}),
        ("flowcontrol.apiserver.k8s.io", _) => json!({"spec": {
            "type": "Limited", "limited": {"limitResponse": {"type": "Reject"}},
        }}),
        ("resource.k8s.io", "DeviceClass") => {
            json!({"spec": {"selectors": [{"cel": {"expression": "true"}}]}})
        }
        ("resource.k8s.io", "ResourceClaim") => json!({"spec": claim()}),
        ("resource.k8s.io", "ResourceClaimTemplate") => json!({"spec": {"spec": claim()}}),
        ("resource.k8s.io", "ResourceSlice") => json!({"spec": {
            "driver": "gpu.example.com", "nodeName": "a1", "devices": [{"name": "gpu-0"}],
            "pool": {"name": "a1", "generation": 1, "resourceSliceCount": 1},
        }}),
        _ => return None,
    })
}

fn job() -> Value {
    json!({"spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "nginx:1"}]}}}})
}

fn event(group: &str) -> Value {
    let about = json!({"kind": "Pod", "name": "p", "namespace": "d"});
    if group.is_empty() {
        json!({"involvedObject": about, "reason": "Started", "type": "Normal"})
    } else {
        json!({
            "regarding": about, "reason": "Started", "type": "Normal", "eventTime": "2026-01-01T00:00:00.000000Z",
            "reportingController": "example.com/agent", "reportingInstance": "a1", "action": "Start",
        })
    }
}

/// A name that the kind takes.
pub(super) fn name_of(kind: &str, plain: &str) -> String {
    let number = if plain == "second" { 9 } else { 8 };
    match kind {
        "IPAddress" => format!("10.9.8.{number}"),
        "APIService" => "v1.example.com".to_owned(),
        "CustomResourceDefinition" => "things.example.com".to_owned(),
        _ => plain.to_owned(),
    }
}
