//! Metadata of all kinds that the API server serves: watched once, by the garbage collector, for everybody.

use std::sync::atomic::{AtomicU64, Ordering};

use balsa_client::Informer;
use kube::api::DynamicObject;
use kube::core::PartialObjectMeta;
use parking_lot::RwLock;
use tokio::sync::watch;

/// Name, uid, owners and finalizers of an object.
pub(crate) type Meta = PartialObjectMeta<DynamicObject>;

/// A kind that is watched.
#[derive(Clone)]
pub(crate) struct WatchedKind {
    pub(crate) group: String,
    pub(crate) plural: String,
    /// Of this watch: a kind that goes and comes back has another one.
    pub(crate) serial: u64,
    pub(crate) informer: Informer<Meta>,
}

/// The kinds that are watched now.
pub(crate) struct Metadata {
    kinds: RwLock<Vec<WatchedKind>>,
    next: AtomicU64,
    changed: watch::Sender<()>,
}

impl Default for Metadata {
    fn default() -> Self {
        Self {
            kinds: RwLock::default(),
            next: AtomicU64::new(0),
            changed: watch::Sender::new(()),
        }
    }
}

impl Metadata {
    pub(crate) fn add(&self, group: &str, plural: &str, informer: Informer<Meta>) {
        let kind = WatchedKind {
            group: group.to_owned(),
            plural: plural.to_owned(),
            serial: self.next.fetch_add(1, Ordering::Relaxed),
            informer,
        };
        let mut kinds = self.kinds.write();
        kinds.retain(|known| known.group != group || known.plural != plural);
        kinds.push(kind);
        drop(kinds);
        self.changed.send_replace(());
    }

    pub(crate) fn remove(&self, group: &str, plural: &str) {
        self.kinds
            .write()
            .retain(|known| known.group != group || known.plural != plural);
        self.changed.send_replace(());
    }

    pub(crate) fn all(&self) -> Vec<WatchedKind> {
        self.kinds.read().clone()
    }

    pub(crate) fn find(&self, group: &str, plural: &str) -> Option<WatchedKind> {
        let kinds = self.kinds.read();
        kinds
            .iter()
            .find(|kind| kind.group == group && kind.plural == plural)
            .cloned()
    }

    /// Tells when kinds come or go.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}
