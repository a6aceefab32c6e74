//! Ends shims that nobody can use any more.
//!
//! containerd makes a shim for each sandbox. When its caller goes in the middle of that (the agent was killed, or
//! lost patience), it takes the sandbox back but may forget the shim, which then idles for ever. So does one whose
//! containerd was killed.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use balsa_cri::Containerd;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// Pause before the first look of this agent or at a new containerd, and between looks.
const FIRST: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_secs(600);

/// How long a shim must be without a container: those of containers being removed end by themselves.
const DOUBT: Duration = Duration::from_secs(10);

/// A shim process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Shim {
    pid: i32,
    /// Of the container, or sandbox, that it was made for.
    id: String,
}

/// Looks for forgotten shims of the containerd at that socket, soon after each that was `started`, until stopped.
pub(crate) async fn end_forgotten(
    runtime: Containerd,
    socket: PathBuf,
    started: Arc<Notify>,
    stop: CancellationToken,
) {
    let mut pause = FIRST;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = started.notified() => {
                pause = FIRST;
                continue;
            }
            () = tokio::time::sleep(pause) => pause = LOOK,
        }
        let suspects = forgotten(&runtime, &socket).await;
        if suspects.is_empty() {
            continue;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(DOUBT) => {}
        }
        let still = forgotten(&runtime, &socket).await;
        for shim in suspects.intersection(&still).filter(|shim| idle(shim.pid)) {
            info!(pid = shim.pid, id = shim.id, "ending a forgotten shim");
            if let Err(error) = kill(Pid::from_raw(shim.pid), Signal::SIGKILL) {
                warn!(%error, pid = shim.pid, "could not end a forgotten shim");
            }
        }
    }
}

/// The shims whose containers containerd does not know.
async fn forgotten(runtime: &Containerd, socket: &Path) -> HashSet<Shim> {
    let of = socket.to_owned();
    // First: a container is entered before its shim is made.
    let shims = tokio::task::spawn_blocking(move || shims(Path::new("/proc"), &of)).await;
    let shims = shims.unwrap_or_default();
    if shims.is_empty() {
        return HashSet::new();
    }
    match runtime.container_ids().await {
        Ok(known) => without(shims, &known.into_iter().collect()),
        Err(error) => {
            debug!(%error, "cannot tell which shims are in use");
            HashSet::new()
        }
    }
}

fn without(shims: Vec<Shim>, known: &HashSet<String>) -> HashSet<Shim> {
    let unknown = shims.into_iter().filter(|shim| !known.contains(&shim.id));
    unknown.collect()
}

/// All shims of the containerd at that socket.
fn shims(proc: &Path, socket: &Path) -> Vec<Shim> {
    let entries = std::fs::read_dir(proc).into_iter().flatten().flatten();
    let shim = |entry: std::fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let command = std::fs::read(entry.path().join("cmdline")).ok()?;
        let id = container_of(&command, socket)?;
        Some(Shim { pid, id })
    };
    entries.filter_map(shim).collect()
}

/// The container that a command line names, if it is one of a shim of the containerd at that socket.
fn container_of(command: &[u8], socket: &Path) -> Option<String> {
    let text = std::str::from_utf8(command).ok()?;
    let words: Vec<&str> = text.split('\0').collect();
    let program = Path::new(words.first()?).file_name()?.to_str()?;
    if !program.starts_with("containerd-shim") {
        return None;
    }
    let after = |name: &str| {
        let at = words.iter().position(|word| *word == name)?;
        words.get(at + 1).copied()
    };
    // With a subcommand it is on its way, or cleans up.
    let stays = !words.iter().any(|word| ["start", "delete"].contains(word));
    let ours = after("-namespace")? == "k8s.io" && Path::new(after("-address")?) == socket;
    (stays && ours).then(|| after("-id").map(str::to_owned))?
}

/// Has the process no children? One that can't be looked at has.
fn idle(pid: i32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    threads.flatten().all(|thread| {
        std::fs::read_to_string(thread.path().join("children"))
            .is_ok_and(|children| children.trim().is_empty())
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SOCKET: &str = "/d/containerd.sock";

    fn command(words: &[&str]) -> Vec<u8> {
        words.join("\0").into_bytes()
    }

    fn shim(id: &str, socket: &str, more: &[&str]) -> Vec<u8> {
        let mut words = vec!["/usr/bin/containerd-shim-runc-v2", "-namespace", "k8s.io"];
        words.extend(["-id", id, "-address", socket]);
        words.extend(more);
        command(&words)
    }

    #[test]
    fn only_shims_of_this_containerd_that_it_does_not_know_are_forgotten() {
        let proc = tempfile::tempdir().unwrap();
        let processes = [
            (1, shim("known", SOCKET, &[])),
            (2, shim("lost", SOCKET, &[])),
            (3, shim("others", "/e/containerd.sock", &[])),
            (4, shim("young", SOCKET, &["start"])),
            (5, command(&["vi", "containerd-shim", "-id", "x"])),
            (6, Vec::new()),
        ];
        for (pid, line) in processes {
            let folder = proc.path().join(pid.to_string());
            std::fs::create_dir(&folder).unwrap();
            std::fs::write(folder.join("cmdline"), line).unwrap();
        }
        std::fs::create_dir(proc.path().join("sys")).unwrap();
        let all = shims(proc.path(), Path::new(SOCKET));
        assert_eq!(all.len(), 2);
        let lost = without(all, &["known".to_owned()].into());
        let (pid, id) = (2, "lost".to_owned());
        assert_eq!(lost, [Shim { pid, id }].into());
    }

    #[test]
    fn a_process_with_children_is_not_idle() {
        let mut parent = std::process::Command::new("sh")
            .args(["-c", "sleep 100 & echo; wait"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0];
        // Written once the child is there.
        std::io::Read::read_exact(parent.stdout.as_mut().unwrap(), &mut line).unwrap();
        let pid = i32::try_from(parent.id()).unwrap();
        assert!(!idle(pid));
        let child = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let child: i32 = child.trim().parse().unwrap();
        assert!(idle(child));
        kill(Pid::from_raw(child), Signal::SIGKILL).unwrap();
        parent.wait().unwrap();
    }
}
