//! What the controllers can be told.

use std::time::Duration;

use ipnet::IpNet;

/// Settings of all controllers.
#[derive(Debug, Clone)]
pub struct Config {
    /// Range that nodes' pod CIDRs are cut from, for example `10.244.0.0/16`.
    pub pod_cidr: IpNet,
    /// Prefix length of a node's pod CIDR.
    pub node_mask: u8,
    /// The cluster CA (PEM), published as `kube-root-ca.crt` in each namespace.
    pub cluster_ca_pem: String,
    /// How soon a node that is not heard of is given up.
    pub failover: Failover,
    /// Keys worked on at once, per controller.
    pub concurrency: usize,
    /// Folder on nodes in which volumes of the `balsa.io/local-path` provisioner are made, unless their class has a
    /// parameter `path`.
    pub local_path_root: String,
    /// Finished pods kept before the oldest are removed.
    pub terminated_pod_threshold: usize,
}

impl Default for Config {
    /// 10.244.0.0/16 in /24s, Kubernetes' default times, no CA.
    fn default() -> Self {
        Self {
            pod_cidr: IpNet::V4(ipnet::Ipv4Net::new_assert(
                std::net::Ipv4Addr::new(10, 244, 0, 0),
                16,
            )),
            node_mask: 24,
            cluster_ca_pem: String::new(),
            failover: Failover::Default,
            concurrency: 8,
            local_path_root: "/var/lib/balsa/storage".into(),
            terminated_pod_threshold: 12_500,
        }
    }
}

/// How soon a node that is not heard of is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Failover {
    /// As Kubernetes: NotReady after 50 s, eviction 300 s later.
    #[default]
    Default,
    /// NotReady after 3 s, eviction 1 s later.
    Fast,
}

impl Failover {
    /// Silence after which a node is called unreachable.
    #[must_use]
    pub fn grace(self) -> Duration {
        match self {
            Failover::Default => Duration::from_secs(50),
            Failover::Fast => Duration::from_secs(3),
        }
    }

    /// How often nodes are looked at (in memory; nothing is read or written by that).
    #[must_use]
    pub fn tick(self) -> Duration {
        match self {
            Failover::Default => Duration::from_secs(1),
            Failover::Fast => Duration::from_millis(200),
        }
    }

    /// Replaces the 300 s that admission gives each pod for unreachable and not-ready nodes. Other values
    /// were chosen by people and stay.
    #[must_use]
    pub fn default_toleration(self) -> Duration {
        match self {
            Failover::Default => Duration::from_secs(300),
            Failover::Fast => Duration::from_secs(1),
        }
    }
}
