//! The garbage collector: what has lost its last owner is deleted.
//!
//! Metadata of all kinds is watched into a [`Graph`]. What the graph points at is checked against the server
//! itself before anything is destroyed: caches may be behind, the server is not.

pub(crate) mod discovery;
mod graph;
mod source;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use balsa_client::{Informer, InformerOptions, MetadataSource, Outcome, WorkQueue};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;
use kube::api::{
    Api, DeleteParams, DynamicObject, ObjectMeta, Patch, PatchParams, Preconditions,
    PropagationPolicy,
};
use kube::discovery::Scope;
use parking_lot::{Mutex, RwLock};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::discovery::{Served, discover};
use self::graph::{
    FOREGROUND, Graph, Identity, ORPHAN, OwnerState, Snapshot, Verdict, Work, judge,
};
use self::source::LeanSource;
use crate::context::Shared;
use crate::error::{ApiError, Error, Result, unless_gone};
use crate::metadata::Meta;

/// How often discovery is asked for new kinds.
const REDISCOVER: Duration = Duration::from_secs(30);
/// From the change of a CustomResourceDefinition or APIService to that of discovery.
const ESTABLISHED: Duration = Duration::from_millis(500);
/// Longest wait for all kinds at start; whoever is later is only missed by foreground deletions until then.
const SYNC_DEADLINE: Duration = Duration::from_secs(30);
/// Uids known not to exist; forgotten all at once when there are many.
const ABSENT_REMEMBERED: usize = 10_000;

type Kinds = HashMap<(String, String), Served>;

struct Collector {
    context: Shared,
    /// Kinds may have come or gone.
    rediscover: Arc<Notify>,
    graph: Mutex<Graph>,
    kinds: RwLock<Arc<Kinds>>,
    absent: Mutex<HashSet<String>>,
    delete: WorkQueue<String>,
    orphan: WorkQueue<String>,
}

pub(crate) async fn run(context: Shared) {
    let collector = Arc::new(Collector {
        rediscover: Arc::default(),
        graph: Mutex::default(),
        kinds: RwLock::default(),
        absent: Mutex::default(),
        delete: WorkQueue::default(),
        orphan: WorkQueue::default(),
        context: Arc::clone(&context),
    });
    let mut monitors = Monitors {
        collector: Arc::clone(&collector),
        running: HashMap::new(),
        plurals: HashMap::new(),
    };
    monitors.refresh().await;
    if tokio::time::timeout(SYNC_DEADLINE, monitors.synced())
        .await
        .is_err()
    {
        tracing::warn!("some kinds cannot be watched; collecting garbage of the others");
    }
    let (deleter, orphaner) = (Arc::clone(&collector), Arc::clone(&collector));
    let delete = context.work("garbage-collector", collector.delete.clone(), move |uid| {
        let this = Arc::clone(&deleter);
        async move { this.attempt_delete(&uid).await }
    });
    let orphan = context.work("orphaner", collector.orphan.clone(), move |uid| {
        let this = Arc::clone(&orphaner);
        async move { this.attempt_orphan(&uid).await }
    });
    tokio::join!(delete, orphan, monitors.run(&context));
}

/// One metadata informer per kind.
struct Monitors {
    collector: Arc<Collector>,
    running: HashMap<(String, String), (Informer<Meta>, CancellationToken)>,
    plurals: HashMap<(String, String), String>,
}

impl Monitors {
    async fn run(&mut self, context: &Shared) {
        loop {
            tokio::select! {
                () = context.stop.cancelled() => return,
                () = tokio::time::sleep(REDISCOVER) => {}
                () = self.collector.rediscover.notified() => {
                    // Several come at once, and are served a moment later.
                    tokio::time::sleep(ESTABLISHED).await;
                }
            }
            self.refresh().await;
        }
    }

    async fn refresh(&mut self) {
        let found = discover(&self.collector.context.client).await;
        let kinds = found.by_kind();
        if !found.failed.is_empty() {
            tracing::debug!(failed = ?found.failed, "discovery is incomplete");
        }
        for (kind, served) in &kinds {
            let collectable = ["list", "watch", "delete"]
                .iter()
                .all(|verb| served.can(verb));
            if collectable && kind.1 != "Event" && !self.running.contains_key(kind) {
                let started = self.start(served);
                let metadata = &self.collector.context.metadata;
                metadata.add(&kind.0, &served.api.plural, started.0.clone());
                self.plurals.insert(kind.clone(), served.api.plural.clone());
                self.running.insert(kind.clone(), started);
            }
        }
        // Only a complete answer tells that a kind is gone.
        if found.failed.is_empty() {
            self.running.retain(|kind, (informer, stop)| {
                let served = kinds.contains_key(kind);
                if !served {
                    stop.cancel();
                    let plural = self.plurals.remove(kind).unwrap_or_default();
                    self.collector.context.metadata.remove(&kind.0, &plural);
                    for object in informer.list() {
                        self.collector.gone(&object);
                    }
                }
                served
            });
            *self.collector.kinds.write() = Arc::new(kinds);
        } else {
            let mut merged = (**self.collector.kinds.read()).clone();
            merged.extend(kinds);
            *self.collector.kinds.write() = Arc::new(merged);
        }
    }

    fn start(&self, served: &Served) -> (Informer<Meta>, CancellationToken) {
        let context = &self.collector.context;
        let api: Api<DynamicObject> = Api::all_with(context.client.clone(), &served.api);
        let name = api.resource_url().to_owned();
        let stop = context.stop.child_token();
        let source = LeanSource(MetadataSource(api));
        let informer = Informer::start_from(source, name, InformerOptions::default(), stop.clone());
        let (collector, group, kind) = (
            Arc::clone(&self.collector),
            served.api.group.clone(),
            served.api.kind.clone(),
        );
        let brings_kinds = matches!(kind.as_str(), "CustomResourceDefinition" | "APIService");
        informer.on_change(move |delta| {
            if brings_kinds {
                collector.rediscover.notify_one();
            }
            if delta.is_delete() {
                collector.gone(delta.object());
            } else {
                collector.seen(&group, &kind, delta.object());
            }
        });
        (informer, stop)
    }

    async fn synced(&self) {
        for (informer, _) in self.running.values() {
            informer.synced().await;
        }
    }
}

impl Collector {
    fn seen(&self, group: &str, kind: &str, object: &Meta) {
        let identity = Identity {
            group: group.to_owned(),
            kind: kind.to_owned(),
            namespace: object.namespace().unwrap_or_default(),
            name: object.name_any(),
        };
        let work = self.graph.lock().observe(identity, &object.metadata);
        self.enqueue(work);
    }

    fn gone(&self, object: &Meta) {
        let Some(uid) = object.uid() else { return };
        let work = self.graph.lock().remove(&uid);
        self.remember_absent(uid);
        self.enqueue(work);
    }

    fn remember_absent(&self, uid: String) {
        let mut absent = self.absent.lock();
        if absent.len() >= ABSENT_REMEMBERED {
            absent.clear();
        }
        absent.insert(uid);
    }

    fn enqueue(&self, work: Vec<Work>) {
        for work in work {
            match work {
                Work::Delete(uid) => self.delete.add(uid),
                Work::Orphan(uid) => self.orphan.add(uid),
            }
        }
    }

    /// The API of an object's kind, and the namespace to use with it.
    fn api(&self, group: &str, kind: &str, namespace: &str) -> Result<Api<DynamicObject>> {
        let kinds = Arc::clone(&self.kinds.read());
        let served = kinds
            .get(&(group.to_owned(), kind.to_owned()))
            .ok_or_else(|| {
                Error::Invalid(format!(
                    "the API server does not serve {kind} of group {group:?} (yet)"
                ))
            })?;
        let client = self.context.client.clone();
        Ok(match served.scope {
            Scope::Namespaced if namespace.is_empty() => {
                return Err(Error::Invalid(format!(
                    "a cluster-scoped object names a {kind} in a namespace as owner"
                )));
            }
            Scope::Namespaced => Api::namespaced_with(client, namespace, &served.api),
            Scope::Cluster => Api::all_with(client, &served.api),
        })
    }

    async fn live(&self, identity: &Identity, uid: &str) -> Result<Option<ObjectMeta>> {
        let api = self.api(&identity.group, &identity.kind, &identity.namespace)?;
        let found = api.get_metadata_opt(&identity.name).await?;
        Ok(found
            .map(|found| found.metadata)
            .filter(|meta| meta.uid.as_deref() == Some(uid)))
    }

    async fn attempt_delete(&self, uid: &str) -> Result<Outcome> {
        let Some(snapshot) = self.graph.lock().snapshot(uid) else {
            return Ok(Outcome::Done);
        };
        if snapshot.deleting && !snapshot.deleting_dependents {
            return Ok(Outcome::Done);
        }
        let Some(live) = self.live(&snapshot.identity, uid).await? else {
            self.remember_absent(uid.to_owned());
            let work = self.graph.lock().remove(uid);
            self.enqueue(work);
            return Ok(Outcome::Done);
        };
        if snapshot.deleting_dependents {
            return self.wait_for_dependents(&snapshot, &live).await;
        }
        let mut owners = Vec::new();
        for owner in live.owner_references.iter().flatten() {
            owners.push((
                owner.uid.clone(),
                self.owner_state(owner, &snapshot.identity.namespace)
                    .await?,
            ));
        }
        match judge(&owners, &snapshot) {
            Verdict::Keep => {}
            Verdict::DropReferences(gone) => {
                self.patch_owners(&snapshot.identity, &live, |owners| {
                    owners.retain(|owner| !gone.contains(&owner.uid));
                })
                .await?;
            }
            Verdict::DeleteForeground { unblock } => {
                if unblock {
                    self.patch_owners(&snapshot.identity, &live, |owners| {
                        owners
                            .iter_mut()
                            .for_each(|owner| owner.block_owner_deletion = Some(false));
                    })
                    .await?;
                }
                self.delete(&snapshot.identity, &live, PropagationPolicy::Foreground)
                    .await?;
            }
            Verdict::Delete => {
                let has = |name: &str| {
                    live.finalizers
                        .iter()
                        .flatten()
                        .any(|finalizer| finalizer == name)
                };
                let policy = if has(ORPHAN) {
                    PropagationPolicy::Orphan
                } else if has(FOREGROUND) {
                    PropagationPolicy::Foreground
                } else {
                    PropagationPolicy::Background
                };
                self.delete(&snapshot.identity, &live, policy).await?;
            }
        }
        Ok(Outcome::Done)
    }

    /// An object in foreground deletion goes when no blocking dependent is left.
    async fn wait_for_dependents(&self, snapshot: &Snapshot, live: &ObjectMeta) -> Result<Outcome> {
        let mut blocked = false;
        for dependent in snapshot
            .dependents
            .iter()
            .filter(|dependent| dependent.blocks)
        {
            blocked = true;
            if !dependent.deleting_dependents {
                self.delete.add(dependent.uid.clone());
            }
        }
        if !blocked {
            self.remove_finalizer(&snapshot.identity, live, FOREGROUND)
                .await?;
        }
        Ok(Outcome::Done)
    }

    async fn owner_state(&self, owner: &OwnerReference, namespace: &str) -> Result<OwnerState> {
        if self.absent.lock().contains(&owner.uid) {
            return Ok(OwnerState::Dangling);
        }
        let group = owner
            .api_version
            .rsplit_once('/')
            .map_or("", |(group, _)| group);
        let api = self.api(group, &owner.kind, namespace)?;
        let found = api
            .get_metadata_opt(&owner.name)
            .await?
            .map(|found| found.metadata);
        match found.filter(|meta| meta.uid.as_ref() == Some(&owner.uid)) {
            None => {
                self.remember_absent(owner.uid.clone());
                Ok(OwnerState::Dangling)
            }
            Some(meta) => {
                let foreground = meta
                    .finalizers
                    .iter()
                    .flatten()
                    .any(|finalizer| finalizer == FOREGROUND);
                let waiting = meta.deletion_timestamp.is_some() && foreground;
                Ok(if waiting {
                    OwnerState::Waiting
                } else {
                    OwnerState::Solid
                })
            }
        }
    }

    async fn attempt_orphan(&self, uid: &str) -> Result<Outcome> {
        let Some(snapshot) = self.graph.lock().snapshot(uid) else {
            return Ok(Outcome::Done);
        };
        for dependent in &snapshot.dependents {
            if let Some(live) = self.live(&dependent.identity, &dependent.uid).await? {
                self.patch_owners(&dependent.identity, &live, |owners| {
                    owners.retain(|owner| owner.uid != uid)
                })
                .await?;
            }
        }
        if let Some(live) = self.live(&snapshot.identity, uid).await? {
            self.remove_finalizer(&snapshot.identity, &live, ORPHAN)
                .await?;
        }
        Ok(Outcome::Done)
    }

    async fn patch_owners(
        &self,
        identity: &Identity,
        live: &ObjectMeta,
        change: impl FnOnce(&mut Vec<OwnerReference>),
    ) -> Result<()> {
        let mut owners = live.owner_references.clone().unwrap_or_default();
        let before = owners.clone();
        change(&mut owners);
        if owners == before {
            return Ok(());
        }
        let owners = if owners.is_empty() {
            Value::Null
        } else {
            json!(owners)
        };
        self.patch(identity, live, json!({"ownerReferences": owners}))
            .await
    }

    async fn remove_finalizer(
        &self,
        identity: &Identity,
        live: &ObjectMeta,
        name: &str,
    ) -> Result<()> {
        let mut finalizers = live.finalizers.clone().unwrap_or_default();
        if !finalizers.iter().any(|finalizer| finalizer == name) {
            return Ok(());
        }
        finalizers.retain(|finalizer| finalizer != name);
        let finalizers = if finalizers.is_empty() {
            Value::Null
        } else {
            json!(finalizers)
        };
        self.patch(identity, live, json!({"finalizers": finalizers}))
            .await
    }

    /// Merge patch of metadata, of exactly this version of this object.
    async fn patch(
        &self,
        identity: &Identity,
        live: &ObjectMeta,
        mut metadata: Value,
    ) -> Result<()> {
        if let Some(fields) = metadata.as_object_mut() {
            fields.insert("uid".into(), json!(live.uid));
            fields.insert("resourceVersion".into(), json!(live.resource_version));
        }
        let api = self.api(&identity.group, &identity.kind, &identity.namespace)?;
        let patch = Patch::Merge(json!({"metadata": metadata}));
        unless_gone(
            api.patch(&identity.name, &PatchParams::default(), &patch)
                .await,
        )?;
        Ok(())
    }

    async fn delete(
        &self,
        identity: &Identity,
        live: &ObjectMeta,
        policy: PropagationPolicy,
    ) -> Result<()> {
        let params = DeleteParams {
            propagation_policy: Some(policy),
            // The version too: a reference added a moment ago must count.
            preconditions: Some(Preconditions {
                uid: live.uid.clone(),
                resource_version: live.resource_version.clone(),
            }),
            ..DeleteParams::default()
        };
        tracing::debug!(
            kind = identity.kind,
            namespace = identity.namespace,
            name = identity.name,
            "no owner is left"
        );
        let api = self.api(&identity.group, &identity.kind, &identity.namespace)?;
        match api.delete(&identity.name, &params).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
