//! Lives of pods, one behaviour each.

use super::*;
use crate::Condemned;

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
    world.local.container("a").starting = true;
    world.plan();
    assert_eq!(world.waiting("a"), "PodInitializing");
    world.local.container("a").starting = false;
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
fn a_pod_that_is_deleted_before_it_ran_has_failed() {
    let mut world =
        World::new(json!({"initContainers": [{"name": "i"}], "containers": [{"name": "c"}]}));
    world.plan();
    world.delete(30);
    world.settle_under_way();
    assert_eq!((world.finished, world.phase()), (1, "Failed"));
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
    let mut world = World::new(json!({"containers": [{"name": "c",
        "startupProbe": {"terminationGracePeriodSeconds": 5}, "livenessProbe": {}}]}));
    world.settle();
    let id = world.observed.newest("c").unwrap().id.clone();
    let local = world.local.container("c");
    (local.probed, local.condemned) = (id, Some(Condemned::Liveness));
    let plan = world.plan();
    assert!(
        matches!(&plan.actions[..], [Action::KillContainer { message, grace, .. }]
        if message == "Container c failed liveness probe, will be restarted" && *grace == Duration::from_secs(30))
    );
    world.settle_under_way();
    assert_eq!(world.container("c").restart_count, 1);
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
    world.local.rejected = Some(Rejection {
        reason: "OutOfcpu".to_owned(),
        message: "Pod was rejected: no".to_owned(),
        disruption: false,
        grace: None,
    });
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
