//! What is done about volumes of drivers without anybody asking: objects of the API kept true, volumes published
//! again or grown, and those of pods that are no more taken back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use balsa_client::EventType;
use balsa_csi::v1::{CapacityRange, NodeExpandVolumeRequest};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::driver::{Driver, text};
use super::{Csi, Published, expand};

/// How often claims are asked whether their volumes have to grow.
const GROW: Duration = Duration::from_secs(15);

/// How often volumes are published again, objects of the API compared, and orphans looked for.
const ROUND: Duration = Duration::from_secs(60);

/// Pause after such a round when the API did not take what it was told.
const RETRY: Duration = Duration::from_secs(2);

/// How long more volumes may take to come before those that are there are looked at.
const SETTLE: Duration = Duration::from_millis(500);

/// Pause before volumes of pods that are no more are tried again.
const STRAYS: Duration = Duration::from_secs(10);

impl Csi {
    /// Keeps things true until stopped.
    pub(super) async fn keep(self: Arc<Self>, stop: CancellationToken) {
        let mut next_round = Instant::now();
        loop {
            let round = Instant::now() >= next_round;
            let work = async {
                self.tell_if_untold().await;
                self.grow_all().await;
                if round { self.round().await } else { true }
            };
            let fine = tokio::select! {
                () = stop.cancelled() => return,
                fine = work => fine,
            };
            let now = Instant::now();
            if round {
                next_round = now + if fine { ROUND } else { RETRY };
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep_until(next_round.min(now + GROW)) => {}
                // Volumes come in crowds.
                () = self.bell.notified() => tokio::time::sleep(SETTLE).await,
            }
        }
    }

    /// Takes back volumes of pods that are no more until stopped.
    pub(super) async fn clear_strays(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let strays: Vec<_> = self.strays.lock().iter().cloned().collect();
            for uid in &strays {
                let done = tokio::select! {
                    () = stop.cancelled() => return,
                    done = self.tear_down(uid) => done,
                };
                // Those that are left are tried again.
                if done.is_ok() {
                    self.strays.lock().remove(uid);
                    self.forget(uid);
                }
            }
            let pause = async {
                if self.strays.lock().is_empty() {
                    self.bell.notified().await;
                } else {
                    tokio::time::sleep(STRAYS).await;
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = pause => {}
                // Told between the look and the wait.
                () = tokio::time::sleep(ROUND) => {}
            }
        }
    }

    /// False when the API could not be told what it has to know.
    async fn round(&self) -> bool {
        self.refresh_limits().await;
        let published = self.registry.publish().await;
        if let Err(error) = &published {
            // At the agent's start the Node is not known at once.
            debug!(error, "could not bring the CSINode up to date");
        }
        self.compare_in_use().await;
        for ((uid, volume), published) in self.all_published() {
            if published.plan.republish {
                self.republish(&uid, &volume, &published).await;
            }
        }
        self.unstage_orphans().await;
        self.look_at_usage().await;
        published.is_ok()
    }

    /// Asks drivers again how many volumes the node takes that want to be asked (KEP-4876).
    async fn refresh_limits(&self) {
        for name in self.registry.names() {
            let object = self.api.driver(&name).await.ok().flatten();
            let period = object.and_then(|it| it.spec.node_allocatable_update_period_seconds);
            if period.is_some() {
                self.registry.refresh(&name).await;
            }
        }
    }

    pub(super) fn all_published(&self) -> Vec<((String, String), Arc<Published>)> {
        let published = self.published.lock();
        let all = published.iter();
        all.map(|(key, it)| (key.clone(), Arc::clone(it))).collect()
    }

    async fn tell_if_untold(&self) {
        let mut in_use = self.in_use.lock().await;
        in_use.untold |= self.forgotten.swap(false, Ordering::AcqRel);
        if in_use.untold
            && let Err(error) = self.tell_in_use(&mut in_use).await
        {
            warn!(error, "could not write which volumes are in use");
        }
    }

    /// The Node may have been made anew, without its volumes.
    async fn compare_in_use(&self) {
        let Some(node) = self.api.node() else { return };
        let status = node.status.as_ref();
        let mut told = status.and_then(|status| status.volumes_in_use.clone());
        let told = told.get_or_insert_default();
        told.sort();
        let mut in_use = self.in_use.lock().await;
        if !told.iter().eq(&in_use.names)
            && let Err(error) = self.tell_in_use(&mut in_use).await
        {
            warn!(error, "could not write which volumes are in use");
        }
    }

    async fn grow_all(&self) {
        for ((uid, volume), published) in self.all_published() {
            if published.claim.is_some() && !published.plan.read_only {
                self.grow(&uid, &volume, &published).await;
            }
        }
    }

    /// Has a driver let a volume grow that is larger than its claim has been told.
    async fn grow(&self, uid: &str, volume: &str, published: &Published) {
        let record = &published.plan.record;
        let driver = self.registry.get(&record.driver);
        let Some(driver) = driver.filter(|driver| driver.able.expand) else {
            return;
        };
        let Some(bound) = self.bound(published).await else {
            return;
        };
        let Some(bytes) = expand::needed(&bound.claim, &bound.volume) else {
            return;
        };
        let grown = async {
            let request = self.expansion(uid, published, &driver, bytes).await?;
            {
                let _busy = self.claim_volume(record).await;
                // It may have been taken back meanwhile.
                let key = (uid.to_owned(), volume.to_owned());
                if !self.published.lock().contains_key(&key) {
                    return Ok(false);
                }
                let done = driver.expand(request).await;
                done.map_err(|error| error.to_string())?;
            }
            let (namespace, name) = published.claim.clone().unwrap_or_default();
            let patch = expand::done(&bound.claim, &bound.volume);
            let told = self.api.patch_claim_status(&namespace, &name, &patch).await;
            told.map(|()| true)
        };
        let name = &record.volume;
        let (kind, reason, message) = match grown.await {
            Ok(false) => return,
            Ok(true) => {
                let node = &self.node_name;
                let text =
                    format!("MountVolume.NodeExpandVolume succeeded for volume \"{name}\" {node}");
                (EventType::Normal, "FileSystemResizeSuccessful", text)
            }
            Err(error) => {
                let text =
                    format!("MountVolume.NodeExpandVolume failed for volume \"{name}\" : {error}");
                (EventType::Warning, "VolumeResizeFailed", text)
            }
        };
        self.recorder.event(&published.pod, kind, reason, message);
    }

    /// What a driver is told of a volume that is to grow.
    async fn expansion(
        &self,
        uid: &str,
        published: &Published,
        driver: &Driver,
        bytes: i64,
    ) -> Result<NodeExpandVolumeRequest, String> {
        let (plan, layout) = (&published.plan, &self.layout);
        let record = &plan.record;
        let target = layout.target(uid, &record.volume, record.block);
        let staging = layout.staging(&record.driver, &record.handle, &record.volume, record.block);
        let staging = driver.able.stage.then(|| text(&layout.as_known(&staging)));
        Ok(NodeExpandVolumeRequest {
            volume_id: record.handle.clone(),
            volume_path: text(&layout.as_known(&target)),
            capacity_range: Some(CapacityRange {
                required_bytes: bytes,
                limit_bytes: 0,
            }),
            staging_target_path: staging.unwrap_or_default(),
            volume_capability: Some(plan.capability(driver.able, None)),
            secrets: self.secrets(plan.expand_secret.as_ref()).await?,
        })
    }
}
