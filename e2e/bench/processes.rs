//! What the cluster's processes cost, from /proc; for clusters of `balsa local` only.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use balsa_e2e::{Local, NodeRow};

use crate::http::Endpoint;

/// The kernel tells CPU time in hundredths of a second, whatever its own tick is.
const TICK: Duration = Duration::from_millis(10);

/// The nodes of the local cluster that the kubeconfig is of; none if it is of another cluster.
pub async fn local_nodes(endpoints: &[Endpoint]) -> Vec<NodeRow> {
    let nodes = tokio::task::spawn_blocking(|| Local.nodes()).await;
    let Ok(Ok(nodes)) = nodes else {
        return Vec::new();
    };
    let known = endpoints
        .iter()
        .all(|e| nodes.iter().any(|n| n.address == e.host));
    if known { nodes } else { Vec::new() }
}

/// Process ids of the running nodes with a role.
pub fn pids(nodes: &[NodeRow], role: &str) -> Vec<i32> {
    nodes
        .iter()
        .filter(|n| n.role == role)
        .filter_map(|n| n.pid)
        .collect()
}

/// Resident memory of the largest of the processes, in megabytes.
///
/// # Errors
/// When one is gone, or there is none.
pub fn largest_megabytes(pids: &[i32]) -> anyhow::Result<f64> {
    let mut largest: Option<u64> = None;
    for pid in pids {
        largest = largest.max(Some(resident(*pid)?));
    }
    Ok(largest.context("no such process runs here")? as f64 / 1024.0)
}

/// CPU time that the processes used so far.
///
/// # Errors
/// When one is gone.
pub fn cpu(pids: &[i32]) -> anyhow::Result<Duration> {
    let mut ticks = 0;
    for pid in pids {
        ticks += parse_ticks(&read(*pid, "stat")?)
            .with_context(|| format!("/proc/{pid}/stat is strange"))?;
    }
    Ok(TICK * ticks)
}

/// Measures the share of one core that this process, the client, takes: what it takes of the machine's two
/// or four is not the servers'.
pub struct Client {
    began: Instant,
    before: Duration,
}

impl Client {
    /// Begins.
    ///
    /// # Errors
    /// When /proc is not there.
    pub fn begin() -> anyhow::Result<Self> {
        Ok(Self {
            before: own_cpu()?,
            began: Instant::now(),
        })
    }

    /// Percent of one core since then.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub fn percent(&self) -> anyhow::Result<f64> {
        let spent = own_cpu()?.saturating_sub(self.before);
        Ok(100.0 * spent.as_secs_f64() / self.began.elapsed().as_secs_f64())
    }
}

fn own_cpu() -> anyhow::Result<Duration> {
    cpu(&[std::process::id().try_into()?])
}

fn resident(pid: i32) -> anyhow::Result<u64> {
    let status = read(pid, "status")?;
    match parse_resident(&status) {
        Some(kilobytes) => Ok(kilobytes),
        None => bail!("/proc/{pid}/status has no VmRSS"),
    }
}

fn read(pid: i32, file: &str) -> anyhow::Result<String> {
    let path = format!("/proc/{pid}/{file}");
    std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
}

fn parse_resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// User and system time of /proc/PID/stat; the program's name before them may hold anything.
fn parse_ticks(stat: &str) -> Option<u32> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let user: u32 = fields.get(11)?.parse().ok()?;
    let system: u32 = fields.get(12)?.parse().ok()?;
    user.checked_add(system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_a_name_with_spaces_and_parentheses() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 1 0";
        assert_eq!(parse_ticks(stat), Some(300));
        assert_eq!(parse_ticks("7 (a) S 1"), None);
    }

    #[test]
    fn resident_memory_is_read_in_kilobytes() {
        assert_eq!(parse_resident("Name:\tx\nVmRSS:\t  4096 kB\n"), Some(4096));
        assert_eq!(parse_resident("Name:\tx\n"), None);
    }
}
