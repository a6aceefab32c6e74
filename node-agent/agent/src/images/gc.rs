//! Removing images when the disk fills up: unused ones, those unused for longest first.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use balsa_cri::{Image, Runtime};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::containerd::PAUSE_IMAGE;

/// How often the disk is looked at.
const PERIOD: Duration = Duration::from_secs(300);
/// Use in percent at which removing begins.
const HIGH: u64 = 85;
/// Use in percent at which it ends.
const LOW: u64 = 80;
/// An image younger than this on the node is left alone.
const MIN_AGE: Duration = Duration::from_secs(120);

/// Removes images.
pub(crate) struct Collector {
    pub(crate) runtime: Arc<dyn Runtime>,
    /// A folder on the file system that images are on.
    pub(crate) folder: PathBuf,
}

impl Collector {
    /// Runs until stopped.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut last_used: BTreeMap<String, Instant> = BTreeMap::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PERIOD) => {}
            }
            if let Err(error) = self.collect(&mut last_used).await {
                warn!(%error, "image garbage collection failed");
            }
        }
    }

    async fn collect(&self, last_used: &mut BTreeMap<String, Instant>) -> balsa_cri::Result<()> {
        let images = self.runtime.list_images().await?;
        let containers = self.runtime.list_containers().await?;
        let used: HashSet<String> = containers
            .into_iter()
            .map(|container| container.image_ref)
            .collect();
        let now = Instant::now();
        last_used.retain(|id, _| images.iter().any(|image| image.id == *id));
        for image in &images {
            if in_use(image, &used) {
                last_used.insert(image.id.clone(), now);
            } else {
                last_used.entry(image.id.clone()).or_insert(now);
            }
        }
        let Ok(space) = nix::sys::statvfs::statvfs(&self.folder) else {
            return Ok(());
        };
        let total = space.blocks() * space.fragment_size();
        let free = space.blocks_available() * space.fragment_size();
        let Some(mut excess) = excess(total, free) else {
            return Ok(());
        };
        let mut candidates: Vec<&Image> = images
            .iter()
            .filter(|image| !in_use(image, &used))
            .collect();
        candidates.sort_by_key(|image| last_used.get(&image.id).copied().unwrap_or(now));
        for image in candidates {
            let age = last_used
                .get(&image.id)
                .map_or(Duration::ZERO, |since| now.duration_since(*since));
            if excess == 0 || age < MIN_AGE {
                continue;
            }
            info!(
                image = image.tags.first().unwrap_or(&image.id),
                bytes = image.size,
                "removing an unused image"
            );
            self.runtime.remove_image(&image.id).await?;
            excess = excess.saturating_sub(image.size);
        }
        Ok(())
    }
}

/// Removes all images that no container needs; answers with the bytes that they took.
pub(crate) async fn remove_unused(runtime: &dyn Runtime) -> balsa_cri::Result<u64> {
    let images = runtime.list_images().await?;
    let containers = runtime.list_containers().await?;
    let used: HashSet<String> = containers
        .into_iter()
        .map(|container| container.image_ref)
        .collect();
    let mut freed = 0_u64;
    for image in images.iter().filter(|image| !in_use(image, &used)) {
        runtime.remove_image(&image.id).await?;
        freed = freed.saturating_add(image.size);
    }
    Ok(freed)
}

/// How many bytes must go, when too many are used.
fn excess(total: u64, free: u64) -> Option<u64> {
    let used = total.saturating_sub(free);
    (total > 0 && used * 100 / total >= HIGH).then(|| used.saturating_sub(total / 100 * LOW))
}

/// Is the image needed? The sandbox image always is: containerd 1.6 does not pin it.
fn in_use(image: &Image, used: &HashSet<String>) -> bool {
    image.pinned
        || image.tags.iter().any(|tag| tag == PAUSE_IMAGE)
        || used.contains(&image.id)
        || image
            .digests
            .iter()
            .chain(&image.tags)
            .any(|name| used.contains(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removing_begins_late_and_goes_on_for_a_while() {
        assert_eq!(excess(1000, 200), None);
        assert_eq!(excess(1000, 100), Some(100));
        assert_eq!(excess(0, 0), None);
    }

    #[test]
    fn the_sandbox_image_is_always_in_use() {
        let pause = Image {
            tags: vec![PAUSE_IMAGE.to_owned()],
            ..Image::default()
        };
        assert!(in_use(&pause, &HashSet::new()));
        let other = Image {
            id: "x".to_owned(),
            ..Image::default()
        };
        assert!(!in_use(&other, &HashSet::new()));
        assert!(in_use(&other, &HashSet::from(["x".to_owned()])));
    }
}
