//! What the runtime asks: environment variables and the network configuration on standard input.

use std::path::PathBuf;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::json;

/// Versions of the specification that this plugin speaks.
pub(crate) const VERSIONS: [&str; 4] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0"];
/// File name for [`conflist`]: runtimes take the first by name.
pub const CONFLIST_NAME: &str = "10-balsa.conflist";
/// The pods' MTU when the configuration does not say.
const DEFAULT_MTU: u32 = 1450;

/// A failure, with its code from the CNI specification.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The runtime speaks a version that we don't.
    #[error("incompatible CNI version {0}: this plugin speaks {versions}", versions = VERSIONS.join(", "))]
    Version(String),
    /// An environment variable is missing or makes no sense.
    #[error("invalid environment: {0}")]
    Environment(String),
    /// The network configuration is not JSON, or not ours.
    #[error("cannot read the network configuration: {0}")]
    Decode(#[from] serde_json::Error),
    /// The network configuration lacks something.
    #[error("invalid network configuration: {0}")]
    Configuration(String),
    /// No address to give, or the table of addresses is unusable.
    #[error(transparent)]
    Address(#[from] balsa_ipam::Error),
    /// The kernel refused.
    #[error("setting up the network of container {container}: {source}")]
    Network {
        /// Container id.
        container: String,
        /// What the kernel said.
        #[source]
        source: balsa_netlink::Error,
    },
    /// `CHECK` found something missing.
    #[error("the network of container {container} is damaged: {what}")]
    Damaged {
        /// Container id.
        container: String,
        /// What is missing.
        what: String,
    },
}

impl Error {
    /// The specification's error code; 100 and more are the plugin's own.
    pub(crate) fn code(&self) -> u32 {
        match self {
            Self::Version(_) => 1,
            Self::Environment(_) => 4,
            Self::Decode(_) => 6,
            Self::Configuration(_) => 7,
            Self::Address(balsa_ipam::Error::Full { .. }) => 100,
            Self::Address(balsa_ipam::Error::Io { .. }) => 5,
            Self::Network { .. } => 101,
            Self::Damaged { .. } => 102,
        }
    }
}

/// The container that a command is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// Container (sandbox) id.
    pub container: String,
    /// Its network namespace; for `DEL` it may be gone.
    pub netns: Option<PathBuf>,
    /// Interface name inside.
    pub interface: String,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    Add(Target),
    Del(Target),
    Check(Target),
    Version,
}

/// A request of the runtime.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub command: Command,
    pub version: String,
    /// The plugin was called as type `loopback`.
    pub loopback: bool,
    pub pod_cidr: Option<IpNet>,
    pub mtu: u32,
    pub data_dir: PathBuf,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NetConf {
    cni_version: Option<String>,
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<IpNet>,
    mtu: Option<u32>,
    data_dir: Option<PathBuf>,
}

impl Request {
    /// Reads a request.
    pub fn parse(env: &dyn Fn(&str) -> Option<String>, input: &[u8]) -> Result<Self, Error> {
        let command = env("CNI_COMMAND").unwrap_or_default();
        if command == "VERSION" {
            let version = version_of(input).unwrap_or_default();
            let nothing = PathBuf::new();
            let command = Command::Version;
            return Ok(Self {
                command,
                version,
                loopback: false,
                pod_cidr: None,
                mtu: DEFAULT_MTU,
                data_dir: nothing,
            });
        }
        let conf: NetConf = serde_json::from_slice(input)?;
        let version = conf.cni_version.unwrap_or_else(|| "0.3.0".to_owned());
        if !VERSIONS.contains(&version.as_str()) {
            return Err(Error::Version(version));
        }
        let required = |name: &str| {
            env(name)
                .filter(|v| !v.is_empty())
                .ok_or_else(|| Error::Environment(format!("{name} is not set")))
        };
        let target = |netns: Option<PathBuf>| -> Result<Target, Error> {
            Ok(Target {
                container: required("CNI_CONTAINERID")?,
                netns,
                interface: interface(required("CNI_IFNAME")?)?,
            })
        };
        let netns = || required("CNI_NETNS").map(|n| Some(PathBuf::from(n)));
        let command = match command.as_str() {
            "ADD" => Command::Add(target(netns()?)?),
            "DEL" => Command::Del(target(netns().unwrap_or_default())?),
            "CHECK" => Command::Check(target(netns()?)?),
            other => {
                return Err(Error::Environment(format!(
                    "CNI_COMMAND is {other:?}, not ADD, DEL, CHECK or VERSION"
                )));
            }
        };
        let loopback = conf.kind == "loopback";
        if !loopback && conf.pod_cidr.is_none() && matches!(command, Command::Add(_)) {
            return Err(Error::Configuration(
                "podCIDR is missing: the node has no pod addresses yet".to_owned(),
            ));
        }
        Ok(Self {
            command,
            version,
            loopback,
            pod_cidr: conf.pod_cidr,
            mtu: conf.mtu.unwrap_or(DEFAULT_MTU),
            data_dir: conf
                .data_dir
                .unwrap_or_else(|| PathBuf::from("/var/lib/balsa/cni")),
        })
    }
}

/// The version that a configuration asks for, if it can be read at all.
pub(crate) fn version_of(input: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(input).ok()?;
    value.get("cniVersion")?.as_str().map(str::to_owned)
}

/// The kernel's limits on interface names.
fn interface(name: String) -> Result<String, Error> {
    let fits = name.len() <= 15 && !name.contains(['/', ':', ' ']) && name != "." && name != "..";
    if fits {
        Ok(name)
    } else {
        Err(Error::Environment(format!(
            "CNI_IFNAME {name:?} is no interface name"
        )))
    }
}

/// What the conflist says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConflistParams {
    /// The node's pod CIDR.
    pub pod_cidr: IpNet,
    /// The pods' MTU in bytes.
    pub mtu: u32,
    /// Folder for the table of addresses, the same as the agent's [`balsa_ipam::Ipam`].
    pub data_dir: PathBuf,
}

/// The network configuration list for the runtime. Write it under [`CONFLIST_NAME`] once the node's network
/// stands: its presence is what makes the runtime report the network as ready.
pub fn conflist(params: &ConflistParams) -> String {
    let list = json!({
        "cniVersion": "1.0.0",
        "name": "balsa",
        "plugins": [{
            "type": PLUGIN_TYPE,
            "podCIDR": params.pod_cidr,
            "mtu": params.mtu,
            "dataDir": params.data_dir,
        }],
    });
    format!("{list:#}\n")
}

/// The plugin's `type`: the runtime looks for a program of this name.
const PLUGIN_TYPE: &str = "balsa-cni";
