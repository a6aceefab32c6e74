//! SPDY/3.1 frames, as bytes and as values. Both directions, so that tests can play the client.
//!
//! Source: the SPDY 3 and 3.1 drafts. A control frame is `1|version(15)|type(16)|flags(8)|length(24)`, a
//! data frame `0|stream(31)|flags(8)|length(24)`.

use bytes::{Buf, BufMut, Bytes};

use super::headers::{Deflater, Headers, Inflater};

const VERSION: u16 = 3;
const FLAG_FIN: u8 = 1;
const STREAM_MASK: u32 = 0x7fff_ffff;
/// Bytes before a frame's payload.
pub(super) const HEADER: usize = 8;
/// Largest payload taken, in bytes. Clients send at most 32 KiB in practice.
pub(super) const MAX_PAYLOAD: usize = 4 * 1024 * 1024;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// RST_STREAM status for a stream that is not wanted.
pub(crate) const REFUSED_STREAM: u32 = 3;

/// Bytes that are not SPDY.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed SPDY: {0}")]
pub(crate) struct Malformed(pub(crate) &'static str);

impl From<Malformed> for std::io::Error {
    fn from(malformed: Malformed) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, malformed)
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    /// A new stream.
    SynStream {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    /// A stream is accepted.
    SynReply {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    /// A stream ends at once, both ways.
    RstStream { stream: u32, status: u32 },
    /// Is ignored.
    Settings,
    /// To be sent back by whoever did not make the id (clients' are odd).
    Ping { id: u32 },
    /// No new streams.
    GoAway { last_stream: u32, status: u32 },
    /// More headers.
    Headers {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    /// Flow control. The clients there are neither send nor heed it: TCP's serves for the connection.
    WindowUpdate { stream: u32, delta: u32 },
    /// Payload; `fin` closes the sender's half.
    Data { stream: u32, fin: bool, data: Bytes },
    /// Of a type unknown, which is skipped.
    Unknown { kind: u16 },
}

/// Payload length that a frame's first eight bytes announce.
pub(super) fn payload_length(header: [u8; HEADER]) -> Result<usize, Malformed> {
    let length = u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize;
    if length > MAX_PAYLOAD {
        Err(Malformed("frame is too large"))
    } else {
        Ok(length)
    }
}

/// Bytes to frames.
pub(crate) struct Decoder(Inflater);

impl Decoder {
    pub(crate) fn new() -> Self {
        Self(Inflater::new())
    }

    /// Reads one frame. Must see every frame of its direction, for the headers' compression.
    pub(super) fn decode(
        &mut self,
        header: [u8; HEADER],
        mut payload: Bytes,
    ) -> Result<Frame, Malformed> {
        let first = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
        let fin = header[4] & FLAG_FIN != 0;
        if first & !STREAM_MASK == 0 {
            return Ok(Frame::Data {
                stream: first,
                fin,
                data: payload,
            });
        }
        let (version, kind) = (
            (first & STREAM_MASK) >> 16,
            u16::from_be_bytes([header[2], header[3]]),
        );
        if version != u32::from(VERSION) {
            return Err(Malformed("another version than 3"));
        }
        let mut number = || {
            payload
                .try_get_u32()
                .map_err(|_| Malformed("frame is cut off"))
        };
        Ok(match kind {
            SYN_STREAM => {
                let (stream, _associated) = (number()? & STREAM_MASK, number()?);
                payload
                    .try_get_u16()
                    .map_err(|_| Malformed("frame is cut off"))?;
                Frame::SynStream {
                    stream,
                    fin,
                    headers: self.0.headers(&payload)?,
                }
            }
            SYN_REPLY => {
                let stream = number()? & STREAM_MASK;
                Frame::SynReply {
                    stream,
                    fin,
                    headers: self.0.headers(&payload)?,
                }
            }
            HEADERS => {
                let stream = number()? & STREAM_MASK;
                Frame::Headers {
                    stream,
                    fin,
                    headers: self.0.headers(&payload)?,
                }
            }
            RST_STREAM => Frame::RstStream {
                stream: number()? & STREAM_MASK,
                status: number()?,
            },
            SETTINGS => Frame::Settings,
            PING => Frame::Ping { id: number()? },
            GOAWAY => Frame::GoAway {
                last_stream: number()? & STREAM_MASK,
                status: number()?,
            },
            WINDOW_UPDATE => Frame::WindowUpdate {
                stream: number()? & STREAM_MASK,
                delta: number()?,
            },
            kind => Frame::Unknown { kind },
        })
    }
}

/// Frames to bytes.
pub(crate) struct Encoder(Deflater);

impl Encoder {
    pub(crate) fn new() -> Self {
        Self(Deflater::new())
    }

    /// Writes one frame. Frames must be sent in the order they were encoded in.
    pub(crate) fn encode(&mut self, frame: &Frame) -> Result<Vec<u8>, Malformed> {
        Ok(match frame {
            Frame::SynStream {
                stream,
                fin,
                headers,
            } => {
                let mut payload = Vec::new();
                payload.put_u32(*stream);
                payload.put_u32(0);
                payload.put_u16(0);
                payload.extend(self.0.block(headers)?);
                control(SYN_STREAM, *fin, &payload)
            }
            Frame::SynReply {
                stream,
                fin,
                headers,
            } => self.with_headers(SYN_REPLY, *stream, *fin, headers)?,
            Frame::Headers {
                stream,
                fin,
                headers,
            } => self.with_headers(HEADERS, *stream, *fin, headers)?,
            Frame::RstStream { stream, status } => numbers(RST_STREAM, &[*stream, *status]),
            Frame::Settings => numbers(SETTINGS, &[0]),
            Frame::Ping { id } => numbers(PING, &[*id]),
            Frame::GoAway {
                last_stream,
                status,
            } => numbers(GOAWAY, &[*last_stream, *status]),
            Frame::WindowUpdate { stream, delta } => numbers(WINDOW_UPDATE, &[*stream, *delta]),
            Frame::Data { stream, fin, data } => with_length(*stream, *fin, data),
            Frame::Unknown { kind } => control(*kind, false, &[]),
        })
    }

    fn with_headers(
        &mut self,
        kind: u16,
        stream: u32,
        fin: bool,
        headers: &Headers,
    ) -> Result<Vec<u8>, Malformed> {
        let mut payload = Vec::new();
        payload.put_u32(stream);
        payload.extend(self.0.block(headers)?);
        Ok(control(kind, fin, &payload))
    }
}

fn numbers(kind: u16, values: &[u32]) -> Vec<u8> {
    let payload: Vec<u8> = values.iter().flat_map(|v| v.to_be_bytes()).collect();
    control(kind, false, &payload)
}

fn control(kind: u16, fin: bool, payload: &[u8]) -> Vec<u8> {
    with_length(
        u32::from(VERSION | 0x8000) << 16 | u32::from(kind),
        fin,
        payload,
    )
}

fn with_length(first: u32, fin: bool, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.put_u32(first);
    bytes.put_u32(
        u32::from(if fin { FLAG_FIN } else { 0 }) << 24 | u32::try_from(payload.len()).unwrap_or(0),
    );
    bytes.put_slice(payload);
    bytes
}
