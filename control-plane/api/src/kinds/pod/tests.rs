#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::validate::validate_pod_template;
use super::*;
use crate::status::FieldError;
use crate::validation::Path;

fn pod(spec: Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "namespace": "default", "generation": 1, "resourceVersion": "1"},
        "spec": spec,
    });
    Pods.default(&mut pod);
    pod
}

fn simple() -> Value {
    pod(json!({"containers": [{"name": "c", "image": "nginx:1"}]}))
}

fn texts(errors: &FieldErrors) -> Vec<String> {
    errors.0.iter().map(FieldError::text).collect()
}

fn create_errors(spec: Value) -> Vec<String> {
    texts(&Pods.validate_create(&pod(spec)))
}

#[test]
fn a_minimal_pod_is_valid() {
    assert_eq!(
        create_errors(json!({"containers": [{"name": "c", "image": "nginx"}]})),
        Vec::<String>::new()
    );
}

#[test]
fn a_pod_needs_named_containers_with_images() {
    assert_eq!(
        create_errors(json!({})),
        ["spec.containers: Required value"]
    );
    assert_eq!(
        create_errors(
            json!({"containers": [{"name": "c"}, {"image": "i"}, {"name": "c", "image": "i"}]})
        ),
        [
            "spec.containers[0].image: Required value",
            "spec.containers[1].name: Required value",
            "spec.containers[2].name: Duplicate value: \"c\"",
        ]
    );
}

#[test]
fn mounts_need_their_volume_and_volumes_one_source() {
    assert_eq!(
        create_errors(json!({
            "containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
            "volumes": [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/x"}}],
        })),
        [
            "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
            "spec.containers[0].volumeMounts[0].name: Not found: \"data\"",
        ]
    );
}

#[test]
fn an_image_volume_names_its_image_in_a_pod_and_need_not_in_a_template() {
    let mut made = simple();
    made["spec"]["volumes"] = json!([{"name": "v", "image": {"pullPolicy": "Always"}}]);
    let mut errors = FieldErrors::default();
    validate_pod_template(&made, &Path::new("template"), &mut errors);
    assert_eq!(texts(&errors), Vec::<String>::new());
    assert_eq!(
        texts(&Pods.validate_create(&made)),
        ["spec.volumes[0].image.reference: Required value"]
    );
}

#[test]
fn a_pull_secret_without_a_name_is_warned_of_and_taken() {
    assert_eq!(
        create_errors(json!({
            "containers": [{"name": "c", "image": "i"}],
            "imagePullSecrets": [{"name": ""}, {}],
        })),
        Vec::<String>::new()
    );
}

#[test]
fn requests_above_limits_are_refused() {
    assert_eq!(
        create_errors(
            json!({"containers": [{"name": "c", "image": "i", "resources": {
                "limits": {"cpu": "1", "memory": "x"}, "requests": {"cpu": "2"},
            }}]})
        ),
        [
            "spec.containers[0].resources.limits[memory]: Invalid value: \"x\": quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
            "spec.containers[0].resources.requests[memory]: Invalid value: \"x\": quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ]
    );
}

#[test]
fn probes_have_exactly_one_handler() {
    assert_eq!(
        create_errors(json!({"containers": [{"name": "c", "image": "i",
            "livenessProbe": {},
            "readinessProbe": {"exec": {"command": ["ls"]}, "httpGet": {"port": 99999}},
        }]})),
        [
            "spec.containers[0].livenessProbe: Required value: must specify a handler type",
            "spec.containers[0].readinessProbe.httpGet: Forbidden: may not specify more than 1 handler type",
        ]
    );
    assert_eq!(
        create_errors(
            json!({"containers": [{"name": "c", "image": "i", "livenessProbe": {"httpGet": {"port": 99999}, "successThreshold": 2}}]})
        ),
        [
            "spec.containers[0].livenessProbe.httpGet.port: Invalid value: 99999: must be between 1 and 65535, inclusive",
            "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
        ]
    );
}

#[test]
fn environment_sources_are_checked() {
    assert_eq!(
        create_errors(json!({"containers": [{"name": "c", "image": "i", "env": [
            {"name": "A=B", "value": "x"},
            {"name": "C", "valueFrom": {}},
            {"name": "D", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels"}}},
            {"name": "E", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1m"}}},
        ]}]})),
        [
            "spec.containers[0].env[0].name: Invalid value: \"A=B\": a valid environment variable name must consist only of printable ASCII characters other than '='",
            "spec.containers[0].env[1].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
            "spec.containers[0].env[2].valueFrom.fieldRef.fieldPath: Unsupported value: \"metadata.labels\": supported values: \"metadata.name\", \"metadata.namespace\", \"metadata.uid\", \"spec.nodeName\", \"spec.serviceAccountName\", \"status.hostIP\", \"status.hostIPs\", \"status.podIP\", \"status.podIPs\"",
            "spec.containers[0].env[3].valueFrom.resourceFieldRef.divisor: Invalid value: \"1m\": only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the memory resource",
        ]
    );
}

#[test]
fn a_downward_volume_names_its_container() {
    assert_eq!(
        create_errors(json!({
            "containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "d", "downwardAPI": {"items": [
                {"path": "cpu", "resourceFieldRef": {"resource": "requests.cpu"}},
                {"path": "l", "fieldRef": {"fieldPath": "metadata.labels"}},
            ]}}],
        })),
        ["spec.volumes[0].downwardAPI.items[0].resourceFieldRef.containerName: Required value"]
    );
}

#[test]
fn policies_and_tolerations_have_known_values() {
    assert_eq!(
        create_errors(json!({
            "containers": [{"name": "c", "image": "i", "imagePullPolicy": "Sometimes"}],
            "restartPolicy": "Maybe",
            "tolerations": [{"operator": "Equal"}, {"key": "k", "operator": "Exists", "effect": "Foo"}],
        })),
        [
            "spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
            "spec.restartPolicy: Unsupported value: \"Maybe\": supported values: \"Always\", \"OnFailure\", \"Never\"",
            "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            "spec.tolerations[1].effect: Unsupported value: \"Foo\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\"",
        ]
    );
}

#[test]
fn a_new_pod_is_pending_whatever_the_client_says() {
    let mut pod = simple();
    pod["status"] = json!({"phase": "Running"});
    Pods.prepare_create(&mut pod);
    assert_eq!(
        pod["status"],
        json!({"phase": "Pending", "qosClass": "BestEffort"})
    );
    assert_eq!(pod["metadata"]["generation"], 1);
}

#[test]
fn images_may_change_and_raise_the_generation() {
    let old = simple();
    let mut new = old.clone();
    new["spec"]["containers"][0]["image"] = json!("nginx:2");
    Pods.prepare_update(&mut new, &old);
    assert_eq!(new["metadata"]["generation"], 2);
    assert!(Pods.validate_update(&new, &old).is_empty());
}

#[test]
fn other_fields_may_not_change() {
    let old = simple();
    let mut new = old.clone();
    new["spec"]["containers"][0]["command"] = json!(["sh"]);
    let texts = texts(&Pods.validate_update(&new, &old));
    assert_eq!(texts.len(), 1);
    assert!(texts[0].starts_with("spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations)"));
    assert!(texts[0].contains("+ \tspec.containers[0].command: [\"sh\"]"));
    new["spec"]["containers"] = json!([]);
    assert!(!Pods.validate_update(&new, &old).is_empty());
}

#[test]
fn the_deadline_may_only_be_lowered() {
    let with = |seconds: Value| {
        let mut pod = simple();
        pod["spec"]["activeDeadlineSeconds"] = seconds;
        pod
    };
    assert!(Pods.validate_update(&with(json!(5)), &simple()).is_empty());
    assert!(
        Pods.validate_update(&with(json!(3)), &with(json!(5)))
            .is_empty()
    );
    assert_eq!(
        texts(&Pods.validate_update(&with(json!(9)), &with(json!(5)))),
        [
            "spec.activeDeadlineSeconds: Invalid value: 9: must be less than or equal to previous value"
        ]
    );
    assert_eq!(
        texts(&Pods.validate_update(&simple(), &with(json!(5)))),
        [
            "spec.activeDeadlineSeconds: Invalid value: null: must not update from a positive integer to nil value"
        ]
    );
}

#[test]
fn tolerations_may_be_added_and_gates_lifted() {
    let mut old = simple();
    old["spec"]["schedulingGates"] = json!([{"name": "a"}]);
    let mut new = simple();
    new["spec"]["tolerations"] = json!([{"key": "k", "operator": "Exists"}]);
    new["spec"]["nodeSelector"] = json!({"disk": "ssd"});
    assert_eq!(
        texts(&Pods.validate_update(&new, &old)),
        Vec::<String>::new()
    );
    assert_eq!(
        texts(&Pods.validate_update(&simple(), &new))[0],
        "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"
    );
    assert_eq!(
        texts(&Pods.validate_update(&old, &simple())),
        [
            "spec.schedulingGates[a]: Forbidden: only deletion is allowed, but found new scheduling gate 'a'"
        ]
    );
}

#[test]
fn a_status_update_leaves_the_spec_alone() {
    let mut old = simple();
    old["status"] = json!({"phase": "Pending", "qosClass": "BestEffort"});
    let mut new = old.clone();
    new["spec"]["nodeName"] = json!("other");
    new["status"] = json!({"phase": "Running"});
    Pods.prepare_status_update(&mut new, &old);
    assert!(new["spec"]["nodeName"].is_null());
    assert_eq!(
        new["status"],
        json!({"phase": "Running", "qosClass": "BestEffort"})
    );
}

#[test]
fn a_container_that_ended_for_good_stays_ended() {
    let with = |state: Value| {
        let mut pod = simple();
        pod["spec"]["restartPolicy"] = json!("Never");
        pod["status"] = json!({"containerStatuses": [{"name": "c", "state": state}]});
        pod
    };
    let old = with(json!({"terminated": {"exitCode": 1}}));
    assert_eq!(
        texts(&Pods.validate_status_update(&with(json!({"running": {}})), &old)),
        [
            "status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state"
        ]
    );
}

#[test]
fn only_pods_on_nodes_need_grace() {
    let mut pod = simple();
    assert_eq!(Pods.grace_period_seconds(&pod), Some(0));
    pod["spec"]["nodeName"] = json!("a1");
    assert_eq!(Pods.grace_period_seconds(&pod), Some(30));
    pod["status"] = json!({"phase": "Failed"});
    assert_eq!(Pods.grace_period_seconds(&pod), Some(0));
}
