//! core/v1 Endpoints of Services with selectors.

use std::collections::BTreeMap;
use std::sync::Arc;

use balsa_client::{Key, Outcome, WorkQueue};
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service,
};
use kube::ResourceExt;
use kube::api::{DeleteParams, ObjectMeta, PostParams, Preconditions};

use super::{has_selector, queue_services_of_pods, selected_pods, translate, trigger};
use crate::context::Shared;
use crate::error::{Result, namespace_terminating, unless_gone};
use crate::support::pods;

/// Addresses in one Endpoints at most; more are cut off and the object says so.
const CAPACITY: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";

pub(crate) async fn run(context: Shared) {
    let queue: WorkQueue<Key> = WorkQueue::default();
    let services = queue.clone();
    context
        .informers
        .services
        .on_change(move |delta| services.add(Key::of(&**delta.object())));
    let endpoints = queue.clone();
    context
        .informers
        .endpoints
        .on_change(move |delta| endpoints.add(Key::of(&**delta.object())));
    queue_services_of_pods(&context, &queue);
    context.informers.services.synced().await;
    context.informers.endpoints.synced().await;
    context.informers.pods.synced().await;
    let this = Arc::clone(&context);
    context
        .work("endpoints", queue, move |key| {
            let this = Arc::clone(&this);
            async move { reconcile(&this, key).await }
        })
        .await;
}

async fn reconcile(context: &Shared, key: Key) -> Result<Outcome> {
    let api = context.api::<Endpoints>(&key.namespace);
    let current = context.informers.endpoints.get(&key.namespace, &key.name);
    let Some(service) = context.informers.services.get(&key.namespace, &key.name) else {
        // Only ours: people and leader election use Endpoints without a Service.
        let ours = current.filter(|current| {
            current.labels().get(MANAGED_BY).map(String::as_str) == Some(MANAGER)
        });
        if let Some(current) = ours {
            let params = DeleteParams {
                preconditions: Some(Preconditions {
                    uid: current.uid(),
                    resource_version: None,
                }),
                ..DeleteParams::default()
            };
            unless_gone(api.delete(&key.name, &params).await)?;
        }
        return Ok(Outcome::Done);
    };
    if !has_selector(&service) || service.metadata.deletion_timestamp.is_some() {
        return Ok(Outcome::Done);
    }
    let pods = selected_pods(context, &service);
    let mut wanted = wanted(&service, &pods, &key);
    match current {
        Some(current) => {
            let annotated = current.annotations().contains_key(OVER_CAPACITY);
            let same = current.subsets.as_deref().unwrap_or_default()
                == wanted.subsets.as_deref().unwrap_or_default()
                && *current.labels() == *wanted.labels()
                && annotated == wanted.annotations().contains_key(OVER_CAPACITY);
            if !same {
                let mut changed = (*current).clone();
                changed.subsets = wanted.subsets;
                changed.metadata.labels = wanted.metadata.labels;
                changed.annotations_mut().remove(OVER_CAPACITY);
                changed
                    .annotations_mut()
                    .extend(wanted.metadata.annotations.unwrap_or_default());
                trigger::stamp(&mut changed.metadata, &service, &pods);
                api.replace(&key.name, &PostParams::default(), &changed)
                    .await?;
            }
        }
        None => {
            trigger::stamp(&mut wanted.metadata, &service, &pods);
            match api.create(&PostParams::default(), &wanted).await {
                Err(error) if namespace_terminating(&error) => {}
                other => {
                    other?;
                }
            }
        }
    }
    Ok(Outcome::Done)
}

/// The Endpoints a Service should have. Pure.
fn wanted(service: &Service, pods: &[Arc<Pod>], key: &Key) -> Endpoints {
    let family = translate::families(service)
        .first()
        .copied()
        .unwrap_or("IPv4");
    let mut pods: Vec<&Arc<Pod>> = pods.iter().collect();
    pods.sort_by_key(|pod| {
        (
            translate::address(pod, family).map(str::to_owned),
            pod.name_any(),
        )
    });
    let mut subsets: Vec<EndpointSubset> = Vec::new();
    let mut addresses = 0;
    let mut truncated = false;
    for pod in pods {
        let Some((address, ready)) = address(service, pod, family) else {
            continue;
        };
        let ports = ports(service, pod);
        if ports.is_empty() && !translate::is_headless(service) {
            continue;
        }
        if addresses == CAPACITY {
            truncated = true;
            break;
        }
        addresses += 1;
        let position = subsets
            .iter()
            .position(|subset| subset.ports.as_deref().unwrap_or_default() == ports);
        let position = position.unwrap_or_else(|| {
            let ports = (!ports.is_empty()).then_some(ports);
            subsets.push(EndpointSubset {
                ports,
                ..EndpointSubset::default()
            });
            subsets.len() - 1
        });
        if let Some(subset) = subsets.get_mut(position) {
            let list = if ready {
                &mut subset.addresses
            } else {
                &mut subset.not_ready_addresses
            };
            list.get_or_insert_default().push(address);
        }
    }
    let mut labels = translate::labels(service);
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    let annotations =
        truncated.then(|| BTreeMap::from([(OVER_CAPACITY.to_owned(), "truncated".to_owned())]));
    Endpoints {
        metadata: ObjectMeta {
            name: Some(key.name.clone()),
            namespace: Some(key.namespace.clone()),
            labels: Some(labels),
            annotations,
            ..ObjectMeta::default()
        },
        subsets: (!subsets.is_empty()).then_some(subsets),
    }
}

/// The pod's address and whether it is ready. Terminating pods count only where unready ones are published.
fn address(service: &Service, pod: &Pod, family: &str) -> Option<(EndpointAddress, bool)> {
    let publish = translate::publishes_not_ready(service);
    if pods::is_terminal(pod) || (pods::is_terminating(pod) && !publish) {
        return None;
    }
    let address = EndpointAddress {
        ip: translate::address(pod, family)?.to_owned(),
        hostname: translate::hostname(service, pod),
        node_name: Some(pods::node_name(pod))
            .filter(|name| !name.is_empty())
            .map(str::to_owned),
        target_ref: Some(translate::target(pod)),
    };
    Some((address, publish || pods::is_ready(pod)))
}

fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let ports = translate::ports(service, pod).into_iter();
    ports
        .map(|port| EndpointPort {
            name: port.name.filter(|name| !name.is_empty()),
            port: port.port.unwrap_or_default(),
            protocol: port.protocol,
            app_protocol: port.app_protocol,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::api::core::v1::{ServicePort, ServiceSpec};

    use super::*;
    use crate::support::pods::tests::pod;

    fn service() -> Service {
        let port = ServicePort {
            port: 80,
            protocol: Some("TCP".into()),
            ..ServicePort::default()
        };
        Service {
            spec: Some(ServiceSpec {
                ports: Some(vec![port]),
                ..ServiceSpec::default()
            }),
            ..Service::default()
        }
    }

    fn pod_at(address: &str, ready: bool) -> Arc<Pod> {
        let mut pod = pod(address, "Running", "a", ready);
        pod.status.as_mut().unwrap().pod_ip = Some(address.into());
        Arc::new(pod)
    }

    #[test]
    fn ready_and_unready_addresses_share_a_subset_in_order() {
        let pods = [
            pod_at("10.0.0.2", true),
            pod_at("10.0.0.1", true),
            pod_at("10.0.0.3", false),
        ];
        let endpoints = wanted(&service(), &pods, &Key::new("default", "web"));
        let subset = &endpoints.subsets.unwrap()[0];
        let ips = |list: &Option<Vec<EndpointAddress>>| -> Vec<String> {
            list.iter()
                .flatten()
                .map(|address| address.ip.clone())
                .collect()
        };
        assert_eq!(ips(&subset.addresses), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(ips(&subset.not_ready_addresses), ["10.0.0.3"]);
    }

    #[test]
    fn a_terminating_pod_is_dropped_unless_unready_ones_are_published() {
        let mut going = (*pod_at("10.0.0.1", true)).clone();
        going.metadata.deletion_timestamp = Some(balsa_client::time::now());
        let going = [Arc::new(going)];
        let mut service = service();
        assert_eq!(wanted(&service, &going, &Key::default()).subsets, None);
        service.spec.as_mut().unwrap().publish_not_ready_addresses = Some(true);
        assert!(wanted(&service, &going, &Key::default()).subsets.is_some());
    }
}
