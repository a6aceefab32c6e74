//! Whole requests through [`ApiServer::call`] over a store in memory.
#![allow(clippy::unwrap_used)]

mod crud;
mod custom;
mod deletes;
mod documents;
mod every_kind;
mod fuzz;
mod limits;
mod lists;
mod patches;
mod security;
mod services;
mod store;
mod transport;
mod watches;
mod webhooks;

use std::sync::Arc;

use async_trait::async_trait;
use balsa_api::status::Status;
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::backend::Backend;
use crate::http::respond::full;
use crate::seam::{
    Attributes, Authenticator, Authorizer, Decision, Fence, Peer, ResponseBody, User,
};
use crate::testing::MemoryBackend;
use crate::{ApiServer, Cache, Config, Kinds};

/// Lets in whoever presents no token.
struct Door;

#[async_trait]
impl Authenticator for Door {
    async fn authenticate(
        &self,
        parts: &http::request::Parts,
        _: &Peer,
    ) -> Result<Arc<User>, Status> {
        if parts.headers.contains_key("authorization") {
            return Err(Status::new(401, "Unauthorized", "Unauthorized"));
        }
        Ok(Arc::new(admin()))
    }
}

/// Forbids user `nobody` everything.
struct Gatekeeper;

#[async_trait]
impl Authorizer for Gatekeeper {
    async fn authorize(&self, attributes: &Attributes) -> Decision {
        if attributes.user.name == "nobody" {
            Decision::NoOpinion(String::new())
        } else {
            Decision::Allow("test".into())
        }
    }
}

fn admin() -> User {
    User {
        name: "admin".into(),
        groups: vec!["system:masters".into()],
        ..User::default()
    }
}

fn server(cache: Arc<Cache>, kinds: Arc<Kinds>, backend: Arc<dyn Backend>) -> ApiServer {
    // Short, for tests of what happens when nothing comes.
    let patience = std::time::Duration::from_millis(20);
    let config = Config {
        patience,
        bookmark_every: patience,
        ..Config::default()
    };
    ApiServer::builder(config, kinds, cache, backend)
        .authenticator(Arc::new(Door))
        .authorizer(Arc::new(Gatekeeper))
        .build()
        .unwrap()
}

struct Harness {
    api: ApiServer,
    backend: Arc<MemoryBackend>,
}

/// A request in the making.
struct Ask<'a> {
    api: &'a ApiServer,
    request: Request<crate::seam::RequestBody>,
    user: User,
}

/// What came back.
struct Answer {
    code: u16,
    headers: http::HeaderMap,
    body: Value,
    raw: Vec<u8>,
}

impl Harness {
    fn new() -> Self {
        let kinds = Arc::new(Kinds::new(balsa_api::kinds::builtin()));
        let cache = Cache::new(kinds.all());
        let backend = MemoryBackend::new(Arc::clone(&cache));
        let api = server(cache, kinds, Arc::clone(&backend) as Arc<dyn Backend>);
        Self { api, backend }
    }

    fn ask(&self, method: Method, path: &str) -> Ask<'_> {
        ask(&self.api, method, path)
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask(Method::GET, path).send().await
    }

    async fn post(&self, path: &str, body: Value) -> Answer {
        self.ask(Method::POST, path).body(body).send().await
    }

    async fn put(&self, path: &str, body: Value) -> Answer {
        self.ask(Method::PUT, path).body(body).send().await
    }

    async fn delete(&self, path: &str) -> Answer {
        self.ask(Method::DELETE, path).send().await
    }

    async fn patch(&self, path: &str, type_: &str, body: Value) -> Answer {
        self.ask(Method::PATCH, path)
            .body(body)
            .header("content-type", type_)
            .send()
            .await
    }

    /// Opens a watch; lines come from [`Lines::next`].
    async fn watch(&self, path: &str) -> Lines {
        let response = self.ask(Method::GET, path).raw().await;
        assert_eq!(response.status(), 200);
        Lines {
            body: response.into_body(),
            buffer: Vec::new(),
        }
    }
}

fn ask<'a>(api: &'a ApiServer, method: Method, path: &str) -> Ask<'a> {
    let mut request = Request::new(full(bytes::Bytes::new()));
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().unwrap();
    Ask {
        api,
        request,
        user: admin(),
    }
}

impl Ask<'_> {
    fn body(self, body: Value) -> Self {
        self.bytes(body.to_string().into_bytes())
            .header("content-type", "application/json")
    }

    fn bytes(mut self, body: Vec<u8>) -> Self {
        *self.request.body_mut() = full(body.into());
        self
    }

    fn header(mut self, name: &'static str, value: &str) -> Self {
        self.request
            .headers_mut()
            .insert(name, value.parse().unwrap());
        self
    }

    fn user(mut self, name: &str) -> Self {
        self.user = User {
            name: name.into(),
            ..User::default()
        };
        self
    }

    fn fence(mut self, term: u64) -> Self {
        self.request.extensions_mut().insert(Fence(term));
        self
    }

    async fn raw(self) -> Response<ResponseBody> {
        self.api.call(self.request, self.user).await
    }

    async fn send(self) -> Answer {
        let response = self.raw().await;
        let (parts, body) = response.into_parts();
        let raw = body.collect().await.unwrap().to_bytes().to_vec();
        let body = serde_json::from_slice(&raw).unwrap_or_default();
        Answer {
            code: parts.status.as_u16(),
            headers: parts.headers,
            body,
            raw,
        }
    }
}

impl Answer {
    /// The body, when the code is the expected one.
    #[track_caller]
    fn expect(self, code: u16) -> Value {
        assert_eq!(self.code, code, "{}", String::from_utf8_lossy(&self.raw));
        self.body
    }

    #[track_caller]
    fn message(self, code: u16) -> String {
        self.expect(code)["message"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }
}

/// Lines of a watch.
struct Lines {
    body: ResponseBody,
    buffer: Vec<u8>,
}

impl Lines {
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = self.body.frame().await?.unwrap();
            self.buffer.extend_from_slice(frame.data_ref().unwrap());
        }
    }

    /// Type and name of the next event.
    async fn brief(&mut self) -> (String, String) {
        let event = self.next().await.expect("the watch ended");
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        (
            text(&event["type"]),
            text(&event["object"]["metadata"]["name"]),
        )
    }
}

fn config_map(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

fn labelled(name: &str, label: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"app": label}}})
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "busybox"}]}})
}

const MAPS: &str = "/api/v1/namespaces/d/configmaps";
const PODS: &str = "/api/v1/namespaces/d/pods";
const SERVICES: &str = "/api/v1/namespaces/d/services";
