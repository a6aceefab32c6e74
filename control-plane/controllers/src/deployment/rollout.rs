//! One reconcile of one Deployment: carries out what [`math`](super::math) and
//! [`status`](super::status) decide.

use balsa_client::{EventRecorder, EventType, Outcome};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;

use super::{math, revision, status};
use crate::context::Shared;
use crate::error::{self, ApiError, Error, Result, unless_gone};
use crate::support::{owner, pods};

pub(super) struct Rollout<'a> {
    context: &'a Shared,
    recorder: &'a EventRecorder,
    deployment: Deployment,
    /// All sets, oldest first; versions are kept current as they are written.
    sets: Vec<ReplicaSet>,
    now: Timestamp,
}

impl<'a> Rollout<'a> {
    pub(super) fn new(
        context: &'a Shared,
        recorder: &'a EventRecorder,
        deployment: Deployment,
        mut sets: Vec<ReplicaSet>,
    ) -> Self {
        sets.sort_by_cached_key(|set| {
            (
                set.metadata.creation_timestamp.as_ref().map(|time| time.0),
                set.name_any(),
            )
        });
        Self {
            context,
            recorder,
            deployment,
            sets,
            now: Timestamp::now(),
        }
    }

    pub(super) async fn run(mut self) -> Result<Outcome> {
        if self.deployment.metadata.deletion_timestamp.is_some() {
            let new = self.new_set();
            return self.write_plain_status(new).await;
        }
        self.note_pause().await?;
        let paused = self.deployment.spec.as_ref().and_then(|spec| spec.paused) == Some(true);
        if paused || self.was_resized() {
            return self.resize(paused).await;
        }
        if math::is_recreate(&self.deployment) {
            Box::pin(self.recreate()).await
        } else {
            Box::pin(self.roll()).await
        }
    }

    /// Index of the set with the current template.
    fn new_set(&self) -> Option<usize> {
        let new = revision::find_new(&self.deployment, &self.sets)?;
        self.sets.iter().position(|set| std::ptr::eq(set, new))
    }

    fn old_sets(&self, new: Option<usize>) -> Vec<usize> {
        (0..self.sets.len())
            .filter(|index| Some(*index) != new)
            .collect()
    }

    fn refs(&self, indexes: &[usize]) -> Vec<&ReplicaSet> {
        indexes
            .iter()
            .filter_map(|index| self.sets.get(*index))
            .collect()
    }

    fn all(&self) -> Vec<&ReplicaSet> {
        self.sets.iter().collect()
    }

    /// True when an active set remembers another size of the Deployment than it has now.
    fn was_resized(&self) -> bool {
        self.sets
            .iter()
            .filter(|set| math::size(set) > 0)
            .any(|set| {
                let desired = set.annotations().get(revision::DESIRED_REPLICAS);
                desired
                    .and_then(|text| text.parse().ok())
                    .is_some_and(|size: i32| size != math::wanted(&self.deployment))
            })
    }

    async fn roll(mut self) -> Result<Outcome> {
        let new = self.ensure_new_set().await?;
        let target = self
            .sets
            .get(new)
            .and_then(|set| math::reconcile_new(&self.deployment, &self.all(), set));
        if let Some(target) = target {
            self.scale(new, target).await?;
            return self.write_rollout_status(Some(new)).await;
        }
        let old = self.old_sets(Some(new));
        let targets = math::reconcile_old(&self.deployment, &self.refs(&old), self.sets.get(new));
        if self.scale_all(&old, &targets).await? {
            return self.write_rollout_status(Some(new)).await;
        }
        self.clean_up(new).await?;
        self.write_rollout_status(Some(new)).await
    }

    async fn recreate(mut self) -> Result<Outcome> {
        let new = self.new_set();
        let old = self.old_sets(new);
        if self.scale_all(&old, &vec![0; old.len()]).await? || self.old_pods_remain(&old) {
            return self.write_rollout_status(new).await;
        }
        let new = self.ensure_new_set().await?;
        self.scale(new, math::wanted(&self.deployment)).await?;
        self.clean_up(new).await?;
        self.write_rollout_status(Some(new)).await
    }

    /// Terminating pods remain too: two versions must never run at once.
    fn old_pods_remain(&self, old: &[usize]) -> bool {
        self.refs(old).iter().any(|set| {
            let pods = self
                .context
                .informers
                .pods_by_owner
                .get(&set.uid().unwrap_or_default());
            set.status
                .as_ref()
                .is_some_and(|status| status.replicas > 0)
                || pods.iter().any(|pod| !pods::is_terminal(pod))
        })
    }

    /// Paused, or resized: sizes follow the Deployment, but no template is rolled out.
    async fn resize(mut self, paused: bool) -> Result<Outcome> {
        let mut new = self.new_set();
        if let Some(index) = new {
            new = Some(self.refresh_new_set(index).await?);
        }
        let active: Vec<usize> = (0..self.sets.len())
            .filter(|index| self.sets.get(*index).is_some_and(|set| math::size(set) > 0))
            .collect();
        let wanted = math::wanted(&self.deployment);
        match (active.as_slice(), new) {
            ([], None) => {
                if let Some(latest) = self.sets.len().checked_sub(1) {
                    self.scale(latest, wanted).await?;
                }
            }
            ([], Some(only)) | (&[only], _) => {
                self.scale(only, wanted).await?;
            }
            _ if new
                .and_then(|new| self.sets.get(new))
                .is_some_and(|new| self.saturated(new)) =>
            {
                let old: Vec<usize> = active
                    .into_iter()
                    .filter(|index| Some(*index) != new)
                    .collect();
                self.scale_all(&old, &vec![0; old.len()]).await?;
            }
            _ if !math::is_recreate(&self.deployment) => {
                let targets = math::proportional(&self.deployment, &self.refs(&active));
                for (index, target) in active.into_iter().zip(targets) {
                    self.scale(index, target).await?;
                }
            }
            _ => {}
        }
        if paused && let Some(new) = new {
            self.clean_up(new).await?;
        }
        self.write_plain_status(new).await
    }

    fn saturated(&self, new: &ReplicaSet) -> bool {
        let wanted = math::wanted(&self.deployment);
        let desired = new
            .annotations()
            .get(revision::DESIRED_REPLICAS)
            .and_then(|text| text.parse().ok());
        math::size(new) == wanted && desired == Some(wanted) && math::available(new) == wanted
    }

    /// The index of the set for the current template, made if there is none.
    async fn ensure_new_set(&mut self) -> Result<usize> {
        match self.new_set() {
            Some(index) => {
                let index = self.refresh_new_set(index).await?;
                if status::has_deadline(&self.deployment)
                    && self
                        .deployment
                        .status
                        .as_ref()
                        .is_none_or(|s| status::get(s, status::PROGRESSING).is_none())
                {
                    let name = self
                        .sets
                        .get(index)
                        .map(ResourceExt::name_any)
                        .unwrap_or_default();
                    let message = format!("Found new replica set {name:?}");
                    self.set_progressing("True", "FoundNewReplicaSet", message)
                        .await?;
                }
                Ok(index)
            }
            None => self.create_new_set().await,
        }
    }

    /// Brings revision, annotations and minReadySeconds of the new set up to date.
    async fn refresh_new_set(&mut self, index: usize) -> Result<usize> {
        let Some(set) = self.sets.get(index) else {
            return Ok(index);
        };
        let revision = revision::next_revision(self.refs(&self.old_sets(Some(index))));
        let annotations =
            revision::new_set_annotations(&self.deployment, set.annotations(), revision, true);
        let min_ready = self
            .deployment
            .spec
            .as_ref()
            .and_then(|spec| spec.min_ready_seconds);
        let set_min_ready = set.spec.as_ref().and_then(|spec| spec.min_ready_seconds);
        if annotations != *set.annotations() || min_ready.unwrap_or(0) != set_min_ready.unwrap_or(0)
        {
            let patch = json!({
                "metadata": {"resourceVersion": set.resource_version(), "annotations": annotations},
                "spec": {"minReadySeconds": min_ready},
            });
            self.patch_set(index, &patch).await?;
        }
        let revision = self
            .sets
            .get(index)
            .and_then(|set| set.annotations().get(revision::REVISION))
            .cloned();
        self.note_revision(revision.unwrap_or_default()).await?;
        Ok(index)
    }

    async fn create_new_set(&mut self) -> Result<usize> {
        let revision = revision::next_revision(&self.sets);
        let Some(set) = revision::new_set(&self.deployment, &self.all(), revision) else {
            return Err(Error::Invalid("the Deployment has no spec".into()));
        };
        let namespace = self.deployment.namespace().unwrap_or_default();
        let api = self.context.api::<ReplicaSet>(&namespace);
        let created = match api.create(&PostParams::default(), &set).await {
            Ok(created) => {
                let size = math::size(&created);
                if size > 0 {
                    let message = format!(
                        "Scaled up replica set {} from 0 to {size}",
                        created.name_any()
                    );
                    self.recorder.event(
                        &self.deployment,
                        EventType::Normal,
                        "ScalingReplicaSet",
                        message,
                    );
                }
                created
            }
            Err(error) if error.is_already_exists() => self.existing_set(&set).await?,
            Err(error) => return self.creation_failed(&set, error).await,
        };
        let name = created.name_any();
        self.sets.push(created);
        self.note_revision(revision.to_string()).await?;
        if status::has_deadline(&self.deployment) {
            let message = format!("Created new replica set {name:?}");
            self.set_progressing("True", "NewReplicaSetCreated", message)
                .await?;
        }
        Ok(self.sets.len() - 1)
    }

    /// A set of the wanted name exists: ours and only not yet in the cache, or a hash collision.
    async fn existing_set(&mut self, wanted: &ReplicaSet) -> Result<ReplicaSet> {
        let api = self
            .context
            .api::<ReplicaSet>(&self.deployment.namespace().unwrap_or_default());
        let existing = api.get(&wanted.name_any()).await?;
        let ours = owner::is_controlled_by(
            &existing.metadata,
            &self.deployment.uid().unwrap_or_default(),
        );
        if ours && revision::find_new(&self.deployment, std::slice::from_ref(&existing)).is_some() {
            return Ok(existing);
        }
        let status = self.deployment.status.get_or_insert_default();
        status.collision_count = Some(status.collision_count.unwrap_or_default() + 1);
        self.put_status().await?;
        Err(Error::Invalid(format!(
            "the name {:?} is taken by another replica set",
            wanted.name_any()
        )))
    }

    async fn creation_failed(&mut self, set: &ReplicaSet, error: kube::Error) -> Result<usize> {
        if !error::namespace_terminating(&error) {
            let message = format!(
                "Failed to create new replica set {:?}: {}",
                set.name_any(),
                error::message(&error)
            );
            let reason = "ReplicaSetCreateError";
            self.recorder.event(
                &self.deployment,
                EventType::Warning,
                reason,
                message.clone(),
            );
            if status::has_deadline(&self.deployment) {
                self.set_progressing("False", reason, message).await?;
            }
        }
        Err(error.into())
    }

    /// Gives a set a size, and the Deployment's size to remember. True when the size changed.
    async fn scale(&mut self, index: usize, target: i32) -> Result<bool> {
        let Some(set) = self.sets.get(index) else {
            return Ok(false);
        };
        let size = math::size(set);
        let annotations = revision::size_annotations(&self.deployment);
        let remembered = annotations
            .iter()
            .all(|(key, value)| set.annotations().get(key) == Some(value));
        if size == target && remembered {
            return Ok(false);
        }
        let patch = json!({
            "metadata": {
                "resourceVersion": set.resource_version(),
                "annotations": annotations.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
            },
            "spec": {"replicas": target},
        });
        let name = set.name_any();
        self.patch_set(index, &patch).await?;
        if size != target {
            let direction = if target > size { "up" } else { "down" };
            let message = format!("Scaled {direction} replica set {name} from {size} to {target}");
            self.recorder.event(
                &self.deployment,
                EventType::Normal,
                "ScalingReplicaSet",
                message,
            );
        }
        Ok(size != target)
    }

    /// Resizes those sets whose size differs.
    async fn scale_all(&mut self, indexes: &[usize], targets: &[i32]) -> Result<bool> {
        let mut scaled = false;
        for (index, target) in indexes.iter().zip(targets) {
            if self
                .sets
                .get(*index)
                .is_some_and(|set| math::size(set) != *target)
            {
                scaled |= self.scale(*index, *target).await?;
            }
        }
        Ok(scaled)
    }

    async fn patch_set(&mut self, index: usize, patch: &serde_json::Value) -> Result<()> {
        let api = self
            .context
            .api::<ReplicaSet>(&self.deployment.namespace().unwrap_or_default());
        if let Some(set) = self.sets.get_mut(index) {
            *set = api
                .patch(
                    &set.name_any(),
                    &PatchParams::default(),
                    &Patch::Merge(patch),
                )
                .await?;
        }
        Ok(())
    }

    async fn clean_up(&mut self, new: usize) -> Result<()> {
        let status = status::calculate(&self.deployment, &self.all(), self.sets.get(new), self.now);
        if !status::complete(&self.deployment, &status) {
            return Ok(());
        }
        let api = self
            .context
            .api::<ReplicaSet>(&self.deployment.namespace().unwrap_or_default());
        for set in revision::to_clean_up(&self.deployment, &self.refs(&self.old_sets(Some(new)))) {
            let params = DeleteParams {
                preconditions: Some(Preconditions {
                    uid: set.uid(),
                    resource_version: None,
                }),
                ..DeleteParams::background()
            };
            unless_gone(api.delete(&set.name_any(), &params).await)?;
        }
        Ok(())
    }

    async fn note_pause(&mut self) -> Result<()> {
        if !status::has_deadline(&self.deployment) {
            return Ok(());
        }
        let current = self
            .deployment
            .status
            .as_ref()
            .and_then(|s| status::get(s, status::PROGRESSING));
        let reason = current
            .and_then(|current| current.reason.clone())
            .unwrap_or_default();
        if reason == status::TIMED_OUT {
            return Ok(());
        }
        let paused = self.deployment.spec.as_ref().and_then(|spec| spec.paused) == Some(true);
        match (paused, reason == "DeploymentPaused") {
            (true, false) => {
                self.set_progressing("Unknown", "DeploymentPaused", "Deployment is paused".into())
                    .await
            }
            (false, true) => {
                self.set_progressing(
                    "Unknown",
                    "DeploymentResumed",
                    "Deployment is resumed".into(),
                )
                .await
            }
            _ => Ok(()),
        }
    }

    async fn note_revision(&mut self, revision: String) -> Result<()> {
        if self.deployment.annotations().get(revision::REVISION) == Some(&revision) {
            return Ok(());
        }
        self.deployment
            .annotations_mut()
            .insert(revision::REVISION.into(), revision.clone());
        self.put_status().await?;
        if self.deployment.annotations().get(revision::REVISION) != Some(&revision) {
            // The status endpoint need not take annotations; the object itself does.
            let patch = json!({"metadata": {"annotations": {revision::REVISION: revision}}});
            let api = self
                .context
                .api::<Deployment>(&self.deployment.namespace().unwrap_or_default());
            let name = self.deployment.name_any();
            self.deployment = api
                .patch(&name, &PatchParams::default(), &Patch::Merge(&patch))
                .await?;
        }
        Ok(())
    }

    async fn set_progressing(&mut self, value: &str, reason: &str, message: String) -> Result<()> {
        let condition = status::condition(status::PROGRESSING, value, reason, message);
        if status::set_condition(
            self.deployment.status.get_or_insert_default(),
            condition,
            self.now,
        ) {
            self.put_status().await?;
        }
        Ok(())
    }

    async fn write_plain_status(mut self, new: Option<usize>) -> Result<Outcome> {
        let new = new.and_then(|new| self.sets.get(new));
        let status = status::calculate(&self.deployment, &self.all(), new, self.now);
        self.write(status).await?;
        Ok(Outcome::Done)
    }

    async fn write_rollout_status(mut self, new: Option<usize>) -> Result<Outcome> {
        let new = new.and_then(|new| self.sets.get(new));
        let status = status::rollout(&self.deployment, &self.all(), new, self.now);
        let recheck = status::recheck(&self.deployment, &status, self.now);
        self.write(status).await?;
        Ok(recheck.map_or(Outcome::Done, Outcome::After))
    }

    async fn write(&mut self, status: DeploymentStatus) -> Result<()> {
        if self.deployment.status.as_ref() == Some(&status) {
            return Ok(());
        }
        self.deployment.status = Some(status);
        self.put_status().await
    }

    async fn put_status(&mut self) -> Result<()> {
        let api = self
            .context
            .api::<Deployment>(&self.deployment.namespace().unwrap_or_default());
        let name = self.deployment.name_any();
        self.deployment = api
            .replace_status(&name, &PostParams::default(), &self.deployment)
            .await?;
        Ok(())
    }
}
