//! Logs and proxies, which stay HTTP.

use super::*;

async fn get(
    world: &World,
    pod: &str,
    subresource: &str,
    tail: &str,
    uri: &str,
    headers: &[(&str, &str)],
) -> (http::response::Parts, Bytes) {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(world.dial(pod, subresource, tail)))
            .await
            .unwrap();
    tokio::spawn(connection);
    let mut request = Request::get(uri).header("host", "server");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = sender
        .send_request(request.body(http_body_util::Empty::<Bytes>::new()).unwrap())
        .await
        .unwrap();
    let (parts, body) = response.into_parts();
    (parts, body.collect().await.unwrap().to_bytes())
}

#[tokio::test]
async fn a_log_is_plain_text_with_the_options_asked_for() {
    let world = world(|_, mut far| {
        tokio::spawn(async move { far.write_all(b"line\n").await.unwrap() });
        Ok(())
    });
    let (parts, body) = get(
        &world,
        "web",
        "log",
        "",
        "/x?tailLines=5&timestamps=true&limitBytes=9",
        &[],
    )
    .await;
    assert_eq!(
        (
            parts.status.as_u16(),
            &parts.headers["content-type"],
            &body[..]
        ),
        (200, &"text/plain".parse().unwrap(), &b"line\n"[..])
    );
    let asked = world.nodes.asked.lock()[0].1.clone();
    let StreamRequest::Logs { options, .. } = asked else {
        panic!("not logs")
    };
    assert_eq!(
        (
            options.tail_lines,
            options.limit_bytes,
            options.timestamps,
            options.follow
        ),
        (Some(5), Some(9), true, false)
    );

    let (parts, body) = get(&world, "pending", "log", "", "/x", &[]).await;
    assert_eq!((parts.status.as_u16(), body.len()), (200, 0));
    for (query, code) in [
        ("tailLines=-1", 422),
        ("tailLines=x", 400),
        ("sinceSeconds=0", 422),
        ("stream=Both", 422),
        ("container=no", 400),
    ] {
        let (parts, _) = get(&world, "web", "log", "", &format!("/x?{query}"), &[]).await;
        assert_eq!(parts.status.as_u16(), code, "{query}");
    }
}

/// An HTTP server that tells what it was asked.
fn telling(request: StreamRequest, far: DuplexStream) -> Result<(), Status> {
    let StreamRequest::Dial { address } = request else {
        panic!("not a dial")
    };
    tokio::spawn(async move {
        let service = service_fn(move |request: Request<hyper::body::Incoming>| {
            let told = format!(
                "{address} {} auth={}",
                request.uri(),
                request.headers().contains_key("authorization")
            );
            async move { Ok::<_, std::convert::Infallible>(Response::new(upgrade::full(told))) }
        });
        hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(far), service)
            .await
            .unwrap();
    });
    Ok(())
}

#[tokio::test]
async fn a_pod_behind_the_proxy_gets_its_path_and_no_credentials() {
    let world = world(telling);
    let uri = "/api/v1/namespaces/default/pods/web/proxy/a/b?c=d";
    let (parts, body) = get(
        &world,
        "web",
        "proxy",
        "/a/b",
        uri,
        &[("authorization", "Bearer x")],
    )
    .await;
    assert_eq!(
        (parts.status.as_u16(), &body[..]),
        (200, &b"10.244.0.9:8080 /a/b?c=d auth=false"[..])
    );
    let (parts, _) = get(&world, "web", "proxy", "", "/x/proxy?y", &[]).await;
    assert_eq!(
        (parts.status.as_u16(), &parts.headers["location"]),
        (301, &"/x/proxy/?y".parse().unwrap())
    );
}

#[tokio::test]
async fn a_log_comes_as_messages_over_a_websocket() {
    for (protocol, text) in [
        ("binary.k8s.io", &b"line\n"[..]),
        ("base64.binary.k8s.io", b"bGluZQo="),
    ] {
        let world = world(|_, mut far| {
            tokio::spawn(async move { far.write_all(b"line\n").await.unwrap() });
            Ok(())
        });
        let (connection, head) = world
            .ask("web", "log", "GET", "", &websocket_head(protocol))
            .await;
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        assert!(head.contains(protocol), "{head}");
        let (read, write) = tokio::io::split(connection);
        let mut reader = websocket::Reader::client(read);
        let mut writer = websocket::Writer::client(write);
        let message = reader.next().await.unwrap().unwrap();
        let (websocket::Message::Text(got) | websocket::Message::Binary(got)) = message else {
            panic!("{message:?}")
        };
        assert_eq!(got[..], *text);
        assert_eq!(
            reader.next().await.unwrap(),
            Some(websocket::Message::Close)
        );
        writer.close(websocket::NORMAL).await.unwrap();
    }
}
