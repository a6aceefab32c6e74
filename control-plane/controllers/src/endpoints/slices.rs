//! EndpointSlices of Services with selectors.

use std::collections::HashSet;
use std::sync::Arc;

use balsa_client::{Key, Outcome, WorkQueue};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use kube::api::{DeleteParams, PostParams};

use super::plan::{Group, MANAGED_BY, Plan, SERVICE_NAME, Template, group, plan};
use super::{has_selector, queue_services_of_pods, selected_pods, translate, trigger};
use crate::context::Shared;
use crate::error::{Result, namespace_terminating, unless_gone};
use crate::informers::slices_of;
use crate::support::expectations::Expectations;
use crate::support::{owner, pods};

const MANAGER: &str = "endpointslice-controller.k8s.io";

pub(crate) async fn run(context: Shared) {
    let queue: WorkQueue<Key> = WorkQueue::default();
    let expectations = Arc::new(Expectations::default());
    let services = queue.clone();
    context
        .informers
        .services
        .on_change(move |delta| services.add(Key::of(&**delta.object())));
    follow_slices(&context, MANAGER, &queue, &expectations);
    queue_services_of_pods(&context, &queue);
    context.informers.services.synced().await;
    context.informers.endpoint_slices.synced().await;
    context.informers.pods.synced().await;
    context.informers.nodes.synced().await;
    let this = Arc::clone(&context);
    context
        .work("endpointslice", queue, move |key| {
            let (this, expectations) = (Arc::clone(&this), Arc::clone(&expectations));
            async move { reconcile(&this, &expectations, key).await }
        })
        .await;
}

/// Queues the Service of a manager's slice when somebody changes it, and notes those that were created.
pub(super) fn follow_slices(
    context: &Shared,
    manager: &'static str,
    queue: &WorkQueue<Key>,
    expectations: &Arc<Expectations>,
) {
    let (queue, expectations) = (queue.clone(), Arc::clone(expectations));
    context.informers.endpoint_slices.on_change(move |delta| {
        let slice = &**delta.object();
        if slice.labels().get(MANAGED_BY).map(String::as_str) != Some(manager) {
            return;
        }
        let Some(service) = slice.labels().get(SERVICE_NAME) else {
            return;
        };
        let key = Key::new(slice.namespace().unwrap_or_default(), service.clone());
        if matches!(delta, balsa_client::Delta::Added(_)) {
            expectations.created(&key, 1);
        }
        queue.add(key);
    });
}

/// A manager's slices of a Service.
pub(super) fn existing(context: &Shared, key: &Key, manager: &str) -> Vec<Arc<EndpointSlice>> {
    let mut slices = context
        .informers
        .slices_by_service
        .get(&slices_of(&key.namespace, &key.name));
    slices.retain(|slice| {
        slice.labels().get(MANAGED_BY).map(String::as_str) == Some(manager)
            && slice.metadata.deletion_timestamp.is_none()
    });
    slices
}

async fn reconcile(context: &Shared, expectations: &Expectations, key: Key) -> Result<Outcome> {
    let Some(service) = context.informers.services.get(&key.namespace, &key.name) else {
        // The slices are owned by the Service and go with it.
        expectations.forget(&key);
        return Ok(Outcome::Done);
    };
    if !has_selector(&service) || service.metadata.deletion_timestamp.is_some() {
        return Ok(Outcome::Done);
    }
    if !expectations.satisfied(&key) {
        // The slices made last time are not in the cache; their arrival queues the Service again.
        return Ok(Outcome::Done);
    }
    let families = translate::families(&service);
    let pods = selected_pods(context, &service);
    let wanted = wanted(context, &service, &pods, &families);
    let mut plan = plan(
        &existing(context, &key, MANAGER),
        wanted,
        &families,
        &template(&service, &key),
    );
    for slice in plan.create.iter_mut().chain(&mut plan.update) {
        trigger::stamp(&mut slice.metadata, &service, &pods);
    }
    carry_out(context, expectations, &key, plan).await
}

fn wanted(context: &Shared, service: &Service, pods: &[Arc<Pod>], families: &[&str]) -> Vec<Group> {
    let of_family = |family: &&str| {
        let endpoints = pods.iter().filter_map(|pod| {
            let node = context.informers.nodes.get("", pods::node_name(pod));
            let endpoint = translate::endpoint(service, pod, family, node.as_deref())?;
            Some((translate::ports(service, pod), endpoint))
        });
        group(family, endpoints)
    };
    families.iter().flat_map(of_family).collect()
}

fn template(service: &Service, key: &Key) -> Template {
    let mut labels = translate::labels(service);
    labels.insert(SERVICE_NAME.into(), key.name.clone());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    Template {
        namespace: key.namespace.clone(),
        service: key.name.clone(),
        labels,
        annotations: None,
        owner: owner::controller_ref(service),
    }
}

/// Writes; new slices first, so that no endpoint is missing in between.
pub(super) async fn carry_out(
    context: &Shared,
    expectations: &Expectations,
    key: &Key,
    plan: Plan,
) -> Result<Outcome> {
    let api = context.api::<EndpointSlice>(&key.namespace);
    if !plan.create.is_empty() {
        expectations.expect(key, plan.create.len(), HashSet::new());
    }
    let mut failed = None;
    for slice in &plan.create {
        if let Err(error) = api.create(&PostParams::default(), slice).await {
            expectations.created(key, 1);
            if !namespace_terminating(&error) {
                failed.get_or_insert(error);
            }
        }
    }
    if let Some(error) = failed {
        return Err(error.into());
    }
    for slice in &plan.update {
        api.replace(&slice.name_any(), &PostParams::default(), slice)
            .await?;
    }
    for slice in &plan.delete {
        unless_gone(
            api.delete(&slice.name_any(), &DeleteParams::default())
                .await,
        )?;
    }
    Ok(Outcome::Done)
}
