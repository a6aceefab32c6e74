//! What goes wrong, and when: all of it from the seed.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use turmoil::Sim;

use super::node::{Node, Order, host};
use super::{DAY_MS, Plan, between};
use crate::types::MemberId;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A machine dies and comes back with what was on its disk.
    Crash,
    /// All machines lose power at once.
    PowerCut,
    /// Two machines do not hear each other; what was said arrives later.
    Hold,
    /// A machine is cut off from all others; what was said is lost.
    Cut,
    /// A machine sends, but does not receive.
    Deaf,
    /// A machine receives, but does not send.
    Mute,
    /// A link that comes and goes.
    Flap,
    /// Messages take long.
    Delay,
    /// A disk takes long for each write.
    SlowDisk,
    /// A disk stands still for ten seconds.
    StuckDisk,
    /// A machine starts with a wrong clock.
    Clock,
    /// Leadership is handed over.
    Transfer,
    /// A member loses its disk and is added anew.
    Replace,
}

const ALL: [Kind; 13] = [
    Kind::PowerCut,
    Kind::Crash,
    Kind::Crash,
    Kind::Hold,
    Kind::Cut,
    Kind::Deaf,
    Kind::Mute,
    Kind::Flap,
    Kind::Delay,
    Kind::SlowDisk,
    Kind::Clock,
    Kind::Transfer,
    Kind::Replace,
];

/// What ends a fault.
#[derive(Debug, Clone)]
enum End {
    Restart(MemberId),
    Release(MemberId, MemberId),
    Repair(MemberId),
    Latency,
    Disk(MemberId),
    Flap(MemberId, MemberId, u64),
}

pub(super) struct Faults {
    plan: Plan,
    nodes: BTreeMap<MemberId, Node>,
    /// When which fault ends.
    ends: Vec<(Duration, End)>,
    next: Duration,
    down: Vec<MemberId>,
    /// What was done, for people.
    pub made: Vec<String>,
    replaced: bool,
}

impl Faults {
    pub fn new(plan: Plan, nodes: &BTreeMap<MemberId, Node>) -> Self {
        Self {
            plan,
            nodes: nodes.clone(),
            ends: Vec::new(),
            next: Duration::ZERO,
            down: Vec::new(),
            made: Vec::new(),
            replaced: false,
        }
    }

    /// Called before each step: ends what is to end, and begins something now and then.
    pub fn perhaps(&mut self, sim: &mut Sim<'_>, rng: &mut SmallRng) {
        let now = sim.elapsed();
        let (due, later) = std::mem::take(&mut self.ends)
            .into_iter()
            .partition(|(at, _)| *at <= now);
        self.ends = later;
        for (_, end) in due {
            self.finish(sim, end, true);
        }
        if now < self.next || self.plan.network_ms > 0 {
            return;
        }
        self.next = now + Duration::from_millis(between(rng, 50, 900));
        let kind = self
            .plan
            .only
            .or_else(|| ALL.choose(rng).copied())
            .unwrap_or(Kind::Crash);
        self.begin(sim, rng, kind);
    }

    fn begin(&mut self, sim: &mut Sim<'_>, rng: &mut SmallRng, kind: Kind) {
        let id = rng.random_range(1..=self.plan.members);
        let other =
            (id + rng.random_range(1..self.plan.members.max(2)) - 1) % self.plan.members + 1;
        let lasts = Duration::from_millis(between(rng, 100, 3_000));
        let until = sim.elapsed() + lasts;
        self.made.push(format!(
            "{:?}: {kind:?} {id} {other} for {lasts:?}",
            sim.elapsed()
        ));
        tracing::info!("fault: {kind:?} {id} {other} for {lasts:?}");
        match kind {
            Kind::Crash => self.crash(sim, id, until),
            Kind::PowerCut => {
                for id in 1..=self.plan.members {
                    self.crash(sim, id, until);
                }
            }
            Kind::Clock => {
                let jump = rng.random_range(0..2 * DAY_MS);
                self.nodes[&id].set_wall_jump(jump);
                self.crash(sim, id, until);
            }
            Kind::Hold if id != other => {
                sim.hold(host(id), host(other));
                self.ends.push((until, End::Release(id, other)));
            }
            Kind::Cut | Kind::Deaf | Kind::Mute => {
                for other in (1..=self.plan.members).filter(|other| *other != id) {
                    let (here, there) = (host(id), host(other));
                    match kind {
                        Kind::Cut => sim.partition(here, there),
                        Kind::Deaf => sim.partition_oneway(there, here),
                        _ => sim.partition_oneway(here, there),
                    }
                }
                self.ends.push((until, End::Repair(id)));
            }
            Kind::Flap if id != other => {
                sim.hold(host(id), host(other));
                let next = sim.elapsed() + Duration::from_millis(100);
                self.ends.push((next, End::Flap(id, other, 9)));
            }
            Kind::Hold | Kind::Flap => {}
            Kind::Delay => {
                let most = Duration::from_millis(between(rng, 20, 400));
                sim.set_max_message_latency(most);
                self.ends.push((until, End::Latency));
            }
            Kind::SlowDisk => {
                self.nodes[&id].set_latency(between(rng, 10, 800));
                self.ends.push((until, End::Disk(id)));
            }
            Kind::StuckDisk => {
                self.nodes[&id].set_latency(10_000);
                self.ends.push((until, End::Disk(id)));
            }
            Kind::Transfer => self.nodes[&id].order(Order::Transfer),
            Kind::Replace => self.replace(sim, id, until),
        }
    }

    fn crash(&mut self, sim: &mut Sim<'_>, id: MemberId, until: Duration) {
        if self.down.contains(&id) || self.nodes[&id].store().is_none() {
            return;
        }
        self.nodes[&id].freeze_disk().unwrap();
        sim.crash(host(id));
        self.down.push(id);
        self.ends.push((until, End::Restart(id)));
    }

    /// A member that lost its disk has forgotten its vote: so one at a time, and all others up.
    fn replace(&mut self, sim: &mut Sim<'_>, id: MemberId, until: Duration) {
        let busy = self.replaced
            || !self.down.is_empty()
            || !self.nodes.values().all(Node::is_idle)
            || self.nodes.values().any(|node| node.store().is_none());
        if busy {
            return;
        }
        self.replaced = true;
        self.nodes[&id].lose_disk();
        sim.crash(host(id));
        self.down.push(id);
        self.ends.push((until, End::Restart(id)));
        let orders = self.nodes[&id].take_orders();
        let other = id % self.plan.members + 1;
        for order in orders {
            self.nodes[&other].order(order);
        }
        self.nodes[&other].order(Order::Add(id));
    }

    fn finish(&mut self, sim: &mut Sim<'_>, end: End, more: bool) {
        match end {
            End::Restart(id) => {
                self.down.retain(|down| *down != id);
                sim.bounce(host(id));
            }
            End::Release(a, b) => sim.release(host(a), host(b)),
            End::Repair(id) => {
                for other in (1..=self.plan.members).filter(|other| *other != id) {
                    sim.repair(host(id), host(other));
                }
            }
            End::Latency => sim.set_max_message_latency(Duration::from_millis(3)),
            End::Disk(id) => self.nodes[&id].set_latency(1),
            End::Flap(a, b, left) => {
                let held = left % 2 == 1;
                if held {
                    sim.release(host(a), host(b));
                } else {
                    sim.hold(host(a), host(b));
                }
                if left > 0 && (more || !held) {
                    let next = sim.elapsed() + Duration::from_millis(100);
                    self.ends.push((next, End::Flap(a, b, left - 1)));
                }
            }
        }
    }

    /// Ends everything.
    pub fn heal(&mut self, sim: &mut Sim<'_>) {
        while let Some((_, end)) = self.ends.pop() {
            if let End::Flap(a, b, _) = end {
                sim.release(host(a), host(b));
            } else {
                self.finish(sim, end, false);
            }
        }
        for id in 1..=self.plan.members {
            for other in id + 1..=self.plan.members {
                sim.release(host(id), host(other));
                sim.repair(host(id), host(other));
            }
        }
        tracing::info!("healed");
    }
}
