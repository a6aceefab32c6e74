//! Having a driver mount a volume for a pod.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use balsa_csi::v1::{NodePublishVolumeRequest, NodeStageVolumeRequest};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Volume};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::driver::{Driver, text};
use super::plan::{self, Plan, SecretAt};
use super::record::Record;
use super::{Csi, Published, blocking, selinux};
use crate::cluster::{Bound, Token};
use crate::volumes::outside::{Outside, Source};
use crate::volumes::payload::TokenWant;
use crate::volumes::table;

/// How long a driver may take to register before a pod is told that there is none.
const APPEAR: Duration = Duration::from_secs(5);

/// How long a pod waits for its volume to be attached before it is told so; then it waits on.
const ATTACH: Duration = Duration::from_secs(120);

/// Pauses between looks at an attachment.
const ATTACH_LOOK: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// A volume that a pod wants mounted.
pub(crate) struct Wish<'a> {
    pub(crate) pod: &'a Pod,
    /// The UID by which the node knows the pod.
    pub(crate) uid: &'a str,
    pub(crate) volume: &'a Volume,
    /// For a claim: what it is bound to, and whether the pod only reads.
    pub(crate) bound: Option<(&'a Bound, bool)>,
    /// Cancelled when the pod goes: waits are given up.
    pub(crate) going: &'a CancellationToken,
}

/// What a driver is told that the API's objects hold, beyond the plan.
struct Extras {
    /// What the attacher said of the attachment.
    publish_context: HashMap<String, String>,
    group: Option<i64>,
    known_staging: PathBuf,
}

impl Csi {
    /// Has a volume's driver mount it and answers with where. Again is fine. The error is for people, in the words
    /// of upstream's events.
    pub(crate) async fn mount(&self, wish: &Wish<'_>) -> Result<Outside, String> {
        let name = match wish.bound {
            Some((bound, _)) => bound.volume.metadata.name.clone().unwrap_or_default(),
            None => wish.volume.name.clone(),
        };
        let failed = |step: &str, error: String| {
            format!("MountVolume.{step} failed for volume \"{name}\" : {error}")
        };
        let plan = self.labelled_plan(wish).await;
        let plan = plan.map_err(|error| failed("SetUp", error))?;
        let failed = |step: &str, error: String| {
            let step = step_name(step, plan.record.block);
            format!("{step} failed for volume \"{name}\" : {error}")
        };
        let target = self
            .layout
            .target(wish.uid, &plan.record.volume, plan.record.block);
        let mounted = is_mounted(&target).await;
        let driver = match self.registry.wait(&plan.record.driver, APPEAR).await {
            Ok(driver) => driver,
            // A running pod can do without its driver.
            Err(_) if mounted => return Ok(outside(&plan, target, false)),
            Err(error) => {
                let error =
                    format!("kubernetes.io/csi: mounter.SetUpAt failed to get CSI client: {error}");
                return Err(failed("SetUp", error));
            }
        };
        if !mounted || plan.republish {
            let done = self.bring(wish, &plan, &driver, mounted).await;
            match done {
                // It runs on with what it has.
                Err((_, error)) if mounted => warn!(error, "could not publish a volume again"),
                Err((step, error)) => return Err(failed(step, error)),
                Ok(()) => {}
            }
        }
        let outside = outside(&plan, target, plan.is_owned(driver.able));
        self.note(wish, plan);
        Ok(outside)
    }

    fn note(&self, wish: &Wish<'_>, plan: Plan) {
        let claim = wish.bound.and_then(|(bound, _)| {
            let metadata = &bound.claim.metadata;
            Some((metadata.namespace.clone()?, metadata.name.clone()?))
        });
        let key = (wish.uid.to_owned(), wish.volume.name.clone());
        let published = Published {
            pod: wish.pod.clone(),
            plan,
            claim,
        };
        self.published.lock().insert(key, Arc::new(published));
        // It may have to grow at once.
        self.bell.notify_waiters();
    }

    /// The plan, with the SELinux label of the pod if the node has such and the driver can do with it.
    async fn labelled_plan(&self, wish: &Wish<'_>) -> Result<Plan, String> {
        let mut plan = self.plan(wish).await?;
        if plan.takes_label()
            && let Some(usual) = selinux::file_label()
            && let Some(option) = selinux::mount_option(wish.pod, &wish.volume.name, &usual)?
        {
            plan.add_mount_option(option);
        }
        Ok(plan)
    }

    async fn plan(&self, wish: &Wish<'_>) -> Result<Plan, String> {
        if let Some((bound, read_only)) = wish.bound {
            let spec = bound.volume.spec.as_ref();
            let source = spec.and_then(|spec| spec.csi.as_ref());
            let source = source.ok_or("the volume is no CSI driver's")?;
            let driver = self.api.driver(&source.driver).await?;
            let volume = &bound.volume;
            return plan::of_persistent(volume, read_only, driver.as_deref(), &self.node_name);
        }
        let source = wish.volume.csi.as_ref();
        let source = source.ok_or("the volume is no CSI driver's")?;
        let driver = self.api.driver(&source.driver).await?;
        plan::of_inline(
            wish.pod,
            wish.volume,
            source,
            driver.as_deref(),
            &self.node_name,
        )
    }

    /// Stages and publishes; the error comes with the name of the step.
    async fn bring(
        &self,
        wish: &Wish<'_>,
        plan: &Plan,
        driver: &Driver,
        mounted: bool,
    ) -> Result<(), (&'static str, String)> {
        let record = &plan.record;
        let publish_context = self.attached(record, wish.going).await;
        let publish_context = publish_context.map_err(|error| ("WaitForAttach", error))?;
        let context = wish
            .pod
            .spec
            .as_ref()
            .and_then(|spec| spec.security_context.as_ref());
        let staging =
            self.layout
                .staging(&record.driver, &record.handle, &record.volume, record.block);
        let extras = Extras {
            publish_context,
            group: context.and_then(|context| context.fs_group),
            known_staging: self.layout.as_known(&staging),
        };
        let _busy = self.claim_volume(record).await;
        let folder = self
            .layout
            .published(wish.uid, &record.volume, record.block);
        self.write(record, &folder)
            .await
            .map_err(|error| ("SetUp", error))?;
        // After the record is written: who takes volumes back either sees the record or is seen here.
        if self.leaving.lock().contains(wish.uid) || wish.going.is_cancelled() {
            if !mounted {
                let _ = blocking(move || Record::remove(&folder)).await;
            }
            return Err(("SetUp", "the pod is going".to_owned()));
        }
        self.hold(record).await.map_err(|error| ("SetUp", error))?;
        if driver.able.stage && record.lifecycle == "Persistent" && !mounted {
            self.stage(plan, driver, &extras, staging)
                .await
                .map_err(|error| ("MountDevice", error))?;
        }
        self.publish(wish, plan, driver, &extras)
            .await
            .map_err(|error| ("SetUp", error))
    }

    async fn write(&self, record: &Record, folder: &std::path::Path) -> Result<(), String> {
        let (record, folder) = (record.clone(), folder.to_owned());
        blocking(move || record.write(&folder)).await
    }

    async fn stage(
        &self,
        plan: &Plan,
        driver: &Driver,
        extras: &Extras,
        staging: PathBuf,
    ) -> Result<(), String> {
        let record = &plan.record;
        let secrets = self.secrets(plan.stage_secret.as_ref()).await?;
        let folder =
            self.layout
                .staged(&record.driver, &record.handle, &record.volume, record.block);
        self.write(record, &folder).await?;
        blocking(move || std::fs::create_dir_all(staging)).await?;
        let request = NodeStageVolumeRequest {
            volume_id: record.handle.clone(),
            publish_context: extras.publish_context.clone(),
            staging_target_path: text(&extras.known_staging),
            volume_capability: Some(plan.capability(driver.able, extras.group)),
            secrets,
            volume_context: plan.attributes(),
        };
        driver
            .stage(request)
            .await
            .map_err(|error| error.to_string())
    }

    async fn publish(
        &self,
        wish: &Wish<'_>,
        plan: &Plan,
        driver: &Driver,
        extras: &Extras,
    ) -> Result<(), String> {
        let record = &plan.record;
        let mut secrets = self.secrets(plan.publish_secret.as_ref()).await?;
        let tokens = self.tokens(wish, &plan.tokens).await?;
        let context = plan.context(wish.pod, &tokens, &mut secrets);
        let target = self.layout.target(wish.uid, &record.volume, record.block);
        let parent = target.parent().map(PathBuf::from).unwrap_or_default();
        // The target itself is the driver's to make.
        blocking(move || std::fs::create_dir_all(parent)).await?;
        let staged = driver.able.stage && record.lifecycle == "Persistent";
        let request = NodePublishVolumeRequest {
            volume_id: record.handle.clone(),
            publish_context: extras.publish_context.clone(),
            staging_target_path: if staged {
                text(&extras.known_staging)
            } else {
                String::new()
            },
            target_path: text(&self.layout.as_known(&target)),
            volume_capability: Some(plan.capability(driver.able, extras.group)),
            readonly: plan.read_only,
            secrets,
            volume_context: context,
        };
        driver
            .publish(request)
            .await
            .map_err(|error| error.to_string())
    }

    /// Publishes a volume again whose driver wants that, with fresh tokens.
    pub(super) async fn republish(&self, uid: &str, volume: &str, published: &Published) {
        let plan = &published.plan;
        let Some(driver) = self.registry.get(&plan.record.driver) else {
            return;
        };
        let going = CancellationToken::new();
        let spec = published.pod.spec.as_ref();
        let found = spec.and_then(|spec| spec.volumes.iter().flatten().find(|v| v.name == volume));
        let Some(found) = found else { return };
        let wish = Wish {
            pod: &published.pod,
            uid,
            volume: found,
            bound: None,
            going: &going,
        };
        if let Err((_, error)) = self.bring(&wish, plan, &driver, true).await {
            warn!(error, volume, uid, "could not publish a volume again");
        }
    }

    /// Waits until a volume is attached, and answers with what the attacher said of it.
    async fn attached(
        &self,
        record: &Record,
        going: &CancellationToken,
    ) -> Result<HashMap<String, String>, String> {
        if record.attachment.is_empty() {
            return Ok(HashMap::new());
        }
        let mut why = format!(
            "timed out waiting for external-attacher of {} CSI driver to attach volume {}",
            record.driver, record.handle
        );
        let wait = async {
            let mut pause = ATTACH_LOOK.0;
            loop {
                match self.api.attachment(&record.attachment).await {
                    // One that is being deleted is on its way out, whatever its status still says.
                    Ok(Some(found)) if found.metadata.deletion_timestamp.is_none() => {
                        let status = found.status.unwrap_or_default();
                        if status.attached {
                            return status.attachment_metadata.unwrap_or_default();
                        }
                        if let Some(error) = status.attach_error.and_then(|error| error.message) {
                            why = error;
                        }
                    }
                    Ok(_) => {}
                    Err(error) => why = error,
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(ATTACH_LOOK.1);
            }
        };
        let ended = tokio::select! {
            ended = tokio::time::timeout(ATTACH, wait) => ended.ok(),
            () = going.cancelled() => return Err("the pod is going".to_owned()),
        };
        match ended {
            Some(said) => Ok(said.into_iter().collect()),
            None => Err(why),
        }
    }

    pub(super) async fn secrets(
        &self,
        at: Option<&SecretAt>,
    ) -> Result<HashMap<String, String>, String> {
        let Some((namespace, name)) = at else {
            return Ok(HashMap::new());
        };
        let found = self.api.secret(namespace, name).await?;
        Ok(found.into_iter().collect())
    }

    /// The tokens that a driver wants, renewed at four fifths of their lives.
    async fn tokens(
        &self,
        wish: &Wish<'_>,
        wants: &[TokenWant],
    ) -> Result<Vec<(TokenWant, Token)>, String> {
        let mut tokens = Vec::new();
        for want in wants {
            let key = (wish.uid.to_owned(), want.clone());
            let now = Timestamp::now();
            let kept = self.tokens.lock().get(&key).cloned();
            let token = match kept.filter(|(_, renew)| *renew > now) {
                Some((token, _)) => token,
                None => {
                    let token = self.cluster.token(wish.pod, want).await?;
                    let life = balsa_pod::spec::between(now, token.expires);
                    let renew = balsa_pod::spec::after(now, life.mul_f64(0.8));
                    self.tokens.lock().insert(key, (token.clone(), renew));
                    token
                }
            };
            tokens.push((want.clone(), token));
        }
        Ok(tokens)
    }

    /// The claim of a published volume with what it is bound to.
    pub(super) async fn bound(&self, published: &Published) -> Option<Bound> {
        let (namespace, name) = published.claim.as_ref()?;
        let bound = self.cluster.claim(namespace, name).await.ok()?;
        let named = |claim: &PersistentVolumeClaim| claim.spec.as_ref()?.volume_name.clone();
        // A namesake of the claim may have another volume.
        (named(&bound.claim).as_ref() == Some(&published.plan.record.volume)).then_some(bound)
    }
}

/// What upstream calls a step in events: devices are mapped and not mounted.
fn step_name(step: &str, block: bool) -> String {
    match (block, step) {
        (true, "MountDevice") => "MapVolume.SetUpDevice".to_owned(),
        (true, "SetUp") => "MapVolume.MapPodDevice".to_owned(),
        (true, step) => format!("MapVolume.{step}"),
        (false, step) => format!("MountVolume.{step}"),
    }
}

/// A volume that is mounted at the target.
fn outside(plan: &Plan, target: PathBuf, owned: bool) -> Outside {
    Outside {
        source: Source::Mounted { path: target },
        read_only: plan.read_only,
        owned,
    }
}

pub(super) async fn is_mounted(target: &std::path::Path) -> bool {
    let target = target.to_owned();
    let look = blocking(move || match table::is_mounted(&target) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        found => found,
    });
    look.await.unwrap_or(false)
}
