//! What the node is and has, read from the kernel.

use std::collections::BTreeMap;
use std::path::Path;

use balsa_api::quantity::Quantity;

/// What does not change while the agent runs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    /// CPUs, in thousandths.
    pub(crate) cpu_milli: i64,
    /// Memory in bytes.
    pub(crate) memory: i64,
    /// Swap in bytes, which pods never use.
    pub(crate) swap: i64,
    /// Size of the data folder's file system, in bytes.
    pub(crate) disk: i64,
    pub(crate) machine_id: String,
    pub(crate) system_uuid: String,
    pub(crate) boot_id: String,
    pub(crate) kernel: String,
    pub(crate) os_image: String,
    pub(crate) architecture: &'static str,
    /// `containerd://1.6.20`.
    pub(crate) runtime: String,
    /// What the runtime can do beyond what all can.
    pub(crate) features: balsa_cri::RuntimeFeatures,
    /// Memory set aside as huge pages, in bytes by resource name (`hugepages-2Mi`).
    pub(crate) huge_pages: BTreeMap<String, i64>,
}

/// What may run out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Pressure {
    pub(crate) memory: bool,
    pub(crate) disk: bool,
    pub(crate) pids: bool,
}

impl Facts {
    /// Sizes of huge pages that the kernel offers, in bytes.
    pub(crate) fn page_sizes(&self) -> Vec<i64> {
        let names = self.huge_pages.keys();
        let sizes = names.filter_map(|name| name.strip_prefix("hugepages-")?.parse().ok());
        sizes.map(|size: Quantity| size.value()).collect()
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// Reads them; what can't be read stays empty.
pub(crate) fn read_facts(
    data_dir: &Path,
    runtime: String,
    features: balsa_cri::RuntimeFeatures,
) -> Facts {
    let cpus = std::thread::available_parallelism().map_or(1, |count| count.get() as i64);
    let (memory, _) = memory_usage();
    let disk = nix::sys::statvfs::statvfs(data_dir)
        .map_or(0, |space| space.blocks() * space.fragment_size());
    let os_release = read("/etc/os-release");
    let pretty = os_release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let machine_id = read("/etc/machine-id");
    let system_uuid = read("/sys/class/dmi/id/product_uuid");
    Facts {
        cpu_milli: cpus * 1000,
        memory: i64::try_from(memory).unwrap_or(i64::MAX),
        swap: i64::try_from(swap_usage().0).unwrap_or(i64::MAX),
        disk: i64::try_from(disk).unwrap_or(i64::MAX),
        system_uuid: if system_uuid.is_empty() {
            machine_id.clone()
        } else {
            system_uuid
        },
        machine_id,
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        kernel: read("/proc/sys/kernel/osrelease"),
        os_image: pretty
            .map(|name| name.trim_matches('"').to_owned())
            .unwrap_or_else(|| "Linux".to_owned()),
        architecture: match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        },
        runtime,
        features,
        huge_pages: huge_pages(Path::new("/sys/kernel/mm/hugepages")),
    }
}

/// Huge pages of all sizes that the kernel offers, from folders like `hugepages-2048kB`.
fn huge_pages(dir: &Path) -> BTreeMap<String, i64> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let kibibytes: i64 = name
            .strip_prefix("hugepages-")?
            .strip_suffix("kB")?
            .parse()
            .ok()?;
        let count = std::fs::read_to_string(entry.path().join("nr_hugepages")).ok()?;
        let count: i64 = count.trim().parse().ok()?;
        Some((
            format!("hugepages-{}", binary(kibibytes)),
            count * kibibytes * 1024,
        ))
    };
    entries.filter_map(size).collect()
}

/// Kibibytes in the largest unit that leaves a whole number: `2Mi`.
fn binary(kibibytes: i64) -> String {
    const GIBI: i64 = 1 << 20;
    const MEBI: i64 = 1 << 10;
    match kibibytes {
        size if size % GIBI == 0 => format!("{}Gi", size / GIBI),
        size if size % MEBI == 0 => format!("{}Mi", size / MEBI),
        size => format!("{size}Ki"),
    }
}

/// Memory of the node: all of it and what is available, in bytes.
pub(crate) fn memory_usage() -> (u64, u64) {
    parse_meminfo(&read("/proc/meminfo"))
}

/// Swap of the node: all of it and what is free, in bytes.
pub(crate) fn swap_usage() -> (u64, u64) {
    let text = read("/proc/meminfo");
    (meminfo(&text, "SwapTotal"), meminfo(&text, "SwapFree"))
}

fn parse_meminfo(text: &str) -> (u64, u64) {
    (meminfo(text, "MemTotal"), meminfo(text, "MemAvailable"))
}

/// A value of `/proc/meminfo`, in bytes.
fn meminfo(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| {
        let number = line.trim_start_matches(':').trim().trim_end_matches("kB");
        number.trim().parse::<u64>().ok()
    });
    number.unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn huge_pages_are_counted_by_size() {
        let dir = tempfile::tempdir().unwrap();
        for (size, count) in [("2048kB", "3\n"), ("1048576kB", "0\n"), ("64kB", "x")] {
            let folder = dir.path().join(format!("hugepages-{size}"));
            std::fs::create_dir(&folder).unwrap();
            std::fs::write(folder.join("nr_hugepages"), count).unwrap();
        }
        let wanted = [("hugepages-1Gi", 0), ("hugepages-2Mi", 6 << 20)];
        let found = huge_pages(dir.path());
        let found: Vec<_> = found.iter().map(|(k, v)| (k.as_str(), *v)).collect();
        assert_eq!(found, wanted);
    }

    #[test]
    fn memory_is_read_in_bytes() {
        let text = "MemTotal:       16 kB\nMemFree:  1 kB\nMemAvailable:   8 kB\n";
        assert_eq!(parse_meminfo(text), (16 * 1024, 8 * 1024));
        assert_eq!(parse_meminfo(""), (0, 0));
    }
}
