//! Pods that change while they run: debugged, resized, thrown out.

use k8s_openapi::api::core::v1::ResourceRequirements;

use super::*;

fn with_memory(amount: &str, policy: &str) -> Value {
    json!({"containers": [{"name": "c", "resources": {"limits": {"memory": amount}},
        "resizePolicy": [{"resourceName": "memory", "restartPolicy": policy}]}]})
}

/// A running pod whose container was started with 1 GiB and is granted 2.
fn resized(policy: &str) -> World {
    let mut world = World::new(with_memory("1Gi", policy));
    world.settle();
    let started: ResourceRequirements =
        serde_json::from_value(json!({"limits": {"memory": "1Gi"}})).unwrap();
    world.local.container("c").actuated = Some(started);
    world.pod.spec = serde_json::from_value(with_memory("2Gi", policy)).unwrap();
    world
}

#[test]
fn a_running_container_is_given_what_was_granted_without_a_restart() {
    let mut world = resized("NotRequired");
    let plan = world.plan();
    assert!(matches!(
        plan.actions.as_slice(),
        [Action::ResizeContainer { .. }]
    ));
    assert_eq!(world.condition("PodResizeInProgress").0, "True");
    world.settle_under_way();
    assert_eq!(world.container("c").restart_count, 0);
    let conditions = world.pod.status.as_ref().unwrap().conditions.clone();
    let mut kinds = conditions.unwrap().into_iter().map(|c| c.type_);
    assert!(!kinds.any(|kind| kind == "PodResizeInProgress"));
    let memory = world.container("c").resources.clone().unwrap().limits;
    assert_eq!(memory.unwrap()["memory"].0, "2Gi");
}

#[test]
fn a_container_whose_policy_wants_it_is_restarted_to_be_resized() {
    let mut world = resized("RestartContainer");
    let plan = world.plan();
    assert!(matches!(
        plan.actions.as_slice(),
        [Action::KillContainer { .. }]
    ));
    world.settle_under_way();
    assert_eq!(world.container("c").restart_count, 1);
    assert_eq!(world.phase(), "Running");
}

#[test]
fn a_failed_resize_is_told_and_tried_again() {
    let mut world = resized("NotRequired");
    world.plan();
    let action = world.under_way.remove(0);
    world.finish(action, false);
    assert!(world.plan().actions.is_empty());
    assert_eq!(world.condition("PodResizeInProgress").1, "Error");
    world.pass(6);
    assert_eq!(world.plan().actions.len(), 1);
}

#[test]
fn an_ephemeral_container_runs_once_and_counts_for_nothing() {
    let mut world = World::new(one());
    world.settle();
    let spec = world.pod.spec.as_mut().unwrap();
    spec.ephemeral_containers = Some(vec![
        serde_json::from_value(json!({"name": "debug", "image": "i"})).unwrap(),
    ]);
    world.settle();
    assert!(
        world
            .container("debug")
            .state
            .as_ref()
            .unwrap()
            .running
            .is_some()
    );
    world.exit("debug", 3);
    let plan = world.settle();
    assert!(plan.actions.is_empty());
    let state = world.container("debug").state.clone().unwrap();
    assert_eq!(state.terminated.unwrap().exit_code, 3);
    assert_eq!(
        (world.phase(), world.condition("Ready").0.as_str()),
        ("Running", "True")
    );
}

#[test]
fn a_rule_restarts_a_container_that_its_policy_would_not() {
    let rules = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
    let mut world = World::new(json!({"restartPolicy": "Never", "containers": [
        {"name": "c", "restartPolicy": "Never", "restartPolicyRules": rules}]}));
    world.settle();
    world.exit("c", 42);
    world.settle();
    assert_eq!(world.container("c").restart_count, 1);
    assert_eq!(world.phase(), "Running");
    world.exit("c", 1);
    world.settle();
    assert_eq!(world.phase(), "Failed");
}

#[test]
fn an_ended_pod_gives_back_what_it_held_once() {
    let mut world = World::new(json!({"restartPolicy": "Never", "containers": [{"name": "c"}]}));
    world.settle();
    world.exit("c", 0);
    world.settle();
    world.settle();
    assert_eq!((world.phase(), world.released), ("Succeeded", 1));
}

#[test]
fn a_pod_thrown_out_is_marked_as_disrupted() {
    let mut world = World::new(one());
    world.settle();
    world.local.rejected = Some(Rejection {
        reason: "Evicted".to_owned(),
        message: "The node was low on resource: memory.".to_owned(),
        disruption: true,
        grace: None,
    });
    world.settle();
    assert_eq!(world.phase(), "Failed");
    let (status, reason) = world.condition("DisruptionTarget");
    assert_eq!(
        (status.as_str(), reason.as_str()),
        ("True", "TerminationByKubelet")
    );
}

#[test]
fn a_new_image_does_not_wait_for_the_crashes_of_the_old_one() {
    let mut world = World::new(one());
    world.settle();
    for _ in 0..4 {
        world.exit("c", 1);
        world.settle();
        world.pass(100);
        world.settle();
    }
    world.exit("c", 1);
    world.settle();
    assert_eq!(world.waiting("c"), "CrashLoopBackOff");
    world.pod.spec.as_mut().unwrap().containers[0].image = Some("other".to_owned());
    world.settle();
    assert_eq!(
        (world.waiting("c").as_str(), world.phase()),
        ("", "Running")
    );
    world.exit("c", 1);
    world.plan();
    let local = world.local.container("c");
    assert_eq!(local.backoff.pause(), crate::backoff::INITIAL);
}
