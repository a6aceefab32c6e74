//! TCP connections made for a server: into a pod's network namespace, or to an address of the cluster.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use balsa_netlink::Namespace;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Refusal;

const CONNECT: Duration = Duration::from_secs(10);

/// Connects to a port of the loopback inside a network namespace.
pub async fn connect_inside(netns: Option<PathBuf>, port: u16) -> Result<TcpStream, Refusal> {
    let connected = tokio::task::spawn_blocking(move || match netns {
        // The socket stays in the namespace that it was made in.
        Some(path) => Namespace::open(&path)
            .and_then(|namespace| namespace.run(|| loopback(port)))
            .map_err(Refusal::internal)?,
        None => loopback(port),
    });
    let socket = connected.await.map_err(Refusal::internal)??;
    socket.set_nonblocking(true).map_err(Refusal::internal)?;
    TcpStream::from_std(socket).map_err(Refusal::internal)
}

fn loopback(port: u16) -> Result<std::net::TcpStream, Refusal> {
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    let first = match std::net::TcpStream::connect_timeout(&v4, CONNECT) {
        Ok(socket) => return Ok(socket),
        Err(error) => error,
    };
    std::net::TcpStream::connect_timeout(&v6, CONNECT).map_err(|second| {
        Refusal::internal(format!("cannot connect to port {port} in the pod: {v4}: {first}; {v6}: {second}"))
    })
}

/// Connects to `ip:port` from the node.
pub async fn dial(address: &str) -> Result<TcpStream, Refusal> {
    let address: SocketAddr =
        address.parse().map_err(|_| Refusal::bad_request(format!("{address:?} is no address with a port")))?;
    let failed = |why: String| Refusal {
        code: 503,
        reason: "ServiceUnavailable",
        message: format!("cannot connect to {address}: {why}"),
    };
    let socket = tokio::time::timeout(CONNECT, TcpStream::connect(address))
        .await
        .map_err(|_| failed("no answer".to_owned()))?
        .map_err(|error| failed(error.to_string()))?;
    // Requests of an API server are small and wait for their answer.
    let _ = socket.set_nodelay(true);
    Ok(socket)
}

/// Copies both ways until both ends have closed; each end's close is passed on by itself.
pub async fn splice<R, W>(mut socket: TcpStream, mut reader: R, writer: &mut W)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (mut from_pod, mut to_pod) = socket.split();
    let up = async {
        let copied = tokio::io::copy(&mut reader, &mut to_pod).await;
        let _ = to_pod.shutdown().await;
        copied
    };
    let down = async {
        let copied = tokio::io::copy(&mut from_pod, writer).await;
        let _ = writer.shutdown().await;
        copied
    };
    // A connection that breaks on either side is over; there is nobody to tell but its ends, which know.
    let _ = tokio::try_join!(up, down);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn the_end_of_one_direction_does_not_cut_the_other() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut all = String::new();
            socket.read_to_string(&mut all).await.unwrap();
            socket.write_all(format!("got {all}").as_bytes()).await.unwrap();
        });
        let socket = dial(&address).await.unwrap();
        let mut out = Vec::new();
        splice(socket, &b"ping"[..], &mut out).await;
        server.await.unwrap();
        assert_eq!(out, b"got ping");
    }

    #[tokio::test]
    async fn nobody_listening_is_told_with_the_address() {
        let refusal = connect_inside(None, 1).await.unwrap_err();
        assert!(refusal.message.contains("127.0.0.1:1"), "{}", refusal.message);
    }
}
