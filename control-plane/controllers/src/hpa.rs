//! HorizontalPodAutoscalers: as many replicas as their metrics call for.
//!
//! Every autoscaler is looked at each 15 s. What is remembered between (recommendations, recent changes) only slows
//! scaling down and limits rates; a new leader begins with the present number.

mod metrics;
mod normalize;
mod replicas;
mod scale;
mod specs;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use balsa_api::kinds::walk::Walk;
use balsa_api::selector::Selector;
use balsa_client::{
    Delta, EventRecorder, EventType, Informer, InformerOptions, Key, Outcome, WorkQueue,
};
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerSpec,
    HorizontalPodAutoscalerStatus, MetricStatus,
};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use parking_lot::Mutex;
use serde_json::{Value, json};

use self::normalize::{Bounds, History, normalize};
use self::scale::Resource;
use self::specs::{Failure, Scaled};
use crate::context::Shared;
use crate::error::{ApiError, Result, message, unless_gone};

/// Between two looks at an autoscaler.
const EVERY: Duration = Duration::from_secs(15);

struct Controller {
    context: Shared,
    recorder: EventRecorder,
    autoscalers: Informer<HorizontalPodAutoscaler>,
    memory: Mutex<HashMap<Key, Memory>>,
}

/// What is remembered of an autoscaler.
#[derive(Default)]
struct Memory {
    history: History,
    /// Selector of its target's pods.
    selector: Option<Selector>,
}

pub(crate) async fn run(context: Shared) {
    let autoscalers: Informer<HorizontalPodAutoscaler> = Informer::start(
        Api::all(context.client.clone()),
        InformerOptions::default(),
        context.stop.clone(),
    );
    let controller = Arc::new(Controller {
        recorder: context.recorder("horizontal-pod-autoscaler"),
        autoscalers: autoscalers.clone(),
        memory: Mutex::default(),
        context: Arc::clone(&context),
    });
    let queue = WorkQueue::default();
    let (changed, this) = (queue.clone(), Arc::clone(&controller));
    autoscalers.on_change(move |delta| {
        let key = Key::of(&**delta.object());
        if delta.is_delete() {
            this.memory.lock().remove(&key);
        } else if is_news(delta) {
            changed.add(key);
        }
    });
    autoscalers.synced().await;
    context.informers.pods.synced().await;
    context
        .work("horizontalpodautoscaler", queue, move |key| {
            let this = Arc::clone(&controller);
            async move { this.reconcile(key).await }
        })
        .await;
}

/// Not our own writes of the status.
fn is_news(delta: &Delta<HorizontalPodAutoscaler>) -> bool {
    delta
        .old()
        .is_none_or(|old| old.spec != delta.object().spec)
}

/// An autoscaler on its way to a new status.
struct Round {
    autoscaler: Arc<HorizontalPodAutoscaler>,
    spec: HorizontalPodAutoscalerSpec,
    namespace: String,
    status: HorizontalPodAutoscalerStatus,
    now: Timestamp,
}

/// Why a round ended without a decision. The status has been set.
struct Stopped;

impl Round {
    fn new(autoscaler: Arc<HorizontalPodAutoscaler>, now: Timestamp) -> Option<Self> {
        let status = autoscaler.status.clone().unwrap_or_default();
        Some(Self {
            spec: autoscaler.spec.clone()?,
            namespace: autoscaler.namespace().unwrap_or_default(),
            status,
            autoscaler,
            now,
        })
    }

    fn condition(&mut self, type_: &str, holds: bool, reason: &str, message: impl Into<String>) {
        let status = if holds { "True" } else { "False" };
        let conditions = self.status.conditions.get_or_insert_default();
        let place = conditions.iter().position(|c| c.type_ == type_);
        let place = place.unwrap_or_else(|| {
            conditions.push(HorizontalPodAutoscalerCondition {
                type_: type_.to_owned(),
                ..HorizontalPodAutoscalerCondition::default()
            });
            conditions.len() - 1
        });
        let condition = &mut conditions[place];
        if condition.status != status {
            condition.last_transition_time = Some(balsa_client::time::time(self.now));
        }
        condition.status = status.to_owned();
        condition.reason = Some(reason.to_owned());
        condition.message = Some(message.into());
    }

    fn bounds(&self) -> Bounds {
        Bounds {
            min: self.spec.min_replicas.unwrap_or(1),
            max: self.spec.max_replicas,
        }
    }
}

/// The number of replicas, and why.
struct Verdict {
    replicas: i32,
    reason: String,
}

fn number(value: &Value) -> i32 {
    let number = value.int().unwrap_or_default();
    i32::try_from(number).unwrap_or(i32::MAX)
}

impl Controller {
    async fn reconcile(&self, key: Key) -> Result<Outcome> {
        let Some(autoscaler) = self.autoscalers.get(&key.namespace, &key.name) else {
            return Ok(Outcome::Done);
        };
        let Some(mut round) = Round::new(autoscaler, Timestamp::now()) else {
            return Ok(Outcome::Done);
        };
        // A failure is in the status; it is looked at again in any case.
        let _: std::result::Result<(), Stopped> = self.round(&key, &mut round).await;
        self.write_status(&round).await?;
        Ok(Outcome::After(EVERY))
    }

    async fn round(&self, key: &Key, round: &mut Round) -> std::result::Result<(), Stopped> {
        let (resource, scale) = self.target(round).await?;
        let current = number(&scale["spec"]["replicas"]);
        {
            let mut memory = self.memory.lock();
            let memory = memory.entry(key.clone()).or_default();
            memory.history.begin(current, round.now);
        }
        round.status.current_replicas = Some(current);
        let verdict = self.decide(key, round, &scale, current).await?;
        round.status.desired_replicas = current;
        let Some(verdict) = verdict.filter(|v| v.replicas != current) else {
            return Ok(());
        };
        let written = scale::write(&self.context.client, &resource, &scale, verdict.replicas);
        let (size, reason) = (verdict.replicas, &verdict.reason);
        if let Err(error) = written.await {
            // Somebody else changed it: next time.
            let why = message(&error);
            let text = format!("New size: {size}; reason: {reason}; error: {why}");
            self.warn(round, "FailedRescale", text);
            round.condition(
                "AbleToScale",
                false,
                "FailedUpdateScale",
                format!("the HPA controller was unable to update the target scale: {why}"),
            );
            return Err(Stopped);
        }
        round.condition(
            "AbleToScale",
            true,
            "SucceededRescale",
            format!("the HPA controller was able to update the target scale to {size}"),
        );
        self.recorder.event(
            &*round.autoscaler,
            EventType::Normal,
            "SuccessfulRescale",
            format!("New size: {size}; reason: {reason}"),
        );
        if let Some(memory) = self.memory.lock().get_mut(key) {
            memory.history.changed(current, size, round.now);
        }
        round.status.desired_replicas = size;
        round.status.last_scale_time = Some(balsa_client::time::time(round.now));
        Ok(())
    }

    fn warn(&self, round: &Round, reason: &str, text: impl Into<String>) {
        self.recorder
            .event(&*round.autoscaler, EventType::Warning, reason, text);
    }

    /// The target's scale.
    async fn target(&self, round: &mut Round) -> std::result::Result<(Resource, Value), Stopped> {
        let reference = round.spec.scale_target_ref.clone();
        let client = &self.context.client;
        let found = async {
            let resource = scale::resource_of(client, &reference).await?;
            let scale = scale::read(client, &resource, &round.namespace, &reference.name).await;
            Ok::<_, String>((resource, scale.map_err(|error| message(&error))?))
        };
        match found.await {
            Ok(found) => {
                round.condition(
                    "AbleToScale",
                    true,
                    "SucceededGetScale",
                    "the HPA controller was able to get the target's current scale",
                );
                Ok(found)
            }
            Err(why) => {
                self.warn(round, "FailedGetScale", why.clone());
                round.condition(
                    "AbleToScale",
                    false,
                    "FailedGetScale",
                    format!(
                        "the HPA controller was unable to get the target's current scale: {why}"
                    ),
                );
                Err(Stopped)
            }
        }
    }

    /// `None` when scaling is off.
    async fn decide(
        &self,
        key: &Key,
        round: &mut Round,
        scale: &Value,
        current: i32,
    ) -> std::result::Result<Option<Verdict>, Stopped> {
        let bounds = round.bounds();
        if current == 0 && bounds.min != 0 {
            round.condition(
                "ScalingActive",
                false,
                "ScalingDisabled",
                "scaling is disabled since the replica count of the target is zero",
            );
            return Ok(None);
        }
        let outside = |replicas, words: &str| {
            Ok(Some(Verdict {
                replicas,
                reason: format!("Current number of replicas {words}"),
            }))
        };
        if current > bounds.max {
            return outside(bounds.max, "above Spec.MaxReplicas");
        }
        if current < bounds.min {
            return outside(bounds.min, "below Spec.MinReplicas");
        }
        let (wanted, metric) = self.measure(key, round, scale, current).await?;
        let decision = {
            let mut memory = self.memory.lock();
            let memory = memory.entry(key.clone()).or_default();
            normalize(
                &mut memory.history,
                round.spec.behavior.as_ref(),
                current,
                wanted,
                bounds,
                round.now,
            )
        };
        let (reason, text) = decision.able;
        round.condition("AbleToScale", true, reason, text);
        let (limited, (reason, text)) = decision.limited;
        round.condition("ScalingLimited", limited, reason, text);
        let reason = if wanted > current {
            format!("{metric} above target")
        } else {
            "All metrics below target".to_owned()
        };
        Ok(Some(Verdict {
            replicas: decision.replicas,
            reason,
        }))
    }

    /// What the metrics call for, and which of them decided.
    async fn measure(
        &self,
        key: &Key,
        round: &mut Round,
        scale: &Value,
        current: i32,
    ) -> std::result::Result<(i32, String), Stopped> {
        let text = scale["status"]["selector"].text().to_owned();
        let pods = self.select(key, round, &text)?;
        let namespace = round.namespace.clone();
        let scaled = Scaled {
            source: metrics::Source {
                client: &self.context.client,
                namespace: &namespace,
            },
            selector: &text,
            pods: &pods,
            current,
            observed: number(&scale["status"]["replicas"]),
            tolerances: specs::tolerances(round.spec.behavior.as_ref()),
            now: round.now,
        };
        let mut outcomes = Vec::new();
        let mut failures: Vec<Failure> = Vec::new();
        let mut statuses: Vec<MetricStatus> = Vec::new();
        let all = round.spec.metrics.clone().unwrap_or_default();
        for metric in &all {
            match scaled.ask(metric).await {
                Ok(outcome) => {
                    statuses.push(outcome.status.clone());
                    outcomes.push(outcome);
                }
                Err(failure) => {
                    self.warn(round, failure.reason, failure.message.clone());
                    failures.push(failure);
                }
            }
        }
        round.status.current_metrics = Some(statuses).filter(|s| !s.is_empty());
        let best = specs::highest(&outcomes);
        // With some metrics unknown it is only safe to go up.
        let enough = best.filter(|best| failures.is_empty() || best.replicas >= current);
        let Some(best) = enough else {
            let first = failures.first();
            let (reason, why) = first.map_or(("InvalidMetricSourceType", ""), |f| {
                (f.reason, f.message.as_str())
            });
            round.condition(
                "ScalingActive",
                false,
                reason,
                format!("the HPA was unable to compute the replica count: {why}"),
            );
            let text = format!(
                "invalid metrics ({} invalid out of {}), first error is: {}",
                failures.len(),
                all.len(),
                first.map_or("", |f| f.told.as_str())
            );
            self.warn(round, "FailedComputeMetricsReplicas", text);
            return Err(Stopped);
        };
        round.condition(
            "ScalingActive",
            true,
            "ValidMetricFound",
            format!(
                "the HPA was able to successfully calculate a replica count from {}",
                best.name
            ),
        );
        Ok((best.replicas, best.name.clone()))
    }

    /// The target's pods.
    fn select(
        &self,
        key: &Key,
        round: &mut Round,
        text: &str,
    ) -> std::result::Result<Vec<Arc<Pod>>, Stopped> {
        if text.is_empty() {
            self.warn(round, "SelectorRequired", "selector is required");
            round.condition(
                "ScalingActive",
                false,
                "InvalidSelector",
                "the HPA target's scale is missing a selector",
            );
            return Err(Stopped);
        }
        let selector = Selector::parse(text).map_err(|error| {
            let why = format!(
                "couldn't convert selector into a corresponding internal selector object: {error}"
            );
            self.warn(round, "InvalidSelector", why.clone());
            round.condition("ScalingActive", false, "InvalidSelector", why);
            Stopped
        })?;
        let mut pods = self.context.informers.pods.list_namespace(&round.namespace);
        pods.retain(|pod| matches(&selector, pod));
        let others = self.others(key, &selector, &pods);
        if !others.is_empty() {
            let why = format!(
                "pods by selector {text} are controlled by multiple HPAs: [{}]",
                others.join(" ")
            );
            self.warn(round, "AmbiguousSelector", why.clone());
            round.condition("ScalingActive", false, "AmbiguousSelector", why);
            return Err(Stopped);
        }
        Ok(pods)
    }

    /// Remembers an autoscaler's selector, and returns all autoscalers of its pods when there are several.
    fn others(&self, key: &Key, selector: &Selector, pods: &[Arc<Pod>]) -> Vec<String> {
        let mut memory = self.memory.lock();
        memory.entry(key.clone()).or_default().selector = Some(selector.clone());
        let mut names: Vec<String> = memory
            .iter()
            .filter(|(other, _)| other.namespace == key.namespace)
            .filter(|(other, memory)| {
                let Some(own) = &memory.selector else {
                    return false;
                };
                *other == key || pods.iter().any(|pod| matches(own, pod))
            })
            .map(|(other, _)| format!("{}/{}", other.namespace, other.name))
            .collect();
        names.sort();
        if names.len() > 1 { names } else { Vec::new() }
    }

    async fn write_status(&self, round: &Round) -> Result<()> {
        if round.autoscaler.status.as_ref() == Some(&round.status) {
            return Ok(());
        }
        let api = self
            .context
            .api::<HorizontalPodAutoscaler>(&round.namespace);
        let mut patch = json!({
            "metadata": {"resourceVersion": round.autoscaler.metadata.resource_version},
            "status": round.status,
        });
        if round.status.current_metrics.is_none() {
            // Or the patch would leave those of an earlier round.
            patch["status"]["currentMetrics"] = Value::Null;
        }
        let name = round.autoscaler.name_any();
        let written = api
            .patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch))
            .await;
        match unless_gone(written) {
            // Changed meanwhile; the next round sees it.
            Err(error) if error.is_conflict() => Ok(()),
            other => other.map(|_| ()).map_err(Into::into),
        }
    }
}

fn matches(selector: &Selector, pod: &Pod) -> bool {
    let empty = std::collections::BTreeMap::new();
    selector.matches(pod.metadata.labels.as_ref().unwrap_or(&empty))
}

#[cfg(test)]
mod tests;
