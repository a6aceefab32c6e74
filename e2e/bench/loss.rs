//! What the loss of a server costs: how long no write is acknowledged, and how soon it is back.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use balsa_e2e::{Local, Report, Writer, eventually};

use crate::http::Endpoint;

/// How the gap is measured.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Gap {
    /// Kill the leader (-9) in each round and start it again; otherwise only write, and kill something
    /// yourself meanwhile
    #[arg(long)]
    pub kill: bool,
    /// Rounds
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Seconds of writing in each round
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(2..=86_400))]
    pub seconds: u32,
}

/// What all rounds came to.
#[derive(Debug, Clone, Default)]
pub struct Gaps {
    /// Longest gap of each round, ascending.
    pub gaps: Vec<Duration>,
    /// Acknowledged writes.
    pub acknowledged: usize,
    /// Requests that failed or timed out.
    pub failed: usize,
    /// Acknowledged writes that were gone afterwards.
    pub lost: usize,
}

impl Gaps {
    fn add(&mut self, report: &Report) {
        self.gaps.push(report.longest_gap);
        self.gaps.sort_unstable();
        self.acknowledged += report.acknowledged.len();
        self.failed += report.failed;
        self.lost += report.lost.len();
    }

    /// The longest of all, in milliseconds.
    pub fn longest(&self) -> f64 {
        crate::drive::percentile(&self.gaps, 100)
    }
}

impl fmt::Display for Gaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "longest gap {:.0} ms, median of {} rounds {:.0} ms; {} writes acknowledged, {} failed, {} LOST",
            self.longest(),
            self.gaps.len(),
            crate::drive::percentile(&self.gaps, 50),
            self.acknowledged,
            self.failed,
            self.lost
        )
    }
}

/// How long a killed server may take to be back before the benchmark gives up.
const BACK: Duration = Duration::from_secs(60);

/// Writes one object after the other, asking the servers in turn, while the leader is killed.
///
/// # Errors
/// When the cluster cannot be written to, or does not mend.
pub async fn gap(kubeconfig: &Path, namespace: &str, gap: Gap) -> anyhow::Result<Gaps> {
    let mut gaps = Gaps::default();
    for round in 1..=gap.rounds {
        let writer = Writer::start(kubeconfig, namespace).await?;
        let half = Duration::from_secs(gap.seconds.into()) / 2;
        tokio::time::sleep(half).await;
        let killed = if gap.kill {
            Some(blocking(kill_leader).await?)
        } else {
            None
        };
        tokio::time::sleep(half).await;
        let report = writer.finish().await;
        if let Some(leader) = killed.clone() {
            blocking(move || Local.ok(&["start", &leader]).map(drop)).await?;
            blocking(all_healthy).await?;
        }
        let report = report?;
        let whom = killed.map_or_else(String::new, |k| format!(", {k} killed"));
        eprintln!(
            "round {round}{whom}: longest gap {} ms",
            report.longest_gap.as_millis()
        );
        gaps.add(&report);
    }
    Ok(gaps)
}

/// Kills a server that does not lead, starts it, and asks for /readyz until the answer is 200. Starting
/// includes the time of `balsa local start` itself.
///
/// # Errors
/// When it is not ready in a minute.
pub async fn ready(endpoints: &[Endpoint], rounds: u32) -> anyhow::Result<Vec<Duration>> {
    let mut times = Vec::new();
    for _ in 0..rounds {
        let name = blocking(choose).await?;
        let node = blocking({
            let name = name.clone();
            move || Local.node(&name)
        })
        .await?;
        let endpoint = endpoints.iter().find(|e| e.host == node.address);
        let endpoint =
            endpoint.with_context(|| format!("the kubeconfig does not name {}", node.address))?;
        let victim = name.clone();
        blocking(move || Local.ok(&["kill", &victim]).map(drop)).await?;
        let began = Instant::now();
        let victim = name.clone();
        let start = tokio::spawn(blocking(move || Local.ok(&["start", &victim]).map(drop)));
        let answered = answers(endpoint, began).await;
        start.await.context("the start panicked")??;
        times.push(answered?);
        blocking(all_healthy).await?;
    }
    times.sort_unstable();
    Ok(times)
}

async fn answers(endpoint: &Endpoint, began: Instant) -> anyhow::Result<Duration> {
    loop {
        if let Ok(line) = endpoint.connect().await
            && line.get("/readyz").await.is_ok()
        {
            return Ok(began.elapsed());
        }
        ensure!(
            began.elapsed() < BACK,
            "{} is not ready after {} s",
            endpoint.host,
            BACK.as_secs()
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn kill_leader() -> anyhow::Result<String> {
    let leader = Local.leader()?;
    Local.ok(&["kill", &leader])?;
    Ok(leader)
}

/// A server that does not lead; the only one of a cluster of one.
fn choose() -> anyhow::Result<String> {
    let mut servers: Vec<_> = Local
        .nodes()?
        .into_iter()
        .filter(|n| n.role == "server")
        .collect();
    servers.sort_by_key(|n| n.leader == Some(true));
    servers
        .into_iter()
        .next()
        .map(|n| n.node)
        .context("no server runs")
}

fn all_healthy() -> anyhow::Result<()> {
    let healthy = || Ok(Local.nodes()?.iter().all(|n| n.healthy == "yes"));
    eventually("all nodes healthy again", BACK.as_secs(), healthy).map(drop)
}

async fn blocking<T, F>(work: F) -> anyhow::Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> anyhow::Result<T> + Send + 'static,
{
    tokio::task::spawn_blocking(work)
        .await
        .context("a step of the benchmark panicked")?
}
