//! Settings of a server: flags over environment over file, all checked before the first socket or file
//! is opened.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use balsa_apiserver::authn::OidcSettings;
use balsa_identity::join::check_node_name;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// How soon a silent node is called dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Failover {
    /// Kubernetes' patience: NotReady after 50 s, pods evicted 300 s later.
    #[default]
    Default,
    /// Replacements within about 5 s of a node's death.
    Fast,
}

/// What a file, the environment or flags may say. Everything is optional; [`Settings::over`] merges and
/// [`Settings::check`] makes a [`Config`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// Name of this server; the host name when unset.
    pub name: Option<String>,
    /// Data folder; `/var/lib/balsa`.
    pub data_dir: Option<PathBuf>,
    /// Address that other nodes reach this server at.
    pub address: Option<IpAddr>,
    /// Further names or addresses for the API server's certificate.
    pub san: Option<Vec<String>>,
    /// Servers to join, host or `host:port`; empty makes a new cluster.
    pub join: Option<Vec<String>>,
    /// Join token.
    pub token: Option<String>,
    /// Port of the API (TCP); 6443.
    pub api_port: Option<u16>,
    /// Port of Raft (TCP); 6444.
    pub raft_port: Option<u16>,
    /// Port of the node link (UDP); 6445.
    pub link_port: Option<u16>,
    /// Pod network; `10.244.0.0/16`.
    pub pod_cidr: Option<IpNet>,
    /// Prefix length of each node's share of the pod network; 24.
    pub node_cidr_mask_size: Option<u8>,
    /// Service network; `10.96.0.0/16`.
    pub service_cidr: Option<IpNet>,
    /// DNS service address; the tenth of the service network.
    pub cluster_dns: Option<IpAddr>,
    /// Cluster domain; `cluster.local`.
    pub cluster_domain: Option<String>,
    /// Folder on nodes below which volumes of the built-in storage class are made; `/var/lib/balsa/storage`.
    pub local_path_root: Option<String>,
    /// Which requests the audit log records and how (audit.k8s.io/v1 Policy); without it there is no audit log.
    pub audit_policy_file: Option<PathBuf>,
    /// The audit log, `-` for standard output; `audit.log` in the data folder. A new file is begun at 100 MB, ten
    /// old ones are kept.
    pub audit_log_path: Option<PathBuf>,
    /// How objects are encrypted in the store (apiserver.config.k8s.io/v1 EncryptionConfiguration); without it they
    /// are not.
    pub encryption_provider_config: Option<PathBuf>,
    /// Issuers of tokens whose users may log in, and who may come without credentials
    /// (apiserver.config.k8s.io/v1 AuthenticationConfiguration).
    pub authentication_config: Option<PathBuf>,
    /// One such issuer by a few settings, instead of `authenticationConfig`.
    pub oidc: Option<OidcSettings>,
    /// `default` or `fast`.
    pub failover: Option<Failover>,
    /// Do not run a node agent on this server.
    pub no_agent: Option<bool>,
}

macro_rules! merge {
    ($top:expr, $bottom:expr, $($field:ident),+ $(,)?) => {
        Settings { $($field: $top.$field.or($bottom.$field)),+ }
    };
}

impl Settings {
    /// These settings where they say something, else `below`.
    #[must_use]
    pub fn over(self, below: Self) -> Self {
        merge!(
            self,
            below,
            name,
            data_dir,
            address,
            san,
            join,
            token,
            api_port,
            raft_port,
            link_port,
            pod_cidr,
            node_cidr_mask_size,
            service_cidr,
            cluster_dns,
            cluster_domain,
            local_path_root,
            audit_policy_file,
            audit_log_path,
            encryption_provider_config,
            authentication_config,
            oidc,
            failover,
            no_agent,
        )
    }

    /// Fills in defaults and checks that all of it fits together.
    ///
    /// # Errors
    /// One sentence per problem, naming the setting.
    pub fn check(self, hostname: &str) -> Result<Config, Vec<String>> {
        let mut problems = Vec::new();
        let config = Config {
            name: self.name.unwrap_or_else(|| hostname.to_lowercase()),
            data_dir: self.data_dir.unwrap_or_else(|| PathBuf::from("/var/lib/balsa")),
            address: self.address.unwrap_or_else(|| {
                problems.push(
                    "address: the address that other nodes reach this server at is needed (--address IP)"
                        .to_owned(),
                );
                IpAddr::from(Ipv4Addr::LOCALHOST)
            }),
            san: self.san.unwrap_or_default(),
            join: self.join.unwrap_or_default(),
            token: self.token,
            api_port: self.api_port.unwrap_or(6443),
            raft_port: self.raft_port.unwrap_or(6444),
            link_port: self.link_port.unwrap_or(6445),
            pod_cidr: self.pod_cidr.unwrap_or_else(|| net([10, 244, 0, 0], 16)),
            node_cidr_mask_size: self.node_cidr_mask_size.unwrap_or(24),
            service_cidr: self.service_cidr.unwrap_or_else(|| net([10, 96, 0, 0], 16)),
            cluster_dns: self.cluster_dns,
            cluster_domain: self.cluster_domain.unwrap_or_else(|| "cluster.local".to_owned()),
            local_path_root: self
                .local_path_root
                .unwrap_or_else(|| "/var/lib/balsa/storage".to_owned()),
            audit_policy_file: self.audit_policy_file,
            audit_log_path: self.audit_log_path,
            encryption_provider_config: self.encryption_provider_config,
            authentication_config: self.authentication_config,
            oidc: self.oidc,
            failover: self.failover.unwrap_or_default(),
            no_agent: self.no_agent.unwrap_or(false),
        };
        config.problems(&mut problems);
        if problems.is_empty() {
            Ok(config)
        } else {
            Err(problems)
        }
    }
}

fn net(address: [u8; 4], prefix: u8) -> IpNet {
    // The prefixes given here are valid for IPv4.
    IpNet::new(IpAddr::from(address), prefix).unwrap_or_else(|_| IpNet::from(IpAddr::from(address)))
}

/// Checked settings of one server.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// See [`Settings`].
    pub name: String,
    /// See [`Settings`].
    pub data_dir: PathBuf,
    /// See [`Settings`].
    pub address: IpAddr,
    /// See [`Settings`].
    pub san: Vec<String>,
    /// See [`Settings`].
    pub join: Vec<String>,
    /// See [`Settings`]; never printed.
    #[serde(skip)]
    pub token: Option<String>,
    /// See [`Settings`].
    pub api_port: u16,
    /// See [`Settings`].
    pub raft_port: u16,
    /// See [`Settings`].
    pub link_port: u16,
    /// See [`Settings`].
    pub pod_cidr: IpNet,
    /// See [`Settings`].
    pub node_cidr_mask_size: u8,
    /// See [`Settings`].
    pub service_cidr: IpNet,
    cluster_dns: Option<IpAddr>,
    /// See [`Settings`].
    pub cluster_domain: String,
    /// See [`Settings`].
    pub local_path_root: String,
    /// See [`Settings`].
    pub audit_policy_file: Option<PathBuf>,
    /// See [`Settings`].
    pub audit_log_path: Option<PathBuf>,
    /// See [`Settings`].
    pub encryption_provider_config: Option<PathBuf>,
    /// See [`Settings`].
    pub authentication_config: Option<PathBuf>,
    /// See [`Settings`].
    pub oidc: Option<OidcSettings>,
    /// See [`Settings`].
    pub failover: Failover,
    /// See [`Settings`].
    pub no_agent: bool,
}

impl Config {
    /// Address of the cluster's DNS Service: as set, else the tenth of the service network.
    #[must_use]
    pub fn cluster_dns(&self) -> IpAddr {
        self.cluster_dns
            .unwrap_or_else(|| nth(&self.service_cidr, 10))
    }

    /// Address of the `kubernetes` Service: the first of the service network.
    #[must_use]
    pub fn kubernetes_service(&self) -> IpAddr {
        nth(&self.service_cidr, 1)
    }

    /// Where others reach this server's API.
    #[must_use]
    pub fn api_address(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.api_port)
    }

    /// Where others reach this server's Raft port.
    #[must_use]
    pub fn raft_address(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.raft_port)
    }

    /// Where agents reach this server's node link.
    #[must_use]
    pub fn link_address(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.link_port)
    }

    fn problems(&self, problems: &mut Vec<String>) {
        if check_node_name(&self.name).is_err() {
            problems.push(format!(
                "name: {:?} is no valid node name (lower-case letters, digits, '-' and '.')",
                self.name
            ));
        }
        if self.address.is_unspecified() || self.address.is_multicast() {
            problems.push(format!(
                "address: {} is no address of one machine",
                self.address
            ));
        }
        let ports = [self.api_port, self.raft_port];
        if ports[0] == ports[1] || ports.contains(&0) || self.link_port == 0 {
            problems.push("apiPort and raftPort must differ, and no port may be 0".to_owned());
        }
        if overlap(&self.pod_cidr, &self.service_cidr) {
            problems.push(format!(
                "podCidr {} and serviceCidr {} overlap",
                self.pod_cidr, self.service_cidr
            ));
        }
        if !self.local_path_root.starts_with('/') {
            problems.push(format!(
                "localPathRoot: {:?} must start with /",
                self.local_path_root
            ));
        }
        // A node needs an address for its bridge and one for a pod beside those of network and broadcast.
        if !(self.pod_cidr.prefix_len()..=30).contains(&self.node_cidr_mask_size) {
            problems.push(format!(
                "nodeCidrMaskSize: must be from {} (podCidr's) to 30, not {}",
                self.pod_cidr.prefix_len(),
                self.node_cidr_mask_size
            ));
        }
        for (what, cidr) in [
            ("podCidr", &self.pod_cidr),
            ("serviceCidr", &self.service_cidr),
        ] {
            if cidr.contains(&self.address) {
                problems.push(format!("address: {} lies in {what} {cidr}", self.address));
            }
        }
        if !self.service_cidr.contains(&self.cluster_dns()) {
            problems.push(format!(
                "clusterDns: {} is not in serviceCidr {}",
                self.cluster_dns(),
                self.service_cidr
            ));
        }
        if self.oidc.is_some() && self.authentication_config.is_some() {
            problems.push(
                "oidc: cannot be set together with authenticationConfig; name the issuer there"
                    .to_owned(),
            );
        }
        if !self.join.is_empty() && self.token.is_none() {
            problems.push("token: to join a cluster a token is needed (--token)".to_owned());
        }
    }
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

fn nth(net: &IpNet, n: u8) -> IpAddr {
    match net.network() {
        IpAddr::V4(ip) => IpAddr::from(Ipv4Addr::from(u32::from(ip) + u32::from(n))),
        IpAddr::V6(ip) => IpAddr::from(std::net::Ipv6Addr::from(u128::from(ip) + u128::from(n))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn settings() -> Settings {
        Settings {
            address: "192.0.2.1".parse().ok(),
            ..Settings::default()
        }
    }

    #[test]
    fn defaults_are_those_of_the_design() {
        let config = settings().check("Node-1").unwrap();
        assert_eq!(config.name, "node-1");
        assert_eq!(config.cluster_dns().to_string(), "10.96.0.10");
        assert_eq!(config.kubernetes_service().to_string(), "10.96.0.1");
        assert_eq!(config.raft_address().to_string(), "192.0.2.1:6444");
    }

    #[test]
    fn flags_win_over_the_file_where_they_say_something() {
        let file = Settings {
            api_port: Some(7000),
            failover: Some(Failover::Fast),
            ..Settings::default()
        };
        let flags = Settings {
            api_port: Some(8000),
            ..settings()
        };
        let config = flags.over(file).check("h").unwrap();
        assert_eq!((config.api_port, config.failover), (8000, Failover::Fast));
    }

    #[test]
    fn every_problem_is_named_with_its_setting() {
        let bad = Settings {
            name: Some("Bad_Name".into()),
            join: Some(vec!["h".into()]),
            service_cidr: "10.244.0.0/24".parse().ok(),
            ..Settings::default()
        };
        let problems = bad.check("h").unwrap_err().join("\n");
        for word in ["name:", "address:", "token:", "overlap"] {
            assert!(problems.contains(word), "{word} in {problems}");
        }
    }

    #[test]
    fn an_unknown_setting_in_a_file_is_refused() {
        let parsed: Result<Settings, _> = serde_json::from_str(r#"{"apiPrt": 1}"#);
        assert!(parsed.unwrap_err().to_string().contains("apiPrt"));
    }
}
