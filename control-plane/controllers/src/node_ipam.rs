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
}

pub(crate) async fn run(context: Shared) {
    let queue = WorkQueue::default();
    let controller = Arc::new(Controller {
        recorder: context.recorder("cidrAllocator"),
        reserved: Mutex::default(),
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
        let cidr = first_free(
            self.context.config.pod_cidr,
            self.context.config.node_mask,
            &used,
        )?;
        reserved.insert(cidr, name.to_owned());
        Some(cidr)
    }
}

/// The first subnet that overlaps none in use.
fn first_free(range: IpNet, mask: u8, used: &[IpNet]) -> Option<IpNet> {
    let overlaps = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
    range
        .subnets(mask)
        .ok()?
        .find(|subnet| !used.iter().any(|used| overlaps(used, subnet)))
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
