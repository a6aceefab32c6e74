//! What load balancers ask nodes before they send them clients of a Service with `externalTrafficPolicy: Local`:
//! at `healthCheckNodePort`, 200 when the node has endpoints of the Service, else 503, with the number of them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::convert::Infallible;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::config::Snapshot;
use crate::service::{ServiceKey, service_key, slice_owner, virtual_service};

/// How long one connection may take: a question and its answer, and some more on the same connection.
const CONNECTION: Duration = Duration::from_secs(60);
/// Connections at a time on one port.
const MAX_CONNECTIONS: usize = 64;
/// Until a port that is taken is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Weight of this node in a load balancer's choice (gateway-api-like balancers read it).
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// What is said of one Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Report {
    pub namespace: String,
    pub name: String,
    /// Ready endpoints on this node.
    pub local: usize,
}

impl Report {
    fn answer(&self) -> Response<Full<Bytes>> {
        let body = format!(
            "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{}\",\n\t\t\"name\": \"{}\"\n\t}},\n\t\"localEndpoints\": {},\n\t\"serviceProxyHealthy\": true\n}}",
            self.namespace, self.name, self.local
        );
        let mut response = Response::new(Full::new(Bytes::from(body)));
        if self.local == 0 {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(WEIGHT, HeaderValue::from(self.local));
        response
    }
}

/// What is to be said at which port.
pub(crate) fn reports(snapshot: &Snapshot, node: &str) -> BTreeMap<u16, Report> {
    let mut asked: HashMap<ServiceKey<'_>, (u16, HashSet<&str>)> = HashMap::new();
    for service in &snapshot.services {
        let spec = service.spec.as_ref();
        let port = spec
            .and_then(|s| s.health_check_node_port)
            .and_then(|p| u16::try_from(p).ok())
            .filter(|p| *p != 0);
        let Some(port) = port else { continue };
        if virtual_service(service).is_some_and(|s| s.external_local) {
            asked.insert(service_key(service), (port, HashSet::new()));
        }
    }
    for slice in &snapshot.slices {
        let Some((_, addresses)) = slice_owner(slice).and_then(|owner| asked.get_mut(&owner))
        else {
            continue;
        };
        let local = slice.endpoints.iter().filter(|endpoint| {
            let conditions = endpoint.conditions.as_ref();
            endpoint.node_name.as_deref() == Some(node)
                && conditions.and_then(|c| c.ready).unwrap_or(true)
        });
        addresses.extend(local.filter_map(|e| e.addresses.first().map(String::as_str)));
    }
    let report = |((namespace, name), (port, addresses)): (ServiceKey<'_>, (u16, HashSet<_>))| {
        let report = Report {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            local: addresses.len(),
        };
        (port, report)
    };
    asked.into_iter().map(report).collect()
}

/// Listens where the Services of the snapshots say, until `stop`.
pub(crate) async fn run(
    node: String,
    mut inbox: watch::Receiver<(u64, Arc<Snapshot>)>,
    stop: CancellationToken,
) {
    let mut open: HashMap<u16, Port> = HashMap::new();
    loop {
        let snapshot = Arc::clone(&inbox.borrow_and_update().1);
        let wanted = reports(&snapshot, &node);
        drop(snapshot);
        open.retain(|port, _| wanted.contains_key(port));
        for (number, report) in wanted {
            match open.get(&number) {
                Some(port) => {
                    port.report.send_replace(report);
                }
                None => {
                    open.insert(number, Port::open(number, report, stop.child_token()));
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = inbox.changed() => if changed.is_err() { return },
        }
    }
}

/// A port that is listened at until this is dropped.
struct Port {
    report: watch::Sender<Report>,
    stop: CancellationToken,
}

impl Drop for Port {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Port {
    fn open(number: u16, report: Report, stop: CancellationToken) -> Self {
        let (report, reader) = watch::channel(report);
        let span = tracing::info_span!("health check port", port = number);
        let until = stop.clone();
        let work = async move {
            until.run_until_cancelled(listen(number, &reader)).await;
        };
        tokio::spawn(work.instrument(span));
        Self { report, stop }
    }
}

/// Serves a port. A port that is taken is tried again: whoever has it may go.
async fn listen(number: u16, report: &watch::Receiver<Report>) {
    let mut told = false;
    let listener = loop {
        match TcpListener::bind((Ipv4Addr::UNSPECIFIED, number)).await {
            Ok(listener) => break listener,
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(%error, "cannot listen for health checks; will try again");
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok(seat) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let report = report.clone();
                connections.spawn(async move {
                    // Whoever asks and goes is nobody's problem.
                    let _ = tokio::time::timeout(CONNECTION, serve(stream, report)).await;
                    drop(seat);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "a connection failed before it began");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, report: watch::Receiver<Report>) -> io::Result<()> {
    let answer = service_fn(|_: Request<hyper::body::Incoming>| {
        let answer = report.borrow().answer();
        async move { Ok::<_, Infallible>(answer) }
    });
    hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), answer)
        .await
        .map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{from_value, json};

    use super::*;

    fn snapshot(policy: &str) -> Snapshot {
        let service = json!({"metadata": {"namespace": "d", "name": "web"}, "spec": {
            "type": "LoadBalancer", "clusterIP": "10.96.0.7", "externalTrafficPolicy": policy,
            "healthCheckNodePort": 30_200, "ports": [{"port": 80}]}});
        let slice = json!({"metadata": {"namespace": "d", "name": "web-x", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": [
                {"addresses": ["10.244.1.2"], "nodeName": "a1", "conditions": {"ready": true}},
                {"addresses": ["10.244.1.3"], "nodeName": "a1", "conditions": {"ready": false}},
                {"addresses": ["10.244.2.2"], "nodeName": "a2"}]});
        Snapshot {
            services: vec![Arc::new(from_value(service).unwrap())],
            slices: vec![Arc::new(from_value(slice).unwrap())],
            ..Snapshot::default()
        }
    }

    #[test]
    fn a_node_tells_how_many_endpoints_it_has() {
        let local = snapshot("Local");
        assert_eq!(reports(&local, "a1")[&30_200].local, 1);
        let elsewhere = &reports(&local, "a3")[&30_200];
        assert_eq!(elsewhere.local, 0);
        assert_eq!(elsewhere.answer().status(), 503);
        assert!(reports(&snapshot("Cluster"), "a1").is_empty());
    }

    #[tokio::test]
    async fn the_answer_changes_with_the_endpoints_and_the_port_closes_with_the_service() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let report = |local| Report {
            namespace: "d".into(),
            name: "web".into(),
            local,
        };
        let open = Port::open(port, report(2), CancellationToken::new());
        let ask = async || {
            let mut stream = loop {
                match TcpStream::connect(("127.0.0.1", port)).await {
                    Ok(stream) => break stream,
                    Err(_) => tokio::task::yield_now().await,
                }
            };
            let request = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
            stream.write_all(request).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let answer = ask().await;
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        assert!(
            answer.contains("x-load-balancing-endpoint-weight: 2"),
            "{answer}"
        );
        open.report.send_replace(report(0));
        assert!(ask().await.starts_with("HTTP/1.1 503 "));
        drop(open);
        while TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }
}
