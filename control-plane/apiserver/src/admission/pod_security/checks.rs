//! The Pod Security Standards as checks: each looks at a pod and says what it has against it.
//!
//! Rules: <https://kubernetes.io/docs/concepts/security/pod-security-standards/>; names and order of the findings are
//! those that users of upstream's admission know.

use std::collections::BTreeSet;

use balsa_api::kinds::walk::Walk;
use serde_json::Value;

use super::levels::{LATEST, Level};

/// What a check has found: what is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// For example `privileged`.
    pub reason: &'static str,
    /// For example `container "a" must not set securityContext.privileged=true`.
    pub detail: String,
}

type Check = fn(&Pod<'_>) -> Option<Finding>;

/// A pod's spec with its annotations, under a version of the standards.
pub struct Pod<'a> {
    /// Metadata.
    pub metadata: &'a Value,
    /// Spec.
    pub spec: &'a Value,
    /// Minor version of the standards.
    pub minor: u32,
}

/// Checks of the baseline level, in order.
const BASELINE: [(&str, Check); 12] = [
    ("appArmorProfile", app_armor),
    ("capabilities_baseline", capabilities_baseline),
    ("hostNamespaces", host_namespaces),
    ("hostPathVolumes", host_path),
    ("hostPorts", host_ports),
    ("hostProbesAndhostLifecycle", host_probes),
    ("privileged", privileged),
    ("procMount", proc_mount),
    ("seLinuxOptions", selinux),
    ("seccompProfile_baseline", seccomp_baseline),
    ("sysctls", sysctls),
    ("windowsHostProcess", host_process),
];
/// Checks that the restricted level adds.
const RESTRICTED: [Check; 6] = [
    privilege_escalation,
    capabilities_restricted,
    restricted_volumes,
    run_as_non_root,
    run_as_user,
    seccomp_restricted,
];
/// Baseline checks that a stricter one takes the place of.
const REPLACED: [&str; 3] = [
    "capabilities_baseline",
    "hostPathVolumes",
    "seccompProfile_baseline",
];
const DEFAULT_CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
/// Sysctls of a pod's own, with the minor version that has them first.
const SAFE_SYSCTLS: [(&str, u32); 12] = [
    ("kernel.shm_rmid_forced", 0),
    ("net.ipv4.ip_local_port_range", 0),
    ("net.ipv4.ip_local_reserved_ports", 27),
    ("net.ipv4.ip_unprivileged_port_start", 0),
    ("net.ipv4.ping_group_range", 0),
    ("net.ipv4.tcp_fin_timeout", 29),
    ("net.ipv4.tcp_keepalive_intvl", 29),
    ("net.ipv4.tcp_keepalive_probes", 29),
    ("net.ipv4.tcp_keepalive_time", 29),
    ("net.ipv4.tcp_rmem", 32),
    ("net.ipv4.tcp_syncookies", 0),
    ("net.ipv4.tcp_wmem", 32),
];
const RESTRICTED_VOLUMES: [&str; 9] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];
const APP_ARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

/// Everything that a level has against a pod.
#[must_use]
pub fn findings(level: Level, pod: &Pod<'_>) -> Vec<Finding> {
    let mut all = Vec::new();
    if level == Level::Privileged {
        return all;
    }
    for (id, check) in BASELINE {
        if level == Level::Restricted && REPLACED.contains(&id) {
            continue;
        }
        all.extend(check(pod));
    }
    if level == Level::Restricted {
        all.extend(RESTRICTED.iter().filter_map(|check| check(pod)));
    }
    all
}

impl<'a> Pod<'a> {
    fn containers(&self) -> impl Iterator<Item = &'a Value> + use<'a> {
        let spec = self.spec;
        ["initContainers", "containers", "ephemeralContainers"]
            .into_iter()
            .flat_map(move |list| spec[list].items())
    }

    fn names(&self, is: impl Fn(&Value) -> bool) -> Vec<&'a str> {
        self.containers()
            .filter(|c| is(c))
            .map(|c| c["name"].text())
            .collect()
    }

    fn security(&self) -> &'a Value {
        &self.spec["securityContext"]
    }

    fn is_windows(&self) -> bool {
        self.spec["os"]["name"] == "windows"
    }
}

fn quoted<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let all: Vec<String> = names.into_iter().map(|n| format!("{n:?}")).collect();
    all.join(", ")
}

fn containers(names: &[&str]) -> String {
    named("container", names)
}

fn named(what: &str, names: &[&str]) -> String {
    let s = if names.len() == 1 { "" } else { "s" };
    format!("{what}{s} {}", quoted(names.iter().copied()))
}

/// `pod and containers "a", "b"`, of those that there are.
fn setters(pod: bool, names: &[&str]) -> String {
    let mut all = Vec::new();
    if pod {
        all.push("pod".to_owned());
    }
    if !names.is_empty() {
        all.push(containers(names));
    }
    all.join(" and ")
}

fn found(reason: &'static str, detail: String) -> Option<Finding> {
    Some(Finding { reason, detail })
}

fn privileged(pod: &Pod<'_>) -> Option<Finding> {
    let bad = pod.names(|c| c["securityContext"]["privileged"] == true);
    if bad.is_empty() {
        return None;
    }
    let who = containers(&bad);
    found(
        "privileged",
        format!("{who} must not set securityContext.privileged=true"),
    )
}

fn host_namespaces(pod: &Pod<'_>) -> Option<Finding> {
    let set: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .into_iter()
        .filter(|field| pod.spec[*field] == true)
        .map(|field| format!("{field}=true"))
        .collect();
    if set.is_empty() {
        return None;
    }
    found("host namespaces", set.join(", "))
}

fn host_path(pod: &Pod<'_>) -> Option<Finding> {
    let volumes = pod.spec["volumes"].items();
    let bad: Vec<&str> = volumes
        .iter()
        .filter(|v| !v["hostPath"].is_null())
        .map(|v| v["name"].text())
        .collect();
    if bad.is_empty() {
        return None;
    }
    found("hostPath volumes", named("volume", &bad))
}

fn host_ports(pod: &Pod<'_>) -> Option<Finding> {
    let of = |c: &Value| -> Vec<i64> {
        c["ports"]
            .items()
            .iter()
            .filter_map(|p| p["hostPort"].int())
            .filter(|p| *p != 0)
            .collect()
    };
    let bad = pod.names(|c| !of(c).is_empty());
    if bad.is_empty() {
        return None;
    }
    let ports: BTreeSet<String> = pod
        .containers()
        .flat_map(of)
        .map(|p| p.to_string())
        .collect();
    let (uses, port) = (
        if bad.len() == 1 { "uses" } else { "use" },
        if ports.len() == 1 {
            "hostPort"
        } else {
            "hostPorts"
        },
    );
    let ports: Vec<String> = ports.into_iter().collect();
    found(
        "hostPort",
        format!("{} {uses} {port} {}", containers(&bad), ports.join(", ")),
    )
}

/// Hosts that a container's probes and hooks name.
fn probe_hosts(container: &Value) -> Vec<&str> {
    let lifecycle = &container["lifecycle"];
    [
        &container["livenessProbe"],
        &container["readinessProbe"],
        &container["startupProbe"],
        &lifecycle["postStart"],
        &lifecycle["preStop"],
    ]
    .into_iter()
    .flat_map(|handler| [&handler["httpGet"]["host"], &handler["tcpSocket"]["host"]])
    .map(Walk::text)
    .filter(|host| !host.is_empty())
    .collect()
}

fn host_probes(pod: &Pod<'_>) -> Option<Finding> {
    if pod.minor < 34 {
        return None;
    }
    let bad = pod.names(|c| !probe_hosts(c).is_empty());
    if bad.is_empty() {
        return None;
    }
    let hosts: BTreeSet<&str> = pod.containers().flat_map(probe_hosts).collect();
    let (uses, host) = (
        if bad.len() == 1 { "uses" } else { "use" },
        if hosts.len() == 1 { "host" } else { "hosts" },
    );
    found(
        "probe or lifecycle host",
        format!(
            "{} {uses} probe or lifecycle {host} {}",
            containers(&bad),
            quoted(hosts)
        ),
    )
}

fn added<'a>(container: &'a Value, allowed: &[&str]) -> Vec<&'a str> {
    container["securityContext"]["capabilities"]["add"]
        .items()
        .iter()
        .map(Walk::text)
        .filter(|c| !allowed.contains(c))
        .collect()
}

fn capabilities_baseline(pod: &Pod<'_>) -> Option<Finding> {
    let bad = pod.names(|c| !added(c, &DEFAULT_CAPABILITIES).is_empty());
    if bad.is_empty() {
        return None;
    }
    let which: BTreeSet<&str> = pod
        .containers()
        .flat_map(|c| added(c, &DEFAULT_CAPABILITIES))
        .collect();
    found(
        "non-default capabilities",
        format!(
            "{} must not include {} in securityContext.capabilities.add",
            containers(&bad),
            quoted(which)
        ),
    )
}

fn capabilities_restricted(pod: &Pod<'_>) -> Option<Finding> {
    const ALLOWED: [&str; 1] = ["NET_BIND_SERVICE"];
    if pod.minor < 22 {
        return capabilities_baseline(pod);
    }
    if pod.is_windows() && pod.minor >= 25 {
        return None;
    }
    let drops_all = |c: &Value| {
        let drop = c["securityContext"]["capabilities"]["drop"].items();
        drop.iter().any(|d| d == "ALL")
    };
    let missing = pod.names(|c| !drops_all(c));
    let adding = pod.names(|c| !added(c, &ALLOWED).is_empty());
    let mut parts = Vec::new();
    if !missing.is_empty() {
        parts.push(format!(
            "{} must set securityContext.capabilities.drop=[\"ALL\"]",
            containers(&missing)
        ));
    }
    if !adding.is_empty() {
        let which: BTreeSet<&str> = pod.containers().flat_map(|c| added(c, &ALLOWED)).collect();
        parts.push(format!(
            "{} must not include {} in securityContext.capabilities.add",
            containers(&adding),
            quoted(which)
        ));
    }
    if parts.is_empty() {
        return None;
    }
    found("unrestricted capabilities", parts.join("; "))
}

fn proc_mount(pod: &Pod<'_>) -> Option<Finding> {
    let of = |c: &Value| c["securityContext"]["procMount"].text().to_owned();
    let is_bad = |c: &Value| !matches!(of(c).as_str(), "" | "Default");
    let bad = pod.names(is_bad);
    if bad.is_empty() {
        return None;
    }
    let values: BTreeSet<String> = pod.containers().filter(|c| is_bad(c)).map(of).collect();
    found(
        "procMount",
        format!(
            "{} must not set securityContext.procMount to {}",
            containers(&bad),
            quoted(values.iter().map(String::as_str))
        ),
    )
}

fn selinux(pod: &Pod<'_>) -> Option<Finding> {
    let allowed = |type_: &str| match type_ {
        "" | "container_t" | "container_init_t" | "container_kvm_t" => true,
        "container_engine_t" => pod.minor >= 31,
        _ => false,
    };
    let is_bad = |security: &Value| {
        let options = &security["seLinuxOptions"];
        !allowed(options["type"].text())
            || !options["user"].text().is_empty()
            || !options["role"].text().is_empty()
    };
    let by_pod = is_bad(pod.security());
    let bad = pod.names(|c| is_bad(&c["securityContext"]));
    if !by_pod && bad.is_empty() {
        return None;
    }
    let all = || {
        std::iter::once(pod.security())
            .chain(pod.containers().map(|c| &c["securityContext"]))
            .map(|s| &s["seLinuxOptions"])
    };
    let types: BTreeSet<&str> = all()
        .map(|o| o["type"].text())
        .filter(|t| !allowed(t))
        .collect();
    let mut data = Vec::new();
    if !types.is_empty() {
        let s = if types.len() == 1 { "" } else { "s" };
        data.push(format!("type{s} {}", quoted(types)));
    }
    for field in ["user", "role"] {
        if all().any(|o| !o[field].text().is_empty()) {
            data.push(format!("{field} may not be set"));
        }
    }
    found(
        "seLinuxOptions",
        format!(
            "{} set forbidden securityContext.seLinuxOptions: {}",
            setters(by_pod, &bad),
            data.join("; ")
        ),
    )
}

fn seccomp_baseline(pod: &Pod<'_>) -> Option<Finding> {
    let unconfined = |security: &Value| security["seccompProfile"]["type"] == "Unconfined";
    let by_pod = unconfined(pod.security());
    let bad = pod.names(|c| unconfined(&c["securityContext"]));
    if !by_pod && bad.is_empty() {
        return None;
    }
    found(
        "seccompProfile",
        format!(
            "{} must not set securityContext.seccompProfile.type to \"Unconfined\"",
            setters(by_pod, &bad)
        ),
    )
}

fn seccomp_restricted(pod: &Pod<'_>) -> Option<Finding> {
    if pod.minor < 19 || (pod.is_windows() && pod.minor >= 25) {
        return None;
    }
    let type_ = |security: &Value| security["seccompProfile"]["type"].text().to_owned();
    let is_good = |t: &str| matches!(t, "RuntimeDefault" | "Localhost");
    let own = type_(pod.security());
    let by_pod = !own.is_empty() && !is_good(&own);
    let bad = pod.names(|c| {
        let t = type_(&c["securityContext"]);
        !t.is_empty() && !is_good(&t)
    });
    if by_pod || !bad.is_empty() {
        let values: BTreeSet<String> = std::iter::once(own)
            .chain(pod.containers().map(|c| type_(&c["securityContext"])))
            .filter(|t| !t.is_empty() && !is_good(t))
            .collect();
        return found(
            "seccompProfile",
            format!(
                "{} must not set securityContext.seccompProfile.type to {}",
                setters(by_pod, &bad),
                quoted(values.iter().map(String::as_str))
            ),
        );
    }
    let missing = pod.names(|c| type_(&c["securityContext"]).is_empty());
    if !own.is_empty() || missing.is_empty() {
        return None;
    }
    found(
        "seccompProfile",
        format!(
            "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
            containers(&missing)
        ),
    )
}

fn sysctls(pod: &Pod<'_>) -> Option<Finding> {
    let safe = |name: &str| {
        SAFE_SYSCTLS
            .iter()
            .any(|(known, since)| *known == name && *since <= pod.minor)
    };
    let bad: BTreeSet<&str> = pod.security()["sysctls"]
        .items()
        .iter()
        .map(|s| s["name"].text())
        .filter(|name| !safe(name))
        .collect();
    if bad.is_empty() {
        return None;
    }
    let bad: Vec<&str> = bad.into_iter().collect();
    found("forbidden sysctls", bad.join(", "))
}

fn host_process(pod: &Pod<'_>) -> Option<Finding> {
    let is = |security: &Value| security["windowsOptions"]["hostProcess"] == true;
    let by_pod = is(pod.security());
    let bad = pod.names(|c| is(&c["securityContext"]));
    if !by_pod && bad.is_empty() {
        return None;
    }
    found(
        "hostProcess",
        format!(
            "{} must not set securityContext.windowsOptions.hostProcess=true",
            setters(by_pod, &bad)
        ),
    )
}

fn app_armor(pod: &Pod<'_>) -> Option<Finding> {
    let unconfined = |security: &Value| security["appArmorProfile"]["type"] == "Unconfined";
    let by_pod = unconfined(pod.security());
    let bad = pod.names(|c| unconfined(&c["securityContext"]));
    let mut parts = Vec::new();
    if by_pod || !bad.is_empty() {
        parts.push(format!(
            "{} must not set AppArmor profile type to \"Unconfined\"",
            setters(by_pod, &bad)
        ));
    }
    let annotations: Vec<String> = pod.metadata["annotations"]
        .entries()
        .filter(|(key, value)| {
            let value = value.text();
            key.starts_with(APP_ARMOR_ANNOTATION)
                && !value.is_empty()
                && value != "runtime/default"
                && !value.starts_with("localhost/")
        })
        .map(|(key, value)| format!("{key}={:?}", value.text()))
        .collect();
    if !annotations.is_empty() {
        let s = if annotations.len() == 1 { "" } else { "s" };
        parts.push(format!("annotation{s} {}", annotations.join(", ")));
    }
    if parts.is_empty() {
        return None;
    }
    found(
        if parts.len() + bad.len() + annotations.len() > 2 {
            "forbidden AppArmor profiles"
        } else {
            "forbidden AppArmor profile"
        },
        parts.join(", "),
    )
}

fn privilege_escalation(pod: &Pod<'_>) -> Option<Finding> {
    if pod.minor < 8 || (pod.is_windows() && pod.minor >= 25) {
        return None;
    }
    let bad = pod.names(|c| c["securityContext"]["allowPrivilegeEscalation"] != false);
    if bad.is_empty() {
        return None;
    }
    found(
        "allowPrivilegeEscalation != false",
        format!(
            "{} must set securityContext.allowPrivilegeEscalation=false",
            containers(&bad)
        ),
    )
}

fn restricted_volumes(pod: &Pod<'_>) -> Option<Finding> {
    let type_ = |volume: &Value| -> String {
        volume
            .entries()
            .find(|(key, value)| *key != "name" && !value.is_null())
            .map_or_else(|| "unknown".to_owned(), |(key, _)| key.clone())
    };
    let bad: Vec<(&str, String)> = pod.spec["volumes"]
        .items()
        .iter()
        .map(|v| (v["name"].text(), type_(v)))
        .filter(|(_, t)| !RESTRICTED_VOLUMES.contains(&t.as_str()))
        .collect();
    if bad.is_empty() {
        return None;
    }
    let names: Vec<&str> = bad.iter().map(|(name, _)| *name).collect();
    let types: BTreeSet<&str> = bad.iter().map(|(_, t)| t.as_str()).collect();
    let (uses, s) = (
        if names.len() == 1 { "uses" } else { "use" },
        if types.len() == 1 { "" } else { "s" },
    );
    found(
        "restricted volume types",
        format!(
            "{} {uses} restricted volume type{s} {}",
            named("volume", &names),
            quoted(types)
        ),
    )
}

fn run_as_non_root(pod: &Pod<'_>) -> Option<Finding> {
    let field = |security: &Value| security["runAsNonRoot"].as_bool();
    let own = field(pod.security());
    let bad = pod.names(|c| field(&c["securityContext"]) == Some(false));
    let missing = pod.names(|c| field(&c["securityContext"]).is_none());
    let by_pod = own == Some(false);
    if !bad.is_empty() || (by_pod && !missing.is_empty()) {
        return found(
            "runAsNonRoot != true",
            format!(
                "{} must not set securityContext.runAsNonRoot=false",
                setters(by_pod, &bad)
            ),
        );
    }
    if own.is_some() || missing.is_empty() {
        return None;
    }
    found(
        "runAsNonRoot != true",
        format!(
            "pod or {} must set securityContext.runAsNonRoot=true",
            containers(&missing)
        ),
    )
}

fn run_as_user(pod: &Pod<'_>) -> Option<Finding> {
    if pod.minor < 23 {
        return None;
    }
    let is_root = |security: &Value| security["runAsUser"] == 0;
    let by_pod = is_root(pod.security());
    let bad = pod.names(|c| is_root(&c["securityContext"]));
    if !by_pod && bad.is_empty() {
        return None;
    }
    found(
        "runAsUser=0",
        format!("{} must not set runAsUser=0", setters(by_pod, &bad)),
    )
}

/// A pod under the newest version of the standards.
#[must_use]
pub fn latest<'a>(metadata: &'a Value, spec: &'a Value) -> Pod<'a> {
    Pod {
        metadata,
        spec,
        minor: LATEST,
    }
}
