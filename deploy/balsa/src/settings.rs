//! Settings from the file, below those from flags and the environment.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use balsa_server::Settings;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tracing::Instrument as _;

/// Where settings are looked for when `--config` is not given.
pub const FILE: &str = "/etc/balsa/config.yaml";

/// What a settings file may say of the node agent beside what concerns servers too.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NodeSettings {
    /// Socket of a container runtime to use instead of an own containerd.
    #[arg(long, env = "BALSA_CRI_ENDPOINT")]
    pub cri_endpoint: Option<PathBuf>,
    /// The containerd program [default: containerd in PATH].
    #[arg(long, env = "BALSA_CONTAINERD")]
    pub containerd: Option<PathBuf>,
    /// Cgroup that pods are made in, below each controller's root [default: /balsa].
    #[arg(long, env = "BALSA_CGROUP_ROOT")]
    pub cgroup_root: Option<String>,
    /// Folder of manifests of static pods, which run on this node whatever the API says
    /// [default: DATA_DIR/manifests].
    #[arg(long, env = "BALSA_POD_MANIFEST_PATH")]
    pub pod_manifest_path: Option<PathBuf>,
}

impl NodeSettings {
    /// These settings where they say something, else `below`.
    #[must_use]
    pub fn over(self, below: Self) -> Self {
        Self {
            cri_endpoint: self.cri_endpoint.or(below.cri_endpoint),
            containerd: self.containerd.or(below.containerd),
            cgroup_root: self.cgroup_root.or(below.cgroup_root),
            pod_manifest_path: self.pod_manifest_path.or(below.pod_manifest_path),
        }
    }

    /// Sets what they say in an agent's configuration.
    pub fn configure(self, config: &mut balsa_agent::AgentConfig) {
        use balsa_agent::RuntimeChoice;
        if let Some(endpoint) = self.cri_endpoint {
            config.runtime = RuntimeChoice::Existing { endpoint };
        } else if let Some(containerd) = self.containerd {
            config.runtime = RuntimeChoice::Supervised { containerd };
        }
        if let Some(folder) = self.pod_manifest_path {
            config.static_pods = Some(folder);
        }
        if let Some(cgroup) = self.cgroup_root {
            config.cgroup_root = format!("/{}", cgroup.trim_start_matches('/'));
        }
    }
}

/// A settings file's content. Servers and agents read the same file, so that one file can be handed to all
/// machines: each takes what concerns it.
#[derive(Debug, Clone, Default)]
pub struct File {
    /// What concerns servers, or servers and agents.
    pub server: Settings,
    /// What concerns agents only.
    pub node: NodeSettings,
}

/// Reads the settings file. The usual place may be empty, a named file may not.
pub fn read(named: Option<&Path>) -> anyhow::Result<File> {
    let path = named.unwrap_or_else(|| Path::new(FILE));
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(File::default());
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    parse(&text).with_context(|| format!("{} cannot be used", path.display()))
}

fn parse(text: &str) -> anyhow::Result<File> {
    if text.trim().is_empty() {
        return Ok(File::default());
    }
    let all: Map<String, Value> = serde_saphyr::from_str(text)?;
    let names = serde_json::to_value(NodeSettings::default())?;
    let (node, server) = all
        .into_iter()
        .partition(|(name, _)| names.get(name).is_some());
    Ok(File {
        server: section(server)?,
        node: section(node)?,
    })
}

fn section<T: DeserializeOwned>(map: Map<String, Value>) -> anyhow::Result<T> {
    Ok(serde_json::from_value(Value::Object(map))?)
}

/// All problems in one message.
pub fn complain<T>(checked: Result<T, Vec<String>>) -> anyhow::Result<T> {
    match checked {
        Ok(config) => Ok(config),
        Err(problems) => bail!("the settings cannot be used:\n  {}", problems.join("\n  ")),
    }
}

/// This machine's name.
pub fn hostname() -> anyhow::Result<String> {
    let name = nix::unistd::gethostname().context("cannot read the host name")?;
    Ok(name.to_string_lossy().into_owned())
}

/// A runtime, and a token that SIGTERM or SIGINT cancels; a second signal ends the process at once.
pub fn run_until_signal<F>(
    work: impl FnOnce(tokio_util::sync::CancellationToken) -> F,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(async {
        let stop = tokio_util::sync::CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let small = crate::memory::keep_small(stop.clone());
        tokio::spawn(small.instrument(tracing::info_span!("memory")));
        let token = stop.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                if token.is_cancelled() {
                    std::process::exit(130);
                }
                tracing::info!("stopping; a second signal ends this at once");
                token.cancel();
            }
        });
        work(stop).await
    });
    // What still runs in the background has had its time.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    outcome
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_file_serves_servers_and_agents() {
        let file = parse("join: [10.0.0.1]\nnoAgent: true\ncriEndpoint: /run/cri.sock\n").unwrap();
        assert_eq!(file.server.join.unwrap(), ["10.0.0.1"]);
        assert_eq!(file.server.no_agent, Some(true));
        assert_eq!(file.node.cri_endpoint.unwrap(), Path::new("/run/cri.sock"));
    }

    #[test]
    fn a_setting_that_nobody_knows_is_refused_by_name() {
        let error = format!("{:#}", parse("jion: [10.0.0.1]\n").unwrap_err());
        assert!(error.contains("jion"), "{error}");
    }
}
