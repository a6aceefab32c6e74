//! Asking for metrics: resource metrics of pods, and custom and external ones where an API of them is installed.

use std::collections::BTreeMap;

use balsa_api::duration;
use balsa_api::kinds::walk::Walk;
use balsa_api::quantity::Quantity;
use http::Request;
use jiff::{SignedDuration, Timestamp};
use kube::Client;
use serde_json::Value;

use super::replicas::{Metrics, PodMetric};
use crate::error::{ApiError, message};

/// Window of metrics that do not say theirs.
const USUAL_WINDOW: i64 = 60;

/// Resource metrics as an answer of `metrics.k8s.io` tells them: the sum of a pod's containers, or one of them.
pub(super) fn read_resource(
    list: &Value,
    resource: &str,
    container: Option<&str>,
) -> Result<Metrics, String> {
    let mut metrics = Metrics::new();
    for item in list["items"].items() {
        let name = item["metadata"]["name"].text();
        let mut total: i64 = 0;
        let mut found = false;
        let mut complete = true;
        for measured in item["containers"].items() {
            if container.is_some_and(|wanted| measured["name"].text() != wanted) {
                continue;
            }
            found = true;
            // Nothing said is not the same as nothing used.
            let usage = measured["usage"].get(resource);
            match usage.map(Quantity::from_value) {
                Some(Ok(amount)) => total = total.saturating_add(amount.milli_value()),
                _ => complete = false,
            }
        }
        if let Some(container) = container.filter(|_| !found) {
            let namespace = item["metadata"]["namespace"].text();
            return Err(format!(
                "container {container} not present in metrics for pod {namespace}/{name}"
            ));
        }
        if found && complete {
            let metric = PodMetric {
                value: total,
                at: time(&item["timestamp"]),
                window: window(&item["window"]),
            };
            metrics.insert(name.to_owned(), metric);
        }
    }
    if metrics.is_empty() {
        return Err("no metrics returned from resource metrics API".to_owned());
    }
    Ok(metrics)
}

/// A `MetricValueList` by the names of what it describes.
fn read_custom(list: &Value) -> Metrics {
    let metric = |item: &Value| PodMetric {
        value: milli(&item["value"]),
        at: time(&item["timestamp"]),
        window: SignedDuration::from_secs(item["windowSeconds"].int().unwrap_or(USUAL_WINDOW)),
    };
    list["items"]
        .items()
        .iter()
        .map(|item| {
            (
                item["describedObject"]["name"].text().to_owned(),
                metric(item),
            )
        })
        .collect()
}

fn milli(value: &Value) -> i64 {
    Quantity::from_value(value).map_or(0, |q| q.milli_value())
}

fn time(value: &Value) -> Timestamp {
    value.text().parse().unwrap_or_default()
}

fn window(value: &Value) -> SignedDuration {
    let nanos = duration::parse_nanos(value.text());
    nanos.map_or(SignedDuration::from_secs(USUAL_WINDOW), |n| {
        SignedDuration::from_nanos(n)
    })
}

fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn query(pairs: &[(&str, &str)]) -> String {
    let pairs: Vec<String> = pairs
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{name}={}", encode(value)))
        .collect();
    if pairs.is_empty() {
        String::new()
    } else {
        format!("?{}", pairs.join("&"))
    }
}

/// Reads a document from the API.
pub(super) async fn get(client: &Client, url: &str) -> Result<Value, kube::Error> {
    let request = Request::get(url)
        .body(Vec::new())
        .map_err(kube::Error::HttpError)?;
    client.request(request).await
}

/// A metric's name and selector.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) name: &'a str,
    pub(super) selector: &'a str,
}

/// The metrics of one namespace.
pub(super) struct Source<'a> {
    pub(super) client: &'a Client,
    pub(super) namespace: &'a str,
}

impl Source<'_> {
    /// What pods use of a resource.
    pub(super) async fn resource(
        &self,
        resource: &str,
        container: Option<&str>,
        pods: &str,
    ) -> Result<Metrics, String> {
        let url = format!(
            "/apis/metrics.k8s.io/v1beta1/namespaces/{}/pods{}",
            self.namespace,
            query(&[("labelSelector", pods)])
        );
        let list = get(self.client, &url).await;
        list.map_err(|error| message(&error))
            .and_then(|list| read_resource(&list, resource, container))
            .map_err(|why| format!("unable to get metrics for resource {resource}: {why}"))
    }

    /// A custom metric of all selected pods.
    pub(super) async fn of_pods(&self, metric: Wanted<'_>, pods: &str) -> Result<Metrics, String> {
        let path = format!("namespaces/{}/pods/*/{}", self.namespace, metric.name);
        let query = query(&[
            ("labelSelector", pods),
            ("metricLabelSelector", metric.selector),
        ]);
        let list = self.custom(&path, &query).await;
        let found = list.map(|list| read_custom(&list));
        match found {
            Ok(found) if !found.is_empty() => Ok(found),
            Ok(_) => Err(format!(
                "unable to get metric {}: no metrics returned from custom metrics API",
                metric.name
            )),
            Err(why) => Err(format!("unable to get metric {}: {why}", metric.name)),
        }
    }

    /// A custom metric of one object, in thousandths. `resource` is `plural` or `plural.group`.
    pub(super) async fn of_object(
        &self,
        metric: Wanted<'_>,
        resource: &str,
        name: &str,
    ) -> Result<i64, String> {
        let path = if resource == "namespaces" {
            format!("namespaces/{name}/metrics/{}", metric.name)
        } else {
            let namespace = self.namespace;
            format!("namespaces/{namespace}/{resource}/{name}/{}", metric.name)
        };
        let query = query(&[("metricLabelSelector", metric.selector)]);
        let failed = |why: String| {
            format!(
                "unable to get metric {}: {resource} on {} {name}/{why}",
                metric.name, self.namespace
            )
        };
        let list = self.custom(&path, &query).await.map_err(failed)?;
        match list["items"].items() {
            [] => Err(failed("no metrics returned".to_owned())),
            [first, ..] => Ok(milli(&first["value"])),
        }
    }

    async fn custom(&self, path: &str, query: &str) -> Result<Value, String> {
        let mut missing = false;
        for version in ["v1beta2", "v1beta1"] {
            let base = format!("/apis/custom.metrics.k8s.io/{version}");
            match get(self.client, &format!("{base}/{path}{query}")).await {
                Ok(list) => return Ok(list),
                // The other version may be there, or the metric may not.
                Err(error) if error.is_not_found() => {
                    missing = get(self.client, &base).await.is_err();
                    if !missing {
                        return Err(message(&error));
                    }
                }
                Err(error) => return Err(message(&error)),
            }
        }
        debug_assert!(missing, "both versions were asked");
        Err("no custom metrics API (custom.metrics.k8s.io) registered".to_owned())
    }

    /// The values of an external metric, in thousandths.
    pub(super) async fn external(&self, metric: Wanted<'_>) -> Result<Vec<i64>, String> {
        let namespace = self.namespace;
        let query = query(&[("labelSelector", metric.selector)]);
        let url = format!(
            "/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{}{query}",
            metric.name
        );
        let label = format!("{namespace}/{}/{}", metric.name, metric.selector);
        let list = get(self.client, &url).await.map_err(|error| {
            format!(
                "unable to get external metric {label}: unable to fetch metrics from external metrics API: {}",
                message(&error)
            )
        })?;
        let values: Vec<i64> = list["items"]
            .items()
            .iter()
            .map(|item| milli(&item["value"]))
            .collect();
        if values.is_empty() {
            return Err(format!(
                "unable to get external metric {label}: no metrics returned from external metrics API"
            ));
        }
        Ok(values)
    }
}

/// Amounts in thousandths by pod.
pub(super) type Requests = BTreeMap<String, i64>;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_uses_what_its_containers_use() {
        let list = json!({"items": [{"metadata": {"name": "p", "namespace": "d"}, "timestamp": "2026-01-01T00:00:00Z",
            "window": "15.5s", "containers": [{"name": "a", "usage": {"cpu": "250m"}}, {"name": "b", "usage": {"cpu": "500000001n"}}]}]});
        let metric = read_resource(&list, "cpu", None).unwrap()["p"];
        assert_eq!(metric.value, 751);
        assert_eq!(metric.window, SignedDuration::from_millis(15_500));
        assert_eq!(
            read_resource(&list, "cpu", Some("a")).unwrap()["p"].value,
            250
        );
        assert_eq!(
            read_resource(&list, "cpu", Some("x")).unwrap_err(),
            "container x not present in metrics for pod d/p"
        );
        assert!(read_resource(&list, "memory", None).is_err());
    }

    #[test]
    fn selectors_are_encoded() {
        assert_eq!(
            query(&[("labelSelector", "a=b,c in (d)")]),
            "?labelSelector=a%3Db%2Cc%20in%20%28d%29"
        );
        assert_eq!(query(&[("labelSelector", "")]), "");
    }
}
