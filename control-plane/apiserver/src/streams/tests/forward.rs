//! port-forward.

use super::*;

/// Port 80 repeats what it gets until the end, others refuse.
fn echo_server(request: StreamRequest, far: DuplexStream) -> Result<(), Status> {
    let StreamRequest::PortForward { port, .. } = request else {
        panic!("not a port-forward")
    };
    if port != 80 {
        return Err(Status::new(500, "InternalError", "connection refused"));
    }
    tokio::spawn(async move {
        let (mut reader, mut writer) = tokio::io::split(far);
        tokio::io::copy(&mut reader, &mut writer).await.unwrap();
        writer.shutdown().await.unwrap();
    });
    Ok(())
}

async fn forward_and_check(mut client: SpdyClient) {
    let pair = |kind: &'static str, port: &'static str, id: &'static str| {
        [("streamtype", kind), ("port", port), ("requestid", id)]
    };
    client.open(1, &pair("error", "80", "0")).await;
    client.writer.fin(1).await.unwrap();
    client.open(3, &pair("data", "80", "0")).await;
    client
        .writer
        .data(3, Bytes::from_static(b"ping"))
        .await
        .unwrap();
    client.writer.fin(3).await.unwrap();
    assert_eq!(
        client.read_until_fin(1).await,
        [(3, Bytes::from_static(b"ping"))]
    );

    client.open(5, &pair("error", "81", "1")).await;
    client.writer.fin(5).await.unwrap();
    client.open(7, &pair("data", "81", "1")).await;
    let told = client.read_until_fin(5).await;
    assert_eq!(
        told,
        [(
            5,
            Bytes::from_static(b"error forwarding port 81 to pod web, uid u1: connection refused")
        )]
    );
}

#[tokio::test]
async fn port_forward_over_spdy_serves_connections_and_tells_errors() {
    let world = world(echo_server);
    let (connection, head) = world
        .ask("web", "portforward", "POST", "", SPDY_FORWARD)
        .await;
    assert!(
        head.starts_with("HTTP/1.1 101")
            && head.contains("x-stream-protocol-version: portforward.k8s.io"),
        "{head}"
    );
    forward_and_check(SpdyClient::new(connection)).await;
}

#[tokio::test]
async fn port_forward_with_spdy_inside_websocket() {
    let world = world(echo_server);
    let (connection, head) = world
        .ask(
            "web",
            "portforward",
            "GET",
            "",
            &websocket_head(portforward::TUNNEL),
        )
        .await;
    assert!(
        head.starts_with("HTTP/1.1 101") && head.contains("SPDY/3.1+portforward.k8s.io"),
        "{head}"
    );
    // The client's tunnel: bytes of the SPDY client to messages and back.
    let (read, write) = tokio::io::split(connection);
    let (mut reader, mut writer) = (
        websocket::Reader::client(read),
        websocket::Writer::client(write),
    );
    let (near, far) = tokio::io::duplex(4096);
    let (mut from_client, mut to_client) = tokio::io::split(far);
    tokio::spawn(async move {
        let mut buffer = [0; 100];
        while let Ok(n @ 1..) = from_client.read(&mut buffer).await {
            writer.binary(&[&buffer[..n]]).await.unwrap();
        }
    });
    tokio::spawn(async move {
        while let Ok(Some(websocket::Message::Binary(bytes))) = reader.next().await {
            to_client.write_all(&bytes).await.unwrap();
        }
    });
    forward_and_check(SpdyClient::new(near)).await;
}

#[tokio::test]
async fn port_forward_over_websocket_channels() {
    let world = world(echo_server);
    let head = websocket_head("v4.channel.k8s.io");
    let (connection, head) = world
        .ask("web", "portforward", "GET", "ports=80&ports=81", &head)
        .await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    let (read, write) = tokio::io::split(connection);
    let (mut reader, mut writer) = (
        websocket::Reader::client(read),
        websocket::Writer::client(write),
    );
    writer.binary(&[&[0], b"ping"]).await.unwrap();
    let mut got: Vec<(u8, Vec<u8>)> = Vec::new();
    while got.len() < 6 {
        let Some(websocket::Message::Binary(bytes)) = reader.next().await.unwrap() else {
            panic!("the session ended")
        };
        got.push((bytes[0], bytes[1..].to_vec()));
    }
    let of = |channel: u8| -> Vec<Vec<u8>> {
        let on = got.iter().filter(|(c, _)| *c == channel);
        on.map(|(_, bytes)| bytes.clone()).collect()
    };
    assert_eq!(of(0), [vec![80, 0], b"ping".to_vec()]);
    assert_eq!(of(1), [vec![80, 0]]);
    assert_eq!(of(2), [vec![81, 0]]);
    let told = b"error forwarding port 81 to pod web, uid u1: connection refused";
    assert_eq!(of(3), [vec![81, 0], told.to_vec()]);
}

#[tokio::test]
async fn a_session_ends_when_the_server_stops() {
    let world = world(echo_server);
    let (mut connection, _) = world
        .ask("web", "portforward", "POST", "", SPDY_FORWARD)
        .await;
    world.streams.stop.cancel();
    assert_eq!(connection.read(&mut [0; 1]).await.unwrap(), 0);
}
