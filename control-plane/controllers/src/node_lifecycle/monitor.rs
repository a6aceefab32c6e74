//! Which nodes are alive. Pure: time is passed in.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::decide::Silent;

/// Signs of life of one node, as far as this leader has seen them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Signs {
    /// When the node link last heard of it.
    pub(super) link: Option<Instant>,
    /// `renewTime` of its Lease and heartbeat of its status; only their changing counts, not their value, as
    /// clocks of machines differ.
    pub(super) stamp: (Option<jiff::Timestamp>, Option<jiff::Timestamp>),
}

#[derive(Debug)]
struct Record {
    heard: Instant,
    stamp: (Option<jiff::Timestamp>, Option<jiff::Timestamp>),
    silent: bool,
}

/// Judges nodes by their silence.
///
/// Nobody is judged before one grace period of silence seen by this leader itself: it may have started just
/// now. And when most nodes fall silent at once, it is more likely we who are cut off: they get one grace
/// period more.
#[derive(Debug)]
pub(super) struct Monitor {
    grace: Duration,
    nodes: HashMap<String, Record>,
    /// Since when most nodes have been silent.
    mostly_silent_since: Option<Instant>,
    /// All nodes have been judged silent.
    all_silent: bool,
}

/// More silent nodes than this share of all (in percent) is suspicious.
const MOST_PERCENT: usize = 55;

impl Monitor {
    pub(super) fn new(grace: Duration) -> Self {
        Self {
            grace,
            nodes: HashMap::new(),
            mostly_silent_since: None,
            all_silent: false,
        }
    }

    /// True when the node has been judged silent.
    pub(super) fn is_silent(&self, node: &str) -> bool {
        self.nodes.get(node).is_some_and(|record| record.silent)
    }

    /// What that means for the pods of a node that is said not to be heard of.
    pub(super) fn silent(&self, node: &str) -> Silent {
        match (self.is_silent(node), self.all_silent) {
            (true, true) => Silent::Spare,
            (true, false) => Silent::Evict,
            (false, _) => Silent::Undecided,
        }
    }

    /// Takes in what is known of all nodes now; returns those whose verdict changed, and all if now no node is heard
    /// of, or one again.
    pub(super) fn observe(&mut self, signs: HashMap<String, Signs>, now: Instant) -> Vec<String> {
        self.nodes.retain(|name, _| signs.contains_key(name));
        for (name, signs) in signs {
            self.hear(name, signs, now);
        }
        let silent = |record: &Record| now.duration_since(record.heard) > self.grace;
        let count = self.nodes.values().filter(|record| silent(record)).count();
        let most = count * 100 > self.nodes.len() * MOST_PERCENT;
        let since = most.then(|| self.mostly_silent_since.unwrap_or(now));
        if since.is_some() && self.mostly_silent_since.is_none() {
            tracing::warn!(
                silent = count,
                nodes = self.nodes.len(),
                "most nodes are silent; waiting once more"
            );
        }
        self.mostly_silent_since = since;
        let hold = since.is_some_and(|since| now.duration_since(since) <= self.grace);
        if self.all_silent && count < self.nodes.len() {
            // What kept all from being heard may keep some a moment longer: each has its grace period again.
            for record in self.nodes.values_mut().filter(|record| record.silent) {
                record.heard = now;
            }
        }
        let grace = self.grace;
        let mut changed = Vec::new();
        for (name, record) in &mut self.nodes {
            let verdict = now.duration_since(record.heard) > grace;
            if verdict != record.silent && !(verdict && hold) {
                record.silent = verdict;
                changed.push(name.clone());
            }
        }
        let all = !self.nodes.is_empty() && self.nodes.values().all(|record| record.silent);
        if std::mem::replace(&mut self.all_silent, all) == all {
            return changed;
        }
        if all {
            tracing::warn!("no node is heard of: their pods are left alone until one is");
        }
        self.nodes.keys().cloned().collect()
    }

    fn hear(&mut self, name: String, signs: Signs, now: Instant) {
        let record = self.nodes.entry(name).or_insert_with(|| Record {
            // The first look is a sign of life: silence is what we have seen ourselves.
            heard: now,
            stamp: signs.stamp,
            silent: false,
        });
        if record.stamp != signs.stamp {
            record.stamp = signs.stamp;
            record.heard = now;
        }
        if let Some(link) = signs.link {
            record.heard = record.heard.max(link);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pods_are_left_alone_while_no_node_is_heard_of() {
        let (mut monitor, start) = (Monitor::new(GRACE), Instant::now());
        let all = ["a", "b", "c"];
        at(&mut monitor, start, 0, &all, &all);
        assert_eq!(at(&mut monitor, start, 4, &all, &["b", "c"]), ["a"]);
        assert_eq!(monitor.silent("a"), Silent::Evict);
        at(&mut monitor, start, 9, &all, &[]);
        // The node that was silent before is spared too.
        assert_eq!(at(&mut monitor, start, 13, &all, &[]), all);
        assert!(all.iter().all(|node| monitor.silent(node) == Silent::Spare));
        // One is back: the others have a grace period.
        assert_eq!(at(&mut monitor, start, 14, &all, &["c"]), all);
        assert!(
            all.iter()
                .all(|node| monitor.silent(node) == Silent::Undecided)
        );
        assert!(at(&mut monitor, start, 17, &all, &["c"]).is_empty());
        // Two of three are most, so there is another.
        assert!(at(&mut monitor, start, 18, &all, &["c"]).is_empty());
        assert_eq!(at(&mut monitor, start, 22, &all, &["c"]), ["a", "b"]);
        assert_eq!(monitor.silent("b"), Silent::Evict);
    }

    const GRACE: Duration = Duration::from_secs(3);

    /// Observes at a second; nodes that are listed are heard over the link at that moment.
    fn at(
        monitor: &mut Monitor,
        start: Instant,
        second: u64,
        all: &[&str],
        heard: &[&str],
    ) -> Vec<String> {
        let now = start + Duration::from_secs(second);
        let signs = all
            .iter()
            .map(|name| {
                let link = heard.contains(name).then_some(now);
                (
                    (*name).to_owned(),
                    Signs {
                        link,
                        ..Signs::default()
                    },
                )
            })
            .collect();
        let mut changed = monitor.observe(signs, now);
        changed.sort();
        changed
    }

    #[test]
    fn a_silent_node_is_noticed_after_the_grace_period_and_when_it_is_back() {
        let (mut monitor, start) = (Monitor::new(GRACE), Instant::now());
        let all = ["a", "b", "c"];
        at(&mut monitor, start, 0, &all, &all);
        assert_eq!(
            at(&mut monitor, start, 3, &all, &["b", "c"]),
            Vec::<String>::new()
        );
        assert_eq!(at(&mut monitor, start, 4, &all, &["b", "c"]), ["a"]);
        assert!(monitor.is_silent("a"));
        assert_eq!(
            at(&mut monitor, start, 5, &all, &["b", "c"]),
            Vec::<String>::new()
        );
        assert_eq!(at(&mut monitor, start, 6, &all, &all), ["a"]);
        assert!(!monitor.is_silent("a"));
    }

    #[test]
    fn a_new_leader_judges_nobody_before_its_own_grace_period() {
        let (mut monitor, start) = (Monitor::new(GRACE), Instant::now());
        let old = start.checked_sub(Duration::from_secs(60)).unwrap();
        let signs = || {
            HashMap::from([(
                "a".to_owned(),
                Signs {
                    link: Some(old),
                    ..Signs::default()
                },
            )])
        };
        assert!(monitor.observe(signs(), start).is_empty());
        assert!(monitor.observe(signs(), start + GRACE).is_empty());
    }

    #[test]
    fn when_most_nodes_fall_silent_all_get_one_grace_period_more() {
        let (mut monitor, start) = (Monitor::new(GRACE), Instant::now());
        let all = ["a", "b", "c"];
        at(&mut monitor, start, 0, &all, &all);
        assert!(at(&mut monitor, start, 4, &all, &["c"]).is_empty());
        // One comes back: the other is judged at once.
        assert_eq!(at(&mut monitor, start, 5, &all, &["b", "c"]), ["a"]);
        // All silent: judged only after the second grace period.
        assert!(at(&mut monitor, start, 9, &all, &[]).is_empty());
        assert_eq!(at(&mut monitor, start, 13, &all, &[]), all);
    }

    #[test]
    fn half_of_two_nodes_is_not_most() {
        let (mut monitor, start) = (Monitor::new(GRACE), Instant::now());
        at(&mut monitor, start, 0, &["a", "b"], &["a", "b"]);
        assert_eq!(at(&mut monitor, start, 4, &["a", "b"], &["b"]), ["a"]);
    }

    #[test]
    fn a_renewed_lease_is_a_sign_of_life_whatever_its_clock_says() {
        let (mut monitor, start) = (Monitor::new(GRACE), Instant::now());
        let signs = |second| {
            let stamp = (Some(jiff::Timestamp::from_second(second).unwrap()), None);
            HashMap::from([("a".to_owned(), Signs { link: None, stamp })])
        };
        for step in 0..5 {
            // A clock that is years behind, and even goes backwards.
            let changed = monitor.observe(
                signs(1000 - step),
                start + GRACE * u32::try_from(step).unwrap(),
            );
            assert!(changed.is_empty());
        }
    }

    #[test]
    fn a_removed_node_is_forgotten() {
        let (mut monitor, start) = (Monitor::new(GRACE), Instant::now());
        at(&mut monitor, start, 0, &["a", "b", "c"], &["a", "b", "c"]);
        at(&mut monitor, start, 4, &["a", "b", "c"], &["b", "c"]);
        at(&mut monitor, start, 5, &["b", "c"], &["b", "c"]);
        assert!(!monitor.is_silent("a"));
    }
}
