//! containerd's task events: an exit is told within milliseconds, long before CRI's own status knows.

use std::time::Duration;

use containerd_client::events::{TaskExit, TaskOom, TaskStart};
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::{PublishRequest, SubscribeRequest};
use prost::Message;
use prost_types::Any;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tracing::{debug, warn};

use super::{NAMESPACE, namespaced};
use crate::error::Result;
use crate::types::{Nanos, RuntimeEvent};

/// Topic of our own probe, which tells when a subscription has begun.
const PROBE_TOPIC: &str = "/balsa/subscribed";

/// Pause between probes, and between attempts to subscribe.
const PAUSE: Duration = Duration::from_millis(50);

/// Longest pause between attempts while containerd is down.
const MAX_PAUSE: Duration = Duration::from_secs(1);

pub(super) async fn watch(
    channel: Channel,
    events: mpsc::Sender<RuntimeEvent>,
    stop: CancellationToken,
) {
    let mut pause = PAUSE;
    while !events.is_closed() {
        let ended = tokio::select! {
            () = stop.cancelled() => return,
            ended = follow(channel.clone(), &events) => ended,
        };
        match ended {
            Ok(()) => pause = PAUSE,
            Err(error) if error.is_unavailable() => debug!(%error, "no containerd events for now"),
            Err(error) => warn!(%error, "containerd events broke off"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(MAX_PAUSE),
        }
    }
}

/// Follows one subscription to its end.
///
/// containerd answers a subscription only with its first event, so there is no telling when it began; a
/// list made too early would miss what happens in between. So probes are published until one comes back.
async fn follow(channel: Channel, events: &mpsc::Sender<RuntimeEvent>) -> Result<()> {
    let filter = |topic: &str| format!("namespace=={NAMESPACE},topic=={topic:?}");
    let filters = ["/tasks/exit", "/tasks/oom", PROBE_TOPIC]
        .map(filter)
        .to_vec();
    let (subscribed, probing) = tokio::sync::oneshot::channel();
    let mut client = EventsClient::new(channel.clone());
    let read = async move {
        let mut subscribed = Some(subscribed);
        let mut stream = client
            .subscribe(namespaced(SubscribeRequest { filters }))
            .await?
            .into_inner();
        while let Some(envelope) = stream.next().await {
            let envelope = envelope?;
            let event = match (envelope.topic.as_str(), subscribed.take()) {
                (PROBE_TOPIC, None) => continue,
                (PROBE_TOPIC, Some(done)) => {
                    let _ = done.send(());
                    Some(RuntimeEvent::Resync)
                }
                (topic, waiting) => {
                    subscribed = waiting;
                    decode(topic, envelope.event.as_ref())
                }
            };
            if let Some(event) = event
                && events.send(event).await.is_err()
            {
                return Ok(());
            }
        }
        Ok(())
    };
    let (ended, ()) = tokio::join!(read, probe(channel, probing));
    ended
}

/// Publishes probes until told that one arrived, or that the subscription failed.
async fn probe(channel: Channel, mut arrived: tokio::sync::oneshot::Receiver<()>) {
    let mut client = EventsClient::new(channel);
    let any = Any {
        type_url: "containerd.events.TaskStart".to_owned(),
        value: TaskStart {
            container_id: "balsa".to_owned(),
            pid: 0,
        }
        .encode_to_vec(),
    };
    loop {
        let request = PublishRequest {
            topic: PROBE_TOPIC.to_owned(),
            event: Some(any.clone()),
        };
        if let Err(error) = client.publish(namespaced(request)).await {
            debug!(%error, "could not publish a probe");
        }
        tokio::select! {
            _ = &mut arrived => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

/// A time of an event. Go's zero time, which the end of a task may have whose start was cut off, is none that fits.
fn nanos(at: &prost_types::Timestamp) -> Nanos {
    let seconds = at.seconds.saturating_mul(1_000_000_000);
    seconds.saturating_add(i64::from(at.nanos)).max(0)
}

fn decode(topic: &str, event: Option<&Any>) -> Option<RuntimeEvent> {
    let value = event?.value.as_slice();
    match topic {
        "/tasks/exit" => {
            let exit = TaskExit::decode(value).ok()?;
            // Commands run in a container share the topic; only its main process has the container's id.
            if exit.id != exit.container_id {
                return None;
            }
            let at = exit.exited_at.as_ref().map_or(0, nanos);
            Some(RuntimeEvent::Exited {
                id: exit.container_id,
                code: exit.exit_status as i32,
                at,
            })
        }
        "/tasks/oom" => Some(RuntimeEvent::Oom {
            id: TaskOom::decode(value).ok()?.container_id,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn exit(id: &str) -> Any {
        let exit = TaskExit {
            container_id: "c".to_owned(),
            id: id.to_owned(),
            pid: 1,
            exit_status: 137,
            exited_at: Some(prost_types::Timestamp {
                seconds: 1,
                nanos: 5,
            }),
        };
        Any {
            type_url: String::new(),
            value: exit.encode_to_vec(),
        }
    }

    #[test]
    fn an_exit_of_the_main_process_is_told_with_code_and_time() {
        let event = decode("/tasks/exit", Some(&exit("c"))).unwrap();
        assert_eq!(
            event,
            RuntimeEvent::Exited {
                id: "c".to_owned(),
                code: 137,
                at: 1_000_000_005
            }
        );
    }

    #[test]
    fn an_end_at_no_time_is_told_all_the_same() {
        // Go's zero time: the first day of the year 1.
        let zero = TaskExit {
            container_id: "c".to_owned(),
            id: "c".to_owned(),
            exited_at: Some(prost_types::Timestamp {
                seconds: -62_135_596_800,
                nanos: 0,
            }),
            ..TaskExit::default()
        };
        let event = Any {
            type_url: String::new(),
            value: zero.encode_to_vec(),
        };
        let told = decode("/tasks/exit", Some(&event)).unwrap();
        assert!(matches!(told, RuntimeEvent::Exited { at: 0, .. }));
    }

    #[test]
    fn an_exit_of_a_command_run_in_a_container_is_not_the_containers() {
        assert_eq!(decode("/tasks/exit", Some(&exit("exec-1"))), None);
    }

    #[test]
    fn foreign_bytes_are_ignored() {
        let any = Any {
            type_url: String::new(),
            value: vec![0xff; 9],
        };
        assert_eq!(decode("/tasks/exit", Some(&any)), None);
        assert_eq!(decode("/tasks/oom", Some(&any)), None);
        assert_eq!(decode("/tasks/exit", None), None);
    }
}
