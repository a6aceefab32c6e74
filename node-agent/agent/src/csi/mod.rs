//! Volumes of CSI drivers, as kubelet treats them: drivers register by a socket (`registry`), are told about
//! volumes (`plan`) and asked to stage and publish them (`mount`) and to take them back (`unmount`). What has been
//! asked of a driver is written down first (`record`), so nothing of it is forgotten when the agent dies.

mod api;
mod driver;
mod expand;
mod mount;
mod node;
mod paths;
mod plan;
mod record;
mod registry;
mod selinux;
#[cfg(test)]
pub(crate) mod tests;
mod unmount;
mod upkeep;
mod usage;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use balsa_client::{Delta, EventRecorder, Informer, InformerOptions};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::Api as KubeClient;
use nix::mount::MsFlags;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span};

use crate::cluster::{Cluster, Token};
use crate::config::AgentConfig;
use crate::volumes::payload::TokenWant;
use crate::volumes::table;
use api::{Api, KubeApi};
pub(crate) use mount::Wish;
pub(crate) use paths::Layout;
use plan::Plan;
use record::Record;
use registry::Registry;
#[cfg(test)]
pub(crate) use usage::Amounts;
pub(crate) use usage::VolumeUse;

/// Volumes of CSI drivers on this node.
pub(crate) struct Csi {
    layout: Layout,
    node_name: String,
    api: Arc<dyn Api>,
    cluster: Arc<dyn Cluster>,
    recorder: EventRecorder,
    registry: Arc<Registry>,
    /// One at a time does something with a volume, by its unique name.
    busy: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    /// Pods whose volumes are taken back: nothing more is published for them.
    leaving: Mutex<HashSet<String>>,
    /// Volumes that must not be detached from the node. Locked across the write that tells the API.
    in_use: tokio::sync::Mutex<InUse>,
    /// What is published, by the pod's UID and the volume's name.
    published: Mutex<BTreeMap<(String, String), Arc<Published>>>,
    tokens: Mutex<Tokens>,
    /// How full volumes were at the last look.
    usage: Mutex<Vec<VolumeUse>>,
    /// Pods that are no more and left volumes behind.
    strays: Mutex<BTreeSet<String>>,
    /// There is something to look after.
    bell: Notify,
    /// The Node may have been made anew, and know of no volumes in use.
    forgotten: AtomicBool,
}

/// Tokens at hand with when to renew them, by pod.
type Tokens = HashMap<(String, TokenWant), (Token, Timestamp)>;

/// Volumes that must not be detached.
#[derive(Default)]
struct InUse {
    names: BTreeSet<String>,
    /// The API does not know them all.
    untold: bool,
}

/// A published volume.
struct Published {
    pod: Pod,
    plan: Plan,
    /// Namespace and name of the claim that it is bound to.
    claim: Option<(String, String)>,
}

impl Csi {
    /// Reads what earlier agents left, and starts to follow drivers until stopped.
    pub(crate) fn start(
        config: &AgentConfig,
        client: &kube::Client,
        nodes: Informer<Node>,
        cluster: Arc<dyn Cluster>,
        recorder: EventRecorder,
        stop: &CancellationToken,
    ) -> Arc<Self> {
        let drivers = Informer::start(
            KubeClient::all(client.clone()),
            InformerOptions::default(),
            stop.clone(),
        );
        let api = KubeApi {
            client: client.clone(),
            node_name: config.node_name.clone(),
            nodes: nodes.clone(),
            drivers,
        };
        let csi = Arc::new(Self::new(
            config.layout(),
            config.node_name.clone(),
            Arc::new(api),
            cluster,
            recorder,
        ));
        let watcher = Arc::downgrade(&csi);
        nodes.on_change(move |delta| {
            if let (Delta::Added(node) | Delta::Deleted(node), Some(csi)) =
                (delta, watcher.upgrade())
                && node.metadata.name.as_ref() == Some(&csi.node_name)
            {
                csi.forgotten.store(true, Ordering::Release);
                csi.bell.notify_waiters();
            }
        });
        let follow = Arc::clone(&csi.registry).run(stop.clone());
        tokio::spawn(follow.instrument(info_span!("csi-registration")));
        let upkeep = Arc::clone(&csi).keep(stop.clone());
        tokio::spawn(upkeep.instrument(info_span!("csi-upkeep")));
        let strays = Arc::clone(&csi).clear_strays(stop.clone());
        tokio::spawn(strays.instrument(info_span!("csi-strays")));
        csi
    }

    fn new(
        layout: Layout,
        node_name: String,
        api: Arc<dyn Api>,
        cluster: Arc<dyn Cluster>,
        recorder: EventRecorder,
    ) -> Self {
        let csi = Self {
            registry: Arc::new(Registry::new(layout.clone(), Arc::clone(&api))),
            layout,
            node_name,
            api,
            cluster,
            recorder,
            busy: Mutex::default(),
            leaving: Mutex::default(),
            in_use: tokio::sync::Mutex::default(),
            published: Mutex::default(),
            tokens: Mutex::default(),
            usage: Mutex::default(),
            strays: Mutex::default(),
            bell: Notify::new(),
            forgotten: AtomicBool::new(false),
        };
        let names = csi.attached_on_disk();
        Self {
            in_use: tokio::sync::Mutex::new(InUse {
                names,
                untold: true,
            }),
            ..csi
        }
    }

    /// Where drivers find the agent's folders.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Has a pod volumes of drivers on the node?
    pub(crate) fn has_volumes(&self, uid: &str) -> bool {
        !self.layout.records_of_pod(uid).is_empty()
    }

    /// A pod that is no more left volumes: they are taken back in the background.
    pub(crate) fn abandon(&self, uid: &str) {
        self.strays.lock().insert(uid.to_owned());
        self.bell.notify_waiters();
    }

    /// Nothing is left of a pod.
    pub(crate) fn forget(&self, uid: &str) {
        self.leaving.lock().remove(uid);
    }

    /// Volumes with an attachment that some earlier agent had a driver mount.
    fn attached_on_disk(&self) -> BTreeSet<String> {
        let pods = self.layout.pods_with_folders();
        let of_pods = pods.iter().flat_map(|uid| self.layout.records_of_pod(uid));
        let records = of_pods.chain(self.layout.records_of_node());
        records
            .filter_map(|folder| Record::read(&folder).ok())
            .filter(|record| !record.attachment.is_empty())
            .map(|record| record.unique_name())
            .collect()
    }

    /// Waits until nobody else does something with the volume.
    async fn claim_volume(&self, record: &Record) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut busy = self.busy.lock();
            busy.retain(|_, lock| lock.strong_count() > 0);
            let known = busy.get(&record.unique_name()).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let lock = Arc::new(tokio::sync::Mutex::new(()));
                busy.insert(record.unique_name(), Arc::downgrade(&lock));
                lock
            })
        };
        lock.lock_owned().await
    }

    /// Keeps the attach-detach controller from detaching a volume; the API knows when this returns.
    async fn hold(&self, record: &Record) -> Result<(), String> {
        if record.attachment.is_empty() {
            return Ok(());
        }
        let mut in_use = self.in_use.lock().await;
        let new = in_use.names.insert(record.unique_name());
        if new || in_use.untold {
            self.tell_in_use(&mut in_use).await?;
        }
        Ok(())
    }

    /// Lets a volume be detached.
    async fn let_go(&self, record: &Record) {
        let mut in_use = self.in_use.lock().await;
        if in_use.names.remove(&record.unique_name())
            && let Err(error) = self.tell_in_use(&mut in_use).await
        {
            // The upkeep tells it again.
            tracing::warn!(error, "could not write which volumes are in use");
        }
    }

    async fn tell_in_use(&self, in_use: &mut InUse) -> Result<(), String> {
        in_use.untold = true;
        let patch = serde_json::json!({"status": {"volumesInUse": in_use.names}});
        self.api.patch_node_status(&patch).await?;
        in_use.untold = false;
        Ok(())
    }
}

/// Makes the agent's folder a shared mount, so that what drivers mount below it in their containers shows on the
/// node (mount propagation), and makes the folders that drivers expect. Again is fine. Blocking.
///
/// The runtime's folder stays a private one: the kernel would copy each container's root file system into every
/// container that is being set up at that moment.
pub(crate) fn make_folders(layout: &Layout, runtime: &Path) -> io::Result<()> {
    for folder in [layout.registry(), layout.plugins()] {
        std::fs::create_dir_all(folder)?;
    }
    let root = layout.plugins();
    let root = root.parent().unwrap_or(&root);
    if !table::is_shared(root)? {
        mount_on_itself(root, MsFlags::MS_SHARED)?;
    }
    // What is mounted there already would be left below the new mount.
    if table::is_shared(runtime)? && table::below(runtime)?.is_empty() {
        mount_on_itself(runtime, MsFlags::MS_PRIVATE)?;
    }
    Ok(())
}

/// Makes a folder, with what is mounted below it, a mount of its own that propagates as said.
fn mount_on_itself(folder: &Path, propagation: MsFlags) -> io::Result<()> {
    let none = None::<&Path>;
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    nix::mount::mount(Some(folder), folder, none, bind, none)?;
    nix::mount::mount(none, folder, none, propagation | MsFlags::MS_REC, none)?;
    Ok(())
}

/// Runs system calls where they may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, String> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())
}
