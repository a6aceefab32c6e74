use super::*;

fn service(name: &str, spec: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": spec})
}

#[tokio::test]
async fn services_get_distinct_addresses_and_give_them_back() {
    let h = Harness::new();
    let ports = json!({"ports": [{"port": 80}], "selector": {"app": "web"}});
    let a = h
        .post(SERVICES, service("a", ports.clone()))
        .await
        .expect(201);
    let b = h.post(SERVICES, service("b", ports)).await.expect(201);
    let address = |s: &Value| s["spec"]["clusterIP"].as_str().unwrap().to_owned();
    assert_ne!(address(&a), address(&b));
    assert_eq!(h.backend.keys("/balsa/allocated/addresses/").len(), 2);
    let taken = json!({"ports": [{"port": 80}], "clusterIP": address(&a)});
    let message = h
        .post(SERVICES, service("c", taken.clone()))
        .await
        .message(422);
    assert!(
        message.contains("provided IP is already allocated"),
        "{message}"
    );
    h.delete(&format!("{SERVICES}/a")).await.expect(200);
    h.post(SERVICES, service("c", taken)).await.expect(201);
}

#[tokio::test]
async fn node_ports_follow_the_type() {
    let h = Harness::new();
    let spec = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30125}]});
    h.post(SERVICES, service("a", spec.clone()))
        .await
        .expect(201);
    let message = h.post(SERVICES, service("b", spec)).await.message(422);
    assert!(
        message.contains(
            "spec.ports[0].nodePort: Invalid value: 30125: provided port is already allocated"
        ),
        "{message}"
    );
    let merge = json!({"spec": {"type": "ClusterIP"}});
    let plain = h
        .patch(
            &format!("{SERVICES}/a"),
            "application/merge-patch+json",
            merge,
        )
        .await
        .expect(200);
    assert!(plain["spec"]["ports"][0].get("nodePort").is_none());
    assert!(h.backend.keys("/balsa/allocated/nodeports/").is_empty());
}

#[tokio::test]
async fn the_keeper_makes_namespaces_and_the_kubernetes_service() {
    struct Two;
    impl crate::seam::ServerAddresses for Two {
        fn addresses(&self) -> Vec<std::net::SocketAddr> {
            vec![
                "10.0.0.2:6443".parse().unwrap(),
                "10.0.0.1:6443".parse().unwrap(),
            ]
        }
    }
    let h = Harness::new();
    let stop = tokio_util::sync::CancellationToken::new();
    let (api, token) = (h.api.clone(), stop.clone());
    let keeper = tokio::spawn(async move { Box::pin(api.keep(Arc::new(Two), token)).await });
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    let mut watch = h.watch(&format!("{slices}?watch=true")).await;
    let slice = watch.next().await.unwrap()["object"].clone();
    stop.cancel();
    keeper.await.unwrap();
    assert_eq!(slice["endpoints"][0]["addresses"][0], "10.0.0.1");
    let service = h
        .get("/api/v1/namespaces/default/services/kubernetes")
        .await
        .expect(200);
    assert_eq!(service["spec"]["clusterIP"], "10.96.0.1");
    let endpoints = h
        .get("/api/v1/namespaces/default/endpoints/kubernetes")
        .await
        .expect(200);
    assert_eq!(
        endpoints["subsets"][0]["addresses"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        h.get(&format!("/api/v1/namespaces/{name}"))
            .await
            .expect(200);
    }
}
