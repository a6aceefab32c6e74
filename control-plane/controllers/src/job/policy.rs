//! podFailurePolicy and successPolicy. Pure.

use std::collections::BTreeSet;

use k8s_openapi::api::batch::v1::{Job, PodFailurePolicyRule, SuccessPolicy};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt;

use super::indexes;
use crate::support::pods;

/// What a failed pod means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// It counts towards the backoff limit.
    Count,
    /// It does not.
    Ignore,
    /// It counts, and its index is given up.
    FailIndex,
    /// The whole Job fails, with this message.
    FailJob(String),
}

/// Applies the first rule that matches.
pub(super) fn meaning(job: &Job, pod: &Pod) -> Meaning {
    let policy = job
        .spec
        .as_ref()
        .and_then(|spec| spec.pod_failure_policy.as_ref());
    let rules = policy
        .map(|policy| policy.rules.as_slice())
        .unwrap_or_default();
    if pods::phase(pod) != "Failed" {
        return Meaning::Count;
    }
    for (position, rule) in rules.iter().enumerate() {
        let Some(because) = matches(rule, pod) else {
            continue;
        };
        return match rule.action.as_str() {
            "Ignore" => Meaning::Ignore,
            "FailIndex" => Meaning::FailIndex,
            "FailJob" => Meaning::FailJob(format!(
                "{because} matching FailJob rule at index {position}"
            )),
            _ => Meaning::Count,
        };
    }
    Meaning::Count
}

fn matches(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let name = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
    if let Some(wanted) = &rule.on_exit_codes {
        let status = pod.status.as_ref()?;
        let all = status
            .init_container_statuses
            .iter()
            .flatten()
            .chain(status.container_statuses.iter().flatten());
        let found = all.filter_map(exit_code).find(|(container, code)| {
            let named = wanted
                .container_name
                .as_deref()
                .is_none_or(|named| named == *container);
            let listed = wanted.values.contains(code);
            named
                && *code != 0
                && if wanted.operator == "NotIn" {
                    !listed
                } else {
                    listed
                }
        })?;
        return Some(format!(
            "Container {} for pod {name} failed with exit code {}",
            found.0, found.1
        ));
    }
    let patterns = rule.on_pod_conditions.as_deref().unwrap_or_default();
    let found = patterns.iter().find(|pattern| {
        let status =
            pods::condition(pod, &pattern.type_).map(|condition| condition.status.as_str());
        status.is_some_and(|status| status == pattern.status.as_deref().unwrap_or("True"))
    })?;
    Some(format!("Pod {name} has condition {}", found.type_))
}

fn exit_code(status: &ContainerStatus) -> Option<(&str, i32)> {
    let terminated = status.state.as_ref()?.terminated.as_ref()?;
    Some((status.name.as_str(), terminated.exit_code))
}

/// The message for the first rule that is fulfilled.
pub(super) fn success(
    policy: &SuccessPolicy,
    succeeded: &BTreeSet<u32>,
    completions: u32,
) -> Option<String> {
    let fulfilled = policy.rules.iter().position(|rule| {
        let wanted = rule
            .succeeded_indexes
            .as_deref()
            .map(|text| indexes::parse(text, completions));
        let of = wanted.as_ref().map_or(succeeded.len(), |wanted| {
            wanted.intersection(succeeded).count()
        });
        match (rule.succeeded_count, &wanted) {
            (Some(count), _) => of >= usize::try_from(count).unwrap_or(usize::MAX),
            (None, Some(wanted)) => of == wanted.len(),
            (None, None) => false,
        }
    })?;
    Some(format!("Matched rules at index {fulfilled}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::api::batch::v1::{
        JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement,
        PodFailurePolicyOnPodConditionsPattern, SuccessPolicyRule,
    };
    use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, PodCondition};

    use super::*;
    use crate::support::pods::tests::pod;

    fn failed(code: i32) -> Pod {
        let mut pod = pod("p", "Failed", "a", false);
        pod.status.as_mut().unwrap().container_statuses = Some(vec![ContainerStatus {
            name: "main".into(),
            state: Some(ContainerState {
                terminated: Some(ContainerStateTerminated {
                    exit_code: code,
                    ..Default::default()
                }),
                ..ContainerState::default()
            }),
            ..ContainerStatus::default()
        }]);
        pod
    }

    fn job() -> Job {
        let fail_on_42 = PodFailurePolicyRule {
            action: "FailJob".into(),
            on_exit_codes: Some(PodFailurePolicyOnExitCodesRequirement {
                operator: "In".into(),
                values: vec![42],
                container_name: None,
            }),
            on_pod_conditions: None,
        };
        let ignore_disruption = PodFailurePolicyRule {
            action: "Ignore".into(),
            on_exit_codes: None,
            on_pod_conditions: Some(vec![PodFailurePolicyOnPodConditionsPattern {
                type_: "DisruptionTarget".into(),
                status: None,
            }]),
        };
        let policy = PodFailurePolicy {
            rules: vec![fail_on_42, ignore_disruption],
        };
        Job {
            spec: Some(JobSpec {
                pod_failure_policy: Some(policy),
                ..JobSpec::default()
            }),
            ..Job::default()
        }
    }

    #[test]
    fn the_first_matching_rule_decides() {
        assert_eq!(
            meaning(&job(), &failed(42)),
            Meaning::FailJob(
                "Container main for pod default/p failed with exit code 42 matching FailJob rule at index 0".into()
            )
        );
        assert_eq!(meaning(&job(), &failed(1)), Meaning::Count);
        let mut disrupted = failed(137);
        disrupted.status.as_mut().unwrap().conditions = Some(vec![PodCondition {
            type_: "DisruptionTarget".into(),
            status: "True".into(),
            ..PodCondition::default()
        }]);
        assert_eq!(meaning(&job(), &disrupted), Meaning::Ignore);
    }

    #[test]
    fn success_may_need_certain_indexes_or_a_number_of_them() {
        let rule = |indexes: Option<&str>, count| SuccessPolicyRule {
            succeeded_indexes: indexes.map(str::to_owned),
            succeeded_count: count,
        };
        let policy = SuccessPolicy {
            rules: vec![rule(Some("0-1"), None), rule(None, Some(3))],
        };
        assert_eq!(success(&policy, &[0, 2].into(), 9), None);
        assert_eq!(
            success(&policy, &[0, 1].into(), 9).as_deref(),
            Some("Matched rules at index 0")
        );
        assert_eq!(
            success(&policy, &[2, 3, 4].into(), 9).as_deref(),
            Some("Matched rules at index 1")
        );
    }
}
