//! What the whole node uses.

use std::path::Path;

use crate::cgroups::Swap;
use crate::node::facts::{memory_usage, swap_usage};

/// Bytes through one interface.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Traffic {
    pub(crate) interface: String,
    pub(crate) received: u64,
    pub(crate) receive_errors: u64,
    pub(crate) sent: u64,
    pub(crate) send_errors: u64,
}

/// A file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Filesystem {
    pub(crate) capacity: u64,
    pub(crate) available: u64,
    pub(crate) inodes: u64,
    pub(crate) inodes_free: u64,
}

/// Memory of the node, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Memory {
    pub(crate) total: u64,
    pub(crate) available: u64,
}

/// The file system that a path is on.
pub(crate) fn filesystem(path: &Path) -> Option<Filesystem> {
    let space = nix::sys::statvfs::statvfs(path).ok()?;
    let unit = space.fragment_size();
    Some(Filesystem {
        capacity: space.blocks().saturating_mul(unit),
        available: space.blocks_available().saturating_mul(unit),
        inodes: space.files(),
        inodes_free: space.files_available(),
    })
}

/// The node's memory.
pub(crate) fn memory() -> Memory {
    let (total, available) = memory_usage();
    Memory { total, available }
}

/// The node's swap.
pub(crate) fn swap() -> Swap {
    let (total, free) = swap_usage();
    Swap {
        used: total.saturating_sub(free),
        available: Some(free),
    }
}

/// CPU time of the node so far, idle time not counted, in nanoseconds.
pub(crate) fn cpu_nanos() -> u64 {
    parse_cpu(&std::fs::read_to_string("/proc/stat").unwrap_or_default())
}

/// Ticks of a hundredth of a second: user, nice, system, idle, iowait, irq, softirq, steal.
fn parse_cpu(text: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "));
    let ticks: Vec<u64> = line
        .into_iter()
        .flat_map(str::split_whitespace)
        .filter_map(|word| word.parse().ok())
        .collect();
    let busy = ticks
        .iter()
        .enumerate()
        .take(8)
        .filter(|(index, _)| ![3, 4].contains(index));
    busy.map(|(_, ticks)| ticks)
        .sum::<u64>()
        .saturating_mul(10_000_000)
}

/// Process ids of the node: those in use, and the most there may be.
pub(crate) fn pids() -> (u64, u64) {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let most = |path: &str| read(path).trim().parse::<u64>().unwrap_or(u64::MAX);
    let limit = most("/proc/sys/kernel/pid_max").min(most("/proc/sys/kernel/threads-max"));
    // "running/all" is the fourth word.
    let load = read("/proc/loadavg");
    let used = load
        .split_whitespace()
        .nth(3)
        .and_then(|word| word.split('/').nth(1)?.parse().ok());
    (used.unwrap_or(0), limit)
}

/// When the machine was booted, in seconds since 1970.
pub(crate) fn booted_at() -> i64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("btime "));
    line.and_then(|time| time.trim().parse().ok()).unwrap_or(0)
}

/// Traffic of the network that a process is in, its loopback left out.
pub(crate) fn traffic_of(pid: u32) -> Vec<Traffic> {
    parse_traffic(&std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default())
}

/// Traffic of the node.
pub(crate) fn traffic() -> Vec<Traffic> {
    parse_traffic(&std::fs::read_to_string("/proc/net/dev").unwrap_or_default())
}

fn parse_traffic(text: &str) -> Vec<Traffic> {
    let lines = text.lines().skip(2).filter_map(|line| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect();
        Some(Traffic {
            interface: name.trim().to_owned(),
            received: *numbers.first()?,
            receive_errors: *numbers.get(2)?,
            sent: *numbers.get(8)?,
            send_errors: *numbers.get(10)?,
        })
    });
    lines.filter(|traffic| traffic.interface != "lo").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_time_leaves_out_idle_and_waiting() {
        assert_eq!(
            parse_cpu("cpu  1 2 3 100 50 4 5 6 7 8\ncpu0 1 1\n"),
            21 * 10_000_000
        );
    }

    #[test]
    fn traffic_is_read_by_interface() {
        let text = "Inter-| x\n face | y\n  lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\neth0: 10 1 2 0 0 0 0 0 20 1 3 0 0 0 0 0\n";
        let wanted = Traffic {
            interface: "eth0".to_owned(),
            received: 10,
            receive_errors: 2,
            sent: 20,
            send_errors: 3,
        };
        assert_eq!(parse_traffic(text), [wanted]);
    }
}
