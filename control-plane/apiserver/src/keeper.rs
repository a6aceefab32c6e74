//! What every cluster has, kept by the leader: the system namespaces, Service `kubernetes` in `default`, and
//! its endpoints, which are the servers that are alive.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use balsa_api::object;
use http::{Method, Request};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::backend::Lead;
use crate::http::respond;
use crate::registry::service::{self, ServiceAllocator};
use crate::seam::{Fence, ObjectReader, ServerAddresses, User};
use crate::server::ApiServer;

/// API group of address objects.
const GROUP: &str = "networking.k8s.io";
const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
/// While something could not be written.
const SOON: Duration = Duration::from_millis(250);
const EVERY: Duration = Duration::from_secs(2);

/// See [`ApiServer::keep`].
pub(crate) async fn keep(
    api: &ApiServer,
    addresses: &dyn ServerAddresses,
    stop: CancellationToken,
) {
    let mut failures = 0_u32;
    let mut told = Vec::new();
    loop {
        let servers = sorted(addresses);
        let lead = api.core.registry.backend.lead();
        let wait = if lead.is_me && api.core.cache.is_synced() {
            match reconcile(api, &servers, lead).await {
                Ok(unpublished) => {
                    tell(&mut told, unpublished);
                    failures = 0;
                    EVERY
                }
                Err(why) => {
                    failures += 1;
                    // A new leader may have to try a few times; more than that is worth a word.
                    if failures >= 8 && failures.is_power_of_two() {
                        tracing::warn!(
                            why,
                            failures,
                            "the cluster's own objects cannot be written"
                        );
                    }
                    SOON
                }
            }
        } else {
            SOON
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
            () = changed(addresses, &servers) => {}
        }
    }
}

fn sorted(addresses: &dyn ServerAddresses) -> Vec<SocketAddr> {
    let mut all = addresses.addresses();
    all.sort();
    all
}

/// A server that leaves waits for its address to go.
async fn changed(addresses: &dyn ServerAddresses, known: &[SocketAddr]) {
    while sorted(addresses) == known {
        tokio::time::sleep(SOON).await;
    }
}

/// Says once which servers pods do not find under Service `kubernetes`.
fn tell(told: &mut Vec<SocketAddr>, unpublished: Vec<SocketAddr>) {
    if *told == unpublished {
        return;
    }
    if !unpublished.is_empty() {
        tracing::warn!(
            addresses = ?unpublished,
            "pods cannot reach these addresses of servers: Service \"kubernetes\" goes without them"
        );
    }
    *told = unpublished;
}

/// Endpoints may have it: neither unspecified nor of this machine or this link alone.
fn is_reachable(address: IpAddr) -> bool {
    let local = match address {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(local || address.is_loopback() || address.is_unspecified() || address.is_multicast())
}

/// Returns the addresses of servers that could not be published.
async fn reconcile(
    api: &ApiServer,
    servers: &[SocketAddr],
    lead: Lead,
) -> Result<Vec<SocketAddr>, String> {
    let keeper = Keeper { api, lead };
    for name in NAMESPACES {
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        keeper
            .ensure("", "namespaces", "/api/v1/namespaces", namespace, false)
            .await?;
    }
    crate::flow::keep(api, lead.term).await;
    let services = "/api/v1/namespaces/default/services";
    let first = ServiceAllocator::first(api.core.config.service_cidr).to_string();
    keeper
        .ensure(
            "",
            "services",
            services,
            own_service(&first, api.core.config.secure_port),
            false,
        )
        .await?;
    let config = &api.core.config;
    if !config.client_ca_pem.is_empty() {
        let wanted = extension_authentication(&config.client_ca_pem, &config.front_proxy_ca_pem);
        let path = "/api/v1/namespaces/kube-system/configmaps";
        keeper.ensure("", "configmaps", path, wanted, true).await?;
    }
    keeper.addresses().await?;
    let (alive, unpublished): (Vec<_>, Vec<_>) =
        servers.iter().copied().partition(|a| is_reachable(a.ip()));
    if alive.is_empty() {
        return Ok(unpublished);
    }
    let path = "/api/v1/namespaces/default/endpoints";
    keeper
        .ensure("", "endpoints", path, endpoints(&alive), true)
        .await?;
    let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    keeper
        .ensure(
            "discovery.k8s.io",
            "endpointslices",
            path,
            slice(&alive),
            true,
        )
        .await?;
    Ok(unpublished)
}

struct Keeper<'a> {
    api: &'a ApiServer,
    lead: Lead,
}

impl Keeper<'_> {
    /// Creates an object, or brings what is wanted of it back when `keep` is set.
    async fn ensure(
        &self,
        group: &str,
        plural: &str,
        path: &str,
        wanted: Value,
        keep: bool,
    ) -> Result<(), String> {
        let Some(resource) = self.api.core.cache.resource(group, plural) else {
            return Ok(());
        };
        let (namespace, name) = (object::namespace(&wanted), object::name(&wanted));
        let present = resource
            .get(&crate::cache::keys::object_key(namespace, name))
            .map(|s| s.decode());
        match present {
            None => self.send(Method::POST, path, &wanted).await,
            Some(present) if keep && !contains(&present, &wanted) => {
                let mut new = wanted;
                object::set_resource_version(&mut new, object::resource_version(&present));
                let path = format!("{path}/{}", object::name(&present));
                self.send(Method::PUT, &path, &new).await
            }
            Some(_) => Ok(()),
        }
    }

    /// The range that Services have their addresses from, and an object for every address that is in use: someone may
    /// have deleted it.
    async fn addresses(&self) -> Result<(), String> {
        const PATH: &str = "/apis/networking.k8s.io/v1/servicecidrs";
        let cidr = self.api.core.config.service_cidr.to_string();
        let range = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
            "metadata": {"name": "kubernetes"}, "spec": {"cidrs": [cidr]}});
        self.ensure(GROUP, "servicecidrs", PATH, range.clone(), false)
            .await?;
        let cache = &self.api.core.cache;
        if let Some(present) = cache
            .resource(GROUP, "servicecidrs")
            .and_then(|r| r.get("kubernetes"))
            .map(|s| s.decode())
            && present["status"]["conditions"].is_null()
        {
            let mut ready = present;
            let now = object::format_time(jiff::Timestamp::now());
            ready["status"] = json!({"conditions": [{"type": "Ready", "status": "True", "reason": "",
                "message": "Kubernetes default Service CIDR is ready", "lastTransitionTime": now}]});
            self.send(Method::PUT, &format!("{PATH}/kubernetes/status"), &ready)
                .await?;
        }
        let Some(resource) = cache.resource(GROUP, "ipaddresses") else {
            return Ok(());
        };
        for service in cache.list("", "services", None) {
            for address in service::addresses(&service) {
                if resource.get(&address).is_none() {
                    let wanted = service::address_object(&address, &service);
                    let path = "/apis/networking.k8s.io/v1/ipaddresses";
                    self.send(Method::POST, path, &wanted).await?;
                }
            }
        }
        Ok(())
    }

    async fn send(&self, method: Method, path: &str, body: &Value) -> Result<(), String> {
        let mut request = Request::new(respond::full(body.to_string().into()));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().map_err(|e| format!("{path}: {e}"))?;
        request.headers_mut().insert(
            http::header::USER_AGENT,
            http::HeaderValue::from_static("kube-apiserver"),
        );
        request.extensions_mut().insert(Fence(self.lead.term));
        let user = User {
            name: "system:apiserver".into(),
            groups: vec!["system:masters".into(), "system:authenticated".into()],
            ..User::default()
        };
        let response = self.api.call(request, user).await;
        // 409: somebody was faster, which is as good.
        if response.status().is_success() || response.status().as_u16() == 409 {
            return Ok(());
        }
        let code = response.status();
        let body = response
            .into_body()
            .collect()
            .await
            .map(|b| b.to_bytes())
            .unwrap_or_default();
        Err(format!(
            "{path}: {code}: {}",
            String::from_utf8_lossy(&body)
        ))
    }
}

/// Does `present` have everything of `wanted`? Lists must be equal in length and order.
fn contains(present: &Value, wanted: &Value) -> bool {
    match (present, wanted) {
        (Value::Object(present), Value::Object(wanted)) => wanted
            .iter()
            .all(|(k, w)| present.get(k).is_some_and(|p| contains(p, w))),
        (Value::Array(present), Value::Array(wanted)) => {
            present.len() == wanted.len() && present.iter().zip(wanted).all(|(p, w)| contains(p, w))
        }
        (present, wanted) => present == wanted,
    }
}

/// What aggregated API servers need to know to believe this one.
fn extension_authentication(client_ca: &str, front_proxy_ca: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
        "data": {
            "client-ca-file": client_ca,
            "requestheader-allowed-names": format!("[{:?}]", balsa_identity::FRONT_PROXY_USER),
            "requestheader-client-ca-file": front_proxy_ca,
            "requestheader-extra-headers-prefix": "[\"X-Remote-Extra-\"]",
            "requestheader-group-headers": "[\"X-Remote-Group\"]",
            "requestheader-uid-headers": "[\"X-Remote-Uid\"]",
            "requestheader-username-headers": "[\"X-Remote-User\"]",
        },
    })
}

fn own_service(address: &str, port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {"type": "ClusterIP", "clusterIP": address, "sessionAffinity": "None",
            "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": port}]},
    })
}

fn endpoints(alive: &[SocketAddr]) -> Value {
    let mut by_port: BTreeMap<u16, Vec<Value>> = BTreeMap::new();
    for address in alive {
        by_port
            .entry(address.port())
            .or_default()
            .push(json!({"ip": address.ip().to_string()}));
    }
    let subsets: Vec<Value> = by_port
        .into_iter()
        .map(|(port, addresses)| {
            json!({"addresses": addresses, "ports": [{"name": "https", "port": port, "protocol": "TCP"}]})
        })
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": subsets,
    })
}

fn slice(alive: &[SocketAddr]) -> Value {
    let v6 = alive.iter().all(SocketAddr::is_ipv6);
    let port = alive.first().map_or(6443, SocketAddr::port);
    let endpoints: Vec<Value> = alive
        .iter()
        .filter(|a| a.is_ipv6() == v6)
        .map(|a| json!({"addresses": [a.ip().to_string()], "conditions": {"ready": true}}))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": if v6 { "IPv6" } else { "IPv4" },
        "endpoints": endpoints,
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_addresses_that_endpoints_may_have_are_published() {
        for (address, reachable) in [
            ("10.0.0.1", true),
            ("fd00::1", true),
            ("127.0.0.1", false),
            ("::1", false),
            ("0.0.0.0", false),
            ("169.254.1.1", false),
            ("fe80::1", false),
        ] {
            assert_eq!(
                is_reachable(address.parse().unwrap()),
                reachable,
                "{address}"
            );
        }
    }
}
