//! The steps that a pod's worker takes: everything with an effect on the world. Each runs in a task of its
//! own and ends with news in the worker's mailbox.

mod finish;
mod resize;
mod start;
mod volumes;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use balsa_client::EventType;
use balsa_cri::{ContainerState, ContainerStatus, Nanos, SandboxConfig};
use balsa_pod::{Instance, Sandbox, StartFailure};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info_span, warn};

use super::context::Context;
use super::mailbox::Mailbox;
use super::{container, hooks, observe, sandbox, users};
use crate::cluster::ApiError;
use crate::volumes::payload::TokenWant;
use crate::volumes::{Abilities, Prepared};

pub(crate) use finish::clean_up;
pub(crate) use start::StartWish;

/// Least time that a container gets to end, as upstream.
const MIN_GRACE: Duration = Duration::from_secs(2);

/// Pause after a failure of the container's configuration or creation.
const CONFIG_RETRY: Duration = Duration::from_secs(5);

/// Pause after the runtime has not stopped or removed something, before the worker hears of it and may try again.
const REFUSED: Duration = Duration::from_secs(1);

/// How often, and how long at most, the runtime is asked for its account of an end.
const SETTLE_LOOK: Duration = Duration::from_millis(20);
const SETTLE_LIMIT: Duration = Duration::from_secs(2);

/// How often an instance is looked at that was sent a stop signal of its own.
const STOP_LOOK: Duration = Duration::from_millis(50);

/// How much later than an end the runtime may hear that it was for want of memory.
const OOM_LAG: Duration = Duration::from_millis(100);

/// How a step ended.
pub(crate) enum Done {
    /// Volumes: where they are and when tokens want renewal.
    Volumes(Result<(Prepared, Option<Timestamp>), String>),
    /// The image of a volume could not be had: containers that mount it wait for that reason.
    ImageVolumeFailed {
        volume: String,
        failure: StartFailure,
    },
    /// Volumes were brought up to date.
    Refreshed(Option<Timestamp>),
    /// A sandbox was made.
    Sandbox(Result<Sandbox, String>),
    /// A sandbox was stopped, or not.
    SandboxStopped { id: String, ok: bool },
    /// An instance is there, in this state.
    Seen(Instance),
    /// A start has ended.
    Started {
        name: String,
        /// The running instance, unless it was told before.
        seen: Option<Instance>,
        failure: Option<StartFailure>,
    },
    /// A kill has ended.
    Killed { id: String, ok: bool },
    /// An instance was removed, or not.
    Removed { id: String, ok: bool },
    /// The status was written, or not.
    Patched(Result<Box<Pod>, ApiError>),
    /// A running instance was given other resources, or not.
    Resized {
        name: String,
        resources: ResourceRequirements,
        result: Result<(), String>,
    },
    /// What an ended pod held was given back.
    Released,
    /// An instance has ended, and the runtime tells no more of it than the event did.
    Exited { id: String, code: i32, at: Nanos },
    /// Nothing is left of the pod.
    Finished,
}

/// Tokens of a pod, kept between refreshes.
pub(crate) type TokenCache = BTreeMap<TokenWant, (crate::cluster::Token, Timestamp)>;

/// What the steps of one pod share. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Ops {
    pub(crate) context: Arc<Context>,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) uid: String,
    /// Cancelled when the pod goes: waits and pulls are given up.
    pub(crate) going: CancellationToken,
    pub(crate) tokens: Arc<tokio::sync::Mutex<TokenCache>>,
}

impl Ops {
    /// Runs a step in a task of its own. When the agent stops, it stops where it is, as if the agent were killed there.
    pub(crate) fn spawn(
        &self,
        name: &'static str,
        step: impl Future<Output = Done> + Send + 'static,
    ) {
        let mailbox = Arc::clone(&self.mailbox);
        let stop = self.context.stop.clone();
        let run = async move {
            let done = tokio::select! {
                () = stop.cancelled() => return,
                done = step => done,
            };
            mailbox.tell(|news| news.done.push(done));
        };
        tokio::spawn(run.instrument(info_span!("pod-step", step = name)));
    }

    fn tell(&self, done: Done) {
        self.mailbox.tell(|news| news.done.push(done));
    }

    fn pod_dir(&self) -> PathBuf {
        self.context.paths.pod(&self.uid)
    }

    /// Makes a sandbox.
    pub(crate) async fn create_sandbox(self, pod: Pod, attempt: u32) -> Done {
        let made = self.make_sandbox(&pod, attempt).await;
        if let Err(message) = &made {
            let message = format!("Failed to create pod sandbox: {message}");
            self.context
                .event(&pod, EventType::Warning, "FailedCreatePodSandBox", message);
        }
        Done::Sandbox(made)
    }

    async fn make_sandbox(&self, pod: &Pod, attempt: u32) -> Result<Sandbox, String> {
        let context = &self.context;
        let Some(spec) = &pod.spec else {
            return Err("the pod has no spec".to_owned());
        };
        let _slot = context.sandbox_slots.acquire().await;
        if self.going.is_cancelled() {
            return Err("the pod is going".to_owned());
        }
        self.make_cgroup(pod, spec);
        let config = self.sandbox_config(pod, spec, attempt).await?;
        // The runtime makes the containers' log files, not their folder.
        tokio::fs::create_dir_all(&config.log_directory)
            .await
            .map_err(|error| error.to_string())?;
        let id = context
            .runtime
            .run_sandbox(&config)
            .await
            .map_err(|error| error.to_string())?;
        context.routes.add(&id, &self.uid);
        let status = context
            .runtime
            .sandbox_status(&id)
            .await
            .map_err(|error| error.to_string())?;
        self.write_hosts(pod, spec, &status.ips)
            .await
            .map_err(|error| error.to_string())?;
        Ok(observe::sandbox(&status))
    }

    /// What the pod's sandbox is made from.
    async fn sandbox_config(
        &self,
        pod: &Pod,
        spec: &PodSpec,
        attempt: u32,
    ) -> Result<SandboxConfig, String> {
        let context = &self.context;
        let handler = self.handler(spec).await?;
        let users = if spec.host_users == Some(false) {
            users::check(&context.features, &handler)?;
            Some(context.users.assign(&self.uid, &self.pod_dir())?)
        } else {
            None
        };
        let around = sandbox::Surroundings {
            config: &context.config,
            node_dns: &context.node_dns,
            cgroups: &context.cgroups,
            runtime_handler: &handler,
            users,
        };
        sandbox::config(pod, spec, &around, attempt)
    }

    /// The runtime's handler for the pod; empty for the usual one. The error is for people.
    async fn handler(&self, spec: &PodSpec) -> Result<String, String> {
        match spec.runtime_class_name.as_deref() {
            Some(class) if !class.is_empty() => self.context.cluster.runtime_handler(class).await,
            _ => Ok(String::new()),
        }
    }

    /// What the pod's runtime can do with mounts.
    async fn abilities(&self, spec: &PodSpec) -> Result<Abilities, String> {
        let handler = self.handler(spec).await?;
        let mut handlers = self.context.features.handlers.iter();
        let known = handlers.find(|known| known.name == handler);
        Ok(Abilities {
            recursive_read_only: known.is_some_and(|known| known.recursive_read_only_mounts),
        })
    }

    async fn write_hosts(&self, pod: &Pod, spec: &PodSpec, ips: &[String]) -> std::io::Result<()> {
        let text = if balsa_pod::spec::host_network(spec) {
            let node = tokio::fs::read_to_string("/etc/hosts")
                .await
                .unwrap_or_default();
            let header = "# Kubernetes-managed hosts file (host network).\n";
            header.to_owned() + &node + &sandbox::host_aliases(spec)
        } else {
            sandbox::hosts_file(pod, spec, ips, &self.context.config.cluster_domain)
        };
        let dir = self.pod_dir();
        tokio::fs::create_dir_all(&dir).await?;
        tokio::fs::write(dir.join("etc-hosts"), text).await
    }

    /// Stops a sandbox.
    pub(crate) async fn stop_sandbox(self, id: String) -> Done {
        let done = self.context.runtime.stop_sandbox(&id).await;
        if let Err(error) = &done {
            warn!(%error, id, "could not stop a sandbox");
            tokio::time::sleep(REFUSED).await;
        }
        Done::SandboxStopped {
            ok: done.is_ok(),
            id,
        }
    }

    /// Runs the preStop hook and stops an instance.
    pub(crate) async fn kill(
        self,
        pod: Pod,
        ip: String,
        instance: Instance,
        grace: Duration,
        message: String,
    ) -> Done {
        let context = &self.context;
        let id = instance.id.clone();
        context.container_event(&pod, &instance.name, EventType::Normal, "Killing", message);
        let began = tokio::time::Instant::now();
        let spec = pod.spec.as_ref();
        let container = spec.and_then(|spec| balsa_pod::spec::container(spec, &instance.name));
        let hook = container
            .as_ref()
            .and_then(|container| container.lifecycle.as_ref()?.pre_stop.as_ref());
        if let (Some(hook), Some(container), false) = (hook, &container, grace.is_zero()) {
            let run = hooks::run(&*context.runtime, hook, container, &id, &ip, grace);
            let result = tokio::time::timeout(grace, run).await;
            if let Ok(Err(message)) = result {
                let event = format!("PreStopHook failed: {message}");
                context.container_event(
                    &pod,
                    &instance.name,
                    EventType::Warning,
                    "FailedPreStopHook",
                    event,
                );
            }
        }
        let left = grace.saturating_sub(began.elapsed()).max(MIN_GRACE);
        let signal = container.as_deref().and_then(stop_signal);
        let done = self.stop_container(&id, signal, left).await;
        match &done {
            // The exit's event may have been lost; this state is never stale.
            Ok(()) => {
                if let Ok(status) = context.runtime.container_status(&id).await {
                    self.tell(Done::Seen(observe::instance(&status, &instance.sandbox_id)));
                }
            }
            Err(error) => {
                warn!(%error, id, "could not stop a container");
                tokio::time::sleep(REFUSED).await;
            }
        }
        Done::Killed {
            ok: done.is_ok(),
            id,
        }
    }

    /// Stops an instance: by the signal that it wants, or else by the one that its image names.
    async fn stop_container(
        &self,
        id: &str,
        signal: Option<i32>,
        grace: Duration,
    ) -> balsa_cri::Result<()> {
        let runtime = &self.context.runtime;
        let Some(signal) = signal else {
            return runtime.stop_container(id, grace).await;
        };
        let began = tokio::time::Instant::now();
        if let Err(error) = runtime.signal_container(id, signal).await {
            debug!(%error, id, signal, "could not send the stop signal, the runtime sends its own");
            return runtime.stop_container(id, grace).await;
        }
        let running = |status: ContainerStatus| status.state == ContainerState::Running;
        while began.elapsed() < grace && runtime.container_status(id).await.is_ok_and(running) {
            tokio::time::sleep(STOP_LOOK).await;
        }
        runtime.stop_container(id, Duration::ZERO).await
    }

    /// Waits for the runtime's own account of an end that an event told of.
    pub(crate) async fn settle_exit(self, instance: Instance, code: i32, at: Nanos) -> Done {
        let runtime = &self.context.runtime;
        let ended = async {
            loop {
                match runtime.container_status(&instance.id).await {
                    Ok(status) if status.state == ContainerState::Exited => return Some(status),
                    Ok(_) => tokio::time::sleep(SETTLE_LOOK).await,
                    Err(_) => return None,
                }
            }
        };
        let mut ended = tokio::time::timeout(SETTLE_LIMIT, ended)
            .await
            .ok()
            .flatten();
        if code == 137
            && ended
                .as_ref()
                .is_some_and(|status| status.reason != "OOMKilled")
        {
            // The runtime hears of it in two ways, in either order.
            tokio::time::sleep(OOM_LAG).await;
            ended = runtime.container_status(&instance.id).await.ok().or(ended);
        }
        match ended {
            Some(status) => Done::Seen(observe::instance(&status, &instance.sandbox_id)),
            None => Done::Exited {
                id: instance.id,
                code,
                at,
            },
        }
    }

    /// Removes an ended instance and what it left.
    pub(crate) async fn remove(self, id: String, name: String, attempt: u32) -> Done {
        let done = self.context.runtime.remove_container(&id).await;
        if let Err(error) = &done {
            // Mostly it is being removed already, on behalf of an agent that was killed meanwhile.
            warn!(%error, id, "could not remove a container");
            tokio::time::sleep(REFUSED).await;
        } else {
            self.context.routes.forget_container(&id);
            let _ =
                tokio::fs::remove_file(container::message_file(&self.pod_dir(), &name, attempt))
                    .await;
        }
        Done::Removed {
            ok: done.is_ok(),
            id,
        }
    }

    /// Writes the status.
    pub(crate) async fn patch(self, pod: Pod, patch: serde_json::Value) -> Done {
        let (namespace, name) = names(&pod);
        Done::Patched(
            self.context
                .cluster
                .patch_status(&namespace, &name, &patch)
                .await
                .map(Box::new),
        )
    }
}

/// The signal that a container wants to be stopped by (KEP-4960), by number.
fn stop_signal(container: &Container) -> Option<i32> {
    let name = container.lifecycle.as_ref()?.stop_signal.as_deref()?;
    // Real-time signals have no fixed numbers: the C library keeps some for itself.
    match name.strip_prefix("SIGRT") {
        Some("MIN") => Some(libc::SIGRTMIN()),
        Some("MAX") => Some(libc::SIGRTMAX()),
        Some(rest) => {
            let number = |text: &str| text.parse::<i32>().ok();
            match (rest.strip_prefix("MIN+"), rest.strip_prefix("MAX-")) {
                (Some(up), _) => number(up).map(|up| libc::SIGRTMIN() + up),
                (_, Some(down)) => number(down).map(|down| libc::SIGRTMAX() - down),
                _ => None,
            }
        }
        None => name
            .parse::<nix::sys::signal::Signal>()
            .ok()
            .map(|signal| signal as i32),
    }
}

fn after(pause: Duration) -> Timestamp {
    balsa_pod::spec::after(Timestamp::now(), pause)
}

fn names(pod: &Pod) -> (String, String) {
    let metadata = &pod.metadata;
    (
        metadata.namespace.clone().unwrap_or_default(),
        metadata.name.clone().unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn stop_signals_are_known_by_their_names() {
        let number = |name: &str| {
            let lifecycle = serde_json::json!({"name": "c", "lifecycle": {"stopSignal": name}});
            stop_signal(&serde_json::from_value(lifecycle).unwrap())
        };
        assert_eq!(number("SIGUSR1"), Some(10));
        assert_eq!(number("SIGRTMIN+3"), Some(libc::SIGRTMIN() + 3));
        assert_eq!(number("SIGRTMAX"), Some(libc::SIGRTMAX()));
        assert_eq!(number("SIGNONE"), None);
        assert_eq!(stop_signal(&Container::default()), None);
    }
}
