//! A simulated machine: its disk, and the member and clients that run on it, again after each crash.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::Rng;

use super::clients;
use super::history::{Heard, History, Value};
use crate::config::{Config, Tuning};
use crate::observer::Observer;
use crate::state::Reader;
use crate::store::Store;
use crate::types::{Event, MemberId, Revision};

/// The port of every member.
const PORT: u16 = 7000;

/// What the whole simulation shares.
#[derive(Debug, Clone, Default)]
pub(super) struct World {
    over: Arc<AtomicBool>,
    values: Arc<AtomicU64>,
    pub members: u64,
    /// Clients rest long between what they do.
    pub quiet: bool,
}

impl World {
    /// Of so many members.
    pub fn of(members: u64, quiet: bool) -> Self {
        Self {
            members,
            quiet,
            ..Self::default()
        }
    }

    /// Clients stop.
    pub fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    pub fn next_value(&self) -> Value {
        self.values.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Something that a member is told to do.
#[derive(Debug, Clone, Copy)]
pub(super) enum Order {
    Add(MemberId),
    Transfer,
}

/// One machine. A cheap handle.
#[derive(Clone)]
pub(super) struct Node {
    pub id: MemberId,
    pub world: World,
    pub history: History,
    shared: Arc<Shared>,
}

struct Shared {
    dir: Mutex<PathBuf>,
    disks: AtomicU64,
    store: Mutex<Option<Store>>,
    orders: Mutex<VecDeque<Order>>,
    watched_to: AtomicU64,
    latency_ms: AtomicU64,
    wall_jump_ms: AtomicU64,
    founded: AtomicBool,
}

/// The host's name of a member.
pub(super) fn host(id: MemberId) -> String {
    format!("m{id}")
}

pub(super) fn address(id: MemberId) -> String {
    format!("{}:{PORT}", host(id))
}

struct Ear {
    id: MemberId,
    history: History,
}

impl Observer for Ear {
    fn applied(&self, revision: Revision, events: &[Event]) {
        let changes = events.iter().map(Into::into).collect();
        self.history
            .hear(self.id, Heard::Applied(revision, changes));
    }

    fn reset(&self, reader: &Reader) {
        self.history.hear(self.id, Heard::Reset(reader.revision()));
    }
}

impl Node {
    pub fn new(id: MemberId, world: World, history: History, root: &Path) -> Self {
        let shared = Shared {
            dir: Mutex::new(root.join(format!("{id}-0"))),
            disks: AtomicU64::new(0),
            store: Mutex::default(),
            orders: Mutex::default(),
            watched_to: AtomicU64::new(0),
            latency_ms: AtomicU64::new(1),
            wall_jump_ms: AtomicU64::new(0),
            founded: AtomicBool::new(false),
        };
        Self {
            id,
            world,
            history,
            shared: Arc::new(shared),
        }
    }

    pub fn watched_to(&self) -> Revision {
        self.shared.watched_to.load(Ordering::Relaxed)
    }

    pub fn set_watched_to(&self, revision: Revision) {
        self.shared.watched_to.store(revision, Ordering::Relaxed);
    }

    pub fn order(&self, order: Order) {
        self.shared.orders.lock().push_back(order);
    }

    /// The store that runs here, if one does.
    pub fn store(&self) -> Option<Store> {
        self.shared.store.lock().clone()
    }

    /// How long the disk takes from now on.
    pub fn set_latency(&self, ms: u64) {
        self.shared.latency_ms.store(ms, Ordering::Relaxed);
        if let Some(store) = &*self.shared.store.lock() {
            store.disk().plan.latency_ms.store(ms, Ordering::Relaxed);
        }
    }

    /// The wall clock is off by this from the next start on.
    pub fn set_wall_jump(&self, ms: u64) {
        self.shared.wall_jump_ms.store(ms, Ordering::Relaxed);
    }

    /// Before a crash: keeps what is on the disk now, without what closing the files would add.
    pub fn freeze_disk(&self) -> std::io::Result<()> {
        let mut dir = self.shared.dir.lock();
        let number = self.shared.disks.fetch_add(1, Ordering::Relaxed) + 1;
        let next = dir.with_file_name(format!("{}-{number}", self.id));
        // RocksDB's own threads may be at work: what is copied must be of one moment.
        loop {
            let before = listing(&dir)?;
            copy(&dir, &next)?;
            if listing(&dir)? == before {
                break;
            }
            std::fs::remove_dir_all(&next)?;
        }
        *dir = next;
        *self.shared.store.lock() = None;
        Ok(())
    }

    /// Before a crash: the disk is lost.
    pub fn lose_disk(&self) {
        let mut dir = self.shared.dir.lock();
        let number = self.shared.disks.fetch_add(1, Ordering::Relaxed) + 1;
        *dir = dir.with_file_name(format!("{}-{number}", self.id));
        *self.shared.store.lock() = None;
        self.set_watched_to(0);
        self.history.see(self.id, super::history::Seen::From(1));
    }

    fn config(&self) -> Config {
        let mut config = Config::new(
            self.shared.dir.lock().clone(),
            self.id,
            address(self.id),
            ([0, 0, 0, 0], PORT).into(),
            None,
        );
        config.timings.request = Duration::from_secs(2);
        config.tuning = Tuning {
            snapshot_entries: 60,
            keep_entries: 40,
            history_age: Duration::from_secs(20),
            history_revisions: 200,
            window_bytes: 20_000,
            write_buffer_bytes: 256 << 10,
            cache_bytes: 1 << 20,
            ..Tuning::default()
        };
        config
    }

    /// What runs on the machine.
    pub async fn run(self) -> turmoil::Result {
        super::set_wall_jump(self.shared.wall_jump_ms.load(Ordering::Relaxed));
        let ear = Ear {
            id: self.id,
            history: self.history.clone(),
        };
        let store = Store::open(self.config(), Arc::new(ear)).await?;
        let latency = self.shared.latency_ms.load(Ordering::Relaxed);
        store
            .disk()
            .plan
            .latency_ms
            .store(latency, Ordering::Relaxed);
        *self.shared.store.lock() = Some(store.clone());
        let begin = self.id == 1 && !self.shared.founded.swap(true, Ordering::Relaxed);
        if begin {
            store.initialize().await?;
            for id in 2..=self.world.members {
                self.order(Order::Add(id));
            }
        }
        tokio::spawn(self.clone().follow_leaders(store.clone()));
        tokio::spawn(self.clone().hear_complaints(store.clone()));
        tokio::spawn(clients::watch(self.clone(), store.clone()));
        tokio::spawn(clients::leases(self.clone(), store.clone()));
        for n in 0..2 {
            let client = usize::try_from(self.id)? * 10 + n;
            tokio::spawn(clients::registers(self.clone(), store.clone(), client));
        }
        self.obey(store).await;
        Ok(())
    }

    async fn follow_leaders(self, store: Store) {
        let mut leadership = store.leadership();
        loop {
            let now = *leadership.borrow_and_update();
            self.history.0.lock().leaderships.push((self.id, now));
            if leadership.changed().await.is_err() {
                return;
            }
        }
    }

    async fn hear_complaints(self, store: Store) {
        loop {
            let problems = store.health().problems;
            self.history.0.lock().complaints.extend(problems);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn obey(&self, store: Store) {
        loop {
            // An order is there until it is carried out, however often the member dies meanwhile.
            let order = self.shared.orders.lock().front().cloned();
            let done = match order {
                Some(Order::Add(id)) => store.add_member(id, address(id)).await,
                Some(Order::Transfer) => {
                    // Whether it works in the middle of faults is of no matter.
                    let _ = store.transfer_leadership(None).await;
                    Ok(())
                }
                None => Ok(()),
            };
            match done {
                Ok(()) if order.is_some() => drop(self.shared.orders.lock().pop_front()),
                Ok(()) => {}
                Err(error) => tracing::debug!(%error, ?order, "an order is tried again"),
            }
            let pause = rand::rng().random_range(20..60);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }

    /// All orders are carried out.
    pub fn is_idle(&self) -> bool {
        self.shared.orders.lock().is_empty()
    }

    /// Orders of a member that died go to another.
    pub fn take_orders(&self) -> Vec<Order> {
        std::mem::take(&mut *self.shared.orders.lock()).into()
    }
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let (path, target) = {
            let entry = entry?;
            (entry.path(), to.join(entry.file_name()))
        };
        if path.is_dir() {
            copy(&path, &target)?;
        } else {
            // RocksDB may delete a file meanwhile, after which it names it no more.
            match std::fs::copy(&path, &target) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

/// All files and their sizes.
fn listing(dir: &Path) -> std::io::Result<BTreeMap<PathBuf, u64>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => files.extend(listing(&entry.path())?),
            Ok(metadata) => drop(files.insert(entry.path(), metadata.len())),
            // Deleted meanwhile.
            Err(_) => {}
        }
    }
    Ok(files)
}
