//! Nodes that have the images already start the pod sooner.

use crate::cache::NodeInfo;
use crate::context::Context;
use crate::framework::{MAX_SCORE, Score};
use crate::image::Image;
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
        if node.images.is_empty() {
            return 0;
        }
        let size = |image: &Image| image.names().find_map(|name| node.images.get(name));
        let present: i64 = pod.images.iter().filter_map(size).sum();
        let most = LARGE * i64::try_from(pod.images.len()).unwrap_or(1).max(1);
        if most <= SMALL {
            return 0;
        }
        MAX_SCORE * (present.clamp(SMALL, most) - SMALL) / (most - SMALL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Cache;
    use crate::plugins::testing;
    use serde_json::json;

    #[test]
    fn a_short_image_name_is_found_under_its_full_name() {
        let node = testing::node(json!({"status": {"images": [
            {"names": ["docker.io/library/nginx:latest"], "sizeBytes": 500_000_000}]}}));
        let cache = Cache::default();
        let score = |image: &str| {
            let pod = testing::pod(json!({"containers": [{"name": "c", "image": image}]}));
            ImageLocality.score(&pod, &node, &Context::new(&pod, &cache))
        };
        assert_eq!(score("nginx"), 46);
        assert_eq!(score("docker.io/library/nginx:latest"), 46);
        assert_eq!(score("other/nginx"), 0);
    }
}
