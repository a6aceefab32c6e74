//! What the node grants to the pod, against what its spec asks for.

use balsa_pod::resize;
use k8s_openapi::api::core::v1::{PodSpec, ResourceRequirements};
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
        self.local.resize_pending = None;
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
                }
                Some(Err(pending)) => self.local.resize_pending = Some(pending),
                None => {}
            }
            resize::apply(&mut spec, &self.resources.granted);
        }
        self.pod.spec = Some(spec);
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

/// Names of the containers that have resources of their own.
fn names(spec: &PodSpec) -> Vec<String> {
    let inits = spec.init_containers.iter().flatten();
    inits
        .chain(&spec.containers)
        .map(|container| container.name.clone())
        .collect()
}
