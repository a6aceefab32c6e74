//! ResourceQuotas: what is used of them. Admission adds to it when something is made; this gives back what is gone,
//! and counts anew when a quota changes.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use balsa_api::quantity::Quantity as Amount;
use balsa_api::quota::{self, Usage};
use balsa_client::{Delta, Key, Outcome, WorkQueue};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{
    Container, PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaSpec, ResourceQuotaStatus,
    Service,
};
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, PostParams};
use serde_json::{Value, json};

use crate::context::Shared;
use crate::error::{ApiError, Result, unless_gone};
use crate::support::pods;

/// Changes are counted together; an object and the quota it was charged to need not arrive at the same time.
const SETTLE: Duration = Duration::from_millis(150);
/// All quotas are counted anew this often, whatever was missed.
const RESYNC: Duration = Duration::from_secs(5 * 60);

pub(crate) async fn run(context: Shared) {
    let queue: WorkQueue<Key> = WorkQueue::default();
    let quotas = queue.clone();
    context.informers.quotas.on_change(move |delta| {
        if concerns_us(delta) {
            quotas.add(Key::of(&**delta.object()));
        }
    });
    follow_objects(&context, &queue);
    context.informers.quotas.synced().await;
    context.informers.pods.synced().await;
    context.informers.services.synced().await;
    context.informers.claims.synced().await;
    let this = Arc::clone(&context);
    let work = context.work("resourcequota", queue.clone(), move |key| {
        let this = Arc::clone(&this);
        async move { reconcile(&this, key).await }
    });
    tokio::join!(work, follow_kinds(&context, &queue));
}

/// Only new limits; what admission writes into the status is right already.
fn concerns_us(delta: &Delta<ResourceQuota>) -> bool {
    let new = delta.object();
    let hard = |spec: Option<&ResourceQuotaSpec>| spec.and_then(|spec| spec.hard.clone());
    let known = new.status.as_ref().and_then(|status| status.hard.clone());
    !delta.is_delete()
        && (delta.old().is_none_or(|old| old.spec != new.spec) || known != hard(new.spec.as_ref()))
}

fn queue_of(context: &Shared, queue: &WorkQueue<Key>, namespace: &str, kind: (&str, &str)) {
    for quota in context.informers.quotas.list_namespace(namespace) {
        let spec = json!(quota.spec);
        let counted = quota::counted_kinds(&spec);
        if counted
            .iter()
            .any(|(group, plural)| (group.as_str(), plural.as_str()) == kind)
        {
            queue.add_after(Key::of(&*quota), SETTLE);
        }
    }
}

/// Kinds whose objects cost more than their number.
fn follow_objects(context: &Shared, queue: &WorkQueue<Key>) {
    let (this, pods) = (Arc::clone(context), queue.clone());
    context.informers.pods.on_change(move |delta| {
        let face = |pod: &Pod| {
            let spec = pod.spec.as_ref();
            (
                pods::is_terminal(pod),
                spec.and_then(|spec| spec.active_deadline_seconds),
            )
        };
        let resources = |pod: &Pod| json!(view(pod).pointer("/spec/containers"));
        if let Delta::Updated { old, new } = delta
            && face(old) == face(new)
            && pods::is_terminating(old) == pods::is_terminating(new)
            && (old.metadata.generation == new.metadata.generation
                || resources(old) == resources(new))
        {
            return;
        }
        let namespace = delta.object().namespace().unwrap_or_default();
        queue_of(&this, &pods, &namespace, ("", "pods"));
    });
    let (this, services) = (Arc::clone(context), queue.clone());
    context.informers.services.on_change(move |delta| {
        let namespace = delta.object().namespace().unwrap_or_default();
        queue_of(&this, &services, &namespace, ("", "services"));
    });
    let (this, claims) = (Arc::clone(context), queue.clone());
    context.informers.claims.on_change(move |delta| {
        let namespace = delta.object().namespace().unwrap_or_default();
        queue_of(&this, &claims, &namespace, ("", "persistentvolumeclaims"));
    });
}

/// All other kinds, as they come to be served; their metadata are watched by the garbage collector anyway.
async fn follow_kinds(context: &Shared, queue: &WorkQueue<Key>) {
    let mut followed: HashSet<u64> = HashSet::new();
    let mut changes = context.metadata.changes();
    let mut resync = tokio::time::interval(RESYNC);
    loop {
        for kind in context.metadata.all() {
            if !followed.insert(kind.serial) {
                continue;
            }
            let (this, queue) = (Arc::clone(context), queue.clone());
            let (group, plural) = (kind.group.clone(), kind.plural.clone());
            kind.informer.on_change(move |delta| {
                // The typed informers have said so already.
                let typed = ["pods", "services", "persistentvolumeclaims"];
                if matches!(delta, Delta::Updated { .. })
                    || (group.is_empty() && typed.contains(&plural.as_str()))
                {
                    return;
                }
                let namespace = delta.object().namespace().unwrap_or_default();
                queue_of(&this, &queue, &namespace, (&group, &plural));
            });
        }
        tokio::select! {
            () = context.stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
            _ = resync.tick() => {
                context.informers.quotas.list().iter().for_each(|quota| queue.add(Key::of(&**quota)));
            }
        }
    }
}

async fn reconcile(context: &Shared, key: Key) -> Result<Outcome> {
    let Some(quota) = context.informers.quotas.get(&key.namespace, &key.name) else {
        return Ok(Outcome::Done);
    };
    let spec = json!(quota.spec);
    let hard = quota
        .spec
        .as_ref()
        .and_then(|spec| spec.hard.clone())
        .unwrap_or_default();
    let before = quota.status.clone().unwrap_or_default();
    let mut used: BTreeMap<String, Quantity> = before.used.clone().unwrap_or_default();
    let now = Timestamp::now();
    let mut recheck = None;
    for (group, plural) in quota::counted_kinds(&spec) {
        let names = hard.keys().filter(|name| {
            quota::counts(name).is_some_and(|of| of == (group.clone(), plural.clone()))
        });
        let Some(total) = total(context, &key.namespace, &spec, &group, &plural, now).await? else {
            continue;
        };
        for name in names {
            let amount = total.get(name).copied().unwrap_or(Amount::ZERO);
            used.insert(name.clone(), Quantity(amount.to_string()));
        }
        if plural == "pods" {
            recheck = next_release(&context.informers.pods.list_namespace(&key.namespace), now);
        }
    }
    used.retain(|name, _| hard.contains_key(name));
    let status = ResourceQuotaStatus {
        hard: (!hard.is_empty()).then_some(hard),
        used: (!used.is_empty()).then_some(used),
    };
    if !same(&before, &status) {
        let updated = ResourceQuota {
            status: Some(status),
            ..(*quota).clone()
        };
        // With the version that was read: a charge made meanwhile must not be lost.
        let api = context.api::<ResourceQuota>(&key.namespace);
        unless_gone(
            api.replace_status(&key.name, &PostParams::default(), &updated)
                .await,
        )?;
    }
    Ok(recheck.map_or(Outcome::Done, Outcome::After))
}

/// Equal as amounts, however they are written.
fn same(a: &ResourceQuotaStatus, b: &ResourceQuotaStatus) -> bool {
    let amounts = |list: &Option<BTreeMap<String, Quantity>>| {
        let list = list.iter().flatten();
        list.map(|(name, amount)| (name.clone(), amount.0.parse::<Amount>().ok()))
            .collect::<Vec<_>>()
    };
    amounts(&a.hard) == amounts(&b.hard) && amounts(&a.used) == amounts(&b.used)
}

/// When the next terminating pod stops to count, should its node never say so.
fn next_release(pods: &[Arc<Pod>], now: Timestamp) -> Option<Duration> {
    let ends = pods.iter().filter_map(|pod| {
        let deleted = pod.metadata.deletion_timestamp.as_ref()?.0;
        let grace = pod.metadata.deletion_grace_period_seconds?;
        deleted
            .checked_add(SignedDuration::from_secs(grace + 1))
            .ok()
    });
    let next = ends.filter(|end| *end > now).min()?;
    Some(next.duration_since(now).unsigned_abs())
}

/// What all objects of a kind cost together; `None` for kinds that are not served.
async fn total(
    context: &Shared,
    namespace: &str,
    spec: &Value,
    group: &str,
    plural: &str,
    now: Timestamp,
) -> Result<Option<Usage>> {
    let informers = &context.informers;
    let charge = |object: Value| quota::charge(spec, group, plural, &object, now);
    let sum = |charges: &mut dyn Iterator<Item = Usage>| {
        let mut sum = Usage::new();
        for (name, amount) in charges.flatten() {
            let total = sum.get(&name).copied().unwrap_or(Amount::ZERO) + amount;
            sum.insert(name, total);
        }
        sum
    };
    Ok(Some(match (group, plural) {
        ("", "pods") => {
            let pods = informers.pods.list_namespace(namespace);
            sum(&mut pods.iter().map(|pod| charge(view(pod))))
        }
        ("", "services") => {
            let services: Vec<Arc<Service>> = informers.services.list_namespace(namespace);
            sum(&mut services.iter().map(|service| charge(json!(**service))))
        }
        ("", "persistentvolumeclaims") => {
            let claims: Vec<Arc<PersistentVolumeClaim>> =
                informers.claims.list_namespace(namespace);
            sum(&mut claims.iter().map(|claim| charge(json!(**claim))))
        }
        quota::CLAIMS => {
            // Few, and nobody else here follows them.
            let api: Api<ResourceClaim> = Api::namespaced(context.client.clone(), namespace);
            let claims = api.list(&ListParams::default()).await?;
            sum(&mut claims.items.iter().map(|claim| charge(json!(claim))))
        }
        _ => {
            let Some(count) = count(context, namespace, group, plural).await? else {
                return Ok(None);
            };
            let mut one = charge(json!({}));
            for amount in one.values_mut() {
                *amount = Amount::from_units(i64::try_from(count).unwrap_or(i64::MAX));
            }
            one
        }
    }))
}

async fn count(
    context: &Shared,
    namespace: &str,
    group: &str,
    plural: &str,
) -> Result<Option<usize>> {
    if let Some(kind) = context.metadata.find(group, plural)
        && kind.informer.is_synced()
    {
        return Ok(Some(kind.informer.list_namespace(namespace).len()));
    }
    // Not watched (events), or not yet.
    let found = crate::gc::discovery::discover(&context.client).await;
    let served = found
        .resources
        .into_iter()
        .find(|served| served.api.group == group && served.api.plural == plural);
    let Some(served) = served else {
        return Ok(None);
    };
    let resource: ApiResource = served.api;
    let api: Api<DynamicObject> =
        Api::namespaced_with(context.client.clone(), namespace, &resource);
    match api.list_metadata(&ListParams::default()).await {
        Ok(list) => Ok(Some(list.items.len())),
        Err(error) if matches!(error.code(), 404 | 405) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What a quota needs to know of a pod, and no more: there may be thousands.
fn view(pod: &Pod) -> Value {
    let container = |container: &Container| {
        json!({
            "name": container.name,
            "resources": container.resources,
            "restartPolicy": container.restart_policy,
        })
    };
    let spec = pod.spec.clone().unwrap_or_default();
    let containers = |list: &[Container]| list.iter().map(container).collect::<Vec<_>>();
    let status = pod.status.as_ref();
    let statuses = |statuses: Option<&Vec<k8s_openapi::api::core::v1::ContainerStatus>>| {
        let statuses = statuses.into_iter().flatten();
        statuses
            .filter(|status| status.allocated_resources.is_some())
            .map(|s| json!({"name": s.name, "allocatedResources": s.allocated_resources}))
            .collect::<Vec<_>>()
    };
    json!({
        "metadata": {
            "deletionTimestamp": pod.metadata.deletion_timestamp,
            "deletionGracePeriodSeconds": pod.metadata.deletion_grace_period_seconds,
        },
        "spec": {
            "containers": containers(&spec.containers),
            "initContainers": containers(spec.init_containers.as_deref().unwrap_or_default()),
            "overhead": spec.overhead,
            "resources": spec.resources,
            "activeDeadlineSeconds": spec.active_deadline_seconds,
            "priorityClassName": spec.priority_class_name,
            "affinity": spec.affinity,
        },
        "status": {
            "phase": status.and_then(|status| status.phase.as_ref()),
            "containerStatuses": statuses(status.and_then(|s| s.container_statuses.as_ref())),
            "initContainerStatuses": statuses(status.and_then(|s| s.init_container_statuses.as_ref())),
        },
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::support::pods::tests::pod;

    #[test]
    fn a_pods_view_costs_what_the_pod_costs() {
        let mut pod = pod("a", "Running", "n", true);
        let container: Container = serde_json::from_value(json!({
            "name": "a", "image": "i", "resources": {"requests": {"cpu": "100m"}},
        }))
        .unwrap();
        pod.spec.as_mut().unwrap().containers = vec![container];
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(
            quota::usage("", "pods", &view(&pod), now),
            quota::usage("", "pods", &json!(pod), now)
        );
    }

    #[test]
    fn amounts_are_compared_not_texts() {
        let status = |cpu: &str| ResourceQuotaStatus {
            hard: None,
            used: Some(BTreeMap::from([("cpu".to_owned(), Quantity(cpu.into()))])),
        };
        assert!(same(&status("1"), &status("1000m")));
        assert!(!same(&status("1"), &status("2")));
        assert!(!same(&ResourceQuotaStatus::default(), &status("0")));
    }
}
