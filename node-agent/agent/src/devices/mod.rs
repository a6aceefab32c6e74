//! Devices that plugins offer to pods (device plugins, v1beta1).
//!
//! Plugins register at `kubelet.sock` in a folder of the node, tell which devices of one extended resource there
//! are, and what a container needs to use them. A pod gets its devices when it is admitted and keeps them, over
//! restarts of its containers and of the agent, until nothing of it runs any more.

mod book;
mod listing;
mod plugin;
mod register;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use balsa_api::quantity::Quantity;
use balsa_device_plugin::HEALTHY;
use k8s_openapi::api::core::v1::{Container, Pod};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, info_span, warn};

use crate::durable;
use crate::pods::capacity::Refusal;
pub(crate) use book::{Amount, Extras};
use book::{Book, Grant, Ids, Record};
pub(crate) use listing::Listing;
use plugin::{Plugin, words};

/// What is kept for a restarted agent, in the folder of the sockets.
const CHECKPOINT: &str = "checkpoint.json";

/// The devices of a node.
pub(crate) struct Devices {
    /// Folder of the sockets.
    folder: PathBuf,
    state: Mutex<State>,
    /// Pods get devices one after the other. Never waited for with `state` locked.
    turn: tokio::sync::Mutex<()>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    book: Book,
    plugins: HashMap<String, Connected>,
    /// How many have registered.
    count: u64,
}

struct Connected {
    plugin: Plugin,
    number: u64,
    /// Ends the task that follows it.
    stop: CancellationToken,
}

impl Devices {
    /// As a former agent left them; `folder` is that of the plugins' sockets.
    pub(crate) fn new(folder: PathBuf) -> Arc<Self> {
        let record = load(&folder).unwrap_or_else(|error| {
            warn!(%error, folder = %folder.display(), "cannot read which devices pods hold");
            Record::default()
        });
        Arc::new(Self {
            folder,
            state: Mutex::new(State {
                book: Book::recall(record, Instant::now()),
                ..State::default()
            }),
            turn: tokio::sync::Mutex::new(()),
            changed: Notify::new(),
        })
    }

    /// How many devices of each resource there are.
    pub(crate) fn amounts(&self) -> BTreeMap<String, Amount> {
        self.state.lock().book.amounts(Instant::now())
    }

    /// Returns when the amounts may have changed.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Names of the resources that are counted here and not in the node's books.
    pub(crate) fn names(&self) -> BTreeSet<String> {
        self.state.lock().book.names()
    }

    /// Does the pod ask for devices?
    pub(crate) fn wanted_by(&self, pod: &Pod) -> bool {
        let state = self.state.lock();
        containers(pod).any(|(container, _)| !wants(&state.book, container).is_empty())
    }

    /// Gives a pod's containers their devices, or says why not. Again is fine: they get those they had.
    pub(crate) async fn admit(&self, pod: &Pod) -> Result<(), Refusal> {
        let _turn = self.turn.lock().await;
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let given = self.give(uid, pod).await;
        if given.is_err() {
            self.state.lock().book.release(uid);
        }
        self.save();
        given.map_err(|why| {
            let message =
                format!("Pod was rejected: Allocate failed due to {why}, which is unexpected");
            ("UnexpectedAdmissionError".to_owned(), message)
        })
    }

    async fn give(&self, uid: &str, pod: &Pod) -> Result<(), String> {
        // Init containers have ended when the others start, which then get the same devices; sidecars have not.
        let mut reusable: BTreeMap<String, Ids> = BTreeMap::new();
        for (container, ends) in containers(pod) {
            let wants = wants(&self.state.lock().book, container);
            for (resource, count) in wants {
                let reuse = reusable.entry(resource.clone()).or_default();
                let owner = (uid, container.name.as_str());
                let had = self.give_some(owner, &resource, count, reuse).await?;
                if ends {
                    reuse.extend(had);
                } else {
                    reuse.retain(|id| !had.contains(id));
                }
            }
        }
        Ok(())
    }

    /// Gives a container its devices of one resource, and tells which.
    async fn give_some(
        &self,
        owner: (&str, &str),
        resource: &str,
        count: usize,
        reusable: &Ids,
    ) -> Result<Ids, String> {
        let (choice, plugin) = {
            let state = self.state.lock();
            let choice = state.book.choices(owner, resource, count, reusable)?;
            let plugin = state.plugins.get(resource);
            (choice, plugin.map(|connected| connected.plugin.clone()))
        };
        let Some(choice) = choice else {
            let state = self.state.lock();
            let held = state.book.held(owner.0, owner.1);
            let grant = held.and_then(|held| held.get(resource));
            return Ok(grant.map(|grant| grant.devices.clone()).unwrap_or_default());
        };
        let Some(mut plugin) = plugin else {
            return Err(format!("unknown Device Plugin {resource}"));
        };
        let preferred = plugin.prefer(&choice).await;
        let preferred = preferred.map_err(|status| {
            format!(
                "device plugin GetPreferredAllocation rpc failed with err: {}",
                words(&status)
            )
        })?;
        let devices = choice.take(&preferred);
        let extras = plugin.allocate(&devices).await;
        let extras = extras.map_err(|status| words(&status))?;
        let grant = Grant {
            devices: devices.clone(),
            extras,
        };
        self.state.lock().book.grant(owner, resource, grant);
        Ok(devices)
    }

    /// Has the devices of a container made ready for its start, and tells what it needs to use them. The error is
    /// for people.
    pub(crate) async fn prepare(&self, uid: &str, container: &str) -> Result<Extras, String> {
        let held: Vec<(Grant, Option<Plugin>)> = {
            let state = self.state.lock();
            let held = state.book.held(uid, container).into_iter().flatten();
            held.map(|(resource, grant)| {
                let connected = state.plugins.get(resource);
                (grant.clone(), connected.map(|own| own.plugin.clone()))
            })
            .collect()
        };
        let mut all = Extras::default();
        for (grant, plugin) in held {
            // A plugin that is away does not hold up restarts of what it was asked about before.
            if let Some(mut plugin) = plugin {
                let ready = plugin.pre_start(&grant.devices).await;
                ready.map_err(|status| {
                    format!(
                        "device plugin PreStartContainer rpc failed with err: {}",
                        words(&status)
                    )
                })?;
            }
            all.join(grant.extras);
        }
        Ok(all)
    }

    /// Nothing of the pod runs any more.
    pub(crate) fn release(&self, uid: &str) {
        let held = self.state.lock().book.release(uid);
        if held {
            self.save();
        }
    }

    /// Takes devices back from pods that went while no agent ran.
    pub(crate) fn retain(&self, alive: impl Fn(&str) -> bool) {
        let changed = self.state.lock().book.retain(alive);
        if changed {
            self.save();
        }
    }

    /// Takes a plugin on in place of an earlier one of its resource, and follows it until it goes.
    fn connect(self: &Arc<Self>, resource: &str, plugin: Plugin, stop: CancellationToken) {
        let mut state = self.state.lock();
        state.count += 1;
        let number = state.count;
        let connected = Connected {
            plugin: plugin.clone(),
            number,
            stop: stop.clone(),
        };
        let old = state.plugins.insert(resource.to_owned(), connected);
        drop(state);
        if let Some(old) = old {
            old.stop.cancel();
        }
        let (devices, resource) = (Arc::clone(self), resource.to_owned());
        let span = info_span!("device-plugin", resource);
        let follow = async move {
            let why = tokio::select! {
                () = stop.cancelled() => return,
                why = devices.follow(&resource, plugin, number) => why,
            };
            warn!(why, "the device plugin is gone");
            devices.lose(&resource, number);
        };
        tokio::spawn(follow.instrument(span));
    }

    /// Enters what a plugin tells until it tells no more, and then says why.
    async fn follow(&self, resource: &str, mut plugin: Plugin, number: u64) -> String {
        let mut stream = match plugin.list_and_watch().await {
            Ok(stream) => stream,
            Err(status) => return words(&status),
        };
        loop {
            let list = match stream.message().await {
                Ok(Some(list)) => list.devices,
                Ok(None) => return "it ended its list of devices".to_owned(),
                Err(status) => return words(&status),
            };
            info!(count = list.len(), "the device plugin tells of its devices");
            let near = list.iter().filter_map(|device| {
                let nodes = device.topology.as_ref()?.nodes.iter();
                Some((device.id.clone(), nodes.map(|node| node.id).collect()))
            });
            let near = near.collect();
            let devices = list
                .into_iter()
                .map(|device| (device.id, device.health == HEALTHY));
            let mut state = self.state.lock();
            if state.is_current(resource, number) {
                state.book.update(resource, devices);
                state.book.place(resource, near);
            }
            drop(state);
            self.save();
            self.changed.notify_one();
        }
    }

    fn lose(&self, resource: &str, number: u64) {
        let mut state = self.state.lock();
        if state.is_current(resource, number) {
            state.plugins.remove(resource);
            state.book.lose(resource, Instant::now());
        }
        drop(state);
        self.changed.notify_one();
    }

    fn save(&self) {
        let record = self.state.lock().book.record(Instant::now());
        if let Err(error) = save(&self.folder, &record) {
            warn!(%error, "could not remember which devices pods hold");
        }
    }
}

impl State {
    fn is_current(&self, resource: &str, number: u64) -> bool {
        self.plugins
            .get(resource)
            .is_some_and(|connected| connected.number == number)
    }
}

/// The containers of a pod in the order in which they get devices, and whether each ends before the next starts.
fn containers(pod: &Pod) -> impl Iterator<Item = (&Container, bool)> {
    let spec = pod.spec.iter();
    spec.flat_map(|spec| {
        let inits = spec.init_containers.iter().flatten();
        let inits = inits.map(|init| (init, init.restart_policy.as_deref() != Some("Always")));
        inits.chain(spec.containers.iter().map(|container| (container, false)))
    })
}

/// What a container asks for of plugins' resources. Requests of such resources are always equal to limits.
fn wants(book: &Book, container: &Container) -> Vec<(String, usize)> {
    let limits = container.resources.as_ref();
    let limits = limits.and_then(|resources| resources.limits.as_ref());
    let known = limits
        .into_iter()
        .flatten()
        .filter(|(name, _)| book.knows(name));
    let counted = known.filter_map(|(name, amount)| {
        let amount: Quantity = amount.0.parse().ok()?;
        Some((name.clone(), usize::try_from(amount.value()).ok()?))
    });
    counted.collect()
}

fn load(folder: &std::path::Path) -> io::Result<Record> {
    match std::fs::read(folder.join(CHECKPOINT)) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Record::default()),
        Err(error) => Err(error),
    }
}

/// Writes it, whole or not at all.
fn save(folder: &std::path::Path, record: &Record) -> io::Result<()> {
    durable::write(&folder.join(CHECKPOINT), &serde_json::to_vec(record)?)
}
