//! The leader's part: an APIService for everything that is served here, and whether the servers of the others
//! answer.
//!
//! Rules: kube-aggregator `controllers/autoregister`, `controllers/status/remote`.

use std::collections::BTreeSet;
use std::time::Duration;

use balsa_api::kinds::walk::Walk;
use balsa_api::{discovery, object};
use http::{Method, Request};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{GROUP, PLURAL, Remote};
use crate::cache::keys;
use crate::http::respond;
use crate::seam::{Fence, User};
use crate::server::ApiServer;

/// Between two looks at everything.
const EVERY: Duration = Duration::from_secs(2);
/// Rounds between two probes of a server that has answered.
const PROBE_ROUNDS: u64 = 15;
/// Marks APIServices that the servers keep themselves.
const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";

/// Works while this server leads, until `stop`.
pub(crate) async fn lead(api: &ApiServer, stop: CancellationToken) {
    let mut round = 0_u64;
    loop {
        let lead = api.core.registry.backend.lead();
        if lead.is_me && api.core.cache.is_synced() {
            let leader = Leader {
                api,
                term: lead.term,
            };
            leader.local().await;
            leader.remote(round).await;
            round += 1;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

struct Leader<'a> {
    api: &'a ApiServer,
    term: u64,
}

/// Priorities of a group version that is served here: built-in groups in the order of discovery, before all others.
fn priorities(group: &str, version: &str, custom: bool) -> (i64, i64) {
    if custom {
        return (1000, 100);
    }
    let versions = ["v1", "v2"].iter().position(|v| *v == version);
    let version = match versions {
        Some(index) => 15 + 15 * i64::try_from(index).unwrap_or_default(),
        None => 9,
    };
    if group.is_empty() {
        return (18_000, 1);
    }
    let rank = discovery::group_rank(group).unwrap_or(80);
    (
        17_900 - 50 * i64::try_from(rank).unwrap_or_default(),
        version,
    )
}

/// The APIService of a group version that is served here.
fn local(group: &str, version: &str, custom: bool) -> Value {
    let (group_priority, version_priority) = priorities(group, version, custom);
    let mut spec = json!({"version": version, "groupPriorityMinimum": group_priority, "versionPriority": version_priority});
    if !group.is_empty() {
        spec["group"] = group.into();
    }
    json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": format!("{version}.{group}"),
            "labels": {MANAGED: if custom { "true" } else { "onstart" }}},
        "spec": spec,
    })
}

impl Leader<'_> {
    /// Keeps the APIServices of what is served here.
    async fn local(&self) {
        let core = &self.api.core;
        let Some(resource) = core.cache.resource(GROUP, PLURAL) else {
            return;
        };
        if !core.kinds.is_complete() {
            return;
        }
        let set = core.kinds.set();
        let wanted: BTreeSet<(String, String, bool)> = set
            .served()
            .map(|s| {
                let kind = &s.kind;
                (
                    kind.group.to_string(),
                    kind.version.to_string(),
                    s.custom.is_some(),
                )
            })
            .collect();
        for (group, version, custom) in &wanted {
            let name = format!("{version}.{group}");
            if resource.get(&keys::object_key("", &name)).is_none() {
                let object = local(group, version, *custom);
                self.send(Method::POST, "", &object).await;
            }
        }
        for stored in resource.snapshot("", None).objects {
            let object = stored.value();
            let (group, version) = (
                object["spec"]["group"].text(),
                object["spec"]["version"].text(),
            );
            let managed =
                object::label(&object, MANAGED).is_some() && object["spec"]["service"].is_null();
            let served = wanted.iter().any(|(g, v, _)| g == group && v == version);
            if managed && !served {
                self.send(Method::DELETE, &format!("/{}", stored.name()), &Value::Null)
                    .await;
            }
        }
    }

    /// Finds out which of the others answer.
    async fn remote(&self, round: u64) {
        let core = &self.api.core;
        let Some(resource) = core.cache.resource(GROUP, PLURAL) else {
            return;
        };
        for stored in resource.snapshot("", None).objects {
            let object = stored.value();
            let Some(remote) = Remote::read(&object) else {
                continue;
            };
            if remote.available
                && !round.is_multiple_of(PROBE_ROUNDS)
                && self.endpoints(&remote).is_ok()
            {
                continue;
            }
            let (holds, reason, message) = match self.probe(&remote).await {
                Ok(()) => ("True", "Passed", "all checks passed".to_owned()),
                Err((reason, message)) => ("False", reason, message),
            };
            let mut changed = Value::clone(&object);
            let now = object::format_time(jiff::Timestamp::now());
            if !changed["status"].is_object() {
                changed["status"] = json!({});
            }
            balsa_api::crd::naming::set_condition(
                &mut changed["status"],
                "Available",
                holds,
                reason,
                &message,
                &now,
            );
            if changed["status"] != object["status"] {
                self.send(Method::PUT, &format!("/{}/status", remote.name), &changed)
                    .await;
            }
        }
    }

    /// Is there a Service with somebody behind it?
    fn endpoints(&self, remote: &Remote) -> Result<(), (&'static str, String)> {
        let cache = &self.api.core.cache;
        let get = |plural: &str| {
            let resource = cache.resource("", plural)?;
            let stored = resource.get(&keys::object_key(&remote.namespace, &remote.service))?;
            Some(stored.value())
        };
        let (namespace, name) = (&remote.namespace, &remote.service);
        let Some(service) = get("services") else {
            return Err((
                "ServiceNotFound",
                format!("service/{name} in {namespace:?} is not present"),
            ));
        };
        if service["spec"]["type"].text() == "ExternalName" {
            return Ok(());
        }
        let ports = service["spec"]["ports"].items();
        let Some(port) = ports
            .iter()
            .find(|p| p["port"].int() == Some(i64::from(remote.port)))
        else {
            return Err((
                "ServicePortError",
                format!(
                    "service/{name} in {namespace:?} is not listening on port {}",
                    remote.port
                ),
            ));
        };
        let slices = cache
            .resource("discovery.k8s.io", "endpointslices")
            .map(|r| r.snapshot(namespace, None).objects)
            .unwrap_or_default();
        let ready = slices.iter().any(|stored| {
            let slice = stored.value();
            object::label(&slice, "kubernetes.io/service-name") == Some(name)
                && slice["endpoints"]
                    .items()
                    .iter()
                    .any(|e| e["conditions"]["ready"] != false)
        });
        if ready {
            return Ok(());
        }
        Err((
            "MissingEndpoints",
            format!(
                "endpoints for service/{name} in {namespace:?} have no addresses with port name {:?}",
                port["name"].text()
            ),
        ))
    }

    async fn probe(&self, remote: &Remote) -> Result<(), (&'static str, String)> {
        self.endpoints(remote)?;
        let path = format!("/apis/{}/{}", remote.group, remote.version);
        let place = format!("https://{}:{}{path}", remote.server_name(), remote.port);
        let failed = |why: String| {
            (
                "FailedDiscoveryCheck",
                format!("failing or missing response from {place}: {why}"),
            )
        };
        match self.api.core.aggregation.ask(remote, &path).await {
            Ok((code, _)) if (200..300).contains(&code) => Ok(()),
            Ok((code, _)) => Err(failed(format!("bad status from {place}: {code}"))),
            Err(why) => Err(failed(why)),
        }
    }

    async fn send(&self, method: Method, tail: &str, body: &Value) {
        let path = format!("/apis/{GROUP}/v1/{PLURAL}{tail}");
        let bytes = if body.is_null() {
            bytes::Bytes::new()
        } else {
            body.to_string().into()
        };
        let mut request = Request::new(respond::full(bytes));
        *request.method_mut() = method;
        let Ok(uri) = path.parse() else { return };
        *request.uri_mut() = uri;
        request.headers_mut().insert(
            http::header::USER_AGENT,
            http::HeaderValue::from_static("kube-apiserver"),
        );
        request.extensions_mut().insert(Fence(self.term));
        let user = User {
            name: "system:apiserver".into(),
            groups: vec!["system:masters".into(), "system:authenticated".into()],
            ..User::default()
        };
        let code = self.api.call(request, user).await.status();
        // Looked at again in the next round.
        if !code.is_success() {
            tracing::debug!(path, %code, "an APIService was not written");
        }
    }
}
