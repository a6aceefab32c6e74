//! The node's network: what the runtime needs to connect pods, and the overlay, Services and DNS.

use std::path::Path;

use balsa_client::Informer;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::config::AgentConfig;
use crate::error::Error;

/// Puts links to this program where the runtime looks for its network plugins.
pub(crate) fn install_plugin(config: &AgentConfig) -> Result<(), Error> {
    let dir = config.paths().cni_bin();
    let program = std::fs::canonicalize(&config.cni_program).map_err(Error::file("find", &config.cni_program))?;
    for name in ["balsa-cni", "loopback"] {
        link(&program, &dir.join(name)).map_err(Error::file("link", dir.join(name)))?;
    }
    Ok(())
}

/// Makes a link anew: an upgrade may have moved the program.
fn link(program: &Path, path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::os::unix::fs::symlink(program, path)
}

/// Waits for the node's pod CIDR, tells the runtime's plugin, and starts the overlay, the Services and DNS.
/// False when stopped before.
pub(crate) async fn set_up(
    config: &AgentConfig,
    _client: &kube::Client,
    _nodes: &Informer<Node>,
    _services: &Informer<Service>,
    _pods: &Informer<Pod>,
    _stop: &CancellationToken,
) -> Result<bool, Error> {
    let path = config.paths().cni_conf().join("10-balsa.conflist");
    let conf = json!({
        "cniVersion": "0.4.0",
        "name": "balsa",
        "plugins": [{"type": "balsa-cni"}],
    });
    std::fs::write(&path, conf.to_string()).map_err(Error::file("write", &path))?;
    Ok(true)
}
