//! An API server in memory with just the rules that controllers depend on: versions, uids, finalizers,
//! graceful deletion of pods, status apart from spec, merge patches, watches. And nodes that run pods.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::StreamBody;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// group/version, plural, kind, namespaced.
const KINDS: &[(&str, &str, &str, bool)] = &[
    ("v1", "namespaces", "Namespace", false),
    ("v1", "nodes", "Node", false),
    ("v1", "pods", "Pod", true),
    ("v1", "services", "Service", true),
    ("v1", "endpoints", "Endpoints", true),
    ("v1", "configmaps", "ConfigMap", true),
    ("v1", "serviceaccounts", "ServiceAccount", true),
    ("v1", "events", "Event", true),
    ("v1", "secrets", "Secret", true),
    ("v1", "resourcequotas", "ResourceQuota", true),
    ("v1", "persistentvolumes", "PersistentVolume", false),
    (
        "v1",
        "persistentvolumeclaims",
        "PersistentVolumeClaim",
        true,
    ),
    (
        "v1",
        "replicationcontrollers",
        "ReplicationController",
        true,
    ),
    ("apps/v1", "replicasets", "ReplicaSet", true),
    ("apps/v1", "deployments", "Deployment", true),
    ("apps/v1", "daemonsets", "DaemonSet", true),
    ("apps/v1", "statefulsets", "StatefulSet", true),
    ("apps/v1", "controllerrevisions", "ControllerRevision", true),
    ("batch/v1", "jobs", "Job", true),
    ("batch/v1", "cronjobs", "CronJob", true),
    (
        "certificates.k8s.io/v1",
        "certificatesigningrequests",
        "CertificateSigningRequest",
        false,
    ),
    (
        "policy/v1",
        "poddisruptionbudgets",
        "PodDisruptionBudget",
        true,
    ),
    ("storage.k8s.io/v1", "storageclasses", "StorageClass", false),
    ("storage.k8s.io/v1", "csidrivers", "CSIDriver", false),
    (
        "storage.k8s.io/v1",
        "volumeattachments",
        "VolumeAttachment",
        false,
    ),
    ("coordination.k8s.io/v1", "leases", "Lease", true),
    (
        "discovery.k8s.io/v1",
        "endpointslices",
        "EndpointSlice",
        true,
    ),
    (
        "rbac.authorization.k8s.io/v1",
        "clusterroles",
        "ClusterRole",
        false,
    ),
];

/// Where a pod's node affinity is.
const REQUIRED: &str =
    "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";

type Key = (String, String, String);
type Lines = mpsc::UnboundedSender<Bytes>;

struct Watcher {
    plural: String,
    namespace: Option<String>,
    name: Option<String>,
    lines: Lines,
}

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<Key, Value>,
    log: Vec<(u64, &'static str, Key, Value)>,
    watchers: Vec<Watcher>,
    /// Why a status was not taken.
    refused: Vec<String>,
}

#[derive(Clone, Default)]
pub(super) struct FakeApi {
    state: Arc<Mutex<State>>,
}

pub(super) type Answer = Response<StreamBody<BoxStream<'static, Result<Frame<Bytes>, Infallible>>>>;

struct Failure(u16, &'static str, String);

fn failure(code: u16, reason: &'static str) -> Failure {
    Failure(code, reason, reason.to_owned())
}

impl FakeApi {
    pub(super) fn client(&self) -> kube::Client {
        let this = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let this = this.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect_bytes().await.unwrap();
                let body = if body.is_empty() {
                    Value::Null
                } else {
                    serde_json::from_slice(&body).unwrap()
                };
                Ok::<_, Infallible>(this.answer(&parts.method, &parts.uri, body))
            }
        });
        balsa_client::in_process(service, "test", |_| {})
    }

    pub(super) fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        self.state.lock().objects.get(&key).cloned()
    }

    pub(super) fn list(&self, plural: &str, namespace: &str) -> Vec<Value> {
        let state = self.state.lock();
        let of = state
            .objects
            .iter()
            .filter(|(key, _)| key.0 == plural && key.1 == namespace);
        of.map(|(_, object)| object.clone()).collect()
    }

    /// Why a status was not taken, so far.
    pub(super) fn refused(&self) -> Vec<String> {
        self.state.lock().refused.clone()
    }

    /// Creates or replaces, whole, as if by somebody else.
    pub(super) fn put(&self, plural: &str, mut object: Value) {
        let namespace = text(&object, "/metadata/namespace");
        let key = (
            plural.to_owned(),
            namespace,
            text(&object, "/metadata/name"),
        );
        let mut state = self.state.lock();
        if object.pointer("/metadata/uid").is_none() {
            object["metadata"]["uid"] = json!(format!("uid-{}-{}", key.0, key.2));
        }
        state.store(key, object);
    }

    /// What scheduler and agents of the given nodes do in one step: pods get a node, run, and go.
    /// A pod whose first container's command is `exit N` ends at once with that code.
    pub(super) fn run_pods(&self, nodes: &[&str]) {
        let mut state = self.state.lock();
        let pods: Vec<(Key, Value)> = state
            .objects
            .iter()
            .filter(|(key, _)| key.0 == "pods")
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        for (i, (key, mut pod)) in pods.into_iter().enumerate() {
            let node = text(&pod, "/spec/nodeName");
            let alive = nodes.contains(&node.as_str());
            if pod.pointer("/metadata/deletionTimestamp").is_some() {
                if alive {
                    pod["metadata"]["stopped"] = json!(true);
                    if !matches!(text(&pod, "/status/phase").as_str(), "Succeeded" | "Failed") {
                        pod["status"]["phase"] = json!("Failed");
                    }
                    state.store(key, pod);
                }
            } else if node.is_empty() {
                let meant = text(&pod, &format!("{REQUIRED}/0/matchFields/0/values/0"));
                let chosen = nodes
                    .get(i % nodes.len().max(1))
                    .map(|node| (*node).to_owned());
                let chosen = if meant.is_empty() {
                    chosen
                } else {
                    Some(meant)
                };
                if let Some(node) = chosen {
                    pod["spec"]["nodeName"] = json!(node);
                    state.store(key, pod);
                }
            } else if alive && text(&pod, "/status/phase") != "Running" && !ended(&pod) {
                let exit = text(&pod, "/spec/containers/0/command/0");
                let (phase, ready) = match exit.as_str() {
                    "exit 0" => ("Succeeded", "False"),
                    "exit 1" => ("Failed", "False"),
                    _ => ("Running", "True"),
                };
                let now = balsa_client::time::now();
                pod["status"] = json!({"phase": phase, "podIP": format!("10.244.0.{i}"), "conditions": [
                    {"type": "Ready", "status": ready, "lastTransitionTime": now},
                ]});
                state.store(key, pod);
            }
        }
    }

    fn answer(&self, method: &Method, uri: &http::Uri, body: Value) -> Answer {
        let path: Vec<&str> = uri
            .path()
            .split('/')
            .filter(|part| !part.is_empty())
            .collect();
        let query: BTreeMap<String, String> = uri
            .query()
            .into_iter()
            .flat_map(|query| query.split('&'))
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.replace("%3D", "=")))
            .collect();
        if let Some(found) = discovery(&path) {
            return respond(200, &found);
        }
        let Some(target) = Target::parse(&path) else {
            return fail(&failure(404, "NotFound"));
        };
        if query.get("watch").map(String::as_str) == Some("true") {
            return self.watch(&target, &query);
        }
        let mut state = self.state.lock();
        let result = match (method.as_str(), target.name.is_empty()) {
            ("GET", true) => Ok(state.list(&target)),
            ("GET", false) => state
                .objects
                .get(&target.key())
                .cloned()
                .ok_or_else(|| failure(404, "NotFound")),
            ("POST", _) => state.create(&target, body),
            ("PUT", _) => state.update(&target, |_| body),
            ("PATCH", _) => state.update(&target, |old| {
                let mut new = old.clone();
                merge(&mut new, &body);
                new
            }),
            ("DELETE", true) => state.delete_all(&target),
            ("DELETE", false) => state.delete(&target, &body),
            _ => Err(failure(405, "MethodNotAllowed")),
        };
        match result {
            Ok(object) => respond(200, &object),
            Err(error) => fail(&error),
        }
    }

    fn watch(&self, target: &Target, query: &BTreeMap<String, String>) -> Answer {
        let (lines, receiver) = mpsc::unbounded_channel();
        let mut state = self.state.lock();
        let name = query
            .get("fieldSelector")
            .and_then(|field| field.strip_prefix("metadata.name="));
        let watcher = Watcher {
            plural: target.plural.clone(),
            namespace: (!target.namespace.is_empty()).then(|| target.namespace.clone()),
            name: name.map(str::to_owned),
            lines,
        };
        if query.contains_key("sendInitialEvents") {
            for (key, object) in state.objects.iter().filter(|(key, _)| watcher.wants(key)) {
                watcher.send("ADDED", key, object);
            }
            let mark = json!({"type": "BOOKMARK", "object": {"apiVersion": "v1", "kind": "X", "metadata": {
                "resourceVersion": state.version.to_string(),
                "annotations": {"k8s.io/initial-events-end": "true"},
            }}});
            let _ = watcher.lines.send(format!("{mark}\n").into());
        } else {
            let from: u64 = query
                .get("resourceVersion")
                .and_then(|text| text.parse().ok())
                .unwrap_or_default();
            for (_, type_, key, object) in state.log.iter().filter(|(version, ..)| *version > from)
            {
                if watcher.wants(key) {
                    watcher.send(type_, key, object);
                }
            }
        }
        state.watchers.push(watcher);
        let stream = futures::stream::unfold(receiver, |mut lines| async {
            lines
                .recv()
                .await
                .map(|line| (Ok(Frame::data(line)), lines))
        });
        Response::new(StreamBody::new(stream.boxed()))
    }
}

impl Watcher {
    fn wants(&self, key: &Key) -> bool {
        self.plural == key.0
            && self
                .namespace
                .as_ref()
                .is_none_or(|namespace| *namespace == key.1)
            && self.name.as_ref().is_none_or(|name| *name == key.2)
    }

    fn send(&self, type_: &str, _: &Key, object: &Value) {
        let _ = self
            .lines
            .send(format!("{}\n", json!({"type": type_, "object": object})).into());
    }
}

impl State {
    fn publish(&mut self, type_: &'static str, key: &Key, object: &Value) {
        self.log
            .push((self.version, type_, key.clone(), object.clone()));
        self.watchers.retain(|watcher| !watcher.lines.is_closed());
        self.watchers
            .iter()
            .filter(|watcher| watcher.wants(key))
            .for_each(|w| w.send(type_, key, object));
    }

    /// Stores, or removes what has nothing left to wait for.
    fn store(&mut self, key: Key, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let empty = |pointer: &str| {
            object
                .pointer(pointer)
                .and_then(Value::as_array)
                .is_none_or(Vec::is_empty)
        };
        let waits = match key.0.as_str() {
            "namespaces" => !empty("/spec/finalizers"),
            "pods" => {
                !text(&object, "/spec/nodeName").is_empty()
                    && object.pointer("/metadata/stopped").is_none()
                    && object.pointer("/metadata/deletionGracePeriodSeconds") != Some(&json!(0))
            }
            _ => false,
        };
        let going = object.pointer("/metadata/deletionTimestamp").is_some();
        if going && empty("/metadata/finalizers") && !waits {
            self.objects.remove(&key);
            self.publish("DELETED", &key, &object);
            return object;
        }
        let type_ = if self.objects.insert(key.clone(), object.clone()).is_some() {
            "MODIFIED"
        } else {
            "ADDED"
        };
        self.publish(type_, &key, &object);
        object
    }

    fn list(&self, target: &Target) -> Value {
        let of = |key: &Key| {
            key.0 == target.plural && (target.namespace.is_empty() || key.1 == target.namespace)
        };
        let items: Vec<&Value> = self
            .objects
            .iter()
            .filter(|(key, _)| of(key))
            .map(|(_, value)| value)
            .collect();
        json!({"apiVersion": "v1", "kind": "List", "items": items,
            "metadata": {"resourceVersion": self.version.to_string()}})
    }

    fn create(&mut self, target: &Target, mut object: Value) -> Result<Value, Failure> {
        let prefix = text(&object, "/metadata/generateName");
        if text(&object, "/metadata/name").is_empty() {
            object["metadata"]["name"] = json!(format!("{prefix}{}", self.version));
        }
        let namespace =
            self.objects
                .get(&("namespaces".into(), String::new(), target.namespace.clone()));
        if namespace
            .is_some_and(|namespace| namespace.pointer("/metadata/deletionTimestamp").is_some())
        {
            return Err(failure(403, "Forbidden"));
        }
        let key = (
            target.plural.clone(),
            target.namespace.clone(),
            text(&object, "/metadata/name"),
        );
        if self.objects.contains_key(&key) {
            return Err(failure(409, "AlreadyExists"));
        }
        let kind = KINDS.iter().find(|kind| kind.1 == target.plural).unwrap();
        object["apiVersion"] = json!(kind.0);
        object["kind"] = json!(kind.2);
        object["metadata"]["uid"] = json!(format!("uid-{}", self.version + 1));
        object["metadata"]["generation"] = json!(1);
        if !target.namespace.is_empty() {
            object["metadata"]["namespace"] = json!(target.namespace);
        }
        object["metadata"]["creationTimestamp"] = json!(balsa_client::time::now());
        Ok(self.store(key, object))
    }

    fn update(
        &mut self,
        target: &Target,
        change: impl FnOnce(&Value) -> Value,
    ) -> Result<Value, Failure> {
        let key = target.key();
        let old = self
            .objects
            .get(&key)
            .cloned()
            .ok_or_else(|| failure(404, "NotFound"))?;
        let mut new = change(&old);
        for field in ["/metadata/resourceVersion", "/metadata/uid"] {
            let sent = text(&new, field);
            if !sent.is_empty() && sent != text(&old, field) {
                return Err(failure(409, "Conflict"));
            }
        }
        match target.subresource.as_str() {
            "status" => {
                let mut merged = old.clone();
                merged["status"] = new["status"].take();
                merged["metadata"]["annotations"] = new["metadata"]["annotations"].take();
                self.check_status(&target.plural, &merged, &old)?;
                new = merged;
            }
            _ => {
                if target.subresource.is_empty() {
                    new["status"] = old.get("status").cloned().unwrap_or(Value::Null);
                }
                if new.get("spec") != old.get("spec") {
                    let generation = old
                        .pointer("/metadata/generation")
                        .and_then(Value::as_i64)
                        .unwrap_or(1);
                    new["metadata"]["generation"] = json!(generation + 1);
                }
            }
        }
        Ok(self.store(key, new))
    }

    /// The checks of the real API server.
    fn check_status(&mut self, plural: &str, new: &Value, old: &Value) -> Result<(), Failure> {
        let kinds = balsa_api::kinds::builtin();
        let Some(kind) = kinds.iter().find(|kind| kind.plural == plural) else {
            return Ok(());
        };
        let errors = kind.strategy.validate_status_update(new, old);
        if errors.is_empty() {
            return Ok(());
        }
        let texts: Vec<String> = errors.0.iter().map(|error| error.text()).collect();
        self.refused.push(texts.join(", "));
        Err(Failure(422, "Invalid", texts.join(", ")))
    }

    fn delete(&mut self, target: &Target, options: &Value) -> Result<Value, Failure> {
        let key = target.key();
        let mut object = self
            .objects
            .get(&key)
            .cloned()
            .ok_or_else(|| failure(404, "NotFound"))?;
        for (condition, field) in [
            ("uid", "/metadata/uid"),
            ("resourceVersion", "/metadata/resourceVersion"),
        ] {
            let wanted = text(options, &format!("/preconditions/{condition}"));
            if !wanted.is_empty() && wanted != text(&object, field) {
                return Err(failure(409, "Conflict"));
            }
        }
        let mut finalizers = object["metadata"]["finalizers"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let add = match text(options, "/propagationPolicy").as_str() {
            "Foreground" => Some("foregroundDeletion"),
            "Orphan" => Some("orphan"),
            _ => None,
        };
        finalizers.extend(
            add.filter(|add| !finalizers.contains(&json!(add)))
                .map(|add| json!(add)),
        );
        object["metadata"]["finalizers"] = json!(finalizers);
        object["metadata"]["deletionTimestamp"] = json!(balsa_client::time::now());
        if let Some(grace) = options.pointer("/gracePeriodSeconds") {
            object["metadata"]["deletionGracePeriodSeconds"] = grace.clone();
        }
        Ok(self.store(key, object))
    }

    fn delete_all(&mut self, target: &Target) -> Result<Value, Failure> {
        let of = |key: &&Key| key.0 == target.plural && key.1 == target.namespace;
        let keys: Vec<Key> = self.objects.keys().filter(of).cloned().collect();
        for key in keys {
            let target = Target {
                name: key.2,
                ..target.clone()
            };
            self.delete(&target, &Value::Null)?;
        }
        Ok(json!({"apiVersion": "v1", "kind": "Status", "status": "Success"}))
    }
}

#[derive(Clone)]
struct Target {
    plural: String,
    namespace: String,
    name: String,
    subresource: String,
}

impl Target {
    fn parse(path: &[&str]) -> Option<Self> {
        let rest = match path {
            ["api", "v1", rest @ ..] => rest,
            ["apis", _, _, rest @ ..] => rest,
            _ => return None,
        };
        let (namespace, rest) = match rest {
            ["namespaces", _, "status" | "finalize"] | ["namespaces", _] => ("", rest),
            ["namespaces", namespace, rest @ ..] => (*namespace, rest),
            rest => ("", rest),
        };
        let plural = (*rest.first()?).to_owned();
        KINDS.iter().find(|kind| kind.1 == plural)?;
        let part = |i: usize| rest.get(i).copied().unwrap_or_default().to_owned();
        Some(Self {
            plural,
            namespace: namespace.to_owned(),
            name: part(1),
            subresource: part(2),
        })
    }

    fn key(&self) -> Key {
        (
            self.plural.clone(),
            self.namespace.clone(),
            self.name.clone(),
        )
    }
}

fn discovery(path: &[&str]) -> Option<Value> {
    let resources = |group_version: &str| {
        let of = KINDS.iter().filter(|kind| kind.0 == group_version).map(|(_, plural, kind, namespaced)| {
            json!({"name": plural, "singularName": "", "kind": kind, "namespaced": namespaced,
                "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]})
        });
        json!({"kind": "APIResourceList", "groupVersion": group_version, "resources": of.collect::<Vec<_>>()})
    };
    match path {
        ["api", "v1"] => Some(resources("v1")),
        ["apis"] => {
            let mut groups: Vec<&str> = KINDS
                .iter()
                .map(|kind| kind.0)
                .filter(|gv| gv.contains('/'))
                .collect();
            groups.dedup();
            let group = |gv: &&str| {
                let (name, version) = gv.split_once('/').unwrap();
                let version = json!({"groupVersion": gv, "version": version});
                json!({"name": name, "versions": [version], "preferredVersion": version})
            };
            Some(
                json!({"kind": "APIGroupList", "groups": groups.iter().map(group).collect::<Vec<_>>()}),
            )
        }
        ["apis", group, version] => Some(resources(&format!("{group}/{version}"))),
        _ => None,
    }
}

fn merge(target: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in fields {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut target[key], value);
        }
    }
}

fn ended(pod: &Value) -> bool {
    matches!(text(pod, "/status/phase").as_str(), "Succeeded" | "Failed")
}

pub(super) fn text(value: &Value, pointer: &str) -> String {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

fn respond(code: u16, body: &Value) -> Answer {
    let line = Bytes::from(body.to_string());
    let stream = async move { Ok(Frame::data(line)) }.into_stream().boxed();
    let mut response = Response::new(StreamBody::new(stream));
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

fn fail(Failure(code, reason, message): &Failure) -> Answer {
    respond(
        *code,
        &json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
            "message": message, "metadata": {}}),
    )
}
