//! Whether the machine itself goes down, or only the agent.

use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use tokio::process::Command;
use tracing::debug;

/// Time allowed to systemd to say how the machine is.
const PATIENCE: Duration = Duration::from_secs(5);

/// The machine that the agent runs on.
#[async_trait]
pub(crate) trait Machine: Send + Sync {
    /// Is it going down or about to restart?
    async fn is_stopping(&self) -> bool;
}

/// A machine that systemd runs. Asked when the agent is told to end: then systemd knows why.
pub(crate) struct Systemd;

#[async_trait]
impl Machine for Systemd {
    async fn is_stopping(&self) -> bool {
        let asked = Command::new("systemctl")
            .arg("is-system-running")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .output();
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(output)) => says_stopping(&output.stdout),
            Ok(Err(error)) => {
                debug!(%error, "cannot ask systemd whether the machine goes down");
                false
            }
            Err(_) => {
                debug!("systemd does not say whether the machine goes down");
                false
            }
        }
    }
}

/// The exit code is no help: every state but `running` has the same.
fn says_stopping(output: &[u8]) -> bool {
    output.trim_ascii() == b"stopping"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_machine_that_goes_down_is_stopping() {
        assert!(says_stopping(b"stopping\n"));
        for other in ["running\n", "degraded\n", "offline\n", ""] {
            assert!(!says_stopping(other.as_bytes()), "{other}");
        }
    }
}
