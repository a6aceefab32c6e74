#![allow(clippy::unwrap_used)]
use balsa_api::kind::{ALL_VERBS, Column, Scope, Strategy};
use serde_json::json;

use super::*;

/// Whether its objects leave their dependents alone.
struct Graceful(bool);

impl Strategy for Graceful {
    fn prepare_create(&self, _: &mut Value) {}
    fn prepare_update(&self, _: &mut Value, _: &Value) {}
    fn prepare_status_update(&self, _: &mut Value, _: &Value) {}
    fn validate_create(&self, _: &Value) -> FieldErrors {
        FieldErrors::default()
    }
    fn validate_update(&self, _: &Value, _: &Value) -> FieldErrors {
        FieldErrors::default()
    }
    fn columns(&self) -> Vec<Column> {
        Vec::new()
    }
    fn row(&self, _: &Value, _: Timestamp) -> Vec<Value> {
        Vec::new()
    }
    fn orphans_by_default(&self) -> bool {
        self.0
    }
    fn grace_period_seconds(&self, object: &Value) -> Option<i64> {
        object.pointer("/spec/grace").and_then(Value::as_i64)
    }
}

fn kind() -> Kind {
    Kind {
        group: "".into(),
        version: "v1".into(),
        kind: "Pod".into(),
        plural: "pods".into(),
        singular: "pod".into(),
        short_names: Vec::new(),
        categories: Vec::new(),
        scope: Scope::Namespaced,
        verbs: ALL_VERBS,
        subresources: Vec::new(),
        strategy: Box::new(Graceful(false)),
    }
}

fn now() -> Timestamp {
    object::parse_time("2026-01-01T00:00:00Z").unwrap()
}

fn with(policy: &str) -> DeleteOptions {
    DeleteOptions {
        propagation_policy: Some(policy.into()),
        ..DeleteOptions::default()
    }
}

fn seconds(grace: i64) -> DeleteOptions {
    DeleteOptions {
        grace_period_seconds: Some(grace),
        ..DeleteOptions::default()
    }
}

fn begun(verdict: Verdict) -> Value {
    match verdict {
        Verdict::Begin(value) => value["metadata"].clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_object_without_grace_and_finalizers_goes_at_once() {
    assert_eq!(
        decide(
            &kind(),
            &json!({"metadata": {}}),
            &DeleteOptions::default(),
            now()
        ),
        Verdict::Remove
    );
    assert_eq!(
        decide(
            &kind(),
            &json!({"metadata": {}}),
            &with("Background"),
            now()
        ),
        Verdict::Remove
    );
    let unscheduled = json!({"metadata": {}, "spec": {"grace": 0}});
    assert_eq!(
        decide(&kind(), &unscheduled, &seconds(30), now()),
        Verdict::Remove
    );
}

#[test]
fn a_graceful_delete_sets_the_time_and_raises_the_generation() {
    let pod = json!({"metadata": {"generation": 1}, "spec": {"grace": 30}});
    let metadata = begun(decide(&kind(), &pod, &DeleteOptions::default(), now()));
    let want = json!({"generation": 2, "deletionTimestamp": "2026-01-01T00:00:30Z", "deletionGracePeriodSeconds": 30});
    assert_eq!(metadata, want);
    assert_eq!(decide(&kind(), &pod, &seconds(0), now()), Verdict::Remove);
}

#[test]
fn a_second_delete_only_shortens() {
    let pod = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:30Z", "deletionGracePeriodSeconds": 30}, "spec": {"grace": 30}});
    assert_eq!(
        decide(&kind(), &pod, &DeleteOptions::default(), now()),
        Verdict::Pending
    );
    assert_eq!(decide(&kind(), &pod, &seconds(60), now()), Verdict::Pending);
    let metadata = begun(decide(&kind(), &pod, &seconds(5), now()));
    assert_eq!(
        metadata,
        json!({"deletionTimestamp": "2026-01-01T00:00:05Z", "deletionGracePeriodSeconds": 5})
    );
    assert_eq!(decide(&kind(), &pod, &seconds(0), now()), Verdict::Remove);
}

#[test]
fn finalizers_hold_the_object() {
    let held = json!({"metadata": {"finalizers": ["a/b"]}});
    let metadata = begun(decide(&kind(), &held, &DeleteOptions::default(), now()));
    assert_eq!(metadata["deletionGracePeriodSeconds"], 0);
    let deleting = json!({"metadata": metadata});
    assert_eq!(
        decide(&kind(), &deleting, &DeleteOptions::default(), now()),
        Verdict::Pending
    );
    assert_eq!(
        begun(decide(&kind(), &deleting, &with("Foreground"), now()))["finalizers"],
        json!(["a/b", FOREGROUND])
    );
}

#[test]
fn propagation_policies_become_finalizers() {
    let plain = json!({"metadata": {}});
    assert_eq!(
        begun(decide(&kind(), &plain, &with("Foreground"), now()))["finalizers"],
        json!([FOREGROUND])
    );
    assert_eq!(
        begun(decide(&kind(), &plain, &with("Orphan"), now()))["finalizers"],
        json!([ORPHAN])
    );
    let orphaned = json!({"metadata": {"finalizers": [ORPHAN]}});
    assert_eq!(
        decide(&kind(), &orphaned, &with("Background"), now()),
        Verdict::Remove
    );
}

#[test]
fn a_kind_may_leave_dependents_alone_unless_something_is_said() {
    let kind = Kind {
        strategy: Box::new(Graceful(true)),
        ..kind()
    };
    let plain = json!({"metadata": {}});
    let unsaid = DeleteOptions::default();
    assert_eq!(
        begun(decide(&kind, &plain, &unsaid, now()))["finalizers"],
        json!([ORPHAN])
    );
    assert_eq!(
        decide(&kind, &plain, &with("Background"), now()),
        Verdict::Remove
    );
    let said = json!({"metadata": {"finalizers": [FOREGROUND]}});
    assert_eq!(
        begun(decide(&kind, &said, &unsaid, now()))["finalizers"],
        json!([FOREGROUND])
    );
}

#[test]
fn options_that_contradict_are_refused() {
    let query = Query::parse("propagationPolicy=Sideways");
    assert_eq!(DeleteOptions::read(None, &query).unwrap_err().code, 422);
    let both = json!({"orphanDependents": true, "propagationPolicy": "Orphan"});
    assert_eq!(
        DeleteOptions::read(Some(both), &Query::default())
            .unwrap_err()
            .code,
        422
    );
    let body = json!({"gracePeriodSeconds": 3, "dryRun": ["All"]});
    assert!(
        DeleteOptions::read(Some(body), &Query::default())
            .unwrap()
            .is_dry_run()
    );
}
