//! What a pod's sandbox is made from, and what its processes resolve names with.

use std::net::IpAddr;

use balsa_cri::{Dns, IdRange, Map, Namespaces, SandboxConfig};
use k8s_openapi::api::core::v1::{Pod, PodSpec};

use super::capacity::dotted;
use super::{resources, security};
use crate::cgroups::{self, Cgroups};
use crate::config::AgentConfig;

/// Labels by which kubelet, and so every tool, finds the containers of a pod.
pub(crate) mod labels {
    /// Pod name.
    pub(crate) const POD_NAME: &str = "io.kubernetes.pod.name";
    /// Pod namespace.
    pub(crate) const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    /// Pod UID.
    pub(crate) const POD_UID: &str = "io.kubernetes.pod.uid";
    /// Container name.
    pub(crate) const CONTAINER_NAME: &str = "io.kubernetes.container.name";
    /// Annotation: restart count.
    pub(crate) const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
    /// Annotation: digest of the spec that it was made from.
    pub(crate) const HASH: &str = "io.kubernetes.container.hash";
    /// Annotation: where its termination message is, on the node.
    pub(crate) const MESSAGE_PATH: &str = "balsa.io/termination-message-path";
    /// Annotation: whether its log may stand in for the message.
    pub(crate) const MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
}

/// Labels of a pod's sandbox and containers.
pub(crate) fn pod_labels(pod: &Pod) -> Map {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    Map::from([
        (labels::POD_NAME.to_owned(), text(&pod.metadata.name)),
        (
            labels::POD_NAMESPACE.to_owned(),
            text(&pod.metadata.namespace),
        ),
        (labels::POD_UID.to_owned(), text(&pod.metadata.uid)),
    ])
}

/// The host name that a pod sees, and its subdomain if it has one.
pub(crate) fn hostname(pod: &Pod, spec: &PodSpec) -> String {
    if let Some(name) = &spec.hostname_override {
        return name.clone();
    }
    let name = spec
        .hostname
        .clone()
        .filter(|name| !name.is_empty())
        .or_else(|| pod.metadata.name.clone())
        .unwrap_or_default();
    // 63 bytes is the kernel's and DNS's limit; a pod's name may be longer.
    let mut short: String = name.chars().take(63).collect();
    while short.ends_with(['-', '.']) {
        short.pop();
    }
    short
}

/// The subdomain of a pod that has one.
fn subdomain(spec: &PodSpec) -> Option<&str> {
    // A name that overrides all others is the whole name.
    let own = spec.subdomain.as_deref().filter(|name| !name.is_empty());
    own.filter(|_| spec.hostname_override.is_none())
}

/// The longest host name that the kernel takes.
const MAX_HOSTNAME: usize = 64;

/// The host name that the sandbox gets: the whole domain name with `setHostnameAsFQDN`.
fn kernel_hostname(pod: &Pod, spec: &PodSpec, domain: &str) -> Result<String, String> {
    let host = hostname(pod, spec);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    match subdomain(spec) {
        Some(subdomain) if spec.set_hostname_as_fqdn == Some(true) => {
            let full = format!("{host}.{subdomain}.{namespace}.svc.{domain}");
            if full.len() > MAX_HOSTNAME {
                return Err(format!(
                    "Failed to construct FQDN from Pod hostname and cluster domain, FQDN {full} is too long ({MAX_HOSTNAME} characters is the max, {} characters requested)",
                    full.len()
                ));
            }
            Ok(full)
        }
        _ => Ok(host),
    }
}

/// What a sandbox is made from, besides the pod's spec.
pub(crate) struct Surroundings<'a> {
    pub(crate) config: &'a AgentConfig,
    pub(crate) node_dns: &'a Dns,
    pub(crate) cgroups: &'a Cgroups,
    /// Handler of the pod's RuntimeClass; empty for the usual one.
    pub(crate) runtime_handler: &'a str,
    /// Ids of the pod's own user namespace.
    pub(crate) users: Option<IdRange>,
}

/// What to make the sandbox from; the error is for people (`FailedCreatePodSandBox`).
pub(crate) fn config(
    pod: &Pod,
    spec: &PodSpec,
    around: &Surroundings<'_>,
    attempt: u32,
) -> Result<SandboxConfig, String> {
    let config = around.config;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let (name, namespace, uid) = (
        text(&pod.metadata.name),
        text(&pod.metadata.namespace),
        text(&pod.metadata.uid),
    );
    let context = spec.security_context.clone().unwrap_or_default();
    let host_network = balsa_pod::spec::host_network(spec);
    let host = kernel_hostname(pod, spec, &config.cluster_domain)?;
    let settings = cgroups::pod_settings(pod, spec, config.pod_pids_limit);
    let mut labels: Map = pod.metadata.labels.clone().unwrap_or_default();
    labels.extend(pod_labels(pod));
    Ok(SandboxConfig {
        hostname: if host_network { String::new() } else { host },
        log_directory: config
            .paths()
            .pod_logs(&namespace, &name, &uid)
            .display()
            .to_string(),
        dns: Some(dns(spec, &namespace, config, around.node_dns)),
        // Host ports are the proxy's work: it sees them in the pod's spec.
        port_mappings: Vec::new(),
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        cgroup_parent: around.cgroups.pod(balsa_pod::qos::class(spec), &uid),
        namespaces: Namespaces {
            users: around.users,
            ..security::sandbox_namespaces(spec)
        },
        privileged: security::any_privileged(spec),
        supplemental_groups: context.supplemental_groups.clone().unwrap_or_default(),
        run_as_user: context.run_as_user,
        run_as_group: context.run_as_group,
        seccomp: security::seccomp(context.seccomp_profile.as_ref(), &config.paths().seccomp()),
        selinux: context.se_linux_options.as_ref().map(security::selinux),
        runtime_handler: around.runtime_handler.to_owned(),
        resources: resources::pod(&settings),
        overhead: resources::overhead(spec),
        sysctls: context
            .sysctls
            .iter()
            .flatten()
            .map(|sysctl| (dotted(&sysctl.name), sysctl.value.clone()))
            .collect(),
        name,
        namespace,
        uid,
        attempt,
        labels,
    })
}

/// Most name servers and search domains that resolvers take.
const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;

/// What a pod's processes resolve names with, by its `dnsPolicy` and `dnsConfig`.
fn dns(spec: &PodSpec, namespace: &str, config: &AgentConfig, node: &Dns) -> Dns {
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let host_network = balsa_pod::spec::host_network(spec);
    let cluster = match policy {
        "None" | "Default" => None,
        "ClusterFirst" if host_network => None,
        _ => config.cluster_dns,
    };
    let mut dns = match (cluster, policy) {
        (_, "None") => Dns::default(),
        (Some(server), _) => cluster_dns(server, namespace, &config.cluster_domain, node),
        (None, _) => node.clone(),
    };
    let Some(custom) = &spec.dns_config else {
        dns.servers.truncate(MAX_SERVERS);
        dns.searches.truncate(MAX_SEARCHES);
        return dns;
    };
    dns.servers
        .extend(custom.nameservers.clone().unwrap_or_default());
    dns.searches
        .extend(custom.searches.clone().unwrap_or_default());
    for option in custom.options.iter().flatten() {
        let name = option.name.clone().unwrap_or_default();
        dns.options
            .retain(|known| known.split(':').next() != Some(name.as_str()));
        dns.options.push(match &option.value {
            Some(value) => format!("{name}:{value}"),
            None => name,
        });
    }
    let mut seen = std::collections::HashSet::new();
    dns.servers.retain(|server| seen.insert(server.clone()));
    seen.clear();
    dns.searches.retain(|search| seen.insert(search.clone()));
    dns.servers.truncate(MAX_SERVERS);
    dns.searches.truncate(MAX_SEARCHES);
    dns
}

fn cluster_dns(server: IpAddr, namespace: &str, domain: &str, node: &Dns) -> Dns {
    let mut searches = vec![
        format!("{namespace}.svc.{domain}"),
        format!("svc.{domain}"),
        domain.to_owned(),
    ];
    searches.extend(node.searches.iter().cloned());
    Dns {
        servers: vec![server.to_string()],
        searches,
        options: vec!["ndots:5".to_owned()],
    }
}

/// The node's own resolver configuration.
pub(crate) fn parse_resolv_conf(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => dns.servers.extend(words.next().map(str::to_owned)),
            Some("search") => {
                dns.searches = words
                    .filter(|word| *word != ".")
                    .map(str::to_owned)
                    .collect()
            }
            Some("options") => dns.options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    dns
}

/// The managed `/etc/hosts` of a pod with its own network.
pub(crate) fn hosts_file(pod: &Pod, spec: &PodSpec, ips: &[String], domain: &str) -> String {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    let host = hostname(pod, spec);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    for ip in ips {
        match subdomain(spec) {
            Some(subdomain) => {
                text.push_str(&format!(
                    "{ip}\t{host}.{subdomain}.{namespace}.svc.{domain}\t{host}\n"
                ));
            }
            None => text.push_str(&format!("{ip}\t{host}\n")),
        }
    }
    text.push_str(&host_aliases(spec));
    text
}

/// The entries that a pod asks for in `hostAliases`.
pub(crate) fn host_aliases(spec: &PodSpec) -> String {
    let aliases = spec.host_aliases.as_deref().unwrap_or_default();
    if aliases.is_empty() {
        return String::new();
    }
    let mut text = String::from("\n# Entries added by HostAliases.\n");
    for alias in aliases {
        text.push_str(&format!(
            "{}\t{}\n",
            alias.ip,
            alias.hostnames.clone().unwrap_or_default().join("\t")
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        let metadata = serde_json::json!({"name": "web", "namespace": "shop", "uid": "u1"});
        serde_json::from_value(serde_json::json!({"metadata": metadata, "spec": spec})).unwrap()
    }

    fn sandbox(spec: serde_json::Value) -> SandboxConfig {
        let pod = pod(spec);
        let node_dns = parse_resolv_conf("# x\nnameserver 9.9.9.9\nsearch lan\n");
        let around = Surroundings {
            config: &AgentConfig::new("a", [10, 0, 0, 1].into(), "/d"),
            node_dns: &node_dns,
            cgroups: &Cgroups::new("/balsa"),
            runtime_handler: "",
            users: None,
        };
        config(&pod, pod.spec.as_ref().unwrap(), &around, 0).unwrap()
    }

    #[test]
    fn names_resolve_in_the_cluster_first() {
        let dns = sandbox(serde_json::json!({"containers": []})).dns.unwrap();
        assert_eq!(dns.servers, ["10.96.0.10"]);
        assert_eq!(
            dns.searches,
            [
                "shop.svc.cluster.local",
                "svc.cluster.local",
                "cluster.local",
                "lan"
            ]
        );
        assert_eq!(dns.options, ["ndots:5"]);
    }

    #[test]
    fn the_policy_and_the_pods_own_configuration_hold() {
        let node = sandbox(serde_json::json!({"containers": [], "dnsPolicy": "Default"}))
            .dns
            .unwrap();
        assert_eq!(node.servers, ["9.9.9.9"]);
        let own = serde_json::json!({"containers": [], "dnsPolicy": "None",
            "dnsConfig": {"nameservers": ["1.1.1.1"], "options": [{"name": "ndots", "value": "2"}]}});
        let own = sandbox(own).dns.unwrap();
        assert_eq!(
            (own.servers, own.options),
            (vec!["1.1.1.1".to_owned()], vec!["ndots:2".to_owned()])
        );
        let host = sandbox(serde_json::json!({"containers": [], "hostNetwork": true}));
        assert_eq!(
            (
                host.dns.unwrap().servers[0].as_str(),
                host.hostname.as_str()
            ),
            ("9.9.9.9", "")
        );
    }

    #[test]
    fn the_pod_knows_itself_and_its_aliases() {
        let pod = pod(serde_json::json!({"containers": [], "subdomain": "db",
            "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}));
        let text = hosts_file(
            &pod,
            pod.spec.as_ref().unwrap(),
            &["10.244.0.5".to_owned()],
            "cluster.local",
        );
        assert!(text.contains("10.244.0.5\tweb.db.shop.svc.cluster.local\tweb\n"));
        assert!(text.ends_with("1.2.3.4\ta\tb\n"));
    }
}
