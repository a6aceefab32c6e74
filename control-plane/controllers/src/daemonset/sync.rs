//! One reconcile of one DaemonSet.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Instant;

use balsa_client::{EventType, Key, Outcome};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetSpec, DaemonSetStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::PostParams;

use super::Controller;
use super::decide::{self, Plan, View};
use super::pod::new_pod;
use crate::error::{self, Result, unless_gone};
use crate::support::batches::slow_start;
use crate::support::history::{self, History, REVISION_LABEL};
use crate::support::pods;
use crate::support::selector::Labels;

/// Pods created or deleted in one reconcile at most.
const BURST: usize = 250;

impl Controller {
    pub(super) async fn reconcile(&self, key: Key) -> Result<Outcome> {
        let informers = &self.context.informers;
        let Some(set) = informers.daemon_sets.get(&key.namespace, &key.name) else {
            self.expectations.forget(&key);
            self.backoff.lock().tidy(Instant::now());
            return Ok(Outcome::Done);
        };
        let Some(spec) = &set.spec else {
            return Ok(Outcome::Done);
        };
        if selects_everything(spec) {
            let message =
                "This daemon set is selecting all pods. A non-empty selector is required.";
            self.recorder
                .event(&*set, EventType::Warning, "SelectingAll", message);
            return Ok(Outcome::Done);
        }
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Done);
        }
        let satisfied = self.expectations.satisfied(&key);
        let labels = Labels::parse(&spec.selector)?;
        let owned = self.pods.claim(&*set, &labels, |_| true).await?;
        let mut collisions = set
            .status
            .as_ref()
            .and_then(|status| status.collision_count);
        let history = History {
            context: &self.context,
            owner: &*set,
            hash_label: REVISION_LABEL,
        };
        let revisions = history.claim(&labels).await?;
        let (current, old) =
            current_revision(&history, spec, revisions, &owned, &mut collisions).await?;
        let hash = current
            .labels()
            .get(REVISION_LABEL)
            .cloned()
            .unwrap_or_default();
        let by_node = decide::by_node(&owned);
        let nodes = informers.nodes.list();
        let now = Timestamp::now();
        let view = View {
            set: &set,
            spec,
            nodes: &nodes,
            pods: &by_node,
            hash: &hash,
            now,
        };
        let mut retry = None;
        let worked = if satisfied {
            self.work(&key, &view).await.map(|wait| retry = wait)
        } else {
            Ok(())
        };
        if worked.is_ok() && satisfied {
            let live: BTreeSet<&String> = owned
                .iter()
                .filter_map(|pod| pod.labels().get(REVISION_LABEL))
                .collect();
            history
                .truncate(&old, spec.revision_history_limit, |revision| {
                    revision
                        .labels()
                        .get(REVISION_LABEL)
                        .is_some_and(|hash| live.contains(hash))
                })
                .await?;
        }
        self.write_status(&set, decide::status(&view, collisions, satisfied))
            .await?;
        worked?;
        let available =
            pods::next_available(&owned, spec.min_ready_seconds.unwrap_or_default(), now);
        Ok([retry, available]
            .into_iter()
            .flatten()
            .min()
            .map_or(Outcome::Done, Outcome::After))
    }

    /// Pods where they are missing; when nothing is, the next step of an update.
    async fn work(&self, key: &Key, view: &View<'_>) -> Result<Option<std::time::Duration>> {
        let uid = view.set.uid().unwrap_or_default();
        let now = Instant::now();
        let plan = decide::manage(view, |node| {
            let failing = format!("{uid}/{}/{node}", view.hash);
            self.backoff.lock().wait(&failing, now)
        });
        let retry = plan.retry;
        let idle = plan.create.is_empty() && plan.delete.is_empty();
        self.carry_out(key, view, plan).await?;
        let strategy = view
            .spec
            .update_strategy
            .as_ref()
            .and_then(|s| s.type_.as_deref());
        if idle && strategy != Some("OnDelete") {
            self.carry_out(key, view, decide::roll(view)).await?;
        }
        Ok(retry)
    }

    async fn carry_out(&self, key: &Key, view: &View<'_>, mut plan: Plan) -> Result<()> {
        for (type_, reason, message) in plan.events {
            self.recorder.event(view.set, type_, reason, message);
        }
        plan.create.truncate(BURST);
        plan.delete.truncate(BURST);
        if plan.create.is_empty() && plan.delete.is_empty() {
            return Ok(());
        }
        let uids = plan
            .delete
            .iter()
            .filter_map(|pod| pod.uid())
            .collect::<HashSet<_>>();
        self.expectations.expect(key, plan.create.len(), uids);
        let created = self.create(key, view, &plan.create).await;
        let deleted = self.delete(key, view.set, &plan.delete).await;
        created.and(deleted)
    }

    async fn create(&self, key: &Key, view: &View<'_>, nodes: &[String]) -> Result<()> {
        let done = slow_start(nodes.len(), |i| async move {
            let pod = nodes
                .get(i)
                .and_then(|node| new_pod(view.set, view.hash, node));
            let Some(pod) = pod else { return Ok(()) };
            match self.pods.create(view.set, &pod).await {
                Ok(_) => Ok(()),
                Err(error) => {
                    self.expectations.created(key, 1);
                    if error::namespace_terminating(&error) {
                        Ok(())
                    } else {
                        Err(error.into())
                    }
                }
            }
        })
        .await;
        self.expectations.created(key, done.skipped);
        done.error.map_or(Ok(()), Err)
    }

    async fn delete(&self, key: &Key, set: &DaemonSet, victims: &[Arc<Pod>]) -> Result<()> {
        let deletions = victims.iter().map(|pod| async move {
            let deleted = self.pods.delete(set, pod).await;
            if deleted.is_err() {
                let uid = pod.metadata.uid.as_deref().unwrap_or_default();
                self.expectations.deleted(key, uid);
            }
            deleted
        });
        let results = futures::future::join_all(deletions).await;
        results.into_iter().collect::<kube::Result<Vec<()>>>()?;
        Ok(())
    }

    async fn write_status(&self, set: &DaemonSet, status: DaemonSetStatus) -> Result<()> {
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let api = self
            .context
            .api::<DaemonSet>(&set.namespace().unwrap_or_default());
        let updated = DaemonSet {
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

fn selects_everything(spec: &DaemonSetSpec) -> bool {
    spec.selector
        .match_labels
        .as_ref()
        .is_none_or(|labels| labels.is_empty())
        && spec
            .selector
            .match_expressions
            .as_ref()
            .is_none_or(Vec::is_empty)
}

/// The revision of the current template, made or made the newest if need be, and all others, oldest first.
/// Of several equal ones the newest stays; pods of the others get its hash.
async fn current_revision(
    history: &History<'_, DaemonSet>,
    spec: &DaemonSetSpec,
    revisions: Vec<ControllerRevision>,
    owned: &[Arc<Pod>],
    collisions: &mut Option<i32>,
) -> Result<(ControllerRevision, Vec<ControllerRevision>)> {
    let (mut equal, old): (Vec<_>, Vec<_>) = revisions
        .into_iter()
        .partition(|revision| history::stands_for(revision, &spec.template));
    let number = history::next_number(&old);
    let Some(newest) = equal.pop() else {
        let created = history.create(&spec.template, number, collisions).await?;
        return Ok((created, old));
    };
    for duplicate in &equal {
        relabel(history, duplicate, &newest, owned).await?;
        history.delete(duplicate).await?;
    }
    Ok((history.renumber(&newest, number).await?, old))
}

/// Pods of a duplicate revision become pods of the one that stays, so that they are not replaced.
async fn relabel(
    history: &History<'_, DaemonSet>,
    from: &ControllerRevision,
    to: &ControllerRevision,
    owned: &[Arc<Pod>],
) -> Result<()> {
    let hash = |revision: &ControllerRevision| revision.labels().get(REVISION_LABEL).cloned();
    for pod in owned
        .iter()
        .filter(|pod| pod.labels().get(REVISION_LABEL).cloned() == hash(from))
    {
        let patch = serde_json::json!({"metadata": {"labels": {REVISION_LABEL: hash(to)}}});
        let api = history
            .context
            .api::<Pod>(&pod.namespace().unwrap_or_default());
        let patch = kube::api::Patch::Merge(&patch);
        let params = kube::api::PatchParams::default();
        unless_gone(api.patch(&pod.name_any(), &params, &patch).await)?;
    }
    Ok(())
}
