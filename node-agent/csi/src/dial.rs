//! Reaching services on unix sockets.

use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// Longest path that fits into a socket's address on Linux.
const LONGEST: usize = 107;

/// Time allowed to a socket to take the connection.
const PATIENCE: Duration = Duration::from_secs(5);

/// A channel to the service on a socket; it is dialled on first use, and again after the service was restarted.
///
/// Deadlines are the caller's business.
#[must_use]
pub fn channel(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    // The address is never used: the connector dials the socket.
    Endpoint::from_static("http://[::]")
        .connect_timeout(PATIENCE)
        .connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { connect(&socket).await.map(TokioIo::new) }
        }))
}

async fn connect(socket: &Path) -> io::Result<UnixStream> {
    if socket.as_os_str().len() <= LONGEST {
        return UnixStream::connect(socket).await;
    }
    // The folders of an agent may be deep and drivers' names long: by its folder's descriptor any socket is near.
    let (Some(folder), Some(name)) = (socket.parent(), socket.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let folder = tokio::fs::File::open(folder).await?;
    let near = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
    UnixStream::connect(near).await
}
