//! The node's Lease in `kube-node-lease`, for tools and controllers that read it.

use std::time::Duration;

use balsa_client::Informer;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease as LeaseObject, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::debug;

const NAMESPACE: &str = "kube-node-lease";

/// Renews a Lease.
pub(super) struct Lease {
    pub(super) client: kube::Client,
    pub(super) node: String,
    /// The Node's as it was registered.
    pub(super) uid: String,
    pub(super) nodes: Informer<Node>,
    pub(super) seconds: i32,
    pub(super) period: Duration,
}

impl Lease {
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(self.period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let mut attempt = 0;
            // A missed renewal costs trust: tried again at once, a few times.
            while attempt < 5 {
                match tokio::time::timeout(self.period.max(Duration::from_secs(2)), self.renew())
                    .await
                {
                    Ok(Ok(())) => break,
                    Ok(Err(error)) => debug!(%error, "could not renew the lease"),
                    Err(_) => debug!("could not renew the lease in time"),
                }
                attempt += 1;
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(self.period / 5) => {}
                }
            }
        }
    }

    async fn renew(&self) -> Result<(), kube::Error> {
        let api: Api<LeaseObject> = Api::namespaced(self.client.clone(), NAMESPACE);
        let now = MicroTime(Timestamp::now());
        let spec = json!({
            "holderIdentity": self.node, "leaseDurationSeconds": self.seconds, "renewTime": now,
        });
        let patch = Patch::Merge(json!({"spec": spec}));
        match api.patch(&self.node, &PatchParams::default(), &patch).await {
            Err(kube::Error::Api(status)) if status.code == 404 => api
                .create(&PostParams::default(), &self.object(now))
                .await
                .map(|_| ()),
            result => result.map(|_| ()),
        }
    }

    fn object(&self, now: MicroTime) -> LeaseObject {
        // One that was deleted is made again, and is another then.
        let known = self.nodes.get("", &self.node);
        let uid = known.and_then(|node| node.metadata.uid.clone());
        LeaseObject {
            metadata: ObjectMeta {
                name: Some(self.node.clone()),
                namespace: Some(NAMESPACE.to_owned()),
                owner_references: Some(vec![OwnerReference {
                    api_version: "v1".to_owned(),
                    kind: "Node".to_owned(),
                    name: self.node.clone(),
                    uid: uid.unwrap_or_else(|| self.uid.clone()),
                    ..OwnerReference::default()
                }]),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.node.clone()),
                lease_duration_seconds: Some(self.seconds),
                renew_time: Some(now),
                ..LeaseSpec::default()
            }),
        }
    }
}
