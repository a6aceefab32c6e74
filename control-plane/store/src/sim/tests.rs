//! Runs of the simulation.

use super::faults::Kind;
use super::{Plan, run};
use crate::fault::Break;

fn plan(seed: u64) -> Plan {
    Plan {
        seed,
        members: if seed.is_multiple_of(3) { 5 } else { 3 },
        faults_ms: 8_000,
        broken: None,
        only: None,
        disk_ms: 0,
        network_ms: 0,
        quiet: false,
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Members that end in mid-sentence leave errors in the log, so nothing is shown unless asked for.
fn show() {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("off")),
        )
        .with_test_writer()
        .try_init();
}

fn hold(plan: Plan) -> super::Outcome {
    let outcome = run(plan);
    if let Some((rule, error)) = outcome.violations.first() {
        panic!(
            "seed {}: {rule}: {error}\nfaults: {:#?}\nreplay with BALSA_SIM_SEED={} and RUST_LOG=balsa_store=debug",
            plan.seed, outcome.faults, plan.seed
        );
    }
    outcome
}

/// Set for the process of one seed.
const CHILD: &str = "BALSA_SIM_CHILD";

/// Not a test by itself: runs one seed, in a process of its own.
#[test]
fn child() {
    if let Some(seed) = number(CHILD) {
        show();
        let outcome = hold(plan(seed));
        println!(
            "\nseed {seed}: {} events, {} faults, {:016x}",
            outcome.trace.len(),
            outcome.faults.len(),
            digest(&outcome.trace)
        );
    }
}

fn digest(trace: &[String]) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    trace.hash(&mut hasher);
    hasher.finish()
}

/// Runs a seed as if it were the first thing that this program does, and returns what it came to: tokio
/// counts its runtimes, so that a second run in a process is another one.
fn alone(seed: u64) -> String {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "sim::tests::child",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(CHILD, seed.to_string())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let line = text.lines().find(|line| line.starts_with("seed "));
    line.unwrap().to_owned()
}

#[test]
fn all_rules_hold_of_all_seeds() {
    let seeds = match (number("BALSA_SIM_SEED"), number("BALSA_SIM_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, Some(count)) => {
            let first = number("BALSA_SIM_FIRST").unwrap_or(1);
            first..first + count
        }
        (None, None) => 1..7,
    };
    for seed in seeds {
        eprintln!("{}", alone(seed));
    }
}

#[test]
fn a_seed_is_one_run() {
    assert_eq!(alone(11), alone(11));
}

/// A checker that cannot fail proves nothing: each must find what it guards, broken.
fn finds(broken: Break, rule: &str, seeds: std::ops::Range<u64>) {
    show();
    // What is broken shows where: in what a slow disk has not written when the machine dies, in what a leader answers
    // that nobody follows.
    let (only, disk_ms) = match broken {
        Break::AnswerBeforeSync => (Some(Kind::PowerCut), 400),
        Break::ConfirmUnasked => (Some(Kind::Cut), 0),
        _ => (None, 0),
    };
    for seed in seeds {
        let plan = Plan {
            broken: Some(broken),
            only,
            disk_ms,
            ..plan(seed)
        };
        // Other rules may be broken by it too, a member that Raft itself gave up, for what it saw of the break, does not
        // serve again, and one whose folder shows the break does not start, which ends the run.
        let Ok(outcome) = std::panic::catch_unwind(|| run(plan)) else {
            continue;
        };
        let violations = outcome.violations;
        if let Some((rule, error)) = violations.iter().find(|(name, _)| *name == rule) {
            eprintln!("{broken:?}, seed {seed}: {rule}: {error}");
            return;
        }
    }
    panic!("{broken:?} was not found");
}

#[test]
fn a_read_that_does_not_ask_the_leader_is_found() {
    finds(Break::ReadWithoutIndex, "linearizable", 1..20);
}

#[test]
fn a_leader_that_does_not_ask_whether_it_leads_is_found() {
    finds(Break::ConfirmUnasked, "linearizable", 1..40);
}

#[test]
fn an_answer_before_the_sync_is_found() {
    finds(Break::AnswerBeforeSync, "revisions", 1..40);
}

#[test]
fn a_forgotten_vote_is_found() {
    finds(Break::ForgetVote, "election safety", 1..100);
}

#[test]
fn an_event_left_out_is_found() {
    finds(Break::SkipEvent, "watches", 1..5);
}

#[test]
fn a_batch_applied_again_is_found() {
    finds(Break::ApplyAgain, "lost writes", 1..80);
}

#[test]
fn a_revision_left_out_is_found() {
    finds(Break::SkipRevision, "revisions", 1..3);
}

#[test]
fn a_fast_clock_is_found() {
    finds(Break::FastClock, "leases", 1..5);
}

#[test]
fn a_wrong_entry_is_found() {
    finds(Break::WrongEntry, "log matching", 1..20);
}

/// One kind of fault alone, again and again.
fn survives(kind: Kind) -> super::Outcome {
    show();
    let mut last = None;
    for seed in [1, 2] {
        last = Some(hold(Plan {
            only: Some(kind),
            ..plan(seed)
        }));
    }
    last.unwrap()
}

#[test]
fn a_one_way_partition_is_survived() {
    survives(Kind::Mute);
}

#[test]
fn a_leader_that_can_send_but_not_receive_is_survived() {
    let outcome = survives(Kind::Deaf);
    assert!(
        outcome
            .complaints
            .iter()
            .any(|text| text.contains("no majority") || text.contains("no connection")),
        "{:?}",
        outcome.complaints
    );
}

#[test]
fn a_flapping_link_is_survived() {
    survives(Kind::Flap);
}

#[test]
fn a_jumping_clock_is_survived() {
    survives(Kind::Clock);
}

#[test]
fn a_disk_that_stalls_is_survived() {
    survives(Kind::StuckDisk);
}

/// Longer than leaders wait for a heartbeat's answer, for each write: members join, a leader stays.
#[test]
fn disks_that_are_always_slow_are_survived() {
    show();
    hold(Plan {
        only: Some(Kind::Clock),
        disk_ms: 100,
        ..plan(1)
    });
}

/// As between continents: there and back takes 200 ms, whether much is written or next to nothing.
#[test]
fn a_slow_network_keeps_its_leader() {
    show();
    for quiet in [false, true] {
        let outcome = hold(Plan {
            network_ms: 100,
            quiet,
            ..plan(1)
        });
        assert!(
            outcome.led <= 2,
            "{} terms had a leader (quiet: {quiet})",
            outcome.led
        );
    }
}

#[test]
fn members_are_replaced_under_load() {
    survives(Kind::Replace);
}
