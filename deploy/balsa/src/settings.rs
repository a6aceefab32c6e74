//! Settings from the file, below those from flags and the environment.

use std::path::Path;

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;

/// Where settings are looked for when `--config` is not given.
pub const FILE: &str = "/etc/balsa/config.yaml";

/// Reads a settings file. The usual place may be empty, a named file may not.
pub fn read<T: DeserializeOwned + Default>(named: Option<&Path>) -> anyhow::Result<T> {
    let path = named.unwrap_or_else(|| Path::new(FILE));
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(T::default());
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    if text.trim().is_empty() {
        return Ok(T::default());
    }
    serde_saphyr::from_str(&text).with_context(|| format!("{} cannot be used", path.display()))
}

/// All problems in one message.
pub fn complain<T>(checked: Result<T, Vec<String>>) -> anyhow::Result<T> {
    match checked {
        Ok(config) => Ok(config),
        Err(problems) => bail!("the settings cannot be used:\n  {}", problems.join("\n  ")),
    }
}

/// This machine's name.
pub fn hostname() -> anyhow::Result<String> {
    let name = nix::unistd::gethostname().context("cannot read the host name")?;
    Ok(name.to_string_lossy().into_owned())
}

/// A runtime, and a token that SIGTERM or SIGINT cancels; a second signal ends the process at once.
pub fn run_until_signal<F>(
    work: impl FnOnce(tokio_util::sync::CancellationToken) -> F,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(async {
        let stop = tokio_util::sync::CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let token = stop.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                if token.is_cancelled() {
                    std::process::exit(130);
                }
                tracing::info!("stopping; a second signal ends this at once");
                token.cancel();
            }
        });
        work(stop).await
    });
    // What still runs in the background has had its time.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    outcome
}
