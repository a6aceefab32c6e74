use super::*;

#[tokio::test]
async fn the_three_patch_types_change_an_object() {
    let h = Harness::new();
    h.post(MAPS, config_map("a", json!({"k": "1", "l": "1"})))
        .await
        .expect(201);
    let path = format!("{MAPS}/a");
    let merge = json!({"data": {"k": "2", "l": null}});
    let merged = h
        .patch(&path, "application/merge-patch+json", merge)
        .await
        .expect(200);
    assert_eq!(merged["data"], json!({"k": "2"}));
    let operations = json!([{"op": "test", "path": "/data/k", "value": "2"}, {"op": "add", "path": "/data/m", "value": "3"}]);
    h.patch(&path, "application/json-patch+json", operations)
        .await
        .expect(200);
    let strategic = json!({"metadata": {"labels": {"x": "y"}}});
    let patched = h
        .patch(&path, "application/strategic-merge-patch+json", strategic)
        .await
        .expect(200);
    assert_eq!(patched["data"], json!({"k": "2", "m": "3"}));
    assert_eq!(patched["metadata"]["labels"], json!({"x": "y"}));
    assert_eq!(
        h.patch(&path, "text/plain", json!({})).await.expect(415)["reason"],
        "UnsupportedMediaType"
    );
}

#[tokio::test]
async fn a_strategic_patch_merges_containers_by_name() {
    let h = Harness::new();
    h.post(PODS, pod("a")).await.expect(201);
    let patch = json!({"spec": {"containers": [{"name": "c", "image": "nginx"}]}});
    let patched = h
        .patch(
            &format!("{PODS}/a"),
            "application/strategic-merge-patch+json",
            patch,
        )
        .await
        .expect(200);
    assert_eq!(patched["spec"]["containers"].as_array().unwrap().len(), 1);
    assert_eq!(patched["spec"]["containers"][0]["image"], "nginx");
}

#[tokio::test]
async fn a_patch_with_an_old_version_is_a_conflict() {
    let h = Harness::new();
    h.post(MAPS, config_map("a", json!({}))).await.expect(201);
    let patch = json!({"metadata": {"resourceVersion": "1"}, "data": {"k": "1"}});
    assert_eq!(
        h.patch(&format!("{MAPS}/a"), "application/merge-patch+json", patch)
            .await
            .code,
        409
    );
}

#[tokio::test]
async fn identity_cannot_be_patched_away() {
    let h = Harness::new();
    h.post(MAPS, config_map("a", json!({}))).await.expect(201);
    let answer = h
        .patch(
            &format!("{MAPS}/a"),
            "application/merge-patch+json",
            json!({"metadata": {"name": "b"}}),
        )
        .await;
    assert!(matches!(answer.code, 400 | 422), "{}", answer.body);
    let bad = h
        .patch(
            &format!("{MAPS}/a"),
            "application/json-patch+json",
            json!([{"op": "remove", "path": "/data/x"}]),
        )
        .await;
    assert_eq!(bad.code, 422);
}

#[tokio::test]
async fn many_writers_of_one_object_all_get_through() {
    let h = Harness::new();
    h.post(MAPS, config_map("a", json!({}))).await.expect(201);
    let writes = (0..8).map(|i| {
        let mut data = serde_json::Map::new();
        data.insert(format!("k{i}"), "v".into());
        let api = h.api.clone();
        async move {
            let body = json!({"data": data});
            let request = ask(&api, Method::PATCH, &format!("{MAPS}/a")).body(body);
            request
                .header("content-type", "application/merge-patch+json")
                .send()
                .await
                .expect(200)
        }
    });
    futures::future::join_all(writes).await;
    assert_eq!(
        h.get(&format!("{MAPS}/a")).await.expect(200)["data"]
            .as_object()
            .unwrap()
            .len(),
        8
    );
}

const APPLY: &str = "application/apply-patch+yaml";

#[tokio::test]
async fn an_apply_creates_updates_and_conflicts() {
    let h = Harness::new();
    let path = format!("{MAPS}/a");
    let apply = |manager: &str, data: Value| {
        let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data});
        let path = format!("{path}?fieldManager={manager}");
        let h = &h;
        async move { h.patch(&path, APPLY, body).await }
    };
    let made = apply("one", json!({"k": "1"})).await.expect(201);
    assert_eq!(made["metadata"]["managedFields"][0]["manager"], "one");
    let same = apply("one", json!({"k": "1"})).await.expect(200);
    assert_eq!(
        same["metadata"]["resourceVersion"],
        made["metadata"]["resourceVersion"]
    );
    apply("two", json!({"l": "1"})).await.expect(200);
    let conflict = apply("two", json!({"k": "2"})).await.expect(409);
    assert_eq!(conflict["details"]["causes"][0]["field"], ".data.k");
    let without = apply("one", json!({})).await.expect(200);
    assert_eq!(without["data"], json!({"l": "1"}));
    assert_eq!(
        h.patch(
            &path,
            APPLY,
            json!({"apiVersion": "v1", "kind": "ConfigMap"})
        )
        .await
        .code,
        422
    );
}

#[tokio::test]
async fn an_apply_that_names_a_uid_creates_nothing() {
    let h = Harness::new();
    let path = format!("{MAPS}/a?fieldManager=one");
    let body =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "uid": "gone"}});
    let refused = h.patch(&path, APPLY, body).await.expect(409);
    assert_eq!(
        refused["message"],
        "Operation cannot be fulfilled on configmaps \"a\": uid mismatch: the provided object specified uid gone, and no existing object was found"
    );
}

#[tokio::test]
async fn plain_writes_are_recorded_too() {
    let h = Harness::new();
    let ask = h
        .ask(Method::POST, MAPS)
        .body(config_map("a", json!({"k": "1"})))
        .header("user-agent", "kubectl/v1.35");
    let made = ask.send().await.expect(201);
    let entry = &made["metadata"]["managedFields"][0];
    assert_eq!(
        (&entry["manager"], &entry["operation"]),
        (&json!("kubectl"), &json!("Update"))
    );
    assert!(entry["fieldsV1"]["f:data"]["f:k"].is_object());
}

#[tokio::test]
async fn strict_patches_refuse_what_is_written_twice_or_unknown() {
    let h = Harness::new();
    h.post(MAPS, config_map("a", json!({"k": "1"})))
        .await
        .expect(201);
    let strict = format!("{MAPS}/a?fieldValidation=Strict");
    for (form, body, wanted) in [
        (
            "merge-patch+json",
            r#"{"data":{"k":"2","k":"3"},"foo":1}"#,
            "strict decoding error: duplicate field \"data.k\", unknown field \"foo\"",
        ),
        (
            "strategic-merge-patch+json",
            r#"{"data":{"k":"2","k":"3"}}"#,
            "\"map[data:map[k:3]]\": strict decoding error: duplicate field \"data.k\"",
        ),
        (
            "json-patch+json",
            r#"[{"op":"add","path":"/data/k","value":"4","foo":1}]"#,
            "strict decoding error: json patch unknown field \"[0].foo\"",
        ),
        (
            "merge-patch+json",
            r#"{"data":{"k":2}}"#,
            "json: cannot unmarshal number into Go struct field",
        ),
    ] {
        let content_type = format!("application/{form}");
        let refused = h
            .ask(Method::PATCH, &strict)
            .bytes(body.into())
            .header("content-type", &content_type)
            .send()
            .await;
        assert_eq!(refused.code, 422, "{form}: {}", refused.body);
        let message = refused.body["message"].as_str().unwrap();
        assert!(
            message.starts_with(" \"\" is invalid: patch: Invalid value: ")
                && message.contains(wanted),
            "{message}"
        );
    }
    let twice = r#"{"data":{"k":"2","k":"3"}}"#;
    let warned = h
        .ask(Method::PATCH, &format!("{MAPS}/a"))
        .bytes(twice.into())
        .header("content-type", "application/merge-patch+json")
        .send()
        .await;
    assert_eq!(warned.code, 200);
    assert!(
        warned.headers["warning"]
            .to_str()
            .unwrap()
            .contains("duplicate field \\\"data.k\\\"")
    );
}

#[tokio::test]
async fn a_scale_is_applied() {
    let h = Harness::new();
    const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/d/deployments";
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let body = json!({"metadata": {"name": "a"}, "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": template}});
    let path = format!("{DEPLOYMENTS}?fieldManager=one");
    h.post(&path, body).await.expect(201);
    let path = format!("{DEPLOYMENTS}/a/scale?fieldManager=two");
    let scale = json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "spec": {"replicas": 3}});
    const APPLY: &str = "application/apply-patch+yaml";
    let conflict = h.patch(&path, APPLY, scale.clone()).await.expect(409);
    assert_eq!(conflict["reason"], "Conflict");
    let forced = h.patch(&format!("{path}&force=true"), APPLY, scale).await;
    assert_eq!(forced.expect(200)["spec"]["replicas"], 3);
    let deployment = h.get(&format!("{DEPLOYMENTS}/a")).await.expect(200);
    assert_eq!(deployment["spec"]["replicas"], 3);
    let managers = deployment["metadata"]["managedFields"].as_array().unwrap();
    let two = managers.iter().find(|m| m["manager"] == "two").unwrap();
    assert_eq!(two["subresource"], "scale");
    assert_eq!(two["operation"], "Apply");
}
