//! From what the metrics call for to what is done: stabilization, limits and rates. Pure but for the memory of recent
//! recommendations and changes.
//!
//! Rules: the API documentation of `HorizontalPodAutoscalerBehavior`, and the defaults where there is none.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{HPAScalingRules, HorizontalPodAutoscalerBehavior};

/// Window of scaling down where nothing else is said.
const DOWNSCALE_WINDOW: i64 = 300;
/// What is remembered is at most this old: the longest window and period that the API allows.
const MEMORY: SignedDuration = SignedDuration::from_secs(3600);

/// What happened lately.
#[derive(Debug, Clone, Default)]
pub(super) struct History {
    recommendations: Vec<(Timestamp, i32)>,
    ups: Vec<(Timestamp, i32)>,
    downs: Vec<(Timestamp, i32)>,
}

impl History {
    /// Remembers where it began, so that a new leader does not scale down at once.
    pub(super) fn begin(&mut self, current: i32, now: Timestamp) {
        if self.recommendations.is_empty() {
            self.recommendations.push((now, current));
        }
    }

    /// Remembers a change that was made.
    pub(super) fn changed(&mut self, from: i32, to: i32, now: Timestamp) {
        if to > from {
            self.ups.push((now, to - from));
        } else {
            self.downs.push((now, from - to));
        }
        for events in [&mut self.ups, &mut self.downs] {
            events.retain(|(at, _)| now.duration_since(*at) < MEMORY);
        }
    }

    fn recommend(&mut self, replicas: i32, now: Timestamp) {
        self.recommendations
            .retain(|(at, _)| now.duration_since(*at) < MEMORY);
        self.recommendations.push((now, replicas));
    }

    fn within(&self, seconds: i64, now: Timestamp) -> impl Iterator<Item = i32> {
        let window = SignedDuration::from_secs(seconds);
        self.recommendations
            .iter()
            .filter(move |(at, _)| now.duration_since(*at) < window)
            .map(|(_, replicas)| *replicas)
    }
}

fn sum(events: &[(Timestamp, i32)], seconds: i32, now: Timestamp) -> i32 {
    let period = SignedDuration::from_secs(i64::from(seconds));
    events
        .iter()
        .filter(|(at, _)| now.duration_since(*at) < period)
        .map(|(_, change)| *change)
        .sum()
}

/// Fewest and most.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) min: i32,
    pub(super) max: i32,
}

/// A condition's reason and message.
pub(super) type Why = (&'static str, &'static str);

/// What is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) replicas: i32,
    /// Of condition `AbleToScale`.
    pub(super) able: Why,
    /// Of condition `ScalingLimited`, and whether it holds.
    pub(super) limited: (bool, Why),
}

const READY: Why = ("ReadyForNewScale", "recommended size matches current size");
const DOWN_STABILIZED: Why = (
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const UP_STABILIZED: Why = (
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const WITHIN: Why = (
    "DesiredWithinRange",
    "the desired count is within the acceptable range",
);
const TOO_FEW: Why = (
    "TooFewReplicas",
    "the desired replica count is less than the minimum replica count",
);
const TOO_MANY: Why = (
    "TooManyReplicas",
    "the desired replica count is more than the maximum replica count",
);
const UP_LIMIT: Why = (
    "ScaleUpLimit",
    "the desired replica count is increasing faster than the maximum scale rate",
);
const DOWN_LIMIT: Why = (
    "ScaleDownLimit",
    "the desired replica count is decreasing faster than the maximum scale rate",
);

/// Decides, and remembers the recommendation.
pub(super) fn normalize(
    history: &mut History,
    behavior: Option<&HorizontalPodAutoscalerBehavior>,
    current: i32,
    wanted: i32,
    bounds: Bounds,
    now: Timestamp,
) -> Decision {
    let (stable, able) = match behavior {
        None => {
            let highest = history.within(DOWNSCALE_WINDOW, now).max();
            let stable = highest.unwrap_or(wanted).max(wanted);
            (stable, DOWN_STABILIZED)
        }
        Some(behavior) => stabilize(history, behavior, current, wanted, now),
    };
    history.recommend(wanted, now);
    let able = if stable == wanted { READY } else { able };
    let (replicas, why) = match behavior {
        None => limit(current, stable, bounds),
        Some(behavior) => limit_by_rules(history, behavior, current, stable, bounds, now),
    };
    Decision {
        replicas,
        able,
        limited: (replicas != stable, why),
    }
}

fn window(rules: Option<&HPAScalingRules>, usual: i64) -> i64 {
    rules
        .and_then(|rules| rules.stabilization_window_seconds)
        .map_or(usual, i64::from)
}

/// Not above the highest recommendation that was good for going up all the time, and not below the one for going down.
fn stabilize(
    history: &History,
    behavior: &HorizontalPodAutoscalerBehavior,
    current: i32,
    wanted: i32,
    now: Timestamp,
) -> (i32, Why) {
    let up = window(behavior.scale_up.as_ref(), 0);
    let down = window(behavior.scale_down.as_ref(), DOWNSCALE_WINDOW);
    let lowest = history.within(up, now).min().unwrap_or(wanted).min(wanted);
    let highest = history
        .within(down, now)
        .max()
        .unwrap_or(wanted)
        .max(wanted);
    let stable = current.max(lowest).min(highest);
    let why = if wanted >= current {
        UP_STABILIZED
    } else {
        DOWN_STABILIZED
    };
    (stable, why)
}

/// Without rules: doubled at most, or four.
fn limit(current: i32, wanted: i32, bounds: Bounds) -> (i32, Why) {
    let rate = current.saturating_mul(2).max(4);
    let (most, why) = if bounds.max > rate {
        (rate, UP_LIMIT)
    } else {
        (bounds.max, TOO_MANY)
    };
    if wanted < bounds.min {
        (bounds.min, TOO_FEW)
    } else if wanted > most {
        (most, why)
    } else {
        (wanted, WITHIN)
    }
}

fn limit_by_rules(
    history: &History,
    behavior: &HorizontalPodAutoscalerBehavior,
    current: i32,
    wanted: i32,
    bounds: Bounds,
    now: Timestamp,
) -> (i32, Why) {
    if wanted > current {
        let rate = up_limit(history, behavior.scale_up.as_ref(), current, now).max(current);
        let (most, why) = if bounds.max > rate {
            (rate, UP_LIMIT)
        } else {
            (bounds.max, TOO_MANY)
        };
        if wanted > most {
            return (most, why);
        }
    } else if wanted < current {
        let rate = down_limit(history, behavior.scale_down.as_ref(), current, now).min(current);
        let (least, why) = if bounds.min < rate {
            (rate, DOWN_LIMIT)
        } else {
            (bounds.min, TOO_FEW)
        };
        if wanted < least {
            return (least, why);
        }
    }
    (wanted, WITHIN)
}

/// The number of replicas at the beginning of a period.
fn at_start(history: &History, current: i32, seconds: i32, now: Timestamp) -> i32 {
    current - sum(&history.ups, seconds, now) + sum(&history.downs, seconds, now)
}

fn up_limit(
    history: &History,
    rules: Option<&HPAScalingRules>,
    current: i32,
    now: Timestamp,
) -> i32 {
    let Some(rules) = rules else {
        return i32::MAX;
    };
    let limits = rules.policies.iter().flatten().map(|policy| {
        let start = at_start(history, current, policy.period_seconds, now);
        if policy.type_ == "Pods" {
            start.saturating_add(policy.value)
        } else {
            (f64::from(start) * (1.0 + f64::from(policy.value) / 100.0)).ceil() as i32
        }
    });
    match rules.select_policy.as_deref() {
        Some("Disabled") => current,
        Some("Min") => limits.min().unwrap_or(i32::MAX),
        _ => limits.max().unwrap_or(i32::MAX),
    }
}

fn down_limit(
    history: &History,
    rules: Option<&HPAScalingRules>,
    current: i32,
    now: Timestamp,
) -> i32 {
    let Some(rules) = rules else {
        return 0;
    };
    let limits = rules.policies.iter().flatten().map(|policy| {
        let start = at_start(history, current, policy.period_seconds, now);
        if policy.type_ == "Pods" {
            start.saturating_sub(policy.value)
        } else {
            (f64::from(start) * (1.0 - f64::from(policy.value) / 100.0)) as i32
        }
    });
    match rules.select_policy.as_deref() {
        Some("Disabled") => current,
        // The policy with the smallest change.
        Some("Min") => limits.max().unwrap_or(0),
        _ => limits.min().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::api::autoscaling::v2::HPAScalingPolicy;

    use super::*;

    const BOUNDS: Bounds = Bounds { min: 1, max: 100 };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    fn rules(window: i32, select: &str, policies: &[(&str, i32, i32)]) -> HPAScalingRules {
        HPAScalingRules {
            stabilization_window_seconds: Some(window),
            select_policy: Some(select.into()),
            policies: Some(
                policies
                    .iter()
                    .map(|(type_, value, period_seconds)| HPAScalingPolicy {
                        type_: (*type_).into(),
                        value: *value,
                        period_seconds: *period_seconds,
                    })
                    .collect(),
            ),
            tolerance: None,
        }
    }

    fn behavior(up: HPAScalingRules, down: HPAScalingRules) -> HorizontalPodAutoscalerBehavior {
        HorizontalPodAutoscalerBehavior {
            scale_up: Some(up),
            scale_down: Some(down),
        }
    }

    #[test]
    fn without_rules_it_doubles_at_most_and_goes_down_after_five_minutes() {
        let mut history = History::default();
        let up = normalize(&mut history, None, 3, 20, BOUNDS, at(0));
        assert_eq!((up.replicas, up.limited.1.0), (6, "ScaleUpLimit"));
        let held = normalize(&mut history, None, 20, 2, BOUNDS, at(299));
        assert_eq!((held.replicas, held.able.0), (20, "ScaleDownStabilized"));
        let down = normalize(&mut history, None, 20, 2, BOUNDS, at(301));
        assert_eq!((down.replicas, down.able.0), (2, "ReadyForNewScale"));
        let few = normalize(&mut History::default(), None, 2, 0, BOUNDS, at(0));
        assert_eq!((few.replicas, few.limited.1.0), (1, "TooFewReplicas"));
        let bounds = Bounds { min: 1, max: 5 };
        let many = normalize(&mut History::default(), None, 4, 7, bounds, at(0));
        assert_eq!((many.replicas, many.limited), (5, (true, TOO_MANY)));
    }

    #[test]
    fn a_new_leader_remembers_the_present_number() {
        let mut history = History::default();
        history.begin(10, at(0));
        assert_eq!(
            normalize(&mut history, None, 10, 2, BOUNDS, at(15)).replicas,
            10
        );
    }

    #[test]
    fn policies_limit_what_changes_in_a_period() {
        let up = rules(0, "Max", &[("Pods", 4, 60), ("Percent", 10, 60)]);
        let down = rules(0, "Min", &[("Pods", 5, 60), ("Percent", 50, 60)]);
        let both = behavior(up, down);
        let mut history = History::default();
        let first = normalize(&mut history, Some(&both), 10, 50, BOUNDS, at(0));
        assert_eq!((first.replicas, first.limited.1.0), (14, "ScaleUpLimit"));
        history.changed(10, 14, at(0));
        let again = normalize(&mut history, Some(&both), 14, 50, BOUNDS, at(30));
        assert_eq!(again.replicas, 14);
        let later = normalize(&mut history, Some(&both), 14, 50, BOUNDS, at(61));
        assert_eq!(later.replicas, 18);
        let down = normalize(&mut History::default(), Some(&both), 20, 1, BOUNDS, at(0));
        assert_eq!((down.replicas, down.limited.1.0), (15, "ScaleDownLimit"));
    }

    #[test]
    fn a_direction_can_be_disabled_and_windows_hold_both_ways() {
        let off = rules(0, "Disabled", &[("Pods", 1, 60)]);
        let slow = rules(60, "Max", &[("Pods", 100, 60)]);
        let both = behavior(slow, off);
        let down = normalize(&mut History::default(), Some(&both), 5, 1, BOUNDS, at(0));
        assert_eq!(down.replicas, 5);
        let mut history = History::default();
        history.begin(5, at(0));
        let held = normalize(&mut history, Some(&both), 5, 9, BOUNDS, at(30));
        assert_eq!((held.replicas, held.able.0), (5, "ScaleUpStabilized"));
        let up = normalize(&mut history, Some(&both), 5, 9, BOUNDS, at(61));
        assert_eq!(up.replicas, 9);
    }
}
