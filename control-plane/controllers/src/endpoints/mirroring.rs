//! EndpointSlices for Services without a selector, from the Endpoints people made for them.

use std::sync::Arc;

use balsa_client::{Key, Outcome, WorkQueue};
use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort};
use kube::ResourceExt;

use super::plan::{Group, MANAGED_BY, Plan, SERVICE_NAME, Template, group, plan};
use super::slices::{carry_out, existing, follow_slices};
use crate::context::Shared;
use crate::error::Result;
use crate::informers::slices_of;
use crate::support::expectations::Expectations;
use crate::support::owner;

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Annotations that speak of the Endpoints themselves.
const OWN_ANNOTATIONS: [&str; 2] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    "endpoints.kubernetes.io/last-change-trigger-time",
];
/// Addresses mirrored of one subset at most.
const CAPACITY: usize = 1000;

pub(crate) async fn run(context: Shared) {
    let queue: WorkQueue<Key> = WorkQueue::default();
    let expectations = Arc::new(Expectations::default());
    let endpoints = queue.clone();
    context
        .informers
        .endpoints
        .on_change(move |delta| endpoints.add(Key::of(&**delta.object())));
    let services = queue.clone();
    context
        .informers
        .services
        .on_change(move |delta| services.add(Key::of(&**delta.object())));
    follow_slices(&context, MANAGER, &queue, &expectations);
    context.informers.services.synced().await;
    context.informers.endpoints.synced().await;
    context.informers.endpoint_slices.synced().await;
    let this = Arc::clone(&context);
    context
        .work("endpointslice-mirroring", queue, move |key| {
            let (this, expectations) = (Arc::clone(&this), Arc::clone(&expectations));
            async move { reconcile(&this, &expectations, key).await }
        })
        .await;
}

async fn reconcile(context: &Shared, expectations: &Expectations, key: Key) -> Result<Outcome> {
    if !expectations.satisfied(&key) {
        return Ok(Outcome::Done);
    }
    let service = context.informers.services.get(&key.namespace, &key.name);
    let endpoints = context.informers.endpoints.get(&key.namespace, &key.name);
    let existing = existing(context, &key, MANAGER);
    let mirrored = match (&service, &endpoints) {
        (Some(service), Some(endpoints)) => {
            to_be_mirrored(service, endpoints) && !has_own_slices(context, &key)
        }
        _ => false,
    };
    let plan = match endpoints.filter(|_| mirrored) {
        Some(endpoints) => {
            let wanted = wanted(&endpoints);
            let mut types: Vec<&str> = Vec::new();
            if wanted.is_empty() && !existing.is_empty() {
                types.extend(existing.first().map(|slice| slice.address_type.as_str()));
            }
            plan(&existing, wanted, &types, &template(&endpoints, &key))
        }
        None => Plan {
            delete: existing,
            ..Plan::default()
        },
    };
    carry_out(context, expectations, &key, plan).await
}

fn to_be_mirrored(service: &Service, endpoints: &Endpoints) -> bool {
    let selector = service
        .spec
        .as_ref()
        .and_then(|spec| spec.selector.as_ref());
    selector.is_none_or(|selector| selector.is_empty())
        && service.metadata.deletion_timestamp.is_none()
        && endpoints.metadata.deletion_timestamp.is_none()
        && endpoints.labels().get(SKIP).map(String::as_str) != Some("true")
        && !endpoints.annotations().contains_key(LEADER)
}

/// The API servers publish themselves as `kubernetes` in slices of their own.
fn has_own_slices(context: &Shared, key: &Key) -> bool {
    key.namespace == "default"
        && key.name == "kubernetes"
        && context
            .informers
            .slices_by_service
            .get(&slices_of(&key.namespace, &key.name))
            .iter()
            .any(|slice| slice.labels().get(MANAGED_BY).map(String::as_str) != Some(MANAGER))
}

fn template(endpoints: &Endpoints, key: &Key) -> Template {
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.into(), key.name.clone());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    let mut annotations = endpoints.annotations().clone();
    annotations.retain(|name, _| !OWN_ANNOTATIONS.contains(&name.as_str()));
    Template {
        namespace: key.namespace.clone(),
        service: key.name.clone(),
        labels,
        annotations: Some(annotations),
        owner: owner::controller_ref(endpoints),
    }
}

fn wanted(endpoints: &Endpoints) -> Vec<Group> {
    let mut pairs: Vec<(&str, Vec<EndpointPort>, Endpoint)> = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports: Vec<EndpointPort> = subset
            .ports
            .iter()
            .flatten()
            .map(|port| EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(port.port),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
                app_protocol: port.app_protocol.clone(),
            })
            .collect();
        let ready = subset
            .addresses
            .iter()
            .flatten()
            .map(|address| (address, true));
        let unready = subset
            .not_ready_addresses
            .iter()
            .flatten()
            .map(|address| (address, false));
        for (address, ready) in ready.chain(unready).take(CAPACITY) {
            let family = if address.ip.contains(':') {
                "IPv6"
            } else {
                "IPv4"
            };
            pairs.push((family, ports.clone(), endpoint(address, ready)));
        }
    }
    ["IPv4", "IPv6"]
        .into_iter()
        .flat_map(|family| {
            let of_family = pairs.iter().filter(|(own, _, _)| *own == family);
            group(
                family,
                of_family.map(|(_, ports, endpoint)| (ports.clone(), endpoint.clone())),
            )
        })
        .collect()
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            ..EndpointConditions::default()
        }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::api::core::v1::EndpointSubset;

    use super::*;

    fn endpoints(ips: &[&str], unready: &[&str]) -> Endpoints {
        let list = |ips: &[&str]| {
            let address = |ip: &&str| EndpointAddress {
                ip: (*ip).into(),
                ..EndpointAddress::default()
            };
            Some(ips.iter().map(address).collect())
        };
        let subset = EndpointSubset {
            addresses: list(ips),
            not_ready_addresses: list(unready),
            ..EndpointSubset::default()
        };
        Endpoints {
            subsets: Some(vec![subset]),
            ..Endpoints::default()
        }
    }

    #[test]
    fn addresses_are_mirrored_by_family_with_their_readiness() {
        let groups = wanted(&endpoints(&["192.0.2.1", "2001:db8::1"], &["192.0.2.2"]));
        let families: Vec<&str> = groups
            .iter()
            .map(|group| group.address_type.as_str())
            .collect();
        assert_eq!(families, ["IPv4", "IPv6"]);
        let ready: Vec<_> = groups[0]
            .endpoints
            .iter()
            .map(|e| e.conditions.as_ref().unwrap().ready)
            .collect();
        assert_eq!(ready, [Some(true), Some(false)]);
    }

    #[test]
    fn labels_and_annotations_are_mirrored_but_not_what_was_applied() {
        let mut endpoints = endpoints(&["192.0.2.1"], &[]);
        endpoints.labels_mut().insert("l".into(), "v".into());
        for name in ["a", OWN_ANNOTATIONS[0]] {
            endpoints.annotations_mut().insert(name.into(), "v".into());
        }
        let template = template(&endpoints, &Key::new("default", "web"));
        assert_eq!(template.labels["l"], "v");
        assert_eq!(
            template.annotations,
            Some([("a".into(), "v".into())].into())
        );
    }

    #[test]
    fn services_with_selectors_and_marked_endpoints_are_left_alone() {
        let mut marked = endpoints(&[], &[]);
        assert!(to_be_mirrored(&Service::default(), &marked));
        marked.labels_mut().insert(SKIP.into(), "true".into());
        assert!(!to_be_mirrored(&Service::default(), &marked));
        let mut selecting = Service::default();
        selecting.spec.get_or_insert_default().selector = Some([("a".into(), "b".into())].into());
        assert!(!to_be_mirrored(&selecting, &endpoints(&[], &[])));
    }
}
