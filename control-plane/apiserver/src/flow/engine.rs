//! Seats and queues, without clock and without I/O: which request runs, which waits, which is refused.
//!
//! A level's requests wait in queues. A flow is dealt a small hand of them and takes the shortest, so that one
//! flow rarely fills all queues of another; queues take turns by the work they have been given (start-time fair
//! queueing).

use std::collections::{BTreeMap, VecDeque};

use super::config::LevelConfig;

/// What becomes of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It runs now.
    Run,
    /// It waits under this number.
    Wait(u64),
    /// There is no room, and why in the words of upstream's metrics.
    Refuse(&'static str),
}

/// A request that may run now after it waited.
pub(super) struct Granted<W> {
    pub level: String,
    pub width: u32,
    pub waiter: W,
}

struct Waiting<W> {
    id: u64,
    width: u32,
    waiter: W,
}

struct Queue<W> {
    waiting: VecDeque<Waiting<W>>,
    /// Virtual time at which its next request may start.
    start: u64,
}

struct Level<W> {
    config: LevelConfig,
    executing: u32,
    /// How many wait in its queues.
    waiting: usize,
    queues: Vec<Queue<W>>,
    /// Virtual time of the latest start.
    now: u64,
}

/// See the module. `W` is what wakes a waiting request.
pub(super) struct Engine<W> {
    levels: BTreeMap<String, Level<W>>,
    next: u64,
}

impl<W> Engine<W> {
    pub fn new() -> Self {
        Self {
            levels: BTreeMap::new(),
            next: 0,
        }
    }

    /// Takes new limits. Requests under way and waiting stay; a level that is gone goes on until it is empty.
    pub fn configure(&mut self, levels: &[LevelConfig]) -> Vec<Granted<W>> {
        for config in levels {
            let level = self
                .levels
                .entry(config.name.clone())
                .or_insert_with(|| Level {
                    config: config.clone(),
                    executing: 0,
                    waiting: 0,
                    queues: Vec::new(),
                    now: 0,
                });
            // Queues only grow, so that nobody who waits is lost.
            while level.queues.len() < config.queues {
                level.queues.push(Queue {
                    waiting: VecDeque::new(),
                    start: 0,
                });
            }
            level.config = config.clone();
        }
        self.levels.retain(|name, level| {
            levels.iter().any(|c| c.name == *name) || level.executing > 0 || level.waiting > 0
        });
        self.dispatch()
    }

    /// A request of `width` seats of a flow; `waiter` is made only if it has to wait.
    pub fn admit(
        &mut self,
        level: &str,
        flow: u64,
        width: u32,
        waiter: impl FnOnce() -> W,
    ) -> Verdict {
        let spare = self.spare();
        let Some(found) = self.levels.get_mut(level) else {
            return Verdict::Run;
        };
        if found.config.exempt || (found.waiting == 0 && found.fits(width, spare)) {
            found.executing += width;
            return Verdict::Run;
        }
        if found.config.queues == 0 {
            return Verdict::Refuse("concurrency-limit");
        }
        let at = found.shortest(flow);
        let now = found.now;
        let limit = found.config.queue_length;
        let queue = &mut found.queues[at];
        if queue.waiting.len() >= limit {
            return Verdict::Refuse("queue-full");
        }
        if queue.waiting.is_empty() {
            queue.start = queue.start.max(now);
        }
        self.next += 1;
        queue.waiting.push_back(Waiting {
            id: self.next,
            width,
            waiter: waiter(),
        });
        found.waiting += 1;
        Verdict::Wait(self.next)
    }

    /// A request ended; those that may run now in its place.
    pub fn finish(&mut self, level: &str, width: u32) -> Vec<Granted<W>> {
        if let Some(found) = self.levels.get_mut(level) {
            found.executing = found.executing.saturating_sub(width);
        }
        self.dispatch()
    }

    /// A request waits no more. False when it is not waiting: it was granted.
    pub fn forget(&mut self, level: &str, id: u64) -> bool {
        let Some(found) = self.levels.get_mut(level) else {
            return false;
        };
        for queue in &mut found.queues {
            if let Some(at) = queue.waiting.iter().position(|w| w.id == id) {
                queue.waiting.remove(at);
                found.waiting -= 1;
                return true;
            }
        }
        false
    }

    /// Seats in use and requests waiting, by level.
    pub fn usage(&self) -> impl Iterator<Item = (&str, u32, usize, u32)> {
        self.levels
            .iter()
            .map(|(name, l)| (name.as_str(), l.executing, l.waiting, l.config.nominal))
    }

    /// Seats that may be borrowed now.
    fn spare(&self) -> u32 {
        let (mut lent, mut borrowed) = (0_u32, 0_u32);
        for level in self.levels.values().filter(|l| !l.config.exempt) {
            let idle = level.config.nominal.saturating_sub(level.executing);
            lent = lent.saturating_add(idle.min(level.config.lendable));
            borrowed =
                borrowed.saturating_add(level.executing.saturating_sub(level.config.nominal));
        }
        lent.saturating_sub(borrowed)
    }

    fn dispatch(&mut self) -> Vec<Granted<W>> {
        let mut granted = Vec::new();
        if self.levels.values().all(|l| l.waiting == 0) {
            return granted;
        }
        let names: Vec<String> = self.levels.keys().cloned().collect();
        for name in names {
            loop {
                let spare = self.spare();
                let Some(level) = self.levels.get_mut(&name) else {
                    break;
                };
                let Some(next) = level.take(spare) else { break };
                level.executing += next.width;
                granted.push(Granted {
                    level: name.clone(),
                    width: next.width,
                    waiter: next.waiter,
                });
            }
        }
        granted
    }
}

impl<W> Level<W> {
    fn fits(&self, width: u32, spare: u32) -> bool {
        let after = self.executing + width;
        // One request always runs, however wide it is.
        self.executing == 0
            || after <= self.config.nominal
            || (spare >= width
                && after <= self.config.nominal.saturating_add(self.config.borrowable))
    }

    /// The shortest queue of the flow's hand.
    fn shortest(&self, flow: u64) -> usize {
        let queues = self.config.queues.min(self.queues.len());
        let mut deck: Vec<usize> = (0..queues).collect();
        let mut rest = flow;
        let mut best = 0;
        let mut shortest = usize::MAX;
        for _ in 0..self.config.hand.min(queues) {
            let left = deck.len() as u64;
            let card = deck.swap_remove(usize::try_from(rest % left).unwrap_or(0));
            rest /= left;
            let length = self.queues[card].waiting.len();
            if length < shortest {
                (best, shortest) = (card, length);
            }
        }
        best
    }

    fn take(&mut self, spare: u32) -> Option<Waiting<W>> {
        let at = (0..self.queues.len())
            .filter(|at| !self.queues[*at].waiting.is_empty())
            .min_by_key(|at| self.queues[*at].start)?;
        let width = self.queues[at].waiting.front()?.width;
        if !self.fits(width, spare) {
            return None;
        }
        let queue = &mut self.queues[at];
        self.now = self.now.max(queue.start);
        queue.start += u64::from(width);
        self.waiting -= 1;
        queue.waiting.pop_front()
    }
}
