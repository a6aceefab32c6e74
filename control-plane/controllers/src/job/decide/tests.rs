#![allow(clippy::unwrap_used)]
use k8s_openapi::api::batch::v1::{JobCondition, UncountedTerminatedPods};

use super::*;
use crate::support::pods::tests::pod as bare_pod;

fn now() -> Timestamp {
    Timestamp::from_second(2000).unwrap()
}

fn job(completions: Option<i32>, parallelism: i32) -> Job {
    let spec = JobSpec {
        completions,
        parallelism: Some(parallelism),
        ..JobSpec::default()
    };
    Job {
        spec: Some(spec),
        ..Job::default()
    }
}

fn indexed(completions: i32, parallelism: i32) -> Job {
    let mut job = job(Some(completions), parallelism);
    job.spec.as_mut().unwrap().completion_mode = Some("Indexed".into());
    job
}

fn pod(name: &str, phase: &str) -> Arc<Pod> {
    let mut pod = bare_pod(name, phase, "a", phase == "Running");
    pod.metadata.finalizers = Some(vec![FINALIZER.into()]);
    Arc::new(pod)
}

fn with_index(pod: &Arc<Pod>, index: u32) -> Arc<Pod> {
    let mut pod = (**pod).clone();
    pod.annotations_mut()
        .insert(indexes::INDEX.into(), index.to_string());
    Arc::new(pod)
}

fn count(job: &Job, owned: &[Arc<Pod>]) -> Tally {
    tally(job, job.spec.as_ref().unwrap(), owned, &HashSet::new())
}

fn end(job: &Job, owned: &[Arc<Pod>]) -> Option<String> {
    ending(job, job.spec.as_ref().unwrap(), &count(job, owned), now()).map(|ending| ending.reason)
}

fn plan_of(job: &Job, owned: &[Arc<Pod>]) -> Plan {
    plan(job.spec.as_ref().unwrap(), &count(job, owned), now())
}

#[test]
fn a_pod_is_counted_once_on_its_way_through_the_status() {
    let mut job = job(Some(3), 2);
    let owned = [pod("a", "Succeeded"), pod("b", "Running")];
    assert_eq!(count(&job, &owned).succeeded, 1);
    // Written down as uncounted.
    let uncounted = UncountedTerminatedPods {
        succeeded: Some(vec!["a".into()]),
        failed: None,
    };
    job.status.get_or_insert_default().uncounted_terminated_pods = Some(uncounted);
    assert_eq!(count(&job, &owned).succeeded, 1);
    // Finalizer taken off, though the cache does not show it.
    let released = HashSet::from(["a".to_owned()]);
    settle(job.status.as_mut().unwrap(), &HashSet::new());
    assert_eq!(job.status.as_ref().unwrap().succeeded, Some(1));
    assert_eq!(
        tally(&job, job.spec.as_ref().unwrap(), &owned, &released).succeeded,
        1
    );
}

#[test]
fn a_pod_deleted_before_it_finished_has_failed_unless_only_failed_ones_are_replaced() {
    let mut job = job(Some(1), 1);
    let mut going = (*pod("a", "Running")).clone();
    going.metadata.deletion_timestamp = Some(balsa_client::time::now());
    let owned = [Arc::new(going)];
    assert_eq!(
        (count(&job, &owned).failed, plan_of(&job, &owned).create),
        (1, 1)
    );
    job.spec.as_mut().unwrap().pod_replacement_policy = Some("Failed".into());
    assert_eq!(
        (count(&job, &owned).failed, plan_of(&job, &owned).create),
        (0, 0)
    );
}

#[test]
fn a_pod_that_was_deleted_before_it_ran_is_let_go() {
    let mut job = job(Some(1), 1);
    job.spec.as_mut().unwrap().pod_replacement_policy = Some("Failed".into());
    let mut pending = (*pod("a", "Pending")).clone();
    pending.metadata.deletion_timestamp = Some(balsa_client::time::time(now()));
    pending.metadata.deletion_grace_period_seconds = Some(30);
    let ending = count(&job, &[Arc::new(pending.clone())]);
    assert!(ending.finished.is_empty(), "its node is not done with it");
    pending.metadata.deletion_grace_period_seconds = Some(0);
    let let_go = count(&job, &[Arc::new(pending)]);
    assert_eq!((let_go.finished.len(), let_go.failed), (1, 1));
}

#[test]
fn as_many_pods_run_as_completions_are_left() {
    assert_eq!(plan_of(&job(Some(5), 2), &[]).create, 2);
    let owned = [
        pod("a", "Succeeded"),
        pod("b", "Succeeded"),
        pod("c", "Running"),
    ];
    assert_eq!(plan_of(&job(Some(3), 2), &owned).create, 0);
    assert_eq!(plan_of(&job(Some(4), 2), &owned).create, 1);
}

#[test]
fn a_work_queue_starts_no_pods_after_the_first_success() {
    let job = job(None, 3);
    assert_eq!(plan_of(&job, &[]).create, 3);
    let owned = [pod("a", "Succeeded"), pod("b", "Running")];
    assert_eq!(plan_of(&job, &owned).create, 0);
    assert_eq!(end(&job, &owned), None);
    assert_eq!(
        end(&job, &owned[..1]).as_deref(),
        Some("CompletionsReached")
    );
}

#[test]
fn a_suspended_job_has_no_pods() {
    let mut job = job(Some(3), 3);
    job.spec.as_mut().unwrap().suspend = Some(true);
    let plan = plan_of(&job, &[pod("a", "Running")]);
    assert_eq!((plan.create, plan.delete.len()), (0, 1));
}

#[test]
fn missing_indexes_are_filled_and_doubles_removed() {
    let running = pod("a", "Running");
    let double = pod("b", "Pending");
    let owned = [
        with_index(&pod("done", "Succeeded"), 0),
        with_index(&running, 2),
        with_index(&double, 2),
        pod("lost", "Pending"),
    ];
    let plan = plan_of(&indexed(5, 3), &owned);
    assert_eq!(plan.indexes, [1, 3]);
    let mut names: Vec<String> = plan.delete.iter().map(|pod| pod.name_any()).collect();
    names.sort();
    assert_eq!(names, ["b", "lost"]);
}

#[test]
fn the_index_of_a_pod_that_is_still_ending_is_not_given_away_if_only_failed_ones_are_replaced() {
    let mut job = indexed(5, 3);
    job.spec.as_mut().unwrap().pod_replacement_policy = Some("Failed".into());
    let mut going = (*with_index(&pod("going", "Running"), 0)).clone();
    going.metadata.deletion_timestamp = Some(balsa_client::time::now());
    let owned = [
        Arc::new(going),
        with_index(&pod("runs", "Running"), 1),
        with_index(&pod("done", "Succeeded"), 2),
    ];
    assert_eq!(plan_of(&job, &owned).indexes, [3]);
}

#[test]
fn failures_beyond_the_limit_end_the_job() {
    let mut job = job(Some(1), 1);
    job.spec.as_mut().unwrap().backoff_limit = Some(1);
    assert_eq!(end(&job, &[pod("a", "Failed")]), None);
    assert_eq!(
        end(&job, &[pod("a", "Failed"), pod("b", "Failed")]).as_deref(),
        Some("BackoffLimitExceeded")
    );
}

#[test]
fn a_decision_once_written_is_kept() {
    let mut job = job(Some(1), 1);
    job.status.get_or_insert_default().conditions = Some(vec![JobCondition {
        type_: "FailureTarget".into(),
        status: "True".into(),
        reason: Some("DeadlineExceeded".into()),
        ..JobCondition::default()
    }]);
    assert_eq!(
        end(&job, &[pod("a", "Succeeded")]).as_deref(),
        Some("DeadlineExceeded")
    );
}

#[test]
fn a_job_may_not_be_active_beyond_its_deadline() {
    let mut job = job(Some(1), 1);
    job.spec.as_mut().unwrap().active_deadline_seconds = Some(30);
    let start = |second| {
        Some(balsa_client::time::time(
            Timestamp::from_second(second).unwrap(),
        ))
    };
    job.status.get_or_insert_default().start_time = start(1980);
    assert_eq!(end(&job, &[]), None);
    job.status.get_or_insert_default().start_time = start(1970);
    assert_eq!(end(&job, &[]).as_deref(), Some("DeadlineExceeded"));
}

#[test]
fn waiting_doubles_with_each_failure_since_the_last_success() {
    // All pods of these tests finished at second 1000, as their Ready condition says.
    let at = |second| Timestamp::from_second(second).unwrap();
    let failed: Vec<_> = ["a", "b", "c"]
        .iter()
        .map(|name| pod(name, "Failed"))
        .collect();
    assert_eq!(backoff_left(&failed[..1], at(1004)), Duration::from_secs(6));
    assert_eq!(backoff_left(&failed, at(1004)), Duration::from_secs(36));
    assert_eq!(backoff_left(&failed, at(1040)), Duration::ZERO);
    assert_eq!(
        backoff_left(&[pod("a", "Failed"), pod("b", "Succeeded")], at(1004)),
        Duration::ZERO
    );
}
