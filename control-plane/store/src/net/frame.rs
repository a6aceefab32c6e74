//! Messages as they are in a pipe: lengths before bytes, nothing else.
//!
//! ```text
//! u32 length of what follows, 0: a sign of life     (all numbers little-endian)
//! u32 length, head
//! u32 length, part        as many as there are
//! ```

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::MAX_MESSAGE;
use super::proto::Message;

const LENGTH: usize = 4;

/// What a pipe carries.
#[derive(Debug, PartialEq)]
pub(super) enum Frame {
    /// Says only that the sender is there.
    Pulse,
    Message(Message),
}

pub(super) fn pulse(to: &mut BytesMut) {
    to.put_u32_le(0);
}

/// Appends a message.
///
/// # Errors
/// It is larger than a receiver takes.
pub(super) fn encode(message: &Message, to: &mut BytesMut) -> io::Result<()> {
    let parts = message.parts.iter().map(|part| LENGTH + part.len());
    let length = LENGTH + message.head.len() + parts.sum::<usize>();
    let announced = u32::try_from(length).ok().filter(|_| length <= MAX_MESSAGE);
    let announced = announced.ok_or_else(|| malformed("a message is too large"))?;
    to.reserve(LENGTH + length);
    to.put_u32_le(announced);
    for piece in std::iter::once(&message.head).chain(&message.parts) {
        // Shorter than the whole, which fits.
        to.put_u32_le(u32::try_from(piece.len()).unwrap_or(u32::MAX));
        to.put_slice(piece);
    }
    Ok(())
}

/// Takes the first frame of what was received; `None`: it is not all there yet.
///
/// # Errors
/// The bytes are no frame.
pub(super) fn decode(from: &mut BytesMut) -> io::Result<Option<Frame>> {
    let Some(length) = from.first_chunk::<LENGTH>() else {
        return Ok(None);
    };
    let length = u32::from_le_bytes(*length) as usize;
    if length > MAX_MESSAGE {
        return Err(malformed("a message is too large"));
    }
    if from.len() < LENGTH + length {
        from.reserve(LENGTH + length - from.len());
        return Ok(None);
    }
    from.advance(LENGTH);
    if length == 0 {
        return Ok(Some(Frame::Pulse));
    }
    let mut body = from.split_to(length).freeze();
    let head = piece(&mut body)?;
    let mut parts = Vec::new();
    while !body.is_empty() {
        parts.push(piece(&mut body)?);
    }
    Ok(Some(Frame::Message(Message { head, parts })))
}

fn piece(body: &mut Bytes) -> io::Result<Bytes> {
    let length = body.try_get_u32_le().map(|length| length as usize);
    match length {
        Ok(length) if length <= body.len() => Ok(body.split_to(length)),
        _ => Err(malformed("a piece is longer than its message")),
    }
}

fn malformed(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn message(head: &'static [u8], parts: &[&'static [u8]]) -> Message {
        Message {
            head: Bytes::from_static(head),
            parts: parts.iter().copied().map(Bytes::from_static).collect(),
        }
    }

    #[test]
    fn messages_survive_however_the_bytes_arrive() {
        let messages = [
            message(b"", &[]),
            message(b"head", &[]),
            message(b"", &[b"", b"part"]),
            message(b"head", &[b"one", b"two"]),
        ];
        let mut sent = BytesMut::new();
        for message in &messages {
            encode(message, &mut sent).unwrap();
            pulse(&mut sent);
        }
        let (mut received, mut buffer) = (Vec::new(), BytesMut::new());
        for byte in sent {
            buffer.put_u8(byte);
            while let Some(frame) = decode(&mut buffer).unwrap() {
                received.push(frame);
            }
        }
        let expected = messages.map(|message| [Frame::Message(message), Frame::Pulse]);
        assert_eq!(received, expected.into_iter().flatten().collect::<Vec<_>>());
        assert!(buffer.is_empty());
    }

    #[test]
    fn a_length_that_is_too_large_is_refused_before_the_bytes_are_awaited() {
        let mut buffer = BytesMut::from(&u32::MAX.to_le_bytes()[..]);
        assert!(decode(&mut buffer).is_err());
    }

    proptest! {
        #[test]
        fn foreign_bytes_are_frames_or_errors(bytes: Vec<u8>) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = decode(&mut buffer) {}
        }
    }
}
