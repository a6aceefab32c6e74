//! ControllerRevisions: the templates that a DaemonSet or StatefulSet has had.
//!
//! A revision's data is the strategic merge patch that brings its template back; `kubectl rollout history` and
//! `undo` read and apply it.

use std::fmt::Debug;

use balsa_client::{Key, WorkQueue};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::follow::owner_of;
use super::owner::{self, Claim};
use super::pod_control::still_there;
use super::selector::Labels;
use super::template::{same_template, template_hash};
use crate::context::Shared;
use crate::error::{ApiError, Error, Result, unless_gone};
use crate::informers::orphans_of;

/// Tells pods of different revisions apart.
pub(crate) const REVISION_LABEL: &str = "controller-revision-hash";
/// Names tried when others' revisions have them.
const MAX_COLLISIONS: i32 = 20;

/// A template as a revision's data.
fn data(template: &PodTemplateSpec) -> Value {
    let mut template = json!(template);
    if let Some(fields) = template.as_object_mut() {
        fields.insert("$patch".into(), json!("replace"));
    }
    json!({"spec": {"template": template}})
}

/// The template that a revision stands for.
pub(crate) fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let template = revision.data.as_ref()?.0.pointer("/spec/template")?;
    serde_json::from_value(template.clone()).ok()
}

/// True when the revision stands for this template.
pub(crate) fn stands_for(revision: &ControllerRevision, template: &PodTemplateSpec) -> bool {
    template_of(revision).is_some_and(|own| same_template(&own, template))
}

/// Oldest first.
pub(crate) fn sort(revisions: &mut [ControllerRevision]) {
    revisions.sort_by_cached_key(|revision| {
        let created = revision.metadata.creation_timestamp.as_ref().map(|t| t.0);
        (revision.revision, created, revision.name_any())
    });
}

/// Number of the next revision; `revisions` in any order.
pub(crate) fn next_number(revisions: &[ControllerRevision]) -> i64 {
    revisions
        .iter()
        .map(|r| r.revision)
        .max()
        .unwrap_or_default()
        + 1
}

/// Revisions to delete: the oldest of those not in use, beyond `limit`. `revisions` oldest first.
fn surplus(
    revisions: &[ControllerRevision],
    limit: Option<i32>,
    in_use: impl Fn(&ControllerRevision) -> bool,
) -> impl Iterator<Item = &ControllerRevision> {
    let idle: Vec<_> = revisions.iter().filter(|r| !in_use(r)).collect();
    let limit = usize::try_from(limit.unwrap_or(10)).unwrap_or_default();
    let count = idle.len().saturating_sub(limit);
    idle.into_iter().take(count)
}

/// A new revision of an owner's template. `hash_label` is the label that carries the hash.
pub(crate) fn new_revision<K>(
    owner: &K,
    template: &PodTemplateSpec,
    hash_label: &str,
    number: i64,
    collisions: Option<i32>,
) -> ControllerRevision
where
    K: Resource<DynamicType = ()>,
{
    let hash = template_hash(template, collisions);
    let mut labels = template
        .metadata
        .as_ref()
        .and_then(|meta| meta.labels.clone())
        .unwrap_or_default();
    labels.insert(hash_label.to_owned(), hash.clone());
    let meta = owner.meta();
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!(
                "{}-{hash}",
                meta.name.as_deref().unwrap_or_default()
            )),
            namespace: meta.namespace.clone(),
            labels: Some(labels),
            annotations: meta.annotations.clone(),
            owner_references: Some(vec![owner::controller_ref(owner)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(data(template))),
        revision: number,
    }
}

/// Queues owners whose revision somebody took away. Others' changes wait for the next reconcile: people may edit
/// revisions, and those we make ourselves need no second look.
pub(crate) fn follow_revisions<K>(context: &Shared, queue: &WorkQueue<Key>)
where
    K: Resource<DynamicType = ()>,
{
    let queue = queue.clone();
    context.informers.revisions.on_change(move |delta| {
        let new = owner_of::<K>(&delta.object().metadata);
        let old = delta.old().and_then(|old| owner_of::<K>(&old.metadata));
        if delta.is_delete() {
            new.into_iter().for_each(|key| queue.add(key));
        } else if old.is_some() && old != new {
            old.into_iter().chain(new).for_each(|key| queue.add(key));
        }
    });
}

/// Reads and writes an owner's revisions.
pub(crate) struct History<'a, K> {
    pub(crate) context: &'a Shared,
    pub(crate) owner: &'a K,
    /// The label that carries a revision's hash.
    pub(crate) hash_label: &'static str,
}

impl<K> History<'_, K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + Debug,
{
    fn namespace(&self) -> String {
        self.owner.meta().namespace.clone().unwrap_or_default()
    }

    /// The owner's revisions, oldest first, after adopting and releasing.
    pub(crate) async fn claim(&self, labels: &Labels) -> Result<Vec<ControllerRevision>> {
        let meta = self.owner.meta();
        let uid = meta.uid.clone().unwrap_or_default();
        let index = &self.context.informers.revisions_by_owner;
        let orphans = orphans_of(&self.namespace());
        let mut claimed = Vec::new();
        let mut confirmed = None;
        for revision in index.get(&uid).into_iter().chain(index.get(&orphans)) {
            let matches = labels.matches(revision.metadata.labels.as_ref());
            let patch = match owner::claim(meta, &revision.metadata, matches) {
                Claim::Own => {
                    claimed.push((*revision).clone());
                    continue;
                }
                Claim::Ignore => continue,
                Claim::Release => owner::release_patch(&revision.metadata, &uid),
                Claim::Adopt => {
                    if confirmed.is_none() {
                        confirmed = Some(still_there(self.context, self.owner).await?);
                    }
                    if confirmed != Some(true) {
                        continue;
                    }
                    owner::adopt_patch(&revision.metadata, owner::controller_ref(self.owner))
                }
            };
            if let Some(patched) = self.patch(&revision.name_any(), &patch).await?
                && owner::is_controlled_by(&patched.metadata, &uid)
            {
                claimed.push(patched);
            }
        }
        sort(&mut claimed);
        Ok(claimed)
    }

    /// Creates a revision, under another name when somebody else's has the one wanted; `collisions` then rises.
    pub(crate) async fn create(
        &self,
        template: &PodTemplateSpec,
        number: i64,
        collisions: &mut Option<i32>,
    ) -> Result<ControllerRevision> {
        let api = self.context.api::<ControllerRevision>(&self.namespace());
        let first = collisions.unwrap_or_default();
        loop {
            let wanted = new_revision(self.owner, template, self.hash_label, number, *collisions);
            match api.create(&PostParams::default(), &wanted).await {
                Err(error) if error.is_already_exists() => {}
                other => return Ok(other?),
            }
            let existing = api.get(&wanted.name_any()).await?;
            let uid = self.owner.meta().uid.clone().unwrap_or_default();
            if owner::is_controlled_by(&existing.metadata, &uid) && stands_for(&existing, template)
            {
                // Ours, and only not in the cache yet.
                return Ok(existing);
            }
            let next = collisions.unwrap_or_default() + 1;
            *collisions = Some(next);
            if next - first > MAX_COLLISIONS {
                return Err(Error::Invalid(format!(
                    "the name {:?} is taken by another ControllerRevision",
                    wanted.name_any()
                )));
            }
        }
    }

    /// Gives a revision a new number: a rollback makes the old one the newest.
    pub(crate) async fn renumber(
        &self,
        revision: &ControllerRevision,
        number: i64,
    ) -> Result<ControllerRevision> {
        if revision.revision >= number {
            return Ok(revision.clone());
        }
        let patch = json!({
            "metadata": {"resourceVersion": revision.resource_version()},
            "revision": number,
        });
        let patched = self.patch(&revision.name_any(), &patch).await?;
        patched.ok_or_else(|| {
            Error::Invalid(format!(
                "ControllerRevision {:?} is gone",
                revision.name_any()
            ))
        })
    }

    /// Deletes the oldest revisions beyond the limit whose `in_use` is false.
    pub(crate) async fn truncate(
        &self,
        revisions: &[ControllerRevision],
        limit: Option<i32>,
        in_use: impl Fn(&ControllerRevision) -> bool,
    ) -> Result<()> {
        let api = self.context.api::<ControllerRevision>(&self.namespace());
        for revision in surplus(revisions, limit, in_use) {
            let params = DeleteParams {
                preconditions: Some(Preconditions {
                    uid: revision.uid(),
                    resource_version: None,
                }),
                ..DeleteParams::default()
            };
            unless_gone(api.delete(&revision.name_any(), &params).await)?;
        }
        Ok(())
    }

    pub(crate) async fn delete(&self, revision: &ControllerRevision) -> Result<()> {
        let api = self.context.api::<ControllerRevision>(&self.namespace());
        unless_gone(
            api.delete(&revision.name_any(), &DeleteParams::default())
                .await,
        )?;
        Ok(())
    }

    async fn patch(&self, name: &str, patch: &Value) -> Result<Option<ControllerRevision>> {
        let api = self.context.api::<ControllerRevision>(&self.namespace());
        let patched = api
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await;
        Ok(unless_gone(patched)?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::api::apps::v1::DaemonSet;
    use k8s_openapi::api::core::v1::{Container, PodSpec};

    use super::*;

    fn template(image: &str) -> PodTemplateSpec {
        let container = Container {
            name: "main".into(),
            image: Some(image.into()),
            ..Container::default()
        };
        PodTemplateSpec {
            metadata: None,
            spec: Some(PodSpec {
                containers: vec![container],
                ..PodSpec::default()
            }),
        }
    }

    fn revision(image: &str, number: i64) -> ControllerRevision {
        let mut owner = DaemonSet::default();
        owner.metadata.name = Some("web".into());
        new_revision(&owner, &template(image), REVISION_LABEL, number, None)
    }

    #[test]
    fn a_revision_brings_its_template_back_whole() {
        let revision = revision("nginx:1", 1);
        let data = &revision.data.as_ref().unwrap().0;
        assert_eq!(
            data.pointer("/spec/template/$patch"),
            Some(&json!("replace"))
        );
        assert!(stands_for(&revision, &template("nginx:1")));
        assert!(!stands_for(&revision, &template("nginx:2")));
        let hash = revision.labels()[REVISION_LABEL].clone();
        assert_eq!(revision.name_any(), format!("web-{hash}"));
    }

    #[test]
    fn the_oldest_unused_revisions_go_first() {
        let all = [
            revision("a", 1),
            revision("b", 2),
            revision("c", 3),
            revision("d", 4),
        ];
        let used = all[0].name_any();
        let names: Vec<String> = surplus(&all, Some(1), |r| r.name_any() == used)
            .map(ResourceExt::name_any)
            .collect();
        assert_eq!(names, [all[1].name_any(), all[2].name_any()]);
        assert_eq!(next_number(&all), 5);
    }
}
