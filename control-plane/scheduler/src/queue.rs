//! Which pod is next: by priority, then by age; pods that did not fit wait for an event that could help
//! them, and each failure makes the wait after such an event longer (1 s doubling to 10 s, as upstream).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::pod::PodInfo;

const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);
/// A pod that no event woke is tried anyway after this long.
const FORGOTTEN: Duration = Duration::from_secs(300);

type Order = (Reverse<i32>, u64);

/// A pod in the queue.
#[derive(Debug, Clone)]
struct Waiting {
    pod: Arc<PodInfo>,
    /// Times it was tried in vain.
    attempts: u32,
    /// Order of arrival.
    arrived: u64,
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    Active,
    Backoff {
        until: Instant,
    },
    Unschedulable {
        since: Instant,
        rejected_by: Vec<usize>,
        backoff_until: Instant,
    },
    /// Handed out by `pop`; `moved` remembers that an event came meanwhile.
    InFlight {
        moved: bool,
    },
}

/// The scheduling queue. Pure: time is passed in.
#[derive(Debug, Default)]
pub struct Queue {
    pods: HashMap<String, Waiting>,
    active: BTreeSet<(Order, String)>,
    backoff: BTreeMap<(Instant, u64), String>,
    /// Pods that events matter to: in flight, or waiting for one.
    parked: HashSet<String>,
    arrivals: u64,
}

fn backoff(attempts: u32) -> Duration {
    FIRST_BACKOFF
        .saturating_mul(1 << attempts.saturating_sub(1).min(10))
        .min(LONGEST_BACKOFF)
}

impl Queue {
    /// A pending pod appeared or changed. A changed one is worth a new try.
    pub fn add(&mut self, pod: Arc<PodInfo>) {
        let uid = pod.uid.clone();
        if let Some(waiting) = self.pods.get_mut(&uid) {
            if let Place::InFlight { moved } = &mut waiting.place {
                *moved = true;
                waiting.pod = pod;
                return;
            }
            let (attempts, arrived) = (waiting.attempts, waiting.arrived);
            self.remove(&uid);
            self.insert_active(pod, attempts, arrived);
        } else {
            self.arrivals += 1;
            self.insert_active(pod, 0, self.arrivals);
        }
    }

    fn insert_active(&mut self, pod: Arc<PodInfo>, attempts: u32, arrived: u64) {
        self.active
            .insert(((Reverse(pod.priority), arrived), pod.uid.clone()));
        let uid = pod.uid.clone();
        self.pods.insert(
            uid,
            Waiting {
                pod,
                attempts,
                arrived,
                place: Place::Active,
            },
        );
    }

    /// The pod is bound, gone, or no longer ours.
    pub fn remove(&mut self, uid: &str) {
        let Some(waiting) = self.pods.remove(uid) else {
            return;
        };
        self.parked.remove(uid);
        match waiting.place {
            Place::Active => {
                self.active.remove(&(
                    (Reverse(waiting.pod.priority), waiting.arrived),
                    uid.to_owned(),
                ));
            }
            Place::Backoff { until } => {
                self.backoff.remove(&(until, waiting.arrived));
            }
            Place::Unschedulable { .. } | Place::InFlight { .. } => {}
        }
    }

    /// The next pod to try.
    pub fn pop(&mut self, now: Instant) -> Option<Arc<PodInfo>> {
        self.wake_backoff(now);
        let (_, uid) = self.active.pop_first()?;
        let waiting = self.pods.get_mut(&uid)?;
        waiting.place = Place::InFlight { moved: false };
        waiting.attempts += 1;
        let pod = Arc::clone(&waiting.pod);
        self.parked.insert(uid);
        Some(pod)
    }

    fn wake_backoff(&mut self, now: Instant) {
        while let Some(entry) = self.backoff.first_entry() {
            if entry.key().0 > now {
                return;
            }
            let uid = entry.remove();
            self.activate(&uid);
        }
    }

    fn activate(&mut self, uid: &str) {
        self.parked.remove(uid);
        if let Some(waiting) = self.pods.get_mut(uid) {
            waiting.place = Place::Active;
            self.active.insert((
                (Reverse(waiting.pod.priority), waiting.arrived),
                uid.to_owned(),
            ));
        }
    }

    fn back_off(&mut self, uid: &str, until: Instant) {
        self.parked.remove(uid);
        if let Some(waiting) = self.pods.get_mut(uid) {
            waiting.place = Place::Backoff { until };
            self.backoff
                .insert((until, waiting.arrived), uid.to_owned());
        }
    }

    /// The pod fits nowhere. It waits for an event that one of the filters that rejected it hopes for; if
    /// anything happened while it was being tried, it is only set back.
    pub fn unschedulable(&mut self, uid: &str, rejected_by: Vec<usize>, now: Instant) {
        let Some(waiting) = self.pods.get_mut(uid) else {
            return;
        };
        let until = now + backoff(waiting.attempts);
        if matches!(waiting.place, Place::InFlight { moved: true }) {
            self.back_off(uid, until);
        } else {
            waiting.place = Place::Unschedulable {
                since: now,
                rejected_by,
                backoff_until: until,
            };
        }
    }

    /// Binding failed for a reason of the moment: try again after the backoff.
    pub fn retry(&mut self, uid: &str, now: Instant) {
        let Some(attempts) = self.pods.get(uid).map(|w| w.attempts) else {
            return;
        };
        self.back_off(uid, now + backoff(attempts));
    }

    /// Something changed: pods for which `matters` says yes move on. Returns how many.
    pub fn wake(&mut self, now: Instant, matters: impl Fn(&[usize]) -> bool) -> usize {
        let mut woken = Vec::new();
        for uid in &self.parked {
            let Some(waiting) = self.pods.get_mut(uid) else {
                continue;
            };
            match &mut waiting.place {
                Place::InFlight { moved } => *moved = true,
                Place::Unschedulable {
                    since,
                    rejected_by,
                    backoff_until,
                } => {
                    if matters(rejected_by) || now.duration_since(*since) > FORGOTTEN {
                        woken.push((uid.clone(), *backoff_until));
                    }
                }
                Place::Active | Place::Backoff { .. } => {}
            }
        }
        for (uid, until) in &woken {
            if *until <= now {
                self.activate(uid);
            } else {
                self.back_off(uid, *until);
            }
        }
        woken.len()
    }

    /// When the next backoff ends.
    #[must_use]
    pub fn next_wake(&self) -> Option<Instant> {
        self.backoff.keys().next().map(|(until, _)| *until)
    }

    /// Number of pods waiting in any way.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pods.len()
    }

    /// True without pods.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn pod(uid: &str, priority: i32) -> Arc<PodInfo> {
        let pod = json!({"metadata": {"name": uid, "uid": uid},
            "spec": {"containers": [{"name": "c"}], "priority": priority}});
        Arc::new(PodInfo::new(Arc::new(serde_json::from_value(pod).unwrap())))
    }

    fn popped(queue: &mut Queue, now: Instant) -> Option<String> {
        queue.pop(now).map(|p| p.uid.clone())
    }

    #[test]
    fn higher_priority_goes_first_and_equals_go_in_order_of_arrival() {
        let mut queue = Queue::default();
        for (uid, priority) in [("a", 0), ("b", 0), ("c", 5)] {
            queue.add(pod(uid, priority));
        }
        let now = Instant::now();
        let order: Vec<String> = std::iter::from_fn(|| popped(&mut queue, now)).collect();
        assert_eq!(order, ["c", "a", "b"]);
    }

    #[test]
    fn an_unschedulable_pod_waits_for_an_event_that_matters_and_then_for_its_backoff() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.add(pod("a", 0));
        popped(&mut queue, now);
        queue.unschedulable("a", vec![1], now);
        assert_eq!(queue.wake(now, |rejected| rejected.contains(&2)), 0);
        assert_eq!(queue.wake(now, |rejected| rejected.contains(&1)), 1);
        assert_eq!(popped(&mut queue, now), None, "backoff is not over");
        assert_eq!(
            popped(&mut queue, now + Duration::from_secs(1)).as_deref(),
            Some("a")
        );
    }

    #[test]
    fn an_event_during_the_try_is_not_lost() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.add(pod("a", 0));
        popped(&mut queue, now);
        queue.wake(now, |_| true);
        queue.unschedulable("a", vec![1], now);
        assert!(queue.next_wake().is_some());
    }

    #[test]
    fn backoff_doubles_up_to_its_limit() {
        let seconds: Vec<u64> = (1..7).map(|n| backoff(n).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 10, 10]);
    }

    #[test]
    fn a_removed_pod_is_never_handed_out() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.add(pod("a", 0));
        queue.add(pod("b", 0));
        queue.remove("a");
        popped(&mut queue, now);
        queue.retry("b", now);
        queue.remove("b");
        assert_eq!(popped(&mut queue, now + Duration::from_secs(60)), None);
        assert!(queue.is_empty());
    }
}
