//! The metrics API over nodes that tell what a test wants them to.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use http::Method;
use http_body_util::BodyExt as _;

use super::*;
use crate::authz::fake::Objects;
use crate::seam::NodeStream;

/// Each look comes 10 s after the one before and a container has used 2 s of CPU more.
#[derive(Default)]
struct Nodes {
    looks: AtomicU64,
}

#[async_trait]
impl NodeStreams for Nodes {
    async fn open(&self, node: &str, _request: StreamRequest) -> Result<NodeStream, Status> {
        if node != "n1" {
            return Err(Status::new(503, "ServiceUnavailable", "not connected"));
        }
        let look = self.looks.fetch_add(1, Ordering::Relaxed);
        let (at, cpu) = (1_700_000_000_000 + look * 10_000, 100 + look * 2);
        let labels = "container=\"web\",namespace=\"d\",pod=\"p\"";
        let page = format!(
            "container_cpu_usage_seconds_total{{{labels}}} {cpu} {at}\n\
             container_memory_working_set_bytes{{{labels}}} 8192 {at}\n\
             container_start_time_seconds{{{labels}}} 1000 {at}\n\
             node_cpu_usage_seconds_total {cpu} {at}\nnode_memory_working_set_bytes 1024 {at}\n"
        );
        Ok(NodeStream {
            code: 200,
            reader: Box::new(std::io::Cursor::new(page.into_bytes())),
            writer: Box::new(tokio::io::sink()),
        })
    }
}

fn pod(name: &str, node: &str, app: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "d", "labels": {"app": app}},
        "spec": {"nodeName": node}, "status": {"phase": "Running"}})
}

fn api() -> MetricsApi {
    let objects = Objects::new()
        .with("", "nodes", json!({"metadata": {"name": "n1"}}))
        .with("", "nodes", json!({"metadata": {"name": "silent"}}))
        .with("", "pods", pod("p", "n1", "web"))
        .with("", "pods", pod("elsewhere", "silent", "web"));
    MetricsApi::new(Arc::new(objects), Arc::new(Nodes::default()))
}

async fn ask(api: &MetricsApi, method: Method, url: &str, accept: &str) -> Result<Value, Status> {
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    let query = Query::parse(query);
    let info = RequestInfo::parse(&method, path, &query);
    let mut headers = HeaderMap::new();
    headers.insert("accept", accept.parse().unwrap());
    let response = api.answer(&info, &query, &headers).await?;
    let body = response.into_body().collect().await.unwrap().to_bytes();
    Ok(serde_json::from_slice(&body).unwrap_or_default())
}

const PODS: &str = "/apis/metrics.k8s.io/v1beta1/namespaces/d/pods";
const NODES: &str = "/apis/metrics.k8s.io/v1beta1/nodes";

#[tokio::test(start_paused = true)]
async fn nodes_and_pods_that_are_reached_are_shown_with_rates() {
    let api = api();
    let nodes = ask(&api, Method::GET, NODES, "application/json")
        .await
        .unwrap();
    assert_eq!(nodes["kind"], "NodeMetricsList");
    assert_eq!(nodes["items"].items().len(), 1);
    assert_eq!(
        nodes["items"][0]["usage"],
        json!({"cpu": "200000000n", "memory": "1Ki"})
    );
    let pods = ask(
        &api,
        Method::GET,
        &format!("{PODS}?labelSelector=app%3Dweb"),
        "application/json",
    )
    .await
    .unwrap();
    assert_eq!(pods["items"].items().len(), 1);
    assert_eq!(
        pods["items"][0]["containers"],
        json!([{"name": "web", "usage": {"cpu": "200000000n", "memory": "8Ki"}}])
    );
    let none = ask(
        &api,
        Method::GET,
        &format!("{PODS}?labelSelector=app%3Dother"),
        "application/json",
    )
    .await
    .unwrap();
    assert_eq!(none["items"], json!([]));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_known_is_not_found_in_upstreams_words() {
    let api = api();
    let one = ask(
        &api,
        Method::GET,
        &format!("{PODS}/p"),
        "application/json;as=Table;g=meta.k8s.io;v=v1",
    )
    .await
    .unwrap();
    assert_eq!(one["rows"][0]["cells"], json!(["p", "200m", "8Ki", "10s"]));
    let missing = ask(
        &api,
        Method::GET,
        &format!("{PODS}/elsewhere"),
        "application/json",
    )
    .await
    .unwrap_err();
    assert_eq!(
        missing.message,
        "podmetrics.metrics.k8s.io \"d/elsewhere\" not found"
    );
    let refused = ask(&api, Method::POST, PODS, "application/json").await;
    assert_eq!(refused.unwrap_err().code, 405);
    let unknown = format!("{PODS}?fieldSelector=spec.nodeName%3Dn1");
    let refused = ask(&api, Method::GET, &unknown, "application/json").await;
    assert_eq!(refused.unwrap_err().code, 400);
}

#[test]
fn discovery_and_openapi_tell_of_both_resources() {
    let api = api();
    let resources = api.resource_list();
    let names: Vec<&str> = resources["resources"]
        .items()
        .iter()
        .map(|r| r["name"].text())
        .collect();
    assert_eq!(names, ["nodes", "pods"]);
    let (document, _) = api.openapi().unwrap();
    let document: Value = serde_json::from_slice(&document).unwrap();
    assert!(document["paths"]["/apis/metrics.k8s.io/v1beta1/nodes"]["get"].is_object());
    let schemas = document["components"]["schemas"].as_object().unwrap();
    assert!(schemas.keys().any(|k| k.ends_with("v1beta1.PodMetrics")));
    let beside = api.served_among(&[api.discovered()]);
    let swagger = balsa_api::openapi::v2_document(&beside, &[]);
    let swagger: Value = serde_json::from_slice(&swagger).unwrap();
    assert!(swagger["paths"]["/apis/metrics.k8s.io/v1beta1/nodes"]["get"].is_object());
    assert!(api.served_among(&[]).is_empty());
}
