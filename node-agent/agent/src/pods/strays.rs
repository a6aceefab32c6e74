//! Cleans up after pods that the node has and the API has not.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, info_span, warn};

use super::context::Context;
use super::mailbox::Snapshot;
use super::ops;

/// Pods that are cleaned up after at once. A node that comes back may have a hundred, beside new ones to start.
const AT_ONCE: usize = 8;

/// Namespace and name, as far as they are known.
type Names = (String, String);

/// Those that are being cleaned up after.
pub(super) struct Strays {
    under_way: Mutex<HashSet<String>>,
    turns: Semaphore,
}

impl Default for Strays {
    fn default() -> Self {
        Self {
            under_way: Mutex::default(),
            turns: Semaphore::new(AT_ONCE),
        }
    }
}

/// Takes a pod out of those under way, however its task ends.
struct UnderWay {
    strays: Arc<Strays>,
    uid: String,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.strays.under_way.lock().remove(&self.uid);
    }
}

/// Pods that the runtime has and the API has not, and those that neither has but that left folders or control groups.
pub(super) fn find(
    context: &Context,
    snapshots: &HashMap<String, Snapshot>,
    known: impl Fn(&str) -> bool,
) -> HashMap<String, Names> {
    let mut strays: HashMap<String, Names> = HashMap::new();
    for (uid, snapshot) in snapshots
        .iter()
        .filter(|(uid, _)| !uid.is_empty() && !known(uid))
    {
        let names = snapshot
            .sandboxes
            .first()
            .map(|sandbox| (sandbox.namespace.clone(), sandbox.name.clone()));
        strays.insert(uid.clone(), names.unwrap_or_default());
    }
    // An agent may have been killed just when it had made the groups, or had only them left to remove.
    let groups = context.cgroups.pods().into_iter();
    for uid in groups.chain(folder_names(&context.paths.pods())) {
        if !known(&uid) {
            strays.entry(uid).or_default();
        }
    }
    for name in folder_names(&context.paths.logs()) {
        let mut parts = name.splitn(3, '_').map(str::to_owned);
        if let (Some(namespace), Some(pod), Some(uid)) = (parts.next(), parts.next(), parts.next())
            && !known(&uid)
        {
            strays.insert(uid, (namespace, pod));
        }
    }
    strays.retain(|uid, _| {
        let with_driver = context.csi.has_volumes(uid) && !snapshots.contains_key(uid);
        if with_driver {
            // Drivers may take long; the rest is cleaned up when they are through.
            context.csi.abandon(uid);
        }
        !with_driver
    });
    strays
}

impl Strays {
    /// Whether a pod is being cleaned up after.
    pub(super) fn has(&self, uid: &str) -> bool {
        self.under_way.lock().contains(uid)
    }

    /// Cleans up in tasks of its own: with a runtime that hangs, each takes minutes, and the node's other pods are
    /// cared for meanwhile. What fails is found again by the next look.
    pub(super) fn clean(
        self: &Arc<Self>,
        context: &Arc<Context>,
        found: HashMap<String, Names>,
        stop: &CancellationToken,
    ) {
        for (uid, names) in found {
            if !self.under_way.lock().insert(uid.clone()) {
                continue;
            }
            let under_way = UnderWay {
                strays: Arc::clone(self),
                uid,
            };
            let (context, stop) = (Arc::clone(context), stop.clone());
            let task = async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = clean_one(&context, &under_way, names) => {}
                }
            };
            tokio::spawn(task.instrument(info_span!("stray-pod")));
        }
    }
}

async fn clean_one(context: &Context, under_way: &UnderWay, (namespace, name): Names) {
    let uid = under_way.uid.as_str();
    let Ok(_turn) = under_way.strays.turns.acquire().await else {
        return;
    };
    info!(
        uid,
        namespace, name, "cleaning up after a pod that is no more"
    );
    match ops::clean_up(context, &namespace, &name, uid).await {
        // Until now its containers may have used them.
        Ok(()) => context.devices.release(uid),
        Err(error) => warn!(error, uid, "could not clean up after a pod"),
    }
    context.routes.forget(uid);
}

fn folder_names(dir: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}
