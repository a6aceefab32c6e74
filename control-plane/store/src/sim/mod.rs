//! Whole members on simulated machines: one seed, one run.
//!
//! ```text
//!  seed ──> random (everything that is random) ──> turmoil: time, network, machines
//!             │                                       │
//!             └─> faults: crash, partition, delay,    ├─ node: disk, Store, clients ──> history
//!                 slow disk, clock, membership ───────┘                                   │
//!                                                          invariants, one rule to a file <┘
//! ```
//!
//! The members are the real ones down to their sockets: openraft, tonic and RocksDB run as they do in a
//! cluster. Simulated are TCP, time, the thread that writes the log (its disk has a latency, and what it had
//! not finished is lost or not when the machine dies), and every random number. A run makes faults for some
//! seconds while clients work, heals everything, demands service again, and gives the record to the rules.
//!
//! `BALSA_SIM_SEEDS=N` runs N seeds in place of a few, `BALSA_SIM_SEED=S` the one with that number; a
//! failing seed is printed.
#![allow(clippy::unwrap_used)]

mod clients;
mod faults;
mod history;
mod invariants;
mod node;
mod random;
mod tests;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::fault::{self, Break};
use crate::types::MemberId;
use faults::Faults;
use history::{History, Logged, Record};
use node::{Node, World, host};

thread_local! {
    static WALL_JUMP_MS: Cell<u64> = const { Cell::new(0) };
}

/// The wall clock of the simulated machine that runs now.
pub(crate) fn wall_ms() -> u64 {
    let since = turmoil::since_epoch().unwrap_or_default();
    let ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    ms.wrapping_sub(DAY_MS).wrapping_add(WALL_JUMP_MS.get())
}

fn set_wall_jump(ms: u64) {
    WALL_JUMP_MS.set(ms);
}

/// Wall clocks are wrong by up to this, in both directions.
const DAY_MS: u64 = 86_400_000;

/// What a run is like.
#[derive(Debug, Clone, Copy)]
struct Plan {
    pub seed: u64,
    pub members: u64,
    /// How long faults are made.
    pub faults_ms: u64,
    pub broken: Option<Break>,
    /// Only this kind of fault, in place of all.
    only: Option<faults::Kind>,
    /// How long each write of a disk takes, from the beginning on.
    disk_ms: u64,
    /// How long each message takes to arrive; then there are no faults.
    network_ms: u64,
    /// Clients do little, so that the leader makes itself heard by heartbeats alone.
    quiet: bool,
}

/// What came of a run.
#[derive(Debug)]
struct Outcome {
    /// The rules that do not hold, and what each says.
    pub violations: Vec<(&'static str, String)>,
    /// What happened, briefly. Two runs of a seed have the same.
    pub trace: Vec<String>,
    pub faults: Vec<String>,
    /// What the members' health said, all different texts.
    pub complaints: std::collections::BTreeSet<String>,
    /// The terms that had a leader.
    pub led: usize,
}

/// Runs a plan, on a thread of its own.
fn run(plan: Plan) -> Outcome {
    let thread = std::thread::Builder::new().name(format!("sim-{}", plan.seed));
    let running = thread.spawn(move || {
        random::seed_thread(plan.seed);
        fault::break_here(plan.broken);
        simulate(plan)
    });
    match running.unwrap().join() {
        Ok(outcome) => outcome,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// The longest that members take until all are voters, or until all serve again.
const SETTLE_MS: u64 = 60_000;

fn simulate(plan: Plan) -> Outcome {
    let root = scratch();
    let history = History::default();
    let world = World::of(plan.members, plan.quiet);
    let mut rng = SmallRng::seed_from_u64(plan.seed ^ 0x5eed);
    let mut sim = turmoil::Builder::new()
        .rng_seed(plan.seed)
        .epoch(std::time::UNIX_EPOCH + Duration::from_millis(20_000 * DAY_MS))
        .simulation_duration(Duration::from_secs(3600))
        .min_message_latency(Duration::from_millis(plan.network_ms))
        .max_message_latency(Duration::from_millis(plan.network_ms + 3))
        .tcp_capacity(65_536)
        .build();
    let nodes: BTreeMap<MemberId, Node> = (1..=plan.members)
        .map(|id| {
            let node = Node::new(id, world.clone(), history.clone(), root.path());
            (id, node)
        })
        .collect();
    for (id, node) in &nodes {
        let node = node.clone();
        sim.host(host(*id), move || node.clone().run());
    }
    if plan.disk_ms > 0 {
        nodes
            .values()
            .for_each(|node| node.set_latency(plan.disk_ms));
    }
    let mut faults = Faults::new(plan, &nodes);
    let started = settle(&mut sim, &nodes, plan.members);
    let mut violation = started.err().map(|error| ("start", error));
    if violation.is_none() {
        let end = sim.elapsed() + Duration::from_millis(plan.faults_ms);
        while sim.elapsed() < end {
            faults.perhaps(&mut sim, &mut rng);
            sim.step().unwrap();
        }
        faults.heal(&mut sim);
        history.0.lock().healed_ms = ms(sim.elapsed());
        violation = settle(&mut sim, &nodes, plan.members)
            .err()
            .map(|error| ("service returns", error));
        // Long enough for leases to end.
        let end = sim.elapsed() + Duration::from_secs(9);
        while violation.is_none() && sim.elapsed() < end {
            sim.step().unwrap();
        }
    }
    world.end();
    for _ in 0..300 {
        sim.step().unwrap();
    }
    let mut record = std::mem::take(&mut *history.0.lock());
    record.ended_ms = ms(sim.elapsed());
    for (id, node) in &nodes {
        if let Some(store) = node.store() {
            record.logs.insert(*id, read_log(&store));
        }
    }
    let mut violations: Vec<_> = violation.into_iter().collect();
    let broken = invariants::ALL
        .into_iter()
        .filter_map(|(name, rule)| Some((name, rule(&record).err()?)));
    violations.extend(broken);
    Outcome {
        violations,
        led: led(&record),
        trace: trace(&record),
        faults: faults.made,
        complaints: record.complaints,
    }
}

fn ms(elapsed: Duration) -> u64 {
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

/// Steps until every member is a voter, knows the same leader and complains of nothing.
fn settle(
    sim: &mut turmoil::Sim<'_>,
    nodes: &BTreeMap<MemberId, Node>,
    members: u64,
) -> Result<(), String> {
    let end = sim.elapsed() + Duration::from_millis(SETTLE_MS);
    loop {
        for _ in 0..20 {
            sim.step().map_err(|error| error.to_string())?;
        }
        let stores: Vec<_> = nodes.values().filter_map(Node::store).collect();
        let ready = |store: &crate::Store| {
            let voters = store.members().iter().filter(|member| member.voter).count();
            store.health().is_ready() && voters as u64 == members
        };
        let leaders: std::collections::BTreeSet<_> = stores
            .iter()
            .map(|store| store.leadership().borrow().leader)
            .collect();
        if stores.len() as u64 == members
            && leaders.len() == 1
            && stores.iter().all(ready)
            && nodes.values().all(Node::is_idle)
        {
            return Ok(());
        }
        if sim.elapsed() > end {
            let states: Vec<_> = stores
                .iter()
                .map(|store| (store.node_id(), store.health(), store.members()))
                .collect();
            return Err(format!(
                "not all members serve after {SETTLE_MS} ms: {states:?}"
            ));
        }
    }
}

fn read_log(store: &crate::Store) -> (BTreeMap<u64, Logged>, u64) {
    let entries = store.log().on_disk().into_iter().map(|entry| {
        let logged = Logged {
            term: crate::raft::term_of(&entry.log_id),
            payload: crate::log::encode_entry(&entry).unwrap(),
        };
        (entry.log_id.index, logged)
    });
    (entries.collect(), store.applied_index())
}

fn led(record: &Record) -> usize {
    let leaderships = record.leaderships.iter();
    let led = leaderships.filter(|(_, now)| now.leader.is_some());
    let terms: std::collections::BTreeSet<_> = led.map(|(_, now)| now.term).collect();
    terms.len()
}

fn trace(record: &Record) -> Vec<String> {
    let operations = record.operations.iter().map(|o| format!("{o:?}"));
    let leaders = record.leaderships.iter().map(|l| format!("{l:?}"));
    leaders.chain(operations).collect()
}

/// A folder that is not on a disk, if the system has such.
fn scratch() -> tempfile::TempDir {
    let memory = std::path::Path::new("/dev/shm");
    if memory.is_dir() {
        tempfile::Builder::new()
            .prefix("balsa-sim-")
            .tempdir_in(memory)
            .unwrap()
    } else {
        tempfile::tempdir().unwrap()
    }
}

/// A random number of the driver.
fn between(rng: &mut SmallRng, from: u64, to: u64) -> u64 {
    rng.random_range(from..=to)
}
