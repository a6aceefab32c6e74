//! Lives of pods at random, and what must hold in all of them.

use proptest::prelude::*;

use super::*;

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
