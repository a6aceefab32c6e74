//! Brings snapshots into the kernel, and back when somebody removed them.

use std::sync::Arc;
use std::time::Duration;

use balsa_netlink::Conntrack;
use balsa_netlink::nft::{Family, Nft, TableName};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::config::{Config, Snapshot};
use crate::stale;
use crate::state::State;

/// Changes that come within this time share a transaction.
const COALESCE: Duration = Duration::from_millis(5);
/// How often somebody else's changes are looked for: one short question to the kernel.
const CHECK: Duration = Duration::from_secs(1);
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MOST: Duration = Duration::from_secs(5);

/// The proxy of a node.
#[derive(Debug)]
pub struct Proxy;

/// Gives snapshots to a running proxy. Cheap to clone; the proxy runs until its token is cancelled.
#[derive(Debug, Clone)]
pub struct Handle {
    snapshots: Arc<watch::Sender<(u64, Arc<Snapshot>)>>,
    settled: watch::Receiver<u64>,
}

impl Handle {
    /// Replaces everything that the proxy serves. Does not wait: changes that come closely are joined.
    pub fn update(&self, snapshot: Snapshot) {
        self.snapshots.send_modify(|(version, current)| {
            *version += 1;
            *current = Arc::new(snapshot);
        });
    }

    /// Waits until the last update is in the kernel, or the proxy has stopped.
    pub async fn settled(&self) {
        let version = self.snapshots.borrow().0;
        let mut settled = self.settled.clone();
        // An error means that the proxy is gone.
        let _ = settled.wait_for(|done| *done >= version).await;
    }
}

impl Proxy {
    /// Starts the proxy. It touches the kernel only after the first [`Handle::update`], and leaves its rules
    /// behind when it stops: a restarted agent finds Services working.
    pub fn start(
        config: Config,
        nft: Arc<dyn Nft>,
        conntrack: Arc<dyn Conntrack>,
        stop: CancellationToken,
    ) -> Handle {
        let (snapshots, inbox) = watch::channel((0, Arc::new(Snapshot::default())));
        let (done, settled) = watch::channel(0);
        let health = crate::health::run(config.node_name.clone(), inbox.clone(), stop.clone());
        tokio::spawn(health.instrument(tracing::info_span!("health checks")));
        let worker = Worker::new(config, nft, conntrack);
        tokio::spawn(run(worker, inbox, done, stop).instrument(tracing::info_span!("proxy")));
        Handle {
            snapshots: Arc::new(snapshots),
            settled,
        }
    }
}

async fn run(
    worker: Worker,
    mut inbox: watch::Receiver<(u64, Arc<Snapshot>)>,
    done: watch::Sender<u64>,
    stop: CancellationToken,
) {
    let mut check = tokio::time::interval(CHECK);
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut worker = Some(worker);
    let mut version = 0;
    let mut retry: Option<(Instant, Duration)> = None;
    loop {
        let step = tokio::select! {
            () = stop.cancelled() => return,
            changed = inbox.changed() => {
                if changed.is_err() {
                    return;
                }
                tokio::time::sleep(COALESCE).await;
                let (newest, snapshot) = inbox.borrow_and_update().clone();
                version = newest;
                Step::Take(snapshot)
            }
            () = wait_until(retry.map(|(at, _)| at)) => Step::Rebuild,
            _ = check.tick(), if version > 0 && retry.is_none() => Step::Check,
        };
        let Some(mut current) = worker.take() else {
            return;
        };
        // The kernel answers at once, but a full load of tens of thousands of Services takes its time.
        let outcome = tokio::task::spawn_blocking(move || {
            let outcome = current.step(step);
            (current, outcome)
        });
        let outcome = match outcome.await {
            Ok((current, outcome)) => {
                worker = Some(current);
                outcome
            }
            Err(error) => {
                tracing::error!(%error, "the proxy failed and stops; Services keep their last endpoints");
                return;
            }
        };
        retry = match outcome {
            Ok(()) => {
                done.send_replace(version);
                None
            }
            Err(error) => {
                let pause = retry.map_or(RETRY_FIRST, |(_, last)| (last * 2).min(RETRY_MOST));
                tracing::warn!(%error, ?pause, "cannot bring Services into the kernel; will try again");
                Some((Instant::now() + pause, pause))
            }
        };
    }
}

async fn wait_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

enum Step {
    Take(Arc<Snapshot>),
    Check,
    Rebuild,
}

/// The state, and what is known of the kernel.
struct Worker {
    state: State,
    table: TableName,
    nft: Arc<dyn Nft>,
    conntrack: Arc<dyn Conntrack>,
    /// The table is not, or not surely, what `state` says.
    unsure: bool,
    /// The ruleset's generation after our last change.
    generation: u32,
}

impl Worker {
    fn new(config: Config, nft: Arc<dyn Nft>, conntrack: Arc<dyn Conntrack>) -> Self {
        let table = config.table_name();
        let state = State::new(config, Family::Ipv4);
        Self {
            state,
            table,
            nft,
            conntrack,
            unsure: true,
            generation: 0,
        }
    }

    fn step(&mut self, step: Step) -> balsa_netlink::Result<()> {
        match step {
            Step::Take(snapshot) => self.take(&snapshot),
            Step::Rebuild => self.rebuild(),
            Step::Check => self.check(),
        }
    }

    fn take(&mut self, snapshot: &Snapshot) -> balsa_netlink::Result<()> {
        let change = self.state.update(snapshot);
        if self.unsure {
            self.rebuild()?;
        } else if !change.ops.is_empty()
            && let Err(error) = self.apply(&change.ops)
        {
            // Most likely somebody removed the table since the last check.
            tracing::warn!(%error, "a change of Services was refused; rebuilding the table");
            self.rebuild()?;
        }
        stale::forget(self.conntrack.as_ref(), &change.stale_udp);
        Ok(())
    }

    fn rebuild(&mut self) -> balsa_netlink::Result<()> {
        self.unsure = true;
        self.apply(&self.state.rebuild())?;
        self.unsure = false;
        self.generation = self.nft.generation()?;
        Ok(())
    }

    fn apply(&mut self, ops: &[balsa_netlink::nft::Op]) -> balsa_netlink::Result<()> {
        let started = std::time::Instant::now();
        self.nft.apply(&self.table, ops)?;
        // Each transaction moves the generation by one; any other movement is somebody else's.
        self.generation = self.generation.wrapping_add(1);
        tracing::debug!(operations = ops.len(), elapsed = ?started.elapsed(), "changed nftables");
        Ok(())
    }

    /// Rebuilds the table if it is not what it should be. Looks only if somebody changed some table.
    fn check(&mut self) -> balsa_netlink::Result<()> {
        let generation = self.nft.generation()?;
        if generation == self.generation {
            return Ok(());
        }
        self.generation = generation;
        let wanted = self.state.inventory();
        let held = self.nft.inventory(&self.table)?;
        if held
            .as_ref()
            .is_some_and(|h| h.rules == wanted.rules && h.elements == wanted.elements)
        {
            return Ok(());
        }
        tracing::warn!(
            table = self.table.name,
            missing = held.is_none(),
            "somebody changed our nftables table; rebuilding it"
        );
        self.rebuild()
    }
}
