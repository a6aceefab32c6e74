//! From wanted endpoints and existing slices to as few writes as possible. Pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;
use kube::api::ObjectMeta;

/// Endpoints in one slice at most.
pub(super) const MAX_ENDPOINTS: usize = 100;
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(super) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";

/// Endpoints with the same ports.
pub(super) struct Group {
    pub(super) address_type: String,
    pub(super) ports: Vec<EndpointPort>,
    pub(super) endpoints: Vec<Endpoint>,
}

/// What all slices of a Service have.
pub(super) struct Template {
    pub(super) namespace: String,
    pub(super) service: String,
    /// Complete labels.
    pub(super) labels: BTreeMap<String, String>,
    /// Complete annotations; `None` leaves them alone.
    pub(super) annotations: Option<BTreeMap<String, String>>,
    pub(super) owner: OwnerReference,
}

#[derive(Default)]
pub(super) struct Plan {
    pub(super) create: Vec<EndpointSlice>,
    pub(super) update: Vec<EndpointSlice>,
    pub(super) delete: Vec<Arc<EndpointSlice>>,
}

/// Groups endpoints by their ports, in a stable order.
pub(super) fn group(
    address_type: &str,
    endpoints: impl IntoIterator<Item = (Vec<EndpointPort>, Endpoint)>,
) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (ports, endpoint) in endpoints {
        match groups.iter_mut().find(|group| group.ports == ports) {
            Some(group) => group.endpoints.push(endpoint),
            None => groups.push(Group {
                address_type: address_type.to_owned(),
                ports,
                endpoints: vec![endpoint],
            }),
        }
    }
    groups
}

/// Keeps endpoints in the slices they are in, fills room, then adds slices. Each address type that is
/// wanted keeps at least one slice, if an empty one.
pub(super) fn plan(
    existing: &[Arc<EndpointSlice>],
    wanted: Vec<Group>,
    types: &[&str],
    template: &Template,
) -> Plan {
    let mut plan = Plan::default();
    let mut rest: Vec<Arc<EndpointSlice>> = existing.to_vec();
    rest.sort_by_cached_key(|slice| slice.name_any());
    let mut used: Vec<String> = Vec::new();
    for group in wanted {
        let (same, others): (Vec<_>, Vec<_>) = rest.into_iter().partition(|slice| {
            slice.address_type == group.address_type
                && slice.ports.as_deref().unwrap_or_default() == group.ports
        });
        rest = others;
        if !group.endpoints.is_empty() {
            used.push(group.address_type.clone());
        }
        plan_group(&mut plan, same, group, template);
    }
    for address_type in types
        .iter()
        .filter(|wanted| !used.iter().any(|used| used == *wanted))
    {
        // Nothing to lead to: one empty slice says so.
        let same_type = |slice: &&Arc<EndpointSlice>| slice.address_type == **address_type;
        let kept = plan.delete.iter().chain(&rest).find(same_type).cloned();
        match kept {
            Some(slice) => {
                plan.delete.retain(|other| !Arc::ptr_eq(other, &slice));
                rest.retain(|other| !Arc::ptr_eq(other, &slice));
                update(&mut plan, &slice, Vec::new(), Vec::new(), template);
            }
            None => plan
                .create
                .push(new_slice(address_type, Vec::new(), Vec::new(), template)),
        }
    }
    plan.delete.extend(rest);
    plan
}

fn plan_group(
    plan: &mut Plan,
    existing: Vec<Arc<EndpointSlice>>,
    group: Group,
    template: &Template,
) {
    let mut wanted: HashMap<String, Endpoint> = group
        .endpoints
        .into_iter()
        .map(|endpoint| (identity(&endpoint), endpoint))
        .collect();
    // What stays where it is.
    let mut slices: Vec<(Arc<EndpointSlice>, Vec<Endpoint>)> = existing
        .into_iter()
        .map(|slice| {
            let kept = slice
                .endpoints
                .iter()
                .filter_map(|old| wanted.remove(&identity(old)))
                .collect();
            (slice, kept)
        })
        .collect();
    let mut new: Vec<(String, Endpoint)> = wanted.into_iter().collect();
    new.sort_by(|a, b| a.0.cmp(&b.0));
    let mut new = new.into_iter().map(|(_, endpoint)| endpoint);
    // Fill the fullest first, so that slices that are nearly empty may become empty.
    slices.sort_by_key(|(_, endpoints)| std::cmp::Reverse(endpoints.len()));
    for (slice, mut endpoints) in slices {
        let room = MAX_ENDPOINTS.saturating_sub(endpoints.len());
        endpoints.extend(new.by_ref().take(room));
        if endpoints.is_empty() {
            plan.delete.push(slice);
        } else {
            update(plan, &slice, group.ports.clone(), endpoints, template);
        }
    }
    loop {
        let chunk: Vec<Endpoint> = new.by_ref().take(MAX_ENDPOINTS).collect();
        if chunk.is_empty() {
            return;
        }
        plan.create.push(new_slice(
            &group.address_type,
            group.ports.clone(),
            chunk,
            template,
        ));
    }
}

/// A pod by its uid; anything else by its address.
fn identity(endpoint: &Endpoint) -> String {
    let target = endpoint
        .target_ref
        .as_ref()
        .and_then(|target| target.uid.as_deref())
        .unwrap_or_default();
    format!("{target}/{}", endpoint.addresses.join(","))
}

fn update(
    plan: &mut Plan,
    slice: &Arc<EndpointSlice>,
    ports: Vec<EndpointPort>,
    endpoints: Vec<Endpoint>,
    template: &Template,
) {
    let same = slice.endpoints == endpoints
        && slice.ports.as_deref().unwrap_or_default() == ports
        && *slice.labels() == template.labels
        && template
            .annotations
            .as_ref()
            .is_none_or(|wanted| slice.annotations() == wanted);
    if same {
        return;
    }
    let mut changed = (**slice).clone();
    if template.annotations.is_some() {
        changed
            .metadata
            .annotations
            .clone_from(&template.annotations);
    }
    changed.metadata.labels = Some(template.labels.clone());
    changed.ports = Some(ports);
    changed.endpoints = endpoints;
    plan.update.push(changed);
}

fn new_slice(
    address_type: &str,
    ports: Vec<EndpointPort>,
    endpoints: Vec<Endpoint>,
    template: &Template,
) -> EndpointSlice {
    EndpointSlice {
        address_type: address_type.to_owned(),
        ports: Some(ports),
        endpoints,
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", template.service)),
            namespace: Some(template.namespace.clone()),
            labels: Some(template.labels.clone()),
            annotations: template.annotations.clone(),
            owner_references: Some(vec![template.owner.clone()]),
            ..ObjectMeta::default()
        },
    }
}

#[cfg(test)]
mod tests;
