//! What other servers add to the API, reached through a Service: admission and conversion by webhooks, and a whole
//! API of their own. The other server runs in the test and is an endpoint beside the nodes.

use std::convert::Infallible;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, UdpSocket};
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, ensure};
use balsa_e2e::{Kubectl, Local, Namespace, Proxy, eventually};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue, UPGRADE};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

/// An HTTPS server that stands for other people's.
pub(crate) struct Extension {
    pub(crate) ca_bundle: String,
    address: IpAddr,
    port: u16,
    /// Runs it, and ends it when the test ends.
    _runtime: tokio::runtime::Runtime,
}

impl Extension {
    /// Starts it for the Service `ext` of the namespace, which it makes.
    pub(crate) fn start(ns: &Namespace) -> anyhow::Result<Self> {
        let node = Local.nodes()?.pop().context("no nodes")?.address;
        let probe = UdpSocket::bind("0.0.0.0:0")?;
        // Sends nothing: it asks which of our addresses the nodes see.
        probe.connect((node.as_str(), 1))?;
        let address = probe.local_addr()?.ip();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let made = rcgen::generate_simple_self_signed([format!("ext.{}.svc", ns.name())])?;
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())
            .map_err(anyhow::Error::msg)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)?;
        let listener = runtime.block_on(tokio::net::TcpListener::bind((address, 0)))?;
        let port = listener.local_addr()?.port();
        runtime.spawn(serve(listener, TlsAcceptor::from(Arc::new(tls))));
        ns.kubectl().apply(&format!(
            r#"
apiVersion: v1
kind: Service
metadata: {{name: ext}}
spec: {{ports: [{{port: 443}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: ext-1, labels: {{kubernetes.io/service-name: ext}}}}
addressType: IPv4
endpoints: [{{addresses: ["{address}"], conditions: {{ready: true}}}}]
ports: [{{port: {port}}}]
"#
        ))?;
        Ok(Self {
            ca_bundle: STANDARD.encode(made.cert.pem()),
            address,
            port,
            _runtime: runtime,
        })
    }

    /// `clientConfig` of one of its webhooks.
    fn client_config(&self, ns: &Namespace, path: &str) -> Value {
        json!({"caBundle": self.ca_bundle,
               "service": {"namespace": ns.name(), "name": "ext", "path": path}})
    }
}

async fn serve(listener: tokio::net::TcpListener, acceptor: TlsAcceptor) {
    while let Ok((stream, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service_fn(answer))
                .with_upgrades();
            let _ = connection.await;
        });
    }
}

async fn answer(mut request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    if path.ends_with("/talk") && request.headers().contains_key(UPGRADE) {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let Ok(stream) = upgrade.await else { return };
            let (mut from, mut to) = tokio::io::split(TokioIo::new(stream));
            let _ = tokio::io::copy(&mut from, &mut to).await;
        });
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("echo"));
        return Ok(response);
    }
    let user = request
        .headers()
        .get("x-remote-user")
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default()
        .to_owned();
    let body = match request.into_body().collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => Bytes::new(),
    };
    let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
    let (code, said) = match path.as_str() {
        "/convert" => (StatusCode::OK, converted(&asked)),
        _ if asked["kind"] == "AdmissionReview" => (StatusCode::OK, reviewed(&path, &asked)),
        _ => match things(&path, &user) {
            Some(document) => (StatusCode::OK, document),
            None => (
                StatusCode::NOT_FOUND,
                json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
                "reason": "NotFound", "code": 404, "message": "not found"}),
            ),
        },
    };
    let mut response = Response::new(Full::from(said.to_string()));
    *response.status_mut() = code;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    Ok(response)
}

/// The answer of an admission webhook.
fn reviewed(path: &str, review: &Value) -> Value {
    let request = &review["request"];
    let refused = |why: &str| json!({"allowed": false, "status": {"message": why}});
    let mut response = match path {
        "/mutate" => {
            let patch = json!([{"op": "add", "path": "/data/seen", "value": "yes"}]);
            json!({"allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(patch.to_string())})
        }
        "/validate" if request["object"]["data"]["bad"] == "yes" => refused("bad data"),
        "/connect" if request["subResource"] == "attach" => refused("nobody attaches here"),
        _ => json!({"allowed": true}),
    };
    response["uid"] = request["uid"].clone();
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
}

/// v1 calls a raft's length `length`, v2 `size.length`.
fn converted(review: &Value) -> Value {
    let request = &review["request"];
    let wanted = request["desiredAPIVersion"].as_str().unwrap_or_default();
    let objects = request["objects"].as_array().into_iter().flatten();
    let converted: Vec<Value> = objects
        .map(|object| {
            let mut object = object.clone();
            object["apiVersion"] = wanted.into();
            if wanted.ends_with("/v2") && !object["length"].is_null() {
                object["size"] = json!({"length": object["length"].take()});
            } else if wanted.ends_with("/v1") && object["size"].is_object() {
                object["length"] = object["size"]["length"].take();
                object["size"].take();
            }
            if let Some(map) = object.as_object_mut() {
                map.retain(|_, value| !value.is_null());
            }
            object
        })
        .collect();
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview", "response": {
        "uid": request["uid"], "convertedObjects": converted, "result": {"status": "Success"}}})
}

/// Group of the API of its own, for its OpenAPI document.
static GROUP: OnceLock<String> = OnceLock::new();

fn openapi(group: &str) -> Value {
    let answer = json!({"description": "OK", "schema": {"$ref": "#/definitions/example.Thing"}});
    let list = format!("/apis/{group}/v1/namespaces/{{namespace}}/things");
    json!({"swagger": "2.0", "info": {"title": "things", "version": "v1"},
        "paths": {(list): {"get": {"responses": {"200": answer}}}},
        "definitions": {"example.Thing": {"type": "object", "description": "A thing."}}})
}

/// An API of its own: one thing in each namespace, which says who looks at it.
fn things(path: &str, user: &str) -> Option<Value> {
    if path == "/openapi/v2" {
        return GROUP.get().map(|group| openapi(group));
    }
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    if let Some(document) = crate::autoscaling::adapter(&parts) {
        return Some(document);
    }
    let api_version = |group: &str| format!("{group}/v1");
    match parts.as_slice() {
        ["apis", group, "v1"] => Some(json!({"kind": "APIResourceList", "apiVersion": "v1",
            "groupVersion": api_version(group), "resources": [{"name": "things", "singularName": "thing",
                "namespaced": true, "kind": "Thing", "verbs": ["get", "list"]}]})),
        ["apis", group, "v1", "namespaces", namespace, "things"] => {
            Some(json!({"kind": "ThingList",
            "apiVersion": api_version(group), "metadata": {"resourceVersion": "1"}, "items": [{
                "kind": "Thing", "apiVersion": api_version(group), "viewer": user,
                "metadata": {"name": "kon", "namespace": namespace}}]}))
        }
        _ => None,
    }
}

/// Objects outside of the namespace, deleted at the end.
pub(crate) struct Cleanup<'a>(pub(crate) &'a Kubectl, pub(crate) Vec<String>);

impl Drop for Cleanup<'_> {
    fn drop(&mut self) {
        for object in &self.1 {
            let _ = self.0.run(&["delete", object, "--ignore-not-found"]);
        }
    }
}

fn webhook(
    ns: &Namespace,
    extension: &Extension,
    path: &str,
    operation: &str,
    resource: &str,
) -> Value {
    json!({"name": format!("{}.example.com", path.trim_matches('/')), "sideEffects": "None",
        "admissionReviewVersions": ["v1"], "clientConfig": extension.client_config(ns, path),
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": ns.name()}},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": [operation], "resources": [resource]}]})
}

#[test]
fn webhooks_change_and_refuse_what_is_written_and_who_connects() -> anyhow::Result<()> {
    let ns = Namespace::new("webhooks")?;
    let kubectl = ns.kubectl();
    let extension = Extension::start(&ns)?;
    kubectl.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: sleeper}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, "1000"], stdin: true}]
"#,
    )?;
    kubectl.wait_ready("sleeper", 30)?;
    let named = |kind: &str, hooks: Value| {
        json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
            "metadata": {"name": ns.name()}, "webhooks": hooks})
        .to_string()
    };
    let _cleanup = Cleanup(
        kubectl,
        vec![
            format!("mutatingwebhookconfiguration/{}", ns.name()),
            format!("validatingwebhookconfiguration/{}", ns.name()),
        ],
    );
    kubectl.apply(&named(
        "MutatingWebhookConfiguration",
        json!([webhook(&ns, &extension, "/mutate", "CREATE", "configmaps")]),
    ))?;
    kubectl.apply(&named(
        "ValidatingWebhookConfiguration",
        json!([
            webhook(&ns, &extension, "/validate", "CREATE", "configmaps"),
            webhook(&ns, &extension, "/connect", "CONNECT", "pods/attach")
        ]),
    ))?;
    eventually("the webhooks on every server", 10, || {
        let refused = kubectl.run(&["create", "configmap", "bad", "--from-literal=bad=yes"])?;
        Ok(refused.failed()?.contains("denied the request: bad data"))
    })?;
    kubectl.ok(&["create", "configmap", "good", "--from-literal=a=b"])?;
    ensure!(
        kubectl.field("configmap/good", "{.data.seen}")? == "yes",
        "the webhook's patch was not applied"
    );
    let refused = kubectl.run(&["attach", "sleeper"])?.failed()?;
    ensure!(refused.contains("nobody attaches here"), "{refused}");
    kubectl.ok(&["exec", "sleeper", "--", "true"])?;
    Ok(())
}

#[test]
fn a_custom_resource_is_converted_by_a_webhook() -> anyhow::Result<()> {
    let ns = Namespace::new("convert")?;
    let kubectl = ns.kubectl();
    let extension = Extension::start(&ns)?;
    let group = format!("{}.example", ns.name());
    let crd = format!("rafts.{group}");
    let _cleanup = Cleanup(kubectl, vec![format!("crd/{crd}")]);
    let version = |name: &str, storage: bool, properties: Value| {
        json!({"name": name, "served": true, "storage": storage,
            "schema": {"openAPIV3Schema": {"type": "object", "properties": properties}}})
    };
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": crd},
        "spec": {"group": group, "scope": "Namespaced", "names": {"plural": "rafts", "kind": "Raft"},
            "versions": [
                version("v1", true, json!({"length": {"type": "integer"}})),
                version("v2", false, json!({"size": {"type": "object", "properties": {"length": {"type": "integer"}}}}))],
            "conversion": {"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"],
                "clientConfig": extension.client_config(&ns, "/convert")}}}});
    kubectl.apply(&definition.to_string())?;
    let raft = |name: &str, version: &str, rest: &str| {
        format!("{{apiVersion: {group}/{version}, kind: Raft, metadata: {{name: {name}}}, {rest}}}")
    };
    eventually("the new kind", 10, || {
        let made = kubectl.run_with(&["apply", "-f", "-"], &raft("old", "v1", "length: 9"))?;
        Ok(made.code == 0)
    })?;
    kubectl.apply(&raft("new", "v2", "size: {length: 12}"))?;
    let lengths = |version: &str, path: &str| {
        let list = format!("rafts.{version}.{group}");
        kubectl.ok(&["get", &list, "-o", &format!("jsonpath={{.items[*]{path}}}")])
    };
    ensure!(lengths("v1", ".length")? == "12 9");
    ensure!(lengths("v2", ".size.length")? == "12 9");
    Ok(())
}

#[test]
fn another_servers_api_stands_beside_ours() -> anyhow::Result<()> {
    let ns = Namespace::new("aggregate")?;
    let kubectl = ns.kubectl();
    let extension = Extension::start(&ns)?;
    ensure!(extension.address.is_ipv4() && extension.port != 0);
    let group = format!("{}.example", ns.name());
    let service = format!("v1.{group}");
    GROUP.get_or_init(|| group.clone());
    let _cleanup = Cleanup(kubectl, vec![format!("apiservice/{service}")]);
    let object = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": service}, "spec": {"group": group, "version": "v1", "groupPriorityMinimum": 100,
            "versionPriority": 10, "caBundle": extension.ca_bundle,
            "service": {"namespace": ns.name(), "name": "ext"}}});
    kubectl.apply(&object.to_string())?;
    kubectl.ok(&[
        "wait",
        "--for=condition=Available",
        &format!("apiservice/{service}"),
        "--timeout=20s",
    ])?;
    let things = format!("things.v1.{group}");
    eventually("the other server's resources in discovery", 10, || {
        Ok(kubectl.run(&["get", &things])?.ok()?.contains("kon"))
    })?;
    let viewer = kubectl.ok(&["get", &things, "-o", "jsonpath={.items[0].viewer}"])?;
    let me = kubectl.ok(&[
        "auth",
        "whoami",
        "-o",
        "jsonpath={.status.userInfo.username}",
    ])?;
    ensure!(viewer == me, "{viewer:?} is not {me:?}");
    let stranger = kubectl.run(&["get", &things, "--as=stranger"])?.failed()?;
    ensure!(stranger.contains("forbidden"), "{stranger}");
    eventually("its types in our OpenAPI document", 10, || {
        let document = kubectl.ok(&["get", "--raw", "/openapi/v2"])?;
        Ok(document.contains("example.Thing") && document.contains(&group))
    })?;
    // What is upgraded goes through both servers.
    let proxy = Proxy::start(kubectl)?;
    let path = format!("/apis/{group}/v1/namespaces/{}/things/kon/talk", ns.name());
    let mut stream = proxy.upgrade(&path, "echo")?;
    stream.write_all(b"ahoy")?;
    let mut echo = [0; 4];
    stream.read_exact(&mut echo)?;
    ensure!(&echo == b"ahoy");
    Ok(())
}
