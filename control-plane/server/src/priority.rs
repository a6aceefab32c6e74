//! A server's weight among the other programs of its machine.
//!
//! Raft's threads ask for a better niceness, but the kernel compares niceness only within a cgroup or, where there
//! are none, within a session (sched(7), "The autogroup feature"). Beside the sessions of builds, say, a server is
//! one of many, and its leader can wait for a processor for so long that the others elect a new one. Under systemd
//! the unit's `CPUWeight` is for that, and this has no effect.

use nix::unistd::{getpid, getsid};
use tracing::debug;

/// Of the session: about three times an ordinary one's share.
const NICENESS: &str = "-5";

/// Asks for more than an ordinary session's share of the processors, if this process has a session of its own: it is
/// not for a server to decide about the others in a shell's.
pub(crate) fn raise() {
    if getsid(None) == Ok(getpid())
        && let Err(error) = std::fs::write("/proc/self/autogroup", NICENESS)
    {
        // Without the privilege, or on a kernel without the feature.
        debug!(%error, "the server's share of the processors is left as it is");
    }
}
