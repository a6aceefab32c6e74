//! Custom resources.

use std::sync::Arc;
use std::time::Duration;

use balsa_api::crd::{GROUP, PLURAL};
use http::Method;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::Harness;
use crate::backend::Backend;
use crate::extensions::aggregation::{self, Outside};
use crate::extensions::crd;
use crate::testing::MemoryBackend;
use crate::webhook_client::tests::{Answers, Loopback, Server};
use crate::{ApiServer, Cache, Kinds};

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";

/// A server that leads and serves what definitions say.
struct Running {
    server: Harness,
    _stop: tokio_util::sync::DropGuard,
}

impl Running {
    async fn new() -> Self {
        Self::of(Harness::new()).await
    }

    async fn of(server: Harness) -> Self {
        let stop = CancellationToken::new();
        let (api, token) = (server.api.clone(), stop.clone());
        tokio::spawn(async move { crd::lead(&api, token).await });
        let (api, token) = (server.api.clone(), stop.clone());
        tokio::spawn(async move { api.core.custom.run(token).await });
        let (api, token) = (server.api.clone(), stop.clone());
        tokio::spawn(async move { api.core.aggregation.run(token).await });
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}});
        assert_eq!(server.post("/api/v1/namespaces", namespace).await.code, 201);
        Self {
            server,
            _stop: stop.drop_guard(),
        }
    }

    /// Creates a definition and waits until it is established.
    async fn define(&self, definition: Value) {
        let name = definition["metadata"]["name"].as_str().unwrap().to_owned();
        let made = self.server.post(CRDS, definition).await;
        assert_eq!(made.code, 201, "{}", made.body);
        self.until(&format!("{CRDS}/{name}"), |code, body| {
            code == 200
                && body["status"]["conditions"]
                    .to_string()
                    .contains("InitialNamesAccepted")
        })
        .await;
    }

    /// Asks until an answer is as wanted.
    async fn until(&self, path: &str, wanted: impl Fn(u16, &Value) -> bool) -> Value {
        for _ in 0..500 {
            let answer = self.server.get(path).await;
            if wanted(answer.code, &answer.body) {
                return answer.body;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{path} never was as wanted");
    }
}

fn definition(schema: Value, more: Value) -> Value {
    let mut version = json!({"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}});
    for (key, value) in more.as_object().unwrap() {
        version[key] = value.clone();
    }
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "versions": [version],
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "shortNames": ["wd"], "categories": ["all"]}}})
}

fn spec(properties: Value) -> Value {
    json!({"type": "object", "properties": {"spec": {"type": "object", "properties": properties},
        "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}})
}

fn widget(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec})
}

#[tokio::test]
async fn a_defined_kind_is_served_discovered_and_described() {
    let running = Running::new().await;
    let server = &running.server;
    running
        .define(definition(
            spec(json!({"size": {"type": "integer", "description": "How large."}})),
            json!({}),
        ))
        .await;
    let made = server
        .post(WIDGETS, widget("a", json!({"size": 3, "unknown": true})))
        .await;
    assert_eq!(made.code, 201, "{}", made.body);
    assert_eq!(made.body["spec"], json!({"size": 3}));
    assert_eq!(made.body["metadata"]["generation"], 1);
    assert!(
        made.headers
            .get("warning")
            .unwrap()
            .to_str()
            .unwrap()
            .contains("unknown field")
    );
    assert_eq!(
        server.get(&format!("{WIDGETS}/a")).await.body["spec"]["size"],
        3
    );
    let list = server.get("/apis/example.com/v1/widgets").await.body;
    assert_eq!(
        (
            list["kind"].as_str(),
            list["items"].as_array().unwrap().len()
        ),
        (Some("WidgetList"), 1)
    );

    let resources = server.get("/apis/example.com/v1").await.body;
    assert_eq!(resources["resources"][0]["shortNames"], json!(["wd"]));
    let groups = server.get("/apis").await.body.to_string();
    assert!(groups.contains("example.com"), "{groups}");
    let v3 = server.get("/openapi/v3/apis/example.com/v1").await.body;
    let schema = &v3["components"]["schemas"]["com.example.v1.Widget"];
    assert_eq!(
        schema["properties"]["spec"]["properties"]["size"]["description"],
        "How large."
    );
    assert_eq!(
        schema["x-kubernetes-group-version-kind"][0]["kind"],
        "Widget"
    );
    let v2 = server.get("/openapi/v2").await.body;
    assert!(v2["definitions"]["com.example.v1.WidgetList"].is_object());
    assert!(v2["paths"]["/apis/example.com/v1/namespaces/{namespace}/widgets/{name}"].is_object());
}

#[tokio::test]
async fn values_are_checked_defaults_filled_in_and_patches_of_go_types_refused() {
    let running = Running::new().await;
    let server = &running.server;
    let properties = json!({"size": {"type": "integer", "minimum": 1, "default": 7}, "name": {"type": "string"}});
    running
        .define(definition(spec(properties), json!({})))
        .await;
    let path = format!("{WIDGETS}/a");
    let bad = server.post(WIDGETS, widget("a", json!({"size": 0}))).await;
    assert_eq!(bad.code, 422);
    assert_eq!(
        bad.body["message"],
        "Widget.example.com \"a\" is invalid: spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1"
    );
    assert_eq!(
        server.post(WIDGETS, widget("a", json!({}))).await.body["spec"]["size"],
        7
    );
    let strict = server
        .post(
            &format!("{WIDGETS}?fieldValidation=Strict"),
            widget("b", json!({"x": 1})),
        )
        .await;
    assert_eq!(strict.code, 400);
    assert!(
        strict.body["message"]
            .as_str()
            .unwrap()
            .contains("strict decoding error: unknown field \"spec.x\"")
    );
    let refused = server
        .patch(
            &path,
            "application/strategic-merge-patch+json",
            json!({"spec": {"size": 2}}),
        )
        .await;
    assert_eq!(refused.code, 415);
    let merged = server
        .patch(
            &path,
            "application/merge-patch+json",
            json!({"spec": {"size": 2}}),
        )
        .await;
    assert_eq!(
        (merged.code, &merged.body["metadata"]["generation"]),
        (200, &json!(2))
    );
    let applied = json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "c"}, "spec": {"name": "n"}});
    let applied = server
        .patch(
            &format!("{WIDGETS}/c?fieldManager=me"),
            "application/apply-patch+yaml",
            applied,
        )
        .await;
    assert_eq!(applied.code, 201, "{}", applied.body);
    assert_eq!(
        applied.body["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"],
        json!({"f:name": {}})
    );
    let mut blind = widget("a", json!({"size": 3}));
    let unversioned = server.put(&path, blind.clone()).await;
    assert_eq!(unversioned.code, 422);
    blind["metadata"]["resourceVersion"] = merged.body["metadata"]["resourceVersion"].clone();
    assert_eq!(server.put(&path, blind).await.code, 200);
}

#[tokio::test]
async fn an_apply_patch_names_what_the_schema_does_not_declare_and_what_is_there_twice() {
    let running = Running::new().await;
    running
        .define(definition(
            spec(json!({"size": {"type": "integer"}})),
            json!({}),
        ))
        .await;
    let apply = async |spec: &str| {
        let body =
            format!("apiVersion: example.com/v1\nkind: Widget\nmetadata:\n  name: a\n{spec}");
        let path = format!("{WIDGETS}/a?fieldManager=me&fieldValidation=Strict");
        running
            .server
            .ask(Method::PATCH, &path)
            .header("content-type", "application/apply-patch+yaml")
            .bytes(body.into_bytes())
            .send()
            .await
    };
    let unknown = apply("mast: 1\nspec:\n  size: 1\n").await;
    assert_eq!(unknown.code, 400);
    let message = unknown.body["message"].as_str().unwrap();
    assert!(
        message.ends_with(".mast: field not declared in schema"),
        "{message}"
    );
    let twice = apply("spec:\n  size: 1\n  size: 2\n").await;
    assert_eq!(twice.code, 400);
    assert_eq!(
        twice.body["message"],
        "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  line 7: key \"size\" already set in map"
    );
    let made = apply("spec:\n  size: 1\n").await;
    assert_eq!(made.code, 201, "{}", made.body);
}

#[tokio::test]
async fn status_and_scale_are_parts_of_their_own() {
    let running = Running::new().await;
    let server = &running.server;
    let more = json!({"subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.n", "statusReplicasPath": ".status.n", "labelSelectorPath": ".status.sel"}},
        "additionalPrinterColumns": [{"name": "N", "type": "integer", "jsonPath": ".spec.n"}],
        "selectableFields": [{"jsonPath": ".spec.n"}]});
    running
        .define(definition(spec(json!({"n": {"type": "integer"}})), more))
        .await;
    let mut object = widget("a", json!({"n": 2}));
    object["status"] = json!({"n": 9});
    let made = server.post(WIDGETS, object.clone()).await;
    assert_eq!(made.body.get("status"), None);
    object["metadata"] = made.body["metadata"].clone();
    object["status"] = json!({"n": 1, "sel": "a=b"});
    object["spec"]["n"] = 5.into();
    let status = server.put(&format!("{WIDGETS}/a/status"), object).await;
    assert_eq!(
        (
            status.code,
            &status.body["spec"]["n"],
            &status.body["status"]["n"]
        ),
        (200, &json!(2), &json!(1))
    );
    assert_eq!(status.body["metadata"]["generation"], 1);
    let scale = server.get(&format!("{WIDGETS}/a/scale")).await.body;
    assert_eq!(
        (&scale["spec"]["replicas"], &scale["status"]["selector"]),
        (&json!(2), &json!("a=b"))
    );
    let scaled = server
        .patch(
            &format!("{WIDGETS}/a/scale"),
            "application/merge-patch+json",
            json!({"spec": {"replicas": 4}}),
        )
        .await;
    assert_eq!(scaled.code, 200, "{}", scaled.body);
    assert_eq!(
        server.get(&format!("{WIDGETS}/a")).await.body["spec"]["n"],
        4
    );
    let table = server
        .ask(Method::GET, WIDGETS)
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
        .send()
        .await
        .body;
    assert_eq!(table["rows"][0]["cells"], json!(["a", 4]));
    let found = |n: i32| format!("{WIDGETS}?fieldSelector=spec.n%3D{n}");
    assert_eq!(
        server.get(&found(4)).await.body["items"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(
        server.get(&found(5)).await.body["items"]
            .as_array()
            .unwrap()
            .len(),
        0
    );
    assert_eq!(
        server
            .get(&format!("{WIDGETS}?fieldSelector=spec.m%3D1"))
            .await
            .code,
        400
    );
}

#[tokio::test]
async fn versions_show_the_same_objects_and_a_changed_schema_counts_at_once() {
    let running = Running::new().await;
    let server = &running.server;
    let mut wanted = definition(spec(json!({"a": {"type": "string"}})), json!({}));
    running.define(wanted.clone()).await;
    server.post(WIDGETS, widget("a", json!({"a": "x"}))).await;
    let mut second = wanted["spec"]["versions"][0].clone();
    second["name"] = "v2".into();
    second["schema"]["openAPIV3Schema"] =
        spec(json!({"a": {"type": "string"}, "b": {"type": "string", "default": "new"}}));
    wanted["spec"]["versions"][0]["storage"] = false.into();
    wanted["spec"]["versions"]
        .as_array_mut()
        .unwrap()
        .push(second);
    let name = format!("{CRDS}/widgets.example.com");
    let now = server.get(&name).await.body;
    wanted["metadata"] = now["metadata"].clone();
    let changed = server.put(&name, wanted).await;
    assert_eq!(changed.code, 200, "{}", changed.body);
    assert_eq!(
        changed.body["status"]["storedVersions"],
        json!(["v1", "v2"])
    );
    let v2 = "/apis/example.com/v2/namespaces/default/widgets";
    let shown = running
        .until(&format!("{v2}/a"), |code, _| code == 200)
        .await;
    assert_eq!(
        (&shown["apiVersion"], &shown["spec"]),
        (&json!("example.com/v2"), &json!({"a": "x", "b": "new"}))
    );
    let old = server.get(&format!("{WIDGETS}/a")).await.body;
    assert_eq!(
        (&old["apiVersion"], &old["spec"]),
        (&json!("example.com/v1"), &json!({"a": "x"}))
    );
    server.post(WIDGETS, widget("b", json!({"a": "y"}))).await;
    let stored = running
        .server
        .backend
        .value("/registry/example.com/widgets/default/b")
        .unwrap();
    let stored: Value = serde_json::from_slice(&stored.value).unwrap();
    assert_eq!(stored["apiVersion"], "example.com/v2");
}

#[tokio::test]
async fn a_deleted_definition_takes_its_objects_along_and_its_paths_vanish() {
    let running = Running::new().await;
    let server = &running.server;
    let wanted = definition(
        json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
        json!({}),
    );
    running.define(wanted.clone()).await;
    let mut held = widget("a", json!({"any": [1, {"thing": true}]}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    assert_eq!(
        server.post(WIDGETS, held).await.body["spec"]["any"][1]["thing"],
        true
    );
    server.post(WIDGETS, widget("b", json!({}))).await;
    let name = format!("{CRDS}/widgets.example.com");
    let deleted = server.delete(&name).await;
    assert_eq!(deleted.code, 200);
    running
        .until(WIDGETS, |_, body| {
            body["items"].as_array().is_some_and(|i| i.len() == 1)
        })
        .await;
    assert_eq!(server.post(WIDGETS, widget("c", json!({}))).await.code, 405);
    let free = json!([{"op": "remove", "path": "/metadata/finalizers"}]);
    let freed = server
        .patch(&format!("{WIDGETS}/a"), "application/json-patch+json", free)
        .await;
    assert_eq!(freed.code, 200, "{}", freed.body);
    running.until(&name, |code, _| code == 404).await;
    running
        .until("/apis/example.com/v1", |code, _| code == 404)
        .await;
    assert_eq!(server.get(WIDGETS).await.code, 404);
    // The name can be had again, and nothing is left of before.
    running.define(wanted).await;
    assert_eq!(server.get(WIDGETS).await.body["items"], json!([]));
}

#[tokio::test]
async fn a_definition_of_nonsense_is_refused() {
    let running = Running::new().await;
    let mut odd = definition(json!({"properties": {}}), json!({}));
    odd["metadata"]["name"] = "other.example.com".into();
    let refused = running.server.post(CRDS, odd).await;
    assert_eq!(refused.code, 422);
    let message = refused.body["message"].as_str().unwrap();
    assert!(
        message.contains("must be spec.names.plural+\\\".\\\"+spec.group")
            || message.contains("must be spec.names.plural"),
        "{message}"
    );
    assert_eq!(
        (GROUP, PLURAL),
        ("apiextensions.k8s.io", "customresourcedefinitions")
    );
}

#[tokio::test]
async fn rules_in_cel_hold_for_values_and_for_changes() {
    let running = Running::new().await;
    let server = &running.server;
    let mut schema = spec(
        json!({"min": {"type": "integer"}, "max": {"type": "integer"}, "name": {"type": "string", "maxLength": 10,
        "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "name is immutable"}]}}),
    );
    schema["properties"]["spec"]["x-kubernetes-validations"] = json!([
        {"rule": "self.min <= self.max", "messageExpression": "'min ' + string(self.min) + ' is over max'", "fieldPath": ".min", "reason": "FieldValueForbidden"}]);
    let mut broken = definition(schema.clone(), json!({}));
    broken["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["x-kubernetes-validations"]
        [0]["rule"] = "self.mni <= 1".into();
    let refused = server.post(CRDS, broken).await;
    assert_eq!(refused.code, 422, "{}", refused.body);
    assert!(
        refused.body["message"]
            .as_str()
            .unwrap()
            .contains("compilation failed"),
        "{}",
        refused.body
    );
    running.define(definition(schema, json!({}))).await;
    let bad = server
        .post(WIDGETS, widget("a", json!({"min": 3, "max": 1})))
        .await;
    assert_eq!(
        bad.body["message"],
        "Widget.example.com \"a\" is invalid: spec.min: Forbidden: min 3 is over max"
    );
    let good = server
        .post(
            WIDGETS,
            widget("a", json!({"min": 1, "max": 3, "name": "x"})),
        )
        .await;
    assert_eq!(good.code, 201, "{}", good.body);
    let renamed = server
        .patch(
            &format!("{WIDGETS}/a"),
            "application/merge-patch+json",
            json!({"spec": {"name": "y"}}),
        )
        .await;
    assert_eq!(
        renamed.body["message"],
        "Widget.example.com \"a\" is invalid: spec.name: Invalid value: \"string\": name is immutable"
    );
}

/// Swaps `spec.a` for `spec.b` in v2.
struct Swap;

#[async_trait::async_trait]
impl crd::ConversionCaller for Swap {
    async fn call(&self, config: &Value, review: &Value, _: Duration) -> Result<Value, String> {
        if config["url"] == "https://broken/" {
            return Err("connection refused".into());
        }
        let request = &review["request"];
        let mut objects = request["objects"].as_array().cloned().unwrap();
        for object in &mut objects {
            let v2 = request["desiredAPIVersion"] == "example.com/v2";
            let (from, to) = if v2 { ("a", "b") } else { ("b", "a") };
            let value = object["spec"][from].clone();
            object["spec"] = json!({to: value});
            object["apiVersion"] = request["desiredAPIVersion"].clone();
        }
        Ok(
            json!({"response": {"uid": request["uid"], "result": {"status": "Success"}, "convertedObjects": objects}}),
        )
    }
}

struct NoCertificate;

impl std::fmt::Debug for NoCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NoCertificate")
    }
}

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(
        &self,
        _: &[&[u8]],
        _: &[rustls::SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

fn reaching(address: std::net::SocketAddr) -> Harness {
    let kinds = Arc::new(Kinds::new(balsa_api::kinds::builtin()));
    let cache = Cache::new(kinds.all());
    let backend = MemoryBackend::new(Arc::clone(&cache));
    let outside = Outside {
        dialer: Arc::new(Loopback(address)),
        front_proxy: Arc::new(NoCertificate),
    };
    let api = ApiServer::builder(
        crate::Config::default(),
        kinds,
        cache,
        Arc::clone(&backend) as Arc<dyn Backend>,
    )
    .authenticator(Arc::new(super::Door))
    .authorizer(Arc::new(super::Gatekeeper))
    .conversion(Arc::new(Swap))
    .aggregation(outside)
    .build()
    .unwrap();
    Harness { api, backend }
}

#[tokio::test]
async fn a_webhook_converts_what_is_read_listed_watched_and_written() {
    let running = Running::of(reaching(([127, 0, 0, 1], 1).into())).await;
    let server = &running.server;
    let mut wanted = definition(spec(json!({"a": {"type": "string"}})), json!({}));
    let mut second = wanted["spec"]["versions"][0].clone();
    second["name"] = "v2".into();
    second["storage"] = false.into();
    second["schema"]["openAPIV3Schema"] = spec(json!({"b": {"type": "string"}}));
    wanted["spec"]["versions"]
        .as_array_mut()
        .unwrap()
        .push(second);
    wanted["spec"]["conversion"] = json!({"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"], "clientConfig": {"url": "https://hook/"}}});
    running.define(wanted).await;
    server.post(WIDGETS, widget("x", json!({"a": "1"}))).await;
    let v2 = "/apis/example.com/v2/namespaces/default/widgets";
    let mut lines = server
        .watch(&format!("{v2}?watch=1&resourceVersion=0"))
        .await;
    assert_eq!(
        lines.next().await.unwrap()["object"]["spec"],
        json!({"b": "1"})
    );
    assert_eq!(
        server.get(&format!("{v2}/x")).await.body["spec"],
        json!({"b": "1"})
    );
    let mut made = widget("y", json!({"b": "2"}));
    made["apiVersion"] = "example.com/v2".into();
    let made = server.post(v2, made).await;
    assert_eq!((made.code, &made.body["spec"]), (201, &json!({"b": "2"})));
    assert_eq!(
        lines.next().await.unwrap()["object"]["spec"],
        json!({"b": "2"})
    );
    assert_eq!(
        server.get(&format!("{WIDGETS}/y")).await.body["spec"],
        json!({"a": "2"})
    );
    let list = server.get(v2).await.body;
    assert_eq!(list["items"][1]["spec"], json!({"b": "2"}));
    let name = format!("{CRDS}/widgets.example.com");
    let broken =
        json!({"spec": {"conversion": {"webhook": {"clientConfig": {"url": "https://broken/"}}}}});
    assert_eq!(
        server
            .patch(&name, "application/merge-patch+json", broken)
            .await
            .code,
        200
    );
    let failed = running
        .until(&format!("{v2}/x"), |code, _| code == 500)
        .await;
    let message = failed["message"].as_str().unwrap();
    assert!(
        message.contains(
            "conversion webhook for example.com/v1, Kind=Widget failed: connection refused"
        ),
        "{message}"
    );
}

#[tokio::test]
async fn another_servers_api_is_found_asked_and_listed() {
    let answers: Answers = Arc::new(|path, _| match path {
        "/apis/wardle.example.com/v1" => Some((
            200,
            json!({"kind": "APIResourceList", "resources": [
            {"name": "flunders", "kind": "Flunder", "namespaced": true, "singularName": "flunder", "verbs": ["get", "list"]}]}),
        )),
        "/apis/wardle.example.com/v1/flunders" => Some((
            200,
            json!({"kind": "FlunderList", "items": [{"metadata": {"name": "f"}}]}),
        )),
        _ => Some((404, json!({}))),
    });
    let behind = Server::start(&["api.ns.svc"], false, answers).await;
    let running = Running::of(reaching(behind.address)).await;
    let server = &running.server;
    let (api, stop) = (server.api.clone(), CancellationToken::new());
    let _stop = stop.clone().drop_guard();
    tokio::spawn(async move { aggregation::lead(&api, stop).await });
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "api"}, "spec": {"ports": [{"port": 443}]}});
    assert_eq!(
        server
            .post("/api/v1/namespaces/ns/services", service)
            .await
            .code,
        201
    );
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "api-1", "labels": {"kubernetes.io/service-name": "api"}},
        "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.9"], "conditions": {"ready": true}}], "ports": [{"port": 443}]});
    assert_eq!(
        server
            .post(
                "/apis/discovery.k8s.io/v1/namespaces/ns/endpointslices",
                slice
            )
            .await
            .code,
        201
    );
    let api_services = "/apis/apiregistration.k8s.io/v1/apiservices";
    let wanted = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": "v1.wardle.example.com"},
        "spec": {"group": "wardle.example.com", "version": "v1", "groupPriorityMinimum": 2000, "versionPriority": 200,
            "caBundle": behind.ca_bundle, "service": {"namespace": "ns", "name": "api"}}});
    let made = server.post(api_services, wanted).await;
    assert_eq!(made.code, 201, "{}", made.body);
    let flunders = "/apis/wardle.example.com/v1/flunders";
    let list = running.until(flunders, |code, _| code == 200).await;
    assert_eq!(list["items"][0]["metadata"]["name"], "f");
    assert_eq!(
        server
            .ask(Method::GET, flunders)
            .user("nobody")
            .send()
            .await
            .code,
        403
    );
    running
        .until("/apis", |_, body| {
            body.to_string().contains("wardle.example.com")
        })
        .await;
    assert_eq!(
        server.get("/apis/wardle.example.com").await.body["preferredVersion"]["version"],
        "v1"
    );
    assert_eq!(
        server.get("/apis/wardle.example.com/v1").await.body["resources"][0]["name"],
        "flunders"
    );
    running
        .until(&format!("{api_services}/v1.apps"), |code, body| {
            code == 200 && body["spec"]["service"].is_null()
        })
        .await;
}
