//! The reducer driven through whole lives of pods, in a world in memory.
#![allow(clippy::unwrap_used)]

mod changes;
mod lives;
mod random;

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use serde_json::{Value, json};

use crate::spec::{after, spec_hash};
use crate::{
    Action, Exit, Input, Instance, InstanceState, Local, Observed, Plan, Rejection, Sandbox,
    StartFailure, reduce,
};

/// A pod with its node. Steps that the reducer plans stay under way until [`World::finish`] is told so.
struct World {
    pod: Pod,
    local: Local,
    observed: Observed,
    now: Timestamp,
    under_way: Vec<Action>,
    made: u32,
    finished: u32,
    released: u32,
}

impl World {
    fn new(spec: Value) -> Self {
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 3}, "spec": spec});
        let now = Timestamp::from_second(1_000_000).unwrap();
        Self {
            pod: serde_json::from_value(pod).unwrap(),
            local: Local {
                accepted_at: Some(now),
                ..Local::default()
            },
            observed: Observed::default(),
            now,
            under_way: Vec::new(),
            made: 0,
            finished: 0,
            released: 0,
        }
    }

    fn plan(&mut self) -> Plan {
        let running: Vec<_> = self
            .observed
            .instances
            .iter()
            .filter(|i| i.running())
            .map(|i| i.id.clone())
            .collect();
        self.local.killing.retain(|id, _| running.contains(id));
        if self.pod.metadata.deletion_timestamp.is_some() {
            self.local.stopping_since.get_or_insert(self.now);
        }
        let host_ips = ["10.0.0.1".to_owned()];
        let input = Input {
            pod: &self.pod,
            observed: &self.observed,
            local: &self.local,
            host_ips: &host_ips,
            now: self.now,
        };
        let plan = reduce(&input);
        self.pod.status = Some(plan.status.clone());
        for action in &plan.actions {
            assert!(
                !self.under_way.contains(action),
                "{action:?} is under way already"
            );
            self.local.begin(action, self.now);
            self.under_way.push(action.clone());
        }
        plan
    }

    /// Plans, and has everything that is planned succeed, until nothing more is.
    fn settle(&mut self) -> Plan {
        for _ in 0..100 {
            let plan = self.plan();
            if self.under_way.is_empty() {
                return plan;
            }
            for action in std::mem::take(&mut self.under_way) {
                self.finish(action, true);
            }
        }
        panic!("the pod never settles: {:?}", self.observed);
    }

    fn finish(&mut self, action: Action, ok: bool) {
        self.made += 1;
        match action {
            Action::PrepareVolumes => self.local.volumes_done(ok, self.now),
            Action::CreateSandbox { attempt } => {
                self.local.sandbox_done(ok, self.now);
                if ok {
                    let ips = vec![format!("10.244.0.{}", self.made)];
                    let id = format!("s{}", self.made);
                    self.observed.sandbox = Some(Sandbox {
                        id,
                        attempt,
                        ready: true,
                        ips,
                    });
                }
            }
            Action::StopSandbox { .. } => {
                if let Some(sandbox) = &mut self.observed.sandbox {
                    sandbox.ready = false;
                }
            }
            Action::StartContainer {
                name,
                attempt,
                sandbox_id,
                ..
            } => self.started(name, attempt, sandbox_id, ok),
            Action::KillContainer { id, .. } => {
                if ok {
                    self.exit_id(&id, 143);
                } else {
                    self.local.killing.remove(&id);
                }
            }
            Action::RemoveContainer { id } => {
                self.local.removing.remove(&id);
                self.observed.instances.retain(|instance| instance.id != id);
            }
            Action::ResizeContainer { name, .. } => {
                let spec = self.pod.spec.as_ref().unwrap();
                let container = crate::spec::container(spec, &name).unwrap();
                let resources = container.resources.clone().unwrap_or_default();
                let result = if ok { Ok(()) } else { Err("no".to_owned()) };
                self.local.resize_done(&name, resources, result, self.now);
            }
            Action::Release => self.released += 1,
            Action::Finish => self.finished += 1,
        }
    }

    fn started(&mut self, name: String, attempt: u32, sandbox_id: String, ok: bool) {
        if !ok {
            let (reason, retry_at) = (
                "ErrImagePull".to_owned(),
                after(self.now, Duration::from_secs(2)),
            );
            let failure = StartFailure {
                reason,
                message: "no".to_owned(),
                retry_at,
            };
            return self.local.start_done(&name, Some(failure));
        }
        self.local.start_done(&name, None);
        let container = crate::spec::container(self.pod.spec.as_ref().unwrap(), &name).unwrap();
        let alive = self
            .observed
            .sandbox
            .as_ref()
            .is_some_and(|sandbox| sandbox.id == sandbox_id && sandbox.ready);
        let id = format!("{name}-{}", self.made);
        self.observed.instances.push(Instance {
            id: id.clone(),
            sandbox_id,
            attempt,
            state: InstanceState::Running {
                started_at: self.now,
            },
            image: "i".to_owned(),
            image_id: "sha256:i".to_owned(),
            spec_hash: spec_hash(&container),
            user: None,
            recursive_read_only: Vec::new(),
            name,
        });
        if !alive {
            self.exit_id(&id, 137);
        }
    }

    fn exit(&mut self, name: &str, code: i32) {
        let id = self.observed.newest(name).unwrap().id.clone();
        self.exit_id(&id, code);
    }

    fn exit_id(&mut self, id: &str, code: i32) {
        let now = self.now;
        if let Some(instance) = self
            .observed
            .instances
            .iter_mut()
            .find(|i| i.id == id && i.running())
        {
            instance.state = InstanceState::Exited(Exit {
                code,
                reason: if code == 0 {
                    "Completed".to_owned()
                } else {
                    "Error".to_owned()
                },
                message: String::new(),
                started_at: Some(now),
                finished_at: now,
            });
        }
    }

    fn delete(&mut self, grace: i64) {
        let time = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.now);
        self.pod.metadata.deletion_timestamp = Some(time);
        self.pod.metadata.deletion_grace_period_seconds = Some(grace);
    }

    fn pass(&mut self, seconds: u64) {
        self.now = after(self.now, Duration::from_secs(seconds));
    }

    fn container(&self, name: &str) -> &ContainerStatus {
        let status = self.pod.status.as_ref().unwrap();
        let mut all = status
            .init_container_statuses
            .iter()
            .chain(&status.container_statuses)
            .chain(&status.ephemeral_container_statuses)
            .flatten();
        all.find(|status| status.name == name).unwrap()
    }

    fn waiting(&self, name: &str) -> String {
        let state = self.container(name).state.clone().unwrap_or_default();
        state
            .waiting
            .and_then(|waiting| waiting.reason)
            .unwrap_or_default()
    }

    fn phase(&self) -> &str {
        self.pod.status.as_ref().unwrap().phase.as_deref().unwrap()
    }

    fn condition(&self, kind: &str) -> (String, String) {
        let all = self
            .pod
            .status
            .as_ref()
            .unwrap()
            .conditions
            .iter()
            .flatten();
        let found = all
            .into_iter()
            .find(|condition| condition.type_ == kind)
            .unwrap();
        (
            found.status.clone(),
            found.reason.clone().unwrap_or_default(),
        )
    }
}

fn one() -> Value {
    json!({"containers": [{"name": "c"}]})
}

impl World {
    fn settle_under_way(&mut self) {
        for action in std::mem::take(&mut self.under_way) {
            self.finish(action, true);
        }
        self.settle();
    }
}
