//! What a group uses, read from the kernel.

use super::{Cgroups, Version};

/// What a group uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Usage {
    /// CPU time so far, in nanoseconds.
    pub(crate) cpu_nanos: u64,
    /// All memory, in bytes.
    pub(crate) memory: u64,
    /// Memory that can't be reclaimed at once, in bytes: what eviction and limits look at.
    pub(crate) working_set: u64,
    /// Anonymous memory, in bytes.
    pub(crate) rss: u64,
    /// Page cache, in bytes.
    pub(crate) cache: u64,
    /// Page faults so far.
    pub(crate) page_faults: u64,
    /// Page faults that had to read, so far.
    pub(crate) major_faults: u64,
    /// Processes and threads.
    pub(crate) pids: u64,
    /// Swap, where the kernel counts it by group (version 2).
    pub(crate) swap: Option<Swap>,
}

/// Swap that a group uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Swap {
    /// In bytes.
    pub(crate) used: u64,
    /// How much more it may use, in bytes; `None` when it may use all there is.
    pub(crate) available: Option<u64>,
}

impl Cgroups {
    /// What a group uses; `None` if it is gone.
    pub(crate) fn usage(&self, cgroup: &str) -> Option<Usage> {
        let read = |controller: &str, file: &str| {
            std::fs::read_to_string(self.dir(controller, cgroup).join(file)).ok()
        };
        let number = |controller: &str, file: &str| -> Option<u64> {
            read(controller, file)?.trim().parse().ok()
        };
        let memory_stat = read("memory", "memory.stat").unwrap_or_default();
        let stat = |name: &str| field(&memory_stat, name).unwrap_or(0);
        let pids = number("pids", "pids.current").unwrap_or(0);
        let mut usage = match self.version {
            Version::One => {
                let memory = number("memory", "memory.usage_in_bytes")?;
                Usage {
                    cpu_nanos: number("cpuacct", "cpuacct.usage").unwrap_or(0),
                    memory,
                    working_set: memory.saturating_sub(stat("total_inactive_file")),
                    rss: stat("total_rss"),
                    cache: stat("total_cache"),
                    page_faults: stat("total_pgfault"),
                    major_faults: stat("total_pgmajfault"),
                    pids,
                    swap: None,
                }
            }
            Version::Two => {
                let memory = number("memory", "memory.current")?;
                let cpu = read("cpu", "cpu.stat").unwrap_or_default();
                Usage {
                    cpu_nanos: field(&cpu, "usage_usec").unwrap_or(0).saturating_mul(1000),
                    memory,
                    working_set: memory.saturating_sub(stat("inactive_file")),
                    rss: stat("anon"),
                    cache: stat("file"),
                    page_faults: stat("pgfault"),
                    major_faults: stat("pgmajfault"),
                    pids,
                    swap: number("memory", "memory.swap.current").map(|used| Swap {
                        used,
                        // "max" is no number.
                        available: number("memory", "memory.swap.max")
                            .map(|most| most.saturating_sub(used)),
                    }),
                }
            }
        };
        if usage.pids == 0 {
            usage.pids = read("pids", "cgroup.procs").map_or(0, |all| all.lines().count() as u64);
        }
        Some(usage)
    }

    /// Some process of a group.
    pub(crate) fn first_process(&self, cgroup: &str) -> Option<u32> {
        let path = self.dir("memory", cgroup).join("cgroup.procs");
        let text = std::fs::read_to_string(path).ok()?;
        text.lines().next()?.parse().ok()
    }
}

/// The number after a name in a file of `name number` lines.
fn field(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines
        .find(|(known, _)| *known == name)
        .and_then(|(_, number)| number.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_working_set_leaves_out_what_can_be_reclaimed() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("memory/b/memory.usage_in_bytes", "100\n");
        write(
            "memory/b/memory.stat",
            "rss 1\ntotal_rss 40\ntotal_inactive_file 30\n",
        );
        write("cpuacct/b/cpuacct.usage", "7\n");
        let usage = Cgroups::at(dir.path(), "/b").usage("/b").unwrap();
        assert_eq!((usage.working_set, usage.rss, usage.cpu_nanos), (70, 40, 7));
        assert_eq!(usage.swap, None);
        assert_eq!(Cgroups::at(dir.path(), "/b").usage("/gone"), None);
    }

    #[test]
    fn swap_is_told_where_the_kernel_counts_it() {
        let dir = tempfile::tempdir().unwrap();
        let of = |files: &[(&str, &str)]| {
            let group = dir.path().join("b");
            std::fs::create_dir_all(&group).unwrap();
            for (name, text) in files {
                std::fs::write(group.join(name), text).unwrap();
            }
            Cgroups::at(dir.path(), "/b").usage("/b").unwrap().swap
        };
        std::fs::write(dir.path().join("cgroup.controllers"), "memory").unwrap();
        assert_eq!(of(&[("memory.current", "100\n")]), None);
        let swap = |used, available| Some(Swap { used, available });
        let unlimited = [
            ("memory.swap.current", "30\n"),
            ("memory.swap.max", "max\n"),
        ];
        assert_eq!(of(&unlimited), swap(30, None));
        assert_eq!(of(&[("memory.swap.max", "40\n")]), swap(30, Some(10)));
        assert_eq!(of(&[("memory.swap.max", "0\n")]), swap(30, Some(0)));
    }
}
