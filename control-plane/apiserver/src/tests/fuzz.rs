//! Whole requests with odd bodies, paths and headers: whatever comes, it is the client's fault and not ours.

use balsa_api::schema::{Schema, Shape, Type};
use balsa_fuzz::Fuzz;

use super::every_kind::samples::REQUEST;
use super::*;
use crate::http::{negotiate, protobuf, query::Query, request_info::RequestInfo};

#[global_allocator]
static ALLOCATOR: balsa_fuzz::Counting = balsa_fuzz::Counting;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// What is said of an answer.
///
/// # Panics
/// When the server blames itself.
fn judged(answer: &Answer) -> String {
    let text = String::from_utf8_lossy(&answer.raw);
    assert!(!matches!(answer.code, 500..=502), "{} {text}", answer.code);
    let message = answer.body["message"].as_str().unwrap_or_default();
    let known = message
        .chars()
        .filter(|c| c.is_ascii_alphabetic() || *c == ' ');
    format!("{} {}", answer.code, known.take(50).collect::<String>())
}

fn target(name: &'static str, method: &Method, path: &str, content_type: &str, seeds: &[Value]) {
    let runtime = runtime();
    // Made anew now and then: objects of earlier inputs are in the way of later ones.
    let fresh = || {
        let h = Harness::new();
        runtime.block_on(async {
            h.post(PODS, pod("p")).await.expect(201);
            h.post(MAPS, config_map("m", json!({"k": "v"})))
                .await
                .expect(201);
        });
        h
    };
    let h = std::cell::RefCell::new((fresh(), 0));
    Fuzz::new(name)
        .seeds(seeds.iter().map(Value::to_string))
        .tokens([
            "\"metadata\":",
            "\"apiVersion\":\"v1\"",
            "\"kind\":",
            "null",
            "---\n",
        ])
        .trees()
        .runs(120)
        .run(|bytes| {
            let mut h = h.borrow_mut();
            h.1 += 1;
            if h.1 % 50 == 0 {
                h.0 = fresh();
            }
            let ask = h.0.ask(method.clone(), path);
            let ask = ask
                .bytes(bytes.to_vec())
                .header("content-type", content_type);
            judged(&runtime.block_on(ask.send()))
        });
}

#[test]
fn bodies() {
    let d = "/api/v1/namespaces/d";
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let crd = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "things", "kind": "Thing"}, "versions": [{"name": "v1", "served": true, "storage": true,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object",
            "x-kubernetes-validations": [{"rule": "self.a == 'b'", "messageExpression": "'c'"}],
            "properties": {"a": {"type": "string", "default": "b"}}}}}}}]}});
    let policy = json!({"metadata": {"name": "p"}, "spec": {"failurePolicy": "Fail", "matchConstraints": {"resourceRules": [
        {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]},
        "variables": [{"name": "v", "expression": "object.spec"}], "matchConditions": [{"name": "c", "expression": "true"}],
        "validations": [{"expression": "variables.v.size() > 0", "messageExpression": "'m'", "reason": "Invalid"}],
        "auditAnnotations": [{"key": "k", "valueExpression": "'v'"}]}});
    let review = json!({"spec": {"user": "u", "groups": ["g"], "extra": {"a": ["b"]}, "resourceAttributes": {"verb": "get",
        "resource": "pods", "namespace": "d", "fieldSelector": {"requirements": [{"key": "a", "operator": "In", "values": ["b"]}]}}}});
    let csr = json!({"metadata": {"name": "c"}, "spec": {"request": REQUEST,
        "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"], "expirationSeconds": 600}});
    let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 1, "propagationPolicy": "Foreground",
        "preconditions": {"uid": "u", "resourceVersion": "1"}, "dryRun": ["All"]});
    let post = Method::POST;
    for (name, method, path, content_type, seed) in [
        ("POST pod", &post, PODS, "application/json", pod("a")),
        (
            "POST pod in YAML",
            &post,
            PODS,
            "application/yaml",
            pod("a"),
        ),
        (
            "POST service",
            &post,
            SERVICES,
            "application/json",
            json!({"metadata": {"name": "a"}, "spec": {"type": "LoadBalancer",
            "externalTrafficPolicy": "Local", "clusterIP": "10.96.0.9", "ports": [{"port": 80, "nodePort": 30_001}]}}),
        ),
        (
            "POST deployment",
            &post,
            "/apis/apps/v1/namespaces/d/deployments?fieldManager=m&dryRun=All",
            "application/json",
            json!({"metadata": {"generateName": "a"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}}),
        ),
        (
            "POST definition",
            &post,
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
            "application/json",
            crd,
        ),
        (
            "POST policy",
            &post,
            "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies",
            "application/json",
            policy,
        ),
        (
            "POST review",
            &post,
            "/apis/authorization.k8s.io/v1/subjectaccessreviews",
            "application/json",
            review,
        ),
        (
            "POST request",
            &post,
            "/apis/certificates.k8s.io/v1/certificatesigningrequests",
            "application/json",
            csr,
        ),
        (
            "POST eviction",
            &post,
            &format!("{PODS}/p/eviction"),
            "application/json",
            json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}, "deleteOptions": options}),
        ),
        (
            "POST binding",
            &post,
            &format!("{PODS}/p/binding"),
            "application/json",
            json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}}),
        ),
        (
            "POST role",
            &post,
            "/apis/rbac.authorization.k8s.io/v1/clusterroles",
            "application/json",
            json!({"metadata": {"name": "r"}, "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]},
                "rules": [{"verbs": ["*"], "apiGroups": [""], "resources": ["pods/log"], "resourceNames": ["a"]}]}),
        ),
        (
            "POST quota",
            &post,
            &format!("{d}/resourcequotas"),
            "application/json",
            json!({"metadata": {"name": "q"}, "spec": {"hard": {"requests.cpu": "1", "count/pods": "2"}, "scopeSelector":
                {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["a"]}]}}}),
        ),
        (
            "PUT pod",
            &Method::PUT,
            &format!("{PODS}/p"),
            "application/json",
            pod("p"),
        ),
        (
            "PUT status",
            &Method::PUT,
            &format!("{PODS}/p/status"),
            "application/json",
            json!({"metadata": {"name": "p"}, "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}),
        ),
        (
            "DELETE",
            &Method::DELETE,
            &format!("{MAPS}/m?dryRun=All"),
            "application/json",
            options,
        ),
        (
            "merge PATCH",
            &Method::PATCH,
            &format!("{PODS}/p"),
            "application/merge-patch+json",
            json!({"metadata": {"labels": {"a": null}, "ownerReferences": [{"uid": "u"}]}, "spec": {"tolerations": []}}),
        ),
        (
            "strategic PATCH",
            &Method::PATCH,
            &format!("{PODS}/p"),
            "application/strategic-merge-patch+json",
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}, "spec": {"containers": [{"name": "c", "$patch": "delete"}]}}),
        ),
        (
            "apply PATCH",
            &Method::PATCH,
            &format!("{PODS}/x?fieldManager=m&force=true"),
            "application/apply-patch+yaml",
            pod("x"),
        ),
        (
            "JSON PATCH",
            &Method::PATCH,
            &format!("{PODS}/p"),
            "application/json-patch+json",
            json!([{"op": "add", "path": "/metadata/labels", "value": {"a": "b"}}, {"op": "copy", "from": "/spec", "path": "/status"}]),
        ),
    ] {
        target(name, method, path, content_type, &[seed, json!({})]);
    }
}

/// A value with every field of a type, types within themselves once.
fn filled(type_: Type<'_>, depth: usize) -> Value {
    match type_.shape() {
        Shape::Any => json!({"a": 1}),
        Shape::Boolean => json!(true),
        Shape::Integer { .. } => json!(3),
        Shape::Number => json!(1.5),
        Shape::Text { base64: false } => json!("t"),
        Shape::Text { base64: true } => json!("AP8="),
        Shape::IntOrString => json!("25%"),
        Shape::Quantity => json!("1"),
        Shape::Time | Shape::MicroTime => json!("2026-01-02T03:04:05Z"),
        Shape::List(list) => json!([filled(list.item(), depth + 1)]),
        Shape::Map { value, .. } => json!({"k": filled(value, depth + 1)}),
        Shape::SchemaOr(schema, _) => filled(schema, depth + 1),
        Shape::Struct(_) if depth > 8 => json!({}),
        Shape::Struct(fields) => {
            let fields = fields.fields();
            fields
                .map(|f| (f.name().to_owned(), filled(f.type_(), depth + 1)))
                .collect()
        }
    }
}

#[test]
fn protobuf_bodies() {
    for kind in ["Pod", "Service", "Secret", "Node", "Event"] {
        let type_ = Schema::builtin().kind("", "v1", kind).unwrap();
        let mut value = filled(type_, 0);
        value["apiVersion"] = "v1".into();
        value["kind"] = kind.into();
        let seed = protobuf::object(value.to_string().as_bytes()).unwrap();
        let name: &'static str = format!("protobuf {kind}").leak();
        Fuzz::new(name)
            .seeds([seed])
            .tokens([
                &b"k8s\0"[..],
                b"\x0a\x80\x80\x80\x80\x10",
                b"\x0b\x0c",
                b"\x12\x00",
                b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
                b"\x08\x01",
            ])
            .runs(300)
            .run(|bytes| match protobuf::parse(bytes) {
                Ok(parsed) => {
                    // What was read can be written.
                    let text = parsed.value.to_string();
                    protobuf::object(text.as_bytes())
                        .map_or("not written", |_| "ok")
                        .to_owned()
                }
                Err(why) => why
                    .message
                    .chars()
                    .filter(char::is_ascii_alphabetic)
                    .take(50)
                    .collect(),
            });
    }
    // JSON that lies in the store, of whatever version of ours wrote it.
    let type_ = Schema::builtin().kind("", "v1", "Pod").unwrap();
    let mut pod = filled(type_, 0);
    pod["apiVersion"] = "v1".into();
    pod["kind"] = "Pod".into();
    Fuzz::new("JSON to protobuf")
        .seeds([pod.to_string()])
        .trees()
        .runs(300)
        .run(|bytes| {
            let _ = protobuf::metadata(bytes);
            protobuf::object(bytes).map_or("no", |_| "yes").to_owned()
        });
}

#[test]
fn paths_and_headers() {
    let runtime = runtime();
    let h = Harness::new();
    runtime.block_on(async { h.post(PODS, pod("p")).await.expect(201) });
    Fuzz::new("path")
        .seeds([
            "/api/v1/namespaces/d/pods/p?pretty=true",
            "/api/v1/pods?labelSelector=a%3Db&fieldSelector=spec.nodeName%3Dn&limit=1&continue=eyJ2IjoibWV0YS5rOHMuaW8vdjEifQ",
            "/apis/apps/v1/watch/deployments?resourceVersion=1&allowWatchBookmarks=1&timeoutSeconds=1",
            "/api/v1/pods?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true",
            "/apis?x", "/openapi/v3/apis/apps/v1?hash=a", "/openapi/v2", "/readyz/store?verbose&exclude=a", "/metrics", "/version",
            "/api/v1/namespaces/d/pods?resourceVersion=0&includeObject=Object", "/apis/autoscaling/v1/namespaces/d/horizontalpodautoscalers",
            "/api/v1/componentstatuses/etcd-0",
        ])
        .tokens(["/", "//", "/..", "%2f", "%00", "?", "&", "limit=-1", "resourceVersion=18446744073709551615", "resourceVersionMatch=Exact", "watch", "timeout=1s", "namespaces/", "/status", "/scale"])
        .longest(4_000)
        .runs(2_000)
        .run(|bytes| {
            let text = String::from_utf8_lossy(bytes);
            let Ok(uri) = text.parse::<http::Uri>() else {
                return "no URI".to_owned();
            };
            let _ = RequestInfo::parse(&Method::GET, uri.path(), &Query::parse(uri.query().unwrap_or_default()));
            if !text.starts_with('/') {
                return "no path".to_owned();
            }
            let response = runtime.block_on(h.ask(Method::GET, &text).raw());
            let code = response.status().as_u16();
            assert!(!matches!(code, 500..=502), "{code}");
            code.to_string()
        });
    Fuzz::new("Accept")
        .seeds(["application/json;as=Table;v=v1;g=meta.k8s.io, application/vnd.kubernetes.protobuf;q=0.5,*/*;q=0.1",
            "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", "text/*;charset=\"utf-8\""])
        .tokens([";", ",", "q=", "as=Table", "*/*", "\"", "=", " "])
        .run(|bytes| {
            let Ok(value) = http::HeaderValue::from_bytes(bytes) else {
                return "no header".to_owned();
            };
            let mut headers = http::HeaderMap::new();
            headers.insert("accept", value.clone());
            headers.insert("content-type", value);
            let _ = negotiate::prefers_protobuf(&headers);
            let _ = negotiate::body_format(&headers);
            let offer = negotiate::Offer { shapes: true, protobuf: true };
            format!("{:?}", negotiate::negotiate(&headers, offer).map_err(|s| s.code))
        });
}

#[test]
fn tokens() {
    use crate::authn::{Authn, websocket_token};
    use crate::seam::Authenticator as _;
    let runtime = runtime();
    let keys = Arc::new(balsa_identity::jwt::ServiceAccountKeys::generate().unwrap());
    let authn = Authn::new(keys, Arc::new(crate::authz::fake::Objects::new()));
    Fuzz::new("bearer token")
        .seeds(["Bearer eyJhbGciOiJFUzI1NiIsImtpZCI6ImEifQ.eyJpc3MiOiJhIiwic3ViIjoiYiIsImF1ZCI6WyJjIl0sImV4cCI6OTk5OTk5OTk5OX0.AAAA",
            "Bearer abcdef.0123456789abcdef", "Basic YTpi"])
        .tokens([".", "..", "=", "-", "_", "eyJ", "e30", "bnVsbA"])
        .run(|bytes| {
            let Ok(value) = http::HeaderValue::from_bytes(bytes) else {
                return "no header".to_owned();
            };
            let mut request = Request::new(());
            let headers = request.headers_mut();
            headers.insert("authorization", value.clone());
            headers.insert("connection", http::HeaderValue::from_static("upgrade"));
            headers.insert("upgrade", http::HeaderValue::from_static("websocket"));
            headers.insert("sec-websocket-protocol", value);
            let _ = websocket_token::token(request.headers());
            let (parts, ()) = request.into_parts();
            let user = runtime.block_on(authn.authenticate(&parts, &Peer::default()));
            user.map_or_else(|s| s.code.to_string(), |u| {
                assert_eq!(u.name, "system:anonymous", "nobody signed that");
                u.name.clone()
            })
        });
}
