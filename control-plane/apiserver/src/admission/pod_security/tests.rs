use super::*;
use serde_json::json;

fn restricted(spec: &Value) -> Vec<String> {
    let metadata = json!({});
    findings(Level::Restricted, &checks::latest(&metadata, spec))
        .into_iter()
        .map(|f| format!("{} ({})", f.reason, f.detail))
        .collect()
}

fn baseline(spec: &Value) -> Vec<String> {
    let metadata = json!({});
    findings(Level::Baseline, &checks::latest(&metadata, spec))
        .into_iter()
        .map(|f| format!("{} ({})", f.reason, f.detail))
        .collect()
}

#[test]
fn a_plain_pod_is_baseline_and_not_restricted() {
    let spec = json!({"containers": [{"name": "a"}]});
    assert!(baseline(&spec).is_empty());
    assert_eq!(
        restricted(&spec),
        [
            "allowPrivilegeEscalation != false (container \"a\" must set securityContext.allowPrivilegeEscalation=false)",
            "unrestricted capabilities (container \"a\" must set securityContext.capabilities.drop=[\"ALL\"])",
            "runAsNonRoot != true (pod or container \"a\" must set securityContext.runAsNonRoot=true)",
            "seccompProfile (pod or container \"a\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")",
        ]
    );
}

#[test]
fn a_hardened_pod_is_restricted() {
    let spec = json!({
        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "volumes": [{"name": "v", "emptyDir": {}}],
        "containers": [{"name": "a", "securityContext": {"allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}}]});
    assert!(restricted(&spec).is_empty(), "{:?}", restricted(&spec));
}

#[test]
fn what_leads_to_the_host_is_not_baseline() {
    let spec = json!({
        "hostNetwork": true, "hostPID": true,
        "securityContext": {"sysctls": [{"name": "kernel.msgmax"}, {"name": "net.ipv4.tcp_rmem"}]},
        "volumes": [{"name": "v", "hostPath": {"path": "/"}}],
        "initContainers": [{"name": "i", "securityContext": {"privileged": true}}],
        "containers": [{"name": "a", "ports": [{"hostPort": 80}],
            "securityContext": {"capabilities": {"add": ["NET_ADMIN", "CHOWN"]}}}]});
    assert_eq!(
        baseline(&spec),
        [
            "non-default capabilities (container \"a\" must not include \"NET_ADMIN\" in securityContext.capabilities.add)",
            "host namespaces (hostNetwork=true, hostPID=true)",
            "hostPath volumes (volume \"v\")",
            "hostPort (container \"a\" uses hostPort 80)",
            "privileged (container \"i\" must not set securityContext.privileged=true)",
            "forbidden sysctls (kernel.msgmax)",
        ]
    );
    assert!(
        restricted(&spec)
            .iter()
            .any(|f| f.contains("volume \"v\" uses restricted volume type \"hostPath\""))
    );
}

#[test]
fn labels_are_read_and_wrong_ones_are_strict() {
    let namespace = |labels: Value| json!({"metadata": {"name": "n", "labels": labels}});
    let (wanted, errors) = policy(&namespace(json!({
        "pod-security.kubernetes.io/enforce": "baseline",
        "pod-security.kubernetes.io/enforce-version": "v1.25",
        "pod-security.kubernetes.io/warn": "restricted"})));
    assert!(errors.is_empty());
    assert_eq!(wanted.enforce.to_string(), "baseline:v1.25");
    assert_eq!(wanted.warn.to_string(), "restricted:latest");
    assert_eq!(wanted.audit.to_string(), "privileged:latest");
    let (wanted, errors) = policy(&namespace(
        json!({"pod-security.kubernetes.io/enforce": "strict"}),
    ));
    assert_eq!(wanted.enforce.level, Level::Restricted);
    assert_eq!(errors.0.len(), 1);
}

#[test]
fn a_refusal_reads_as_upstreams() {
    let spec = json!({"containers": [{"name": "a", "securityContext": {"privileged": true}}]});
    let wanted = LevelVersion {
        level: Level::Baseline,
        version: None,
    };
    let found = evaluate(wanted, &json!({}), &spec);
    assert_eq!(
        told("violates", wanted, &found),
        "violates PodSecurity \"baseline:latest\": privileged (container \"a\" must not set securityContext.privileged=true)"
    );
}
