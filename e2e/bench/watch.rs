//! How long a write takes to reach every watcher.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::task::JoinHandle;

use crate::drive::percentile;
use crate::events::{Events, number_after, version};
use crate::scratch::{Scratch, config_map};

/// How many watch what is written how fast.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Watching {
    /// Watchers of the same collection
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub watchers: u32,
    /// Objects created each second
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rate: u32,
    /// Objects to create
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub count: u32,
    /// Bytes of each ConfigMap's value
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=900_000))]
    pub size: u32,
}

impl Watching {
    /// Connections for that many watches: a hundred on each, far below every server's limit of streams.
    pub fn connections(self) -> usize {
        (self.watchers as usize).div_ceil(100).max(8)
    }
}

/// What the watchers saw.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// From the write's request to the event at a watcher, ascending.
    pub latencies: Vec<Duration>,
    /// Writes that failed.
    pub failed: usize,
    /// Events that should have come and did not.
    pub missing: usize,
    /// From the first write to the last event.
    pub took: Duration,
}

impl Delivery {
    /// The delivery, if all that was written was delivered.
    ///
    /// # Errors
    /// Otherwise.
    pub fn whole(self) -> anyhow::Result<Self> {
        anyhow::ensure!(
            self.failed == 0 && self.missing == 0,
            "not all was written and delivered: {self}"
        );
        Ok(self)
    }

    /// A percentile in milliseconds.
    pub fn percentile(&self, percent: usize) -> f64 {
        percentile(&self.latencies, percent)
    }
}

impl fmt::Display for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (p50, p99, max) = (
            self.percentile(50),
            self.percentile(99),
            self.percentile(100),
        );
        write!(
            f,
            "{} events in {:.1} s, p50 {p50:.2} ms, p99 {p99:.2} ms, max {max:.2} ms, {} writes failed, {} events missing",
            self.latencies.len(),
            self.took.as_secs_f64(),
            self.failed,
            self.missing
        )
    }
}

/// When each write was sent, in nanoseconds after `began`.
struct Sent {
    began: Instant,
    at: Vec<AtomicU64>,
}

impl Sent {
    fn stamp(&self, index: usize) {
        self.at[index].store(self.began.elapsed().as_nanos() as u64, Ordering::Release);
    }

    fn since(&self, index: usize) -> Option<Duration> {
        let at = Duration::from_nanos(self.at.get(index)?.load(Ordering::Acquire));
        self.began.elapsed().checked_sub(at)
    }
}

/// A watcher that hears nothing for so long hears nothing more.
const PATIENCE: Duration = Duration::from_secs(20);
const MARKER: &str = "watched-";

/// Opens the watches, writes at the given rate (whether or not answers come), and collects the events.
///
/// # Errors
/// When a watch cannot be opened.
pub async fn measure(scratch: &Scratch, watching: Watching) -> anyhow::Result<Delivery> {
    let (path, count) = (scratch.path("configmaps"), watching.count as usize);
    let sent = Arc::new(Sent {
        began: Instant::now(),
        at: (0..count).map(|_| AtomicU64::default()).collect(),
    });
    let from = version(scratch.lines.next(), &path).await?;
    let mut watchers = Vec::new();
    for index in 0..watching.watchers as usize {
        let events = Events::open(scratch.lines.nth(index), &path, &from).await?;
        watchers.push(tokio::spawn(collect(events, sent.clone(), count)));
    }
    let began = Instant::now();
    let failed = write(scratch, watching, &sent).await?;
    let mut delivery = gather(watchers, count).await?;
    delivery.failed = failed;
    delivery.took = began.elapsed();
    Ok(delivery)
}

async fn write(scratch: &Scratch, watching: Watching, sent: &Arc<Sent>) -> anyhow::Result<usize> {
    let period = Duration::from_secs(1) / watching.rate;
    let mut ticks = tokio::time::interval(period);
    let mut writes: Vec<JoinHandle<bool>> = Vec::new();
    for index in 0..watching.count as usize {
        ticks.tick().await;
        let (lines, path, sent) = (
            scratch.lines.clone(),
            scratch.path("configmaps"),
            sent.clone(),
        );
        let body = config_map(&format!("{MARKER}{index:07}"), watching.size as usize);
        writes.push(tokio::spawn(async move {
            sent.stamp(index);
            lines.next().post(&path, body).await.is_ok()
        }));
    }
    let mut failed = 0;
    for write in writes {
        failed += usize::from(!write.await.context("a writer panicked")?);
    }
    Ok(failed)
}

/// Reads one watch until everything has come, it ends, or it stays quiet.
async fn collect(mut events: Events, sent: Arc<Sent>, count: usize) -> Vec<Duration> {
    let mut latencies = Vec::with_capacity(count);
    while latencies.len() < count {
        let event = match tokio::time::timeout(PATIENCE, events.next()).await {
            Ok(Ok(Some(event))) => event,
            _ => break,
        };
        let latency = number_after(&event, MARKER.as_bytes()).and_then(|index| sent.since(index));
        latencies.extend(latency);
    }
    latencies
}

async fn gather(
    watchers: Vec<JoinHandle<Vec<Duration>>>,
    count: usize,
) -> anyhow::Result<Delivery> {
    let expected = watchers.len() * count;
    let mut latencies = Vec::with_capacity(expected);
    for watcher in watchers {
        latencies.extend(watcher.await.context("a watcher panicked")?);
    }
    latencies.sort_unstable();
    let missing = expected.saturating_sub(latencies.len());
    Ok(Delivery {
        latencies,
        failed: 0,
        missing,
        took: Duration::ZERO,
    })
}
