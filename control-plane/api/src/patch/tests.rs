#![allow(clippy::unwrap_used)]
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::schema::{Schema, Type};

fn deployment() -> Option<Type<'static>> {
    Schema::builtin().kind("apps", "v1", "Deployment")
}

fn pod() -> Option<Type<'static>> {
    Schema::builtin().kind("", "v1", "Pod")
}

fn strategic(type_: Option<Type<'_>>, original: &Value, patch: &Value) -> Value {
    strategic_merge(type_, original.clone(), patch.clone()).unwrap()
}

fn containers(names: &[&str]) -> Value {
    let list: Vec<Value> = names
        .iter()
        .map(|n| json!({"name": n, "image": "old"}))
        .collect();
    json!({"spec": {"containers": list}})
}

fn names(object: &Value) -> Vec<&str> {
    object["spec"]["containers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["name"].as_str().unwrap())
        .collect()
}

#[test]
fn a_json_patch_that_replaces_the_whole_and_then_fails_is_refused() {
    let patch = br#"[{"op":"move","from":"/spec","path":""},{"op":"remove","path":"/x"}]"#;
    assert_eq!(json(json!({"spec": {}}), patch).unwrap_err().code, 422);
}

#[test]
fn content_types_name_the_patch() {
    let json =
        PatchType::from_content_type("application/json-patch+json; charset=utf-8", true).unwrap();
    assert_eq!(json, PatchType::Json);
    let status =
        PatchType::from_content_type("application/strategic-merge-patch+json", false).unwrap_err();
    assert_eq!(status.code, 415);
    assert!(!status.message.contains("strategic"));
}

#[test]
fn a_json_patch_is_applied_whole_or_not_at_all() {
    let object = json!({"a": [1, 2], "b": {"c": 1}});
    let patch = br#"[{"op":"test","path":"/b/c","value":1},{"op":"add","path":"/a/-","value":3},{"op":"remove","path":"/b/c"}]"#;
    assert_eq!(
        json(object.clone(), patch).unwrap(),
        json!({"a": [1, 2, 3], "b": {}})
    );
    let bad = br#"[{"op":"add","path":"/x","value":1},{"op":"remove","path":"/nope"}]"#;
    let status = json(object.clone(), bad).unwrap_err();
    assert_eq!((status.code, status.reason), (422, "Invalid"));
    assert_eq!(json(object, br#"{"op":"add"}"#).unwrap_err().code, 400);
}

#[test]
fn a_merge_patch_removes_with_null_and_replaces_lists() {
    let object = json!({"a": {"b": 1, "c": 2}, "l": [1, 2]});
    let patch = json!({"a": {"b": null, "d": {"e": null}}, "l": [3]});
    assert_eq!(
        merge(object, &patch),
        json!({"a": {"c": 2, "d": {}}, "l": [3]})
    );
}

#[test]
fn containers_merge_by_name() {
    let patch = json!({"spec": {"containers": [{"name": "b", "image": "new"}]}});
    let merged = strategic(pod(), &containers(&["a", "b"]), &patch);
    assert_eq!(
        merged["spec"]["containers"][0],
        json!({"name": "a", "image": "old"})
    );
    assert_eq!(
        merged["spec"]["containers"][1],
        json!({"name": "b", "image": "new"})
    );
}

#[test]
fn a_new_item_goes_before_the_servers_own() {
    let patch = json!({"spec": {"containers": [{"name": "c", "image": "new"}]}});
    assert_eq!(
        names(&strategic(pod(), &containers(&["a", "b"]), &patch)),
        ["c", "a", "b"]
    );
}

#[test]
fn an_item_is_deleted_by_directive() {
    let patch = json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}]}});
    assert_eq!(
        names(&strategic(pod(), &containers(&["a", "b"]), &patch)),
        ["b"]
    );
}

#[test]
fn a_list_is_replaced_by_directive() {
    let patch = json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "z"}]}});
    assert_eq!(
        names(&strategic(pod(), &containers(&["a", "b"]), &patch)),
        ["z"]
    );
}

#[test]
fn the_element_order_is_obeyed() {
    let patch = json!({"spec": {
        "$setElementOrder/containers": [{"name": "b"}, {"name": "c"}, {"name": "a"}],
        "containers": [{"name": "c", "image": "new"}],
    }});
    assert_eq!(
        names(&strategic(pod(), &containers(&["a", "b"]), &patch)),
        ["b", "c", "a"]
    );
    let only_order =
        json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}});
    assert_eq!(
        names(&strategic(pod(), &containers(&["a", "b"]), &only_order)),
        ["b", "a"]
    );
    let missing = json!({"spec": {"$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "b"}]}});
    assert_eq!(
        strategic_merge(pod(), containers(&["a"]), missing)
            .unwrap_err()
            .code,
        400
    );
}

#[test]
fn finalizers_merge_and_are_removed_by_directive() {
    let object = json!({"metadata": {"finalizers": ["a", "b"]}});
    let add = json!({"metadata": {"finalizers": ["c"]}});
    assert_eq!(
        strategic(pod(), &object, &add)["metadata"]["finalizers"],
        json!(["c", "a", "b"])
    );
    let remove = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}});
    assert_eq!(
        strategic(pod(), &object, &remove)["metadata"]["finalizers"],
        json!(["b"])
    );
}

#[test]
fn retained_keys_are_all_that_is_left() {
    let object =
        json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
    let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
    assert_eq!(
        strategic(deployment(), &object, &patch),
        json!({"spec": {"strategy": {"type": "Recreate"}}})
    );
    let contradiction =
        json!({"spec": {"strategy": {"$retainKeys": ["rollingUpdate"], "type": "Recreate"}}});
    assert_eq!(
        strategic_merge(deployment(), object, contradiction)
            .unwrap_err()
            .code,
        422
    );
}

#[test]
fn volumes_with_another_source_lose_the_old_one() {
    let object = json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}});
    let patch = json!({"spec": {"volumes": [{"$retainKeys": ["name", "hostPath"], "name": "v", "hostPath": {"path": "/x"}}]}});
    assert_eq!(
        strategic(pod(), &object, &patch)["spec"]["volumes"],
        json!([{"name": "v", "hostPath": {"path": "/x"}}])
    );
}

#[test]
fn maps_are_replaced_or_emptied_by_directive() {
    let object = json!({"metadata": {"labels": {"a": "1", "b": "2"}}});
    let replace = json!({"metadata": {"labels": {"$patch": "replace", "c": "3"}}});
    assert_eq!(
        strategic(pod(), &object, &replace)["metadata"]["labels"],
        json!({"c": "3"})
    );
    let delete = json!({"metadata": {"labels": {"$patch": "delete"}}});
    assert_eq!(
        strategic(pod(), &object, &delete)["metadata"]["labels"],
        json!({})
    );
    let unknown = json!({"metadata": {"labels": {"$patch": "paint"}}});
    assert_eq!(
        strategic_merge(pod(), object, unknown).unwrap_err().code,
        400
    );
}

#[test]
fn atomic_lists_are_replaced() {
    let object = json!({"spec": {"tolerations": [{"key": "a"}, {"key": "b"}]}});
    let patch = json!({"spec": {"tolerations": [{"key": "c"}]}});
    assert_eq!(
        strategic(pod(), &object, &patch)["spec"]["tolerations"],
        json!([{"key": "c"}])
    );
}

#[test]
fn service_ports_merge_by_port_number() {
    let service = Schema::builtin().kind("", "v1", "Service");
    let object = json!({"spec": {"ports": [{"port": 80, "targetPort": 1}]}});
    let patch = json!({"spec": {"ports": [{"port": 80, "targetPort": 2}, {"port": 443}]}});
    assert_eq!(
        strategic(service, &object, &patch)["spec"]["ports"],
        json!([{"port": 80, "targetPort": 2}, {"port": 443}])
    );
    let keyless = json!({"spec": {"ports": [{"targetPort": 2}]}});
    let message = strategic_merge(service, object, keyless)
        .unwrap_err()
        .message;
    assert_eq!(
        message,
        "map: {\"targetPort\":2} does not contain declared merge key: port"
    );
}

#[test]
fn directives_and_nulls_do_not_stay_in_new_values() {
    let patch = json!({"spec": {"containers": [{"name": "a", "image": null, "ports": [{"$patch": "replace"}, {"containerPort": 1}]}]}});
    assert_eq!(
        strategic(pod(), &json!({}), &patch),
        json!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 1}]}]}})
    );
}

fn tree() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0..3).prop_map(Value::from)
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[a-c]", inner, 0..3)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn a_merge_patch_applied_twice_changes_nothing_more(object in tree(), patch in tree()) {
        let once = merge(object, &patch);
        prop_assert_eq!(merge(once.clone(), &patch), once);
    }

    #[test]
    fn merging_a_document_without_nulls_into_nothing_gives_it_back(document in tree()) {
        prop_assume!(document.is_object() && !document.to_string().contains("null"));
        prop_assert_eq!(merge(serde_json::json!({}), &document), document);
    }

    #[test]
    fn a_strategic_patch_applied_twice_changes_nothing_more(old in prop::collection::btree_set("[a-e]", 0..5), new in prop::collection::btree_set("[a-e]", 0..5)) {
        let old: Vec<&str> = old.iter().map(String::as_str).collect();
        let patch: Vec<Value> = new.iter().map(|n| serde_json::json!({"name": n, "image": "new"})).collect();
        let patch = serde_json::json!({"spec": {"containers": patch}});
        let once = strategic(pod(), &containers(&old), &patch);
        prop_assert_eq!(strategic(pod(), &once, &patch), once);
    }

    #[test]
    fn strategic_patches_of_any_form_never_panic(object in tree(), patch in tree()) {
        let _ = strategic_merge(pod(), serde_json::json!({"spec": object}), serde_json::json!({"spec": patch}));
    }
}
