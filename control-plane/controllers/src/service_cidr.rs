//! ServiceCIDRs: ready from when they are seen, and gone only when no Service has an address of theirs alone.
//!
//! Rules: KEP-1880.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use balsa_client::{Informer, InformerOptions, Key, Outcome, WorkQueue};
use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::context::Shared;
use crate::error::{Result, unless_gone};

/// Keeps a range until its addresses are free.
const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
/// Before a range with addresses in use is looked at again.
const AGAIN: Duration = Duration::from_secs(10);

struct Controller {
    context: Shared,
    ranges: Informer<ServiceCIDR>,
    addresses: Informer<IPAddress>,
}

pub(crate) async fn run(context: Shared) {
    let client = &context.client;
    let options = InformerOptions::default;
    let stop = &context.stop;
    let ranges: Informer<ServiceCIDR> =
        Informer::start(Api::all(client.clone()), options(), stop.clone());
    let addresses: Informer<IPAddress> =
        Informer::start(Api::all(client.clone()), options(), stop.clone());
    let queue = WorkQueue::default();
    let changed = queue.clone();
    ranges.on_change(move |delta| changed.add(Key::of(&**delta.object())));
    let (freed, waiting) = (queue.clone(), ranges.clone());
    addresses.on_change(move |delta| {
        if delta.is_delete() {
            for range in waiting.list().iter().filter(|range| is_leaving(range)) {
                freed.add(Key::of(&**range));
            }
        }
    });
    ranges.synced().await;
    addresses.synced().await;
    let controller = Arc::new(Controller {
        context: Arc::clone(&context),
        ranges,
        addresses,
    });
    context
        .work("servicecidr", queue, move |key| {
            let this = Arc::clone(&controller);
            async move { this.reconcile(key).await }
        })
        .await;
}

fn is_leaving(range: &ServiceCIDR) -> bool {
    range.metadata.deletion_timestamp.is_some()
}

fn nets(range: &ServiceCIDR) -> impl Iterator<Item = IpNet> {
    let spec = range.spec.as_ref();
    let cidrs = spec.and_then(|spec| spec.cidrs.as_ref());
    cidrs
        .into_iter()
        .flatten()
        .filter_map(|cidr| cidr.parse().ok())
}

/// Whether a range holds an address that no other range would hold.
fn is_needed(
    range: &ServiceCIDR,
    others: &[Arc<ServiceCIDR>],
    addresses: impl IntoIterator<Item = IpAddr>,
) -> bool {
    let other = |address: &IpAddr| {
        others.iter().any(|other| {
            other.metadata.name != range.metadata.name
                && !is_leaving(other)
                && nets(other).any(|net| net.contains(address))
        })
    };
    addresses
        .into_iter()
        .any(|address| nets(range).any(|net| net.contains(&address)) && !other(&address))
}

/// Whether its condition `Ready` is as it should be.
fn says(range: &ServiceCIDR, status: &str) -> bool {
    let conditions = range.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .any(|c| c.type_ == "Ready" && c.status == status)
}

impl Controller {
    async fn reconcile(&self, key: Key) -> Result<Outcome> {
        let Some(range) = self.ranges.get("", &key.name) else {
            return Ok(Outcome::Done);
        };
        if is_leaving(&range) {
            return self.leave(&range).await;
        }
        if !range.finalizers().iter().any(|f| f == FINALIZER) {
            let mut all = range.finalizers().to_vec();
            all.push(FINALIZER.to_owned());
            self.set_finalizers(&range, &all).await?;
        } else if !says(&range, "True") {
            let message = "Kubernetes Service CIDR is ready";
            self.set_ready(&range, "True", "", message).await?;
        }
        Ok(Outcome::Done)
    }

    async fn leave(&self, range: &ServiceCIDR) -> Result<Outcome> {
        if !range.finalizers().iter().any(|f| f == FINALIZER) {
            return Ok(Outcome::Done);
        }
        if !says(range, "False") {
            // No address is given out of it from now on.
            let message = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";
            self.set_ready(range, "False", "Terminating", message)
                .await?;
            return Ok(Outcome::After(Duration::from_secs(1)));
        }
        let addresses = self.addresses.list();
        let addresses = addresses.iter().filter_map(|a| a.name_any().parse().ok());
        if is_needed(range, &self.ranges.list(), addresses) {
            return Ok(Outcome::After(AGAIN));
        }
        let mut rest = range.finalizers().to_vec();
        rest.retain(|f| f != FINALIZER);
        self.set_finalizers(range, &rest).await?;
        Ok(Outcome::Done)
    }

    async fn set_finalizers(&self, range: &ServiceCIDR, all: &[String]) -> Result<()> {
        let patch = json!({"metadata": {
            "resourceVersion": range.metadata.resource_version, "finalizers": all}});
        let api = self.context.cluster_api::<ServiceCIDR>();
        let (name, params) = (range.name_any(), PatchParams::default());
        unless_gone(api.patch(&name, &params, &Patch::Merge(&patch)).await)?;
        Ok(())
    }

    async fn set_ready(
        &self,
        range: &ServiceCIDR,
        status: &str,
        reason: &str,
        message: &str,
    ) -> Result<()> {
        let condition = json!({"type": "Ready", "status": status, "reason": reason, "message": message,
            "lastTransitionTime": balsa_client::time::now()});
        let patch = json!({"metadata": {"resourceVersion": range.metadata.resource_version},
            "status": {"conditions": [condition]}});
        let api = self.context.cluster_api::<ServiceCIDR>();
        let (name, params) = (range.name_any(), PatchParams::default());
        unless_gone(
            api.patch_status(&name, &params, &Patch::Merge(&patch))
                .await,
        )?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn range(name: &str, cidr: &str) -> Arc<ServiceCIDR> {
        let range = json!({"metadata": {"name": name}, "spec": {"cidrs": [cidr]}});
        Arc::new(serde_json::from_value(range).unwrap())
    }

    #[test]
    fn a_range_is_needed_while_it_alone_holds_an_address() {
        let (small, large) = (range("small", "10.1.0.0/28"), range("large", "10.1.0.0/24"));
        let address = |text: &str| [text.parse::<IpAddr>().unwrap()];
        let both = [Arc::clone(&small), Arc::clone(&large)];
        assert!(is_needed(&small, &both[..1], address("10.1.0.5")));
        assert!(!is_needed(&small, &both, address("10.1.0.5")));
        assert!(is_needed(&large, &both, address("10.1.0.200")));
        assert!(!is_needed(&small, &both[..1], address("10.2.0.5")));
    }
}
