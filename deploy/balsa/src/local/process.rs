//! Processes of local nodes: started in the node's network namespace and cgroup, found again by
//! process id and start time (so that a reused id is never signalled by mistake).

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// A process that this cluster started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: i32,
    /// Start time in clock ticks since boot, from `/proc/PID/stat`.
    pub started: u64,
}

impl Process {
    /// The process recorded in `file`, if it still runs.
    #[must_use]
    pub fn running(file: &Path) -> Option<Self> {
        let process: Self = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
        (start_time(process.pid)? == process.started).then_some(process)
    }

    /// A live process by its id.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        Some(Self {
            pid,
            started: start_time(pid)?,
        })
    }

    /// Whether it still runs.
    #[must_use]
    pub fn is_alive(self) -> bool {
        start_time(self.pid) == Some(self.started)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(self, signal: Signal) -> anyhow::Result<()> {
        kill(Pid::from_raw(self.pid), signal)
            .with_context(|| format!("cannot send {signal} to process {}", self.pid))
    }

    /// True when it was killed and only takes its time to end.
    #[must_use]
    pub fn dying(self) -> bool {
        let exiting = stat(self.pid).is_some_and(|fields| is_exiting(&fields));
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid));
        exiting || status.is_ok_and(|text| kill_is_pending(&text))
    }

    /// True when the process is stopped by a signal (`pause`).
    #[must_use]
    pub fn stopped(self) -> bool {
        matches!(state(self.pid), Some('T'))
    }
}

/// Start time of a live process; `None` for a dead one or a zombie.
fn start_time(pid: i32) -> Option<u64> {
    let fields = stat(pid)?;
    if fields.first().is_some_and(|s| s == "Z" || s == "X") {
        return None;
    }
    // Field 22 of stat; the list starts with field 3.
    fields.get(19)?.parse().ok()
}

fn state(pid: i32) -> Option<char> {
    stat(pid)?.first()?.chars().next()
}

/// Whether the kernel is taking a process apart: `PF_EXITING` in field 9 of stat.
fn is_exiting(fields: &[String]) -> bool {
    const EXITING: u64 = 4;
    let flags = fields.get(6).and_then(|flags| flags.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & EXITING != 0)
}

/// Whether SIGKILL is among the pending signals of `/proc/PID/status`.
fn kill_is_pending(status: &str) -> bool {
    let pending = status
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| matches!(*name, "SigPnd" | "ShdPnd"));
    let masks = pending.filter_map(|(_, mask)| u64::from_str_radix(mask.trim(), 16).ok());
    let kill = 1 << (Signal::SIGKILL as u64 - 1);
    masks.fold(0, |all, mask| all | mask) & kill != 0
}

/// Fields of `/proc/PID/stat` after the command name, which may itself hold spaces and parentheses.
fn stat(pid: i32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// What to start.
pub struct Start<'a> {
    /// Program.
    pub program: &'a Path,
    /// Arguments.
    pub args: Vec<String>,
    /// Network namespace.
    pub namespace: OwnedFd,
    /// Cgroup below each controller's root.
    pub cgroup: &'a str,
    /// File that receives standard output and error.
    pub log: &'a Path,
    /// File that remembers the process.
    pub record: &'a Path,
}

/// Starts a process in its own session, so that it outlives this one.
///
/// # Errors
/// When the program, log, namespace or cgroup cannot be used.
pub fn start(start: Start<'_>) -> anyhow::Result<Process> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(start.log)
        .with_context(|| format!("cannot open the log {}", start.log.display()))?;
    let members = join_files(start.cgroup)?;
    let namespace = start.namespace;
    let mut command = Command::new(start.program);
    command
        .args(&start.args)
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("cannot share the log")?)
        .stderr(log)
        .env_remove("KUBECONFIG");
    // SAFETY: between fork and exec only async-signal-safe calls are made: write, setns, setsid, close_range.
    unsafe {
        command.pre_exec(move || {
            for file in &members {
                // "0" means the writing process itself.
                (&*file).write_all(b"0")?;
            }
            if libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            if libc::setsid() < 0 {
                return Err(std::io::Error::last_os_error());
            }
            // A node must not hold its caller's files, whose locks and pipes would then outlive the caller.
            let rest = libc::close_range(
                3,
                libc::c_uint::MAX,
                libc::CLOSE_RANGE_CLOEXEC as libc::c_int,
            );
            if rest != 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let child = command
        .spawn()
        .with_context(|| format!("cannot start {}", start.program.display()))?;
    let pid = i32::try_from(child.id()).context("process id")?;
    let started = start_time(pid).with_context(|| {
        format!(
            "{} ended at once; its log is {}",
            start.program.display(),
            start.log.display()
        )
    })?;
    let process = Process { pid, started };
    fs::write(start.record, serde_json::to_vec(&process)?)
        .with_context(|| format!("cannot write {}", start.record.display()))?;
    Ok(process)
}

/// What a cgroup gets of processors that others want too, in shares of 1024. Where the controller is missing or is
/// not handed down, all stays as it is.
pub fn weigh(cgroup: &str, shares: u32) {
    // cgroup v2 counts from 100 and takes at most 10000.
    let weight = (shares.saturating_mul(100) / 1024).clamp(1, 10_000);
    for root in cgroup_roots() {
        for (file, value) in [("cpu.shares", shares), ("cpu.weight", weight)] {
            let path = root.join(cgroup).join(file);
            if path.exists()
                && let Err(error) = fs::write(&path, value.to_string())
            {
                tracing::debug!(path = %path.display(), %error, "a cgroup keeps its weight");
            }
        }
    }
}

/// Roots of all mounted cgroup hierarchies.
#[must_use]
pub fn cgroup_roots() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    parse_cgroup_roots(&mounts)
}

fn parse_cgroup_roots(mountinfo: &str) -> Vec<PathBuf> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let kind = right.split_whitespace().next()?;
            matches!(kind, "cgroup" | "cgroup2")
                .then(|| left.split_whitespace().nth(4).map(PathBuf::from))?
        })
        .collect()
}

/// Makes the cgroup in every hierarchy and opens the files that take new members.
fn join_files(cgroup: &str) -> anyhow::Result<Vec<File>> {
    let mut files = Vec::new();
    for root in cgroup_roots() {
        let mut path = root.clone();
        for part in Path::new(cgroup) {
            let above = path.clone();
            path.push(part);
            fs::create_dir_all(&path)
                .with_context(|| format!("cannot make the cgroup {}", path.display()))?;
            inherit_cpuset(&above, &path);
        }
        let members = path.join("cgroup.procs");
        files.push(
            File::options()
                .write(true)
                .open(&members)
                .with_context(|| format!("cannot open {}", members.display()))?,
        );
    }
    Ok(files)
}

/// A new cpuset cgroup (v1) has no CPUs and takes no process until it is given some.
fn inherit_cpuset(above: &Path, below: &Path) {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = fs::read_to_string(below.join(file));
        if own.is_ok_and(|text| text.trim().is_empty())
            && let Ok(text) = fs::read(above.join(file))
        {
            let _ = fs::write(below.join(file), text);
        }
    }
}

/// All processes in a cgroup and below it, in any hierarchy.
#[must_use]
pub fn cgroup_members(cgroup: &str) -> Vec<i32> {
    let mut pids = Vec::new();
    for root in cgroup_roots() {
        walk(&root.join(cgroup), &mut |dir| {
            let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            pids.extend(
                text.lines()
                    .filter_map(|line| line.parse::<i32>().ok())
                    .filter(|pid| *pid > 0),
            );
        });
    }
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// Kills everything in a cgroup and waits until it is empty.
///
/// # Errors
/// When something is still there after 10 s.
pub fn kill_cgroup(cgroup: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let members = cgroup_members(cgroup);
        if members.is_empty() {
            return Ok(());
        }
        for pid in &members {
            // It may be gone already.
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        if Instant::now() > deadline {
            bail!("processes {members:?} in cgroup {cgroup} do not die");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Removes an empty cgroup with all below it, in every hierarchy.
///
/// # Errors
/// When one is still in use.
pub fn remove_cgroup(cgroup: &str) -> anyhow::Result<()> {
    for root in cgroup_roots() {
        let mut dirs = Vec::new();
        walk(&root.join(cgroup), &mut |dir| dirs.push(dir.to_owned()));
        // Parents come first in the walk and must go last.
        for dir in dirs.iter().rev() {
            retry_busy(|| fs::remove_dir(dir))
                .with_context(|| format!("cannot remove the cgroup {}", dir.display()))?;
        }
    }
    Ok(())
}

/// The kernel frees a cgroup a moment after its last process; so EBUSY is tried again for 2 s.
fn retry_busy(mut remove: impl FnMut() -> std::io::Result<()>) -> std::io::Result<()> {
    for _ in 0..100 {
        match remove() {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            other => return other,
        }
    }
    remove()
}

fn walk(dir: &Path, visit: &mut dyn FnMut(&Path)) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    visit(dir);
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            walk(&entry.path(), visit);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn cgroup_hierarchies_of_both_versions_are_found() {
        let text = "1 2 0:3 / /sys rw - sysfs sysfs rw\n\
                    5 1 0:9 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                    6 1 0:8 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(
            parse_cgroup_roots(text),
            [
                PathBuf::from("/sys/fs/cgroup/cpu"),
                PathBuf::from("/sys/fs/cgroup/unified")
            ]
        );
    }

    #[test]
    fn a_process_that_was_killed_is_not_taken_for_a_running_one() {
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let process = Process::of(i32::try_from(child.id()).unwrap()).unwrap();
        assert!(!process.dying());
        process.signal(Signal::SIGKILL).unwrap();
        // Either it ends now, or it is gone: a zombie counts as gone.
        assert!(process.dying() || !process.is_alive());
        child.wait().unwrap();
        let status = "Name:\tx\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000100\n";
        assert!(kill_is_pending(status));
        assert!(!kill_is_pending("SigPnd:\t0000000000000080\n"));
    }

    #[test]
    fn a_recorded_process_is_found_while_it_runs_and_not_after() {
        let dir = tempfile::tempdir().unwrap();
        let record = dir.path().join("p");
        let me = i32::try_from(std::process::id()).unwrap();
        let process = Process {
            pid: me,
            started: start_time(me).unwrap(),
        };
        fs::write(&record, serde_json::to_vec(&process).unwrap()).unwrap();
        assert_eq!(Process::running(&record), Some(process));
        let other = Process {
            started: process.started + 1,
            ..process
        };
        fs::write(&record, serde_json::to_vec(&other).unwrap()).unwrap();
        assert_eq!(
            Process::running(&record),
            None,
            "a reused id is another process"
        );
    }
}
