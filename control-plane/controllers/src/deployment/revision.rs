//! Revisions: template hashes, the annotations that carry history, and which set is the new one. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::ResourceExt;

use super::math;
use crate::support::owner;
use crate::support::template::{HASH_LABEL, same_template, template_hash};

pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
pub(super) const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub(super) const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
pub(super) const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const ROLLBACK_TO: &str = "deprecated.deployment.rollback.to";
/// Longest revision history kept, in characters.
const HISTORY_LIMIT: usize = 2000;

/// The set that has the Deployment's template. Of several the oldest, so that all controllers agree.
/// `sets` are given oldest first.
pub(super) fn find_new<'a>(
    deployment: &Deployment,
    sets: &'a [ReplicaSet],
) -> Option<&'a ReplicaSet> {
    let template = &deployment.spec.as_ref()?.template;
    sets.iter().find(|set| {
        let own = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
        own.is_some_and(|own| same_template(own, template))
    })
}

pub(super) fn revision(set: &ReplicaSet) -> i64 {
    set.annotations()
        .get(REVISION)
        .and_then(|text| text.parse().ok())
        .unwrap_or_default()
}

/// The revision that a set with the current template should have.
pub(super) fn next_revision<'a>(old: impl IntoIterator<Item = &'a ReplicaSet>) -> i64 {
    old.into_iter().map(revision).max().unwrap_or_default() + 1
}

/// Annotations of the new set: the Deployment's own, its revision, and where that was before.
/// Equal to the current ones when nothing is to be changed.
pub(super) fn new_set_annotations(
    deployment: &Deployment,
    current: &BTreeMap<String, String>,
    revision: i64,
    exists: bool,
) -> BTreeMap<String, String> {
    let mut annotations = current.clone();
    for (key, value) in deployment.annotations() {
        if !is_own(key) {
            annotations.insert(key.clone(), value.clone());
        }
    }
    let old = annotations.get(REVISION).cloned().unwrap_or_default();
    if old.parse::<i64>().unwrap_or_default() < revision {
        annotations.insert(REVISION.into(), revision.to_string());
        if exists && !old.is_empty() {
            let history = annotations.get(REVISION_HISTORY).map(String::as_str);
            annotations.insert(REVISION_HISTORY.into(), append_history(history, &old));
        }
    }
    if !exists {
        annotations.extend(size_annotations(deployment));
    }
    annotations
}

fn append_history(history: Option<&str>, revision: &str) -> String {
    let mut revisions: Vec<&str> = history
        .into_iter()
        .flat_map(|history| history.split(','))
        .collect();
    revisions.push(revision);
    while revisions
        .iter()
        .map(|revision| revision.len() + 1)
        .sum::<usize>()
        > HISTORY_LIMIT + 1
    {
        revisions.remove(0);
    }
    revisions.join(",")
}

fn is_own(key: &str) -> bool {
    [
        REVISION,
        REVISION_HISTORY,
        DESIRED_REPLICAS,
        MAX_REPLICAS,
        LAST_APPLIED,
        ROLLBACK_TO,
    ]
    .contains(&key)
}

/// What a set must remember of the Deployment's size, to be resized in proportion later.
pub(super) fn size_annotations(deployment: &Deployment) -> [(String, String); 2] {
    let wanted = math::wanted(deployment);
    let max = wanted + math::fenceposts(deployment).surge;
    [
        (DESIRED_REPLICAS.into(), wanted.to_string()),
        (MAX_REPLICAS.into(), max.to_string()),
    ]
}

/// A new set for the Deployment's template.
pub(super) fn new_set(
    deployment: &Deployment,
    old: &[&ReplicaSet],
    revision: i64,
) -> Option<ReplicaSet> {
    let spec = deployment.spec.as_ref()?;
    let collisions = deployment
        .status
        .as_ref()
        .and_then(|status| status.collision_count);
    let hash = template_hash(&spec.template, collisions);
    let mut template = spec.template.clone();
    let labels = template
        .metadata
        .get_or_insert_default()
        .labels
        .get_or_insert_default();
    labels.insert(HASH_LABEL.into(), hash.clone());
    let mut match_labels = spec.selector.match_labels.clone().unwrap_or_default();
    match_labels.insert(HASH_LABEL.into(), hash.clone());
    Some(ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.name_any())),
            namespace: deployment.namespace(),
            labels: Some(labels.clone()),
            annotations: Some(new_set_annotations(
                deployment,
                &BTreeMap::new(),
                revision,
                false,
            )),
            owner_references: Some(vec![owner::controller_ref(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(math::new_set_size(deployment, old, 0)),
            min_ready_seconds: spec.min_ready_seconds,
            selector: LabelSelector {
                match_labels: Some(match_labels),
                ..spec.selector.clone()
            },
            template: Some(template),
        }),
        ..ReplicaSet::default()
    })
}

/// Old sets to delete for `revisionHistoryLimit`.
pub(super) fn to_clean_up<'a>(
    deployment: &Deployment,
    old: &[&'a ReplicaSet],
) -> Vec<&'a ReplicaSet> {
    let limit = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.revision_history_limit)
        .unwrap_or(10);
    if limit == i32::MAX {
        return Vec::new();
    }
    let mut candidates: Vec<&ReplicaSet> = old
        .iter()
        .filter(|set| set.metadata.deletion_timestamp.is_none())
        .copied()
        .collect();
    let surplus = candidates
        .len()
        .saturating_sub(usize::try_from(limit).unwrap_or_default());
    candidates.sort_by_key(|set| {
        (
            revision(set),
            set.metadata.creation_timestamp.as_ref().map(|time| time.0),
        )
    });
    candidates.truncate(surplus);
    candidates.retain(|set| {
        let status = set.status.as_ref();
        let observed = status
            .and_then(|status| status.observed_generation)
            .unwrap_or_default();
        math::size(set) == 0
            && status.is_none_or(|status| status.replicas == 0)
            && set.metadata.generation.unwrap_or_default() <= observed
    });
    candidates
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::api::apps::v1::{DeploymentSpec, ReplicaSetStatus};
    use k8s_openapi::api::core::v1::{Container, PodSpec, PodTemplateSpec};

    use super::*;

    fn deployment(image: &str) -> Deployment {
        let container = Container {
            image: Some(image.into()),
            ..Container::default()
        };
        let spec = PodSpec {
            containers: vec![container],
            ..PodSpec::default()
        };
        let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        Deployment {
            metadata: ObjectMeta {
                name: Some("web".into()),
                uid: Some("d".into()),
                ..ObjectMeta::default()
            },
            spec: Some(DeploymentSpec {
                replicas: Some(3),
                selector: LabelSelector {
                    match_labels: Some(labels.clone()),
                    ..LabelSelector::default()
                },
                template: PodTemplateSpec {
                    metadata: Some(ObjectMeta {
                        labels: Some(labels),
                        ..ObjectMeta::default()
                    }),
                    spec: Some(spec),
                },
                ..DeploymentSpec::default()
            }),
            ..Deployment::default()
        }
    }

    #[test]
    fn a_set_is_found_by_its_template_whatever_its_hash() {
        let deployment = deployment("nginx:1");
        let set = new_set(&deployment, &[], 1).unwrap();
        assert!(set.labels().contains_key(HASH_LABEL));
        assert_eq!(set.spec.as_ref().unwrap().replicas, Some(3));
        assert!(find_new(&deployment, std::slice::from_ref(&set)).is_some());
        assert!(find_new(&self::deployment("nginx:2"), &[set]).is_none());
    }

    #[test]
    fn a_collision_changes_the_hash() {
        let template = deployment("nginx:1").spec.unwrap().template;
        assert_eq!(
            template_hash(&template, None),
            template_hash(&template, None)
        );
        assert_ne!(
            template_hash(&template, None),
            template_hash(&template, Some(1))
        );
        assert!(
            template_hash(&template, None)
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        );
    }

    #[test]
    fn rolling_back_gives_the_old_set_a_new_revision_and_remembers_the_old_one() {
        let deployment = deployment("nginx:1");
        let current = BTreeMap::from([(REVISION.to_owned(), "1".to_owned())]);
        let annotations = new_set_annotations(&deployment, &current, 3, true);
        assert_eq!(annotations[REVISION], "3");
        assert_eq!(annotations[REVISION_HISTORY], "1");
        assert_eq!(
            new_set_annotations(&deployment, &annotations, 3, true),
            annotations
        );
    }

    #[test]
    fn only_empty_sets_beyond_the_history_limit_are_removed_the_oldest_first() {
        let set = |revision: i64, replicas: i32| {
            let mut set = ReplicaSet::default();
            set.metadata.name = Some(format!("r{revision}"));
            set.annotations_mut()
                .insert(REVISION.into(), revision.to_string());
            set.spec = Some(ReplicaSetSpec {
                replicas: Some(replicas),
                ..ReplicaSetSpec::default()
            });
            set.status = Some(ReplicaSetStatus {
                replicas,
                ..ReplicaSetStatus::default()
            });
            set
        };
        let sets = [set(4, 0), set(1, 0), set(2, 1), set(3, 0)];
        let mut deployment = deployment("nginx:1");
        deployment.spec.as_mut().unwrap().revision_history_limit = Some(1);
        let removed = to_clean_up(&deployment, &sets.iter().collect::<Vec<_>>());
        assert_eq!(
            removed.iter().map(|set| set.name_any()).collect::<Vec<_>>(),
            ["r1", "r3"]
        );
    }
}
