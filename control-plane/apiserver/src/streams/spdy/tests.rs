#![allow(clippy::unwrap_used)]

use super::frame::{HEADER, payload_length};
use super::*;

fn headers(list: &[(&str, &str)]) -> Headers {
    Headers(
        list.iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
            .collect(),
    )
}

fn decode(decoder: &mut Decoder, bytes: &[u8]) -> Frame {
    let header: [u8; HEADER] = bytes[..HEADER].try_into().unwrap();
    assert_eq!(payload_length(header).unwrap(), bytes.len() - HEADER);
    decoder
        .decode(header, Bytes::copy_from_slice(&bytes[HEADER..]))
        .unwrap()
}

#[test]
fn every_frame_survives_the_round_trip_in_one_session() {
    let long = "x".repeat(20_000);
    let frames = [
        Frame::SynStream {
            stream: 1,
            fin: false,
            headers: headers(&[("streamtype", "error")]),
        },
        Frame::SynReply {
            stream: 1,
            fin: false,
            headers: Headers::default(),
        },
        Frame::SynStream {
            stream: 3,
            fin: true,
            headers: headers(&[("streamtype", "data"), ("port", "80"), ("requestid", "0")]),
        },
        Frame::Headers {
            stream: 3,
            fin: false,
            headers: headers(&[("long", &long)]),
        },
        Frame::Data {
            stream: 3,
            fin: true,
            data: Bytes::from_static(b"hello"),
        },
        Frame::RstStream {
            stream: 3,
            status: REFUSED_STREAM,
        },
        Frame::Ping { id: 7 },
        Frame::Settings,
        Frame::WindowUpdate {
            stream: 1,
            delta: 65536,
        },
        Frame::GoAway {
            last_stream: 3,
            status: 0,
        },
    ];
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
    for frame in frames {
        assert_eq!(
            decode(&mut decoder, &encoder.encode(&frame).unwrap()),
            frame
        );
    }
}

#[test]
fn headers_compressed_against_the_dictionary_are_read() {
    // A zlib stream that names the dictionary and copies from it, made by hand: fixed Huffman block, match
    // of length 10 at the distance of the dictionary's first "options" entry would be fragile to write out,
    // so the block is stored; what counts is that the header with its DICTID is skipped and the window set.
    let block = {
        let plain = [
            &1_u32.to_be_bytes()[..],
            &1_u32.to_be_bytes(),
            b"a",
            &1_u32.to_be_bytes(),
            b"b",
        ]
        .concat();
        let length = u16::try_from(plain.len()).unwrap();
        let mut bytes = vec![0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2, 0x00];
        bytes.extend(length.to_le_bytes());
        bytes.extend((!length).to_le_bytes());
        bytes.extend(plain);
        bytes
    };
    let mut payload = 1_u32.to_be_bytes().to_vec();
    payload.extend(block);
    let mut header = vec![0x80, 3, 0, 2, 0];
    header.extend(&u32::try_from(payload.len()).unwrap().to_be_bytes()[1..]);
    let frame = decode(&mut Decoder::new(), &[header, payload].concat());
    assert_eq!(
        frame,
        Frame::SynReply {
            stream: 1,
            fin: false,
            headers: headers(&[("a", "b")])
        }
    );
}

#[test]
fn foreign_bytes_are_errors_and_not_panics() {
    let cases: [&[u8]; 6] = [
        &[0x80, 2, 0, 1, 0, 0, 0, 0],
        &[0x80, 3, 0, 1, 0, 0, 0, 2, 0, 0],
        &[0x80, 3, 0, 2, 0, 0, 0, 4, 0, 0, 0, 1],
        &[
            0x80, 3, 0, 2, 0, 0, 0, 8, 0, 0, 0, 1, 0x78, 0x9c, 0xff, 0xff,
        ],
        &[0x80, 3, 0, 6, 0, 0, 0, 1, 9],
        &[0x80, 3, 0, 8, 0, 0, 0, 6, 0, 0, 0, 1, 0x78, 0xbb],
    ];
    for case in cases {
        let header: [u8; HEADER] = case[..HEADER].try_into().unwrap();
        let payload = Bytes::copy_from_slice(&case[HEADER..]);
        Decoder::new().decode(header, payload).unwrap_err();
    }
    payload_length([0, 0, 0, 1, 0, 0xff, 0xff, 0xff]).unwrap_err();
}

#[tokio::test]
async fn reader_and_writer_talk_over_a_pipe_and_end_cleanly() {
    let (a, b) = tokio::io::duplex(64);
    let (mut writer, mut reader) = (Writer::new(a), Reader::new(b));
    let send = async {
        writer.reply(1).await.unwrap();
        writer.data(1, Bytes::from(vec![7; 1000])).await.unwrap();
        writer.fin(1).await.unwrap();
        writer.finish(1).await.unwrap();
    };
    let receive = async {
        let mut frames = Vec::new();
        while let Some(frame) = reader.next().await.unwrap() {
            frames.push(frame);
        }
        frames
    };
    let ((), frames) = tokio::join!(send, receive);
    assert_eq!(frames.len(), 4);
    assert!(
        matches!(&frames[1], Frame::Data { stream: 1, fin: false, data } if data.len() == 1000)
    );
    assert_eq!(
        frames[3],
        Frame::GoAway {
            last_stream: 1,
            status: 0
        }
    );
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_the_decoder_panic(bytes: Vec<u8>, kind in 1..10_u8) {
        let mut decoder = Decoder::new();
        // A control frame of a known kind with foreign content, and a header block that is none.
        let header = [0x80, 3, 0, kind, 0, 0, 0, 0];
        let _ = decoder.decode(header, Bytes::from(bytes.clone()));
        if let Some(header) = bytes.first_chunk::<HEADER>() {
            let _ = payload_length(*header);
            let _ = Decoder::new().decode(*header, Bytes::copy_from_slice(&bytes[HEADER..]));
        }
    }
}
