use super::*;

async fn fill(h: &Harness, count: usize) {
    for i in 0..count {
        h.post(MAPS, config_map(&format!("m{i:02}"), json!({})))
            .await
            .expect(201);
    }
}

fn names(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().unwrap();
    items
        .iter()
        .map(|i| i["metadata"]["name"].as_str().unwrap().to_owned())
        .collect()
}

fn token(list: &Value) -> String {
    list["metadata"]["continue"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn chunks_show_one_revision_even_when_the_cache_moves_on() {
    let h = Harness::new();
    fill(&h, 5).await;
    let first = h.get(&format!("{MAPS}?limit=2")).await.expect(200);
    assert_eq!(names(&first), ["m00", "m01"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    h.delete(&format!("{MAPS}/m02")).await.expect(200);
    h.post(MAPS, config_map("m025", json!({})))
        .await
        .expect(201);
    let second = h
        .get(&format!("{MAPS}?limit=2&continue={}", token(&first)))
        .await
        .expect(200);
    assert_eq!(names(&second), ["m02", "m03"]);
    assert_eq!(second["metadata"]["remainingItemCount"], 1);
    assert_eq!(
        second["metadata"]["resourceVersion"],
        first["metadata"]["resourceVersion"]
    );
    let last = h
        .get(&format!("{MAPS}?limit=2&continue={}", token(&second)))
        .await
        .expect(200);
    assert_eq!(names(&last), ["m04"]);
    assert!(last["metadata"].get("continue").is_none());
}

#[tokio::test]
async fn an_expired_token_offers_one_for_the_rest() {
    let h = Harness::new();
    fill(&h, 4).await;
    let first = h.get(&format!("{MAPS}?limit=2")).await.expect(200);
    h.post(MAPS, config_map("m015", json!({})))
        .await
        .expect(201);
    h.post(MAPS, config_map("m99", json!({}))).await.expect(201);
    h.backend.compact();
    let gone = h
        .get(&format!("{MAPS}?limit=2&continue={}", token(&first)))
        .await
        .expect(410);
    assert_eq!(gone["reason"], "Expired");
    let rest = h
        .get(&format!("{MAPS}?limit=2&continue={}", token(&gone)))
        .await
        .expect(200);
    assert_eq!(names(&rest), ["m015", "m02"]);
}

#[tokio::test]
async fn versions_choose_the_state() {
    let h = Harness::new();
    fill(&h, 1).await;
    let before = h.get(MAPS).await.expect(200)["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .to_owned();
    h.post(MAPS, config_map("new", json!({}))).await.expect(201);
    let exact = h
        .get(&format!(
            "{MAPS}?resourceVersion={before}&resourceVersionMatch=Exact"
        ))
        .await
        .expect(200);
    assert_eq!(names(&exact), ["m00"]);
    assert_eq!(exact["metadata"]["resourceVersion"], before);
    assert_eq!(
        names(
            &h.get(&format!("{MAPS}?resourceVersion={before}"))
                .await
                .expect(200)
        )
        .len(),
        2
    );
    assert_eq!(
        names(
            &h.get(&format!("{MAPS}?resourceVersion=0"))
                .await
                .expect(200)
        )
        .len(),
        2
    );
    h.post(MAPS, config_map("newer", json!({})))
        .await
        .expect(201);
    h.backend.compact();
    assert_eq!(
        h.get(&format!(
            "{MAPS}?resourceVersion={before}&resourceVersionMatch=Exact"
        ))
        .await
        .code,
        410
    );
}

#[tokio::test]
async fn a_version_from_the_future_is_too_large() {
    let h = Harness::new();
    let answer = h
        .get(&format!("{MAPS}?resourceVersion=1000"))
        .await
        .expect(504);
    assert_eq!(
        answer["details"]["causes"][0]["reason"],
        "ResourceVersionTooLarge"
    );
    assert_eq!(
        h.get(&format!("{MAPS}/a?resourceVersion=1000")).await.code,
        504
    );
}

#[tokio::test]
async fn selectors_narrow_and_unknown_fields_are_refused() {
    let h = Harness::new();
    for (name, label) in [("a", "x"), ("b", "y"), ("c", "x")] {
        h.post(MAPS, labelled(name, label)).await.expect(201);
    }
    assert_eq!(
        names(
            &h.get(&format!("{MAPS}?labelSelector=app+in+(x)"))
                .await
                .expect(200)
        ),
        ["a", "c"]
    );
    assert_eq!(
        names(
            &h.get(&format!("{MAPS}?labelSelector=app!%3Dx"))
                .await
                .expect(200)
        ),
        ["b"]
    );
    assert_eq!(
        names(
            &h.get(&format!("{MAPS}?fieldSelector=metadata.name%3Dc"))
                .await
                .expect(200)
        ),
        ["c"]
    );
    assert_eq!(
        names(
            &h.get("/api/v1/configmaps?fieldSelector=metadata.name!%3Dc")
                .await
                .expect(200)
        ),
        ["a", "b"]
    );
    assert_eq!(
        h.get(&format!("{MAPS}?fieldSelector=data.k%3Dx"))
            .await
            .message(400),
        "field label not supported: data.k"
    );
    assert_eq!(
        h.get(&format!("{MAPS}?labelSelector=a%3D%3D%3Db"))
            .await
            .code,
        400
    );
}

#[tokio::test]
async fn namespaces_do_not_run_into_each_other() {
    let h = Harness::new();
    for namespace in ["d", "d-a", "d0"] {
        let path = format!("/api/v1/namespaces/{namespace}/configmaps");
        h.post(&path, config_map("a", json!({}))).await.expect(201);
    }
    assert_eq!(
        h.get(MAPS).await.expect(200)["items"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(
        h.get("/api/v1/configmaps?limit=2").await.expect(200)["items"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
}

#[tokio::test]
async fn large_lists_are_whole_and_compressed_when_asked() {
    let h = Harness::new();
    for i in 0..40 {
        h.post(
            MAPS,
            config_map(&format!("m{i:02}"), json!({"k": "x".repeat(10_000)})),
        )
        .await
        .expect(201);
    }
    let plain = h.get(MAPS).await;
    assert_eq!(plain.body["items"].as_array().unwrap().len(), 40);
    let packed = h
        .ask(Method::GET, MAPS)
        .header("accept-encoding", "gzip")
        .send()
        .await;
    assert_eq!(packed.headers["content-encoding"], "gzip");
    assert_eq!(crate::http::respond::gunzip(&packed.raw), plain.raw);
}
