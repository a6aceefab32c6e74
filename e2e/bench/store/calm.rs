//! Whether a leader stays while the machine has no processor time to spare.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::Options;
use super::members::{Members, numbers};

/// One question to the members is about so many seconds.
const SLICE: u64 = 60;

/// Each writer rests so long after each write.
const PAUSE_MS: u64 = 10;

/// Threads that do nothing but keep processors busy, until this is dropped.
struct Burners(Arc<AtomicBool>);

impl Burners {
    fn start(count: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        for _ in 0..count {
            let stop = stop.clone();
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        Self(stop)
    }
}

impl Drop for Burners {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One writer on each member, beside threads that want all processors: prints how often the term changed.
pub(super) async fn calm(options: &Options) -> anyhow::Result<()> {
    let mut members = Members::start(&options.dir).await?;
    let leader = members.leader().await?;
    let first: u64 = members.get(leader)?.ask("term").await?.parse()?;
    let burning = Burners::start(options.burners);
    let (began, time) = (
        Instant::now(),
        Duration::from_secs(u64::from(options.minutes) * 60),
    );
    let (mut longest, mut acknowledged, mut lost) = (0, 0, 0);
    while let left = time.saturating_sub(began.elapsed()).as_secs()
        && left > 0
    {
        for id in 1..=3 {
            let line = format!("gap {} {PAUSE_MS}", left.min(SLICE));
            members.get(id)?.tell(&line).await?;
        }
        for id in 1..=3 {
            let [gap, written, missing] = numbers::<u64, 3>(&members.get(id)?.hear().await?)?;
            longest = longest.max(gap);
            acknowledged += written;
            lost += missing;
        }
    }
    let last: u64 = members.get(leader)?.ask("term").await?.parse()?;
    drop(burning);
    println!(
        "{} minutes beside {} threads that want all processors: {} elections; {acknowledged} writes acknowledged, {lost} lost, longest pause {longest} ms",
        options.minutes,
        options.burners,
        last - first
    );
    Ok(())
}
