//! PodDisruptionBudgets: how many of the selected pods may be evicted now. The eviction itself, in the API server,
//! takes from what is written here.

mod decide;

use std::collections::BTreeMap;
use std::sync::Arc;

use balsa_client::{EventRecorder, EventType, Key, Outcome, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{Selector, SelectorExt};
use serde_json::json;

use self::decide::View;
use crate::context::Shared;
use crate::error::{ApiError, Error, Result, unless_gone};
use crate::gc::discovery::discover;
use crate::support::{owner, pods};

struct Controller {
    context: Shared,
    recorder: EventRecorder,
}

pub(crate) async fn run(context: Shared) {
    let queue: WorkQueue<Key> = WorkQueue::default();
    let stale: WorkQueue<Key> = WorkQueue::default();
    let controller = Arc::new(Controller {
        recorder: context.recorder("controllermanager"),
        context: Arc::clone(&context),
    });
    let budgets = queue.clone();
    context
        .informers
        .disruption_budgets
        .on_change(move |delta| budgets.add(Key::of(&**delta.object())));
    let (this, budgets, disrupted) = (Arc::clone(&context), queue.clone(), stale.clone());
    context.informers.pods.on_change(move |delta| {
        let pod = &**delta.object();
        let all = this
            .informers
            .disruption_budgets
            .list_namespace(&pod.namespace().unwrap_or_default());
        for budget in all {
            let Ok(selector) = selector(&budget) else {
                continue;
            };
            let before = delta.old().is_some_and(|old| selects(&selector, old));
            if before || selects(&selector, pod) {
                budgets.add(Key::of(&*budget));
            }
        }
        if !delta.is_delete() && decide::stale_in(pod, Timestamp::now()).is_some() {
            disrupted.add(Key::of(pod));
        }
    });
    follow_scales(&context, &queue);
    context.informers.disruption_budgets.synced().await;
    context.informers.pods.synced().await;
    context.informers.replica_sets.synced().await;
    context.informers.deployments.synced().await;
    context.informers.stateful_sets.synced().await;
    context.informers.replication_controllers.synced().await;
    let this = Arc::clone(&controller);
    let budgets = context.work("disruption", queue, move |key| {
        let this = Arc::clone(&this);
        async move { this.reconcile(key).await }
    });
    let stale = context.work("stale-disruption", stale, move |key| {
        let this = Arc::clone(&controller);
        async move { this.clear_stale(key).await }
    });
    tokio::join!(budgets, stale);
}

/// A controller's size counts before its pods are there.
fn follow_scales(context: &Shared, queue: &WorkQueue<Key>) {
    macro_rules! follow {
        ($informer:ident, $kind:ty) => {
            let (this, queue) = (Arc::clone(context), queue.clone());
            context.informers.$informer.on_change(move |delta| {
                let object = &**delta.object();
                let size = |object: &$kind| object.spec.as_ref().and_then(|spec| spec.replicas);
                if delta.old().is_some_and(|old| size(old) == size(object)) {
                    return;
                }
                let namespace = object.namespace().unwrap_or_default();
                for budget in this.informers.disruption_budgets.list_namespace(&namespace) {
                    queue.add(Key::of(&*budget));
                }
            });
        };
    }
    follow!(deployments, Deployment);
    follow!(replica_sets, ReplicaSet);
    follow!(stateful_sets, StatefulSet);
    follow!(replication_controllers, ReplicationController);
}

/// No selector selects nothing; an empty one, all pods of the namespace (policy/v1).
fn selector(budget: &PodDisruptionBudget) -> Result<Option<Selector>> {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.clone());
    let parsed = selector.map(Selector::try_from).transpose();
    parsed.map_err(|error| Error::Invalid(format!("the label selector is not valid: {error}")))
}

fn selects(selector: &Option<Selector>, pod: &Pod) -> bool {
    static NONE: BTreeMap<String, String> = BTreeMap::new();
    let labels = pod.metadata.labels.as_ref().unwrap_or(&NONE);
    selector
        .as_ref()
        .is_some_and(|selector| selector.matches(labels))
}

impl Controller {
    async fn reconcile(&self, key: Key) -> Result<Outcome> {
        let budgets = &self.context.informers.disruption_budgets;
        let Some(budget) = budgets.get(&key.namespace, &key.name) else {
            return Ok(Outcome::Done);
        };
        let Some(spec) = &budget.spec else {
            return Ok(Outcome::Done);
        };
        let now = Timestamp::now();
        let (pods, scale) = match self.selected(&budget).await {
            Ok(found) => found,
            Err(error) => {
                let message = error.to_string();
                let reason = "CalculateExpectedPodCountFailed";
                let event = format!("Failed to calculate the number of expected pods: {message}");
                self.recorder
                    .event(&*budget, EventType::Warning, reason, event);
                self.write(&budget, decide::failed(&budget, &message, now))
                    .await?;
                return Err(error);
            }
        };
        let view = View {
            budget: &budget,
            spec,
            pods: &pods,
            scale,
            now,
        };
        if pods.is_empty() {
            let message = "No matching pods found";
            self.recorder
                .event(&*budget, EventType::Normal, "NoPods", message);
        }
        let disrupted = decide::disrupted(&view);
        for pod in &disrupted.given_up {
            let message = format!("Pod was expected by PDB {key} to be deleted but it wasn't");
            self.recorder
                .event(&**pod, EventType::Warning, "NotDeleted", message);
        }
        let recheck = disrupted.recheck;
        self.write(&budget, decide::status(&view, disrupted.waiting))
            .await?;
        Ok(recheck.map_or(Outcome::Done, Outcome::After))
    }

    /// The budget's pods and how many of them there should be.
    async fn selected(&self, budget: &PodDisruptionBudget) -> Result<(Vec<Arc<Pod>>, i32)> {
        let selector = selector(budget)?;
        let namespace = budget.namespace().unwrap_or_default();
        let mut pods = self.context.informers.pods.list_namespace(&namespace);
        pods.retain(|pod| selects(&selector, pod) && !pods::is_terminal(pod));
        let mut scales: BTreeMap<String, i32> = BTreeMap::new();
        let mut unmanaged = false;
        for pod in &pods {
            match owner::controller_of(&pod.metadata) {
                None => unmanaged = true,
                Some(owner) if scales.contains_key(&owner.uid) => {}
                Some(_) if needs_no_scale(budget) => {}
                Some(owner) => {
                    let (uid, scale) = self.scale(&namespace, owner).await?;
                    // The sets of one Deployment share its scale: it is counted once, under its uid.
                    scales.entry(owner.uid.clone()).or_insert(0);
                    scales.insert(uid, scale);
                }
            }
        }
        if unmanaged && !needs_no_scale(budget) {
            let message = "Pods selected by this PodDisruptionBudget were found to be unmanaged. As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value.";
            self.recorder
                .event(budget, EventType::Warning, "UnmanagedPods", message);
        }
        Ok((
            pods,
            scales
                .values()
                .fold(0, |sum, scale| sum.saturating_add(*scale)),
        ))
    }

    /// Uid and size of what a pod's controller is scaled by.
    async fn scale(&self, namespace: &str, owner: &OwnerReference) -> Result<(String, i32)> {
        let informers = &self.context.informers;
        let name = &owner.name;
        let built_in = match owner.kind.as_str() {
            "ReplicaSet" => match informers.replica_sets.get(namespace, name) {
                Some(set) => {
                    let above = owner::controller_of(&set.metadata)
                        .filter(|above| above.kind == "Deployment")
                        .and_then(|above| informers.deployments.get(namespace, &above.name));
                    match above {
                        Some(deployment) => Some((
                            deployment.uid(),
                            deployment.spec.as_ref().and_then(|spec| spec.replicas),
                        )),
                        None => Some((set.uid(), set.spec.as_ref().and_then(|spec| spec.replicas))),
                    }
                }
                None => None,
            },
            "StatefulSet" => informers
                .stateful_sets
                .get(namespace, name)
                .map(|set| (set.uid(), set.spec.as_ref().and_then(|spec| spec.replicas))),
            "ReplicationController" => informers
                .replication_controllers
                .get(namespace, name)
                .map(|rc| (rc.uid(), rc.spec.as_ref().and_then(|spec| spec.replicas))),
            _ => return self.served_scale(namespace, owner).await,
        };
        let (uid, replicas) = built_in.unwrap_or_default();
        Ok((
            uid.unwrap_or_else(|| owner.uid.clone()),
            replicas.unwrap_or_default(),
        ))
    }

    /// Any other kind says its size itself, if it can be scaled.
    async fn served_scale(&self, namespace: &str, owner: &OwnerReference) -> Result<(String, i32)> {
        let group = owner
            .api_version
            .rsplit_once('/')
            .map_or("", |(group, _)| group);
        let kinds = discover(&self.context.client).await.by_kind();
        let unknown = || {
            Error::Invalid(format!(
                "{} does not implement the scale subresource",
                owner.kind
            ))
        };
        let served = kinds
            .get(&(group.to_owned(), owner.kind.clone()))
            .ok_or_else(unknown)?;
        let resource: &ApiResource = &served.api;
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.context.client.clone(), namespace, resource);
        match api.get_scale(&owner.name).await {
            Ok(scale) => {
                let replicas = scale
                    .spec
                    .and_then(|spec| spec.replicas)
                    .unwrap_or_default();
                Ok((owner.uid.clone(), replicas))
            }
            Err(error) if error.is_not_found() => Err(unknown()),
            Err(error) => Err(error.into()),
        }
    }

    async fn write(
        &self,
        budget: &PodDisruptionBudget,
        status: PodDisruptionBudgetStatus,
    ) -> Result<()> {
        if budget.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let api = self
            .context
            .api::<PodDisruptionBudget>(&budget.namespace().unwrap_or_default());
        let updated = PodDisruptionBudget {
            status: Some(status),
            ..budget.clone()
        };
        let name = budget.name_any();
        // With the version that this was decided on: evictions write here too.
        unless_gone(
            api.replace_status(&name, &PostParams::default(), &updated)
                .await,
        )?;
        Ok(())
    }

    async fn clear_stale(&self, key: Key) -> Result<Outcome> {
        let Some(pod) = self.context.informers.pods.get(&key.namespace, &key.name) else {
            return Ok(Outcome::Done);
        };
        match decide::stale_in(&pod, Timestamp::now()) {
            None => return Ok(Outcome::Done),
            Some(left) if !left.is_zero() => return Ok(Outcome::After(left)),
            Some(_) => {}
        }
        let mut conditions = pod
            .status
            .as_ref()
            .and_then(|status| status.conditions.clone())
            .unwrap_or_default();
        for condition in &mut conditions {
            if condition.type_ == "DisruptionTarget" {
                condition.status = "False".into();
                condition.last_transition_time = Some(balsa_client::time::now());
            }
        }
        let patch = json!({
            "metadata": {"uid": pod.uid(), "resourceVersion": pod.resource_version()},
            "status": {"conditions": conditions},
        });
        let api = self.context.api::<Pod>(&key.namespace);
        let patch = Patch::Merge(&patch);
        unless_gone(
            api.patch_status(&key.name, &PatchParams::default(), &patch)
                .await,
        )?;
        Ok(Outcome::Done)
    }
}

/// True when the budget speaks of a number of pods, whoever manages them.
fn needs_no_scale(budget: &PodDisruptionBudget) -> bool {
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    let spec = budget.spec.as_ref();
    let min = spec.and_then(|spec| spec.min_available.as_ref());
    matches!(min, Some(IntOrString::Int(_)))
}
