//! Nodes that fall silent: their status, their taints, and their pods' readiness.
//!
//! A tick looks at signs of life in memory only; what it decides goes through the queue like everything else.

mod decide;
mod monitor;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use balsa_client::{EventRecorder, EventType, Key, Outcome, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::json;

use self::decide::Silent;
use self::monitor::{Monitor, Signs};
use crate::context::Shared;
use crate::error::{ApiError, Error, Result, unless_gone};

struct Controller {
    context: Shared,
    recorder: EventRecorder,
    monitor: Mutex<Monitor>,
    /// Nodes that call themselves unready and whose pods were told so.
    marked: Mutex<HashSet<String>>,
    queue: WorkQueue<Key>,
}

pub(crate) async fn run(context: Shared) {
    let controller = Arc::new(Controller {
        recorder: context.recorder("node-controller"),
        monitor: Mutex::new(Monitor::new(context.config.failover.grace())),
        marked: Mutex::default(),
        queue: WorkQueue::default(),
        context: Arc::clone(&context),
    });
    let this = Arc::clone(&controller);
    context.informers.nodes.on_change(move |delta| {
        let node = &**delta.object();
        match delta {
            _ if delta.is_delete() => {
                let message = format!(
                    "Node {} event: Removing Node {0} from Controller",
                    node.name_any()
                );
                this.recorder
                    .event(node, EventType::Normal, "RemovingNode", message);
                return;
            }
            balsa_client::Delta::Added(_) => {
                let message = format!(
                    "Node {} event: Registered Node {0} in Controller",
                    node.name_any()
                );
                this.recorder
                    .event(node, EventType::Normal, "RegisteredNode", message);
            }
            _ => {}
        }
        this.queue.add(Key::of(node));
    });
    // A pod that becomes ready on a node that is not: a status written just before the node fell silent.
    let this = Arc::clone(&controller);
    context.informers.pods.on_change(move |delta| {
        let node = crate::support::pods::node_name(delta.object());
        if !node.is_empty() && !delta.is_delete() && this.monitor.lock().is_silent(node) {
            this.queue.add(Key::new("", node));
        }
    });
    context.informers.nodes.synced().await;
    context.informers.node_leases.synced().await;
    context.informers.pods.synced().await;
    let (worker, ticker) = (Arc::clone(&controller), Arc::clone(&controller));
    let work = context.work("node-lifecycle", controller.queue.clone(), move |key| {
        let this = Arc::clone(&worker);
        async move { this.reconcile(&key.name).await }
    });
    tokio::join!(work, ticker.tick());
}

impl Controller {
    async fn tick(&self) {
        let mut interval = tokio::time::interval(self.context.config.failover.tick());
        // After a pause of the whole process nothing is made up for: signs of life are read first.
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.context.stop.cancelled() => return,
                _ = interval.tick() => {}
            }
            let signs = self.signs();
            for node in self.monitor.lock().observe(signs, Instant::now()) {
                self.queue.add(Key::new("", node));
            }
        }
    }

    fn signs(&self) -> HashMap<String, Signs> {
        let informers = &self.context.informers;
        let sign = |node: Arc<Node>| {
            let name = node.name_any();
            let lease = informers
                .node_leases
                .get(crate::informers::NODE_LEASES, &name);
            let renewed =
                lease.and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref().map(|time| time.0));
            let conditions = node
                .status
                .as_ref()
                .and_then(|status| status.conditions.as_deref())
                .unwrap_or_default();
            let ready = conditions
                .iter()
                .find(|condition| condition.type_ == "Ready");
            let posted = ready
                .and_then(|ready| ready.last_heartbeat_time.as_ref())
                .map(|time| time.0);
            (
                name.clone(),
                Signs {
                    link: self.context.heartbeats.last_seen(&name),
                    stamp: (renewed, posted),
                },
            )
        };
        informers.nodes.list().into_iter().map(sign).collect()
    }

    async fn reconcile(&self, name: &str) -> Result<Outcome> {
        let Some(cached) = self.context.informers.nodes.get("", name) else {
            return Ok(Outcome::Done);
        };
        let mut node = (*cached).clone();
        let silent = self.monitor.lock().silent(name);
        if silent != Silent::Undecided {
            // Endpoints first, so that traffic leaves the node as soon as possible.
            self.mark_silent(&mut node).await?;
        }
        let now = Timestamp::now();
        if let Some(taints) = decide::taints(&node, silent, now) {
            let patch = json!({
                "metadata": {"resourceVersion": node.resource_version()},
                "spec": {"taints": taints},
            });
            let api = self.context.cluster_api::<Node>();
            unless_gone(
                api.patch(name, &PatchParams::default(), &Patch::Merge(&patch))
                    .await,
            )?;
        }
        if self.pods_need_marks(name, decide::status(&node, "Ready")) {
            self.mark_pods(name, now).await?;
        }
        Ok(Outcome::Done)
    }

    /// Pods of an unreachable node always; those of a node that calls itself unready once, as its agent goes
    /// on judging them.
    fn pods_need_marks(&self, name: &str, ready: Option<&str>) -> bool {
        let mut marked = self.marked.lock();
        match ready {
            None | Some("True") => {
                marked.remove(name);
                false
            }
            Some("False") => marked.insert(name.to_owned()),
            Some(_) => true,
        }
    }

    async fn mark_silent(&self, node: &mut Node) -> Result<()> {
        let Some(conditions) = decide::unknown_conditions(node, Timestamp::now()) else {
            return Ok(());
        };
        let name = node.name_any();
        let was_ready = decide::status(node, "Ready") == Some("True");
        let patch = json!({
            "metadata": {"resourceVersion": node.resource_version()},
            "status": {"conditions": conditions},
        });
        let api = self.context.cluster_api::<Node>();
        let patched = api
            .patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch))
            .await;
        let Some(patched) = unless_gone(patched)? else {
            return Ok(());
        };
        *node = patched;
        tracing::warn!(node = name, "node is not heard of any more");
        if was_ready {
            let message = format!("Node {name} status is now: NodeNotReady");
            self.recorder
                .event(node, EventType::Normal, "NodeNotReady", message);
        }
        Ok(())
    }

    /// Takes readiness from the node's pods, so that Services stop leading to them.
    async fn mark_pods(&self, node: &str, now: Timestamp) -> Result<()> {
        let pods = self.context.informers.pods_by_node.get(node);
        let marks = pods
            .iter()
            .filter_map(|pod| Some((pod, decide::unready_conditions(pod, now)?)));
        let patches = marks.map(|(pod, conditions)| async move {
            let api = self
                .context
                .api::<Pod>(&pod.namespace().unwrap_or_default());
            let patch = json!({
                "metadata": {"uid": pod.uid(), "resourceVersion": pod.resource_version()},
                "status": {"conditions": conditions},
            });
            let patched = api
                .patch_status(
                    &pod.name_any(),
                    &PatchParams::default(),
                    &Patch::Merge(&patch),
                )
                .await;
            if unless_gone(patched)?.is_some() {
                self.recorder.event(
                    &**pod,
                    EventType::Warning,
                    "NodeNotReady",
                    "Node is not ready",
                );
            }
            Ok::<(), kube::Error>(())
        });
        let results: Vec<kube::Result<()>> = futures::future::join_all(patches).await;
        let all = results.len();
        let mut errors: Vec<kube::Error> =
            results.into_iter().filter_map(kube::Result::err).collect();
        let conflict = errors.iter().position(ApiError::is_conflict);
        match (conflict, errors.len()) {
            (_, 0) => Ok(()),
            // Reported as what it is, so that it is retried quietly.
            (Some(conflict), _) => Err(errors.swap_remove(conflict).into()),
            (None, failed) => Err(Error::Partial {
                failed,
                all,
                first: Box::new(errors.swap_remove(0).into()),
            }),
        }
    }
}
