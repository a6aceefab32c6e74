//! Carrying out plans, whenever something may have changed.

use std::sync::Arc;
use std::time::Duration;

use balsa_netlink::{LinkChange, Links, Monitor, Neighbour, sysctl};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::plan::{DEVICE, Observed, Step, mtu, plan};
use crate::{Config, Error, Peer};

/// Creating the device, setting it, filling it: three rounds, one to see that nothing is left, and one spare.
const ROUNDS: usize = 5;
/// Changes that come within this time are looked at together.
const COALESCE: Duration = Duration::from_millis(100);
/// How often everything is looked at without a reason: notifications get lost.
const PERIOD: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(1);

/// The overlay of a node.
#[derive(Debug)]
pub struct Overlay;

/// Tells a running overlay about peers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    peers: Arc<watch::Sender<Option<Vec<Peer>>>>,
    mtu: watch::Receiver<Option<u32>>,
}

impl Handle {
    /// Replaces the other nodes. This node itself may be among them. Until the first call the ways to others that are
    /// there stay: they are those of before a restart.
    pub fn set_peers(&self, peers: Vec<Peer>) {
        let peers = Some(peers);
        self.peers.send_if_modified(|current| {
            let changed = *current != peers;
            *current = peers;
            changed
        });
    }

    /// Waits until the overlay stands, and gives the pods' MTU. `None` if it was stopped before.
    pub async fn ready(&self) -> Option<u32> {
        let mut mtu = self.mtu.clone();
        mtu.wait_for(Option::is_some).await.ok().and_then(|m| *m)
    }
}

impl Overlay {
    /// Starts the overlay in the calling thread's network namespace. Failures are logged and tried again; it
    /// leaves everything standing when it stops, because pods outlive the agent.
    pub fn start(config: Config, links: Arc<dyn Links>, stop: CancellationToken) -> Handle {
        let (peers, inbox) = watch::channel(None);
        let (standing, mtu) = watch::channel(None);
        let monitor = Monitor::open()
            .inspect_err(
                |error| tracing::warn!(%error, "changes by others are noticed late: {PERIOD:?}"),
            )
            .ok();
        let keeper = Keeper {
            config: Arc::new(config),
            links,
            inbox,
            monitor,
            standing,
        };
        tokio::spawn(keeper.run(stop).instrument(tracing::info_span!("overlay")));
        Handle {
            peers: Arc::new(peers),
            mtu,
        }
    }
}

struct Keeper {
    config: Arc<Config>,
    links: Arc<dyn Links>,
    inbox: watch::Receiver<Option<Vec<Peer>>>,
    monitor: Option<Monitor>,
    standing: watch::Sender<Option<u32>>,
}

impl Keeper {
    async fn run(mut self, stop: CancellationToken) {
        let mut period = tokio::time::interval(PERIOD);
        period.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let peers = self.inbox.borrow_and_update().clone();
            let (config, links) = (self.config.clone(), self.links.clone());
            let outcome = tokio::task::spawn_blocking(move || {
                prepare_host(&config)?;
                reconcile(&config, peers.as_deref(), links.as_ref())
            });
            let failed = match outcome.await {
                Ok(Ok(mtu)) => {
                    self.standing
                        .send_if_modified(|standing| standing.replace(mtu) != Some(mtu));
                    false
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "cannot set up the overlay; will try again in {RETRY:?}");
                    true
                }
                Err(error) => {
                    tracing::error!(%error, "setting up the overlay panicked; will try again in {RETRY:?}");
                    true
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RETRY), if failed => continue,
                changed = self.inbox.changed(), if !failed => if changed.is_err() { return },
                () = Self::changed(&mut self.monitor), if !failed => {}
                _ = period.tick(), if !failed => {}
            }
            tokio::time::sleep(COALESCE).await;
        }
    }

    async fn changed(monitor: &mut Option<Monitor>) {
        let Some(open) = monitor else {
            return std::future::pending().await;
        };
        if let Err(error) = open.changed().await {
            tracing::warn!(%error, "changes by others are noticed late from now on: {PERIOD:?}");
            *monitor = None;
        }
    }
}

/// A node forwards packets between pods, and does not send them redirects: a pod that reaches itself by a
/// Service comes back out of the device it came in by.
fn prepare_host(config: &Config) -> balsa_netlink::Result<()> {
    if config.local.pod_cidr.addr().is_ipv4() {
        sysctl::set("ipv4/ip_forward", "1")?;
        for scope in ["all", "default"] {
            if let Err(error) = sysctl::set(&format!("ipv4/conf/{scope}/send_redirects"), "0") {
                tracing::debug!(%error, "pods may get redirects");
            }
        }
        return Ok(());
    }
    sysctl::set("ipv6/conf/all/forwarding", "1")
}

/// Makes the kernel's tables what they should be; gives the pods' MTU. While the peers are not known, ways to them stay.
pub(crate) fn reconcile(
    config: &Config,
    peers: Option<&[Peer]>,
    links: &dyn Links,
) -> Result<u32, Error> {
    for _ in 0..ROUNDS {
        let observed = observe(links)?;
        let mut steps = plan(config, peers.unwrap_or_default(), &observed)?;
        if peers.is_none() {
            steps.retain(|step| !is_end_of_a_way(step));
        }
        if steps.is_empty() {
            return mtu(config, &observed);
        }
        for step in &steps {
            tracing::info!(?step, "changing the overlay");
            match carry_out(links, step) {
                // Gone by itself between looking and removing.
                Err(e) if e.is_not_found() && is_removal(step) => {}
                other => other?,
            }
        }
    }
    Err(Error::Unsettled(ROUNDS))
}

fn observe(links: &dyn Links) -> balsa_netlink::Result<Observed> {
    let all = links.links()?;
    let device = all.iter().find(|l| l.name == DEVICE).map(|l| l.index);
    Ok(Observed {
        addresses: links.addresses()?,
        routes: links.routes()?,
        neighbours: device.map_or(Ok(Vec::new()), |d| unicast_neighbours(links, d))?,
        fdb: device.map_or(Ok(Vec::new()), |d| links.fdb(d))?,
        links: all,
    })
}

/// The kernel keeps entries of its own for multicast groups; they are none of ours.
fn unicast_neighbours(links: &dyn Links, device: u32) -> balsa_netlink::Result<Vec<Neighbour>> {
    let mut all = links.neighbours(device)?;
    all.retain(|neighbour| !neighbour.ip.is_multicast());
    Ok(all)
}

/// Takes away how a peer is reached.
fn is_end_of_a_way(step: &Step) -> bool {
    matches!(
        step,
        Step::DeleteNeighbour(_) | Step::DeleteFdb(_) | Step::DeleteRoute(_)
    )
}

fn is_removal(step: &Step) -> bool {
    matches!(
        step,
        Step::DeleteDevice(_)
            | Step::DeleteAddress(_)
            | Step::DeleteNeighbour(_)
            | Step::DeleteFdb(_)
            | Step::DeleteRoute(_)
    )
}

fn carry_out(links: &dyn Links, step: &Step) -> balsa_netlink::Result<()> {
    match step {
        Step::AddDevice(new) => links.add_vxlan(new),
        Step::DeleteDevice(link) => links.delete_link(*link),
        Step::SetDevice { link, mtu, mac } => {
            let change = LinkChange {
                up: Some(true),
                mtu: Some(*mtu),
                mac: Some(*mac),
                ..LinkChange::default()
            };
            links.change_link(*link, &change)
        }
        Step::PutAddress(a) => links.put_address(a),
        Step::DeleteAddress(a) => links.delete_address(a),
        Step::PutNeighbour(n) => links.put_neighbour(n),
        Step::DeleteNeighbour(n) => links.delete_neighbour(n),
        Step::PutFdb(e) => links.put_fdb(e),
        Step::DeleteFdb(e) => links.delete_fdb(e),
        Step::PutRoute(r) => links.put_route(r),
        Step::DeleteRoute(r) => links.delete_route(r),
    }
}
