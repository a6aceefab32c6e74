use serde_json::json;

use super::*;
use crate::kinds::workload::fixture::texts;

const START: &str = "2026-01-01T00:00:00Z";
const END: &str = "2026-01-01T00:01:00Z";

fn job(spec: Value, status: Value) -> Value {
    json!({"metadata": {"name": "j"}, "spec": spec, "status": status})
}

fn conditions(types: &[&str]) -> Value {
    types
        .iter()
        .map(|type_| json!({"type": type_, "status": "True"}))
        .collect()
}

/// What is said about an update of a started, plain Job's status.
fn problems(old: Value, new: Value) -> Vec<String> {
    let spec = json!({"completions": 2, "parallelism": 1, "completionMode": "NonIndexed"});
    problems_with(spec, old, new)
}

fn problems_with(spec: Value, old: Value, new: Value) -> Vec<String> {
    texts(&job_status_update(&job(spec.clone(), new), &job(spec, old)))
}

fn complete() -> Value {
    json!({"startTime": START, "completionTime": END, "succeeded": 2, "uncountedTerminatedPods": {},
        "conditions": conditions(&["SuccessCriteriaMet", "Complete"])})
}

fn failed() -> Value {
    json!({"startTime": START, "failed": 7, "conditions": conditions(&["FailureTarget", "Failed"])})
}

fn none() -> Vec<String> {
    Vec::new()
}

#[test]
fn a_job_starts_runs_and_ends_either_way() {
    let running = json!({"startTime": START, "active": 1, "ready": 1,
        "uncountedTerminatedPods": {"succeeded": ["a"], "failed": ["b"]}});
    assert_eq!(problems(json!({}), running.clone()), none());
    assert_eq!(problems(running.clone(), complete()), none());
    assert_eq!(problems(running, failed()), none());
}

#[test]
fn conditions_of_others_may_be_set_on_a_running_job() {
    let running = json!({"startTime": START, "active": 1});
    let mut custom = running.clone();
    custom["conditions"] = conditions(&["CustomConditionType"]);
    assert_eq!(problems(running, custom), none());
}

#[test]
fn counts_are_not_negative_and_no_more_are_ready_than_active() {
    let new = json!({"active": -1, "terminating": -2, "ready": 0});
    assert_eq!(
        problems(json!({}), new),
        [
            "status.active: Invalid value: -1: must be greater than or equal to 0",
            "status.terminating: Invalid value: -2: must be greater than or equal to 0",
            "status.ready: Invalid value: 0: cannot set more ready pods than active",
        ]
    );
}

#[test]
fn a_pod_waits_to_be_counted_in_one_place() {
    let new = json!({"uncountedTerminatedPods": {"succeeded": ["a", ""], "failed": ["a"]}});
    assert_eq!(
        problems(json!({}), new),
        [
            "status.uncountedTerminatedPods.succeeded[1]: Invalid value: \"\": must not be empty",
            "status.uncountedTerminatedPods.failed[0]: Duplicate value: \"a\"",
        ]
    );
}

#[test]
fn the_end_of_a_job_is_final() {
    let running = json!({"startTime": START, "completionTime": END, "succeeded": 2});
    let said = problems(complete(), running);
    assert!(
        said.contains(
            &"status.conditions: Invalid value: cannot disable the terminal Complete=True condition"
                .to_owned()
        ),
        "{said:?}"
    );
    let mut both = complete();
    both["conditions"] = conditions(&["SuccessCriteriaMet", "Complete", "FailureTarget", "Failed"]);
    assert_eq!(
        problems(complete(), both),
        [
            "status.conditions: Invalid value: cannot set Complete=True and Failed=true conditions",
            "status.conditions: Invalid value: cannot set Complete=True and FailureTarget=true conditions",
            "status.conditions: Invalid value: cannot set SuccessCriteriaMet=True and Failed=true conditions",
            "status.conditions: Invalid value: cannot set SuccessCriteriaMet=True and FailureTarget=true conditions",
        ]
    );
}

#[test]
fn a_job_ends_only_after_it_was_decided() {
    let mut hasty = complete();
    hasty["conditions"] = conditions(&["Complete"]);
    assert_eq!(
        problems(json!({}), hasty.clone()),
        [
            "status.conditions: Invalid value: cannot set Complete=True condition without the SuccessCriteriaMet=true condition"
        ]
    );
    assert_eq!(
        problems(hasty, complete()),
        [
            "status.conditions: Invalid value: cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions"
        ]
    );
}

#[test]
fn completion_time_goes_with_completion_and_stays() {
    let mut early = complete();
    early["completionTime"] = json!("2025-12-31T23:59:59Z");
    let mut missing = complete();
    missing["completionTime"] = Value::Null;
    let mut later = complete();
    later["completionTime"] = json!("2026-01-01T00:02:00Z");
    assert_eq!(
        problems(json!({}), early),
        [
            "status.completionTime: Invalid value: \"2025-12-31T23:59:59Z\": completionTime cannot be set before startTime"
        ]
    );
    assert_eq!(
        problems(json!({}), missing),
        ["status.completionTime: Required value: completionTime is required for Complete jobs"]
    );
    assert_eq!(
        problems(complete(), later),
        [
            "status.completionTime: Invalid value: \"2026-01-01T00:02:00Z\": completionTime cannot be mutated"
        ]
    );
    assert_eq!(
        problems(json!({}), json!({"completionTime": END})),
        [
            "status.completionTime: Invalid value: \"2026-01-01T00:01:00Z\": cannot set completionTime when there is no Complete=True condition"
        ]
    );
}

#[test]
fn nothing_of_a_finished_job_is_still_on_its_way() {
    let mut loose = failed();
    loose["active"] = json!(1);
    loose["terminating"] = json!(2);
    loose["startTime"] = Value::Null;
    loose["uncountedTerminatedPods"] = json!({"failed": ["a"]});
    assert_eq!(
        problems(json!({}), loose.clone()),
        [
            "status.active: Invalid value: 1: active>0 is invalid for finished job",
            "status.terminating: Invalid value: 2: terminating>0 is invalid for finished job",
            "status.startTime: Required value: startTime is required for finished job",
            "status.uncountedTerminatedPods: Invalid value: {\"failed\":[\"a\"]}: uncountedTerminatedPods needs to be empty for finished job",
        ]
    );
    let mut same_and_more = loose.clone();
    same_and_more["failed"] = json!(8);
    assert_eq!(problems(loose, same_and_more), none(), "it was so before");
}

#[test]
fn an_empty_suspended_job_ends_without_a_start() {
    let spec = json!({"completions": 0, "suspend": true});
    let mut never = complete();
    never["startTime"] = Value::Null;
    assert_eq!(problems_with(spec, json!({}), never), none());
}

#[test]
fn indexes_are_for_jobs_that_have_them() {
    let new = json!({"completedIndexes": "0", "failedIndexes": "1"});
    assert_eq!(
        problems(json!({}), new),
        [
            "status.completedIndexes: Invalid value: \"0\": cannot set non-empty completedIndexes when non-indexed completion mode",
            "status.failedIndexes: Invalid value: \"1\": cannot set non-null failedIndexes when backoffLimitPerIndex is null",
        ]
    );
    let spec = json!({"completions": 4, "parallelism": 1, "completionMode": "Indexed",
        "backoffLimitPerIndex": 1});
    let check = |completed: &str, failed: &str| {
        let new = json!({"completedIndexes": completed, "failedIndexes": failed});
        problems_with(spec.clone(), json!({}), new)
    };
    assert_eq!(check("0,2", "1,3"), none());
    assert_eq!(check("", ""), none());
    assert_eq!(
        check("4", "2-1"),
        [
            "status.completedIndexes: Invalid value: \"4\": error parsing completedIndexes: too large index: \"4\"",
            "status.failedIndexes: Invalid value: \"2-1\": error parsing failedIndexes: non-increasing order, previous: 2, current: 1",
        ]
    );
    assert_eq!(
        check("0-2", "2,3"),
        [
            "status.failedIndexes: Invalid value: \"2,3\": failedIndexes and completedIndexes overlap at index: 2"
        ]
    );
}

#[test]
fn counts_of_finished_pods_fall_only_with_the_number_of_indexes() {
    let (many, few) = (
        json!({"succeeded": 3, "failed": 3}),
        json!({"succeeded": 2}),
    );
    assert_eq!(
        problems(many.clone(), few),
        [
            "status.failed: Invalid value: 0: cannot decrease the failed counter",
            "status.succeeded: Invalid value: 2: cannot decrease the succeeded counter",
        ]
    );
    let few = json!({"succeeded": 2, "failed": 3});
    for spec in [
        json!({"completions": 4, "parallelism": 4, "completionMode": "Indexed"}),
        json!({"completions": 2, "parallelism": 1, "completionMode": "Indexed"}),
    ] {
        assert_eq!(problems_with(spec, many.clone(), few.clone()), none());
    }
}

#[test]
fn the_start_changes_only_by_suspending_and_resuming() {
    let started = json!({"startTime": START});
    let moved = json!({"startTime": END});
    let refused =
        ["status.startTime: Required value: startTime cannot be removed for unsuspended job"];
    assert_eq!(problems(started.clone(), json!({})), refused);
    assert_eq!(problems(started.clone(), moved.clone()), refused);
    let suspended = json!({"completions": 1, "suspend": true});
    assert_eq!(problems_with(suspended, started.clone(), json!({})), none());
    let mut paused = started;
    paused["conditions"] = conditions(&["Suspended"]);
    assert_eq!(problems(paused, moved), none());
}
