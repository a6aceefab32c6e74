//! The watch cache: every object of every resource in memory, fed by the store in the order of its
//! revisions. All lists and watches, and most reads, are served from here.
//!
//! Lock order: a resource's lock is a leaf; nothing is awaited or locked under it. The cache's revision is
//! raised after all resources have taken a batch, so whoever has seen revision r finds r's changes in every
//! resource and in every watcher's queue.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use balsa_api::kind::Kind;
use balsa_api::kinds::converter;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::watch;

pub mod event;
mod kept;
pub mod keys;
pub mod resource;
mod skeleton;
pub mod stored;

pub use event::{Encoding, EventType, WatchEvent};
pub use resource::{Resource, Scope, Subscription, TooOld};
pub use stored::Stored;

use crate::backend::{Event, KeyValue};
use crate::seam::ObjectReader;

/// All resources, by group (the core group as the store's keys name it) and plural name. Several are looked up for
/// each request, so that takes no memory.
#[derive(Default, Clone)]
struct Resources(HashMap<Box<str>, HashMap<Box<str>, Arc<Resource>>>);

impl Resources {
    fn get(&self, group: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.0.get(keys::group_id(group))?.get(plural)
    }

    fn insert(&mut self, resource: Arc<Resource>) {
        let kind = Arc::clone(&resource.kind);
        let group = self
            .0
            .entry(keys::group_id(&kind.group).into())
            .or_default();
        group.insert((*kind.plural).into(), resource);
    }

    fn remove(&mut self, group: &str, plural: &str) {
        if let Some(group) = self.0.get_mut(keys::group_id(group)) {
            group.remove(plural);
        }
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.0.values().flat_map(HashMap::values)
    }
}

/// See the module.
pub struct Cache {
    resources: ArcSwap<Resources>,
    revision: watch::Sender<u64>,
    synced: AtomicBool,
    /// Held while a batch is taken, so that a new resource begins between batches.
    applying: Mutex<()>,
}

/// The cache did not reach a revision in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this server has applied revision {current}, revision {wanted} is not there yet; try again"
)]
pub struct Behind {
    /// What was wanted.
    pub wanted: u64,
    /// What is there.
    pub current: u64,
}

impl Cache {
    /// An empty cache for these kinds. It is usable once the store has called [`Cache::reset`].
    #[must_use]
    pub fn new<'a>(kinds: impl IntoIterator<Item = &'a Arc<Kind>>) -> Arc<Self> {
        let mut resources = Resources::default();
        let own = |kind: &&Arc<Kind>| converter(&kind.group, &kind.version, &kind.kind).is_none();
        for kind in kinds.into_iter().filter(own) {
            // A resource in several versions is stored once, in the version declared first.
            if resources.get(&kind.group, &kind.plural).is_none() {
                resources.insert(Arc::new(Resource::new(Arc::clone(kind))));
            }
        }
        Arc::new(Self {
            resources: ArcSwap::from_pointee(resources),
            revision: watch::Sender::new(0),
            synced: AtomicBool::new(false),
            applying: Mutex::new(()),
        })
    }

    /// One resource.
    #[must_use]
    pub fn resource(&self, group: &str, plural: &str) -> Option<Arc<Resource>> {
        self.resources.load().get(group, plural).cloned()
    }

    /// All resources.
    #[must_use]
    pub fn resources(&self) -> Vec<Arc<Resource>> {
        self.resources.load().all().cloned().collect()
    }

    /// Begins to keep a resource that was not known before. `range` reads all objects under a prefix at a
    /// revision from the store; it is called without locks, and again when that revision is gone.
    ///
    /// # Errors
    /// What `range` says when it cannot read.
    pub fn add_resource<E>(
        &self,
        kind: &Arc<Kind>,
        range: impl Fn(&str, u64) -> Result<Vec<KeyValue>, E>,
    ) -> Result<Arc<Resource>, E> {
        if let Some(resource) = self.resource(&kind.group, &kind.plural) {
            return Ok(resource);
        }
        let resource = Arc::new(Resource::filling(Arc::clone(kind)));
        let at = {
            let _applying = self.applying.lock();
            self.resources.rcu(|resources| {
                let mut resources = Resources::clone(resources);
                resources.insert(Arc::clone(&resource));
                resources
            });
            self.revision()
        };
        match range(&resource.prefix, at) {
            Ok(kvs) => {
                let objects = kvs.iter().filter_map(|kv| {
                    let (_, key) = keys::split(&kv.key)?;
                    Stored::new(&resource.kind, key, &kv.value, kv.mod_revision)
                });
                resource.fill(objects.collect(), at);
                Ok(resource)
            }
            Err(error) => {
                self.remove_resource(&kind.group, &kind.plural);
                Err(error)
            }
        }
    }

    /// Forgets a resource; its watchers are cut off.
    pub fn remove_resource(&self, group: &str, plural: &str) {
        let _applying = self.applying.lock();
        let Some(resource) = self.resource(group, plural) else {
            return;
        };
        self.resources.rcu(|resources| {
            let mut resources = Resources::clone(resources);
            resources.remove(group, plural);
            resources
        });
        resource.replace(Vec::new(), self.revision());
    }

    /// The revision that all resources have reached.
    #[must_use]
    pub fn revision(&self) -> u64 {
        *self.revision.borrow()
    }

    /// True once the store's state has been loaded.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.synced.load(Ordering::Acquire)
    }

    /// Waits until the cache has reached a revision.
    ///
    /// # Errors
    /// [`Behind`] after `patience`.
    pub async fn wait_for(&self, revision: u64, patience: Duration) -> Result<(), Behind> {
        if self.revision() >= revision {
            return Ok(());
        }
        let mut receiver = self.revision.subscribe();
        let reached = tokio::time::timeout(patience, receiver.wait_for(|r| *r >= revision)).await;
        match reached {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Behind {
                wanted: revision,
                current: self.revision(),
            }),
        }
    }

    /// Takes a batch of changes, in order, from the store's apply thread.
    pub fn applied(&self, revision: u64, events: &[Event]) {
        let _applying = self.applying.lock();
        let resources = self.resources.load();
        for event in events {
            let Some((id, key)) = keys::split(event.key()) else {
                continue;
            };
            let Some(resource) = id.split_once('/').and_then(|(g, p)| resources.get(g, p)) else {
                continue;
            };
            match event {
                Event::Put { kv, .. } => {
                    match Stored::new(&resource.kind, key, &kv.value, kv.mod_revision) {
                        Some(stored) => resource.apply(key, kv.mod_revision, Some(stored)),
                        None => tracing::error!(
                            key,
                            "an object in the store is no JSON object; it is not served"
                        ),
                    }
                }
                Event::Delete { revision, .. } => resource.apply(key, *revision, None),
            }
        }
        self.revision.send_replace(revision);
    }

    /// Replaces everything: `range` gives all keys under a prefix.
    pub fn reset(&self, revision: u64, mut range: impl FnMut(&str) -> Vec<KeyValue>) {
        let _applying = self.applying.lock();
        for resource in self.resources.load().all() {
            let objects = range(&resource.prefix)
                .iter()
                .filter_map(|kv| {
                    let (_, key) = keys::split(&kv.key)?;
                    Stored::new(&resource.kind, key, &kv.value, kv.mod_revision)
                })
                .collect();
            resource.replace(objects, revision);
        }
        self.revision.send_replace(revision);
        self.synced.store(true, Ordering::Release);
    }
}

impl ObjectReader for Cache {
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.resource(group, resource)?
            .get(&keys::object_key(namespace, name))
            .map(|s| s.value())
    }

    fn list(&self, group: &str, resource: &str, namespace: Option<&str>) -> Vec<Arc<Value>> {
        let Some(resource) = self.resource(group, resource) else {
            return Vec::new();
        };
        resource
            .snapshot(namespace.unwrap_or(""), None)
            .objects
            .iter()
            .map(|s| s.value())
            .collect()
    }

    fn generation(&self, group: &str, resource: &str) -> u64 {
        self.resources
            .load()
            .get(group, resource)
            .map_or(0, |r| r.generation())
    }
}

#[cfg(test)]
mod tests;
