use std::time::Duration;

use super::*;

#[tokio::test]
async fn a_watch_shows_state_then_changes() {
    let h = Harness::new();
    h.post(MAPS, config_map("a", json!({}))).await.expect(201);
    let mut watch = h.watch(&format!("{MAPS}?watch=true")).await;
    assert_eq!(watch.brief().await, ("ADDED".into(), "a".into()));
    h.post(MAPS, config_map("b", json!({}))).await.expect(201);
    h.patch(
        &format!("{MAPS}/b"),
        "application/merge-patch+json",
        json!({"data": {"k": "1"}}),
    )
    .await
    .expect(200);
    h.delete(&format!("{MAPS}/b")).await.expect(200);
    for type_ in ["ADDED", "MODIFIED", "DELETED"] {
        assert_eq!(watch.brief().await, (type_.into(), "b".into()));
    }
}

#[tokio::test]
async fn on_a_server_that_is_cut_off_watches_end_cleanly_and_new_ones_are_refused() {
    let h = Harness::new();
    let path = format!("{MAPS}?watch=true&resourceVersion=0");
    let mut watch = h.watch(&path).await;
    h.post(MAPS, config_map("a", json!({}))).await.expect(201);
    assert_eq!(watch.brief().await, ("ADDED".into(), "a".into()));
    let reach = &h.api.core.registry.reach;
    reach.tell(true);
    assert!(watch.next().await.is_none(), "the watch goes on");
    let refused = h.get(&path).await;
    assert_eq!(refused.headers["retry-after"], "1");
    refused.expect(503);
    h.get(&format!("{MAPS}?resourceVersion=0"))
        .await
        .expect(200);
    reach.tell(false);
    let mut again = h.watch(&path).await;
    assert_eq!(again.brief().await, ("ADDED".into(), "a".into()));
}

#[tokio::test]
async fn a_watch_goes_on_where_a_list_ended() {
    let h = Harness::new();
    let list = h.get(MAPS).await.expect(200);
    let version = list["metadata"]["resourceVersion"].as_str().unwrap();
    let made = h.post(MAPS, config_map("a", json!({}))).await.expect(201);
    h.post(
        "/api/v1/namespaces/e/configmaps",
        config_map("elsewhere", json!({})),
    )
    .await
    .expect(201);
    h.delete(&format!("{MAPS}/a")).await.expect(200);
    let mut watch = h
        .watch(&format!("{MAPS}?watch=true&resourceVersion={version}"))
        .await;
    assert_eq!(watch.next().await.unwrap()["object"], made);
    let deleted = watch.next().await.unwrap();
    assert_eq!(deleted["type"], "DELETED");
    let version = |v: &Value| {
        v["metadata"]["resourceVersion"]
            .as_str()
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    assert!(
        version(&deleted["object"]) > version(&made),
        "a deletion has its own version"
    );
}

#[tokio::test]
async fn selectors_turn_changes_into_arrivals_and_departures() {
    let h = Harness::new();
    let mut watch = h
        .watch(&format!("{MAPS}?watch=true&labelSelector=app%3Dx"))
        .await;
    h.post(MAPS, labelled("a", "y")).await.expect(201);
    let relabel = |label: &str| json!({"metadata": {"labels": {"app": label}}});
    for label in ["x", "z"] {
        h.patch(
            &format!("{MAPS}/a"),
            "application/merge-patch+json",
            relabel(label),
        )
        .await
        .expect(200);
    }
    assert_eq!(watch.brief().await, ("ADDED".into(), "a".into()));
    let left = watch.next().await.unwrap();
    assert_eq!(left["type"], "DELETED");
    assert_eq!(
        left["object"]["metadata"]["labels"]["app"], "x",
        "the last state that matched"
    );
}

#[tokio::test]
async fn a_node_watches_only_its_pods() {
    let h = Harness::new();
    let mut watch = h
        .watch("/api/v1/pods?watch=true&fieldSelector=spec.nodeName%3Dn1")
        .await;
    for (name, node) in [("a", "n2"), ("b", "n1")] {
        h.post(PODS, pod(name)).await.expect(201);
        let binding = json!({"metadata": {"name": name}, "target": {"kind": "Node", "name": node}});
        h.post(&format!("{PODS}/{name}/binding"), binding)
            .await
            .expect(201);
    }
    assert_eq!(watch.brief().await, ("ADDED".into(), "b".into()));
    h.ask(Method::DELETE, &format!("{PODS}/b?gracePeriodSeconds=0"))
        .send()
        .await
        .expect(200);
    assert_eq!(watch.brief().await, ("DELETED".into(), "b".into()));
}

#[tokio::test]
async fn initial_events_end_with_a_marked_bookmark() {
    let h = Harness::new();
    let made = h.post(MAPS, config_map("a", json!({}))).await.expect(201);
    let query = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut watch = h.watch(&format!("{MAPS}?{query}")).await;
    assert_eq!(watch.brief().await.0, "ADDED");
    let mark = watch.next().await.unwrap();
    assert_eq!(mark["type"], "BOOKMARK");
    assert_eq!(mark["object"]["kind"], "ConfigMap");
    assert_eq!(
        mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    assert_eq!(
        mark["object"]["metadata"]["resourceVersion"],
        made["metadata"]["resourceVersion"]
    );
    let mut empty = h.watch(&format!("{SERVICES}?{query}")).await;
    assert_eq!(empty.brief().await.0, "BOOKMARK");
}

#[tokio::test]
async fn bookmarks_come_by_and_by_and_a_watch_ends_in_time() {
    let h = Harness::new();
    let mut watch = h
        .watch(&format!(
            "{MAPS}?watch=true&allowWatchBookmarks=true&timeoutSeconds=1"
        ))
        .await;
    h.post(
        "/api/v1/namespaces/e/secrets",
        json!({"metadata": {"name": "s"}}),
    )
    .await
    .expect(201);
    let current = h.get(MAPS).await.expect(200)["metadata"]["resourceVersion"].clone();
    let mut last = Value::Null;
    while let Some(mark) = watch.next().await {
        assert_eq!(mark["type"], "BOOKMARK");
        last = mark;
    }
    assert_eq!(last["object"]["metadata"]["resourceVersion"], current);
}

/// As after a restart: the cache does not know what happened before.
fn forget(h: &Harness) {
    let keep: Vec<_> = h
        .backend
        .keys("/registry/core/configmaps/")
        .iter()
        .filter_map(|key| h.backend.value(key))
        .collect();
    let revision = h.api.core.cache.revision();
    h.api.core.cache.reset(revision, |prefix| {
        keep.iter()
            .filter(|kv| kv.key.starts_with(prefix.as_bytes()))
            .cloned()
            .collect()
    });
}

#[tokio::test]
async fn a_watch_from_before_a_restart_is_served_from_the_stores_history() {
    let h = Harness::new();
    h.post(MAPS, config_map("a", json!({}))).await.expect(201);
    h.delete(&format!("{MAPS}/a")).await.expect(200);
    h.post(MAPS, config_map("b", json!({}))).await.expect(201);
    forget(&h);
    let mut watch = h
        .watch(&format!("{MAPS}?watch=true&resourceVersion=1"))
        .await;
    h.post(MAPS, config_map("c", json!({}))).await.expect(201);
    for (type_, name) in [
        ("ADDED", "a"),
        ("DELETED", "a"),
        ("ADDED", "b"),
        ("ADDED", "c"),
    ] {
        assert_eq!(watch.brief().await, (type_.into(), name.into()));
    }
}

#[tokio::test]
async fn a_version_that_is_gone_is_410_in_the_stream() {
    let h = Harness::new();
    h.post(MAPS, config_map("a", json!({}))).await.expect(201);
    forget(&h);
    h.backend.compact();
    let mut watch = h
        .watch(&format!("{MAPS}?watch=true&resourceVersion=1"))
        .await;
    let error = watch.next().await.unwrap();
    assert_eq!(
        (&error["type"], &error["object"]["code"]),
        (&json!("ERROR"), &json!(410))
    );
    assert_eq!(
        error["object"]["message"],
        "too old resource version: 1 (2)"
    );
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn a_slow_watcher_is_cut_off_and_the_others_go_on() {
    let h = Harness::new();
    h.post(MAPS, config_map("a", json!({}))).await.expect(201);
    let mut slow = h.watch(&format!("{MAPS}?watch=true")).await;
    let mut brisk = h.watch(&format!("{MAPS}?watch=true")).await;
    brisk.brief().await;
    for i in 0..8300 {
        let patch = json!({"data": {"k": i.to_string()}});
        h.patch(&format!("{MAPS}/a"), "application/merge-patch+json", patch)
            .await
            .expect(200);
        assert_eq!(brisk.brief().await.0, "MODIFIED");
    }
    let mut last = Value::Null;
    while let Some(event) = slow.next().await {
        last = event;
    }
    assert_eq!(
        (&last["type"], &last["object"]["code"]),
        (&json!("ERROR"), &json!(410))
    );
}

#[tokio::test]
async fn a_table_watch_names_its_columns_once() {
    let h = Harness::new();
    let response = h
        .ask(Method::GET, &format!("{MAPS}?watch=true"))
        .header(
            "accept",
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
        )
        .raw()
        .await;
    let mut watch = Lines {
        body: response.into_body(),
        buffer: Vec::new(),
    };
    for name in ["a", "b"] {
        h.post(MAPS, config_map(name, json!({}))).await.expect(201);
    }
    let first = watch.next().await.unwrap()["object"].clone();
    assert_eq!(first["kind"], "Table");
    assert!(first["columnDefinitions"].is_array());
    assert_eq!(first["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let second = watch.next().await.unwrap()["object"].clone();
    assert!(second["columnDefinitions"].is_null());
    assert_eq!(second["rows"][0]["cells"][0], "b");
}

#[tokio::test]
async fn shutdown_ends_watches() {
    let h = Harness::new();
    let mut watch = h.watch(&format!("{MAPS}?watch=true")).await;
    h.api.end_watches();
    assert!(
        tokio::time::timeout(Duration::from_secs(5), watch.next())
            .await
            .unwrap()
            .is_none()
    );
}
