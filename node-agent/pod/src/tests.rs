//! The reducer driven through whole lives of pods, in a world in memory.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::spec::{after, spec_hash};
use crate::{
    Action, Exit, Input, Instance, InstanceState, Local, Observed, Plan, Sandbox, StartFailure,
    reduce,
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
            spec_hash: spec_hash(container),
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

#[test]
fn a_new_pod_first_gets_volumes_and_a_sandbox() {
    let mut world = World::new(one());
    let plan = world.plan();
    assert_eq!(
        plan.actions,
        [Action::PrepareVolumes, Action::CreateSandbox { attempt: 0 }]
    );
    assert_eq!(
        (world.phase(), world.waiting("c").as_str()),
        ("Pending", "ContainerCreating")
    );
    assert_eq!(
        world.condition("Ready"),
        ("False".to_owned(), "ContainersNotReady".to_owned())
    );
    assert_eq!(plan.status.observed_generation, Some(3));
    assert_eq!(world.plan().actions, [], "nothing is planned twice");
}

#[test]
fn a_running_pod_is_ready_and_has_an_address() {
    let mut world = World::new(one());
    let plan = world.settle();
    assert_eq!(world.phase(), "Running");
    for kind in [
        "PodReadyToStartContainers",
        "Initialized",
        "Ready",
        "ContainersReady",
    ] {
        assert_eq!(world.condition(kind).0, "True", "{kind}");
    }
    assert!(plan.status.pod_ip.is_some() && plan.status.start_time.is_some());
    assert_eq!(plan.status.qos_class.as_deref(), Some("BestEffort"));
}

#[test]
fn init_containers_run_one_after_the_other_and_only_once() {
    let mut world = World::new(
        json!({"initContainers": [{"name": "a"}, {"name": "b"}], "containers": [{"name": "c"}]}),
    );
    world.settle();
    assert!(world.observed.newest("a").is_some() && world.observed.newest("b").is_none());
    assert_eq!(
        (world.phase(), world.waiting("c").as_str()),
        ("Pending", "PodInitializing")
    );
    assert_eq!(world.condition("Initialized").1, "ContainersNotInitialized");
    world.exit("a", 0);
    world.settle();
    assert!(world.observed.newest("b").is_some() && world.observed.newest("c").is_none());
    world.exit("b", 0);
    world.settle();
    assert_eq!(world.phase(), "Running");
    world.exit("c", 1);
    world.settle();
    assert_eq!(
        world.observed.of("a").len(),
        1,
        "init containers do not run again"
    );
    assert!(world.container("a").ready);
}

#[test]
fn a_failed_init_container_fails_a_pod_that_never_restarts() {
    let spec = json!({"restartPolicy": "Never", "initContainers": [{"name": "a"}], "containers": [{"name": "c"}]});
    let mut world = World::new(spec);
    world.settle();
    world.exit("a", 1);
    world.settle();
    assert_eq!(world.phase(), "Failed");
    assert!(world.observed.newest("c").is_none());
    assert!(
        !world.observed.sandbox.as_ref().unwrap().ready,
        "the sandbox is stopped"
    );
}

#[test]
fn a_failed_init_container_is_retried_with_backoff_otherwise() {
    let mut world =
        World::new(json!({"initContainers": [{"name": "a"}], "containers": [{"name": "c"}]}));
    world.settle();
    world.exit("a", 1);
    world.settle();
    world.exit("a", 1);
    world.settle();
    assert_eq!(
        (world.phase(), world.waiting("a").as_str()),
        ("Pending", "CrashLoopBackOff")
    );
    world.pass(11);
    world.settle();
    assert_eq!(world.container("a").restart_count, 2);
}

#[test]
fn a_sidecar_starts_before_and_ends_after_the_containers() {
    let spec = json!({"restartPolicy": "Never", "containers": [{"name": "c"}],
        "initContainers": [{"name": "s", "restartPolicy": "Always"}, {"name": "t", "restartPolicy": "Always"}]});
    let mut world = World::new(spec);
    world.settle();
    assert_eq!(world.phase(), "Running");
    world.exit("c", 0);
    let order: Vec<String> = std::iter::from_fn(|| {
        let killed = world
            .plan()
            .actions
            .into_iter()
            .find_map(|action| match action {
                Action::KillContainer { name, .. } => Some(name),
                _ => None,
            });
        for action in std::mem::take(&mut world.under_way) {
            world.finish(action, true);
        }
        killed
    })
    .collect();
    assert_eq!(order, ["t", "s"]);
    world.settle();
    assert_eq!(world.phase(), "Succeeded");
}

#[test]
fn restarts_are_immediate_once_and_then_wait() {
    let mut world = World::new(one());
    world.settle();
    world.exit("c", 1);
    world.settle();
    assert_eq!(
        (world.phase(), world.container("c").restart_count),
        ("Running", 1)
    );
    world.exit("c", 1);
    let plan = world.settle();
    assert_eq!(
        (world.phase(), world.waiting("c").as_str()),
        ("Running", "CrashLoopBackOff")
    );
    assert_eq!(
        plan.wake_at,
        Some(after(world.now, Duration::from_secs(10)))
    );
    let last = world
        .container("c")
        .last_state
        .clone()
        .unwrap()
        .terminated
        .unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (1, Some("Error")));
    world.pass(10);
    world.settle();
    assert_eq!(world.container("c").restart_count, 2);
    assert!(
        world.observed.of("c").len() <= 2,
        "older instances are removed"
    );
}

#[test]
fn the_policy_decides_what_an_end_means() {
    for (policy, code, phase) in [
        ("Never", 0, "Succeeded"),
        ("Never", 1, "Failed"),
        ("OnFailure", 0, "Succeeded"),
        ("OnFailure", 1, "Running"),
    ] {
        let mut world = World::new(json!({"restartPolicy": policy, "containers": [{"name": "c"}]}));
        world.settle();
        world.exit("c", code);
        world.settle();
        assert_eq!(world.phase(), phase, "{policy} {code}");
    }
}

#[test]
fn one_of_two_ended_containers_leaves_the_pod_running() {
    let mut world =
        World::new(json!({"restartPolicy": "Never", "containers": [{"name": "a"}, {"name": "b"}]}));
    world.settle();
    world.exit("a", 0);
    world.settle();
    assert_eq!(
        (world.phase(), world.condition("Ready").0.as_str()),
        ("Running", "False")
    );
    world.exit("b", 2);
    world.settle();
    assert_eq!(
        (world.phase(), world.condition("Ready").1.as_str()),
        ("Failed", "PodFailed")
    );
}

#[test]
fn deletion_kills_stops_and_finishes_in_that_order() {
    let mut world = World::new(one());
    world.settle();
    world.delete(7);
    let mut order = Vec::new();
    while world.finished == 0 {
        for action in world.plan().actions {
            order.push(action);
        }
        for action in std::mem::take(&mut world.under_way) {
            world.finish(action, true);
        }
    }
    assert!(
        matches!(&order[0], Action::KillContainer { grace, .. } if *grace == Duration::from_secs(7))
    );
    assert!(
        matches!(&order[1..], [Action::StopSandbox { .. }, Action::Finish]),
        "{order:?}"
    );
    assert_eq!(world.phase(), "Failed", "143 is not success");
}

#[test]
fn a_shorter_grace_kills_again() {
    let mut world = World::new(one());
    world.settle();
    world.delete(30);
    world.plan();
    assert_eq!(world.plan().actions, []);
    world.delete(0);
    assert!(
        matches!(&world.plan().actions[..], [Action::KillContainer { grace, .. }] if grace.is_zero())
    );
}

#[test]
fn deletion_waits_for_a_start_under_way() {
    let mut world = World::new(one());
    world.plan();
    for action in std::mem::take(&mut world.under_way) {
        world.finish(action, true);
    }
    assert!(matches!(
        world.plan().actions[..],
        [Action::StartContainer { .. }]
    ));
    world.delete(0);
    assert_eq!(world.plan().actions, []);
    let start = world.under_way.pop().unwrap();
    world.finish(start, true);
    world.settle();
    assert_eq!(world.finished, 1);
    assert!(!world.observed.alive());
}

#[test]
fn a_failed_start_is_shown_and_retried() {
    let mut world = World::new(one());
    world.plan();
    for action in std::mem::take(&mut world.under_way) {
        world.finish(action, true);
    }
    world.plan();
    let start = world.under_way.pop().unwrap();
    world.finish(start, false);
    let plan = world.plan();
    assert_eq!(
        (plan.actions, world.waiting("c").as_str()),
        (vec![], "ErrImagePull")
    );
    world.pass(2);
    world.settle();
    assert_eq!(world.container("c").restart_count, 0);
    assert_eq!(world.phase(), "Running");
}

#[test]
fn a_dead_sandbox_is_replaced_and_init_containers_run_again() {
    let mut world =
        World::new(json!({"initContainers": [{"name": "a"}], "containers": [{"name": "c"}]}));
    world.settle();
    world.exit("a", 0);
    world.settle();
    world.observed.sandbox.as_mut().unwrap().ready = false;
    world.settle();
    assert_eq!(world.observed.sandbox.as_ref().unwrap().attempt, 1);
    assert_eq!(world.container("a").restart_count, 1);
    world.exit("a", 0);
    world.settle();
    assert_eq!(
        (world.phase(), world.container("c").restart_count),
        ("Running", 1)
    );
}

#[test]
fn a_dead_sandbox_ends_a_pod_that_never_restarts() {
    let mut world = World::new(json!({"restartPolicy": "Never", "containers": [{"name": "c"}]}));
    world.settle();
    world.observed.sandbox.as_mut().unwrap().ready = false;
    world.exit("c", 137);
    world.settle();
    assert_eq!(
        (world.phase(), world.observed.instances.len()),
        ("Failed", 1)
    );
}

#[test]
fn counts_go_on_when_the_node_has_lost_everything() {
    let mut world = World::new(one());
    world.settle();
    world.exit("c", 1);
    world.settle();
    let (pod, now) = (world.pod.clone(), world.now);
    world = World::new(one());
    (world.pod, world.now) = (pod, now);
    world.settle();
    assert_eq!(
        (world.phase(), world.container("c").restart_count),
        ("Running", 2)
    );
}

#[test]
fn a_restarted_agent_keeps_what_is_ready() {
    let mut world = World::new(
        json!({"containers": [{"name": "c", "readinessProbe": {"tcpSocket": {"port": 1}}}]}),
    );
    world.settle();
    assert_eq!(world.condition("Ready").0, "False", "no probe has passed");
    let id = world.observed.newest("c").unwrap().id.clone();
    let local = world.local.container("c");
    (local.probed, local.ready) = (id, Some(true));
    world.settle();
    assert_eq!(world.condition("Ready").0, "True");
    world.local = Local {
        accepted_at: Some(world.now),
        ..Local::default()
    };
    let plan = world.plan();
    assert_eq!(plan.actions, [Action::PrepareVolumes]);
    assert_eq!(world.condition("Ready").0, "True");
}

#[test]
fn a_condemned_container_is_killed_in_the_probes_words_and_restarted() {
    let mut world = World::new(one());
    world.settle();
    let id = world.observed.newest("c").unwrap().id.clone();
    let local = world.local.container("c");
    (local.probed, local.condemned) = (
        id,
        Some("Container c failed liveness probe, will be restarted".to_owned()),
    );
    let plan = world.plan();
    assert!(
        matches!(&plan.actions[..], [Action::KillContainer { message, grace, .. }]
        if message.contains("liveness") && *grace == Duration::from_secs(30))
    );
    world.settle_under_way();
    assert_eq!(world.container("c").restart_count, 1);
}

impl World {
    fn settle_under_way(&mut self) {
        for action in std::mem::take(&mut self.under_way) {
            self.finish(action, true);
        }
        self.settle();
    }
}

#[test]
fn a_changed_image_replaces_the_container() {
    let mut world = World::new(json!({"containers": [{"name": "c", "image": "a"}]}));
    world.settle();
    world.pod.spec.as_mut().unwrap().containers[0].image = Some("b".to_owned());
    let plan = world.plan();
    assert!(
        matches!(&plan.actions[..], [Action::KillContainer { message, .. }] if message.contains("definition changed"))
    );
}

#[test]
fn a_deadline_ends_the_pod() {
    let mut world = World::new(json!({"activeDeadlineSeconds": 60, "containers": [{"name": "c"}]}));
    let plan = world.settle();
    assert_eq!(
        plan.wake_at,
        Some(after(world.now, Duration::from_secs(60)))
    );
    world.pass(60);
    let plan = world.settle();
    assert_eq!(
        (world.phase(), plan.status.reason.as_deref()),
        ("Failed", Some("DeadlineExceeded"))
    );
    assert!(!world.observed.alive());
}

#[test]
fn a_refused_pod_fails_without_being_tried() {
    let mut world = World::new(one());
    world.local.rejected = Some(("OutOfcpu".to_owned(), "Pod was rejected: no".to_owned()));
    let plan = world.settle();
    assert_eq!(
        (world.phase(), plan.status.reason.as_deref()),
        ("Failed", Some("OutOfcpu"))
    );
    assert_eq!(world.made, 0);
    world.delete(0);
    world.settle();
    assert_eq!(world.finished, 1);
}

#[test]
fn foreign_conditions_and_readiness_gates_are_respected() {
    let mut world = World::new(
        json!({"readinessGates": [{"conditionType": "x/y"}], "containers": [{"name": "c"}]}),
    );
    world.settle();
    assert_eq!(world.condition("Ready").1, "ReadinessGatesNotReady");
    assert_eq!(world.condition("ContainersReady").0, "True");
    let gate = json!({"type": "x/y", "status": "True"});
    let status = world.pod.status.as_mut().unwrap();
    status
        .conditions
        .get_or_insert_default()
        .push(serde_json::from_value(gate).unwrap());
    world.settle();
    assert_eq!(
        (
            world.condition("Ready").0.as_str(),
            world.condition("x/y").0.as_str()
        ),
        ("True", "True")
    );
}

/// What may happen to a pod, chosen at random.
#[derive(Debug, Clone)]
enum Event {
    Finish(usize, bool),
    Exit(usize, i32),
    KillSandbox,
    Pass(u64),
    ForgetLocal,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0_usize..4, prop::bool::weighted(0.8)).prop_map(|(index, ok)| Event::Finish(index, ok)),
        2 => (0_usize..4, prop_oneof![Just(0), Just(1)]).prop_map(|(index, code)| Event::Exit(index, code)),
        1 => Just(Event::KillSandbox),
        2 => (1_u64..400).prop_map(Event::Pass),
        1 => Just(Event::ForgetLocal),
    ]
}

fn specs() -> impl Strategy<Value = Value> {
    let policy = prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")];
    (policy, 0_usize..3, 1_usize..3, any::<bool>()).prop_map(|(policy, inits, apps, sidecar)| {
        let mut init: Vec<Value> = (0..inits)
            .map(|n| json!({"name": format!("i{n}")}))
            .collect();
        if sidecar {
            init.push(json!({"name": "side", "restartPolicy": "Always"}));
        }
        let apps: Vec<Value> = (0..apps)
            .map(|n| json!({"name": format!("c{n}")}))
            .collect();
        json!({"restartPolicy": policy, "initContainers": init, "containers": apps})
    })
}

fn happen(world: &mut World, event: &Event) {
    match event {
        Event::Finish(index, ok) => {
            if !world.under_way.is_empty() {
                let action = world.under_way.remove(index % world.under_way.len());
                world.finish(action, *ok);
            }
        }
        Event::Exit(index, code) => {
            let running: Vec<_> = world
                .observed
                .instances
                .iter()
                .filter(|i| i.running())
                .map(|i| i.id.clone())
                .collect();
            if !running.is_empty() {
                world.exit_id(&running[index % running.len()], *code);
            }
        }
        Event::KillSandbox => {
            if let Some(sandbox) = &mut world.observed.sandbox {
                sandbox.ready = false;
            }
        }
        Event::Pass(seconds) => world.pass(*seconds),
        Event::ForgetLocal => {
            // The agent restarts: what was under way has either happened or not.
            for action in std::mem::take(&mut world.under_way) {
                world.finish(action, true);
            }
            world.local = Local {
                accepted_at: Some(world.now),
                ..Local::default()
            };
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_a_pod_keeps_its_rules_and_can_be_deleted(
        spec in specs(),
        events in prop::collection::vec(event(), 0..60),
    ) {
        let mut world = World::new(spec);
        let mut ended: Option<String> = None;
        for event in &events {
            world.plan();
            happen(&mut world, event);
            world.plan();
            let mut names: Vec<_> =
                world.observed.instances.iter().filter(|i| i.running()).map(|i| i.name.clone()).collect();
            let all = names.len();
            names.sort();
            names.dedup();
            prop_assert_eq!(names.len(), all, "two instances of one container run");
            let phase = world.phase().to_owned();
            if let Some(ended) = &ended {
                prop_assert_eq!(ended, &phase, "an end was taken back");
            }
            if matches!(phase.as_str(), "Succeeded" | "Failed") {
                ended = Some(phase);
            }
        }
        world.delete(1);
        for action in std::mem::take(&mut world.under_way) {
            world.finish(action, true);
        }
        world.settle();
        prop_assert_eq!(world.finished, 1);
        prop_assert!(!world.observed.alive());
    }
}
