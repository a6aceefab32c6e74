//! What the node grants to the pod, against what its spec asks for.

use balsa_client::EventType;
use balsa_pod::resize;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus, ResourceRequirements};
use serde::Serialize;
use tracing::warn;

use super::Worker;
use crate::pods::{capacity, checkpoint};

impl Worker {
    /// At the beginning: what was granted before, or else what is asked for.
    pub(super) fn recall_grants(&mut self) {
        let wanted = resize::wanted(&self.asked);
        let dir = self.context.paths.pod(&self.ops.uid);
        match checkpoint::load(&dir) {
            Some(known) => {
                self.resources = known;
                for name in names(&self.asked) {
                    let known = self.resources.actuated.get(&name).cloned();
                    self.local.container(&name).actuated = Some(known.unwrap_or_default());
                }
                self.grant();
            }
            None if wanted.is_empty() || capacity::ended(&self.pod) => {
                self.resources.granted = wanted;
            }
            None => {
                self.resources.granted = wanted;
                self.save_resources();
            }
        }
    }

    /// Asks for what the spec asks for if it is not granted yet, and makes the pod say what is granted.
    pub(super) fn grant(&mut self) {
        let waited = self.local.resize_pending.take();
        let mut spec = self.asked.clone();
        if resize::differs(&spec, &self.resources.granted) {
            let over = capacity::ended(&self.pod) || self.pod.metadata.deletion_timestamp.is_some();
            let mut wanted = self.pod.clone();
            wanted.spec = Some(spec.clone());
            let decided = if over {
                None
            } else {
                Some(self.context.capacity.resize(&wanted, &self.mailbox))
            };
            match decided {
                Some(Ok(())) => {
                    self.resources.granted = resize::wanted(&spec);
                    self.save_resources();
                    let message = resize_message(&wanted, "started", None);
                    self.resize_event(EventType::Normal, "ResizeStarted", message);
                }
                Some(Err(pending)) => {
                    if waited.as_ref() != Some(&pending) {
                        let reason = format!("Resize{}", pending.reason);
                        let message =
                            resize_message(&wanted, pending.reason, Some(&pending.message));
                        self.resize_event(EventType::Warning, &reason, message);
                    }
                    self.local.resize_pending = Some(pending);
                }
                None => {}
            }
            resize::apply(&mut spec, &self.resources.granted);
        }
        self.pod.spec = Some(spec);
    }

    /// Reports that running containers have what was granted, once they have it.
    pub(super) fn report_resized(&self, before: Option<&PodStatus>) {
        if resizing(before) && !resizing(self.pod.status.as_ref()) {
            let message = resize_message(&self.pod, "completed", None);
            self.resize_event(EventType::Normal, "ResizeCompleted", message);
        }
    }

    /// Reports that a running container could not be given what was granted.
    pub(super) fn report_resize_error(&self, error: &str) {
        let message = resize_message(&self.pod, "error", Some(error));
        self.resize_event(EventType::Warning, "ResizeError", message);
    }

    fn resize_event(&self, kind: EventType, reason: &str, message: String) {
        self.context.event(&self.pod, kind, reason, message);
    }

    /// A new instance of the container is about to run with what is granted.
    pub(super) fn note_actuated(&mut self, name: &str) {
        let granted = self.resources.granted.get(name).cloned();
        self.local.container(name).actuated = Some(granted.unwrap_or_default());
        self.save_actuated();
    }

    /// Remembers what the instances run with.
    pub(super) fn save_actuated(&mut self) {
        let containers = self.local.containers.iter();
        let actuated = containers
            .filter_map(|(name, local)| Some((name.clone(), local.actuated.clone()?)))
            // Those that run without any are known by not being there.
            .filter(|(_, resources)| *resources != ResourceRequirements::default())
            .collect();
        if self.resources.actuated != actuated {
            self.resources.actuated = actuated;
            self.save_resources();
        }
    }

    fn save_resources(&self) {
        let dir = self.context.paths.pod(&self.ops.uid);
        if let Err(error) = checkpoint::save(&dir, &self.resources) {
            warn!(%error, "could not remember what was granted to the pod");
        }
    }
}

/// Is the condition that tells of a resize under way true?
fn resizing(status: Option<&PodStatus>) -> bool {
    status.is_some_and(|status| {
        let mut conditions = status.conditions.iter().flatten();
        conditions.any(|known| known.type_ == "PodResizeInProgress" && known.status == "True")
    })
}

/// What a resize is about, as events tell it: JSON that programs read.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ResizeSummary<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    init_containers: Vec<Amounts<'a>>,
    containers: Vec<Amounts<'a>>,
    generation: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

#[derive(Serialize)]
struct Amounts<'a> {
    name: &'a str,
    resources: ResourceRequirements,
}

impl<'a> Amounts<'a> {
    fn of(container: &'a Container) -> Self {
        Self {
            name: &container.name,
            resources: container.resources.clone().unwrap_or_default(),
        }
    }
}

/// The words of an event about a resize.
fn resize_message(pod: &Pod, what: &str, error: Option<&str>) -> String {
    let Some(spec) = &pod.spec else {
        return format!("Pod resize {what}");
    };
    let summary = ResizeSummary {
        init_containers: spec
            .init_containers
            .iter()
            .flatten()
            .map(Amounts::of)
            .collect(),
        containers: spec.containers.iter().map(Amounts::of).collect(),
        generation: pod.metadata.generation.unwrap_or(0),
        error,
    };
    match serde_json::to_string(&summary) {
        Ok(summary) => format!("Pod resize {what}: {summary}"),
        Err(_) => format!("Pod resize {what}"),
    }
}

/// Names of the containers that have resources of their own.
fn names(spec: &PodSpec) -> Vec<String> {
    balsa_pod::spec::ordinary(spec)
        .map(|container| container.name.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn events_tell_what_every_container_gets_and_why_it_does_not() {
        let pod = serde_json::from_value(serde_json::json!({
            "metadata": {"generation": 2},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]},
        }));
        assert_eq!(
            resize_message(&pod.unwrap(), "Deferred", Some("no room")),
            r#"Pod resize Deferred: {"containers":[{"name":"c","resources":{"requests":{"cpu":"1"}}}],"generation":2,"error":"no room"}"#
        );
    }
}
