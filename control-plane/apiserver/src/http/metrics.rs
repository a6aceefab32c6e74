//! Metrics under the names that Kubernetes dashboards query.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::request_info::RequestInfo;

/// Media type of [`Metrics::text`].
pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// `component` of all requests.
const COMPONENT: &str = "apiserver";

/// Labels of a finished request.
#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    verb: String,
    dry_run: &'static str,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
    component: &'static str,
    code: u16,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DurationLabels {
    verb: String,
    dry_run: &'static str,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
    component: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct InflightLabels {
    request_kind: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResourceLabels {
    group: String,
    resource: String,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct BuildLabels {
    git_version: &'static str,
    major: &'static str,
    minor: &'static str,
    platform: &'static str,
}

/// What the series of finished requests differ in.
#[derive(Hash, PartialEq, Eq)]
struct Sort<'a> {
    verb: &'static str,
    group: &'a str,
    version: &'a str,
    resource: &'a str,
    subresource: &'a str,
    scope: &'static str,
    code: u16,
}

/// The series of requests of one sort. They are looked up at each request, which the labels of a [`Family`] are too
/// costly for.
struct Series {
    verb: &'static str,
    labels: RequestLabels,
    count: Counter,
    /// Watches have none.
    duration: Option<Histogram>,
}

impl Series {
    fn sort(&self) -> Sort<'_> {
        Sort {
            verb: self.verb,
            group: &self.labels.group,
            version: &self.labels.version,
            resource: &self.labels.resource,
            subresource: &self.labels.subresource,
            scope: self.labels.scope,
            code: self.labels.code,
        }
    }

    fn observe(&self, took: Duration) {
        self.count.inc();
        if let Some(duration) = &self.duration {
            duration.observe(took.as_secs_f64());
        }
    }
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
    reading: Gauge,
    writing: Gauge,
    /// By the hash of what they differ in.
    series: RwLock<HashMap<u64, Vec<Series>>>,
    hasher: RandomState,
    objects: Family<ResourceLabels, Gauge>,
    watchers: Family<ResourceLabels, Gauge>,
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
        let inflight = Family::<InflightLabels, Gauge>::default();
        let at_work = |request_kind| {
            let labels = InflightLabels { request_kind };
            inflight.get_or_create(&labels).clone()
        };
        let (reading, writing) = (at_work("readOnly"), at_work("mutating"));
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
        let (objects, watchers) = (Family::default(), Family::default());
        registry.register(
            "apiserver_resource_objects",
            "Objects held, by resource",
            objects.clone(),
        );
        registry.register(
            "apiserver_registered_watchers",
            "Watches open now, by resource",
            watchers.clone(),
        );
        let build = Family::<BuildLabels, Gauge>::default();
        registry.register(
            "kubernetes_build_info",
            "The version that is served; always 1",
            build.clone(),
        );
        let labels = BuildLabels {
            git_version: "v1.35.0+balsa",
            major: "1",
            minor: "35",
            platform: concat!("linux/", "amd64"),
        };
        build.get_or_create(&labels).set(1);
        Self {
            registry: Mutex::new(registry),
            requests,
            durations,
            reading,
            writing,
            series: RwLock::default(),
            hasher: RandomState::new(),
            objects,
            watchers,
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
        if info.is_read_only() {
            self.reading.clone()
        } else {
            self.writing.clone()
        }
    }

    /// Notes how many objects and watchers a resource has.
    pub fn objects(&self, group: &str, resource: &str, objects: usize, watchers: usize) {
        let labels = ResourceLabels {
            group: group.to_owned(),
            resource: resource.to_owned(),
        };
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.objects.get_or_create(&labels).set(number(objects));
        self.watchers.get_or_create(&labels).set(number(watchers));
    }

    /// Counts a finished request. `known` says that the resource exists: labels must not come from foreign
    /// paths.
    pub fn finished(&self, info: &RequestInfo, known: bool, code: u16, took: Duration) {
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
        fn of(text: &str, known: bool) -> &str {
            if known { text } else { "" }
        }
        let sort = Sort {
            verb: info.verb,
            group: of(&info.group, known),
            version: of(&info.version, known),
            resource: of(&info.resource, known),
            subresource: of(&info.subresource, known),
            scope,
            code,
        };
        let hash = self.hasher.hash_one(&sort);
        let known_series = self.series.read();
        let found = known_series.get(&hash).into_iter().flatten();
        if let Some(series) = found.into_iter().find(|s| s.sort() == sort) {
            return series.observe(took);
        }
        drop(known_series);
        // Whoever comes here at the same time gets the same counters.
        let series = self.series_of(&sort);
        series.observe(took);
        self.series.write().entry(hash).or_default().push(series);
    }

    fn series_of(&self, sort: &Sort<'_>) -> Series {
        let labels = RequestLabels {
            verb: sort.verb.to_ascii_uppercase(),
            dry_run: "",
            group: sort.group.to_owned(),
            version: sort.version.to_owned(),
            resource: sort.resource.to_owned(),
            subresource: sort.subresource.to_owned(),
            scope: sort.scope,
            component: COMPONENT,
            code: sort.code,
        };
        let duration = (sort.verb != "watch").then(|| {
            let labels = DurationLabels {
                verb: labels.verb.clone(),
                dry_run: "",
                group: labels.group.clone(),
                version: labels.version.clone(),
                resource: labels.resource.clone(),
                subresource: labels.subresource.clone(),
                scope: sort.scope,
                component: COMPONENT,
            };
            self.durations.get_or_create(&labels).clone()
        });
        Series {
            verb: sort.verb,
            count: self.requests.get_or_create(&labels).clone(),
            labels,
            duration,
        }
    }

    /// The text that Prometheus reads.
    #[must_use]
    pub fn text(&self) -> String {
        encode(&self.registry.lock())
    }
}

/// The text of a registry's metrics, in [`MEDIA_TYPE`].
pub(super) fn encode(registry: &Registry) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = text::encode(&mut out, registry);
    classic(&out)
}

/// OpenMetrics in the older text format, which all scrapers and upstream's own tools read: there a counter's
/// header names it with `_total`.
fn classic(open: &str) -> String {
    let counters: Vec<&str> = open
        .lines()
        .filter_map(|l| l.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();
    let mut out = String::with_capacity(open.len());
    for line in open.lines() {
        let header = ["# HELP ", "# TYPE "]
            .iter()
            .find_map(|start| Some((*start, line.strip_prefix(start)?.split_once(' ')?)));
        match header {
            Some((start, (name, rest))) if counters.contains(&name) => {
                out.extend([start, name, "_total ", rest]);
            }
            _ if line == "# EOF" || line.starts_with("# UNIT ") => continue,
            _ => out.push_str(line),
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_named_in_full_by_their_headers() {
        let metrics = Metrics::default();
        metrics.finished(&RequestInfo::default(), false, 200, Duration::ZERO);
        let text = metrics.text();
        assert!(
            text.contains("# TYPE apiserver_request_total counter\n"),
            "{text}"
        );
        assert!(text.contains("\napiserver_request_total{"), "{text}");
        assert!(!text.contains("# EOF"), "{text}");
        assert!(text.contains("# TYPE apiserver_request_duration_seconds histogram\n"));
    }
}
