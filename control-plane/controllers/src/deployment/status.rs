//! Status and conditions of a Deployment. Pure.

use std::time::Duration;

use balsa_client::time::time;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet, ReplicaSetCondition,
};
use kube::ResourceExt;

use super::math;

pub(super) const AVAILABLE: &str = "Available";
pub(super) const PROGRESSING: &str = "Progressing";
pub(super) const REPLICA_FAILURE: &str = "ReplicaFailure";
pub(super) const NEW_AVAILABLE: &str = "NewReplicaSetAvailable";
pub(super) const TIMED_OUT: &str = "ProgressDeadlineExceeded";

/// A condition to set; times are filled in by [`set_condition`].
pub(super) fn condition(
    type_: &str,
    status: &str,
    reason: &str,
    message: String,
) -> DeploymentCondition {
    DeploymentCondition {
        type_: type_.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: None,
        last_transition_time: None,
    }
}

pub(super) fn get<'a>(
    status: &'a DeploymentStatus,
    type_: &str,
) -> Option<&'a DeploymentCondition> {
    status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == type_)
}

/// Sets a condition; one with the same status and reason stays untouched. True when something changed.
pub(super) fn set_condition(
    status: &mut DeploymentStatus,
    mut new: DeploymentCondition,
    now: Timestamp,
) -> bool {
    let old = get(status, &new.type_);
    if old.is_some_and(|old| old.status == new.status && old.reason == new.reason) {
        return false;
    }
    let transition = old
        .filter(|old| old.status == new.status)
        .and_then(|old| old.last_transition_time.clone());
    new.last_update_time = Some(time(now));
    new.last_transition_time = transition.or_else(|| Some(time(now)));
    remove(status, &new.type_);
    status.conditions.get_or_insert_default().push(new);
    true
}

pub(super) fn remove(status: &mut DeploymentStatus, type_: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|condition| condition.type_ != type_);
    }
}

pub(super) fn has_deadline(deployment: &Deployment) -> bool {
    deadline(deployment).is_some()
}

fn deadline(deployment: &Deployment) -> Option<i32> {
    let deadline = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.progress_deadline_seconds);
    deadline.filter(|seconds| *seconds != i32::MAX)
}

/// Counts and `Available` from the sets; other conditions as they were.
pub(super) fn calculate(
    deployment: &Deployment,
    all: &[&ReplicaSet],
    new: Option<&ReplicaSet>,
    now: Timestamp,
) -> DeploymentStatus {
    let old = deployment.status.clone().unwrap_or_default();
    let sum = |field: fn(&ReplicaSet) -> i32| all.iter().map(|set| field(set)).sum::<i32>();
    let total = math::total(all.iter().copied());
    let available = sum(math::available);
    let replicas = sum(|set| set.status.as_ref().map_or(0, |status| status.replicas));
    let ready = sum(|set| {
        set.status
            .as_ref()
            .and_then(|status| status.ready_replicas)
            .unwrap_or_default()
    });
    let updated = new
        .and_then(|new| new.status.as_ref())
        .map_or(0, |status| status.replicas);
    let terminating: Option<i32> = all
        .iter()
        .map(|set| {
            set.status
                .as_ref()
                .and_then(|status| status.terminating_replicas)
        })
        .sum();
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: nonzero(replicas),
        updated_replicas: nonzero(updated),
        ready_replicas: nonzero(ready),
        available_replicas: nonzero(available),
        unavailable_replicas: nonzero((total - available).max(0)),
        terminating_replicas: terminating,
        collision_count: old.collision_count,
        conditions: old.conditions,
    };
    let minimum = math::wanted(deployment) - math::fenceposts(deployment).unavailable;
    let condition = if available >= minimum {
        condition(
            AVAILABLE,
            "True",
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.".into(),
        )
    } else {
        let message = "Deployment does not have minimum availability.".into();
        condition(AVAILABLE, "False", "MinimumReplicasUnavailable", message)
    };
    set_condition(&mut status, condition, now);
    status
}

/// As [`calculate`], with `Progressing` and `ReplicaFailure` judged too.
pub(super) fn rollout(
    deployment: &Deployment,
    all: &[&ReplicaSet],
    new: Option<&ReplicaSet>,
    now: Timestamp,
) -> DeploymentStatus {
    let mut status = calculate(deployment, all, new, now);
    let current = get(&status, PROGRESSING).cloned();
    if !has_deadline(deployment) {
        remove(&mut status, PROGRESSING);
    }
    let done = status.replicas == status.updated_replicas
        && current
            .as_ref()
            .is_some_and(|current| current.reason.as_deref() == Some(NEW_AVAILABLE));
    if has_deadline(deployment) && !done {
        judge(deployment, &mut status, new, current, now);
    }
    remove(&mut status, REPLICA_FAILURE);
    if let Some(failure) = failure(all, new) {
        let since = deployment
            .status
            .as_ref()
            .and_then(|old| get(old, REPLICA_FAILURE))
            .cloned();
        let reason = failure.reason.clone().unwrap_or_default();
        let message = failure.message.clone().unwrap_or_default();
        let mut condition = condition(REPLICA_FAILURE, &failure.status, &reason, message);
        condition.last_update_time = failure.last_transition_time.clone();
        condition.last_transition_time = since
            .and_then(|since| since.last_transition_time)
            .or_else(|| failure.last_transition_time.clone());
        status.conditions.get_or_insert_default().push(condition);
    }
    status.conditions = status
        .conditions
        .take()
        .filter(|conditions| !conditions.is_empty());
    status
}

fn judge(
    deployment: &Deployment,
    status: &mut DeploymentStatus,
    new: Option<&ReplicaSet>,
    current: Option<DeploymentCondition>,
    now: Timestamp,
) {
    let subject = match new {
        Some(new) => format!("ReplicaSet {:?}", new.name_any()),
        None => format!("Deployment {:?}", deployment.name_any()),
    };
    if complete(deployment, status) {
        let message = format!("{subject} has successfully progressed.");
        set_condition(
            status,
            condition(PROGRESSING, "True", NEW_AVAILABLE, message),
            now,
        );
    } else if progressing(deployment, status) {
        let mut condition = condition(
            PROGRESSING,
            "True",
            "ReplicaSetUpdated",
            format!("{subject} is progressing."),
        );
        // Each step renews the deadline, so the update time moves even when nothing else does.
        condition.last_update_time = Some(time(now));
        condition.last_transition_time = current
            .filter(|current| current.status == "True")
            .and_then(|current| current.last_transition_time)
            .or_else(|| Some(time(now)));
        remove(status, PROGRESSING);
        status.conditions.get_or_insert_default().push(condition);
    } else if timed_out(deployment, status, now) {
        let message = format!("{subject} has timed out progressing.");
        set_condition(
            status,
            condition(PROGRESSING, "False", TIMED_OUT, message),
            now,
        );
    }
}

/// All replicas are of the new template and available, and the controller has seen the newest spec.
pub(super) fn complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = math::wanted(deployment);
    let count = |count: Option<i32>| count.unwrap_or_default();
    count(status.updated_replicas) == wanted
        && count(status.replicas) == wanted
        && count(status.available_replicas) == wanted
        && status.observed_generation >= deployment.metadata.generation
}

fn progressing(deployment: &Deployment, new: &DeploymentStatus) -> bool {
    let old = deployment.status.clone().unwrap_or_default();
    let count = |count: Option<i32>| count.unwrap_or_default();
    let outdated =
        |status: &DeploymentStatus| count(status.replicas) - count(status.updated_replicas);
    count(new.updated_replicas) > count(old.updated_replicas)
        || outdated(new) < outdated(&old)
        || count(new.ready_replicas) > count(old.ready_replicas)
        || count(new.available_replicas) > count(old.available_replicas)
}

fn timed_out(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> bool {
    let Some(condition) = get(status, PROGRESSING) else {
        return false;
    };
    match condition.reason.as_deref() {
        Some(NEW_AVAILABLE) => false,
        Some(TIMED_OUT) => true,
        _ => left(deployment, condition, now).is_some_and(|left| left.is_negative()),
    }
}

fn left(
    deployment: &Deployment,
    condition: &DeploymentCondition,
    now: Timestamp,
) -> Option<SignedDuration> {
    let updated = condition.last_update_time.as_ref()?.0;
    Some(SignedDuration::from_secs(i64::from(deadline(deployment)?)) - now.duration_since(updated))
}

/// When to look again whether the progress deadline has passed.
pub(super) fn recheck(
    deployment: &Deployment,
    status: &DeploymentStatus,
    now: Timestamp,
) -> Option<Duration> {
    let condition = get(status, PROGRESSING)?;
    let reason = condition.reason.as_deref();
    if complete(deployment, status) || reason == Some(TIMED_OUT) || reason == Some(NEW_AVAILABLE) {
        return None;
    }
    let left = left(deployment, condition, now)?
        .max(SignedDuration::ZERO)
        .unsigned_abs();
    Some(left + Duration::from_secs(1))
}

/// The new set's failure to make pods, or else any set's.
fn failure<'a>(
    all: &[&'a ReplicaSet],
    new: Option<&'a ReplicaSet>,
) -> Option<&'a ReplicaSetCondition> {
    let of = |set: &'a ReplicaSet| {
        let conditions = set.status.as_ref()?.conditions.as_ref()?;
        conditions
            .iter()
            .find(|condition| condition.type_ == REPLICA_FAILURE && condition.status == "True")
    };
    new.and_then(of)
        .or_else(|| all.iter().find_map(|set| of(set)))
}

fn nonzero(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::api::apps::v1::{DeploymentSpec, ReplicaSetSpec, ReplicaSetStatus};

    use super::*;

    fn deployment() -> Deployment {
        let spec = DeploymentSpec {
            replicas: Some(2),
            progress_deadline_seconds: Some(600),
            ..DeploymentSpec::default()
        };
        let mut deployment = Deployment {
            spec: Some(spec),
            ..Deployment::default()
        };
        deployment.metadata.name = Some("web".into());
        deployment.metadata.generation = Some(1);
        deployment
    }

    fn set(replicas: i32, available: i32) -> ReplicaSet {
        let mut set = ReplicaSet {
            spec: Some(ReplicaSetSpec {
                replicas: Some(2),
                ..ReplicaSetSpec::default()
            }),
            status: Some(ReplicaSetStatus {
                replicas,
                ready_replicas: Some(available),
                available_replicas: Some(available),
                ..ReplicaSetStatus::default()
            }),
            ..ReplicaSet::default()
        };
        set.metadata.name = Some("web-1".into());
        set
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn step(deployment: &mut Deployment, set: &ReplicaSet, now: Timestamp) -> (String, String) {
        let status = rollout(deployment, &[set], Some(set), now);
        let progressing = get(&status, PROGRESSING)
            .map(|c| c.reason.clone().unwrap())
            .unwrap_or_default();
        let available = get(&status, AVAILABLE).unwrap().reason.clone().unwrap();
        deployment.status = Some(status);
        (progressing, available)
    }

    #[test]
    fn a_rollout_progresses_and_completes() {
        let mut deployment = deployment();
        assert_eq!(
            step(&mut deployment, &set(2, 0), at(1)),
            (
                "ReplicaSetUpdated".into(),
                "MinimumReplicasUnavailable".into()
            )
        );
        assert_eq!(
            step(&mut deployment, &set(2, 2), at(5)),
            (NEW_AVAILABLE.into(), "MinimumReplicasAvailable".into())
        );
        let condition = get(deployment.status.as_ref().unwrap(), PROGRESSING).unwrap();
        assert_eq!(
            condition.message.as_deref(),
            Some("ReplicaSet \"web-1\" has successfully progressed.")
        );
        assert_eq!(
            recheck(&deployment, deployment.status.as_ref().unwrap(), at(5)),
            None
        );
    }

    #[test]
    fn a_rollout_without_progress_exceeds_its_deadline() {
        let mut deployment = deployment();
        step(&mut deployment, &set(2, 0), at(1));
        let status = deployment.status.clone().unwrap();
        assert_eq!(
            recheck(&deployment, &status, at(101)),
            Some(Duration::from_secs(501))
        );
        assert_eq!(
            step(&mut deployment, &set(2, 0), at(600)).0,
            "ReplicaSetUpdated"
        );
        assert_eq!(step(&mut deployment, &set(2, 0), at(602)).0, TIMED_OUT);
        // And a late success still counts.
        assert_eq!(step(&mut deployment, &set(2, 2), at(700)).0, NEW_AVAILABLE);
    }

    #[test]
    fn a_completed_rollout_stays_so_when_a_pod_is_replaced() {
        let mut deployment = deployment();
        step(&mut deployment, &set(2, 2), at(1));
        assert_eq!(step(&mut deployment, &set(2, 1), at(5)).0, NEW_AVAILABLE);
    }

    #[test]
    fn a_sets_failure_shows_and_goes() {
        let mut deployment = deployment();
        let mut failing = set(0, 0);
        failing.status.as_mut().unwrap().conditions = Some(vec![ReplicaSetCondition {
            type_: REPLICA_FAILURE.into(),
            status: "True".into(),
            reason: Some("FailedCreate".into()),
            message: Some("exceeded quota".into()),
            last_transition_time: None,
        }]);
        step(&mut deployment, &failing, at(1));
        let status = deployment.status.clone().unwrap();
        assert_eq!(
            get(&status, REPLICA_FAILURE).unwrap().message.as_deref(),
            Some("exceeded quota")
        );
        step(&mut deployment, &set(2, 2), at(2));
        assert!(get(deployment.status.as_ref().unwrap(), REPLICA_FAILURE).is_none());
    }
}
