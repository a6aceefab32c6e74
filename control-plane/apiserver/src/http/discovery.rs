//! Documents that are not objects: discovery, OpenAPI, version, metrics, health.

use std::collections::HashMap;
use std::sync::Arc;

use balsa_api::discovery;
use balsa_api::openapi::{self, Served, V2_PROTOBUF, V2_PROTOBUF_ANSWER};
use balsa_api::status::Status;
use bytes::Bytes;
use http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_ENCODING, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH, VARY,
};
use http::request::Parts;
use http::{Method, Response};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::health::{self, Check};
use super::negotiate::{Accepted, Offer, accept_clauses, negotiate};
use super::protobuf;
use super::query::Query;
use super::request_info::RequestInfo;
use super::respond::{self, JSON};
use super::{metrics, process};
use crate::extensions::aggregation::merge;
use crate::handle::{not_allowed, not_found};
use crate::kinds::{KindSet, Kinds};
use crate::metrics_api::{self, MetricsApi};
use crate::registry::shape;
use crate::seam::ResponseBody;
use crate::server::Core;

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// A document with its ETag. The large ones are kept compressed.
#[derive(Clone)]
struct Document {
    bytes: Bytes,
    packed: bool,
    etag: String,
}

impl Document {
    fn new(value: &Value) -> Self {
        let bytes = Bytes::from(value.to_string());
        let etag = discovery::etag(&bytes);
        Self {
            bytes,
            packed: false,
            etag,
        }
    }

    fn packed(plain: &[u8]) -> Option<Self> {
        let etag = discovery::etag(plain);
        Some(Self {
            bytes: respond::gzip(plain).ok()?.into(),
            packed: true,
            etag,
        })
    }
}

/// Documents of one [`KindSet`].
#[derive(Default)]
struct Made {
    generation: u64,
    documents: HashMap<String, Document>,
    /// OpenAPI documents of group versions, by path and hash: most of them stay when the kinds change.
    versions: HashMap<String, Document>,
}

/// Group versions whose documents are kept at most.
const MAX_VERSIONS: usize = 512;

/// Discovery and OpenAPI documents, made at their first reading and kept until the kinds change.
pub struct Documents {
    kinds: Arc<Kinds>,
    advertise: String,
    made: Mutex<Made>,
}

impl Documents {
    /// For these kinds.
    #[must_use]
    pub fn new(kinds: Arc<Kinds>, advertise: String) -> Self {
        Self {
            kinds,
            advertise,
            made: Mutex::default(),
        }
    }

    fn get(
        &self,
        set: &KindSet,
        key: &str,
        make: impl FnOnce() -> Option<Value>,
    ) -> Option<Document> {
        self.get_document(set, key, || make().map(|value| Document::new(&value)))
    }

    fn get_document(
        &self,
        set: &KindSet,
        key: &str,
        make: impl FnOnce() -> Option<Document>,
    ) -> Option<Document> {
        {
            let mut made = self.made.lock();
            if made.generation < set.generation() {
                made.generation = set.generation();
                made.documents.clear();
            }
            if made.generation == set.generation()
                && let Some(document) = made.documents.get(key)
            {
                return Some(document.clone());
            }
        }
        // Made outside the lock: OpenAPI takes a while, and two readers may both make it.
        let document = make()?;
        let mut made = self.made.lock();
        // Only for what exists, or foreign paths would fill the map.
        if made.generation == set.generation() {
            made.documents.insert(key.to_owned(), document.clone());
        }
        Some(document)
    }

    /// The OpenAPI document of a group version. `hash` tells its contents apart from earlier ones.
    fn get_version(
        &self,
        path: &str,
        hash: &str,
        make: impl FnOnce() -> Option<Document>,
    ) -> Option<Document> {
        let key = format!("{path} {hash}");
        if let Some(document) = self.made.lock().versions.get(&key) {
            return Some(document.clone());
        }
        let document = make()?;
        let mut made = self.made.lock();
        if made.versions.len() >= MAX_VERSIONS {
            made.versions.clear();
        }
        made.versions.insert(key, document.clone());
        Some(document)
    }

    fn group_list(&self, path: &str, aggregated: bool) -> Option<Document> {
        let core = path == "/api";
        let set = self.kinds.set();
        self.get(&set, &format!("{path} {aggregated}"), || {
            let kinds = set.all();
            let mut list = match (aggregated, core) {
                (true, core) => discovery::aggregated(kinds, core),
                (false, true) => discovery::api_versions(&self.advertise),
                (false, false) => discovery::api_group_list(kinds),
            };
            match (aggregated, core) {
                (_, true) => {}
                (true, false) => merge::into_aggregated(&mut list, set.remote()),
                (false, false) => merge::into_group_list(&mut list, set.remote()),
            }
            Some(list)
        })
    }

    /// Whether there is a discovery document at a path.
    pub(crate) fn knows(&self, path: &str) -> bool {
        self.discovery(path.trim_end_matches('/')).is_some()
    }

    fn discovery(&self, path: &str) -> Option<Document> {
        let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
        let set = self.kinds.set();
        let kinds = set.all();
        match parts.as_slice() {
            ["api", version] => self.get(&set, path, || {
                discovery::api_resource_list(kinds, "", version)
            }),
            ["apis", group] => self.get(&set, path, || {
                discovery::api_group(kinds, group).or_else(|| merge::group(set.remote(), group))
            }),
            ["apis", group, version] => self.get(&set, path, || {
                discovery::api_resource_list(kinds, group, version)
            }),
            _ => None,
        }
    }

    /// `/`: the paths there are.
    fn index(&self) -> Option<Document> {
        let set = self.kinds.set();
        self.get(&set, "/", || {
            let mut paths: Vec<String> = ["/api", "/api/v1", "/apis"].map(str::to_owned).to_vec();
            for kind in set.all().iter().filter(|k| !k.group.is_empty()) {
                paths.push(format!("/apis/{}", kind.group));
                paths.push(format!("/apis/{}/{}", kind.group, kind.version));
            }
            let rest = [
                "/healthz",
                "/livez",
                "/metrics",
                "/metrics/slis",
                "/openapi/v2",
                "/openapi/v3",
                "/readyz",
                "/version",
            ];
            paths.extend(rest.map(str::to_owned));
            paths.sort();
            paths.dedup();
            Some(json!({"paths": paths}))
        })
    }
}

fn version() -> Value {
    json!({
        "major": "1", "minor": "35", "gitVersion": "v1.35.0+balsa", "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "none",
        "compiler": "rustc", "platform": concat!("linux/", "amd64"),
        "emulationMajor": "1", "emulationMinor": "35", "minCompatibilityMajor": "1", "minCompatibilityMinor": "34",
    })
}

impl Core {
    /// Answers a path that is no object's.
    pub(crate) fn document(
        &self,
        info: &RequestInfo,
        query: &Query,
        parts: &Parts,
    ) -> Result<Response<ResponseBody>, Status> {
        if !matches!(parts.method, Method::GET | Method::HEAD) {
            return if self.known_path(&info.path) {
                Err(not_allowed())
            } else {
                Ok(not_found())
            };
        }
        let path = info.path.trim_end_matches('/');
        match path {
            "" => match self.documents.index() {
                Some(document) => self.plain(&parts.headers, &document.bytes),
                None => Ok(not_found()),
            },
            "/version" => self.plain(&parts.headers, &version().to_string().into()),
            "/metrics" => Ok(self.metrics_text()),
            "/metrics/slis" => Ok(self.slis_text()),
            "/api" | "/apis" => self.groups(path, &parts.headers),
            _ if path.starts_with("/openapi/") => self.openapi(path, query, &parts.headers),
            _ => match self.documents.discovery(path) {
                Some(document) => self.plain(&parts.headers, &document.bytes),
                None => match self.metrics_at(path, "/apis/") {
                    Some(metrics) => {
                        self.plain(&parts.headers, &metrics.resource_list().to_string().into())
                    }
                    None => Ok(not_found()),
                },
            },
        }
    }

    fn known_path(&self, path: &str) -> bool {
        matches!(
            path,
            "/" | "/version" | "/metrics" | "/metrics/slis" | "/api" | "/apis"
        ) || self.documents.discovery(path).is_some()
            || self.metrics_at(path, "/apis/").is_some()
    }

    /// The metrics API, when a path is that of its group version.
    fn metrics_at(&self, path: &str, prefix: &str) -> Option<&MetricsApi> {
        let rest = path.strip_prefix(prefix)?;
        let own = rest.split_once('/') == Some((metrics_api::GROUP, metrics_api::VERSION));
        self.metrics_api.as_deref().filter(|_| own)
    }

    fn plain(&self, headers: &HeaderMap, json: &Bytes) -> Result<Response<ResponseBody>, Status> {
        let offer = Offer {
            shapes: false,
            // Discovery has messages, `/version` and the index have none.
            protobuf: protobuf::object(json).is_some(),
        };
        let accepted = negotiate(headers, offer).unwrap_or(Accepted::PLAIN_JSON);
        shape::document(200, json.clone(), accepted.format)
    }

    fn metrics_text(&self) -> Response<ResponseBody> {
        self.flow.observe();
        for resource in self.cache.resources() {
            self.metrics.objects(
                &resource.kind.group,
                &resource.kind.plural,
                resource.len(),
                resource.watchers(),
            );
        }
        let mut text = self.metrics.text();
        process::append(&mut text);
        respond::bytes(200, metrics::MEDIA_TYPE, text)
    }

    /// `/api` and `/apis`, aggregated for clients that take that.
    fn groups(&self, path: &str, headers: &HeaderMap) -> Result<Response<ResponseBody>, Status> {
        let aggregated =
            accept_clauses(headers)
                .iter()
                .find_map(|clause| match clause.param("as") {
                    Some("APIGroupDiscoveryList") => (clause.media == "application/json"
                        && clause.param("g") == Some("apidiscovery.k8s.io")
                        && clause.param("v") == Some("v2"))
                    .then_some(true),
                    Some(_) => None,
                    None => clause.format().map(|_| false),
                });
        let aggregated = aggregated.unwrap_or(false);
        let Some(document) = self.documents.group_list(path, aggregated) else {
            return Ok(not_found());
        };
        if !aggregated {
            return self.plain(headers, &document.bytes);
        }
        let mut response = cached(&document, AGGREGATED, headers);
        response
            .headers_mut()
            .insert(VARY, HeaderValue::from_name(ACCEPT));
        response
            .headers_mut()
            .insert(CACHE_CONTROL, HeaderValue::from_static("public"));
        Ok(response)
    }

    fn openapi(
        &self,
        path: &str,
        query: &Query,
        headers: &HeaderMap,
    ) -> Result<Response<ResponseBody>, Status> {
        let set = self.kinds.set();
        let kinds: Vec<Served<'_>> = set
            .served()
            .map(|served| Served {
                kind: &served.kind,
                schema: served.schema(),
                custom: served.custom.as_deref().map(|c| c.openapi()),
            })
            .collect();
        let foreign: Vec<_> = set
            .remote()
            .iter()
            .filter_map(|r| r.v2.as_deref())
            .collect();
        let v2_kinds = || -> Vec<Served<'_>> {
            let metrics = self.metrics_api.iter();
            let metrics = metrics.flat_map(|m| m.served_among(set.remote()));
            kinds.iter().cloned().chain(metrics).collect()
        };
        let protobuf = accept_clauses(headers)
            .iter()
            .find_map(|c| match c.media.as_str() {
                V2_PROTOBUF | V2_PROTOBUF_ANSWER => Some(true),
                _ => c.format().map(|_| false),
            })
            .unwrap_or(false);
        let (document, content_type) = match path.strip_prefix("/openapi/") {
            Some("v2") if protobuf => {
                let make = || Document::packed(&openapi::v2_protobuf(&v2_kinds(), &foreign));
                (
                    self.documents
                        .get_document(&set, "/openapi/v2 protobuf", make),
                    V2_PROTOBUF_ANSWER,
                )
            }
            Some("v2") => {
                let make = || Document::packed(&openapi::v2_document(&v2_kinds(), &foreign));
                (self.documents.get_document(&set, path, make), JSON)
            }
            Some("v3") => (
                self.documents.get(&set, path, || {
                    let mut index = openapi::v3_index(&kinds);
                    merge::into_openapi_index(&mut index, set.remote());
                    Some(index)
                }),
                JSON,
            ),
            Some(rest) => {
                let parts: Vec<&str> = rest.split('/').collect();
                let (group, version) = match parts.as_slice() {
                    ["v3", "api", version] => ("", *version),
                    ["v3", "apis", group, version] => (*group, *version),
                    _ => return Ok(not_found()),
                };
                let make = || Document::packed(&openapi::v3_document(&kinds, group, version)?);
                let hash = openapi::v3_hash(&kinds, group, version);
                (self.documents.get_version(path, &hash, make), JSON)
            }
            None => (None, JSON),
        };
        let document = document.or_else(|| {
            let metrics = self.metrics_at(path, "/openapi/v3/apis/")?;
            let (plain, hash) = metrics.openapi()?;
            self.documents
                .get_version(path, &hash, || Document::packed(&plain))
        });
        let Some(document) = document else {
            return Ok(not_found());
        };
        let mut response = cached(&document, content_type, headers);
        if query.some("hash").is_some() {
            // The hash is part of the address, so what lies there never changes.
            let forever = HeaderValue::from_static("public, immutable, max-age=31536000");
            response.headers_mut().insert(CACHE_CONTROL, forever);
        }
        response
            .headers_mut()
            .insert(VARY, HeaderValue::from_static("Accept"));
        Ok(response)
    }

    /// `/healthz`, `/livez`, `/readyz`.
    pub(crate) fn probe(&self, info: &RequestInfo, query: &Query) -> Response<ResponseBody> {
        let path = info.path.trim_matches('/');
        let (endpoint, single) = path
            .split_once('/')
            .map_or((path, None), |(e, s)| (e, Some(s)));
        let checks = match endpoint {
            "livez" => self.checks("livez"),
            "readyz" => self.checks("readyz"),
            _ => self.checks("healthz"),
        };
        health::answer(endpoint, single, query, checks)
    }

    /// The health checks as of now.
    fn slis_text(&self) -> Response<ResponseBody> {
        for endpoint in ["healthz", "livez", "readyz"] {
            self.checks(endpoint);
        }
        respond::bytes(200, metrics::MEDIA_TYPE, self.slis.text())
    }

    /// Makes the checks of an endpoint, and notes how they went.
    fn checks(&self, endpoint: &'static str) -> Vec<Check> {
        let mut checks = vec![Check {
            name: "ping",
            result: Ok(()),
        }];
        let synced = if self.cache.is_synced() {
            Ok(())
        } else {
            Err("the cache is being filled".to_owned())
        };
        checks.push(Check {
            name: "informer-sync",
            result: synced,
        });
        if endpoint != "livez" {
            checks.push(Check {
                name: "store",
                result: self.registry.backend.health(),
            });
        }
        if endpoint == "readyz" {
            let stopping = self.registry.stop.is_cancelled();
            let result = if stopping {
                Err("the server is shutting down".to_owned())
            } else {
                Ok(())
            };
            checks.push(Check {
                name: "shutdown",
                result,
            });
        }
        self.slis.note(endpoint, &checks);
        checks
    }
}

/// 200 with an ETag, or 304.
fn cached(
    document: &Document,
    content_type: &'static str,
    headers: &HeaderMap,
) -> Response<ResponseBody> {
    let known = headers
        .get(IF_NONE_MATCH)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    let same = known
        .split(',')
        .any(|tag| tag.trim().trim_start_matches("W/") == document.etag);
    let mut response = if same {
        respond::bytes(304, content_type, Bytes::new())
    } else if document.packed && respond::accepts_gzip(headers) {
        let mut response = respond::bytes(200, content_type, document.bytes.clone());
        response
            .headers_mut()
            .insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response
    } else if document.packed {
        respond::bytes(200, content_type, respond::gunzip(&document.bytes))
    } else {
        respond::bytes(200, content_type, document.bytes.clone())
    };
    if let Ok(etag) = HeaderValue::from_str(&document.etag) {
        response.headers_mut().insert(ETAG, etag);
    }
    response
}
