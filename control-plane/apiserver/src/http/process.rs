//! The `process_*` metrics that all Prometheus clients have, from `/proc`.

use std::fmt::Write;

/// Clock ticks a second in `/proc/self/stat`: fixed in Linux' interface to programs.
const TICKS: f64 = 100.0;
/// Smallest page there is; all platforms that are built for have it.
const PAGE: u64 = 4096;

/// Appends what can be read; nothing where there is no `/proc`.
pub fn append(out: &mut String) {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{name}")).unwrap_or_default();
    let fds = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    write(out, &read("self/stat"), &read("stat"), fds);
}

fn write(out: &mut String, process: &str, machine: &str, fds: usize) {
    // The command's name, in parentheses, may hold anything; what follows it are numbers.
    let Some((_, rest)) = process.rsplit_once(')') else {
        return;
    };
    let fields: Vec<u64> = rest
        .split_whitespace()
        .skip(1)
        .map(|f| f.parse().unwrap_or_default())
        .collect();
    // Counted from the fourth field of proc(5).
    let field = |number: usize| fields.get(number - 4).copied().unwrap_or_default();
    let booted: u64 = machine
        .lines()
        .find_map(|l| l.strip_prefix("btime ")?.parse().ok())
        .unwrap_or_default();
    let seconds = |ticks: u64| ticks as f64 / TICKS;
    let mut metric = |name: &str, kind: &str, help: &str, value: f64| {
        // Writing to a String cannot fail.
        let _ = write!(
            out,
            "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n"
        );
    };
    metric(
        "process_cpu_seconds_total",
        "counter",
        "Total user and system CPU time spent in seconds.",
        seconds(field(14) + field(15)),
    );
    metric(
        "process_open_fds",
        "gauge",
        "Number of open file descriptors.",
        fds as f64,
    );
    metric(
        "process_resident_memory_bytes",
        "gauge",
        "Resident memory size in bytes.",
        (field(24) * PAGE) as f64,
    );
    metric(
        "process_virtual_memory_bytes",
        "gauge",
        "Virtual memory size in bytes.",
        field(23) as f64,
    );
    metric(
        "process_start_time_seconds",
        "gauge",
        "Start time of the process since unix epoch in seconds.",
        booted as f64 + seconds(field(22)),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_behind_the_commands_name() {
        let process =
            "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 9 0 1000 1048576 10 99";
        let mut out = String::new();
        write(&mut out, process, "cpu 1\nbtime 1700000000\n", 3);
        for line in [
            "process_cpu_seconds_total 2\n",
            "process_open_fds 3\n",
            "process_resident_memory_bytes 40960\n",
            "process_virtual_memory_bytes 1048576\n",
            "process_start_time_seconds 1700000010\n",
        ] {
            assert!(out.contains(line), "{line} is not in {out}");
        }
        let mut none = String::new();
        write(&mut none, "", "", 0);
        assert!(none.is_empty());
    }
}
