//! APIs that other servers serve: an APIService says which group version lies behind which Service, and requests for
//! it are passed on with the caller's identity in headers, vouched for by the front-proxy certificate.
//!
//! Rules: kube-aggregator.

mod discover;
mod lead;
pub mod merge;
mod proxy;

use std::sync::Arc;
use std::time::Duration;

use balsa_api::kinds::walk::Walk;
use base64::Engine as _;
use rustls::client::ResolvesClientCert;
use serde_json::Value;

use crate::cache::{Cache, keys};
use crate::kinds::Kinds;
use crate::webhook_client::Dialer;

pub(crate) use lead::lead;
pub use merge::RemoteVersion;

/// Group of APIServices.
pub const GROUP: &str = "apiregistration.k8s.io";
/// Resource of APIServices.
pub const PLURAL: &str = "apiservices";
/// Time for one question of ours to such a server.
const PATIENCE: Duration = Duration::from_secs(5);

/// The other servers' APIs, as one server sees them.
pub struct Aggregator {
    kinds: Arc<Kinds>,
    cache: Arc<Cache>,
    outside: Option<Outside>,
    /// Group versions of this server's own that an APIService may replace.
    beside: Vec<RemoteVersion>,
}

/// How other servers are reached.
pub struct Outside {
    /// Opens connections to Services.
    pub dialer: Arc<dyn Dialer>,
    /// The certificate that vouches for the identities in headers.
    pub front_proxy: Arc<dyn ResolvesClientCert>,
}

/// One group version that another server serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remote {
    /// Name of the APIService.
    pub name: String,
    /// Group and version.
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub service: String,
    pub port: u16,
    /// PEM.
    pub ca_bundle: Vec<u8>,
    pub insecure: bool,
    pub available: bool,
    pub group_priority: i64,
    pub version_priority: i64,
}

impl Remote {
    /// From an APIService; `None` for one that is served here.
    pub fn read(object: &Value) -> Option<Self> {
        let spec = &object["spec"];
        let service = &spec["service"];
        if !service.is_object() {
            return None;
        }
        let available = object["status"]["conditions"]
            .items()
            .iter()
            .any(|c| c["type"].text() == "Available" && c["status"].text() == "True");
        Some(Self {
            name: balsa_api::object::name(object).to_owned(),
            group: spec["group"].text().to_owned(),
            version: spec["version"].text().to_owned(),
            namespace: service["namespace"].text().to_owned(),
            service: service["name"].text().to_owned(),
            port: service["port"]
                .int()
                .and_then(|p| u16::try_from(p).ok())
                .unwrap_or(443),
            ca_bundle: base64::engine::general_purpose::STANDARD
                .decode(spec["caBundle"].text())
                .unwrap_or_default(),
            insecure: spec["insecureSkipTLSVerify"].is_true(),
            available,
            group_priority: spec["groupPriorityMinimum"].int().unwrap_or_default(),
            version_priority: spec["versionPriority"].int().unwrap_or_default(),
        })
    }

    /// The name that the server's certificate is for.
    pub fn server_name(&self) -> String {
        format!("{}.{}.svc", self.service, self.namespace)
    }
}

impl Aggregator {
    /// For one server; without a way outside, nothing is passed on.
    #[must_use]
    pub fn new(kinds: Arc<Kinds>, cache: Arc<Cache>, outside: Option<Outside>) -> Self {
        Self {
            kinds,
            cache,
            outside,
            beside: Vec::new(),
        }
    }

    /// With group versions that this server serves where no APIService says that another one does.
    #[must_use]
    pub fn beside(mut self, own: Vec<RemoteVersion>) -> Self {
        self.beside = own;
        self
    }

    /// The server of a group version, when it is another one. What is served here is not passed on.
    pub(crate) fn find(&self, group: &str, version: &str) -> Option<Remote> {
        if group.is_empty() || self.kinds.set().has_version(group, version) {
            return None;
        }
        let name = format!("{version}.{group}");
        let resource = self.cache.resource(GROUP, PLURAL)?;
        Remote::read(&resource.get(&keys::object_key("", &name))?.value())
    }

    /// All group versions that other servers serve.
    fn remotes(&self) -> Vec<Remote> {
        let Some(resource) = self.cache.resource(GROUP, PLURAL) else {
            return Vec::new();
        };
        let set = self.kinds.set();
        resource
            .snapshot("", None)
            .objects
            .iter()
            .filter_map(|stored| Remote::read(&stored.value()))
            .filter(|r| !set.has_version(&r.group, &r.version))
            .collect()
    }
}
