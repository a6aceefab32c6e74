//! One reconcile of one StatefulSet.

use std::sync::Arc;
use std::time::Duration;

use balsa_client::{EventType, Key, Outcome};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, PodTemplateSpec};
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;

use super::decide::{self, Action, View};
use super::{Controller, claims, pod};
use crate::error::{self, ApiError, Error, Result, unless_gone};
use crate::support::history::{self, History};
use crate::support::pods;
use crate::support::selector::Labels;

/// Hash of a revision, on the revision itself. Pods have its name as label.
const HASH_LABEL: &str = "controller.kubernetes.io/hash";
/// When to look again at a claim that is on its way out.
const RECHECK_CLAIM: Duration = Duration::from_secs(1);

/// The set's two templates.
struct Revisions {
    current: ControllerRevision,
    update: ControllerRevision,
    all: Vec<ControllerRevision>,
}

impl Controller {
    pub(super) async fn reconcile(&self, key: Key) -> Result<Outcome> {
        let sets = &self.context.informers.stateful_sets;
        let Some(set) = sets.get(&key.namespace, &key.name) else {
            self.expectations.forget(&key);
            return Ok(Outcome::Done);
        };
        let Some(spec) = &set.spec else {
            return Ok(Outcome::Done);
        };
        let satisfied = self.expectations.satisfied(&key);
        let labels = Labels::parse(&spec.selector)?;
        let member = |pod: &Pod| pod::is_member(&key.name, pod);
        let owned = self.pods.claim(&*set, &labels, member).await?;
        let history = History {
            context: &self.context,
            owner: &*set,
            hash_label: HASH_LABEL,
        };
        let mut collisions = set
            .status
            .as_ref()
            .and_then(|status| status.collision_count);
        let revisions = revisions(&history, &set, spec, &labels, &mut collisions).await?;
        let view = View {
            set: &set,
            spec,
            pods: &owned,
            current: &revisions.current.name_any(),
            update: &revisions.update.name_any(),
            now: Timestamp::now(),
        };
        let mut retry = None;
        let mut worked = Ok(());
        if satisfied && set.metadata.deletion_timestamp.is_none() {
            worked = self
                .work(&key, &view, &revisions)
                .await
                .map(|wait| retry = wait);
        }
        self.write_status(&set, decide::status(&view, collisions))
            .await?;
        worked?;
        let in_use = |revision: &ControllerRevision| {
            let name = revision.name_any();
            name == view.current
                || name == view.update
                || owned.iter().any(|owned| pod::revision(owned) == name)
        };
        history
            .truncate(&revisions.all, spec.revision_history_limit, in_use)
            .await?;
        let min_ready = spec.min_ready_seconds.unwrap_or_default();
        let available = pods::next_available(&owned, min_ready, view.now);
        Ok([retry, available]
            .into_iter()
            .flatten()
            .min()
            .map_or(Outcome::Done, Outcome::After))
    }

    /// Carries out the plan; returns when to look again at a claim that stands in the way.
    async fn work(
        &self,
        key: &Key,
        view: &View<'_>,
        revisions: &Revisions,
    ) -> Result<Option<Duration>> {
        self.fix_owners(view).await?;
        let mut retry = None;
        for action in decide::plan(view) {
            match action {
                Action::Create {
                    ordinal,
                    from_current,
                } => {
                    let revision = if from_current {
                        &revisions.current
                    } else {
                        &revisions.update
                    };
                    if !self
                        .create(key, view.set, view.spec, revision, ordinal)
                        .await?
                    {
                        retry = Some(RECHECK_CLAIM);
                    }
                }
                Action::Furnish(pod) => self.furnish(view.set, &pod.name_any()).await?,
                Action::Relabel(pod) => self.relabel(&pod).await?,
                Action::Recreate(pod) => {
                    let failed = pods::phase(&pod) == "Failed";
                    let (type_, reason, what) = if failed {
                        (EventType::Warning, "RecreatingFailedPod", "failed")
                    } else {
                        (EventType::Normal, "RecreatingTerminatedPod", "terminated")
                    };
                    let set = format!("{}/{}", key.namespace, key.name);
                    let message = format!(
                        "StatefulSet {set} is recreating {what} Pod {}",
                        pod.name_any()
                    );
                    self.recorder.event(view.set, type_, reason, message);
                    self.delete(key, view.set, &pod).await?;
                }
                Action::Delete(pod) => self.delete(key, view.set, &pod).await?,
            }
        }
        Ok(retry)
    }

    /// False when a claim of an earlier pod has to go first.
    async fn create(
        &self,
        key: &Key,
        set: &StatefulSet,
        spec: &StatefulSetSpec,
        revision: &ControllerRevision,
        ordinal: i32,
    ) -> Result<bool> {
        let template: PodTemplateSpec =
            history::template_of(revision).unwrap_or_else(|| spec.template.clone());
        let pod = pod::new_pod(set, &template, &revision.name_any(), ordinal);
        let name = pod.name_any();
        let cached = &self.context.informers.claims;
        for template in pod::claim_templates(set) {
            let claim = cached.get(&key.namespace, &pod::claim_name(template, &name));
            if claim.is_some_and(|claim| claims::is_stale(&name, &claim)) {
                return Ok(false);
            }
        }
        self.furnish(set, &name).await?;
        let api = self.context.api::<Pod>(&key.namespace);
        self.expectations.expect_creation(key);
        match api.create(&PostParams::default(), &pod).await {
            Ok(_) => {
                let message = format!("create Pod {name} in StatefulSet {} successful", key.name);
                self.recorder
                    .event(set, EventType::Normal, "SuccessfulCreate", message);
                Ok(true)
            }
            Err(error) => {
                self.expectations.created(key, 1);
                if error::namespace_terminating(&error) {
                    return Ok(true);
                }
                if !error.is_already_exists() {
                    let message = format!(
                        "create Pod {name} in StatefulSet {} failed error: {}",
                        key.name,
                        error::message(&error)
                    );
                    self.recorder
                        .event(set, EventType::Warning, "FailedCreate", message);
                }
                Err(error.into())
            }
        }
    }

    /// Makes the claims of a pod that are not there.
    async fn furnish(&self, set: &StatefulSet, pod: &str) -> Result<()> {
        let namespace = set.namespace().unwrap_or_default();
        let api = self.context.api::<PersistentVolumeClaim>(&namespace);
        for claim in pod::new_claims(set, pod) {
            let name = claim.name_any();
            let what = format!("Claim {name} Pod {pod} in StatefulSet {}", set.name_any());
            if let Some(existing) = self.context.informers.claims.get(&namespace, &name) {
                if existing.metadata.deletion_timestamp.is_some() {
                    return Err(Error::Invalid(format!("pvc {name} is being deleted")));
                }
                continue;
            }
            match api.create(&PostParams::default(), &claim).await {
                Ok(_) => {
                    let message = format!("create {what} success");
                    self.recorder
                        .event(set, EventType::Normal, "SuccessfulCreate", message);
                }
                Err(error) if error.is_already_exists() => {}
                Err(error) => {
                    let message = format!("create {what} failed error: {}", error::message(&error));
                    self.recorder
                        .event(set, EventType::Warning, "FailedCreate", message);
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    /// Owners of claims, as the retention policy wants them.
    async fn fix_owners(&self, view: &View<'_>) -> Result<()> {
        let namespace = view.set.namespace().unwrap_or_default();
        let api = self.context.api::<PersistentVolumeClaim>(&namespace);
        let condemned = view.places().condemned;
        for pod in view.pods {
            let going = condemned.iter().any(|other| Arc::ptr_eq(other, pod));
            for template in pod::claim_templates(view.set) {
                let name = pod::claim_name(template, &pod.name_any());
                let Some(claim) = self.context.informers.claims.get(&namespace, &name) else {
                    continue;
                };
                let Some(owners) = claims::owners(view.set, pod, going, &claim) else {
                    continue;
                };
                let patch = json!({"metadata": {
                    "uid": claim.uid(),
                    "resourceVersion": claim.resource_version(),
                    "ownerReferences": owners,
                }});
                let patch = Patch::Merge(&patch);
                unless_gone(api.patch(&name, &PatchParams::default(), &patch).await)?;
            }
        }
        Ok(())
    }

    async fn relabel(&self, pod: &Pod) -> Result<()> {
        let patch = json!({"metadata": {
            "uid": pod.uid(), "labels": {pod::NAME_LABEL: pod.name_any()},
        }});
        self.pods.patch(pod, &patch).await
    }

    async fn delete(&self, key: &Key, set: &StatefulSet, pod: &Pod) -> Result<()> {
        let name = pod.name_any();
        let uid = pod.uid().unwrap_or_default();
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        self.expectations.expect_deletion(key, &uid);
        let api = self.context.api::<Pod>(&key.namespace);
        match unless_gone(api.delete(&name, &params).await) {
            Ok(deleted) => {
                if deleted.is_some() {
                    let message =
                        format!("delete Pod {name} in StatefulSet {} successful", key.name);
                    self.recorder
                        .event(set, EventType::Normal, "SuccessfulDelete", message);
                }
                Ok(())
            }
            Err(error) => {
                self.expectations.deleted(key, &uid);
                let message = format!(
                    "delete Pod {name} in StatefulSet {} failed error: {}",
                    key.name,
                    error::message(&error)
                );
                self.recorder
                    .event(set, EventType::Warning, "FailedDelete", message);
                Err(error.into())
            }
        }
    }

    async fn write_status(
        &self,
        set: &StatefulSet,
        status: k8s_openapi::api::apps::v1::StatefulSetStatus,
    ) -> Result<()> {
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let api = self
            .context
            .api::<StatefulSet>(&set.namespace().unwrap_or_default());
        let updated = StatefulSet {
            status: Some(status),
            ..set.clone()
        };
        unless_gone(
            api.replace_status(&set.name_any(), &PostParams::default(), &updated)
                .await,
        )?;
        Ok(())
    }
}

/// The revision of the template, made or made the newest if need be, and the one that pods are moved from.
async fn revisions(
    history: &History<'_, StatefulSet>,
    set: &StatefulSet,
    spec: &StatefulSetSpec,
    labels: &Labels,
    collisions: &mut Option<i32>,
) -> Result<Revisions> {
    let mut all = history.claim(labels).await?;
    let number = history::next_number(&all);
    let equal = all
        .iter()
        .rposition(|revision| history::stands_for(revision, &spec.template));
    let update = match equal {
        Some(last) if last + 1 == all.len() => all.swap_remove(last),
        Some(old) => history.renumber(&all.remove(old), number).await?,
        None => history.create(&spec.template, number, collisions).await?,
    };
    all.push(update.clone());
    let named = set
        .status
        .as_ref()
        .and_then(|status| status.current_revision.clone());
    let current = named.and_then(|named| all.iter().find(|r| r.name_any() == named));
    Ok(Revisions {
        current: current.unwrap_or(&update).clone(),
        update,
        all,
    })
}
