//! Where Services lead: EndpointSlices and Endpoints from pods, and slices mirrored from hand-made Endpoints.

mod legacy;
mod mirroring;
mod plan;
mod slices;
mod translate;
mod trigger;

use std::sync::Arc;

use balsa_client::{Delta, Key, WorkQueue};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::ResourceExt;

use crate::context::Shared;
use crate::support::selector::map_matches;

pub(crate) use legacy::run as run_endpoints;
pub(crate) use mirroring::run as run_mirroring;
pub(crate) use slices::run as run_slices;

/// Queues the Services that a pod's change concerns.
fn queue_services_of_pods(context: &Shared, queue: &WorkQueue<Key>) {
    let (this, queue) = (Arc::clone(context), queue.clone());
    context.informers.pods.on_change(move |delta| {
        let pod = &**delta.object();
        if let Delta::Updated { old, new } = delta
            && !translate::matters(old, new)
        {
            return;
        }
        for service in this
            .informers
            .services
            .list_namespace(&pod.namespace().unwrap_or_default())
        {
            let before = delta.old().is_some_and(|old| selects(&service, old));
            if before || selects(&service, pod) {
                queue.add(Key::of(&*service));
            }
        }
    });
}

fn selects(service: &Service, pod: &Pod) -> bool {
    let selector = service
        .spec
        .as_ref()
        .and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| map_matches(selector, pod.metadata.labels.as_ref()))
}

/// True for Services whose endpoints are made from pods.
fn has_selector(service: &Service) -> bool {
    let Some(spec) = &service.spec else {
        return false;
    };
    spec.type_.as_deref() != Some("ExternalName")
        && spec.selector.as_ref().is_some_and(|s| !s.is_empty())
}

fn selected_pods(context: &Shared, service: &Service) -> Vec<Arc<Pod>> {
    let pods = context
        .informers
        .pods
        .list_namespace(&service.namespace().unwrap_or_default());
    pods.into_iter()
        .filter(|pod| selects(service, pod))
        .collect()
}
