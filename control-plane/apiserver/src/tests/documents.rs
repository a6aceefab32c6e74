use super::*;

#[tokio::test]
async fn discovery_lists_what_is_served() {
    let h = Harness::new();
    assert_eq!(h.get("/api").await.expect(200)["versions"], json!(["v1"]));
    let groups = h.get("/apis").await.expect(200);
    assert!(
        groups["groups"]
            .as_array()
            .unwrap()
            .iter()
            .any(|g| g["name"] == "apps")
    );
    let core = h.get("/api/v1").await.expect(200);
    assert!(
        core["resources"]
            .as_array()
            .unwrap()
            .iter()
            .any(|r| r["name"] == "pods/binding")
    );
    assert_eq!(h.get("/apis/apps").await.expect(200)["kind"], "APIGroup");
    assert_eq!(
        h.get("/version").await.expect(200)["gitVersion"],
        "v1.35.0+balsa"
    );
    assert_eq!(h.get("/apis/nonsense/v1").await.code, 404);
}

#[tokio::test]
async fn aggregated_discovery_has_an_etag() {
    let h = Harness::new();
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
    let first = h
        .ask(Method::GET, "/apis")
        .header("accept", accept)
        .send()
        .await;
    assert!(
        first.headers["content-type"]
            .to_str()
            .unwrap()
            .contains("as=APIGroupDiscoveryList")
    );
    let etag = first.headers["etag"].to_str().unwrap().to_owned();
    assert_eq!(first.expect(200)["kind"], "APIGroupDiscoveryList");
    let again = h
        .ask(Method::GET, "/apis")
        .header("accept", accept)
        .header("if-none-match", &etag)
        .send()
        .await;
    assert_eq!((again.code, again.raw.len()), (304, 0));
}

#[tokio::test]
async fn openapi_is_served_by_hash_and_compressed() {
    let h = Harness::new();
    let index = h.get("/openapi/v3").await.expect(200);
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"]
        .as_str()
        .unwrap()
        .to_owned();
    let document = h.get(&url).await;
    assert!(
        document.headers["cache-control"]
            .to_str()
            .unwrap()
            .contains("immutable")
    );
    assert!(
        document.expect(200)["components"]["schemas"]
            .get("io.k8s.api.apps.v1.Deployment")
            .is_some()
    );
    let packed = h
        .ask(Method::GET, "/openapi/v2")
        .header("accept-encoding", "gzip")
        .send()
        .await;
    assert_eq!(packed.headers["content-encoding"], "gzip");
    let protobuf = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    let old = h
        .ask(Method::GET, "/openapi/v2")
        .header("accept", protobuf)
        .send()
        .await;
    assert!(
        old.headers["content-type"]
            .to_str()
            .unwrap()
            .ends_with("protobuf")
    );
}

#[tokio::test]
async fn objects_come_as_table_metadata_and_yaml() {
    let h = Harness::new();
    h.post(PODS, pod("a")).await.expect(201);
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    for path in [PODS.to_owned(), format!("{PODS}/a")] {
        let answer = h
            .ask(Method::GET, &path)
            .header("accept", table)
            .send()
            .await
            .expect(200);
        assert_eq!(answer["kind"], "Table");
        assert_eq!(answer["columnDefinitions"][0]["name"], "Name");
        assert_eq!(answer["rows"][0]["cells"][0], "a");
    }
    let partial = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    let list = h
        .ask(Method::GET, PODS)
        .header("accept", partial)
        .send()
        .await
        .expect(200);
    assert_eq!(list["items"][0]["kind"], "PartialObjectMetadata");
    let yaml = h
        .ask(Method::GET, &format!("{PODS}/a"))
        .header("accept", "application/yaml")
        .send()
        .await;
    assert!(String::from_utf8(yaml.raw).unwrap().contains("kind: Pod"));
    let made = h
        .ask(Method::POST, MAPS)
        .bytes(b"kind: ConfigMap\napiVersion: v1\nmetadata:\n  name: written\n".to_vec());
    made.header("content-type", "application/yaml")
        .send()
        .await
        .expect(201);
    let protobuf = h
        .ask(Method::GET, PODS)
        .header("accept", "application/vnd.kubernetes.protobuf")
        .send()
        .await;
    assert_eq!(protobuf.code, 200);
    assert!(protobuf.raw.starts_with(b"k8s\0"));
}

#[tokio::test]
async fn go_clients_speak_protobuf_all_the_way() {
    use crate::http::protobuf;
    let h = Harness::new();
    let send = async |method: Method, path: &str, body: Option<Value>| {
        let mut ask = h
            .ask(method, path)
            .header("accept", "application/vnd.kubernetes.protobuf");
        if let Some(body) = body {
            let body = protobuf::object(body.to_string().as_bytes()).unwrap();
            ask = ask
                .bytes(body.to_vec())
                .header("content-type", "application/vnd.kubernetes.protobuf");
        }
        let answer = ask.send().await;
        assert_eq!(
            answer.headers["content-type"],
            "application/vnd.kubernetes.protobuf"
        );
        (
            answer.code,
            protobuf::parse(&answer.raw)
                .map(|p| p.value)
                .unwrap_or_default(),
        )
    };
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"k": "v"}});
    let (code, made) = send(Method::POST, MAPS, Some(map.clone())).await;
    assert_eq!((code, &made["data"]), (201, &map["data"]));
    let (code, again) = send(Method::POST, MAPS, Some(map)).await;
    assert_eq!((code, &again["reason"]), (409, &json!("AlreadyExists")));
    let (_, list) = send(Method::GET, MAPS, None).await;
    assert_eq!(list["items"][0]["metadata"]["name"], "m");
    let (_, gone) = send(Method::DELETE, &format!("{MAPS}/m"), None).await;
    assert_eq!(gone["status"], "Success");
    let (_, missing) = send(Method::GET, &format!("{MAPS}/m"), None).await;
    assert_eq!(missing["details"]["name"], "m");
}

#[tokio::test]
async fn a_protobuf_watch_is_a_stream_of_frames() {
    let h = Harness::new();
    let response = h
        .ask(Method::GET, &format!("{MAPS}?watch=true"))
        .header(
            "accept",
            "application/vnd.kubernetes.protobuf,application/json",
        )
        .raw()
        .await;
    assert_eq!(
        response.headers()["content-type"],
        "application/vnd.kubernetes.protobuf;stream=watch"
    );
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}});
    h.post(MAPS, map).await.expect(201);
    let mut body = response.into_body();
    let frame = http_body_util::BodyExt::frame(&mut body)
        .await
        .unwrap()
        .unwrap();
    let frame = frame.into_data().unwrap();
    let length = u32::from_be_bytes(frame[..4].try_into().unwrap()) as usize;
    assert_eq!(length, frame.len() - 4);
    // The type, then an object in its own envelope.
    assert_eq!(&frame[4..11], b"\x0a\x05ADDED");
    let at = frame.windows(4).position(|w| w == b"k8s\0").unwrap();
    let object = crate::http::protobuf::parse(&frame[at..]).unwrap().value;
    assert_eq!(object["metadata"]["name"], "m");
}

#[tokio::test]
async fn health_tells_the_stores_state() {
    let h = Harness::new();
    assert_eq!(h.get("/readyz").await.raw, b"ok");
    assert!(
        String::from_utf8(h.get("/readyz?verbose").await.raw)
            .unwrap()
            .contains("[+]store ok")
    );
    *h.backend.down.lock() = Some("no quorum".into());
    assert_eq!(h.get("/readyz").await.code, 500);
    assert_eq!(h.get("/livez").await.code, 200);
    assert_eq!(h.get("/readyz/store").await.code, 500);
    let metrics = String::from_utf8(h.get("/metrics").await.raw).unwrap();
    assert!(
        metrics.contains("apiserver_request_total{verb=\"GET\""),
        "{metrics}"
    );
    let indicators = String::from_utf8(h.get("/metrics/slis").await.raw).unwrap();
    for line in [
        r#"kubernetes_healthcheck{name="store",type="readyz"} 0"#,
        r#"kubernetes_healthcheck{name="ping",type="livez"} 1"#,
        r#"kubernetes_healthchecks_total{name="store",status="success",type="readyz"} 2"#,
        r#"kubernetes_healthchecks_total{name="store",status="error",type="readyz"} 3"#,
    ] {
        assert!(
            indicators.lines().any(|l| l == line),
            "{line}: {indicators}"
        );
    }
}

#[tokio::test]
async fn errors_say_what_upstream_says() {
    let h = Harness::new();
    assert_eq!(h.get("/nonsense").await.raw, b"404 page not found\n");
    assert_eq!(h.get("/api/v1/nonsense").await.raw, b"404 page not found\n");
    assert_eq!(
        h.ask(Method::POST, &format!("{MAPS}/a"))
            .body(json!({}))
            .send()
            .await
            .code,
        405
    );
    assert_eq!(h.ask(Method::DELETE, "/version").send().await.code, 405);
    let text = h
        .ask(Method::POST, MAPS)
        .bytes(b"x".to_vec())
        .header("content-type", "text/plain")
        .send()
        .await;
    assert_eq!(text.code, 415);
    let large = h
        .ask(Method::POST, MAPS)
        .bytes(vec![b' '; 4 << 20])
        .send()
        .await;
    assert_eq!(large.expect(413)["reason"], "RequestEntityTooLarge");
    assert_eq!(
        h.ask(Method::POST, MAPS)
            .bytes(b"{".to_vec())
            .send()
            .await
            .code,
        400
    );
    let kind = h
        .post(
            MAPS,
            json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "a"}}),
        )
        .await;
    assert!(
        kind.message(400)
            .contains("cannot be handled as a ConfigMap")
    );
}

#[tokio::test]
async fn nobody_may_do_anything() {
    let h = Harness::new();
    let answer = h.ask(Method::GET, PODS).user("nobody").send().await;
    let body = answer.expect(403);
    assert_eq!(body["reason"], "Forbidden");
    assert!(
        body["message"]
            .as_str()
            .unwrap()
            .contains("User \"nobody\" cannot list resource \"pods\""),
        "{body}"
    );
}

#[tokio::test]
async fn component_statuses_are_made_up_and_read_only() {
    let h = Harness::new();
    const PATH: &str = "/api/v1/componentstatuses";
    let all = h.get(PATH).await;
    assert!(all.headers.contains_key("warning"), "deprecated");
    let all = all.expect(200);
    assert_eq!(all["kind"], "ComponentStatusList");
    let names: Vec<&str> = all["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| i["metadata"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["controller-manager", "etcd-0", "scheduler"]);
    let one = h.get(&format!("{PATH}/etcd-0")).await.expect(200);
    assert_eq!(one["conditions"][0]["status"], "True");
    h.get(&format!("{PATH}/etcd-1")).await.expect(404);
    h.delete(&format!("{PATH}/etcd-0")).await.expect(405);
    let table = h
        .ask(Method::GET, PATH)
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
        .send()
        .await
        .expect(200);
    assert_eq!(table["rows"].as_array().unwrap().len(), 3);
}
