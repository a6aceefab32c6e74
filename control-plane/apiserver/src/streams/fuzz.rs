//! Frames of strangers.
#![allow(clippy::unwrap_used)]

use balsa_fuzz::Fuzz;
use futures::FutureExt as _;

use super::{query, remote_ws, spdy, websocket};

/// What a future that reads from memory comes to; it never waits.
fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("memory is always ready")
}

#[test]
fn spdy_frames() {
    let headers = |name: &str, value: &str| spdy::Headers(vec![(name.into(), value.into())]);
    let mut encoder = spdy::Encoder::new();
    let frames = [
        spdy::Frame::SynStream {
            stream: 1,
            fin: false,
            headers: headers("streamtype", "error"),
        },
        spdy::Frame::SynStream {
            stream: 3,
            fin: true,
            headers: headers("streamtype", "stdin"),
        },
        spdy::Frame::Headers {
            stream: 1,
            fin: false,
            headers: headers("a", &"b".repeat(300)),
        },
        spdy::Frame::Data {
            stream: 3,
            fin: true,
            data: "hello".into(),
        },
        spdy::Frame::WindowUpdate {
            stream: 1,
            delta: 100,
        },
        spdy::Frame::Ping { id: 1 },
        spdy::Frame::RstStream {
            stream: 1,
            status: 5,
        },
        spdy::Frame::GoAway {
            last_stream: 3,
            status: 0,
        },
    ];
    let each: Vec<Vec<u8>> = frames.iter().map(|f| encoder.encode(f).unwrap()).collect();
    Fuzz::new("SPDY")
        .seeds([each.concat()])
        .seeds(each)
        .tokens([
            &b"\x80\x03\x00\x01"[..],
            b"\x00\x00\x00\x01",
            b"\x00\xff\xff\xff",
            b"\x78\xbb",
            b"\x00\x00\xff\xff",
        ])
        .runs(2_000)
        .run(|bytes| {
            let mut reader = spdy::Reader::new(bytes);
            let mut read = String::new();
            loop {
                match now(reader.next()) {
                    Ok(Some(frame)) => {
                        let text = format!("{frame:?}");
                        read.push_str(text.split([' ', '(']).next().unwrap_or_default());
                    }
                    Ok(None) => return read,
                    Err(why) => return read + &why.to_string(),
                }
            }
        });
}

#[test]
fn websocket_frames() {
    let mut session = Vec::new();
    let mut writer = websocket::Writer::client(&mut session);
    now(writer.binary(&[b"\x00hello"])).unwrap();
    now(writer.text(&[b"4{\"Width\":80}"])).unwrap();
    now(writer.ping(b"?")).unwrap();
    now(writer.binary(&[&[0; 70_000]])).unwrap();
    now(writer.close(1000)).unwrap();
    let dialects = remote_ws::PROTOCOLS.map(remote_ws::Dialect::of);
    Fuzz::new("WebSocket")
        .seeds([&session[..], &session[..40]])
        .tokens([
            &b"\x82\x85\x01\x02\x03\x04"[..],
            b"\x00\x80\0\0\0\0",
            b"\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\x82\xfe\xff\xff",
            b"\x89\x80\0\0\0\0",
        ])
        .longest(100_000)
        .runs(2_000)
        .run(|bytes| {
            let mut reader = websocket::Reader::server(bytes);
            let mut read = String::new();
            loop {
                match now(reader.next()) {
                    Ok(Some(message)) => {
                        for dialect in dialects {
                            if let Err(why) = remote_ws::decode(&message, dialect) {
                                read.push_str(&why.to_string());
                            }
                        }
                        let text = format!("{message:?}");
                        read.push_str(text.split('(').next().unwrap_or_default());
                    }
                    Ok(None) => return read,
                    Err(why) => return read + &why.to_string(),
                }
            }
        });
}

#[test]
fn queries() {
    Fuzz::new("stream query")
        .seeds([
            "stdin=true&stdout=1&tty=false&command=a&command=b%20c&container=d",
            "tailLines=5&sinceTime=2026-01-01T00:00:00Z&limitBytes=10&follow&stream=Stdout",
        ])
        .tokens(["&", "=", "%", "%ff", "+", "-1", "9999999999999999999"])
        .run(|bytes| {
            let Ok(uri) = format!("/x?{}", String::from_utf8_lossy(bytes)).parse() else {
                return "no URI".to_owned();
            };
            let query = query::Query::of(&uri);
            format!(
                "{:?} {:?}",
                query.stream_io().map_err(|s| s.code),
                query.log_options("p").map_err(|s| s.code)
            )
        });
}
