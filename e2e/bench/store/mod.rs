//! The store beside etcd, in the same run on the same disk: three members each, plain TCP on loopback, every
//! write synced. etcd is driven through its own gRPC interface by this process; the store as the API server
//! drives it, by tasks in its members' processes, so what it takes for its callers is counted as its own.

mod calm;
mod member;
mod members;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::etcd::{self, Etcd, Peer};
use crate::processes;
use members::{Members, numbers};

pub use member::{Member, member};

/// What to measure, and how long.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The etcd program
    #[arg(long, default_value = "etcd", env = "BENCH_ETCD")]
    etcd: PathBuf,
    /// Folder for all data
    #[arg(long, default_value = "/var/tmp")]
    dir: PathBuf,
    /// Seconds of each load
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// How often the leader is killed
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    kills: u32,
    /// Only these parts, of: loads, memory, loss, kills, transfer, watch, calm (which is left out unless named)
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Minutes without an election that calm waits for
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=1_440))]
    minutes: u32,
    /// Threads that keep the machine busy meanwhile
    #[arg(long, default_value_t = 8)]
    burners: usize,
}

/// Bytes of a value under load, as in `member`.
const VALUE: u32 = 256;
/// Of the store whose memory is measured.
const LARGE: u32 = 1_024;
const KEYS: usize = 100_000;

/// What a load came to.
struct Load {
    rate: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// Of all members, for each operation.
    cpu_us: f64,
}

impl std::fmt::Display for Load {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:.0}/s (p50 {:.2} ms, p99 {:.1} ms, {:.0} us CPU)",
            self.rate, self.p50_ms, self.p99_ms, self.cpu_us
        )
    }
}

/// Measures and prints a table.
///
/// # Errors
/// When etcd is not installed, or either of the two does not work.
pub async fn measure(options: &Options) -> anyhow::Result<()> {
    println!(
        "{}, 3 members each",
        etcd::version(&options.peer(VALUE)).await?
    );
    let wanted = |part: &str| options.only.is_empty() || options.only.iter().any(|o| o == part);
    if wanted("loads") {
        loads(options).await?;
    }
    if wanted("memory") {
        memory(options).await?;
    }
    if wanted("loss") {
        loss(options).await?;
    }
    if wanted("kills") {
        kills(options).await?;
    }
    if wanted("transfer") {
        transfer(options).await?;
    }
    if wanted("watch") {
        watch(options).await?;
    }
    if options.only.iter().any(|part| part == "calm") {
        calm::calm(options).await?;
    }
    Ok(())
}

impl Options {
    fn peer(&self, size: u32) -> Peer {
        Peer {
            etcd: self.etcd.clone(),
            dir: self.dir.clone(),
            members: 3,
            count: 1,
            in_flight: 1,
            size,
        }
    }
}

async fn loads(options: &Options) -> anyhow::Result<()> {
    println!("| | etcd | store, on the leader | ratio | store, spread | ratio |");
    println!("|---|---|---|---|---|---|");
    for (what, tasks) in [
        ("puts", 1),
        ("puts", 64),
        ("puts", 512),
        ("gets", 1),
        ("gets", 64),
        ("gets", 512),
    ] {
        let theirs = etcd_load(options, what, tasks).await?;
        let led = store_load(options, what, tasks, false).await?;
        let ratio = |ours: &Load| format!("{:.1}", ours.rate / theirs.rate);
        let (led_ratio, mut spread) = (ratio(&led), (String::new(), String::new()));
        if tasks > 1 {
            let all = store_load(options, what, tasks, true).await?;
            spread = (all.to_string(), ratio(&all));
        }
        println!(
            "| {what}, {tasks} tasks | {theirs} | {led} | {led_ratio} | {} | {} |",
            spread.0, spread.1
        );
    }
    Ok(())
}

/// Clusters of their own, so that what was written before does not count.
async fn etcd_load(options: &Options, what: &str, tasks: usize) -> anyhow::Result<Load> {
    let etcd = Etcd::start(&options.peer(VALUE), tasks.min(16)).await?;
    // So many that they take about the time: first a few, to know the rate.
    let trial = 50 * tasks.max(10);
    let puts = etcd.put(KEYS, trial, tasks).await?;
    let gets = what == "gets";
    let before = if gets {
        etcd.get(trial, trial, tasks).await?
    } else {
        puts
    };
    let count = (before.rate() * f64::from(options.seconds)) as usize;
    let (cpu, began) = (processes::cpu(&etcd.pids())?, Instant::now());
    let outcome = if gets {
        etcd.get(trial, count.max(1), tasks).await?
    } else {
        etcd.put(KEYS, count.max(1), tasks).await?
    };
    let (took, spent) = (began.elapsed(), processes::cpu(&etcd.pids())? - cpu);
    etcd.end().await?;
    let done = outcome.latencies.len() as f64;
    Ok(Load {
        rate: done / took.as_secs_f64(),
        p50_ms: outcome.percentile(50),
        p99_ms: outcome.percentile(99),
        cpu_us: spent.as_secs_f64() * 1e6 / done,
    })
}

async fn store_load(
    options: &Options,
    what: &str,
    tasks: usize,
    spread: bool,
) -> anyhow::Result<Load> {
    let mut members = Members::start(&options.dir).await?;
    let ids = if spread {
        vec![1, 2, 3]
    } else {
        vec![members.leader().await?]
    };
    for id in &ids {
        members
            .get(*id)?
            .ask(&format!("puts {} 1", tasks.div_ceil(ids.len())))
            .await?;
    }
    let cpu = processes::cpu(&members.pids()?)?;
    let line = format!("{what} {} {}", tasks.div_ceil(ids.len()), options.seconds);
    for id in &ids {
        members.get(*id)?.tell(&line).await?;
    }
    let (mut done, mut p50, mut p99) = (0.0, 0.0_f64, 0.0_f64);
    for id in &ids {
        let [count, middle, most] = numbers::<f64, 3>(&members.get(*id)?.hear().await?)?;
        done += count;
        (p50, p99) = (p50.max(middle), p99.max(most));
    }
    ensure!(done > 0.0, "the store did nothing");
    let spent = processes::cpu(&members.pids()?)? - cpu;
    Ok(Load {
        rate: done / f64::from(options.seconds),
        p50_ms: p50 / 1e3,
        p99_ms: p99 / 1e3,
        cpu_us: spent.as_secs_f64() * 1e6 / done,
    })
}

async fn memory(options: &Options) -> anyhow::Result<()> {
    let etcd = Etcd::start(&options.peer(LARGE), 16).await?;
    let idle = processes::largest_megabytes(&etcd.pids())?;
    etcd.put(KEYS, KEYS, 64).await?;
    let theirs = processes::largest_megabytes(&etcd.pids())?;
    etcd.end().await?;
    let mut members = Members::start(&options.dir).await?;
    let ours_idle = processes::largest_megabytes(&members.pids()?)?;
    let leader = members.leader().await?;
    members
        .get(leader)?
        .ask(&format!("fill {KEYS} {LARGE}"))
        .await?;
    let ours = processes::largest_megabytes(&members.pids()?)?;
    println!("memory, new: etcd {idle:.0} MB, store {ours_idle:.0} MB");
    println!(
        "memory at {KEYS} keys of {LARGE} B: etcd {theirs:.0} MB, store {ours:.0} MB: {:.2}",
        ours / theirs
    );
    let follower = leader % 3 + 1;
    members.kill(follower).await?;
    let began = Instant::now();
    let opened = members.restart(follower).await?;
    members.get(follower)?.ask("serve").await?;
    println!(
        "restart at that size: {} ms from the process to a linearizable read, {opened} of them to open",
        began.elapsed().as_millis()
    );
    Ok(())
}

/// A follower loses its folder, under writes.
async fn loss(options: &Options) -> anyhow::Result<()> {
    let mut members = Members::start(&options.dir).await?;
    let leader = members.leader().await?;
    members
        .get(leader)?
        .ask(&format!("fill {KEYS} {LARGE}"))
        .await?;
    let (lost, third) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    members.kill(lost).await?;
    std::fs::remove_dir_all(members.folder(lost))?;
    members.restart(lost).await?;
    members.get(third)?.tell("puts 16 20").await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let line = format!("replace {lost} {}", members.address(lost));
    let took = members.get(leader)?.ask(&line).await?;
    let [written, ..] = numbers::<f64, 3>(&members.get(third)?.hear().await?)?;
    println!(
        "a follower of {KEYS} keys of {LARGE} B, lost and returned empty: a voter after {took} ms, under {:.0} puts/s",
        written / 20.0
    );
    Ok(())
}

/// One writer's pauses when the leader is killed.
async fn kills(options: &Options) -> anyhow::Result<()> {
    let mut members = Members::start(&options.dir).await?;
    let (mut gaps, mut acknowledged, mut lost) = (Vec::new(), 0, 0);
    for _ in 0..options.kills {
        let leader = members.leader().await?;
        let writer = leader % 3 + 1;
        members.get(writer)?.tell("gap 2 0").await?;
        tokio::time::sleep(Duration::from_millis(700)).await;
        members.kill(leader).await?;
        let [gap, written, missing] = numbers::<u64, 3>(&members.get(writer)?.hear().await?)?;
        gaps.push(gap);
        acknowledged += written;
        lost += missing;
        members.restart(leader).await?;
        members.get(leader)?.ask("serve").await?;
    }
    gaps.sort_unstable();
    println!(
        "leader killed {} times: gaps of {} to {} ms, median {}; {acknowledged} writes acknowledged, {lost} lost",
        gaps.len(),
        gaps[0],
        gaps[gaps.len() - 1],
        gaps[gaps.len() / 2]
    );
    Ok(())
}

/// One writer's pauses when leadership is handed over.
async fn transfer(options: &Options) -> anyhow::Result<()> {
    let mut members = Members::start(&options.dir).await?;
    let mut gaps = Vec::new();
    for _ in 0..10 {
        let leader = members.leader().await?;
        let writer = leader % 3 + 1;
        members.get(writer)?.tell("gap 2 0").await?;
        tokio::time::sleep(Duration::from_millis(700)).await;
        let said = members.get(leader)?.ask("transfer").await?;
        ensure!(said == "transferred", "leadership is {said}");
        let [gap, ..] = numbers::<u64, 3>(&members.get(writer)?.hear().await?)?;
        gaps.push(gap);
    }
    gaps.sort_unstable();
    println!("leadership handed over 10 times: longest pauses of a writer {gaps:?} ms");
    Ok(())
}

async fn watch(options: &Options) -> anyhow::Result<()> {
    let mut members = Members::start(&options.dir).await?;
    let leader = members.leader().await?;
    let line = format!("watch 1000 1000 {}", options.seconds);
    let answer = members.get(leader)?.ask(&line).await?;
    let [delivered, expected, p50, p99] = numbers::<f64, 4>(&answer)?;
    println!(
        "1000 watchers of one prefix at 1000 events/s: {delivered:.0} of {expected:.0} events, in order, p50 {:.1} ms, p99 {:.1} ms",
        p50 / 1e3,
        p99 / 1e3
    );
    Ok(())
}
