//! Members in processes of their own that stand still for longer than every timeout, as a machine does that is
//! suspended, and then go on as if nothing had been.
//!
//! `BALSA_PAUSE_SECONDS=N` lets them stand still for that long.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::PATIENCE;
use super::kill::Cluster;

#[test]
fn a_member_that_stands_still_for_long_and_goes_on_knows_what_was_written_meanwhile() {
    let seconds = std::env::var("BALSA_PAUSE_SECONDS").ok();
    let pause = Duration::from_secs(seconds.and_then(|s| s.parse().ok()).unwrap_or(6));
    let mut cluster = Cluster::start();
    for leads in [true, false] {
        let leader = cluster.leader(&[1, 2, 3]);
        let paused = if leads { leader } else { leader % 3 + 1 };
        let others: Vec<u64> = (1..=3).filter(|id| *id != paused).collect();
        cluster.signal(paused, Signal::STOP);
        let since = Instant::now();
        // The others go on without it, after an election if it led.
        let before = cluster.count(&others);
        while cluster.count(&others) < before + 50 {
            assert!(since.elapsed() < PATIENCE, "nothing is written");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_ne!(cluster.leader(&others), 0);
        std::thread::sleep(pause.saturating_sub(since.elapsed()));
        let acknowledged = cluster.acknowledged(&others);
        cluster.signal(paused, Signal::CONT);
        // It may think that it still leads, and must not answer from what it knew.
        let found = cluster.dump(paused);
        for (key, revision) in acknowledged {
            assert_eq!(found.get(&key), Some(&revision), "{key} on member {paused}");
        }
        cluster.serves(paused);
    }
    cluster.check();
}
