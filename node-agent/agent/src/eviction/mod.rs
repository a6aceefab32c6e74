//! Keeping the node from running out of memory, disk and process ids: it says that it is short, gets rid of what
//! nobody needs, and throws pods out, one at a time.

mod decide;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use balsa_client::EventType;
use balsa_pod::Rejection;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::config::Signal;
use crate::images;
use crate::node::facts::Pressure;
use crate::pods::Manager;
use crate::stats::node::Filesystem;
use crate::stats::{PodUse, Stats, node};
use decide::{Observed, Shortage, Since};

/// How often the node is looked at.
const PERIOD: Duration = Duration::from_secs(10);

/// Time that a pod gets to end when the node cannot wait.
const GRACE: Duration = Duration::from_secs(1);

/// How long after a pod was thrown out its memory is waited for before the next one goes.
const SETTLE: Duration = Duration::from_secs(20);

/// Watches the node.
pub(crate) struct Evictor {
    pub(crate) stats: Arc<Stats>,
    pub(crate) manager: Arc<Manager>,
    /// What the node says it is short of.
    pub(crate) pressure: watch::Sender<Pressure>,
}

/// Until when each condition lasts.
#[derive(Debug, Clone, Copy, Default)]
struct Lasting {
    memory: Option<Instant>,
    disk: Option<Instant>,
    pids: Option<Instant>,
}

impl Evictor {
    /// Runs until stopped.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut lasting = Lasting::default();
        let mut since = Since::default();
        let mut pressing = Vec::new();
        let mut settle_until = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PERIOD) => {}
            }
            let mut shortages = self.look(&pressing).await;
            pressing = since.pressing(&shortages, Instant::now());
            if pressing.iter().any(helped_by_images) {
                self.reclaim_disk().await;
                shortages = self.look(&pressing).await;
                pressing = since.pressing(&shortages, Instant::now());
            }
            self.tell(&mut lasting, &shortages);
            if pressing.iter().any(|shortage| shortage.signal.is_of_disk()) {
                self.stats.recount().await;
            }
            let pods = match self.stats.pods().await {
                Ok(pods) => pods,
                Err(error) => {
                    debug!(%error, "cannot tell what pods use");
                    continue;
                }
            };
            self.enforce_disk_limits(&pods);
            let Some(shortage) = pressing.first() else {
                continue;
            };
            if Instant::now() < settle_until {
                continue;
            }
            match decide::victim(shortage, &pods) {
                Some(victim) => {
                    let message = decide::message(shortage, victim);
                    self.evict(victim, message, self.grace(shortage));
                    settle_until = Instant::now() + SETTLE;
                }
                None => warn!(
                    ?shortage,
                    "the node runs short, and no pod may be thrown out"
                ),
            }
        }
    }

    async fn look(&self, pressing: &[Shortage]) -> Vec<Shortage> {
        let context = self.stats.context();
        let config = &context.config;
        let seen = Observed {
            memory: node::memory(),
            disk: node::filesystem(&config.data_dir).unwrap_or_default(),
            images: self.image_filesystem().await,
            pids: node::pids(),
        };
        decide::shortages(&seen, &config.eviction, pressing)
    }

    /// The images' file system, if it is another than that of the pods' volumes and logs.
    async fn image_filesystem(&self) -> Option<Filesystem> {
        let context = self.stats.context();
        let known = context.runtime.image_fs_info().await.ok()?;
        let images = Path::new(&known.first()?.mountpoint);
        let device = |path: &Path| std::fs::metadata(path).map(|found| found.dev()).ok();
        let apart = device(images)? != device(&context.config.data_dir)?;
        apart.then(|| node::filesystem(images)).flatten()
    }

    /// Most time that a pod gets to end.
    fn grace(&self, shortage: &Shortage) -> Duration {
        let most = self.stats.context().config.eviction.max_pod_grace;
        match shortage.grace {
            Some(_) => most.max(GRACE),
            None => GRACE,
        }
    }

    /// Says what the node is short of. A condition outlasts its cause, so that pods are not sent back at once.
    fn tell(&self, lasting: &mut Lasting, shortages: &[Shortage]) {
        let context = self.stats.context();
        let now = Instant::now();
        let until = now + context.config.eviction.transition;
        let seen = decide::pressure(shortages);
        let renew = |short: bool, known: &mut Option<Instant>| {
            if short {
                *known = Some(until);
            }
            known.is_some_and(|until| now < until)
        };
        let pressure = Pressure {
            memory: renew(seen.memory, &mut lasting.memory),
            disk: renew(seen.disk, &mut lasting.disk),
            pids: renew(seen.pids, &mut lasting.pids),
        };
        let words = [
            (pressure.memory, "MemoryPressure"),
            (pressure.disk, "DiskPressure"),
            (pressure.pids, "PIDPressure"),
        ];
        let words = words.into_iter().filter(|(short, _)| *short);
        context
            .capacity
            .pressure_is(words.map(|(_, word)| word).collect());
        self.pressure.send_if_modified(|known| {
            let changed = *known != pressure;
            *known = pressure;
            changed
        });
    }

    async fn reclaim_disk(&self) {
        let runtime = &self.stats.context().runtime;
        match images::remove_unused(&**runtime).await {
            Ok(0) => {}
            Ok(bytes) => info!(bytes, "removed unused images, because the disk is full"),
            Err(error) => warn!(%error, "cannot remove unused images"),
        }
    }

    /// Throws out pods that write more than they may.
    fn enforce_disk_limits(&self, pods: &[PodUse]) {
        for used in pods {
            if used.pod.metadata.deletion_timestamp.is_none()
                && let Some(message) = decide::over_its_disk(used)
            {
                self.evict(used, message, GRACE);
            }
        }
    }

    fn evict(&self, used: &PodUse, message: String, grace: Duration) {
        if !crate::pods::capacity::ended(&used.pod) {
            info!(uid = used.uid, message, "throwing a pod out");
            self.stats
                .context()
                .event(&used.pod, EventType::Warning, "Evicted", message.clone());
        }
        let rejection = Rejection {
            reason: "Evicted".to_owned(),
            message,
            disruption: true,
            grace: Some(grace),
        };
        self.manager.evict(&used.uid, rejection);
    }
}

/// May there be enough again when unused images go?
fn helped_by_images(shortage: &Shortage) -> bool {
    match shortage.signal {
        Signal::ImageDisk | Signal::ImageInodes => true,
        Signal::Disk | Signal::Inodes => !shortage.apart,
        Signal::Memory | Signal::Pids => false,
    }
}
