//! Checks of a pod that depend on nothing but the pod and the node's configuration: kernel settings, and what
//! the runtime can't do.

use k8s_openapi::api::core::v1::{AppArmorProfile, Pod, PodSpec};

use super::Refusal;

/// Kernel settings that are private to a pod and can't harm the node (upstream's safe set).
const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// Prefixes of settings that are private to an IPC namespace.
const IPC: [&str; 4] = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."];

/// The checks' configuration.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gates {
    /// Kernel settings beyond the safe ones that pods may make; `*` at the end stands for anything.
    pub(crate) allowed_sysctls: Vec<String>,
    /// The runtime can keep to the groups that a pod names.
    pub(crate) strict_groups: bool,
    /// The kernel enforces AppArmor profiles.
    pub(crate) apparmor: bool,
}

impl Gates {
    /// May the pod run here at all?
    pub(crate) fn check(&self, _pod: &Pod, spec: &PodSpec) -> Result<(), Refusal> {
        let context = spec.security_context.as_ref();
        for sysctl in context
            .iter()
            .flat_map(|context| context.sysctls.iter().flatten())
        {
            self.check_sysctl(spec, &sysctl.name).map_err(|why| {
                (
                    "SysctlForbidden".to_owned(),
                    format!("forbidden sysctl: {why}"),
                )
            })?;
        }
        let strict = context.and_then(|context| context.supplemental_groups_policy.as_deref());
        if strict == Some("Strict") && !self.strict_groups {
            return Err((
                "SupplementalGroupsPolicyNotSupported".to_owned(),
                "SupplementalGroupsPolicy=Strict is not supported in this node".to_owned(),
            ));
        }
        if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
            return Err((
                "PodOSNotSupported".to_owned(),
                "Failed to admit pod as the OS field doesn't match node OS".to_owned(),
            ));
        }
        if !self.apparmor && wants_apparmor(spec) {
            return Err((
                "AppArmor".to_owned(),
                "Cannot enforce AppArmor: AppArmor is not enabled on the host".to_owned(),
            ));
        }
        Ok(())
    }

    fn check_sysctl(&self, spec: &PodSpec, name: &str) -> Result<(), String> {
        let name = dotted(name);
        let allowed = SAFE.contains(&name.as_str())
            || self.allowed_sysctls.iter().any(|pattern| {
                let pattern = dotted(pattern);
                match pattern.strip_suffix('*') {
                    Some(prefix) => name.starts_with(prefix),
                    None => name == pattern,
                }
            });
        let ipc = IPC.iter().any(|prefix| name.starts_with(prefix));
        if ipc && spec.host_ipc == Some(true) {
            return Err(format!("\"{name}\" not allowed with host ipc enabled"));
        }
        if name.starts_with("net.") && spec.host_network == Some(true) {
            return Err(format!("\"{name}\" not allowed with host net enabled"));
        }
        if allowed {
            Ok(())
        } else {
            Err(format!("\"{name}\" not allowlisted"))
        }
    }
}

/// Is any container to be confined by an AppArmor profile, in so many words?
fn wants_apparmor(spec: &PodSpec) -> bool {
    let confined = |profile: &AppArmorProfile| profile.type_ != "Unconfined";
    let pod = spec
        .security_context
        .as_ref()
        .and_then(|context| context.app_armor_profile.as_ref());
    let containers = spec.init_containers.iter().flatten();
    let own = containers.chain(&spec.containers).any(|container| {
        let context = container.security_context.as_ref();
        context
            .and_then(|context| context.app_armor_profile.as_ref())
            .is_some_and(confined)
    });
    own || pod.is_some_and(confined)
}

/// Does this machine's kernel enforce AppArmor profiles?
pub(crate) fn apparmor_enabled() -> bool {
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    enabled.is_ok_and(|text| text.starts_with('Y'))
}

/// `net/ipv4/x` as `net.ipv4.x`; with slashes as separators, dots are parts of names and stay.
pub(crate) fn dotted(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name.as_bytes().get(at) == Some(&b'/') => name
            .chars()
            .map(|c| match c {
                '/' => '.',
                '.' => '/',
                other => other,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn check(gates: &Gates, name: &str, host_network: bool) -> Result<(), Refusal> {
        let spec: PodSpec = serde_json::from_value(json!({"containers": [],
            "hostNetwork": host_network,
            "securityContext": {"sysctls": [{"name": name, "value": "1"}]}}))
        .unwrap();
        gates.check(&Pod::default(), &spec)
    }

    #[test]
    fn pods_that_the_machine_is_not_made_for_are_refused() {
        let check = |spec: serde_json::Value, apparmor| {
            let spec: PodSpec = serde_json::from_value(spec).unwrap();
            let gates = Gates {
                apparmor,
                ..Gates::default()
            };
            gates
                .check(&Pod::default(), &spec)
                .map_err(|(reason, _)| reason)
        };
        let windows = json!({"containers": [], "os": {"name": "windows"}});
        assert_eq!(check(windows, true), Err("PodOSNotSupported".to_owned()));
        assert!(check(json!({"containers": [], "os": {"name": "linux"}}), false).is_ok());
        let confined = json!({"containers": [{"name": "c",
            "securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}}]});
        assert_eq!(check(confined.clone(), false), Err("AppArmor".to_owned()));
        assert!(check(confined, true).is_ok());
        let free = json!({"containers": [],
            "securityContext": {"appArmorProfile": {"type": "Unconfined"}}});
        assert!(check(free, false).is_ok());
    }

    #[test]
    fn strict_groups_are_refused_where_the_runtime_adds_its_own() {
        let spec: PodSpec = serde_json::from_value(json!({"containers": [],
            "securityContext": {"supplementalGroupsPolicy": "Strict"}}))
        .unwrap();
        let check = |strict_groups| {
            let gates = Gates {
                strict_groups,
                ..Gates::default()
            };
            gates.check(&Pod::default(), &spec)
        };
        assert!(check(true).is_ok());
        let (reason, _) = check(false).unwrap_err();
        assert_eq!(reason, "SupplementalGroupsPolicyNotSupported");
    }

    #[test]
    fn only_safe_or_allowed_kernel_settings_pass() {
        let strict = Gates::default();
        assert!(check(&strict, "kernel.shm_rmid_forced", false).is_ok());
        assert!(check(&strict, "net/ipv4/tcp_syncookies", false).is_ok());
        let (reason, message) = check(&strict, "kernel.msgmax", false).unwrap_err();
        assert_eq!(reason, "SysctlForbidden");
        assert_eq!(
            message,
            "forbidden sysctl: \"kernel.msgmax\" not allowlisted"
        );
        assert!(check(&strict, "net.ipv4.tcp_syncookies", true).is_err());
        let lenient = Gates {
            allowed_sysctls: vec!["kernel.msg*".to_owned()],
            ..Gates::default()
        };
        assert!(check(&lenient, "kernel.msgmax", false).is_ok());
    }
}
