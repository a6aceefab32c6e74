//! Images: pull policies, parallel pulls with a bound, backoff, credentials, and their events.

mod auth;
mod gc;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use balsa_client::EventType;
use balsa_cri::{Image, Runtime};
use balsa_pod::backoff::Backoff;
use balsa_pod::reasons;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

pub(crate) use gc::{Collector, remove_unused};

/// After a failed pull it takes this long until the next attempt says that it waits.
const ERROR_SHOWN: Duration = Duration::from_secs(2);

/// Most failures that are remembered.
const MAX_FAILURES: usize = 10_000;

/// Why an image is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageFailure {
    /// `ErrImagePull`, `ImagePullBackOff`, ...
    pub(crate) reason: &'static str,
    /// Words for people.
    pub(crate) message: String,
    /// When to try again.
    pub(crate) retry_at: Timestamp,
}

/// Where events about an image go.
pub(crate) type Report<'a> = &'a (dyn Fn(EventType, &str, String) + Send + Sync);

/// One container's wish.
pub(crate) struct Want<'a> {
    /// As the user wrote it.
    pub(crate) image: &'a str,
    /// `Always`, `IfNotPresent`, `Never`; by the tag when nothing is said.
    pub(crate) policy: Option<&'a str>,
    /// UID of the pod: failures of one pod don't hold up another.
    pub(crate) pod_uid: &'a str,
    /// Pull secrets of the pod.
    pub(crate) secrets: Vec<&'a Secret>,
}

/// A pod's UID and an image's name.
type Key = (String, String);

/// A failed pull.
struct Failure {
    backoff: Backoff,
    at: Timestamp,
    error: String,
}

/// Has images pulled.
pub(crate) struct Images {
    runtime: Arc<dyn Runtime>,
    slots: Semaphore,
    failures: Mutex<HashMap<Key, Failure>>,
    /// One pull at a time of the same image.
    busy: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Images {
    pub(crate) fn new(runtime: Arc<dyn Runtime>, max_pulls: usize) -> Self {
        Self {
            runtime,
            slots: Semaphore::new(max_pulls.max(1)),
            failures: Mutex::default(),
            busy: Mutex::default(),
        }
    }

    /// Makes sure that the image is on the node.
    pub(crate) async fn ensure(
        &self,
        want: &Want<'_>,
        report: Report<'_>,
    ) -> Result<Image, ImageFailure> {
        let image = want.image;
        let now = Timestamp::now();
        let later = |pause| balsa_pod::spec::after(Timestamp::now(), pause);
        let Some(name) = with_default_tag(image) else {
            let message = format!(
                "Failed to apply default image tag \"{image}\": couldn't parse image name \"{image}\": invalid reference format"
            );
            report(EventType::Warning, "InspectFailed", message.clone());
            report(
                EventType::Warning,
                "Failed",
                "Error: InvalidImageName".to_owned(),
            );
            return Err(ImageFailure {
                reason: reasons::INVALID_IMAGE_NAME,
                message,
                retry_at: later(Duration::from_secs(60)),
            });
        };
        let always = match want.policy {
            Some(policy) => policy == "Always",
            None => name.ends_with(":latest"),
        };
        if !always && let Some(present) = self.present(&name).await? {
            report(
                EventType::Normal,
                "Pulled",
                format!(
                    "Container image \"{image}\" already present on machine and can be accessed by the pod"
                ),
            );
            return Ok(present);
        }
        if want.policy == Some("Never") {
            let message =
                format!("Container image \"{image}\" is not present with pull policy of Never");
            report(
                EventType::Warning,
                reasons::ERR_IMAGE_NEVER_PULL,
                message.clone(),
            );
            report(
                EventType::Warning,
                "Failed",
                "Error: ErrImageNeverPull".to_owned(),
            );
            let retry_at = later(Duration::from_secs(10));
            return Err(ImageFailure {
                reason: reasons::ERR_IMAGE_NEVER_PULL,
                message,
                retry_at,
            });
        }
        let key = (want.pod_uid.to_owned(), name.clone());
        if let Some((retry_at, error)) = self.backing_off(&key, now) {
            let back_off = format!("Back-off pulling image \"{image}\"");
            report(EventType::Normal, "BackOff", back_off.clone());
            report(
                EventType::Warning,
                "Failed",
                "Error: ImagePullBackOff".to_owned(),
            );
            let message = format!("{back_off}: ErrImagePull: {error}");
            return Err(ImageFailure {
                reason: reasons::IMAGE_PULL_BACK_OFF,
                message,
                retry_at,
            });
        }
        self.pull(want, &name, key, report).await
    }

    async fn present(&self, name: &str) -> Result<Option<Image>, ImageFailure> {
        self.runtime
            .image_status(name)
            .await
            .map_err(|error| ImageFailure {
                reason: "ImageInspectError",
                message: format!("Failed to inspect image \"{name}\": {error}"),
                retry_at: balsa_pod::spec::after(Timestamp::now(), Duration::from_secs(2)),
            })
    }

    fn backing_off(&self, key: &Key, now: Timestamp) -> Option<(Timestamp, String)> {
        let failures = self.failures.lock();
        let failure = failures.get(key)?;
        Some((
            failure.backoff.until(failure.at, now)?,
            failure.error.clone(),
        ))
    }

    async fn pull(
        &self,
        want: &Want<'_>,
        name: &str,
        key: Key,
        report: Report<'_>,
    ) -> Result<Image, ImageFailure> {
        let image = want.image;
        let asked = Instant::now();
        report(
            EventType::Normal,
            "Pulling",
            format!("Pulling image \"{image}\""),
        );
        let lock = Arc::clone(self.busy.lock().entry(name.to_owned()).or_default());
        let (pulled, began) = {
            let _alone = lock.lock().await;
            let _slot = self.slots.acquire().await;
            let began = Instant::now();
            (self.pull_with_secrets(name, &want.secrets).await, began)
        };
        drop(lock);
        self.busy
            .lock()
            .retain(|_, lock| Arc::strong_count(lock) > 1);
        match pulled {
            Ok(found) => {
                self.failures.lock().remove(&key);
                let (own, all) = (go_seconds(began.elapsed()), go_seconds(asked.elapsed()));
                let size = found.size;
                let message = format!(
                    "Successfully pulled image \"{image}\" in {own} ({all} including waiting). Image size: {size} bytes."
                );
                report(EventType::Normal, "Pulled", message);
                Ok(found)
            }
            Err(error) => {
                let now = Timestamp::now();
                let message = format!("failed to pull image \"{image}\": {error}");
                report(
                    EventType::Warning,
                    "Failed",
                    format!("Failed to pull image \"{image}\": {error}"),
                );
                report(
                    EventType::Warning,
                    "Failed",
                    "Error: ErrImagePull".to_owned(),
                );
                self.note_failure(key, now, error.to_string());
                let retry_at = balsa_pod::spec::after(now, ERROR_SHOWN);
                Err(ImageFailure {
                    reason: reasons::ERR_IMAGE_PULL,
                    message,
                    retry_at,
                })
            }
        }
    }

    fn note_failure(&self, key: Key, now: Timestamp, error: String) {
        let mut failures = self.failures.lock();
        if failures.len() >= MAX_FAILURES {
            failures.clear();
        }
        let fresh = || Failure {
            backoff: Backoff::default(),
            at: now,
            error: String::new(),
        };
        let failure = failures.entry(key).or_insert_with(fresh);
        failure.backoff.next(now);
        failure.at = now;
        failure.error = error;
    }

    /// Pulls with each credential that fits, or with none.
    async fn pull_with_secrets(&self, name: &str, secrets: &[&Secret]) -> balsa_cri::Result<Image> {
        let mut credentials: Vec<_> = auth::for_image(name, secrets)
            .into_iter()
            .map(Some)
            .collect();
        credentials.push(None);
        let mut last = None;
        for auth in &credentials {
            match self.runtime.pull_image(name, auth.as_ref()).await {
                Ok(reference) => {
                    let status = self.runtime.image_status(&reference).await?;
                    return Ok(status.unwrap_or_else(|| Image {
                        id: reference,
                        ..Image::default()
                    }));
                }
                Err(error) => last = last.or(Some(error)),
            }
        }
        Err(last.unwrap_or_else(|| balsa_cri::Error::Rpc {
            code: "Unknown",
            message: "no credentials".to_owned(),
        }))
    }
}

/// The name with `:latest` if it has neither tag nor digest; `None` if it can't be a name.
pub(crate) fn with_default_tag(image: &str) -> Option<String> {
    let valid = |c: char| c.is_ascii_alphanumeric() || "./:@-_[]".contains(c);
    if image.is_empty() || !image.chars().all(valid) || image.starts_with(['/', ':', '@', '-']) {
        return None;
    }
    let path = image.split('@').next().unwrap_or(image);
    let last = path.rsplit('/').next().unwrap_or(path);
    let repository = last.split(':').next().unwrap_or(last);
    if repository.is_empty()
        || repository.chars().any(|c| c.is_ascii_uppercase())
        || last.ends_with(':')
    {
        return None;
    }
    let tagged = image.contains('@') || last.contains(':');
    Some(if tagged {
        image.to_owned()
    } else {
        format!("{image}:latest")
    })
}

/// Seconds as Go prints durations: `812ms`, `1.234s`.
fn go_seconds(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    if milliseconds < 1000 {
        return format!("{milliseconds}ms");
    }
    let text = format!("{:.3}", duration.as_secs_f64());
    format!("{}s", text.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use balsa_cri::fake::FakeRuntime;

    use super::*;

    async fn ensure(
        images: &Images,
        image: &str,
        policy: &str,
    ) -> (Result<Image, ImageFailure>, Vec<String>) {
        let events = Mutex::new(Vec::new());
        let report = |_: EventType, reason: &str, message: String| {
            events.lock().push(format!("{reason} {message}"))
        };
        let want = Want {
            image,
            policy: Some(policy),
            pod_uid: "u",
            secrets: Vec::new(),
        };
        let result = images.ensure(&want, &report).await;
        (result, events.into_inner())
    }

    #[tokio::test]
    async fn a_present_image_is_used_and_said_so() {
        let runtime = FakeRuntime::new();
        runtime.add_image("nginx:1");
        let images = Images::new(Arc::new(runtime.clone()), 1);
        let (result, events) = ensure(&images, "nginx:1", "IfNotPresent").await;
        assert!(result.is_ok());
        assert_eq!(
            events,
            [
                "Pulled Container image \"nginx:1\" already present on machine and can be accessed by the pod"
            ]
        );
        let (result, _) = ensure(&images, "other", "Never").await;
        assert_eq!(result.unwrap_err().reason, "ErrImageNeverPull");
    }

    #[tokio::test]
    async fn a_failed_pull_is_followed_by_a_back_off_without_a_second_pull() {
        let runtime = FakeRuntime::new();
        let images = Images::new(Arc::new(runtime.clone()), 1);
        let (first, _) = ensure(&images, "none", "IfNotPresent").await;
        assert_eq!(first.unwrap_err().reason, "ErrImagePull");
        let (second, events) = ensure(&images, "none", "IfNotPresent").await;
        let second = second.unwrap_err();
        assert_eq!(second.reason, "ImagePullBackOff");
        assert!(second.message.starts_with(
            "Back-off pulling image \"none\": ErrImagePull: rpc error: code = NotFound"
        ));
        assert_eq!(
            events,
            [
                "BackOff Back-off pulling image \"none\"",
                "Failed Error: ImagePullBackOff"
            ]
        );
        assert_eq!(
            runtime
                .calls()
                .iter()
                .filter(|call| call.starts_with("pull_image"))
                .count(),
            1
        );
    }

    #[tokio::test]
    async fn a_pull_brings_the_image() {
        let runtime = FakeRuntime::new();
        runtime.add_pullable("app:latest");
        let images = Images::new(Arc::new(runtime), 1);
        let (result, events) = ensure(&images, "app", "Always").await;
        assert!(result.is_ok());
        assert_eq!(events[0], "Pulling Pulling image \"app\"");
        assert!(events[1].starts_with("Pulled Successfully pulled image \"app\" in "));
    }

    #[test]
    fn tags_are_added_and_nonsense_is_refused() {
        assert_eq!(with_default_tag("nginx").as_deref(), Some("nginx:latest"));
        assert_eq!(
            with_default_tag("r:5000/a/b").as_deref(),
            Some("r:5000/a/b:latest")
        );
        assert_eq!(
            with_default_tag("a@sha256:00").as_deref(),
            Some("a@sha256:00")
        );
        for bad in ["", "a b", "NGINX", "a:", "/x"] {
            assert_eq!(with_default_tag(bad), None, "{bad}");
        }
    }
}
