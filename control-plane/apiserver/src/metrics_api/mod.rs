//! `metrics.k8s.io/v1beta1`: what nodes and pods use now, for `kubectl top` and autoscaling, without an add-on.
//!
//! Each server asks the nodes itself, through the node link, and only while somebody wants to know: the numbers live
//! in memory for a minute, are the same for all who ask, and nobody pays for them in a cluster where nobody looks. An
//! APIService for the group version, as metrics-server brings one, takes precedence.
//!
//! Sources: k8s.io/metrics `v1beta1`, metrics-server's API.

mod kinds;
mod objects;
mod protobuf;
mod samples;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use balsa_api::kind::{Kind, Scope};
use balsa_api::kinds::walk::Walk;
use balsa_api::object;
use balsa_api::openapi::Served;
use balsa_api::selector::Selector;
use balsa_api::status::Status;
use balsa_link::protocol::StreamRequest;
use bytes::Bytes;
use futures::StreamExt as _;
use http::{HeaderMap, Response};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::extensions::aggregation::RemoteVersion;
use crate::handle::not_allowed;
use crate::http::negotiate::{Accepted, Format, Offer, Shape, negotiate};
use crate::http::protobuf::MEDIA_TYPE;
use crate::http::query::Query;
use crate::http::request_info::RequestInfo;
use crate::http::respond;
use crate::registry::shape;
use crate::render::{self, Include};
use crate::seam::{NodeStreams, ObjectReader, ResponseBody};
use samples::{Look, Usage, usage};

/// Group of the API.
pub const GROUP: &str = "metrics.k8s.io";
/// Its version.
pub const VERSION: &str = "v1beta1";

/// Between two looks at all nodes.
const EVERY: Duration = Duration::from_secs(15);
/// Who asked longer ago wants no more looks.
const WANTED_FOR: Duration = Duration::from_secs(120);
/// Older numbers are not shown.
const STALE: Duration = Duration::from_secs(60);
/// Between the first two looks, of which one alone gives no rate.
const FIRST_WINDOW: Duration = Duration::from_millis(1100);
/// A pod that is missing in the numbers is looked for again no sooner.
const AGAIN: Duration = Duration::from_secs(3);
/// Time for one node's answer.
const PATIENCE: Duration = Duration::from_secs(4);
/// Nodes asked at once.
const AT_ONCE: usize = 32;
/// A node's answer is not longer.
const MAX_PAGE: u64 = 16 << 20;

/// What a node said at its last two looks.
#[derive(Default)]
struct Node {
    before: Option<Look>,
    now: Look,
    /// When `now` was received.
    at: Option<Instant>,
}

#[derive(Default)]
struct State {
    nodes: HashMap<String, Node>,
    /// End of the last look at all nodes.
    looked: Option<Instant>,
    asked: Option<Instant>,
}

/// See the module. The numbers of one server.
pub struct MetricsApi {
    reader: Arc<dyn ObjectReader>,
    nodes: Arc<dyn NodeStreams>,
    kinds: kinds::Kinds,
    state: Mutex<State>,
    /// Held while nodes are asked.
    looking: tokio::sync::Mutex<()>,
}

impl MetricsApi {
    /// Over the objects of a reader and the streams of nodes.
    #[must_use]
    pub fn new(reader: Arc<dyn ObjectReader>, nodes: Arc<dyn NodeStreams>) -> Self {
        Self {
            reader,
            nodes,
            kinds: kinds::Kinds::new(),
            state: Mutex::default(),
            looking: tokio::sync::Mutex::default(),
        }
    }

    /// The group version as discovery shows it.
    pub(crate) fn discovered(&self) -> RemoteVersion {
        RemoteVersion {
            group: GROUP.into(),
            version: VERSION.into(),
            group_priority: 100,
            version_priority: 100,
            available: true,
            resources: self.kinds.resource_list()["resources"].clone(),
            openapi: Some(self.kinds.openapi_url()),
            v2: None,
        }
    }

    /// The APIResourceList.
    pub(crate) fn resource_list(&self) -> Value {
        self.kinds.resource_list()
    }

    /// The kinds for OpenAPI v2; none when an APIService has taken their place.
    pub(crate) fn served_among(&self, remotes: &[RemoteVersion]) -> Vec<Served<'_>> {
        let own = Some(self.kinds.openapi_url());
        if remotes.iter().any(|remote| remote.openapi == own) {
            self.kinds.served()
        } else {
            Vec::new()
        }
    }

    /// The OpenAPI v3 document, and a text that changes with it.
    pub(crate) fn openapi(&self) -> Option<(Vec<u8>, String)> {
        Some((self.kinds.openapi()?, self.kinds.openapi_hash()))
    }

    /// Keeps the numbers fresh while somebody asks for them, until `stop`.
    pub(crate) async fn run(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
            let wanted = self.state.lock().asked;
            if wanted.is_some_and(|at| at.elapsed() < WANTED_FOR) {
                let work = self.refresh(EVERY / 2);
                if stop.run_until_cancelled(work).await.is_none() {
                    return;
                }
            }
        }
    }

    /// Answers a request for a resource of the group.
    ///
    /// # Errors
    /// 404 and 405 in upstream's words, 406, 400 for selectors that cannot be read.
    pub(crate) async fn answer(
        &self,
        info: &RequestInfo,
        query: &Query,
        headers: &HeaderMap,
    ) -> Result<Response<ResponseBody>, Status> {
        let Some(kind) = self.kinds.get(&info.resource) else {
            return Ok(crate::handle::not_found());
        };
        let namespaced = kind.scope == Scope::Namespaced;
        let misplaced = !namespaced && !info.namespace.is_empty();
        let unplaced = namespaced && info.verb == "get" && info.namespace.is_empty();
        if !info.subresource.is_empty() || misplaced || unplaced {
            return Ok(crate::handle::not_found());
        }
        if !kind.verbs.contains(&info.verb) {
            return Err(not_allowed());
        }
        let offer = Offer {
            shapes: true,
            protobuf: true,
        };
        let accepted = negotiate(headers, offer)?;
        self.state.lock().asked = Some(Instant::now());
        self.refresh(EVERY).await;
        if info.verb == "get" {
            let found = self.one(kind, info).await?;
            if (accepted.format, accepted.shape) == (Format::Protobuf, Shape::Plain) {
                return protobuf_answer(protobuf::one(kind, &found));
            }
            let bytes = Bytes::from(found.to_string());
            return shape::object(200, kind, bytes, accepted, query);
        }
        self.listed(kind, info, query, accepted).await
    }

    async fn one(&self, kind: &Kind, info: &RequestInfo) -> Result<Value, Status> {
        let (resource, missing) = match kind.scope {
            Scope::Cluster => ("nodes", "nodemetrics"),
            Scope::Namespaced => ("pods", "podmetrics"),
        };
        let of = self.reader.get("", resource, &info.namespace, &info.name);
        if let Some(of) = of {
            if let Some(shown) = self.shown(kind, &of) {
                return Ok(shown);
            }
            if self.may_appear(&of) {
                self.refresh(AGAIN).await;
                if let Some(shown) = self.shown(kind, &of) {
                    return Ok(shown);
                }
            }
        }
        let name = match kind.scope {
            Scope::Cluster => info.name.clone(),
            Scope::Namespaced => format!("{}/{}", info.namespace, info.name),
        };
        Err(Status::not_found(GROUP, missing, &name))
    }

    async fn listed(
        &self,
        kind: &Kind,
        info: &RequestInfo,
        query: &Query,
        accepted: Accepted,
    ) -> Result<Response<ResponseBody>, Status> {
        let labels = selector(query, "labelSelector")?;
        let fields = selector(query, "fieldSelector")?;
        check_fields(&fields)?;
        let namespace = (!info.namespace.is_empty()).then_some(info.namespace.as_str());
        let resource = match kind.scope {
            Scope::Cluster => "nodes",
            Scope::Namespaced => "pods",
        };
        let mut all = self.reader.list("", resource, namespace);
        let empty = serde_json::Map::new();
        all.retain(|of| {
            let place = json!({"metadata.name": object::name(of), "metadata.namespace": object::namespace(of)});
            labels.matches(object::labels(of).unwrap_or(&empty))
                && place.as_object().is_some_and(|place| fields.matches(place))
        });
        let mut items: Vec<Value> = all.iter().filter_map(|of| self.shown(kind, of)).collect();
        let absent = |of: &&Arc<Value>| self.shown(kind, of).is_none() && self.may_appear(of);
        if items.len() < all.len() && all.iter().any(|of| absent(&of)) {
            self.refresh(AGAIN).await;
            items = all.iter().filter_map(|of| self.shown(kind, of)).collect();
        }
        let order = |v: &Value| (object::namespace(v).to_owned(), object::name(v).to_owned());
        items.sort_by_cached_key(order);
        match (accepted.format, accepted.shape) {
            (Format::Protobuf, Shape::Metadata) => protobuf_answer(protobuf::metadata_list(&items)),
            (Format::Protobuf, _) => protobuf_answer(protobuf::list(kind, &items)),
            (format, shape) => {
                let document = list(kind, &items, shape, query)?;
                shape::document(200, document.to_string().into(), format)
            }
        }
    }

    /// A running pod, or a node, may be in the next look.
    fn may_appear(&self, of: &Value) -> bool {
        object::namespace(of).is_empty() || of["status"]["phase"] == "Running"
    }

    /// The metrics of a node or pod, where they are known.
    fn shown(&self, kind: &Kind, of: &Value) -> Option<Value> {
        let state = self.state.lock();
        let node = match kind.scope {
            Scope::Cluster => object::name(of),
            Scope::Namespaced => of["spec"]["nodeName"].text(),
        };
        let node = state.nodes.get(node)?;
        if node.at.is_none_or(|at| at.elapsed() > STALE) {
            return None;
        }
        if kind.scope == Scope::Cluster {
            let before = node.before.as_ref().and_then(|look| look.node.as_ref());
            let used = usage(before, node.now.node.as_ref()?)?;
            return Some(objects::node(of, &used));
        }
        if of["status"]["phase"] != "Running" {
            return None;
        }
        let key = format!("{}/{}", object::namespace(of), object::name(of));
        let before = node.before.as_ref().and_then(|look| look.pods.get(&key));
        let containers: HashMap<String, Option<Usage>> = node
            .now
            .pods
            .get(&key)?
            .iter()
            .map(|(name, now)| {
                let before = before.and_then(|b| b.get(name));
                (name.clone(), usage(before, now))
            })
            .collect();
        objects::pod(of, &containers)
    }

    /// Looks at all nodes, unless that was done within `age`.
    async fn refresh(&self, age: Duration) {
        if self.is_fresh(age) {
            return;
        }
        let _looking = self.looking.lock().await;
        // Another may have looked meanwhile.
        if self.is_fresh(age) {
            return;
        }
        let cold = self
            .state
            .lock()
            .looked
            .is_none_or(|at| at.elapsed() > STALE);
        self.look(cold).await;
        if cold {
            tokio::time::sleep(FIRST_WINDOW).await;
            self.look(false).await;
        }
        self.state.lock().looked = Some(Instant::now());
    }

    fn is_fresh(&self, age: Duration) -> bool {
        let looked = self.state.lock().looked;
        looked.is_some_and(|at| at.elapsed() < age)
    }

    /// Asks all nodes; `anew` forgets what they said before.
    async fn look(&self, anew: bool) {
        let names: Vec<String> = self
            .reader
            .list("", "nodes", None)
            .iter()
            .map(|node| object::name(node).to_owned())
            .collect();
        {
            let mut state = self.state.lock();
            if anew {
                state.nodes.clear();
            }
            state.nodes.retain(|name, _| names.contains(name));
        }
        let asked = names.into_iter().map(|name| async move {
            let page = tokio::time::timeout(PATIENCE, self.page(&name)).await;
            (name, page)
        });
        let mut answers = futures::stream::iter(asked).buffer_unordered(AT_ONCE);
        while let Some((name, page)) = answers.next().await {
            let page = match page {
                Ok(Ok(page)) => page,
                Ok(Err(why)) => {
                    tracing::debug!(node = name, why, "a node's usage is not known");
                    continue;
                }
                Err(_) => {
                    tracing::debug!(node = name, "a node did not tell its usage in time");
                    continue;
                }
            };
            let look = samples::parse(&page, Timestamp::now().as_millisecond());
            let mut state = self.state.lock();
            let node = state.nodes.entry(name).or_default();
            let old = std::mem::replace(&mut node.now, look);
            node.before = node.at.map(|_| old);
            node.at = Some(Instant::now());
        }
    }

    async fn page(&self, node: &str) -> Result<String, String> {
        let request = StreamRequest::Http {
            path: "/metrics/resource".into(),
        };
        let stream = self.nodes.open(node, request).await;
        let stream = stream.map_err(|status| status.message)?;
        if stream.code != 200 {
            return Err(format!("it answered {}", stream.code));
        }
        let mut page = String::new();
        let mut reader = stream.reader.take(MAX_PAGE);
        let read = reader.read_to_string(&mut page).await;
        read.map_err(|error| error.to_string())?;
        Ok(page)
    }
}

fn protobuf_answer(written: Option<Bytes>) -> Result<Response<ResponseBody>, Status> {
    let unwritable = || Status::internal("the metrics could not be written in protobuf");
    let written = written.ok_or_else(unwritable)?;
    Ok(respond::bytes(200, MEDIA_TYPE, written))
}

fn selector(query: &Query, name: &str) -> Result<Selector, Status> {
    let text = query.get(name).unwrap_or_default();
    Selector::parse(text)
        .map_err(|error| Status::bad_request(format!("unable to parse {name} {text:?}: {error}")))
}

/// Only names are selectable.
fn check_fields(fields: &Selector) -> Result<(), Status> {
    let known = ["metadata.name", "metadata.namespace"];
    let unknown = fields
        .requirements()
        .iter()
        .find(|r| !known.contains(&r.key.as_str()));
    match unknown {
        None => Ok(()),
        Some(requirement) => Err(Status::bad_request(format!(
            "field label not supported: {}",
            requirement.key
        ))),
    }
}

fn list(kind: &Kind, items: &[Value], shape: Shape, query: &Query) -> Result<Value, Status> {
    Ok(match shape {
        Shape::Plain => json!({
            "kind": format!("{}List", kind.kind),
            "apiVersion": render::api_version(kind),
            "metadata": {},
            "items": items,
        }),
        Shape::Metadata => {
            let items: Vec<Value> = items.iter().map(partial).collect();
            json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": {}, "items": items})
        }
        Shape::Table => {
            let include = shape::include(query)?;
            let now = Timestamp::now();
            let rows: Vec<Value> = items
                .iter()
                .map(|item| {
                    let cells = kind.strategy.row(item, now);
                    match include {
                        Include::None => json!({"cells": cells}),
                        Include::Metadata => json!({"cells": cells, "object": partial(item)}),
                        Include::Object => json!({"cells": cells, "object": item}),
                    }
                })
                .collect();
            let columns: Vec<Value> = kind
                .strategy
                .columns()
                .iter()
                .map(|c| {
                    json!({"name": c.name, "type": c.type_, "format": c.format,
                        "description": c.description, "priority": c.priority})
                })
                .collect();
            json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {},
                "columnDefinitions": columns, "rows": rows})
        }
    })
}

fn partial(item: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": item["metadata"]})
}

#[cfg(test)]
mod tests;
