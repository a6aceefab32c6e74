//! What pods that do nothing cost the agent of their node.

use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::drive::Outcome;
use crate::http::Endpoint;
use crate::processes::{cpu, largest_megabytes, local_nodes};
use crate::scratch::Scratch;
use crate::startup::{Pods, Starting};

/// Which pods, and how long they are watched.
#[derive(Debug, Clone, clap::Args)]
pub struct Idling {
    #[command(flatten)]
    starting: Starting,
    /// Seconds of rest before the count, in which the agent may give back what the start needed
    #[arg(long, default_value_t = 60)]
    rest: u64,
    /// Seconds of the count
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
}

/// What the agent took.
pub struct Cost {
    /// How the pods started.
    pub started: Outcome,
    /// Its resident memory at the end, in megabytes.
    pub megabytes: f64,
    /// Its share of one core, in percent.
    pub percent: f64,
}

/// Starts the pods on one node of the local cluster, leaves them alone, and looks at that node's agent.
///
/// # Errors
/// When the cluster is not a local one, the node is not named, or the pods do not start.
pub async fn measure(
    scratch: &Scratch,
    endpoints: &[Endpoint],
    idling: &Idling,
) -> anyhow::Result<Cost> {
    let nodes = local_nodes(endpoints).await;
    let name = idling.starting.node.as_deref().unwrap_or_default();
    let pids: Vec<i32> = nodes
        .iter()
        .filter(|node| node.node == name)
        .filter_map(|node| node.pid)
        .collect();
    ensure!(
        !pids.is_empty(),
        "--node must name a running agent of the local cluster"
    );
    let pods = Pods::watch(scratch, &idling.starting).await?;
    let started = pods.start().await?;
    tokio::time::sleep(Duration::from_secs(idling.rest)).await;
    let (before, began) = (cpu(&pids)?, Instant::now());
    tokio::time::sleep(Duration::from_secs(idling.seconds)).await;
    let spent = cpu(&pids)?.saturating_sub(before);
    let percent = 100.0 * spent.as_secs_f64() / began.elapsed().as_secs_f64();
    let megabytes = largest_megabytes(&pids)?;
    pods.remove().await?;
    Ok(Cost {
        started,
        megabytes,
        percent,
    })
}
