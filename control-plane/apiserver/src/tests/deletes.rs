use super::*;

async fn running_pod(h: &Harness, name: &str) {
    h.post(PODS, pod(name)).await.expect(201);
    let binding = json!({"metadata": {"name": name}, "target": {"kind": "Node", "name": "n1"}});
    h.post(&format!("{PODS}/{name}/binding"), binding)
        .await
        .expect(201);
}

#[tokio::test]
async fn a_pod_on_a_node_is_deleted_in_two_steps() {
    let h = Harness::new();
    running_pod(&h, "a").await;
    let going = h.delete(&format!("{PODS}/a")).await.expect(200);
    assert_eq!(going["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(going["metadata"]["generation"], 2);
    assert_eq!(h.get(&format!("{PODS}/a")).await.code, 200);
    let last = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "other"}});
    let refused = h
        .ask(Method::DELETE, &format!("{PODS}/a"))
        .body(last)
        .send()
        .await;
    assert!(refused.message(409).contains("UID in precondition: other"));
    let gone = h
        .ask(Method::DELETE, &format!("{PODS}/a"))
        .body(json!({"gracePeriodSeconds": 0}))
        .send()
        .await;
    assert_eq!(gone.expect(200)["kind"], "Pod");
    assert_eq!(h.get(&format!("{PODS}/a")).await.code, 404);
}

#[tokio::test]
async fn a_pod_that_no_node_runs_goes_at_once() {
    let h = Harness::new();
    h.post(PODS, pod("a")).await.expect(201);
    h.delete(&format!("{PODS}/a")).await.expect(200);
    assert_eq!(h.get(&format!("{PODS}/a")).await.code, 404);
}

#[tokio::test]
async fn an_eviction_deletes_with_grace() {
    let h = Harness::new();
    running_pod(&h, "a").await;
    let eviction =
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "a"}});
    h.post(&format!("{PODS}/a/eviction"), eviction)
        .await
        .expect(201);
    assert!(
        h.get(&format!("{PODS}/a")).await.expect(200)["metadata"]["deletionTimestamp"].is_string()
    );
}

#[tokio::test]
async fn an_object_goes_with_its_last_finalizer() {
    let h = Harness::new();
    let mut held = config_map("a", json!({}));
    held["metadata"]["finalizers"] = json!(["x.y/z"]);
    h.post(MAPS, held).await.expect(201);
    let going = h.delete(&format!("{MAPS}/a")).await.expect(200);
    assert!(going["metadata"]["deletionTimestamp"].is_string());
    let more = json!({"metadata": {"finalizers": ["x.y/z", "x.y/new"]}});
    assert_eq!(
        h.patch(&format!("{MAPS}/a"), "application/merge-patch+json", more)
            .await
            .code,
        422
    );
    let none = json!({"metadata": {"finalizers": null}});
    h.patch(&format!("{MAPS}/a"), "application/merge-patch+json", none)
        .await
        .expect(200);
    assert_eq!(h.get(&format!("{MAPS}/a")).await.code, 404);
}

#[tokio::test]
async fn propagation_becomes_a_finalizer() {
    let h = Harness::new();
    h.post(MAPS, config_map("a", json!({}))).await.expect(201);
    let going = h
        .delete(&format!("{MAPS}/a?propagationPolicy=Foreground"))
        .await
        .expect(200);
    assert_eq!(
        going["metadata"]["finalizers"],
        json!(["foregroundDeletion"])
    );
}

#[tokio::test]
async fn a_collection_is_deleted_by_selector() {
    let h = Harness::new();
    for (name, label) in [("a", "x"), ("b", "y"), ("c", "x")] {
        h.post(MAPS, labelled(name, label)).await.expect(201);
    }
    h.delete(&format!("{MAPS}?labelSelector=app%3Dx"))
        .await
        .expect(200);
    let left = h.get(MAPS).await.expect(200);
    assert_eq!(left["items"].as_array().unwrap().len(), 1);
    assert_eq!(left["items"][0]["metadata"]["name"], "b");
}

#[tokio::test]
async fn a_namespace_terminates_until_it_is_finalized() {
    let h = Harness::new();
    h.post("/api/v1/namespaces", json!({"metadata": {"name": "n"}}))
        .await
        .expect(201);
    let mut going = h.delete("/api/v1/namespaces/n").await.expect(200);
    assert_eq!(going["status"]["phase"], "Terminating");
    assert_eq!(h.delete("/api/v1/namespaces/n").await.code, 200);
    going["spec"]["finalizers"] = json!([]);
    h.put("/api/v1/namespaces/n/finalize", going)
        .await
        .expect(200);
    assert_eq!(h.get("/api/v1/namespaces/n").await.code, 404);
}

#[tokio::test]
async fn deleting_what_is_not_there_is_404() {
    let h = Harness::new();
    assert_eq!(
        h.delete(&format!("{MAPS}/a")).await.message(404),
        "configmaps \"a\" not found"
    );
}
