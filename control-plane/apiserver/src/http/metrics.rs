//! Metrics under the names that Kubernetes dashboards query.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::request_info::RequestInfo;

/// Labels of a finished request.
#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
    code: u16,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DurationLabels {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct InflightLabels {
    request_kind: &'static str,
}

/// Bucket bounds in seconds, upstream's without the finest steps.
const BUCKETS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0,
];

/// Metrics of the API server and of whoever registers more.
pub struct Metrics {
    registry: Mutex<Registry>,
    requests: Family<RequestLabels, Counter>,
    durations: Family<DurationLabels, Histogram, fn() -> Histogram>,
    inflight: Family<InflightLabels, Gauge>,
    /// Watches open now.
    pub watches: Gauge,
    /// Watchers that were cut off for being slow.
    pub slow_watchers: Counter<u64, AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let requests = Family::default();
        let durations =
            Family::new_with_constructor((|| Histogram::new(BUCKETS)) as fn() -> Histogram);
        let inflight = Family::default();
        let watches = Gauge::default();
        let slow_watchers = Counter::default();
        registry.register(
            "apiserver_request",
            "Requests by verb, resource and code",
            requests.clone(),
        );
        registry.register(
            "apiserver_request_duration_seconds",
            "Time from the request to the end of the response's head, without watches",
            durations.clone(),
        );
        registry.register(
            "apiserver_current_inflight_requests",
            "Requests being worked on",
            inflight.clone(),
        );
        registry.register(
            "apiserver_longrunning_requests",
            "Watches open now",
            watches.clone(),
        );
        registry.register(
            "apiserver_terminated_watchers",
            "Watchers cut off for being slow",
            slow_watchers.clone(),
        );
        Self {
            registry: Mutex::new(registry),
            requests,
            durations,
            inflight,
            watches,
            slow_watchers,
        }
    }
}

impl Metrics {
    /// Registers the metrics of another part, under its own prefix.
    pub fn register(&self, add: impl FnOnce(&mut Registry)) {
        add(&mut self.registry.lock());
    }

    /// The gauge of requests in flight.
    #[must_use]
    pub fn inflight(&self, info: &RequestInfo) -> Gauge {
        let request_kind = if info.is_read_only() {
            "readOnly"
        } else {
            "mutating"
        };
        self.inflight
            .get_or_create(&InflightLabels { request_kind })
            .clone()
    }

    /// Counts a finished request. `known` says that the resource exists: labels must not come from foreign
    /// paths.
    pub fn finished(&self, info: &RequestInfo, known: bool, code: u16, took: Duration) {
        let of = |text: &str| {
            if known {
                text.to_owned()
            } else {
                String::new()
            }
        };
        let scope = match (
            info.is_resource && known,
            info.name.is_empty(),
            info.namespace.is_empty(),
        ) {
            (false, _, _) => "",
            (_, false, _) => "resource",
            (_, true, false) => "namespace",
            (_, true, true) => "cluster",
        };
        let (verb, group, version) = (
            info.verb.to_ascii_uppercase(),
            of(&info.group),
            of(&info.version),
        );
        let (resource, subresource) = (of(&info.resource), of(&info.subresource));
        if info.verb != "watch" {
            let labels = DurationLabels {
                verb: verb.clone(),
                group: group.clone(),
                version: version.clone(),
                resource: resource.clone(),
                subresource: subresource.clone(),
                scope,
            };
            self.durations
                .get_or_create(&labels)
                .observe(took.as_secs_f64());
        }
        let labels = RequestLabels {
            verb,
            group,
            version,
            resource,
            subresource,
            scope,
            code,
        };
        self.requests.get_or_create(&labels).inc();
    }

    /// The Prometheus text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = text::encode(&mut out, &self.registry.lock());
        out
    }
}
