//! Takes back addresses of sandboxes that are gone.
//!
//! The plugin takes back an address when the runtime tells it that the sandbox goes. A runtime that is killed, or goes
//! while no agent runs, may never tell.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use balsa_cri::{Runtime, START_TIMEOUT};
use balsa_ipam::{Allocation, Ipam};
use ipnet::IpNet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Pause between two looks.
const PAUSE: Duration = Duration::from_secs(30);

/// How long the runtime must not have known a sandbox. One that is being made has its address before it is listed.
const GRACE: Duration = Duration::from_secs(START_TIMEOUT.as_secs() + 60);

/// The addresses of one node.
#[derive(Clone)]
pub(super) struct Addresses {
    pub(super) folder: PathBuf,
    pub(super) cidr: IpNet,
}

impl Addresses {
    /// Takes back what sandboxes have that went while no agent ran: at the agent's start none has waited for long.
    pub(super) async fn collect_old(&self, runtime: &Arc<dyn Runtime>) {
        let Some(live) = live(runtime).await else {
            return;
        };
        let collected = self.table(move |table| table.collect(&live, START_TIMEOUT));
        told(collected.await.map(|addresses| addresses.len()));
    }

    /// Takes back, as long as it is not stopped, what sandboxes have that the runtime has not known for long.
    pub(super) async fn keep_collecting(self, runtime: Arc<dyn Runtime>, stop: CancellationToken) {
        let mut unknown = Unknown::default();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
            // Before the runtime is asked: what is allocated meanwhile is not looked at.
            let allocated = match self.table(Ipam::allocations).await {
                Ok(allocated) => allocated.into_iter().map(|(_, allocation)| allocation),
                Err(error) => {
                    told(Err(error));
                    continue;
                }
            };
            if let Some(live) = live(&runtime).await {
                let gone = unknown.look(allocated, &live, Instant::now());
                told(self.table(move |table| release(table, &gone)).await);
            }
        }
    }

    /// Works on the table aside: it lies on a disk and has a lock.
    async fn table<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Ipam) -> Result<T, balsa_ipam::Error> + Send + 'static,
    ) -> Result<T, String> {
        let Self { folder, cidr } = self.clone();
        let work = move || Ipam::open(&folder, cidr).and_then(|table| work(&table));
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|panic| panic.to_string())?
            .map_err(|error| error.to_string())
    }
}

fn release(table: &Ipam, gone: &[Allocation]) -> Result<usize, balsa_ipam::Error> {
    for allocation in gone {
        table.release(&allocation.container, &allocation.interface)?;
    }
    Ok(gone.len())
}

fn told(collected: Result<usize, String>) {
    match collected {
        Ok(0) => {}
        Ok(count) => info!(count, "addresses of pods that are gone were taken back"),
        Err(error) => warn!(%error, "addresses of pods that are gone are not taken back now"),
    }
}

/// The ids of all sandboxes that the runtime knows.
async fn live(runtime: &Arc<dyn Runtime>) -> Option<HashSet<String>> {
    match runtime.list_sandboxes().await {
        Ok(all) => Some(all.into_iter().map(|sandbox| sandbox.id).collect()),
        Err(error) => {
            told(Err(error.to_string()));
            None
        }
    }
}

/// Since when the runtime does not know sandboxes that have addresses.
#[derive(Debug, Default)]
struct Unknown {
    since: HashMap<String, Instant>,
}

impl Unknown {
    /// Notes what is unknown now, and returns what has been for long enough.
    fn look(
        &mut self,
        allocated: impl Iterator<Item = Allocation>,
        live: &HashSet<String>,
        now: Instant,
    ) -> Vec<Allocation> {
        let unknown: Vec<Allocation> = allocated
            .filter(|allocation| !live.contains(&allocation.container))
            .collect();
        let before = std::mem::take(&mut self.since);
        for Allocation { container, .. } in &unknown {
            let since = before.get(container).copied().unwrap_or(now);
            self.since.insert(container.clone(), since);
        }
        let long = |allocation: &Allocation| {
            let since = self.since.get(&allocation.container);
            since.is_some_and(|since| now.duration_since(*since) >= GRACE)
        };
        unknown.into_iter().filter(long).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(container: &str) -> Allocation {
        Allocation {
            container: container.to_owned(),
            interface: "eth0".to_owned(),
            since: 0,
        }
    }

    #[test]
    fn only_what_is_unknown_at_every_look_for_long_is_taken_back() {
        let mut unknown = Unknown::default();
        let began = Instant::now();
        let mut look = |after: Duration, live: &[&str]| {
            let live = live.iter().map(|id| (*id).to_owned()).collect();
            let allocated = ["gone", "slow", "live"].map(of).into_iter();
            let gone = unknown.look(allocated, &live, began + after);
            gone.into_iter().map(|a| a.container).collect::<Vec<_>>()
        };
        assert!(look(Duration::ZERO, &["live"]).is_empty());
        // It was being made all the time.
        assert!(look(GRACE / 2, &["live", "slow"]).is_empty());
        assert_eq!(look(GRACE, &["live"]), ["gone"]);
        assert_eq!(look(GRACE * 3 / 2, &["live", "slow"]), ["gone"]);
    }
}
