//! Each node gets a pod CIDR of its own from the cluster's range.

use std::collections::HashMap;
use std::sync::Arc;

use balsa_client::{EventRecorder, EventType, Key, Outcome, WorkQueue};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::json;

use crate::context::Shared;
use crate::error::{Error, Result, unless_gone};

struct Controller {
    context: Shared,
    recorder: EventRecorder,
    /// Given out but perhaps not yet in the cache: node names by CIDR. One allocation at a time.
    reserved: Mutex<HashMap<IpNet, String>>,
    /// What nodes had that were deleted, by name: an agent whose Node is deleted makes it again at once, and its pods
    /// have addresses of that range.
    last: Mutex<HashMap<String, IpNet>>,
}

pub(crate) async fn run(context: Shared) {
    let queue = WorkQueue::default();
    let controller = Arc::new(Controller {
        recorder: context.recorder("cidrAllocator"),
        reserved: Mutex::default(),
        last: Mutex::default(),
        context: Arc::clone(&context),
    });
    // All existing CIDRs must be known before the first new one is given out.
    context.informers.nodes.synced().await;
    let (nodes, this) = (queue.clone(), Arc::clone(&controller));
    context.informers.nodes.on_change(move |delta| {
        let node = &**delta.object();
        if delta.is_delete() {
            this.reserved
                .lock()
                .retain(|_, name| *name != node.name_any());
            if let Some(cidr) = pod_cidr(node).and_then(|cidr| cidr.parse().ok()) {
                let mut last = this.last.lock();
                // The last one that had it is the only one that may still use it.
                last.retain(|_, other| *other != cidr);
                last.insert(node.name_any(), cidr);
            }
            // Its range is free now: somebody may be waiting for it.
            let waiting = this
                .context
                .informers
                .nodes
                .list()
                .into_iter()
                .filter(|node| pod_cidr(node).is_none());
            waiting.for_each(|node| nodes.add(Key::of(&*node)));
        } else if pod_cidr(node).is_none() {
            nodes.add(Key::of(node));
        } else {
            this.reserved
                .lock()
                .retain(|_, name| *name != node.name_any());
        }
    });
    let this = Arc::clone(&controller);
    context
        .work("node-ipam", queue, move |key| {
            let this = Arc::clone(&this);
            async move { this.reconcile(&key.name).await }
        })
        .await;
}

fn pod_cidr(node: &Node) -> Option<&str> {
    node.spec
        .as_ref()?
        .pod_cidr
        .as_deref()
        .filter(|cidr| !cidr.is_empty())
}

impl Controller {
    async fn reconcile(&self, name: &str) -> Result<Outcome> {
        let Some(node) = self.context.informers.nodes.get("", name) else {
            return Ok(Outcome::Done);
        };
        if pod_cidr(&node).is_some() || node.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Done);
        }
        let Some(cidr) = self.reserve(name) else {
            let message = format!("Node {name} status is now: CIDRNotAvailable");
            self.recorder
                .event(&*node, EventType::Normal, "CIDRNotAvailable", message);
            return Err(Error::Invalid(format!(
                "no pod CIDR is left for node {name} in {} with /{} each; remove nodes or configure a larger range",
                self.context.config.pod_cidr, self.context.config.node_mask
            )));
        };
        let patch = json!({"metadata": {"uid": node.uid()}, "spec": {
            "podCIDR": cidr.to_string(), "podCIDRs": [cidr.to_string()],
        }});
        let api = self.context.cluster_api::<Node>();
        let patched = unless_gone(
            api.patch(name, &PatchParams::default(), &Patch::Merge(&patch))
                .await,
        );
        if !matches!(patched, Ok(Some(_))) {
            self.reserved.lock().remove(&cidr);
        }
        patched?;
        Ok(Outcome::Done)
    }

    /// The node's reservation, or a new one.
    fn reserve(&self, name: &str) -> Option<IpNet> {
        let mut reserved = self.reserved.lock();
        if let Some((cidr, _)) = reserved.iter().find(|(_, node)| *node == name) {
            return Some(*cidr);
        }
        let nodes = self.context.informers.nodes.list();
        let mut used: Vec<IpNet> = nodes
            .iter()
            .filter_map(|node| pod_cidr(node))
            .filter_map(|cidr| cidr.parse().ok())
            .collect();
        used.extend(reserved.keys());
        let config = &self.context.config;
        let last = self.last.lock();
        let cidr = choose(config.pod_cidr, config.node_mask, &used, &last, name)?;
        reserved.insert(cidr, name.to_owned());
        Some(cidr)
    }
}

/// A subnet for a node: the one that it had when it was deleted, if that is free; else one that no deleted node had,
/// as long as there is one.
fn choose(
    range: IpNet,
    mask: u8,
    used: &[IpNet],
    last: &HashMap<String, IpNet>,
    name: &str,
) -> Option<IpNet> {
    let own = last.get(name).filter(|own| {
        range.contains(*own) && own.prefix_len() == mask && !used.iter().any(|a| overlap(a, own))
    });
    own.copied().or_else(|| {
        let mut held = used.to_vec();
        held.extend(last.values());
        first_free(range, mask, &held).or_else(|| first_free(range, mask, used))
    })
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// The first subnet that overlaps none in use.
fn first_free(range: IpNet, mask: u8, used: &[IpNet]) -> Option<IpNet> {
    range
        .subnets(mask)
        .ok()?
        .find(|subnet| !used.iter().any(|used| overlap(used, subnet)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn the_first_subnet_that_nobody_overlaps_is_given() {
        let range = net("10.244.0.0/16");
        assert_eq!(first_free(range, 24, &[]), Some(net("10.244.0.0/24")));
        assert_eq!(
            first_free(range, 24, &[net("10.244.0.0/24"), net("10.244.2.0/24")]),
            Some(net("10.244.1.0/24"))
        );
        // A larger one given out under an older configuration counts as a whole.
        assert_eq!(
            first_free(range, 24, &[net("10.244.0.0/23")]),
            Some(net("10.244.2.0/24"))
        );
    }

    #[test]
    fn a_node_that_was_deleted_gets_what_it_had_and_others_get_that_last() {
        let range = net("10.244.0.0/22");
        let last = HashMap::from([
            ("a".to_owned(), net("10.244.0.0/24")),
            ("b".to_owned(), net("10.244.1.0/24")),
        ]);
        let choose = |name: &str, used: &[&str]| {
            let used: Vec<IpNet> = used.iter().map(|text| net(text)).collect();
            choose(range, 24, &used, &last, name)
        };
        assert_eq!(choose("b", &[]), Some(net("10.244.1.0/24")));
        assert_eq!(
            choose("b", &["10.244.1.0/24"]),
            Some(net("10.244.2.0/24")),
            "somebody else has it by now"
        );
        assert_eq!(
            choose("c", &["10.244.2.0/23"]),
            Some(net("10.244.0.0/24")),
            "nothing else is left"
        );
    }

    #[test]
    fn a_full_range_gives_nothing() {
        assert_eq!(
            first_free(
                net("10.0.0.0/30"),
                31,
                &[net("10.0.0.0/31"), net("10.0.0.2/31")]
            ),
            None
        );
        assert_eq!(first_free(net("10.0.0.0/24"), 16, &[]), None);
    }
}
