//! Drivers come and go by their sockets in the folder of plugins: a socket that appears is asked who it is, the
//! driver behind it is met and made known, and it is told how that went (KEP-595, pluginregistration v1).

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use balsa_csi::PLUGIN_TYPE;
use balsa_csi::registration::registration_client::RegistrationClient;
use balsa_csi::registration::{InfoRequest, PluginInfo, RegistrationStatus};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tracing::{debug, info, warn};

use super::api::Api;
use super::driver::{Driver, endpoint};
use super::node;
use super::paths::Layout;

/// How often the folder is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Pauses between attempts to register one plugin.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Time allowed to a plugin to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// How often objects of the API are tried to be written before somebody else's change.
const CONFLICTS: u32 = 5;

/// The drivers that have registered.
pub(crate) struct Registry {
    layout: Layout,
    api: Arc<dyn Api>,
    drivers: watch::Sender<BTreeMap<String, Driver>>,
    /// Held while the API's objects about drivers are brought up to date.
    writing: Mutex<()>,
}

/// Tells a socket from a later one of the same name.
type Stamp = (u64, i64, i64);

/// A socket that is there.
struct Socket {
    stamp: Stamp,
    /// What it is registered as.
    name: Option<String>,
    /// When to try again, and how long to pause after that; `None` when there is nothing to try.
    next: Option<(Instant, Duration)>,
}

/// How an attempt to register ended: with a driver's name, with nothing as it is none of ours, or to be repeated.
type Attempt = (PathBuf, Stamp, Result<Option<String>, String>);

impl Registry {
    pub(super) fn new(layout: Layout, api: Arc<dyn Api>) -> Self {
        Self {
            layout,
            api,
            drivers: watch::channel(BTreeMap::new()).0,
            writing: Mutex::default(),
        }
    }

    /// A registered driver.
    pub(super) fn get(&self, name: &str) -> Option<Driver> {
        self.drivers.borrow().get(name).cloned()
    }

    /// A registered driver; after the agent's start they need a moment.
    ///
    /// # Errors
    /// When it has not registered within the limit; in upstream's words.
    pub(super) async fn wait(&self, name: &str, limit: Duration) -> Result<Driver, String> {
        let mut seen = self.drivers.subscribe();
        let known = seen.wait_for(|drivers| drivers.contains_key(name));
        let known = tokio::time::timeout(limit, known).await;
        let driver = match known {
            Ok(Ok(drivers)) => drivers.get(name).cloned(),
            _ => None,
        };
        driver.ok_or_else(|| unknown(name))
    }

    /// Names of the registered drivers.
    pub(super) fn names(&self) -> Vec<String> {
        self.drivers.borrow().keys().cloned().collect()
    }

    /// Asks a driver again how it knows the node; the API is told with the next [`Registry::publish`].
    pub(super) async fn refresh(&self, name: &str) {
        let Some(driver) = self.get(name) else { return };
        match driver.identify().await {
            Ok(identity) => self.drivers.send_modify(|drivers| {
                // Where the node is and how it is called does not change while the driver runs.
                if let Some(known) = drivers.get_mut(name) {
                    known.identity.limit = identity.limit;
                }
            }),
            Err(error) => debug!(
                error,
                name, "a driver does not tell how many volumes it takes"
            ),
        }
    }

    /// Follows the folder until stopped.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut sockets: HashMap<PathBuf, Socket> = HashMap::new();
        let mut attempts: JoinSet<Attempt> = JoinSet::new();
        loop {
            self.compare(&mut sockets).await;
            let now = Instant::now();
            for (path, socket) in &mut sockets {
                if socket.next.is_some_and(|(at, _)| at <= now) {
                    // Until its end is heard of, nothing is tried.
                    if let Some((at, _)) = &mut socket.next {
                        *at = now + Duration::from_secs(3600);
                    }
                    let (this, path, stamp) = (Arc::clone(&self), path.clone(), socket.stamp);
                    attempts.spawn(async move {
                        let result = this.register(&path).await;
                        (path, stamp, result)
                    });
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
                Some(ended) = attempts.join_next() => if let Ok(ended) = ended {
                    self.note(&mut sockets, ended).await;
                },
            }
        }
    }

    /// Notes which sockets came and went.
    async fn compare(&self, sockets: &mut HashMap<PathBuf, Socket>) {
        let found = sockets_in(&self.layout.registry());
        let mut gone = Vec::new();
        sockets.retain(|path, socket| {
            let stays = found.get(path) == Some(&socket.stamp);
            if !stays {
                gone.extend(socket.name.take());
            }
            stays
        });
        for (path, stamp) in found {
            sockets.entry(path).or_insert_with(|| Socket {
                stamp,
                name: None,
                next: Some((Instant::now(), RETRY.0)),
            });
        }
        self.remove(sockets, gone).await;
    }

    /// Forgets drivers whose sockets are gone, unless they have others.
    async fn remove(&self, sockets: &HashMap<PathBuf, Socket>, mut gone: Vec<String>) {
        gone.retain(|name| {
            let mut left = sockets.values().filter_map(|socket| socket.name.as_ref());
            !left.any(|other| other == name)
        });
        if gone.is_empty() {
            return;
        }
        info!(drivers = ?gone, "CSI drivers are gone");
        self.drivers.send_modify(|drivers| {
            drivers.retain(|name, _| !gone.contains(name));
        });
        if let Err(error) = self.publish().await {
            warn!(error, "could not take CSI drivers out of the CSINode");
        }
    }

    async fn note(&self, sockets: &mut HashMap<PathBuf, Socket>, ended: Attempt) {
        let (path, stamp, result) = ended;
        let socket = sockets.get_mut(&path).filter(|s| s.stamp == stamp);
        let Some(socket) = socket else {
            // It went meanwhile; if it has a successor, that registers by itself.
            let gone = result.ok().flatten().into_iter().collect();
            return self.remove(sockets, gone).await;
        };
        match result {
            Ok(name) => {
                socket.name = name;
                socket.next = None;
            }
            Err(error) => {
                warn!(error, socket = %path.display(), "could not register a plugin, trying again");
                let pause = socket.next.map_or(RETRY.0, |(_, pause)| pause);
                socket.next = Some((Instant::now() + pause, (pause * 2).min(RETRY.1)));
            }
        }
    }

    /// Asks a plugin who it is and makes it known.
    async fn register(&self, socket: &Path) -> Result<Option<String>, String> {
        let mut client = RegistrationClient::new(balsa_csi::channel(socket));
        let info = tokio::time::timeout(ANSWER, client.get_info(InfoRequest {})).await;
        let info = info.map_err(|_| "GetInfo: no answer".to_owned())?;
        let info = info
            .map_err(|error| format!("GetInfo: {error}"))?
            .into_inner();
        if info.r#type != PLUGIN_TYPE {
            debug!(
                kind = info.r#type,
                name = info.name,
                "a plugin of another kind"
            );
            return Ok(None);
        }
        let result = self.welcome(&info, socket).await;
        let error = result.as_ref().err().cloned().unwrap_or_default();
        tell(&mut client, result.is_ok(), error).await;
        result.map(|()| Some(info.name))
    }

    async fn welcome(&self, info: &PluginInfo, socket: &Path) -> Result<(), String> {
        if !info.supported_versions.iter().any(|v| is_version_1(v)) {
            return Err(format!(
                "driver {} supports the CSI versions {:?}, and only version 1 is supported",
                info.name, info.supported_versions
            ));
        }
        let at = self.layout.on_node(&endpoint(&info.endpoint, socket));
        let driver = Driver::meet(&at).await?;
        info!(driver = info.name, able = ?driver.able, "a CSI driver has registered");
        let before = self.get(&info.name);
        self.drivers.send_modify(|drivers| {
            drivers.insert(info.name.clone(), driver);
        });
        if let Err(error) = self.publish().await {
            // What the scheduler does not know of must not be used.
            if before.is_none() {
                self.drivers.send_modify(|drivers| {
                    drivers.remove(&info.name);
                });
            }
            return Err(format!("error updating CSINode object: {error}"));
        }
        Ok(())
    }

    /// Brings what the API knows of the node's drivers up to date. Again is fine.
    pub(super) async fn publish(&self) -> Result<(), String> {
        let _writing = self.writing.lock().await;
        let node = self.api.node().ok_or("the Node is not known yet")?;
        let drivers: node::Drivers = self
            .drivers
            .borrow()
            .iter()
            .map(|(name, driver)| (name.clone(), driver.identity.clone()))
            .collect();
        // Before the CSINode: whoever reads there that the driver is here looks for the labels next.
        if let Some(patch) = node::node_patch(&node, &drivers) {
            self.api.patch_node(&patch).await?;
        }
        let mut last = String::new();
        for _ in 0..CONFLICTS {
            let current = self.api.csi_node().await?;
            let step = current
                .as_ref()
                .and_then(|current| node::without_changed(current, &drivers));
            let last_step = step.is_none();
            let Some(object) = step.or_else(|| node::wanted(current.as_ref(), &node, &drivers))
            else {
                return Ok(());
            };
            match self.api.write_csi_node(&object).await {
                Ok(()) if last_step => return Ok(()),
                Ok(()) => {}
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// What is said of a driver that has not registered.
pub(super) fn unknown(name: &str) -> String {
    format!("driver name {name} not found in the list of registered CSI drivers")
}

async fn tell(client: &mut RegistrationClient<Channel>, registered: bool, error: String) {
    let status = RegistrationStatus {
        plugin_registered: registered,
        error,
    };
    let told = tokio::time::timeout(ANSWER, client.notify_registration_status(status)).await;
    if !matches!(told, Ok(Ok(_))) {
        // It may have gone already; when it comes again it is asked again.
        debug!("a plugin did not take the news of its registration");
    }
}

fn is_version_1(version: &str) -> bool {
    let version = version.strip_prefix('v').unwrap_or(version);
    version == "1" || version.starts_with("1.")
}

fn sockets_in(folder: &Path) -> HashMap<PathBuf, Stamp> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let sockets = entries.filter_map(|entry| {
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        let metadata = entry.metadata().ok()?;
        let is = metadata.file_type().is_socket() && !hidden;
        let stamp = (metadata.ino(), metadata.ctime(), metadata.ctime_nsec());
        is.then(|| (entry.path(), stamp))
    });
    sockets.collect()
}
