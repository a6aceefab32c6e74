//! Rounds of the controller against an API that answers what a test wants it to.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use kube::client::Body;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::context::Context;
use crate::{Config, NoHeartbeats};

/// A Deployment `web` with a scale, three pods that request 100m each, and CPU usage.
#[derive(Clone, Default)]
struct FakeApi(Arc<Mutex<Fake>>);

#[derive(Default)]
struct Fake {
    replicas: i64,
    milli_cores: Option<i64>,
    /// Objects of `status` that were written.
    status: Vec<Value>,
    events: Vec<Value>,
}

impl FakeApi {
    fn answer(&self, method: &Method, path: &str, body: &Value) -> (u16, Value) {
        let mut fake = self.0.lock();
        let list = |kind: &str, items: Value| {
            (
                200,
                json!({"kind": format!("{kind}List"), "metadata": {"resourceVersion": "1"}, "items": items}),
            )
        };
        if path.ends_with("/deployments/web/scale") {
            if method == Method::PUT {
                fake.replicas = body["spec"]["replicas"].int().unwrap();
            }
            return (
                200,
                json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": {"name": "web", "namespace": "d"},
                "spec": {"replicas": fake.replicas}, "status": {"replicas": fake.replicas, "selector": "app=web"}}),
            );
        }
        if path.starts_with("/apis/metrics.k8s.io/") {
            let Some(milli) = fake.milli_cores else {
                return (
                    404,
                    json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound",
                    "message": "the server could not find the requested resource"}),
                );
            };
            let items: Vec<Value> = (0..3)
                .map(|i| {
                    json!({"metadata": {"name": format!("web-{i}"), "namespace": "d"},
                    "timestamp": Timestamp::now().to_string(), "window": "15s",
                    "containers": [{"name": "c", "usage": {"cpu": format!("{milli}m")}}]})
                })
                .collect();
            return list("PodMetrics", items.into());
        }
        if path.ends_with("/status") {
            fake.status.push(body["status"].clone());
            return (200, autoscaler());
        }
        if path.ends_with("/events") && method == Method::POST {
            fake.events.push(body.clone());
            return (201, body.clone());
        }
        if path == "/api/v1/pods" {
            let items: Vec<Value> = (0..3).map(pod).collect();
            return list("Pod", items.into());
        }
        list("Any", json!([]))
    }

    fn client(&self) -> kube::Client {
        let this = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let this = this.clone();
            async move {
                let (parts, body) = request.into_parts();
                let query = parts.uri.query().unwrap_or_default();
                let bytes = body.collect().await?.to_bytes();
                let body = serde_json::from_slice(&bytes).unwrap_or_default();
                if query.contains("watch=true") {
                    // A plain list comes instead, then nothing.
                    if query.contains("sendInitialEvents") {
                        return reply(
                            400,
                            &json!({"kind": "Status", "code": 400, "reason": "BadRequest", "message": "no", "status": "Failure"}),
                        );
                    }
                    return Ok(std::future::pending().await);
                }
                let (code, value) = this.answer(&parts.method, parts.uri.path(), &body);
                reply(code, &value)
            }
        });
        kube::Client::new(service, "default")
    }
}

fn reply(
    code: u16,
    value: &Value,
) -> std::result::Result<Response<Full<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
    Ok(Response::builder()
        .status(code)
        .body(Full::new(Bytes::from(value.to_string())))?)
}

fn pod(number: i32) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("web-{number}"), "namespace": "d", "labels": {"app": "web"}, "uid": format!("u{number}"), "resourceVersion": "1"},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "100m"}}}]},
        "status": {"phase": "Running", "startTime": "2026-01-01T00:00:00Z",
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:10Z"}]}})
}

fn autoscaler() -> Value {
    json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "h", "namespace": "d", "uid": "h1", "resourceVersion": "7"},
        "spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
            "minReplicas": 1, "maxReplicas": 10,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}]}})
}

/// One round; returns its status.
async fn one_round(api: &FakeApi) -> HorizontalPodAutoscalerStatus {
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let context = Context::new(
        api.client(),
        balsa_client::pods(api.client(), stop.clone()),
        Config::default(),
        Arc::new(NoHeartbeats),
        stop.clone(),
    );
    context.informers.pods.synced().await;
    let controller = Controller {
        recorder: EventRecorder::discard(),
        autoscalers: Informer::start(
            Api::all(context.client.clone()),
            InformerOptions::default(),
            stop,
        ),
        memory: Mutex::default(),
        context,
    };
    let object: HorizontalPodAutoscaler = serde_json::from_value(autoscaler()).unwrap();
    let mut round = Round::new(Arc::new(object), Timestamp::now()).unwrap();
    let _: std::result::Result<(), Stopped> =
        controller.round(&Key::new("d", "h"), &mut round).await;
    controller.write_status(&round).await.unwrap();
    round.status
}

fn reason(status: &HorizontalPodAutoscalerStatus, type_: &str) -> (String, String) {
    let condition = status
        .conditions
        .iter()
        .flatten()
        .find(|c| c.type_ == type_);
    condition.map_or_else(Default::default, |c| {
        (c.status.clone(), c.reason.clone().unwrap_or_default())
    })
}

fn is(holds: &str, reason: &str) -> (String, String) {
    (holds.to_owned(), reason.to_owned())
}

#[tokio::test]
async fn busy_pods_get_company() {
    let api = FakeApi::default();
    {
        let mut fake = api.0.lock();
        (fake.replicas, fake.milli_cores) = (3, Some(90));
    }
    let status = one_round(&api).await;
    // 90% of the request, 50% wanted: 1.8 times three.
    assert_eq!(api.0.lock().replicas, 6);
    assert_eq!(
        (status.current_replicas, status.desired_replicas),
        (Some(3), 6)
    );
    assert_eq!(
        reason(&status, "ScalingActive"),
        is("True", "ValidMetricFound")
    );
    assert_eq!(
        reason(&status, "AbleToScale"),
        is("True", "SucceededRescale")
    );
    assert_eq!(
        reason(&status, "ScalingLimited"),
        is("False", "DesiredWithinRange")
    );
    let written = api.0.lock().status[0].clone();
    assert_eq!(
        written["currentMetrics"][0]["resource"]["current"],
        json!({"averageUtilization": 90, "averageValue": "90m"})
    );
}

#[tokio::test]
async fn without_metrics_nothing_is_scaled_and_the_status_says_why() {
    let api = FakeApi::default();
    api.0.lock().replicas = 3;
    let status = one_round(&api).await;
    assert_eq!(api.0.lock().replicas, 3);
    assert_eq!(
        reason(&status, "ScalingActive"),
        is("False", "FailedGetResourceMetric")
    );
    assert_eq!(
        reason(&status, "AbleToScale"),
        is("True", "SucceededGetScale")
    );
}

#[tokio::test]
async fn what_is_switched_off_stays_off_and_bounds_hold_without_metrics() {
    let api = FakeApi::default();
    let status = one_round(&api).await;
    assert_eq!(
        reason(&status, "ScalingActive"),
        is("False", "ScalingDisabled")
    );
    api.0.lock().replicas = 12;
    let status = one_round(&api).await;
    assert_eq!((api.0.lock().replicas, status.desired_replicas), (10, 10));
}
