//! From one metric of a spec to the replicas it calls for, and what its status shows.

use balsa_api::quantity::Quantity;
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, ExternalMetricStatus, HorizontalPodAutoscalerBehavior,
    MetricIdentifier, MetricSpec, MetricStatus, MetricTarget, MetricValueStatus,
    ObjectMetricStatus, PodsMetricStatus, ResourceMetricStatus,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as QuantityField;
use kube::ResourceExt;

use super::metrics::{Requests, Source, Wanted};
use super::replicas::{Phase, PodFacts, Proposal, Target, Tolerances, by_pods, by_share, by_value};
use super::scale;
use crate::support::pods;

/// What is scaled, as it is now.
pub(super) struct Scaled<'a> {
    pub(super) source: Source<'a>,
    /// Selector of its pods, as text.
    pub(super) selector: &'a str,
    pub(super) pods: &'a [std::sync::Arc<Pod>],
    /// `spec.replicas` and `status.replicas` of its scale.
    pub(super) current: i32,
    pub(super) observed: i32,
    pub(super) tolerances: Tolerances,
    pub(super) now: Timestamp,
}

/// What one metric says.
pub(super) struct Outcome {
    pub(super) replicas: i32,
    /// For reasons: `cpu resource utilization (percentage of request)`.
    pub(super) name: String,
    pub(super) status: MetricStatus,
}

/// Why a metric says nothing.
pub(super) struct Failure {
    /// Reason of the condition and the event.
    pub(super) reason: &'static str,
    /// Message of the event and, after some words, of the condition.
    pub(super) message: String,
    /// What is told of it among several metrics.
    pub(super) told: String,
}

/// Tolerances that a behavior names.
pub(super) fn tolerances(behavior: Option<&HorizontalPodAutoscalerBehavior>) -> Tolerances {
    let named = |rules: Option<&k8s_openapi::api::autoscaling::v2::HPAScalingRules>| {
        let tolerance = rules.and_then(|rules| rules.tolerance.as_ref())?;
        tolerance.0.parse::<Quantity>().ok().map(|q| q.as_f64())
    };
    let usual = Tolerances::DEFAULT;
    Tolerances {
        down: named(behavior.and_then(|b| b.scale_down.as_ref())).unwrap_or(usual.down),
        up: named(behavior.and_then(|b| b.scale_up.as_ref())).unwrap_or(usual.up),
    }
}

fn milli(quantity: Option<&QuantityField>) -> Option<i64> {
    let quantity: Quantity = quantity?.0.parse().ok()?;
    Some(quantity.milli_value())
}

fn quantity(milli: i64) -> QuantityField {
    QuantityField(Quantity::from_millis(milli).to_string())
}

fn average(proposal: &Proposal) -> MetricValueStatus {
    MetricValueStatus {
        average_utilization: proposal.utilization,
        average_value: Some(quantity(proposal.average)),
        value: None,
    }
}

/// What the algorithm asks of pods.
pub(super) fn facts(pod: &Pod) -> PodFacts {
    let status = pod.status.as_ref();
    let ready = pods::condition(pod, "Ready").map(|condition| {
        let since = condition.last_transition_time.as_ref().map(|t| t.0);
        (condition.status == "True", since.unwrap_or_default())
    });
    PodFacts {
        name: pod.name_any(),
        deleted: pod.metadata.deletion_timestamp.is_some(),
        phase: match pods::phase(pod) {
            "Pending" => Phase::Pending,
            "Failed" => Phase::Failed,
            _ => Phase::Other,
        },
        started: status.and_then(|s| s.start_time.as_ref()).map(|t| t.0),
        ready,
    }
}

/// What a pod, or one of its containers, requests of a resource.
fn request(pod: &Pod, container: Option<&str>, resource: &str) -> Result<i64, String> {
    let Some(spec) = &pod.spec else {
        return Ok(0);
    };
    let whole = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
    let whole = whole.and_then(|requests| milli(requests.get(resource)));
    if let (None, Some(whole)) = (container, whole) {
        return Ok(whole);
    }
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let mut total: i64 = 0;
    let mut found = false;
    for own in spec.containers.iter().chain(sidecars) {
        if container.is_some_and(|wanted| wanted != own.name) {
            continue;
        }
        found = true;
        let requests = own.resources.as_ref().and_then(|r| r.requests.as_ref());
        let amount = requests.and_then(|requests| milli(requests.get(resource)));
        let amount = amount.ok_or_else(|| {
            format!(
                "missing request for {resource} in container {} of Pod {}",
                own.name,
                pod.name_any()
            )
        })?;
        total = total.saturating_add(amount);
    }
    match container {
        Some(container) if !found => Err(format!(
            "container {container} not found in Pod {}",
            pod.name_any()
        )),
        _ => Ok(total),
    }
}

impl Scaled<'_> {
    /// What one metric calls for.
    pub(super) async fn ask(&self, spec: &MetricSpec) -> Result<Outcome, Failure> {
        match spec.type_.as_str() {
            "Resource" => self.resource(spec).await,
            "ContainerResource" => self.container(spec).await,
            "Pods" => self.pods_metric(spec).await,
            "Object" => self.object(spec).await,
            "External" => self.external(spec).await,
            other => Err(Failure {
                reason: "InvalidMetricSourceType",
                message: format!("unknown metric source type {other:?}"),
                told: format!("unknown metric source type {other:?}"),
            }),
        }
    }

    fn facts(&self) -> Vec<PodFacts> {
        self.pods.iter().map(|pod| facts(pod)).collect()
    }

    fn ready(&self) -> usize {
        let ready = self
            .pods
            .iter()
            .filter(|pod| pods::phase(pod) == "Running" && pods::is_ready(pod));
        ready.count()
    }

    /// Usage of a resource by pods or by one container of each. Returns the proposal and the words for it.
    async fn usage(
        &self,
        resource: &str,
        container: Option<&str>,
        target: &MetricTarget,
    ) -> Result<(Proposal, String), String> {
        let average = milli(target.average_value.as_ref());
        let utilization = target.average_utilization;
        let (what, words) = match (average, utilization) {
            (Some(_), _) => ("usage", format!("{resource} resource")),
            (None, Some(_)) => (
                "utilization",
                format!("{resource} resource utilization (percentage of request)"),
            ),
            (None, None) => {
                return Err("invalid resource metric source: neither an average utilization target nor an average value (usage) target was set".to_owned());
            }
        };
        let failed = |why: String| format!("failed to get {resource} {what}: {why}");
        let metrics = self
            .source
            .resource(resource, container, self.selector)
            .await
            .map_err(failed)?;
        let mut requests = Requests::new();
        let target = match (average, utilization) {
            (None, Some(percent)) => {
                for pod in self.pods {
                    let amount = request(pod, container, resource).map_err(failed)?;
                    requests.insert(pod.name_any(), amount);
                }
                Target::Utilization(percent, &requests)
            }
            (average, _) => Target::Average(average.unwrap_or(1)),
        };
        let proposal = by_pods(
            self.current,
            &target,
            self.tolerances,
            &self.facts(),
            metrics,
            resource == "cpu",
            self.now,
        );
        Ok((proposal.map_err(failed)?, words))
    }

    async fn resource(&self, spec: &MetricSpec) -> Result<Outcome, Failure> {
        let failed = |why: String| {
            failure("FailedGetResourceMetric", why, |why| {
                let name = spec.resource.as_ref().map_or("", |s| s.name.as_str());
                format!("failed to get {name} resource metric value: {why}")
            })
        };
        let source = spec.resource.as_ref().ok_or_else(|| failed(unset()))?;
        let found = self.usage(&source.name, None, &source.target).await;
        let (proposal, name) = found.map_err(failed)?;
        Ok(Outcome {
            replicas: proposal.replicas,
            name,
            status: MetricStatus {
                type_: spec.type_.clone(),
                resource: Some(ResourceMetricStatus {
                    name: source.name.clone(),
                    current: average(&proposal),
                }),
                ..MetricStatus::default()
            },
        })
    }

    async fn container(&self, spec: &MetricSpec) -> Result<Outcome, Failure> {
        let failed = |why: String| {
            failure("FailedGetContainerResourceMetric", why, |why| {
                let name = spec
                    .container_resource
                    .as_ref()
                    .map_or("", |s| s.name.as_str());
                format!("failed to get {name} container metric value: {why}")
            })
        };
        let source = spec.container_resource.as_ref();
        let source = source.ok_or_else(|| failed(unset()))?;
        let container = Some(source.container.as_str());
        let found = self.usage(&source.name, container, &source.target).await;
        let (proposal, name) = found.map_err(failed)?;
        Ok(Outcome {
            replicas: proposal.replicas,
            name,
            status: MetricStatus {
                type_: spec.type_.clone(),
                container_resource: Some(ContainerResourceMetricStatus {
                    container: source.container.clone(),
                    name: source.name.clone(),
                    current: average(&proposal),
                }),
                ..MetricStatus::default()
            },
        })
    }

    async fn pods_metric(&self, spec: &MetricSpec) -> Result<Outcome, Failure> {
        let failed = |why: String| {
            failure("FailedGetPodsMetric", why, |why| {
                format!("failed to get pods metric value: {why}")
            })
        };
        let source = spec.pods.as_ref().ok_or_else(|| failed(unset()))?;
        let target = milli(source.target.average_value.as_ref()).unwrap_or(1);
        let selector = selector_of(&source.metric);
        let wanted = Wanted {
            name: &source.metric.name,
            selector: &selector,
        };
        let metrics = self.source.of_pods(wanted, self.selector).await;
        let proposal = by_pods(
            self.current,
            &Target::Average(target),
            self.tolerances,
            &self.facts(),
            metrics.map_err(failed)?,
            false,
            self.now,
        );
        let proposal = proposal.map_err(failed)?;
        Ok(Outcome {
            replicas: proposal.replicas,
            name: format!("pods metric {}", source.metric.name),
            status: MetricStatus {
                type_: spec.type_.clone(),
                pods: Some(PodsMetricStatus {
                    metric: source.metric.clone(),
                    current: average(&proposal),
                }),
                ..MetricStatus::default()
            },
        })
    }

    /// Replicas for a usage, and what is shown of it.
    fn shared(&self, target: &MetricTarget, usage: i64) -> Option<(i32, MetricValueStatus)> {
        if let Some(target) = milli(target.value.as_ref()) {
            let replicas = by_value(self.current, usage, target, self.tolerances, self.ready());
            let value = MetricValueStatus {
                value: Some(quantity(usage)),
                ..MetricValueStatus::default()
            };
            return Some((replicas, value));
        }
        let target = milli(target.average_value.as_ref())?;
        let (replicas, share) = by_share(self.observed, usage, target, self.tolerances);
        let value = MetricValueStatus {
            average_value: Some(quantity(share)),
            ..MetricValueStatus::default()
        };
        Some((replicas, value))
    }

    async fn object(&self, spec: &MetricSpec) -> Result<Outcome, Failure> {
        let failed = |why: String| {
            failure("FailedGetObjectMetric", why, |why| {
                format!("failed to get object metric value: {why}")
            })
        };
        let source = spec.object.as_ref().ok_or_else(|| failed(unset()))?;
        let object = &source.described_object;
        let resource = if object.kind == "Namespace" {
            "namespaces".to_owned()
        } else {
            let resource = scale::resource_of(self.source.client, object).await;
            resource.map_err(failed)?.name()
        };
        let selector = selector_of(&source.metric);
        let wanted = Wanted {
            name: &source.metric.name,
            selector: &selector,
        };
        let usage = self.source.of_object(wanted, &resource, &object.name).await;
        let usage = usage.map_err(failed)?;
        let (replicas, current) = self.shared(&source.target, usage).ok_or_else(|| {
            failed("invalid object metric source: neither a value target nor an average value target was set".to_owned())
        })?;
        Ok(Outcome {
            replicas,
            name: format!("{} metric {}", object.kind, source.metric.name),
            status: MetricStatus {
                type_: spec.type_.clone(),
                object: Some(ObjectMetricStatus {
                    current,
                    described_object: object.clone(),
                    metric: source.metric.clone(),
                }),
                ..MetricStatus::default()
            },
        })
    }

    async fn external(&self, spec: &MetricSpec) -> Result<Outcome, Failure> {
        let failed = |why: String| {
            failure("FailedGetExternalMetric", why, |why| {
                let name = spec
                    .external
                    .as_ref()
                    .map_or("", |s| s.metric.name.as_str());
                format!("failed to get {name} external metric value: {why}")
            })
        };
        let source = spec.external.as_ref().ok_or_else(|| failed(unset()))?;
        let selector = selector_of(&source.metric);
        let wanted = Wanted {
            name: &source.metric.name,
            selector: &selector,
        };
        let values = self.source.external(wanted).await.map_err(failed)?;
        let usage = values.iter().copied().fold(0, i64::saturating_add);
        let (replicas, current) = self.shared(&source.target, usage).ok_or_else(|| {
            failed("invalid external metric source: neither a value target nor an average value target was set".to_owned())
        })?;
        Ok(Outcome {
            replicas,
            name: format!("external metric {}", source.metric.name),
            status: MetricStatus {
                type_: spec.type_.clone(),
                external: Some(ExternalMetricStatus {
                    current,
                    metric: source.metric.clone(),
                }),
                ..MetricStatus::default()
            },
        })
    }
}

fn failure(reason: &'static str, why: String, told: impl Fn(&str) -> String) -> Failure {
    Failure {
        reason,
        told: told(&why),
        message: why,
    }
}

fn unset() -> String {
    "the metric source is not set".to_owned()
}

/// A metric's selector in the form of queries.
fn selector_of(metric: &MetricIdentifier) -> String {
    metric.selector.as_ref().map_or_else(String::new, text_of)
}

/// A LabelSelector in the form of queries.
fn text_of(selector: &k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector) -> String {
    let labels = selector.match_labels.iter().flatten();
    let mut parts: Vec<String> = labels
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    for rule in selector.match_expressions.iter().flatten() {
        let values = rule
            .values
            .iter()
            .flatten()
            .cloned()
            .collect::<Vec<_>>()
            .join(",");
        parts.push(match rule.operator.as_str() {
            "In" => format!("{} in ({values})", rule.key),
            "NotIn" => format!("{} notin ({values})", rule.key),
            "DoesNotExist" => format!("!{}", rule.key),
            _ => rule.key.clone(),
        });
    }
    parts.join(",")
}

/// The highest of several proposals counts.
pub(super) fn highest(outcomes: &[Outcome]) -> Option<&Outcome> {
    // Of equals the first.
    outcomes.iter().rev().max_by_key(|outcome| outcome.replicas)
}
