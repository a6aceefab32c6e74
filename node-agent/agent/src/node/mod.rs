//! The Node object: registration, status, Lease.

pub(crate) mod facts;
mod lease;
mod object;

use std::sync::Arc;
use std::time::Duration;

use balsa_client::{EventRecorder, EventType, Informer};
use balsa_cri::{Image, Runtime};
use k8s_openapi::api::core::v1::{Node, NodeStatus, ObjectReference};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, info_span, warn};

use crate::config::AgentConfig;
use crate::devices::Devices;
use facts::{Facts, Pressure};

/// How often conditions are looked at.
const LOOK: Duration = Duration::from_secs(10);

/// How often the status is written even if nothing changed.
const HEARTBEAT: Duration = Duration::from_secs(300);

/// Pause between attempts to register.
const RETRY: Duration = Duration::from_millis(200);

/// Time allowed to the runtime to say how it is: one that takes longer is called down.
const HEALTH: Duration = Duration::from_secs(15);

/// How long a node that was ready may take to be so again before it says otherwise. An agent that is only started anew
/// is there long before, and pods that tolerate a node's absence for a second stay where they are.
const COME_BACK: Duration = Duration::from_secs(5);

/// Time allowed to a call.
const DEADLINE: Duration = Duration::from_secs(10);

/// Keeps the Node object.
pub(crate) struct Keeper {
    pub(crate) config: AgentConfig,
    pub(crate) client: kube::Client,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) facts: Facts,
    pub(crate) recorder: EventRecorder,
    pub(crate) nodes: Informer<Node>,
    pub(crate) devices: Arc<Devices>,
    /// Why the node can't run pods yet; `None` when it can.
    pub(crate) obstacle: watch::Receiver<Option<String>>,
    /// What the node is short of.
    pub(crate) pressure: watch::Receiver<Pressure>,
}

impl Keeper {
    /// Creates the Node object, or brings its labels up to date; tries until it works.
    pub(crate) async fn register(&self, stop: &CancellationToken) -> Option<Node> {
        let mut told = false;
        loop {
            match tokio::time::timeout(DEADLINE, self.try_register()).await {
                Ok(Ok(node)) => return Some(node),
                Ok(Err(error)) if !told => {
                    told = true;
                    warn!(%error, "cannot register the node yet, trying on");
                }
                _ => {}
            }
            tokio::select! {
                () = stop.cancelled() => return None,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    async fn try_register(&self) -> Result<Node, kube::Error> {
        let api: Api<Node> = Api::all(self.client.clone());
        let name = &self.config.node_name;
        if let Some(known) = api.get_opt(name).await? {
            let patch = json!({"metadata": {"labels": object::labels(&self.config)}});
            let missing = object::labels(&self.config).iter().any(|(key, value)| {
                known
                    .metadata
                    .labels
                    .as_ref()
                    .and_then(|labels| labels.get(key))
                    != Some(value)
            });
            return if missing {
                api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
                    .await
            } else {
                Ok(known)
            };
        }
        let node = object::node(&self.config, &self.facts);
        match api.create(&PostParams::default(), &node).await {
            Ok(node) => {
                info!("node registered");
                Ok(node)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => api.get(name).await,
            Err(error) => Err(error),
        }
    }

    /// Writes status and Lease until stopped.
    pub(crate) async fn run(self, node: &Node, stop: CancellationToken) {
        let lease = lease::Lease {
            client: self.client.clone(),
            node: self.config.node_name.clone(),
            uid: node.metadata.uid.clone().unwrap_or_default(),
            nodes: self.nodes.clone(),
            seconds: self.config.lease_seconds(),
            period: self.config.lease_period(),
        };
        let renew = lease.run(stop.clone()).instrument(info_span!("lease"));
        let was_ready = node.status.as_ref().is_some_and(object::is_ready);
        tokio::join!(renew, self.keep_status(was_ready, stop));
    }

    async fn keep_status(mut self, was_ready: bool, stop: CancellationToken) {
        if was_ready {
            let ready = self.obstacle.wait_for(Option::is_none);
            tokio::select! {
                () = stop.cancelled() => return,
                // In time or not: what is so is told.
                _ = tokio::time::timeout(COME_BACK, ready) => {}
            }
        }
        let mut written: Option<(Value, Instant)> = None;
        let changed = self.node_changes();
        let (mut listening, mut pressed) = (true, true);
        let mut was_ready = None;
        let mut failing: Option<Failing> = None;
        let mut images = Vec::new();
        loop {
            let status = self.status(&mut images).await;
            let ready = object::is_ready(&status);
            let stale = written
                .as_ref()
                .is_none_or(|(_, at)| at.elapsed() >= HEARTBEAT);
            let mut wanted = serde_json::to_value(&status).unwrap_or_default();
            if stale
                || written.as_ref().map(|(last, _)| last) != Some(&object::without_times(&wanted))
                || self.overruled(ready)
            {
                let gone = object::withdrawn(&self.known(), &status);
                match self.write(&mut wanted, gone).await {
                    Ok(()) => {
                        written = Some((object::without_times(&wanted), Instant::now()));
                        failing = None;
                        if was_ready != Some(ready) {
                            was_ready = Some(ready);
                            self.tell_readiness(ready);
                        }
                    }
                    Err(error) => {
                        if failing.as_ref().is_none_or(|last| last.error != error) {
                            warn!(error, "could not write the node's status");
                        }
                        // Whatever the API has now.
                        written = None;
                        let pause = next_pause(failing.map(|last| last.pause));
                        failing = Some(Failing { error, pause });
                    }
                }
            }
            let pause = failing.as_ref().map_or(LOOK, |last| last.pause);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                told = self.obstacle.changed(), if listening => listening = told.is_ok(),
                told = self.pressure.changed(), if pressed => pressed = told.is_ok(),
                () = changed.notified() => {}
                () = self.devices.changed() => {}
            }
        }
    }

    /// Rings whenever the Node changes: the node lifecycle controller may have given it up. A handler and not a
    /// subscription: those are cut off when more nodes than they have room for are there to begin with.
    fn node_changes(&self) -> Arc<Notify> {
        let bell = Arc::new(Notify::new());
        let (ring, name) = (Arc::clone(&bell), self.config.node_name.clone());
        self.nodes.on_change(move |delta| {
            let is_new = matches!(delta, balsa_client::Delta::Added(_));
            if !is_new && delta.object().metadata.name.as_ref() == Some(&name) {
                ring.notify_one();
            }
        });
        bell
    }

    /// Does the API say otherwise than we do about being ready, or has somebody deleted the Node?
    fn overruled(&self, ready: bool) -> bool {
        let Some(node) = self.nodes.get("", &self.config.node_name) else {
            return self.nodes.is_synced();
        };
        node.status
            .as_ref()
            .is_some_and(|status| object::is_ready(status) != ready)
    }

    /// The status as of now. `images` are those last seen, for when the runtime does not tell.
    async fn status(&self, images: &mut Vec<Image>) -> NodeStatus {
        let obstacle = self.obstacle.borrow().clone();
        let trouble = self.runtime_trouble().await;
        if trouble.is_none()
            && let Ok(Ok(now)) = tokio::time::timeout(HEALTH, self.runtime.list_images()).await
        {
            *images = now;
        }
        let obstacle = obstacle.or(trouble);
        let pressure = *self.pressure.borrow();
        let known = self.known();
        object::status(
            object::Seen {
                config: &self.config,
                facts: &self.facts,
                pressure: &pressure,
                devices: &self.devices.amounts(),
                images,
                known: &known,
            },
            obstacle,
        )
    }

    /// The status as the API has it.
    fn known(&self) -> NodeStatus {
        let node = self.nodes.get("", &self.config.node_name);
        node.and_then(|node| node.status.clone())
            .unwrap_or_default()
    }

    async fn runtime_trouble(&self) -> Option<String> {
        let answer = tokio::time::timeout(HEALTH, self.runtime.status()).await;
        let Ok(answer) = answer else {
            return Some(format!(
                "container runtime is down: no answer within {} s",
                HEALTH.as_secs()
            ));
        };
        match answer {
            Ok(status) => {
                if let Some(problem) = status.problem("RuntimeReady") {
                    let (reason, message) = (&problem.reason, &problem.message);
                    return Some(format!(
                        "container runtime not ready: RuntimeReady=false reason:{reason} message:{message}"
                    ));
                }
                status.problem("NetworkReady").map(|problem| {
                    let (reason, message) = (&problem.reason, &problem.message);
                    format!("container runtime network not ready: NetworkReady=false reason:{reason} message:{message}")
                })
            }
            Err(error) => Some(format!("container runtime is down: {error}")),
        }
    }

    /// Writes the status, and takes resources that are gone out of it.
    async fn write(&self, status: &mut Value, gone: Vec<String>) -> Result<(), String> {
        let api: Api<Node> = Api::all(self.client.clone());
        object::stamp(status);
        let mut patch = json!({"status": status});
        for name in gone {
            patch["status"]["allocatable"][name] = Value::Null;
        }
        // Strategic merge would merge addresses by type and keep old ones.
        if let Some(addresses) = patch
            .pointer_mut("/status/addresses")
            .and_then(Value::as_array_mut)
        {
            addresses.insert(0, json!({"$patch": "replace"}));
        }
        let params = PatchParams::default();
        let patch = Patch::Strategic(&patch);
        let write = api.patch_status(&self.config.node_name, &params, &patch);
        match tokio::time::timeout(DEADLINE, write).await {
            Ok(Ok(_)) => Ok(()),
            // Somebody removed the Node: it is made again.
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => {
                self.try_register()
                    .await
                    .map(|_| ())
                    .map_err(|error| error.to_string())?;
                Err("the Node was missing and was made again".to_owned())
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no answer".to_owned()),
        }
    }

    fn tell_readiness(&self, ready: bool) {
        let (reason, words) = if ready {
            ("NodeReady", "NodeReady")
        } else {
            ("NodeNotReady", "NodeNotReady")
        };
        let name = &self.config.node_name;
        let about = ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(name.clone()),
            uid: Some(name.clone()),
            ..ObjectReference::default()
        };
        self.recorder.report(
            about,
            EventType::Normal,
            reason,
            format!("Node {name} status is now: {words}"),
        );
    }
}

/// How the last writing of the status failed.
struct Failing {
    error: String,
    pause: Duration,
}

/// The pause after a failure, when the one before it was followed by `last`.
fn next_pause(last: Option<Duration>) -> Duration {
    last.map_or(RETRY, |last| (last * 2).min(LOOK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_are_away_are_asked_less_and_less_often() {
        let mut last = None;
        for _ in 0..4 {
            last = Some(next_pause(last));
        }
        assert_eq!(last, Some(RETRY * 8));
        assert_eq!(next_pause(Some(LOOK)), LOOK);
    }
}
