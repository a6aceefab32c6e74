//! Pods that do not tolerate their node's NoExecute taints (any longer) are evicted.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use balsa_api::scheduling::tolerates;
use balsa_client::{EventRecorder, EventType, Key, Outcome, WorkQueue};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use parking_lot::Mutex;
use serde_json::json;

use crate::context::Shared;
use crate::error::{Result, unless_gone};
use crate::pod_gc::with_disruption;
use crate::support::pods;

pub(crate) const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub(crate) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// Taints say when they were added in whole seconds, cut short.
const CUT_SHORT: SignedDuration = SignedDuration::from_millis(999);
/// What admission gives each pod for the two taints above.
const ADMISSION_SECONDS: i64 = 300;

struct Controller {
    context: Shared,
    recorder: EventRecorder,
    /// Pods whose eviction has a date, and since when: to tell when it is called off, and to count from where
    /// taints do not say when they were added (people's do not).
    scheduled: Mutex<HashMap<Key, Timestamp>>,
}

pub(crate) async fn run(context: Shared) {
    let queue: WorkQueue<Key> = WorkQueue::default();
    let controller = Arc::new(Controller {
        recorder: context.recorder("taint-eviction-controller"),
        scheduled: Mutex::default(),
        context: Arc::clone(&context),
    });
    context.informers.nodes.synced().await;
    context.informers.pods.synced().await;
    let (nodes, this) = (queue.clone(), Arc::clone(&context));
    context.informers.nodes.on_change(move |delta| {
        let node = &**delta.object();
        let before = delta.old().map(|old| no_execute(old)).unwrap_or_default();
        if !delta.is_delete() && before != no_execute(node) {
            for pod in this.informers.pods_by_node.get(&node.name_any()) {
                nodes.add(Key::of(&*pod));
            }
        }
    });
    let (pods, this) = (queue.clone(), Arc::clone(&controller));
    context.informers.pods.on_change(move |delta| {
        let pod = &**delta.object();
        let key = Key::of(pod);
        if delta.is_delete() {
            this.scheduled.lock().remove(&key);
            return;
        }
        let tolerations = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.tolerations.clone());
        let news = delta.old().is_none_or(|old| {
            pods::node_name(old) != pods::node_name(pod) || tolerations(old) != tolerations(pod)
        });
        let node = this.context.informers.nodes.get("", pods::node_name(pod));
        if news && node.is_some_and(|node| !no_execute(&node).is_empty()) {
            pods.add(key);
        }
    });
    let this = Arc::clone(&controller);
    context
        .work("taint-eviction", queue, move |key| {
            let this = Arc::clone(&this);
            async move { this.reconcile(key).await }
        })
        .await;
}

fn no_execute(node: &Node) -> Vec<Taint> {
    let taints = node
        .spec
        .as_ref()
        .and_then(|spec| spec.taints.as_deref())
        .unwrap_or_default();
    taints
        .iter()
        .filter(|taint| taint.effect == "NoExecute")
        .cloned()
        .collect()
}

impl Controller {
    async fn reconcile(&self, key: Key) -> Result<Outcome> {
        let informers = &self.context.informers;
        let Some(pod) = informers.pods.get(&key.namespace, &key.name) else {
            return Ok(Outcome::Done);
        };
        if pods::is_terminating(&pod) || pods::is_terminal(&pod) {
            return Ok(Outcome::Done);
        }
        let Some(node) = informers.nodes.get("", pods::node_name(&pod)) else {
            return Ok(Outcome::Done);
        };
        let tolerations = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.tolerations.as_deref())
            .unwrap_or_default();
        let fallback = self.context.config.failover.default_toleration();
        let now = Timestamp::now();
        let noticed = self.scheduled.lock().get(&key).copied();
        // One from before the clock was set back says nothing any more.
        let since = noticed.filter(|noticed| *noticed <= now).unwrap_or(now);
        let moments = Moments {
            bound: bound(&pod),
            noticed: since,
            now,
        };
        match time_left(&no_execute(&node), tolerations, fallback, &moments) {
            None => {
                if self.scheduled.lock().remove(&key).is_some() {
                    let message = format!("Cancelling deletion of Pod {key}");
                    self.recorder
                        .event(&*pod, EventType::Normal, "TaintManagerEviction", message);
                }
                Ok(Outcome::Done)
            }
            Some(left) if !left.is_zero() => {
                self.scheduled.lock().insert(key, since);
                Ok(Outcome::After(left))
            }
            Some(_) => {
                self.evict(&pod, &key).await?;
                self.scheduled.lock().remove(&key);
                Ok(Outcome::Done)
            }
        }
    }

    async fn evict(&self, pod: &Pod, key: &Key) -> Result<()> {
        let message = format!("Marking for deletion Pod {key}");
        self.recorder
            .event(pod, EventType::Normal, "TaintManagerEviction", message);
        let api = self.context.api::<Pod>(&key.namespace);
        let conditions = with_disruption(
            pod,
            "DeletionByTaintManager",
            "Taint manager: deleting due to NoExecute taint",
        );
        let patch = json!({
            "metadata": {"uid": pod.uid(), "resourceVersion": pod.resource_version()},
            "status": {"conditions": conditions},
        });
        let patched = api
            .patch_status(&key.name, &PatchParams::default(), &Patch::Merge(&patch))
            .await;
        if unless_gone(patched)?.is_none() {
            return Ok(());
        }
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: pod.uid(),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        unless_gone(api.delete(&key.name, &params).await)?;
        Ok(())
    }
}

/// What the time of a pod under a taint is counted from.
struct Moments {
    /// When the pod came to its node, if that is known, in whole seconds.
    bound: Option<Timestamp>,
    /// When this controller first saw that the pod is to go.
    noticed: Timestamp,
    now: Timestamp,
}

/// When a pod came to its node: when it was scheduled, or made if it named its node itself.
fn bound(pod: &Pod) -> Option<Timestamp> {
    let scheduled = pods::condition(pod, "PodScheduled")
        .filter(|condition| condition.status == "True")
        .and_then(|condition| condition.last_transition_time.as_ref());
    scheduled
        .or(pod.metadata.creation_timestamp.as_ref())
        .map(|time| time.0)
}

/// How long a pod may stay: `None` for ever, zero not at all. Counted from when the taint was added or the pod came
/// under it, so that a new leader goes on where the old one stopped; from when it was noticed if neither is known, or
/// if that may be nearer to the truth. `fallback` stands in for admission's 300 s.
fn time_left(
    taints: &[Taint],
    tolerations: &[Toleration],
    fallback: Duration,
    moments: &Moments,
) -> Option<Duration> {
    let mut shortest: Option<SignedDuration> = None;
    for taint in taints {
        let matching: Vec<&Toleration> = tolerations
            .iter()
            .filter(|toleration| tolerates(toleration, taint))
            .collect();
        if matching.is_empty() {
            return Some(Duration::ZERO);
        }
        let since = taint.time_added.as_ref().map_or(moments.noticed, |added| {
            let began = moments.bound.map_or(added.0, |bound| bound.max(added.0));
            if began > moments.now {
                // The clock was set back meanwhile.
                return moments.noticed;
            }
            let latest = began.checked_add(CUT_SHORT).unwrap_or(began);
            moments.noticed.clamp(began, latest)
        });
        // Of several tolerations for one taint the shortest counts, as upstream.
        let seconds = matching
            .iter()
            .filter_map(|toleration| seconds(toleration, taint, fallback))
            .min();
        if let Some(seconds) = seconds {
            let left = seconds - moments.now.duration_since(since);
            shortest = Some(shortest.map_or(left, |shortest| shortest.min(left)));
        }
    }
    shortest.map(|left| left.max(SignedDuration::ZERO).unsigned_abs())
}

fn seconds(toleration: &Toleration, taint: &Taint, fallback: Duration) -> Option<SignedDuration> {
    let seconds = toleration.toleration_seconds?;
    if seconds == ADMISSION_SECONDS && matches!(taint.key.as_str(), NOT_READY | UNREACHABLE) {
        return SignedDuration::try_from(fallback).ok();
    }
    Some(SignedDuration::from_secs(seconds.max(0)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn taint(key: &str, added: i64) -> Taint {
        Taint {
            key: key.into(),
            effect: "NoExecute".into(),
            time_added: Some(balsa_client::time::time(
                Timestamp::from_second(added).unwrap(),
            )),
            ..Taint::default()
        }
    }

    fn toleration(key: &str, seconds: Option<i64>) -> Toleration {
        Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some("NoExecute".into()),
            toleration_seconds: seconds,
            ..Toleration::default()
        }
    }

    fn left(taints: &[Taint], tolerations: &[Toleration]) -> Option<u64> {
        let fallback = Duration::from_secs(300);
        time_left(
            taints,
            tolerations,
            fallback,
            &moments(1_005_000, 1_010_000),
        )
        .map(|left| left.as_secs())
    }

    /// Milliseconds; the pod was there before.
    fn moments(noticed: i64, now: i64) -> Moments {
        Moments {
            bound: Some(Timestamp::from_second(800).unwrap()),
            noticed: Timestamp::from_millisecond(noticed).unwrap(),
            now: Timestamp::from_millisecond(now).unwrap(),
        }
    }

    #[test]
    fn an_untolerated_taint_evicts_at_once() {
        assert_eq!(left(&[taint("gpu", 1000)], &[]), Some(0));
        let tolerated = toleration(UNREACHABLE, None);
        assert_eq!(
            left(
                &[taint(UNREACHABLE, 1000), taint("gpu", 1000)],
                &[tolerated]
            ),
            Some(0)
        );
    }

    #[test]
    fn a_toleration_without_seconds_stays_for_ever() {
        assert_eq!(
            left(&[taint("gpu", 1000)], &[toleration("gpu", None)]),
            None
        );
        assert_eq!(left(&[], &[]), None);
    }

    #[test]
    fn time_counts_from_when_the_taint_was_added() {
        assert_eq!(
            left(&[taint("gpu", 1000)], &[toleration("gpu", Some(60))]),
            Some(50)
        );
        assert_eq!(
            left(&[taint("gpu", 900)], &[toleration("gpu", Some(60))]),
            Some(0)
        );
    }

    #[test]
    fn a_second_is_a_second_although_times_are_cut_short() {
        // Added at 1000.9 s, and seen at once.
        let left = |now| {
            time_left(
                &[taint("gpu", 1000)],
                &[toleration("gpu", Some(1))],
                Duration::from_secs(300),
                &moments(1_000_900, now),
            )
        };
        assert_eq!(left(1_001_100), Some(Duration::from_millis(800)));
        assert_eq!(left(1_001_900), Some(Duration::ZERO));
    }

    #[test]
    fn a_pod_that_comes_under_an_old_taint_has_all_its_time() {
        let left = |now| {
            let moments = Moments {
                bound: Some(Timestamp::from_second(1005).unwrap()),
                ..moments(1_005_100, now)
            };
            let tolerations = [toleration("gpu", Some(2))];
            time_left(
                &[taint("gpu", 1000)],
                &tolerations,
                Duration::ZERO,
                &moments,
            )
        };
        assert_eq!(left(1_005_100), Some(Duration::from_secs(2)));
        assert_eq!(left(1_007_100), Some(Duration::ZERO));
    }

    #[test]
    fn a_clock_that_was_set_back_gives_no_pod_more_time() {
        let left = |now| {
            let moments = moments(1_000_000, now);
            let tolerations = [toleration("gpu", Some(60))];
            let taint = taint("gpu", 5000);
            time_left(&[taint], &tolerations, Duration::ZERO, &moments)
        };
        assert_eq!(left(1_000_000), Some(Duration::from_secs(60)));
        assert_eq!(left(1_060_000), Some(Duration::ZERO));
    }

    #[test]
    fn a_pod_came_to_its_node_when_it_was_scheduled_or_made() {
        let mut pod: Pod = serde_json::from_value(json!({
            "metadata": {"creationTimestamp": "1970-01-01T00:00:10Z"},
            "status": {"conditions": [
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": "1970-01-01T00:00:20Z"},
            ]},
        }))
        .unwrap();
        assert_eq!(bound(&pod), Timestamp::from_second(20).ok());
        pod.status = None;
        assert_eq!(bound(&pod), Timestamp::from_second(10).ok());
    }

    #[test]
    fn time_counts_from_when_a_taint_without_a_time_was_noticed() {
        let mut taint = taint("gpu", 0);
        taint.time_added = None;
        let tolerated = [toleration("gpu", Some(20))];
        assert_eq!(left(&[taint], &tolerated), Some(15));
    }

    #[test]
    fn fast_failover_shortens_only_what_admission_added() {
        let fast = |seconds| {
            let tolerations = [toleration(UNREACHABLE, Some(seconds))];
            time_left(
                &[taint(UNREACHABLE, 1000)],
                &tolerations,
                Duration::from_secs(1),
                &moments(1_000_000, 1_000_000),
            )
        };
        assert_eq!(fast(300), Some(Duration::from_secs(1)));
        assert_eq!(fast(600), Some(Duration::from_secs(600)));
    }

    #[test]
    fn values_must_be_equal_unless_existence_is_enough() {
        let mut gpu = taint("gpu", 1000);
        gpu.value = Some("a".into());
        let equal = |value: &str| Toleration {
            key: Some("gpu".into()),
            value: Some(value.into()),
            ..Toleration::default()
        };
        assert_eq!(left(std::slice::from_ref(&gpu), &[equal("a")]), None);
        assert_eq!(left(std::slice::from_ref(&gpu), &[equal("b")]), Some(0));
        let all = Toleration {
            operator: Some("Exists".into()),
            ..Toleration::default()
        };
        assert_eq!(left(&[gpu], &[all]), None);
    }
}
