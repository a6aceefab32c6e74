//! The machine goes down: pods end in good order before it does (KEP-2000), the less important ones first
//! (KEP-2712), and the API is told why. Restarting the agent alone ends nothing.

mod machine;
mod waves;

use std::sync::Arc;
use std::time::Duration;

use balsa_client::EventType;
use balsa_pod::Rejection;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::pods::capacity::ended;
use crate::pods::{Context, Manager};
pub(crate) use machine::{Machine, Systemd};
use waves::{Wave, waves};

/// Why the node is not Ready then.
const OBSTACLE: &str = "node is shutting down";

/// `status.reason` and `status.message` of pods that the shutdown ended.
const ENDED: (&str, &str) = (
    "Terminated",
    "Pod was terminated in response to imminent node shutdown.",
);

/// How often pods are looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Time for the last pods' ends to be written after their containers' time is up.
const REPORT: Duration = Duration::from_secs(3);

/// Ends the pods of a node that goes down.
pub(crate) struct Shutdown {
    pub(crate) context: Arc<Context>,
    pub(crate) manager: Arc<Manager>,
    /// Why the node can't run pods.
    pub(crate) obstacle: watch::Sender<Option<String>>,
}

impl Shutdown {
    /// Ends all pods. Takes no longer than the periods that are set, and a few seconds.
    pub(crate) async fn run(&self) {
        info!("the machine goes down: ending its pods");
        self.tell();
        self.context.capacity.close();
        self.obstacle.send_replace(Some(OBSTACLE.to_owned()));
        let mut pods = self.manager.own_pods();
        pods.retain(|(_, pod)| !self.is_over(pod));
        for wave in waves(&self.context.config.shutdown, pods) {
            self.end(&wave).await;
        }
    }

    async fn end(&self, wave: &Wave) {
        let seconds = wave.period.as_secs();
        info!(pods = wave.pods.len(), seconds, "ending pods");
        let (reason, message) = ENDED;
        for (uid, _) in &wave.pods {
            let rejection = Rejection {
                reason: reason.to_owned(),
                message: message.to_owned(),
                disruption: true,
                grace: Some(wave.period),
            };
            self.manager.evict(uid, rejection);
        }
        let deadline = Instant::now() + wave.period + REPORT;
        let left = || wave.pods.iter().filter(|(_, pod)| !self.is_over(pod));
        while left().next().is_some() {
            if Instant::now() >= deadline {
                let left = left().count();
                warn!(left, "pods have not ended in the time of a shutdown");
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Does the API know that the pod has ended? Static pods are known by their mirrors.
    fn is_over(&self, pod: &Pod) -> bool {
        let metadata = &pod.metadata;
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        let name = metadata.name.as_deref().unwrap_or_default();
        let known = self.manager.pod(namespace, name);
        known.is_none_or(|known| ended(&known))
    }

    fn tell(&self) {
        let name = &self.context.config.node_name;
        let about = ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(name.clone()),
            uid: Some(name.clone()),
            ..ObjectReference::default()
        };
        let words = "Shutdown manager detected shutdown event";
        let recorder = &self.context.recorder;
        recorder.report(about, EventType::Normal, "NodeShutdown", words.to_owned());
    }
}
