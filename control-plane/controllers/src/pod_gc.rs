//! Pods that nobody else will remove: of nodes that are gone, finished ones beyond a limit, terminating ones that
//! never had a node, and terminating ones of nodes that an administrator has declared out of service (KEP-2268).

use std::sync::Arc;
use std::time::Duration;

use balsa_client::{Key, Outcome, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;

use crate::context::Shared;
use crate::error::{Result, unless_gone};
use crate::support::pods;

/// A node that vanished may be registered again in a moment (an agent that was told to re-register).
const QUARANTINE: Duration = Duration::from_secs(40);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// How often finished pods are counted.
const SWEEP: Duration = Duration::from_secs(20);

pub(crate) async fn run(context: Shared) {
    let queue: WorkQueue<Key> = WorkQueue::default();
    let informers = &context.informers;
    informers.nodes.synced().await;
    informers.pods.synced().await;
    let (nodes, this) = (queue.clone(), Arc::clone(&context));
    informers.nodes.on_change(move |delta| {
        let node = &**delta.object();
        let pods = || this.informers.pods_by_node.get(&node.name_any());
        if delta.is_delete() {
            for pod in pods() {
                nodes.add_after(Key::of(&*pod), quarantine(&this));
            }
        } else if is_out_of_service(node) {
            for pod in pods() {
                nodes.add(Key::of(&*pod));
            }
        }
    });
    let (pods, this) = (queue.clone(), Arc::clone(&context));
    informers.pods.on_change(move |delta| {
        let pod = &**delta.object();
        if delta.is_delete() {
            return;
        }
        let node = pods::node_name(pod);
        if node.is_empty() {
            if pods::is_terminating(pod) {
                pods.add(Key::of(pod));
            }
            return;
        }
        match this.informers.nodes.get("", node) {
            None => pods.add_after(Key::of(pod), quarantine(&this)),
            Some(node) if is_out_of_service(&node) => pods.add(Key::of(pod)),
            Some(_) => {}
        }
    });
    let this = Arc::clone(&context);
    let work = context.work("pod-gc", queue.clone(), move |key| {
        let this = Arc::clone(&this);
        async move { reconcile(&this, key).await }
    });
    tokio::join!(work, sweep(&context));
}

fn quarantine(context: &Shared) -> Duration {
    QUARANTINE.min(context.config.failover.grace())
}

async fn reconcile(context: &Shared, key: Key) -> Result<Outcome> {
    let Some(pod) = context.informers.pods.get(&key.namespace, &key.name) else {
        return Ok(Outcome::Done);
    };
    let node = pods::node_name(&pod);
    if node.is_empty() {
        if pods::is_terminating(&pod) {
            remove(context, &pod, None).await?;
        }
        return Ok(Outcome::Done);
    }
    if let Some(node) = context.informers.nodes.get("", node) {
        // Its volumes are let go at the same word; nobody there will end the pod.
        if is_out_of_service(&node) && pods::is_terminating(&pod) {
            remove(context, &pod, None).await?;
        }
        return Ok(Outcome::Done);
    }
    // The cache may be behind.
    let api = context.cluster_api::<Node>();
    if api.get_metadata_opt(node).await?.is_none() {
        remove(context, &pod, Some("PodGC: node no longer exists")).await?;
    }
    Ok(Outcome::Done)
}

/// Declared lost for good, and indeed silent.
fn is_out_of_service(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref());
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref());
    let ready = conditions
        .unwrap_or_default()
        .iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    !ready
        && taints
            .unwrap_or_default()
            .iter()
            .any(|taint| taint.key == OUT_OF_SERVICE)
}

/// Marks an unfinished pod as failed, so that its owner counts it, and removes it without waiting for a node.
async fn remove(context: &Shared, pod: &Pod, disruption: Option<&str>) -> Result<()> {
    let api = context.api::<Pod>(&pod.namespace().unwrap_or_default());
    if !pods::is_terminal(pod) {
        let mut status = json!({"phase": "Failed"});
        if let (Some(message), Some(fields)) = (disruption, status.as_object_mut()) {
            let conditions = with_disruption(pod, "DeletionByPodGC", message);
            fields.insert("conditions".into(), conditions);
        }
        let patch = json!({"metadata": {"uid": pod.uid()}, "status": status});
        let patched = api
            .patch_status(
                &pod.name_any(),
                &PatchParams::default(),
                &Patch::Merge(&patch),
            )
            .await;
        if unless_gone(patched)?.is_none() {
            return Ok(());
        }
    }
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions {
            uid: pod.uid(),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    unless_gone(api.delete(&pod.name_any(), &params).await)?;
    Ok(())
}

/// All conditions of the pod with `DisruptionTarget` among them, for a merge patch.
pub(crate) fn with_disruption(pod: &Pod, reason: &str, message: &str) -> serde_json::Value {
    let mut conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.clone())
        .unwrap_or_default();
    conditions.retain(|condition| condition.type_ != "DisruptionTarget");
    conditions.push(k8s_openapi::api::core::v1::PodCondition {
        type_: "DisruptionTarget".into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_transition_time: Some(balsa_client::time::time(Timestamp::now())),
        observed_generation: pod.metadata.generation,
        ..k8s_openapi::api::core::v1::PodCondition::default()
    });
    json!(conditions)
}

async fn sweep(context: &Shared) {
    let mut tick = tokio::time::interval(SWEEP);
    loop {
        tokio::select! {
            () = context.stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let all = context.informers.pods.list();
        for pod in surplus(&all, context.config.terminated_pod_threshold) {
            if let Err(error) = remove(context, &pod, None).await {
                tracing::debug!(%error, pod = %pod.name_any(), "cannot remove a finished pod; trying again later");
            }
        }
    }
}

/// The oldest finished pods beyond the limit.
fn surplus(all: &[Arc<Pod>], limit: usize) -> Vec<Arc<Pod>> {
    let mut finished: Vec<Arc<Pod>> = all
        .iter()
        .filter(|pod| pods::is_terminal(pod) && !pods::is_terminating(pod))
        .cloned()
        .collect();
    let surplus = finished.len().saturating_sub(limit);
    if surplus == 0 {
        return Vec::new();
    }
    finished.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
    finished.truncate(surplus);
    finished
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::support::pods::tests::pod;

    #[test]
    fn the_oldest_finished_pods_beyond_the_limit_go() {
        let finished = |name: &str, created: i64| {
            let mut pod = pod(name, "Succeeded", "a", false);
            let created = Timestamp::from_second(created).unwrap();
            pod.metadata.creation_timestamp = Some(balsa_client::time::time(created));
            Arc::new(pod)
        };
        let running = Arc::new(pod("running", "Running", "a", true));
        let all = [
            finished("young", 30),
            finished("old", 10),
            running,
            finished("middle", 20),
        ];
        let names: Vec<String> = surplus(&all, 1).iter().map(|pod| pod.name_any()).collect();
        assert_eq!(names, ["old", "middle"]);
        assert!(surplus(&all, 3).is_empty());
    }

    #[test]
    fn a_node_is_out_of_service_when_it_is_said_to_be_and_silent() {
        let node = |ready: &str, taint: &str| -> Node {
            serde_json::from_value(
                json!({"spec": {"taints": [{"key": taint, "effect": "NoExecute"}]},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}}),
            )
            .unwrap()
        };
        assert!(is_out_of_service(&node("Unknown", OUT_OF_SERVICE)));
        assert!(!is_out_of_service(&node("True", OUT_OF_SERVICE)));
        assert!(!is_out_of_service(&node("Unknown", "gpu")));
        assert!(!is_out_of_service(&Node::default()));
    }

    #[test]
    fn a_disruption_is_added_to_the_other_conditions_once() {
        let mut pod = pod("p", "Running", "a", true);
        let first = with_disruption(&pod, "DeletionByPodGC", "gone");
        assert_eq!(first.as_array().unwrap().len(), 2);
        pod.status.as_mut().unwrap().conditions = serde_json::from_value(first).unwrap();
        assert_eq!(
            with_disruption(&pod, "DeletionByPodGC", "gone")
                .as_array()
                .unwrap()
                .len(),
            2
        );
    }
}
