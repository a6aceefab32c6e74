//! core/v1 Events: what controllers tell people.

mod correlate;

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use kube::Resource;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use self::correlate::{Correlator, Write};
use crate::time;

/// `type` of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventType {
    /// All is well.
    Normal,
    /// Somebody should look.
    Warning,
}

impl EventType {
    /// As in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        }
    }
}

/// One thing to tell.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    pub(crate) about: ObjectReference,
    pub(crate) type_: EventType,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) action: Option<&'static str>,
    pub(crate) related: Option<ObjectReference>,
    pub(crate) at: Timestamp,
}

/// What was tried when an event came about.
#[derive(Debug, Clone)]
pub struct Deed {
    /// `reason`.
    pub reason: &'static str,
    /// `action`: `Binding`, `Scheduling`, `Preempting`.
    pub action: &'static str,
    /// The other object that had a part in it.
    pub related: Option<ObjectReference>,
}

/// Reports waiting to be written; more are dropped.
const QUEUE: usize = 4096;
const WRITE_DEADLINE: Duration = Duration::from_secs(10);
const WRITE_ATTEMPTS: u32 = 4;

/// Writes Events in the background. Cheap to clone; never blocks; drops reports when it cannot keep up.
///
/// Equal reports raise the count of one Event; many similar ones are combined; one noisy object is slowed
/// down (25 at once, then one in five minutes).
#[derive(Clone)]
pub struct EventRecorder {
    sender: mpsc::Sender<Report>,
}

impl EventRecorder {
    /// Starts to write as `component`, upstream's name for it: `deployment-controller`,
    /// `replicaset-controller`, `job-controller`, `node-controller`, `default-scheduler`, `kubelet`.
    /// `host` is the node for node agents, else `None`.
    #[must_use]
    pub fn start(
        client: kube::Client,
        component: &str,
        host: Option<&str>,
        stop: CancellationToken,
    ) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let source = EventSource {
            component: Some(component.to_owned()),
            host: host.map(str::to_owned),
        };
        let writer = Writer { client, source };
        let span = tracing::info_span!("events", component);
        tokio::spawn(
            async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = writer.run(receiver) => {}
                }
            }
            .instrument(span),
        );
        Self { sender }
    }

    /// A recorder that drops everything, for tests.
    #[must_use]
    pub fn discard() -> Self {
        Self {
            sender: mpsc::channel(1).0,
        }
    }

    /// Reports something about an object of a built-in kind.
    pub fn event<K>(&self, object: &K, type_: EventType, reason: &str, message: impl Into<String>)
    where
        K: Resource<DynamicType = ()>,
    {
        self.report(object.object_ref(&()), type_, reason, message);
    }

    /// Reports something about whatever `about` refers to; `fieldPath` may name a container
    /// (`spec.containers{web}`).
    pub fn report(
        &self,
        about: ObjectReference,
        type_: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.send(Report {
            about,
            type_,
            reason: reason.to_owned(),
            message: message.into(),
            action: None,
            related: None,
            at: Timestamp::now(),
        });
    }

    /// Reports something with what was tried, as components do whose events say so in `events.k8s.io`.
    pub fn deed<K>(&self, object: &K, type_: EventType, deed: Deed, message: impl Into<String>)
    where
        K: Resource<DynamicType = ()>,
    {
        self.send(Report {
            about: object.object_ref(&()),
            type_,
            reason: deed.reason.to_owned(),
            message: message.into(),
            action: Some(deed.action),
            related: deed.related,
            at: Timestamp::now(),
        });
    }

    fn send(&self, report: Report) {
        if let Err(error) = self.sender.try_send(report) {
            let report = error.into_inner();
            tracing::debug!(reason = report.reason, "event dropped");
        }
    }
}

struct Writer {
    client: kube::Client,
    source: EventSource,
}

impl Writer {
    async fn run(self, mut reports: mpsc::Receiver<Report>) {
        let mut correlator = Correlator::default();
        while let Some(report) = reports.recv().await {
            let key = match correlator.observe(&report) {
                Some(write) => self.write(&report, write).await,
                None => continue,
            };
            if let Some((key, name)) = key {
                correlator.written(key, name);
            }
        }
    }

    /// Writes, and returns under which name; gives up after a few attempts, as events are not worth more.
    async fn write(
        &self,
        report: &Report,
        mut write: Write,
    ) -> Option<(correlate::Similar, String)> {
        let namespace = report
            .about
            .namespace
            .as_deref()
            .filter(|n| !n.is_empty())
            .unwrap_or("default");
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        for attempt in 0..WRITE_ATTEMPTS {
            let result =
                tokio::time::timeout(WRITE_DEADLINE, self.attempt(&api, report, &write)).await;
            match result {
                Ok(Ok(name)) => return Some((write.key, name)),
                // The Event has expired meanwhile: write a new one.
                Ok(Err(kube::Error::Api(status)))
                    if status.code == 404 && write.existing.is_some() =>
                {
                    write.existing = None;
                }
                Ok(Err(kube::Error::Api(status)))
                    if (400..500).contains(&status.code) && status.code != 429 =>
                {
                    tracing::debug!(error = %status.message, reason = report.reason, "event refused");
                    return None;
                }
                Ok(Err(error)) => tracing::debug!(%error, "event not written; trying again"),
                Err(_) => tracing::debug!("event not written in time; trying again"),
            }
            tokio::time::sleep(Duration::from_millis(100) * 3_u32.pow(attempt)).await;
        }
        None
    }

    async fn attempt(
        &self,
        api: &Api<Event>,
        report: &Report,
        write: &Write,
    ) -> kube::Result<String> {
        if let Some(name) = &write.existing {
            let patch = serde_json::json!({
                "count": write.count,
                "lastTimestamp": time::time(report.at),
                "message": write.message,
            });
            api.patch(name, &PatchParams::default(), &Patch::Merge(&patch))
                .await?;
            return Ok(name.clone());
        }
        let event = self.event(report, write);
        let name = event.metadata.name.clone().unwrap_or_default();
        api.create(&PostParams::default(), &event).await?;
        Ok(name)
    }

    /// Who of several with the same name; what has an action has an instance too.
    fn instance(&self, report: &Report) -> String {
        let component = report.action.and(self.source.component.as_ref());
        let instance = self.source.host.as_ref().or(component);
        instance.cloned().unwrap_or_default()
    }

    fn event(&self, report: &Report, write: &Write) -> Event {
        let about = &report.about;
        let namespace = about
            .namespace
            .clone()
            .filter(|n| !n.is_empty())
            .unwrap_or_else(|| "default".into());
        let object = about.name.clone().unwrap_or_default();
        let name = format!(
            "{object}.{:x}",
            report.at.as_nanosecond() ^ i128::from(rand::random::<u16>())
        );
        let at = time::time(report.at);
        Event {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: Some(namespace),
                ..ObjectMeta::default()
            },
            involved_object: about.clone(),
            reason: Some(report.reason.clone()),
            message: Some(write.message.clone()),
            source: Some(self.source.clone()),
            first_timestamp: Some(at.clone()),
            last_timestamp: Some(at),
            count: Some(write.count),
            type_: Some(report.type_.as_str().to_owned()),
            reporting_component: Some(self.source.component.clone().unwrap_or_default()),
            reporting_instance: Some(self.instance(report)),
            action: report.action.map(str::to_owned),
            related: report.related.clone(),
            ..Event::default()
        }
    }
}
