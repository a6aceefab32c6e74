//! Making volumes ready.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use balsa_client::EventType;
use balsa_pod::StartFailure;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Volume};

use super::{CONFIG_RETRY, Done, Ops, after};
use crate::cluster::Bound;
use crate::csi::Wish;
use crate::images::Want;
use crate::objects::Sources;
use crate::volumes::outside::{self, Outside, Source};
use crate::volumes::payload::{Inputs, Tokens, token_wants};
use crate::volumes::{self, IMAGES, LAYERS, Prepared, layers};

/// After how much of a new token's life is it renewed? By a clock that is fast it may seem to have none left.
fn renewal(life: Duration) -> Duration {
    life.mul_f64(0.8)
        .clamp(Duration::from_secs(60), Duration::from_secs(24 * 3600))
}

impl Ops {
    /// Makes all volumes ready, or brings them up to date.
    pub(crate) async fn volumes(self, pod: Pod, ips: Vec<String>, again: bool) -> Done {
        let result = self.prepare_volumes(&pod, &ips, again).await;
        match result {
            Ok((_, refresh)) if again => Done::Refreshed(refresh),
            Ok(prepared) => Done::Volumes(Ok(prepared)),
            Err(message) => {
                self.context
                    .event(&pod, EventType::Warning, "FailedMount", message.clone());
                if again {
                    Done::Refreshed(Some(after(CONFIG_RETRY)))
                } else {
                    Done::Volumes(Err(message))
                }
            }
        }
    }

    async fn prepare_volumes(
        &self,
        pod: &Pod,
        ips: &[String],
        again: bool,
    ) -> Result<(Prepared, Option<Timestamp>), String> {
        let sources = self.context.cluster.sources(pod).await?;
        let outside = if again {
            BTreeMap::new()
        } else {
            self.outside(pod, &sources).await?
        };
        let (tokens, refresh) = self.fresh_tokens(pod).await?;
        let spec = pod.spec.clone().unwrap_or_default();
        let facts = self.context.facts(&spec, ips);
        let (pod, dir) = (pod.clone(), self.pod_dir());
        let work = move || {
            let inputs = Inputs {
                pod: &pod,
                sources: &sources,
                facts: &facts,
                tokens: &tokens,
                outside: &outside,
            };
            if again {
                return volumes::refresh(&dir, &inputs).map(|()| Prepared::new());
            }
            std::fs::create_dir_all(&dir)
                .map_err(|error| volumes::VolumeError(error.to_string()))?;
            volumes::prepare(&dir, &inputs)
        };
        let prepared = tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| error.to_string())?;
        prepared
            .map(|prepared| (prepared, refresh))
            .map_err(|error| error.0)
    }

    /// Tokens for all volumes, renewed at four fifths of their lives.
    async fn fresh_tokens(&self, pod: &Pod) -> Result<(Tokens, Option<Timestamp>), String> {
        let mut cache = self.tokens.lock().await;
        let volumes = pod
            .spec
            .iter()
            .flat_map(|spec| spec.volumes.iter().flatten());
        let now = Timestamp::now();
        let mut tokens = Tokens::new();
        let mut refresh = None;
        for want in volumes.flat_map(token_wants) {
            let kept = cache.get(&want).filter(|(_, renew)| *renew > now).cloned();
            let (token, renew) = match kept {
                Some(kept) => kept,
                None => {
                    let token = self.context.cluster.token(pod, &want).await?;
                    let life = balsa_pod::spec::between(now, token.expires);
                    let renew = balsa_pod::spec::after(now, renewal(life));
                    cache.insert(want.clone(), (token.clone(), renew));
                    (token, renew)
                }
            };
            refresh = Some(refresh.map_or(renew, |earlier: Timestamp| earlier.min(renew)));
            tokens.insert(want, token.text);
        }
        Ok((tokens, refresh))
    }

    /// Finds out where volumes come from that are not made of files, and has mounted what others mount.
    async fn outside(
        &self,
        pod: &Pod,
        sources: &Sources,
    ) -> Result<BTreeMap<String, Outside>, String> {
        let all = pod
            .spec
            .iter()
            .flat_map(|spec| spec.volumes.iter().flatten());
        let mut found = BTreeMap::new();
        for volume in all {
            if let Some(outside) = self.outside_of(pod, volume, sources).await? {
                found.insert(volume.name.clone(), outside);
            }
        }
        Ok(found)
    }

    async fn outside_of(
        &self,
        pod: &Pod,
        volume: &Volume,
        sources: &Sources,
    ) -> Result<Option<Outside>, String> {
        let failed = |message: String| {
            format!(
                "MountVolume.SetUp failed for volume \"{}\" : {message}",
                volume.name
            )
        };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        if let Some((claim, read_only)) = outside::claim_of(name, volume) {
            let bound = self.context.cluster.claim(namespace, &claim).await?;
            let owners = bound.claim.metadata.owner_references.iter().flatten();
            let own = owners.into_iter().any(|owner| owner.uid == self.uid);
            if volume.ephemeral.is_some() && !own {
                return Err(format!(
                    "error processing PVC {namespace}/{claim}: PVC was not created for pod {namespace}/{name}"
                ));
            }
            outside::is_used_as_it_is(pod, &volume.name, &bound.volume)?;
            let node = self.context.capacity.node();
            let placed = outside::of_persistent(&bound.volume, &node, read_only).map_err(failed)?;
            return match placed {
                Some(placed) => Ok(Some(placed)),
                None => {
                    self.ask_driver(pod, volume, Some((&bound, read_only)))
                        .await
                }
            };
        }
        if volume.csi.is_some() {
            return self.ask_driver(pod, volume, None).await;
        }
        if let Some(source) = &volume.image {
            let want = Want {
                image: source.reference.as_deref().unwrap_or_default(),
                policy: source.pull_policy.as_deref(),
                pod_uid: &self.uid,
                secrets: pull_secrets(pod, sources),
            };
            return self.mount_image(pod, volume, &want).await.map(Some);
        }
        if let Some(own) = self.own_folder(volume) {
            return Ok(Some(own));
        }
        Ok(outside::of_volume(volume))
    }

    /// Has a CSI driver mount a volume.
    async fn ask_driver(
        &self,
        pod: &Pod,
        volume: &Volume,
        bound: Option<(&Bound, bool)>,
    ) -> Result<Option<Outside>, String> {
        let wish = Wish {
            pod,
            uid: &self.uid,
            volume,
            bound,
            going: &self.going,
        };
        self.context.csi.mount(&wish).await.map(Some)
    }

    /// A folder of the agent's that a pod knows by the name it has elsewhere.
    fn own_folder(&self, volume: &Volume) -> Option<Outside> {
        let source = volume.host_path.as_ref()?;
        let (known, layout) = (Path::new(&source.path), self.context.csi.layout());
        layout.is_known(known).then(|| Outside {
            source: Source::Path {
                path: layout.on_node(known),
                kind: source.type_.clone().unwrap_or_default(),
            },
            read_only: false,
            owned: false,
        })
    }

    /// Has an image on the node and mounts it.
    async fn mount_image(
        &self,
        pod: &Pod,
        volume: &Volume,
        want: &Want<'_>,
    ) -> Result<Outside, String> {
        let context = &self.context;
        let report = |kind: EventType, reason: &str, message: String| {
            context.event(pod, kind, reason, message);
        };
        let image = context.images.ensure(want, &report).await;
        let image = image.map_err(|failure| {
            self.tell(Done::ImageVolumeFailed {
                volume: volume.name.clone(),
                failure: StartFailure {
                    reason: failure.reason.to_owned(),
                    message: failure.message.clone(),
                    retry_at: Timestamp::now(),
                },
            });
            failure.message
        })?;
        let at = self.pod_dir().join(IMAGES).join(&volume.name);
        let failed = |error: String| {
            format!(
                "MountVolume.SetUp failed for volume \"{}\" : {error}",
                volume.name
            )
        };
        if !is_mounted(&at) {
            tokio::fs::create_dir_all(&at)
                .await
                .map_err(|error| failed(error.to_string()))?;
            // The runtime mounts by name, and the id is none.
            let name = image.tags.first().or_else(|| image.digests.first());
            let name = name.map_or(want.image, String::as_str);
            let done = context.runtime.mount_image(name, &at).await;
            done.map_err(|error| failed(error.to_string()))?;
        }
        let mapped = self.map_image(pod, volume, at.clone()).await;
        Ok(Outside {
            source: Source::Image {
                path: at,
                mapped: mapped.map_err(failed)?,
            },
            read_only: true,
            owned: false,
        })
    }

    /// Has an image that is mounted belong to the ids of a pod with a user namespace of its own. False if the runtime
    /// is to do so, or if nothing is to be done.
    async fn map_image(&self, pod: &Pod, volume: &Volume, at: PathBuf) -> Result<bool, String> {
        if pod.spec.as_ref().and_then(|spec| spec.host_users) != Some(false) {
            return Ok(false);
        }
        let dir = self.pod_dir();
        let users = self.context.users.assign(&self.uid, &dir)?;
        let folder = dir.join(LAYERS).join(&volume.name);
        let work = tokio::task::spawn_blocking(move || layers::give_to(&at, &folder, users));
        let done = work.await.map_err(|error| error.to_string())?;
        done.map_err(|error| error.to_string())
    }
}

fn is_mounted(at: &Path) -> bool {
    at.exists() && volumes::table::is_mounted(at).unwrap_or(false)
}

/// The pull secrets of a pod that exist.
pub(super) fn pull_secrets<'a>(
    pod: &Pod,
    sources: &'a Sources,
) -> Vec<&'a k8s_openapi::api::core::v1::Secret> {
    let secrets = pod
        .spec
        .iter()
        .flat_map(|spec| spec.image_pull_secrets.iter().flatten());
    secrets
        .filter_map(|secret| sources.secrets.get(&secret.name).map(|secret| &**secret))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_renewed_in_time_daily_and_never_without_a_pause() {
        let hour = Duration::from_secs(3600);
        assert_eq!(renewal(hour), hour * 4 / 5);
        assert_eq!(renewal(hour * 1000), hour * 24);
        assert_eq!(renewal(Duration::ZERO), Duration::from_secs(60));
    }
}
