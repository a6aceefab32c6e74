//! Volumes of drivers follow the pods that use them.

use serde_json::{Value, json};

use super::api::text;
use super::{Cluster, eventually};

const VOLUME: &str = "/api/v1/persistentvolumes";

async fn volume_and_claim(cluster: &Cluster) {
    let claims = "/api/v1/namespaces/shop/persistentvolumeclaims";
    let claim = json!({"metadata": {"name": "data"}, "spec": {"storageClassName": "", "volumeName": "disk",
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    let volume = json!({"metadata": {"name": "disk"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "capacity": {"storage": "1Gi"}, "csi": {"driver": "d", "volumeHandle": "h"},
        "claimRef": {"namespace": "shop", "name": "data"}, "persistentVolumeReclaimPolicy": "Retain"}});
    cluster.create(VOLUME, volume).await;
    cluster.create(claims, claim).await;
}

async fn pod(cluster: &Cluster, name: &str, node: &str) {
    let pod = json!({"metadata": {"name": name}, "spec": {"nodeName": node,
        "containers": [{"name": "c", "image": "app"}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]}});
    cluster.create("/api/v1/namespaces/shop/pods", pod).await;
}

fn attached_to(cluster: &Cluster) -> Vec<String> {
    let all = cluster.api.list("volumeattachments", "");
    all.iter().map(|it| text(it, "/spec/nodeName")).collect()
}

#[tokio::test]
async fn a_volume_is_attached_for_a_pod_and_detached_when_its_node_lets_go() {
    let cluster = Cluster::start();
    volume_and_claim(&cluster).await;
    pod(&cluster, "one", "a").await;
    eventually(&cluster, "it is attached", || {
        attached_to(&cluster) == ["a"]
    })
    .await;
    let node = "/api/v1/nodes/a/status";
    let patch = |status: Value| cluster.apply(http::Method::PATCH, node, json!({"status": status}));
    patch(json!({"volumesInUse": ["kubernetes.io/csi/d^h"]})).await;
    let gone = "/api/v1/namespaces/shop/pods/one";
    cluster.apply(http::Method::DELETE, gone, Value::Null).await;
    eventually(&cluster, "the pod is gone", || {
        cluster.names("pods").is_empty()
    })
    .await;
    pod(&cluster, "two", "b").await;
    eventually(&cluster, "the other node is told to wait", || {
        let messages = cluster.messages();
        messages
            .iter()
            .any(|m| m.starts_with("Multi-Attach error for volume \"disk\""))
    })
    .await;
    assert_eq!(attached_to(&cluster), ["a"]);
    patch(json!({"volumesInUse": []})).await;
    eventually(&cluster, "it has moved", || attached_to(&cluster) == ["b"]).await;
}
