//! Nodes that have the images already start the pod sooner.

use crate::cache::NodeInfo;
use crate::context::Context;
use crate::framework::{MAX_SCORE, Score};
use crate::pod::PodInfo;

/// Prefers nodes that hold more bytes of the pod's images.
pub struct ImageLocality;

/// Below this, an image is not worth a thought; bytes.
const SMALL: i64 = 23 * 1024 * 1024;
/// Above this per container, more does not count; bytes.
const LARGE: i64 = 1000 * 1024 * 1024;

impl Score for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }

    fn weight(&self) -> i64 {
        1
    }

    fn score(&self, pod: &PodInfo, node: &NodeInfo, _: &Context<'_>) -> i64 {
        let present: i64 = pod.images.iter().map(|name| size(node, name)).sum();
        let most = LARGE * i64::try_from(pod.images.len()).unwrap_or(1).max(1);
        if most <= SMALL {
            return 0;
        }
        MAX_SCORE * (present.clamp(SMALL, most) - SMALL) / (most - SMALL)
    }
}

/// Size of an image on the node under the name a pod would use for it.
fn size(node: &NodeInfo, name: &str) -> i64 {
    if let Some(size) = node.images.get(name) {
        return *size;
    }
    let last = name.rsplit('/').next().unwrap_or(name);
    let tagged = if last.contains(':') || last.contains('@') {
        name.to_owned()
    } else {
        format!("{name}:latest")
    };
    let first = name.split('/').next().unwrap_or_default();
    let has_host =
        name.contains('/') && (first.contains('.') || first.contains(':') || first == "localhost");
    let full = match (has_host, name.contains('/')) {
        (true, _) => tagged,
        (false, true) => format!("docker.io/{tagged}"),
        (false, false) => format!("docker.io/library/{tagged}"),
    };
    node.images.get(&full).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::testing;
    use serde_json::json;

    #[test]
    fn a_short_image_name_is_found_under_its_full_name() {
        let node = testing::node(json!({"status": {"images": [
            {"names": ["docker.io/library/nginx:latest"], "sizeBytes": 500_000_000}]}}));
        assert_eq!(size(&node, "nginx"), 500_000_000);
        assert_eq!(size(&node, "other/nginx"), 0);
    }
}
