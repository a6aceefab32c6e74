//! exec and attach.

use super::*;

/// A command that repeats its input (in capitals), tells terminal sizes on stderr, and exits with 7 at the
/// input's end.
fn shouting(_request: StreamRequest, mut far: DuplexStream) -> Result<(), Status> {
    tokio::spawn(async move {
        while let Some((channel, payload)) = frames::read(&mut far).await.unwrap() {
            match channel {
                Channel::STDIN => {
                    frames::write(&mut far, Channel::STDOUT, &payload.to_ascii_uppercase())
                        .await
                        .unwrap()
                }
                Channel::RESIZE => frames::write(&mut far, Channel::STDERR, &payload)
                    .await
                    .unwrap(),
                Channel::CLOSE => {
                    assert_eq!(payload[..], [Channel::STDIN]);
                    break;
                }
                other => panic!("channel {other}"),
            }
        }
        frames::write(&mut far, Channel::STATUS, exit(7).to_string().as_bytes())
            .await
            .unwrap();
    });
    Ok(())
}

const EXEC: &str = "command=sh&command=-c&stdin=true&stdout=true&stderr=true";

#[tokio::test]
async fn exec_over_websocket_carries_input_output_and_exit_code() {
    let world = world(shouting);
    let (connection, head) = world
        .ask(
            "web",
            "exec",
            "GET",
            EXEC,
            &websocket_head("v5.channel.k8s.io"),
        )
        .await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert!(
        head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=") && head.contains("v5.channel.k8s.io"),
        "{head}"
    );
    let (read, write) = tokio::io::split(connection);
    let (mut reader, mut writer) = (
        websocket::Reader::client(read),
        websocket::Writer::client(write),
    );
    writer.binary(&[&[Channel::STDIN], b"hello"]).await.unwrap();
    writer.ping(b"are you there").await.unwrap();
    writer
        .binary(&[&[Channel::CLOSE, Channel::STDIN]])
        .await
        .unwrap();
    let mut output = Vec::new();
    loop {
        match reader.next().await.unwrap() {
            Some(websocket::Message::Binary(bytes)) => output.push(bytes),
            Some(websocket::Message::Close) => break,
            Some(websocket::Message::Pong) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(output[0], Bytes::from_static(b"\x01HELLO"));
    assert_eq!(output[1][0], Channel::STATUS);
    assert_eq!(
        serde_json::from_slice::<Value>(&output[1][1..]).unwrap(),
        exit(7)
    );
    let (node, request) = world.nodes.asked.lock()[0].clone();
    let StreamRequest::Exec {
        target,
        command,
        io,
    } = request
    else {
        panic!("not exec")
    };
    assert_eq!(
        (
            node.as_str(),
            target.container.as_str(),
            target.uid.as_str()
        ),
        ("a1", "main", "u1")
    );
    assert_eq!(command, ["sh", "-c"]);
    assert!(io.stdin && io.stdout && io.stderr && !io.tty);
}

#[tokio::test]
async fn exec_in_base64_is_open_with_an_empty_message() {
    let world = world(shouting);
    let (connection, _) = world
        .ask(
            "web",
            "exec",
            "GET",
            EXEC,
            &websocket_head("v4.base64.channel.k8s.io"),
        )
        .await;
    let (read, write) = tokio::io::split(connection);
    let (mut reader, mut writer) = (
        websocket::Reader::client(read),
        websocket::Writer::client(write),
    );
    assert_eq!(
        reader.next().await.unwrap(),
        Some(websocket::Message::Text("1".into()))
    );
    writer.text(&[b"0aGk="]).await.unwrap();
    assert_eq!(
        reader.next().await.unwrap(),
        Some(websocket::Message::Text("1SEk=".into()))
    );
}

#[tokio::test]
async fn exec_over_spdy_carries_input_output_sizes_and_exit_code() {
    let world = world(shouting);
    let query = "command=sh&stdin=true&stdout=true&stderr=true";
    let (connection, head) = world.ask("web", "exec", "POST", query, SPDY_V4).await;
    assert!(
        head.starts_with("HTTP/1.1 101")
            && head.contains("x-stream-protocol-version: v4.channel.k8s.io"),
        "{head}"
    );
    let mut client = SpdyClient::new(connection);
    for (stream, kind) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "stderr")] {
        client.open(stream, &[("streamtype", kind)]).await;
    }
    client
        .writer
        .data(3, Bytes::from_static(b"abc"))
        .await
        .unwrap();
    client.writer.send(&Frame::Ping { id: 1 }).await.unwrap();
    client.writer.fin(3).await.unwrap();
    let output = client.read_until_fin(1).await;
    assert_eq!(output[0], (5, Bytes::from_static(b"ABC")));
    assert_eq!(output[1].0, 1);
    assert_eq!(
        serde_json::from_slice::<Value>(&output[1].1).unwrap(),
        exit(7)
    );
    assert_eq!(
        client.reader.next().await.unwrap(),
        Some(Frame::GoAway {
            last_stream: 7,
            status: 0
        })
    );
}

#[tokio::test]
async fn terminal_sizes_are_told_one_by_one() {
    let world = world(shouting);
    let query = "command=sh&stdin=true&stdout=true&stderr=true&tty=true";
    let (connection, _) = world
        .ask(
            "web",
            "exec",
            "GET",
            query,
            &websocket_head("v5.channel.k8s.io"),
        )
        .await;
    let (read, write) = tokio::io::split(connection);
    let (mut reader, mut writer) = (
        websocket::Reader::client(read),
        websocket::Writer::client(write),
    );
    writer
        .binary(&[
            &[Channel::RESIZE],
            b"{\"Width\":80,\"Height\":24}\n{\"Width\":",
        ])
        .await
        .unwrap();
    writer
        .binary(&[&[Channel::RESIZE], b"90,\"Height\":25}\n"])
        .await
        .unwrap();
    for width in [80, 90] {
        let Some(websocket::Message::Binary(bytes)) = reader.next().await.unwrap() else {
            panic!("no size")
        };
        assert_eq!(
            serde_json::from_slice::<Value>(&bytes[1..]).unwrap()["Width"],
            width
        );
    }
    assert!(
        matches!(world.nodes.asked.lock()[0].1, StreamRequest::Exec { io, .. } if io.tty && !io.stderr)
    );
}

#[tokio::test]
async fn a_lost_node_is_told_as_the_outcome() {
    let world = world(|_, far| {
        drop(far);
        Ok(())
    });
    let (connection, _) = world
        .ask(
            "web",
            "attach",
            "GET",
            "stdout=1",
            &websocket_head("v5.channel.k8s.io"),
        )
        .await;
    let mut reader = websocket::Reader::client(connection);
    let Some(websocket::Message::Binary(bytes)) = reader.next().await.unwrap() else {
        panic!("no outcome")
    };
    let outcome: Value = serde_json::from_slice(&bytes[1..]).unwrap();
    assert_eq!(
        (bytes[0], &outcome["reason"]),
        (Channel::STATUS, &json!("InternalError"))
    );
}

#[tokio::test]
async fn a_command_that_ignores_much_input_still_ends_the_session() {
    let world = world(|_, mut far| {
        tokio::spawn(async move {
            frames::read(&mut far).await.unwrap();
            let success = json!({"status": "Success"}).to_string();
            frames::write(&mut far, Channel::STATUS, success.as_bytes())
                .await
                .unwrap();
        });
        Ok(())
    });
    let (connection, _) = world
        .ask(
            "web",
            "exec",
            "GET",
            EXEC,
            &websocket_head("v5.channel.k8s.io"),
        )
        .await;
    let (read, write) = tokio::io::split(connection);
    let mut writer = websocket::Writer::client(write);
    let flood = tokio::spawn(async move {
        let chunk = vec![b'x'; 32 * 1024];
        while writer.binary(&[&[Channel::STDIN], &chunk]).await.is_ok() {}
    });
    let mut reader = websocket::Reader::client(read);
    let Some(websocket::Message::Binary(bytes)) = reader.next().await.unwrap() else {
        panic!("no outcome")
    };
    assert_eq!(bytes[0], Channel::STATUS);
    assert_eq!(
        reader.next().await.unwrap(),
        Some(websocket::Message::Close)
    );
    drop(reader);
    flood.abort();
}

#[tokio::test]
async fn bad_requests_are_refused_before_the_upgrade_in_known_words() {
    let world = world(|_, _| {
        Err(Status::new(
            503,
            "ServiceUnavailable",
            "node \"a1\" is not connected",
        ))
    });
    for (pod, query, code, words) in [
        ("none", EXEC, 404, "pods \"none\" not found"),
        (
            "pending",
            EXEC,
            400,
            "pod pending does not have a host assigned",
        ),
        (
            "two",
            EXEC,
            400,
            "a container name must be specified for pod two, choose one of: [a b]",
        ),
        (
            "two",
            "container=c&command=x&stdout=1",
            400,
            "container c is not valid for pod two",
        ),
        (
            "web",
            "command=x",
            400,
            "you must specify at least 1 of stdin, stdout, stderr",
        ),
        (
            "web",
            "stdout=true",
            400,
            "you must specify at least one command for the container",
        ),
        ("web", EXEC, 503, "node \"a1\" is not connected"),
    ] {
        assert_eq!(
            world.refusal(pod, "exec", query).await,
            (code, words.to_owned())
        );
    }
    let (_, head) = world.ask("web", "exec", "POST", EXEC, "").await;
    assert!(head.starts_with("HTTP/1.1 400"), "{head}");
    let unknown = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v9.channel.k8s.io\r\n";
    let (_, head) = world.ask("web", "exec", "POST", EXEC, unknown).await;
    assert!(
        head.starts_with("HTTP/1.1 403")
            && head.contains("x-accepted-stream-protocol-versions: v4.channel.k8s.io"),
        "{head}"
    );
}
