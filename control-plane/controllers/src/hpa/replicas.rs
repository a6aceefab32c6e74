//! How many replicas a metric calls for. Pure.
//!
//! Rules: the documented algorithm of the HorizontalPodAutoscaler, `desired = ceil(current * usage / target)`, with what
//! is not known assumed against the direction of scaling.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

/// What a metric says of one pod, in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PodMetric {
    pub(super) value: i64,
    pub(super) at: Timestamp,
    pub(super) window: SignedDuration,
}

/// Metrics by the pod's name.
pub(super) type Metrics = BTreeMap<String, PodMetric>;

/// What is asked of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodFacts {
    pub(super) name: String,
    pub(super) deleted: bool,
    pub(super) phase: Phase,
    /// When it was started by the node.
    pub(super) started: Option<Timestamp>,
    /// Whether it is ready, and since when.
    pub(super) ready: Option<(bool, Timestamp)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Pending,
    Failed,
    Other,
}

/// How far usage may be off before anything is done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Tolerances {
    pub(super) down: f64,
    pub(super) up: f64,
}

impl Tolerances {
    /// One tenth both ways.
    pub(super) const DEFAULT: Self = Self { down: 0.1, up: 0.1 };

    fn within(self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}

/// How long after its start a pod's CPU may be that of its initialisation.
const CPU_INITIALIZATION: SignedDuration = SignedDuration::from_secs(300);
/// How long after its start a pod that is not ready may not have been ready yet.
const INITIAL_READINESS: SignedDuration = SignedDuration::from_secs(30);

/// Pods by what their metrics are worth.
#[derive(Debug, Default, PartialEq, Eq)]
struct Groups {
    ready: usize,
    unready: BTreeSet<String>,
    missing: BTreeSet<String>,
    ignored: BTreeSet<String>,
}

fn group(pods: &[PodFacts], metrics: &Metrics, cpu: bool, now: Timestamp) -> Groups {
    let mut groups = Groups::default();
    for pod in pods {
        let name = pod.name.clone();
        if pod.deleted || pod.phase == Phase::Failed {
            groups.ignored.insert(name);
        } else if pod.phase == Phase::Pending {
            groups.unready.insert(name);
        } else if let Some(metric) = metrics.get(&name) {
            if cpu && is_starting(pod, metric, now) {
                groups.unready.insert(name);
            } else {
                groups.ready += 1;
            }
        } else {
            groups.missing.insert(name);
        }
    }
    groups
}

/// CPU of a pod that starts says nothing of its load.
fn is_starting(pod: &PodFacts, metric: &PodMetric, now: Timestamp) -> bool {
    let (Some(started), Some((ready, since))) = (pod.started, pod.ready) else {
        return true;
    };
    if now.duration_since(started) < CPU_INITIALIZATION {
        // Measured over a time that began before it was ready.
        return !ready || metric.at.duration_since(since) < metric.window;
    }
    !ready && since.duration_since(started) < INITIAL_READINESS
}

/// What a metric calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Proposal {
    pub(super) replicas: i32,
    /// Percent of the request, for utilization targets.
    pub(super) utilization: Option<i32>,
    /// Average per pod, in thousandths.
    pub(super) average: i64,
}

/// What pods' usage is compared with.
pub(super) enum Target<'a> {
    /// Percent of what the pods request, in thousandths by pod.
    Utilization(i32, &'a BTreeMap<String, i64>),
    /// A value per pod, in thousandths.
    Average(i64),
}

/// Usage over target, with utilization and average.
struct Ratio {
    ratio: f64,
    utilization: Option<i32>,
    average: i64,
}

impl Target<'_> {
    fn ratio(&self, metrics: &Metrics) -> Result<Ratio, String> {
        match self {
            Self::Utilization(target, requests) => {
                let mut used: i64 = 0;
                let mut requested: i64 = 0;
                let mut count: i64 = 0;
                for (pod, metric) in metrics {
                    // Metrics and pods may be of different moments.
                    let Some(request) = requests.get(pod) else {
                        continue;
                    };
                    used = used.saturating_add(metric.value);
                    requested = requested.saturating_add(*request);
                    count += 1;
                }
                if requested == 0 || count == 0 {
                    return Err("no metrics returned matched known pods".to_owned());
                }
                let percent = i128::from(used) * 100 / i128::from(requested);
                let percent = i32::try_from(percent).unwrap_or(i32::MAX);
                Ok(Ratio {
                    ratio: f64::from(percent) / f64::from(*target),
                    utilization: Some(percent),
                    average: used / count,
                })
            }
            Self::Average(target) => {
                let total: i64 = metrics.values().map(|m| m.value).sum();
                let average = total / i64::try_from(metrics.len().max(1)).unwrap_or(1);
                Ok(Ratio {
                    ratio: average as f64 / (*target).max(1) as f64,
                    utilization: None,
                    average,
                })
            }
        }
    }

    /// What a pod without metrics is assumed to use while the others use too little.
    fn assumed(&self, pod: &str) -> i64 {
        match self {
            Self::Utilization(target, requests) => {
                let request = requests.get(pod).copied().unwrap_or_default();
                let percent = i128::from((*target).max(100));
                i64::try_from(i128::from(request) * percent / 100).unwrap_or(i64::MAX)
            }
            Self::Average(target) => *target,
        }
    }
}

/// The number of replicas that pods' usage calls for. `cpu`: the metric is CPU, which start-up distorts.
pub(super) fn by_pods(
    current: i32,
    target: &Target<'_>,
    tolerances: Tolerances,
    pods: &[PodFacts],
    mut metrics: Metrics,
    cpu: bool,
    now: Timestamp,
) -> Result<Proposal, String> {
    if pods.is_empty() {
        return Err("no pods returned by selector while calculating replica count".to_owned());
    }
    let groups = group(pods, &metrics, cpu, now);
    metrics.retain(|pod, _| !groups.ignored.contains(pod) && !groups.unready.contains(pod));
    if metrics.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".to_owned());
    }
    let Ratio {
        ratio,
        utilization,
        average,
    } = target.ratio(&metrics)?;
    let proposal = |replicas| Proposal {
        replicas,
        utilization,
        average,
    };
    let count_unready = !groups.unready.is_empty() && ratio > 1.0;
    if !count_unready && groups.missing.is_empty() {
        if tolerances.within(ratio) {
            return Ok(proposal(current));
        }
        return Ok(proposal(times(ratio, groups.ready)));
    }
    let assume = |value| PodMetric {
        value,
        at: now,
        window: SignedDuration::ZERO,
    };
    for pod in &groups.missing {
        if ratio < 1.0 {
            metrics.insert(pod.clone(), assume(target.assumed(pod)));
        } else if ratio > 1.0 {
            metrics.insert(pod.clone(), assume(0));
        }
    }
    if count_unready {
        metrics.extend(groups.unready.iter().map(|pod| (pod.clone(), assume(0))));
    }
    let assumed = target.ratio(&metrics)?.ratio;
    let turned = (ratio < 1.0 && assumed > 1.0) || (ratio > 1.0 && assumed < 1.0);
    if tolerances.within(assumed) || turned {
        return Ok(proposal(current));
    }
    let replicas = times(assumed, metrics.len());
    // What was assumed must not turn the direction.
    if (assumed < 1.0 && replicas > current) || (assumed > 1.0 && replicas < current) {
        return Ok(proposal(current));
    }
    Ok(proposal(replicas))
}

/// The number of replicas that one value for all of them calls for; `ready` pods share it now.
pub(super) fn by_value(
    current: i32,
    usage: i64,
    target: i64,
    tolerances: Tolerances,
    ready: usize,
) -> i32 {
    let ratio = usage as f64 / target.max(1) as f64;
    if current == 0 {
        return times(ratio, 1);
    }
    if tolerances.within(ratio) {
        return current;
    }
    times(ratio, ready)
}

/// The number of replicas such that each has its share of a value. Returns the share that each has now, too.
pub(super) fn by_share(
    current: i32,
    usage: i64,
    target: i64,
    tolerances: Tolerances,
) -> (i32, i64) {
    let target = target.max(1);
    let ratio = usage as f64 / (target as f64 * f64::from(current));
    let replicas = if current > 0 && tolerances.within(ratio) {
        current
    } else {
        times(usage as f64 / target as f64, 1)
    };
    let share = usage as f64 / f64::from(current.max(1));
    (replicas, share.ceil() as i64)
}

fn times(ratio: f64, count: usize) -> i32 {
    // `as` saturates.
    (ratio * count as f64).ceil() as i32
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_second(100_000).unwrap()
    }

    fn pod(name: &str) -> PodFacts {
        PodFacts {
            name: name.into(),
            deleted: false,
            phase: Phase::Other,
            started: Timestamp::from_second(1000).ok(),
            ready: Some((true, Timestamp::from_second(1010).unwrap())),
        }
    }

    fn pods(count: usize) -> Vec<PodFacts> {
        (0..count).map(|i| pod(&i.to_string())).collect()
    }

    fn metrics(values: &[i64]) -> Metrics {
        let metric = |value| PodMetric {
            value,
            at: now(),
            window: SignedDuration::from_secs(15),
        };
        values
            .iter()
            .enumerate()
            .map(|(i, v)| (i.to_string(), metric(*v)))
            .collect()
    }

    /// Pods request 1000 each.
    fn utilization(current: i32, target: i32, pods: &[PodFacts], values: &[i64]) -> Proposal {
        let requests = pods.iter().map(|p| (p.name.clone(), 1000)).collect();
        let target = Target::Utilization(target, &requests);
        by_pods(
            current,
            &target,
            Tolerances::DEFAULT,
            pods,
            metrics(values),
            true,
            now(),
        )
        .unwrap()
    }

    #[test]
    fn replicas_follow_the_ratio_of_usage_to_target() {
        let up = utilization(3, 30, &pods(3), &[300, 500, 700]);
        assert_eq!(
            (up.replicas, up.utilization, up.average),
            (5, Some(50), 500)
        );
        let down = utilization(5, 50, &pods(5), &[100, 300, 500, 250, 250]);
        assert_eq!((down.replicas, down.utilization), (3, Some(28)));
    }

    #[test]
    fn a_ratio_within_the_tolerance_changes_nothing() {
        assert_eq!(
            utilization(3, 100, &pods(3), &[1010, 1030, 1020]).replicas,
            3
        );
        assert_eq!(utilization(3, 50, &pods(3), &[545, 545, 545]).replicas, 3);
    }

    #[test]
    fn pods_that_start_count_as_idle_when_scaling_up_and_not_at_all_when_down() {
        let mut three = pods(3);
        three[1].ready = Some((false, now()));
        three[1].started = Some(now());
        // 400 and 800 of 1000, target 30%: 60/30 for two; with an idle third 40/30.
        let up = utilization(3, 30, &three, &[400, 900, 800]);
        assert_eq!((up.replicas, up.utilization), (4, Some(60)));
        let pending = PodFacts {
            phase: Phase::Pending,
            ..pod("1")
        };
        let mut three = pods(3);
        three[1] = pending;
        let down = utilization(3, 50, &three, &[100, 0, 100]);
        assert_eq!(down.replicas, 1);
    }

    #[test]
    fn missing_metrics_are_assumed_against_the_direction() {
        // One of four is missing: 100% assumed when the others call for less.
        let down = utilization(4, 100, &pods(4), &[150, 150, 150]);
        assert_eq!(down.replicas, 2);
        // Nothing assumed when they call for more; the turn of direction stops at the present number.
        let up = utilization(2, 60, &pods(2), &[900]);
        assert_eq!(up.replicas, 2);
    }

    #[test]
    fn terminating_and_failed_pods_do_not_count() {
        let mut four = pods(4);
        four[2].deleted = true;
        four[3].phase = Phase::Failed;
        let up = utilization(2, 50, &four, &[1000, 1000, 1, 1]);
        assert_eq!(up.replicas, 4);
    }

    #[test]
    fn what_cannot_be_known_is_an_error() {
        let ask = |pods: &[PodFacts], values: &[i64]| {
            let target = Target::Average(100);
            by_pods(
                1,
                &target,
                Tolerances::DEFAULT,
                pods,
                metrics(values),
                false,
                now(),
            )
        };
        assert!(ask(&[], &[1]).unwrap_err().starts_with("no pods returned"));
        assert!(ask(&pods(1), &[]).unwrap_err().contains("might be unready"));
        assert_eq!(ask(&pods(2), &[300, 300]).unwrap().replicas, 6);
    }

    #[test]
    fn a_value_for_all_is_shared_out() {
        assert_eq!(by_value(3, 20_000, 10_000, Tolerances::DEFAULT, 3), 6);
        assert_eq!(by_value(3, 10_500, 10_000, Tolerances::DEFAULT, 3), 3);
        assert_eq!(by_value(0, 20_000, 10_000, Tolerances::DEFAULT, 0), 2);
        assert_eq!(by_share(3, 9000, 2000, Tolerances::DEFAULT), (5, 3000));
        assert_eq!(by_share(4, 8100, 2000, Tolerances::DEFAULT).0, 4);
    }
}
