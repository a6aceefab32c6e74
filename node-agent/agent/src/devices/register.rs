//! Where plugins register.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use balsa_device_plugin::v1beta1::registration_server::{Registration, RegistrationServer};
use balsa_device_plugin::v1beta1::{Empty, RegisterRequest};
use balsa_device_plugin::{NODE_SOCKET, VERSION};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use super::Devices;
use super::plugin::Plugin;

/// Pause before the socket is opened again that could not be, or failed.
const RETRY: Duration = Duration::from_secs(5);

/// Answers plugins.
struct Desk {
    devices: Arc<Devices>,
    stop: CancellationToken,
}

impl Devices {
    /// Lets plugins register until stopped.
    pub(crate) async fn serve(self: Arc<Self>, stop: CancellationToken) {
        // Plugins watch their own sockets, or the node's: gone sockets tell them of a new agent.
        if let Err(error) = remove_sockets(&self.folder) {
            warn!(%error, folder = %self.folder.display(), "cannot remove old sockets of device plugins");
        }
        loop {
            let served = self.try_serve(&stop).await;
            if stop.is_cancelled() {
                return;
            }
            if let Err(error) = served {
                warn!(error, "device plugins cannot register, trying again");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    async fn try_serve(self: &Arc<Self>, stop: &CancellationToken) -> Result<(), String> {
        let socket = self.folder.join(NODE_SOCKET);
        let listener = listen(&socket).map_err(|error| format!("{}: {error}", socket.display()))?;
        let desk = Desk {
            devices: Arc::clone(self),
            stop: stop.clone(),
        };
        tonic::transport::Server::builder()
            .add_service(RegistrationServer::new(desk))
            .serve_with_incoming_shutdown(
                UnixListenerStream::new(listener),
                stop.clone().cancelled_owned(),
            )
            .await
            .map_err(|error| error.to_string())
    }
}

pub(super) fn listen(socket: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = socket.parent() {
        std::fs::create_dir_all(folder)?;
    }
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(socket)
}

fn remove_sockets(folder: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_socket() {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[tonic::async_trait]
impl Registration for Desk {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        let resource = request.resource_name.clone();
        let taken = self.take_on(request).await;
        if let Err(status) = &taken {
            warn!(
                resource,
                error = status.message(),
                "refused a device plugin"
            );
        }
        taken.map(|()| Response::new(Empty {}))
    }
}

impl Desk {
    async fn take_on(&self, request: RegisterRequest) -> Result<(), Status> {
        check(&request).map_err(Status::invalid_argument)?;
        let socket = self.devices.folder.join(&request.endpoint);
        let plugin = Plugin::connect(&socket, request.options).await?;
        info!(
            resource = request.resource_name,
            endpoint = request.endpoint,
            "a device plugin has registered"
        );
        let stop = self.stop.child_token();
        self.devices.connect(&request.resource_name, plugin, stop);
        Ok(())
    }
}

/// The error is for the plugin, in upstream's words.
fn check(request: &RegisterRequest) -> Result<(), String> {
    if request.version != VERSION {
        return Err(format!(
            "requested API version \"{}\" is not supported by kubelet. Supported version is [\"{VERSION}\"]",
            request.version
        ));
    }
    if !is_extended(&request.resource_name) {
        return Err(format!(
            "the ResourceName \"{}\" is invalid",
            request.resource_name
        ));
    }
    let plain = Path::new(&request.endpoint).components().count() == 1
        && !matches!(request.endpoint.as_str(), "." | ".." | NODE_SOCKET);
    if !plain {
        return Err(format!(
            "the endpoint \"{}\" is not the name of a socket in the folder of device plugins",
            request.endpoint
        ));
    }
    Ok(())
}

/// Is it the name of a resource of somebody else's domain, such as `example.com/gpu`?
fn is_extended(name: &str) -> bool {
    let Some((domain, rest)) = name.split_once('/') else {
        return false;
    };
    let theirs = domain != "kubernetes.io" && !domain.ends_with(".kubernetes.io");
    let letters = |text: &str| {
        let mut bytes = text.bytes();
        !text.is_empty()
            && text.len() <= 63
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    let domain_fits = !domain.is_empty()
        && domain.len() <= 253
        && domain.bytes().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte)
        });
    theirs && !domain.starts_with("requests.") && domain_fits && letters(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plugins_of_this_version_with_resources_of_their_own_domain_are_taken() {
        let request = |version: &str, resource_name: &str, endpoint: &str| RegisterRequest {
            version: version.to_owned(),
            endpoint: endpoint.to_owned(),
            resource_name: resource_name.to_owned(),
            options: None,
        };
        assert!(check(&request(VERSION, "example.com/gpu", "gpu.sock")).is_ok());
        for (version, resource, endpoint) in [
            ("v1alpha", "example.com/gpu", "gpu.sock"),
            (VERSION, "gpu", "gpu.sock"),
            (VERSION, "kubernetes.io/gpu", "gpu.sock"),
            (VERSION, "example.com/", "gpu.sock"),
            (VERSION, "example.com/a/b", "gpu.sock"),
            (VERSION, "example.com/gpu", "../gpu.sock"),
            (VERSION, "example.com/gpu", "/gpu.sock"),
            (VERSION, "example.com/gpu", ""),
            (VERSION, "example.com/gpu", "kubelet.sock"),
        ] {
            let checked = check(&request(version, resource, endpoint));
            assert!(checked.is_err(), "{version} {resource} {endpoint}");
        }
    }
}
