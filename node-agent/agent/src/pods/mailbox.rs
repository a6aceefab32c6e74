//! What a pod's worker is told. News of the same sort replace each other, so a slow worker costs no memory.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use balsa_cri::{ContainerInfo, Nanos, SandboxInfo};
use balsa_pod::Rejection;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::ops::Done;
use crate::probes::{ProbeKind, Verdict};

/// The runtime's whole state of one pod at a time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshot {
    pub(crate) sandboxes: Vec<SandboxInfo>,
    pub(crate) containers: Vec<ContainerInfo>,
}

/// News since the worker last looked.
#[derive(Default)]
pub(crate) struct News {
    /// The pod has changed.
    pub(crate) pod: Option<Arc<Pod>>,
    /// The pod is no longer in the API.
    pub(crate) gone: bool,
    /// Processes that ended, by container or sandbox.
    pub(crate) exits: HashMap<String, (i32, Nanos)>,
    /// Containers that the out-of-memory killer struck.
    pub(crate) ooms: HashSet<String>,
    /// Containers that changed somehow.
    pub(crate) changed: HashSet<String>,
    /// The whole state, and when its collection began.
    pub(crate) snapshot: Option<(Instant, Snapshot)>,
    /// Steps that ended.
    pub(crate) done: Vec<Done>,
    /// Results of probes, by instance.
    pub(crate) probes: BTreeMap<(String, ProbeKind), Verdict>,
    /// Objects that the pod refers to have changed.
    pub(crate) objects_changed: bool,
    /// The machine's clock was set: times that were noted by it mean nothing any more.
    pub(crate) clock_set: bool,
    /// The node wants the pod gone.
    pub(crate) evict: Option<Rejection>,
    /// There may be room for a resize that waits.
    pub(crate) resize_again: bool,
    /// The mirror pod of a static one, as the API has it; the inner `None` when it has none.
    pub(crate) mirror: Option<Option<Arc<Pod>>>,
}

/// A worker's mailbox.
#[derive(Default)]
pub(crate) struct Mailbox {
    news: Mutex<News>,
    wake: Notify,
}

impl Mailbox {
    /// Adds to the news and wakes the worker.
    pub(crate) fn tell(&self, change: impl FnOnce(&mut News)) {
        change(&mut self.news.lock());
        self.wake.notify_one();
    }

    /// Takes all news.
    pub(crate) fn take(&self) -> News {
        std::mem::take(&mut self.news.lock())
    }

    /// Waits for news. May return without any.
    pub(crate) async fn wait(&self) {
        self.wake.notified().await;
    }
}
