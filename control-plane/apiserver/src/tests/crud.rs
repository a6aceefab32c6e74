use super::*;

#[tokio::test]
async fn an_object_is_created_read_updated_and_deleted() {
    let h = Harness::new();
    let made = h
        .post(MAPS, config_map("a", json!({"k": "1"})))
        .await
        .expect(201);
    assert_eq!(made["metadata"]["namespace"], "d");
    assert!(!made["metadata"]["uid"].as_str().unwrap().is_empty());
    assert_eq!(h.get(&format!("{MAPS}/a")).await.expect(200), made);

    let mut changed = made.clone();
    changed["data"]["k"] = "2".into();
    let updated = h
        .put(&format!("{MAPS}/a"), changed.clone())
        .await
        .expect(200);
    assert_eq!(updated["metadata"]["uid"], made["metadata"]["uid"]);
    assert_ne!(
        updated["metadata"]["resourceVersion"],
        made["metadata"]["resourceVersion"]
    );

    let conflict = h.put(&format!("{MAPS}/a"), changed).await;
    assert_eq!(conflict.body["reason"], "Conflict");
    assert_eq!(
        conflict.message(409),
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
    );

    let gone = h.delete(&format!("{MAPS}/a")).await.expect(200);
    assert_eq!(gone["status"], "Success");
    assert_eq!(gone["details"]["uid"], made["metadata"]["uid"]);
    assert_eq!(
        h.get(&format!("{MAPS}/a")).await.message(404),
        "configmaps \"a\" not found"
    );
}

#[tokio::test]
async fn the_store_holds_no_resource_version() {
    let h = Harness::new();
    h.post(MAPS, config_map("a", json!({}))).await.expect(201);
    let kv = h.backend.value("/registry/core/configmaps/d/a").unwrap();
    assert!(!String::from_utf8_lossy(&kv.value).contains("resourceVersion"));
}

#[tokio::test]
async fn what_is_there_cannot_be_created_again() {
    let h = Harness::new();
    h.post(MAPS, config_map("a", json!({}))).await.expect(201);
    assert_eq!(
        h.post(MAPS, config_map("a", json!({}))).await.message(409),
        "configmaps \"a\" already exists"
    );
    let dry = h
        .post(&format!("{MAPS}?dryRun=All"), config_map("a", json!({})))
        .await;
    assert_eq!(dry.code, 409);
}

#[tokio::test]
async fn a_name_can_be_generated_and_one_is_needed() {
    let h = Harness::new();
    let made = h
        .post(MAPS, json!({"metadata": {"generateName": "web-"}}))
        .await
        .expect(201);
    assert!(
        made["metadata"]["name"]
            .as_str()
            .unwrap()
            .starts_with("web-")
    );
    let message = h.post(MAPS, json!({"metadata": {}})).await.message(422);
    assert!(
        message.contains("metadata.name: Required value: name or generateName is required"),
        "{message}"
    );
}

#[tokio::test]
async fn names_and_namespaces_must_agree_with_the_path() {
    let h = Harness::new();
    let mut other = config_map("a", json!({}));
    other["metadata"]["namespace"] = "e".into();
    assert!(
        h.post(MAPS, other)
            .await
            .message(400)
            .contains("the namespace of the provided object does not match")
    );
    h.post(MAPS, config_map("a", json!({}))).await.expect(201);
    let message = h
        .put(&format!("{MAPS}/a"), config_map("b", json!({})))
        .await
        .message(400);
    assert_eq!(
        message,
        "the name of the object (b) does not match the name on the URL (a)"
    );
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let h = Harness::new();
    h.post(&format!("{MAPS}?dryRun=All"), config_map("a", json!({})))
        .await
        .expect(201);
    assert_eq!(h.get(&format!("{MAPS}/a")).await.code, 404);
    h.post(MAPS, config_map("a", json!({"k": "1"})))
        .await
        .expect(201);
    let would = h
        .put(
            &format!("{MAPS}/a?dryRun=All"),
            config_map("a", json!({"k": "2"})),
        )
        .await
        .expect(200);
    assert_eq!(would["data"]["k"], "2");
    h.ask(Method::DELETE, &format!("{MAPS}/a?dryRun=All"))
        .send()
        .await
        .expect(200);
    assert_eq!(
        h.get(&format!("{MAPS}/a")).await.expect(200)["data"]["k"],
        "1"
    );
}

#[tokio::test]
async fn an_update_without_changes_keeps_the_version() {
    let h = Harness::new();
    let made = h
        .post(MAPS, config_map("a", json!({"k": "1"})))
        .await
        .expect(201);
    let again = h.put(&format!("{MAPS}/a"), made.clone()).await.expect(200);
    assert_eq!(
        again["metadata"]["resourceVersion"],
        made["metadata"]["resourceVersion"]
    );
}

#[tokio::test]
async fn unknown_fields_are_refused_warned_of_or_dropped() {
    let h = Harness::new();
    let odd = json!({"metadata": {"name": "a"}, "dat": {"k": "1"}});
    let message = h
        .post(&format!("{MAPS}?fieldValidation=Strict"), odd.clone())
        .await
        .message(400);
    assert!(
        message.contains("strict decoding error: unknown field \"dat\""),
        "{message}"
    );
    let warned = h.post(MAPS, odd.clone()).await;
    assert_eq!(
        warned.headers["warning"],
        "299 - \"unknown field \\\"dat\\\"\""
    );
    assert!(warned.expect(201).get("dat").is_none());
    let mut quiet = odd;
    quiet["metadata"]["name"] = "b".into();
    assert!(
        !h.post(&format!("{MAPS}?fieldValidation=Ignore"), quiet)
            .await
            .headers
            .contains_key("warning")
    );
}

#[tokio::test]
async fn a_put_creates_only_where_upstream_lets_it() {
    let h = Harness::new();
    assert_eq!(h.put(&format!("{PODS}/a"), pod("a")).await.code, 404);
    let lease = "/apis/coordination.k8s.io/v1/namespaces/d/leases";
    h.put(
        &format!("{lease}/a"),
        json!({"metadata": {"name": "a"}, "spec": {"holderIdentity": "x"}}),
    )
    .await
    .expect(201);
    let message = h
        .put(
            &format!("{lease}/a"),
            json!({"metadata": {"name": "a"}, "spec": {}}),
        )
        .await
        .message(422);
    assert!(message.contains("metadata.resourceVersion"), "{message}");
}

#[tokio::test]
async fn a_put_with_another_uid_is_a_conflict() {
    let h = Harness::new();
    h.post(MAPS, config_map("a", json!({}))).await.expect(201);
    let mut other = config_map("a", json!({}));
    other["metadata"]["uid"] = "x".into();
    assert!(
        h.put(&format!("{MAPS}/a"), other)
            .await
            .message(409)
            .contains("Precondition failed: UID in precondition: x")
    );
}

#[tokio::test]
async fn status_and_spec_are_written_apart() {
    let h = Harness::new();
    h.post(PODS, pod("a")).await.expect(201);
    let mut changed = h.get(&format!("{PODS}/a")).await.expect(200);
    changed["status"]["phase"] = "Running".into();
    changed["spec"]["activeDeadlineSeconds"] = 5.into();
    let written = h
        .put(&format!("{PODS}/a/status"), changed)
        .await
        .expect(200);
    assert_eq!(written["status"]["phase"], "Running");
    assert!(written["spec"].get("activeDeadlineSeconds").is_none());
}

#[tokio::test]
async fn a_binding_puts_a_pod_on_a_node_once() {
    let h = Harness::new();
    h.post(PODS, pod("a")).await.expect(201);
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "a", "annotations": {"x/y": "z"}},
        "target": {"apiVersion": "v1", "kind": "Node", "name": "n1"}});
    h.post(&format!("{PODS}/a/binding"), binding.clone())
        .await
        .expect(201);
    let bound = h.get(&format!("{PODS}/a")).await.expect(200);
    assert_eq!(bound["spec"]["nodeName"], "n1");
    assert_eq!(bound["metadata"]["annotations"]["x/y"], "z");
    let managers = bound["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(managers.len(), 1, "nobody owns where it was put");
    let conditions = bound["status"]["conditions"].as_array().unwrap();
    assert!(
        conditions
            .iter()
            .any(|c| c["type"] == "PodScheduled" && c["status"] == "True")
    );
    let message = h
        .post(&format!("{PODS}/a/binding"), binding.clone())
        .await
        .message(409);
    assert!(
        message.contains("pod a is already assigned to node \"n1\""),
        "{message}"
    );
    h.post(PODS, pod("b")).await.expect(201);
    let mut whole = binding;
    whole["metadata"] = json!({"name": "b"});
    h.post("/api/v1/namespaces/d/bindings", whole)
        .await
        .expect(201);
    assert_eq!(
        h.get(&format!("{PODS}/b")).await.expect(200)["spec"]["nodeName"],
        "n1"
    );
}

#[tokio::test]
async fn a_scale_reads_and_writes_replicas() {
    let h = Harness::new();
    let path = "/apis/apps/v1/namespaces/d/deployments";
    let deployment = json!({"metadata": {"name": "web"}, "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    h.post(path, deployment).await.expect(201);
    let mut scale = h.get(&format!("{path}/web/scale")).await.expect(200);
    assert_eq!(
        (&scale["kind"], &scale["spec"]["replicas"]),
        (&json!("Scale"), &json!(2))
    );
    assert_eq!(scale["status"]["selector"], "app=web");
    let table = h
        .ask(Method::GET, &format!("{path}/web/scale"))
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
        .send()
        .await
        .expect(200);
    assert_eq!(table["columnDefinitions"][1]["name"], "Desired");
    let cells = &table["rows"][0]["cells"];
    assert_eq!(
        (&cells[0], &cells[1], &cells[2]),
        (&json!("web"), &json!(2), &json!(0))
    );
    scale["spec"]["replicas"] = 5.into();
    h.put(&format!("{path}/web/scale"), scale.clone())
        .await
        .expect(200);
    assert_eq!(h.put(&format!("{path}/web/scale"), scale).await.code, 409);
    let merge = json!({"spec": {"replicas": 7}});
    h.patch(
        &format!("{path}/web/scale"),
        "application/merge-patch+json",
        merge,
    )
    .await
    .expect(200);
    let web = h.get(&format!("{path}/web")).await.expect(200);
    assert_eq!(
        (&web["spec"]["replicas"], &web["metadata"]["generation"]),
        (&json!(7), &json!(3))
    );
}

#[tokio::test]
async fn events_are_leased_and_seen_in_both_shapes() {
    let h = Harness::new();
    let event = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "a", "namespace": "d"},
        "reason": "Tested", "message": "hello", "type": "Normal"});
    h.post("/api/v1/namespaces/d/events", event)
        .await
        .expect(201);
    assert!(
        h.backend
            .value("/registry/core/events/d/e")
            .unwrap()
            .lease
            .is_some()
    );
    let list = h
        .get("/apis/events.k8s.io/v1/namespaces/d/events?fieldSelector=reason%3DTested")
        .await
        .expect(200);
    assert_eq!(list["items"][0]["note"], "hello");
    assert_eq!(list["items"][0]["apiVersion"], "events.k8s.io/v1");
    let one = h
        .get("/apis/events.k8s.io/v1/namespaces/d/events/e")
        .await
        .expect(200);
    assert_eq!(one["regarding"]["name"], "a");
}

#[tokio::test]
async fn a_deposed_leaders_write_is_refused() {
    let h = Harness::new();
    let write = |term| {
        h.ask(Method::POST, MAPS)
            .body(json!({"metadata": {"generateName": "a"}}))
            .fence(term)
            .send()
    };
    write(1).await.expect(201);
    assert_eq!(write(7).await.code, 409);
}

#[tokio::test]
async fn a_store_without_quorum_is_503_with_a_hint_to_come_back() {
    let h = Harness::new();
    *h.backend.down.lock() = Some("no leader".into());
    let answer = h.post(MAPS, config_map("a", json!({}))).await;
    assert_eq!(answer.headers["retry-after"], "1");
    assert_eq!(answer.expect(503)["reason"], "ServiceUnavailable");
}

#[tokio::test]
async fn a_generated_name_is_known_to_the_kinds_rules() {
    let h = Harness::new();
    let job = json!({"metadata": {"generateName": "j-"}, "spec": {"template": {"spec": {
        "restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}});
    let made = h
        .post("/apis/batch/v1/namespaces/d/jobs", job)
        .await
        .expect(201);
    let labels = &made["spec"]["template"]["metadata"]["labels"];
    assert_eq!(
        labels["batch.kubernetes.io/job-name"],
        made["metadata"]["name"]
    );
}
