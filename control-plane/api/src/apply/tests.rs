#![allow(clippy::unwrap_used)]
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::schema::Schema;

fn deployment() -> Type<'static> {
    Schema::builtin().kind("apps", "v1", "Deployment").unwrap()
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000_000_000 + seconds).unwrap()
}

fn manager(name: &str) -> Manager<'_> {
    Manager {
        name,
        api_version: "apps/v1",
        subresource: "",
        time: at(0),
    }
}

fn config(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "d"}, "spec": spec})
}

fn run(live: Option<&Value>, patch: &Value, name: &str, force: bool) -> Result<Value, Status> {
    apply(
        deployment(),
        live,
        patch,
        &manager(name),
        force,
        &["status"],
    )
}

fn update(old: Option<&Value>, new: &Value, name: &str) -> Value {
    let mut new = new.clone();
    update_managed_fields(deployment(), &mut new, old, &manager(name), &["status"]);
    new
}

fn fields<'a>(object: &'a Value, name: &str) -> &'a Value {
    let entries = object["metadata"]["managedFields"].as_array();
    entries
        .into_iter()
        .flatten()
        .find(|e| e["manager"] == name)
        .map_or(&Value::Null, |e| &e["fieldsV1"])
}

fn pods(containers: Value) -> Value {
    config(json!({"template": {"spec": {"containers": containers}}}))
}

#[test]
fn the_first_apply_creates_and_owns_what_it_says() {
    let object = run(
        None,
        &pods(json!([{"name": "a", "image": "x", "ports": [{"containerPort": 80}]}])),
        "me",
        false,
    )
    .unwrap();
    assert_eq!(
        fields(&object, "me"),
        &json!({"f:spec": {"f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {
            ".": {}, "f:image": {}, "f:name": {},
            "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}},
        }}}}}})
    );
    let entry = &object["metadata"]["managedFields"][0];
    assert_eq!(entry["operation"], "Apply");
    assert_eq!(entry["time"], "2001-09-09T01:46:40Z");
    assert_eq!(entry["fieldsType"], "FieldsV1");
}

#[test]
fn applying_the_same_again_changes_nothing() {
    let patch = config(json!({"replicas": 3, "selector": {"matchLabels": {"a": "b"}}}));
    let first = run(None, &patch, "me", false).unwrap();
    let later = Manager {
        time: at(60),
        ..manager("me")
    };
    let second = apply(
        deployment(),
        Some(&first),
        &patch,
        &later,
        false,
        &["status"],
    )
    .unwrap();
    assert_eq!(first, second);
}

#[test]
fn another_managers_value_is_a_conflict() {
    let live = update(
        None,
        &config(json!({"replicas": 3})),
        "kubectl-client-side-apply",
    );
    let status = run(Some(&live), &config(json!({"replicas": 5})), "me", false).unwrap_err();
    assert_eq!((status.code, status.reason), (409, "Conflict"));
    assert_eq!(
        status.message,
        "Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using apps/v1: .spec.replicas"
    );
    let cause = &status.details.unwrap().causes[0];
    assert_eq!(
        (cause.reason.as_str(), cause.field.as_str()),
        ("FieldManagerConflict", ".spec.replicas")
    );
}

#[test]
fn several_conflicts_are_listed_by_manager() {
    let live = run(
        None,
        &config(json!({"replicas": 3, "paused": true})),
        "a",
        false,
    )
    .unwrap();
    let status = run(
        Some(&live),
        &config(json!({"replicas": 5, "paused": false})),
        "b",
        false,
    )
    .unwrap_err();
    assert_eq!(
        status.message,
        "Apply failed with 2 conflicts: conflicts with \"a\":\n- .spec.paused\n- .spec.replicas"
    );
}

#[test]
fn force_takes_the_field_over() {
    let live = run(
        None,
        &config(json!({"replicas": 3, "paused": true})),
        "a",
        false,
    )
    .unwrap();
    let forced = run(Some(&live), &config(json!({"replicas": 5})), "b", true).unwrap();
    assert_eq!(forced["spec"]["replicas"], 5);
    assert_eq!(fields(&forced, "a"), &json!({"f:spec": {"f:paused": {}}}));
    assert_eq!(fields(&forced, "b"), &json!({"f:spec": {"f:replicas": {}}}));
}

#[test]
fn equal_values_are_shared_and_stay_until_the_last_owner_leaves() {
    let both = config(json!({"replicas": 3}));
    let live = run(None, &both, "a", false).unwrap();
    let live = run(Some(&live), &both, "b", false).unwrap();
    assert_eq!(fields(&live, "a"), fields(&live, "b"));
    let nothing = config(json!({}));
    let live = run(Some(&live), &nothing, "a", false).unwrap();
    assert_eq!(live["spec"]["replicas"], 3);
    let live = run(Some(&live), &nothing, "b", false).unwrap();
    assert!(live["spec"].get("replicas").is_none());
}

#[test]
fn items_no_longer_applied_go_and_foreign_ones_stay() {
    let live = run(
        None,
        &pods(json!([{"name": "a", "image": "x"}, {"name": "b", "image": "y"}])),
        "me",
        false,
    )
    .unwrap();
    let mut injected = live.clone();
    injected["spec"]["template"]["spec"]["containers"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "side", "image": "z"}));
    let live = update(Some(&live), &injected, "mesh");
    let live = run(
        Some(&live),
        &pods(json!([{"name": "b", "image": "y"}])),
        "me",
        false,
    )
    .unwrap();
    let names: Vec<&str> = live["spec"]["template"]["spec"]["containers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["b", "side"]);
}

#[test]
fn defaults_nobody_owns_stay_but_a_dropped_struct_takes_its_defaults_along() {
    let mut live = run(
        None,
        &config(json!({"replicas": 1, "strategy": {"type": "RollingUpdate"}})),
        "me",
        false,
    )
    .unwrap();
    live["spec"]["strategy"]["rollingUpdate"] = json!({"maxSurge": "25%"});
    live["spec"]["revisionHistoryLimit"] = json!(10);
    let live = run(Some(&live), &config(json!({"replicas": 1})), "me", false).unwrap();
    assert_eq!(
        live["spec"],
        json!({"replicas": 1, "revisionHistoryLimit": 10})
    );
}

#[test]
fn atomic_maps_and_lists_are_owned_whole() {
    let live = run(
        None,
        &config(json!({"selector": {"matchLabels": {"a": "b", "c": "d"}}})),
        "me",
        false,
    )
    .unwrap();
    assert_eq!(fields(&live, "me"), &json!({"f:spec": {"f:selector": {}}}));
    let live = run(
        Some(&live),
        &config(json!({"selector": {"matchLabels": {"a": "b"}}})),
        "me",
        false,
    )
    .unwrap();
    assert_eq!(live["spec"]["selector"], json!({"matchLabels": {"a": "b"}}));
}

#[test]
fn set_lists_are_owned_item_by_item() {
    let with = |list: Value| json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "w", "finalizers": list}});
    let live = run(None, &with(json!(["x/a"])), "one", false).unwrap();
    let live = run(Some(&live), &with(json!(["x/b"])), "two", false).unwrap();
    assert_eq!(live["metadata"]["finalizers"], json!(["x/a", "x/b"]));
    assert_eq!(
        fields(&live, "two"),
        &json!({"f:metadata": {"f:finalizers": {"v:\"x/b\"": {}}}})
    );
    let live = run(Some(&live), &with(json!([])), "one", false).unwrap();
    assert_eq!(live["metadata"]["finalizers"], json!(["x/b"]));
}

#[test]
fn an_update_is_recorded_with_the_fields_it_changed() {
    let old = config(json!({"replicas": 1, "paused": true}));
    let created = update(
        None,
        &json!({"metadata": {"name": "w", "labels": {"a": "b"}}, "spec": old["spec"]}),
        "creator",
    );
    assert_eq!(
        fields(&created, "creator"),
        &json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}}, "f:spec": {"f:paused": {}, "f:replicas": {}}})
    );
    let mut changed = created.clone();
    changed["spec"]["replicas"] = json!(2);
    changed["metadata"]["labels"] = json!({"a": "b", "c": "d"});
    let changed = update(Some(&created), &changed, "editor");
    assert_eq!(
        fields(&changed, "editor"),
        &json!({"f:metadata": {"f:labels": {"f:c": {}}}, "f:spec": {"f:replicas": {}}})
    );
    assert_eq!(
        fields(&changed, "creator")["f:spec"],
        json!({"f:paused": {}})
    );
    let mut smaller = changed.clone();
    smaller["spec"].as_object_mut().unwrap().remove("replicas");
    let smaller = update(Some(&changed), &smaller, "remover");
    assert_eq!(
        fields(&smaller, "editor"),
        &json!({"f:metadata": {"f:labels": {"f:c": {}}}})
    );
    assert_eq!(fields(&smaller, "remover"), &Value::Null);
}

#[test]
fn a_status_update_is_its_own_entry() {
    let old = update(None, &config(json!({"replicas": 1})), "ctl");
    let mut new = old.clone();
    new["status"] = json!({"replicas": 1});
    let who = Manager {
        subresource: "status",
        ..manager("ctl")
    };
    update_managed_fields(deployment(), &mut new, Some(&old), &who, &["spec"]);
    let entries = new["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(entries.len(), 2);
    assert_eq!(entries[1]["subresource"], "status");
    assert_eq!(
        entries[1]["fieldsV1"],
        json!({"f:status": {"f:replicas": {}}})
    );
}

#[test]
fn clients_may_rewrite_reset_but_not_forget_the_managed_fields() {
    let old = update(None, &config(json!({"replicas": 1})), "a");
    let mut forgetful = old.clone();
    forgetful["metadata"]
        .as_object_mut()
        .unwrap()
        .remove("managedFields");
    assert_eq!(update(Some(&old), &forgetful, "b"), old);
    let mut reset = old.clone();
    reset["metadata"]["managedFields"] = json!([{}]);
    assert!(
        update(Some(&old), &reset, "b")["metadata"]
            .get("managedFields")
            .is_none()
    );
    let mut rewritten = old.clone();
    rewritten["metadata"]["managedFields"][0]["manager"] = json!("c");
    assert_eq!(
        fields(&update(Some(&old), &rewritten, "b"), "c"),
        &json!({"f:spec": {"f:replicas": {}}})
    );
}

#[test]
fn kubectl_takes_over_from_client_side_apply_without_conflict() {
    let patch = config(json!({"replicas": 3}));
    let mut created = patch.clone();
    created["metadata"]["annotations"] = json!({LAST_APPLIED: patch.to_string()});
    let live = update(None, &created, "kubectl-client-side-apply");
    let wanted = config(json!({"replicas": 4}));
    assert_eq!(
        run(Some(&live), &wanted, "argo", false).unwrap_err().code,
        409
    );
    let object = run(Some(&live), &wanted, "kubectl", false).unwrap();
    assert_eq!(object["spec"]["replicas"], 4);
    let remembered: Value =
        serde_json::from_str(object::annotation(&object, LAST_APPLIED).unwrap()).unwrap();
    assert_eq!(remembered["spec"]["replicas"], 4);
    let mut scaled = live.clone();
    scaled["spec"]["replicas"] = json!(9);
    let live = update(Some(&live), &scaled, "hpa");
    let status = run(Some(&live), &wanted, "kubectl", false).unwrap_err();
    assert!(
        status
            .message
            .contains("\"hpa\" using apps/v1: .spec.replicas"),
        "{}",
        status.message
    );
}

#[test]
fn status_in_an_applied_configuration_is_ignored() {
    let mut patch = config(json!({"replicas": 1}));
    patch["status"] = json!({"replicas": 7});
    let object = run(None, &patch, "me", false).unwrap();
    assert!(object.get("status").is_none());
    assert!(fields(&object, "me").get("f:status").is_none());
}

#[test]
fn who_creates_an_object_does_not_own_its_status() {
    let mut new = config(json!({"replicas": 1}));
    new["status"] = json!({"replicas": 7});
    let object = update(None, &new, "me");
    assert_eq!(
        fields(&object, "me"),
        &json!({"f:spec": {"f:replicas": {}}})
    );
}

#[test]
fn bad_configurations_are_refused() {
    let message = |patch: &Value| run(None, patch, "me", false).unwrap_err().message;
    assert_eq!(
        message(&config(json!({"foo": 1}))),
        "failed to create typed patch object (d/web; apps/v1, Kind=Deployment): .spec.foo: field not declared in schema"
    );
    assert!(
        message(&pods(json!([{"name": "a"}, {"name": "a"}])))
            .ends_with(".spec.template.spec.containers: duplicate entries for key [name=\"a\"]")
    );
    assert!(message(&pods(json!([{"image": "a"}]))).contains("omits all key fields [\"name\"]"));
    let mut managed = config(json!({}));
    managed["metadata"]["managedFields"] = json!([]);
    assert_eq!(message(&managed), "metadata.managedFields must be nil");
    let mut other = config(json!({}));
    other["apiVersion"] = json!("apps/v1beta1");
    assert!(message(&other).starts_with("Incorrect version specified in apply patch."));
}

#[test]
fn options_are_checked() {
    assert!(
        check_options("", None, true)
            .unwrap_err()
            .message
            .contains("is required for apply patch")
    );
    assert!(
        check_options("x", Some(true), false)
            .unwrap_err()
            .message
            .contains("non-apply patch")
    );
    assert!(check_options("x", Some(true), true).is_ok());
    assert_eq!(manager_from_user_agent("kubectl/v1.35 (linux)"), "kubectl");
    assert_eq!(manager_from_user_agent(""), "unknown");
}

#[test]
fn old_update_managers_are_merged() {
    let mut object = update(None, &config(json!({})), "first");
    for index in 0..20 {
        let mut next = object.clone();
        next["metadata"]["labels"][format!("l{index}")] = json!("x");
        let name = format!("m{index}");
        let who = Manager {
            time: at(index),
            ..manager(&name)
        };
        update_managed_fields(deployment(), &mut next, Some(&object), &who, &[]);
        object = next;
    }
    let entries = object["metadata"]["managedFields"].as_array().unwrap();
    assert!(entries.len() <= 11, "{}", entries.len());
    assert!(
        fields(&object, "ancient-changes")["f:metadata"]["f:labels"]
            .get("f:l0")
            .is_some()
    );
}

fn containers() -> impl Strategy<Value = Value> {
    let container = (
        "[a-d]",
        prop::option::of("[xyz]"),
        prop::option::of(1..4_u16),
    );
    prop::collection::btree_map("[a-d]", container, 0..4).prop_map(|list| {
        let items: Vec<Value> = list
            .into_iter()
            .map(|(name, (_, image, port))| {
                let mut item = json!({"name": name});
                if let Some(image) = image {
                    item["image"] = json!(image);
                }
                if let Some(port) = port {
                    item["ports"] = json!([{"containerPort": port}]);
                }
                item
            })
            .collect();
        pods(items.into())
    })
}

proptest! {
    #[test]
    fn applying_is_idempotent(first in containers(), second in containers()) {
        let live = run(None, &first, "a", false).unwrap();
        let once = run(Some(&live), &second, "b", true).unwrap();
        let twice = run(Some(&once), &second, "b", false).unwrap();
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn the_last_configuration_is_what_remains(first in containers(), second in containers()) {
        let live = run(None, &first, "a", false).unwrap();
        let object = run(Some(&live), &second, "a", false).unwrap();
        let alone = run(None, &second, "a", false).unwrap();
        let spec = |o: &Value| o.pointer("/spec/template/spec/containers").cloned().unwrap_or(json!([]));
        prop_assert_eq!(spec(&object), spec(&alone));
        prop_assert_eq!(fields(&object, "a"), fields(&alone, "a"));
    }

    #[test]
    fn a_forced_apply_always_wins(first in containers(), second in containers()) {
        let live = run(None, &first, "a", false).unwrap();
        let object = run(Some(&live), &second, "b", true).unwrap();
        prop_assert!(run(Some(&object), &second, "b", false).is_ok());
        for wanted in second["spec"]["template"]["spec"]["containers"].as_array().unwrap() {
            let list = object["spec"]["template"]["spec"]["containers"].as_array().unwrap();
            let found = list.iter().find(|c| c["name"] == wanted["name"]).unwrap();
            if wanted.get("image").is_some() {
                prop_assert_eq!(&found["image"], &wanted["image"]);
            }
        }
    }

    #[test]
    fn sets_survive_writing(object in containers()) {
        let set = walk::field_set(Some(deployment()), &object);
        prop_assert_eq!(Set::from_value(&set.clone().into_value()).unwrap(), set);
    }
}
