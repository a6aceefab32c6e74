//! The runtime's network plugin: what it starts for each pod is a small relay, and the work is done here.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use balsa_cni::{PLUGIN_NAMES, RELAY, SOCKET, WHOLE, relayed};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info_span, warn};

use crate::config::AgentConfig;
use crate::durable;
use crate::error::Error;

/// Most requests at a time; further ones wait.
const AT_ONCE: usize = 32;

/// Largest request in bytes: a plugin's configuration has some hundred.
const LARGEST: u64 = 1 << 20;

/// Time allowed to a relay to say what it wants.
const PATIENCE: Duration = Duration::from_secs(5);

/// Pause before the socket is opened again that could not be, or failed.
const RETRY: Duration = Duration::from_secs(1);

/// Puts programs where the runtime looks for its network plugins.
pub(crate) fn install_plugin(config: &AgentConfig) -> Result<(), Error> {
    let paths = config.paths();
    let (bin, whole) = (paths.cni_bin(), paths.cni().join(WHOLE));
    std::fs::create_dir_all(&whole).map_err(Error::file("make the folder", &whole))?;
    let program = std::fs::canonicalize(&config.cni_program)
        .map_err(Error::file("find", &config.cni_program))?;
    let relay = bin.join("relay");
    let target = if RELAY.is_empty() {
        &program
    } else {
        write_program(&relay).map_err(Error::file("write", &relay))?;
        &relay
    };
    for name in PLUGIN_NAMES {
        link(&program, &whole.join(name)).map_err(Error::file("link", whole.join(name)))?;
        link(target, &bin.join(name)).map_err(Error::file("link", bin.join(name)))?;
    }
    Ok(())
}

/// Writes the relay, whole or not at all: it may be running.
fn write_program(path: &Path) -> io::Result<()> {
    if durable::has(path, RELAY) {
        return Ok(());
    }
    let new = path.with_extension("new");
    std::fs::write(&new, RELAY)?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755))?;
    std::fs::rename(new, path)
}

/// Makes a link anew: an upgrade may have moved the program.
fn link(program: &Path, path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::os::unix::fs::symlink(program, path)
}

/// Does what relays ask for until stopped. `folder` is that of everything about the plugin.
pub(crate) async fn serve_plugin(folder: PathBuf, stop: CancellationToken) {
    let socket = folder.join(SOCKET);
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let served = tokio::select! {
            () = stop.cancelled() => break,
            served = serve(&socket, &slots) => served,
        };
        // The whole program does it meanwhile.
        if let Err(error) = served {
            warn!(%error, socket = %socket.display(), "cannot serve the network plugin, trying again");
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
    let _ = std::fs::remove_file(&socket);
}

async fn serve(socket: &Path, slots: &Arc<Semaphore>) -> io::Result<()> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    loop {
        let slot = Arc::clone(slots).acquire_owned().await;
        let (stream, _) = listener.accept().await?;
        let work = async move {
            if let Err(error) = converse(stream).await {
                debug!(%error, "a relay of the network plugin went away");
            }
            drop(slot);
        };
        tokio::spawn(work.instrument(info_span!("cni-request")));
    }
}

/// One request and its answer. What has begun is seen through even if nobody waits for it any more.
async fn converse(mut stream: UnixStream) -> io::Result<()> {
    let mut request = Vec::new();
    let mut whole = (&mut stream).take(LARGEST);
    tokio::time::timeout(PATIENCE, whole.read_to_end(&mut request)).await??;
    let answer = tokio::task::spawn_blocking(move || relayed(&request)).await;
    let answer = answer.map_err(io::Error::other)?;
    tokio::time::timeout(PATIENCE, stream.write_all(&answer)).await??;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::process::{Command, Stdio};

    use super::*;

    /// Runs the plugin as the runtime does.
    fn call(folder: &Path) -> (bool, String) {
        let output = Command::new(folder.join("cni/bin/balsa-cni"))
            .env("CNI_COMMAND", "VERSION")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        (output.status.success(), said)
    }

    #[tokio::test]
    async fn the_plugin_asks_the_agent_and_without_one_does_it_by_the_whole_program() {
        let dir = tempfile::tempdir().unwrap();
        // Stands in for the whole program.
        let program = dir.path().join("program");
        std::fs::write(&program, "#!/bin/sh\necho whole\n").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut config = AgentConfig::new("a", [10, 0, 0, 1].into(), dir.path());
        config.cni_program = program;
        let paths = config.paths();
        std::fs::create_dir_all(paths.cni_bin()).unwrap();
        install_plugin(&config).unwrap();
        install_plugin(&config).unwrap();
        let folder = dir.path().to_owned();
        let ask = || {
            let folder = folder.clone();
            tokio::task::spawn_blocking(move || call(&folder))
        };
        assert_eq!(ask().await.unwrap(), (true, "whole\n".to_owned()));
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve_plugin(paths.cni(), stop.clone()));
        while !paths.cni().join(SOCKET).exists() {
            tokio::task::yield_now().await;
        }
        let (success, said) = ask().await.unwrap();
        let by_agent = !RELAY.is_empty();
        assert_eq!(
            success && said.contains("supportedVersions"),
            by_agent,
            "{said}"
        );
        stop.cancel();
        serving.await.unwrap();
        assert_eq!(ask().await.unwrap(), (true, "whole\n".to_owned()));
    }
}
