#![allow(clippy::unwrap_used)]

use crate::protocol::{Channel, MAX_FRAME};
use crate::wire::{read_frame, read_message, write_frame, write_message};

#[tokio::test]
async fn a_long_payload_is_split_into_frames_and_arrives_whole() {
    let (mut a, mut b) = tokio::io::duplex(1 << 20);
    let payload: Vec<u8> = (0..MAX_FRAME * 2 + 7).map(|i| (i % 251) as u8).collect();
    let sent = payload.clone();
    let writer = tokio::spawn(async move {
        write_frame(&mut a, Channel::STDOUT, &sent).await.unwrap();
    });
    let mut got = Vec::new();
    while let Some((channel, part)) = read_frame(&mut b).await.unwrap() {
        assert_eq!(channel, Channel::STDOUT);
        got.extend_from_slice(&part);
    }
    writer.await.unwrap();
    assert_eq!(got, payload);
}

#[tokio::test]
async fn a_frame_longer_than_the_limit_is_refused_before_it_is_read() {
    let mut bytes: &[u8] = &[1, 0xff, 0xff, 0xff, 0xff, 0];
    assert!(read_frame(&mut bytes).await.is_err());
}

#[tokio::test]
async fn a_stream_cut_inside_a_frame_is_an_error_and_not_an_end() {
    let mut bytes: &[u8] = &[1, 0, 0, 0, 9, b'x'];
    assert!(read_frame(&mut bytes).await.is_err());
}

#[tokio::test]
async fn a_message_survives_the_wire_and_garbage_does_not_pass() {
    let mut buffer = Vec::new();
    write_message(&mut buffer, &vec!["a", "b"]).await.unwrap();
    let back: Vec<String> = read_message(&mut buffer.as_slice()).await.unwrap();
    assert_eq!(back, ["a", "b"]);
    let mut garbage: &[u8] = &[0, 0, 0, 2, b'{', b'x'];
    assert!(read_message::<_, Vec<String>>(&mut garbage).await.is_err());
}
