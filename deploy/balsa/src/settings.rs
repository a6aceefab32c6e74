//! Settings from the file, below those from flags and the environment.

use std::path::{Path, PathBuf};
use std::time::Duration;

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
    /// Folder that drivers and plugins expect the agent's sockets and volumes in; hostPath volumes below it are
    /// those of the data folder [default: /var/lib/kubelet].
    #[arg(long, env = "BALSA_KUBELET_DIR")]
    pub kubelet_dir: Option<PathBuf>,
    /// When pods are thrown out for want of something, as in memory.available<500Mi,nodefs.available<10%
    /// [default: memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,imagefs.available<15%,
    /// imagefs.inodesFree<5%,pid.available<5%].
    #[arg(long, env = "BALSA_EVICTION_HARD")]
    pub eviction_hard: Option<String>,
    /// The same with time to recover, as in memory.available<1Gi [default: none].
    #[arg(long, env = "BALSA_EVICTION_SOFT")]
    pub eviction_soft: Option<String>,
    /// How long soft thresholds may be crossed before pods are thrown out, as in memory.available=1m30s.
    #[arg(long, env = "BALSA_EVICTION_SOFT_GRACE_PERIOD")]
    pub eviction_soft_grace_period: Option<String>,
    /// How much more than a threshold must be free before pods are left alone again, as in memory.available=500Mi
    /// [default: none].
    #[arg(long, env = "BALSA_EVICTION_MINIMUM_RECLAIM")]
    pub eviction_minimum_reclaim: Option<String>,
    /// Most seconds that pods get to end that are thrown out for a soft threshold [default: 0, as few as can be].
    #[arg(long, env = "BALSA_EVICTION_MAX_POD_GRACE_PERIOD")]
    pub eviction_max_pod_grace_period: Option<u32>,
    /// How long the node goes on calling itself short of something after it has enough again [default: 5m].
    #[arg(long, env = "BALSA_EVICTION_PRESSURE_TRANSITION_PERIOD")]
    pub eviction_pressure_transition_period: Option<String>,
    /// Time for pods to end when the machine goes down, as in 1m30s [default: 0, they are left to it].
    #[arg(long, env = "BALSA_SHUTDOWN_GRACE_PERIOD")]
    pub shutdown_grace_period: Option<String>,
    /// The last part of it, which is for critical pods [default: 0].
    #[arg(long, env = "BALSA_SHUTDOWN_GRACE_PERIOD_CRITICAL_PODS")]
    pub shutdown_grace_period_critical_pods: Option<String>,
    /// In place of both: such times by priority, lowest first, as in 0=30s,1000=10s.
    #[arg(long, env = "BALSA_SHUTDOWN_GRACE_PERIOD_BY_POD_PRIORITY")]
    pub shutdown_grace_period_by_pod_priority: Option<String>,
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
            kubelet_dir: self.kubelet_dir.or(below.kubelet_dir),
            eviction_hard: self.eviction_hard.or(below.eviction_hard),
            eviction_soft: self.eviction_soft.or(below.eviction_soft),
            eviction_soft_grace_period: self
                .eviction_soft_grace_period
                .or(below.eviction_soft_grace_period),
            eviction_minimum_reclaim: self
                .eviction_minimum_reclaim
                .or(below.eviction_minimum_reclaim),
            eviction_max_pod_grace_period: self
                .eviction_max_pod_grace_period
                .or(below.eviction_max_pod_grace_period),
            eviction_pressure_transition_period: self
                .eviction_pressure_transition_period
                .or(below.eviction_pressure_transition_period),
            shutdown_grace_period: self.shutdown_grace_period.or(below.shutdown_grace_period),
            shutdown_grace_period_critical_pods: self
                .shutdown_grace_period_critical_pods
                .or(below.shutdown_grace_period_critical_pods),
            shutdown_grace_period_by_pod_priority: self
                .shutdown_grace_period_by_pod_priority
                .or(below.shutdown_grace_period_by_pod_priority),
        }
    }

    /// Sets what they say in an agent's configuration.
    ///
    /// # Errors
    /// When something cannot be read; the message names all such settings.
    pub fn configure(self, config: &mut balsa_agent::AgentConfig) -> anyhow::Result<()> {
        use balsa_agent::RuntimeChoice;
        let mut problems = Vec::new();
        let mut check = |name: &str, result: Result<(), String>| {
            if let Err(why) = result {
                problems.push(format!("{name}: {why}"));
            }
        };
        if let Some(text) = &self.eviction_hard {
            check("evictionHard", config.eviction.set_hard(text));
        }
        if let Some(text) = &self.eviction_soft {
            let graces = self.eviction_soft_grace_period.as_deref();
            let set = config.eviction.set_soft(text, graces.unwrap_or_default());
            check("evictionSoft", set);
        }
        if let Some(text) = &self.eviction_minimum_reclaim {
            let set = config.eviction.set_minimum_reclaim(text);
            check("evictionMinimumReclaim", set);
        }
        if let Some(seconds) = self.eviction_max_pod_grace_period {
            config.eviction.max_pod_grace = Duration::from_secs(seconds.into());
        }
        if let Some(text) = &self.eviction_pressure_transition_period {
            let period = balsa_agent::duration(text);
            check(
                "evictionPressureTransitionPeriod",
                period.map(|period| config.eviction.transition = period),
            );
        }
        let shutdown = self.shutdown();
        check(
            "shutdownGracePeriod",
            shutdown.map(|periods| config.shutdown = periods),
        );
        complain(if problems.is_empty() {
            Ok(())
        } else {
            Err(problems)
        })?;
        if let Some(endpoint) = self.cri_endpoint {
            config.runtime = RuntimeChoice::Existing { endpoint };
        } else if let Some(containerd) = self.containerd {
            config.runtime = RuntimeChoice::Supervised { containerd };
        }
        if let Some(folder) = self.pod_manifest_path {
            config.static_pods = Some(folder);
        }
        if let Some(folder) = self.kubelet_dir {
            config.kubelet_dir = folder;
        }
        if let Some(cgroup) = self.cgroup_root {
            config.cgroup_root = format!("/{}", cgroup.trim_start_matches('/'));
        }
        Ok(())
    }

    fn shutdown(&self) -> Result<Vec<balsa_agent::ShutdownGrace>, String> {
        let whole = self.shutdown_grace_period.as_deref();
        let critical = self.shutdown_grace_period_critical_pods.as_deref();
        if let Some(text) = &self.shutdown_grace_period_by_pod_priority {
            if whole.or(critical).is_some() {
                return Err(
                    "set either one time for all pods or times by priority, not both".to_owned(),
                );
            }
            return balsa_agent::shutdown_grace_by_priority(text);
        }
        let read = |text: Option<&str>| balsa_agent::duration(text.unwrap_or("0"));
        balsa_agent::shutdown_grace(read(whole)?, read(critical)?)
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
    fn thresholds_and_times_reach_the_agent_and_all_wrong_ones_are_named() {
        let configure = |text: &str| {
            let mut config = balsa_agent::AgentConfig::new("a", [10, 0, 0, 1].into(), "/d");
            let done = parse(text).unwrap().node.configure(&mut config);
            done.map(|()| config).map_err(|error| format!("{error:#}"))
        };
        let config = configure(
            "kubeletDir: /k\nevictionHard: nodefs.available<2Gi\nshutdownGracePeriod: 30s\n\
             shutdownGracePeriodCriticalPods: 10s\nevictionSoft: memory.available<1Gi\n\
             evictionSoftGracePeriod: memory.available=1m\nevictionMaxPodGracePeriod: 60\n",
        );
        let config = config.unwrap();
        assert_eq!(config.kubelet_dir, Path::new("/k"));
        let hard = config.eviction.hard(balsa_agent::Signal::Disk);
        assert_eq!(hard.of(0), 2 << 30);
        assert_eq!(config.eviction.soft.len(), 1);
        assert_eq!(config.eviction.max_pod_grace.as_secs(), 60);
        assert_eq!(config.shutdown.len(), 2);
        let error = configure(
            "evictionHard: disk\nshutdownGracePeriod: 1s\nshutdownGracePeriodByPodPriority: 0=1s\n",
        );
        let error = error.unwrap_err();
        assert!(
            error.contains("evictionHard: ") && error.contains("either one time"),
            "{error}"
        );
    }

    #[test]
    fn a_setting_that_nobody_knows_is_refused_by_name() {
        let error = format!("{:#}", parse("jion: [10.0.0.1]\n").unwrap_err());
        assert!(error.contains("jion"), "{error}");
    }
}
