//! Writing and reading netlink messages: headers, attributes, nests.
//!
//! One small encoder serves both rtnetlink and nfnetlink. Attribute lengths are 16 bit in the kernel's
//! format; a nest that outgrows them is an error here, never a silent truncation.

/// Length of `struct nlmsghdr`.
pub const HEADER: usize = 16;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
/// Mask that removes `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER` from an attribute's type.
const TYPE_MASK: u16 = 0x3fff;

/// `NLM_F_REQUEST`.
pub const REQUEST: u16 = 0x001;
/// `NLM_F_ACK`.
pub const ACK: u16 = 0x004;
/// `NLM_F_DUMP`.
pub const DUMP: u16 = 0x300;
/// `NLM_F_REPLACE`.
pub const REPLACE: u16 = 0x100;
/// `NLM_F_EXCL`.
pub const EXCL: u16 = 0x200;
/// `NLM_F_CREATE`.
pub const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`.
pub const APPEND: u16 = 0x800;

/// A buffer of one or more netlink messages under construction.
#[derive(Debug, Default)]
pub struct Writer {
    buffer: Vec<u8>,
    message: usize,
    overflow: bool,
}

/// Where a nest began; give it back to [`Writer::end`].
#[derive(Debug)]
#[must_use]
pub struct Nest(usize);

impl Writer {
    /// An empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a message with its header and family header (`ifinfomsg`, `nfgenmsg`, ...).
    pub fn begin(&mut self, kind: u16, flags: u16, sequence: u32, family_header: &[u8]) {
        self.message = self.buffer.len();
        self.buffer.extend_from_slice(&0u32.to_ne_bytes());
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer.extend_from_slice(&flags.to_ne_bytes());
        self.buffer.extend_from_slice(&sequence.to_ne_bytes());
        self.buffer.extend_from_slice(&0u32.to_ne_bytes());
        self.buffer.extend_from_slice(family_header);
        self.pad();
    }

    /// Ends the message: writes its length.
    pub fn finish(&mut self) {
        let length = (self.buffer.len() - self.message) as u32;
        self.buffer[self.message..self.message + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Adds `flags` to the header of the message that was begun last.
    pub fn add_flags(&mut self, flags: u16) {
        let at = self.message + 6;
        let old = u16::from_ne_bytes([self.buffer[at], self.buffer[at + 1]]);
        self.buffer[at..at + 2].copy_from_slice(&(old | flags).to_ne_bytes());
    }

    /// An attribute with raw bytes.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        let Ok(length) = u16::try_from(value.len() + 4) else {
            self.overflow = true;
            return;
        };
        self.buffer.extend_from_slice(&length.to_ne_bytes());
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer.extend_from_slice(value);
        self.pad();
    }

    /// An attribute with a NUL-terminated text.
    pub fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.bytes(kind, &bytes);
    }

    /// An attribute with one byte.
    pub fn u8(&mut self, kind: u16, value: u8) {
        self.bytes(kind, &[value]);
    }

    /// An attribute with a 16-bit number in network order.
    pub fn be16(&mut self, kind: u16, value: u16) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// An attribute with a 32-bit number in host order (rtnetlink).
    pub fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    /// An attribute with a 32-bit number in network order (nfnetlink).
    pub fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// An attribute with a 64-bit number in network order (nfnetlink).
    pub fn be64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// Begins a nested attribute.
    pub fn nest(&mut self, kind: u16) -> Nest {
        let at = self.buffer.len();
        self.buffer.extend_from_slice(&0u16.to_ne_bytes());
        self.buffer
            .extend_from_slice(&(kind | NESTED).to_ne_bytes());
        Nest(at)
    }

    /// Ends a nested attribute.
    pub fn end(&mut self, nest: Nest) {
        match u16::try_from(self.buffer.len() - nest.0) {
            Ok(length) => self.buffer[nest.0..nest.0 + 2].copy_from_slice(&length.to_ne_bytes()),
            Err(_) => self.overflow = true,
        }
    }

    /// Bytes that a nest holds so far, its own header included.
    pub fn nest_len(&self, nest: &Nest) -> usize {
        self.buffer.len() - nest.0
    }

    /// Appends raw bytes (a family header inside a nest, for example the peer of a veth pair).
    pub fn raw(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        self.pad();
    }

    /// Bytes written so far.
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// The messages, or `None` when an attribute outgrew the 64 KiB that its length field can say.
    pub fn into_bytes(self) -> Option<Vec<u8>> {
        (!self.overflow).then_some(self.buffer)
    }

    fn pad(&mut self) {
        while !self.buffer.len().is_multiple_of(4) {
            self.buffer.push(0);
        }
    }
}

/// One received message.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// `nlmsg_seq`.
    pub sequence: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

/// The messages of a datagram. Stops at the first malformed header.
pub fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header = datagram.get(..HEADER)?;
        let length = u32::from_ne_bytes(header[0..4].try_into().ok()?) as usize;
        let payload = datagram.get(HEADER..length)?;
        let message = Message {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            sequence: u32::from_ne_bytes(header[8..12].try_into().ok()?),
            payload,
        };
        datagram = datagram.get(align(length)..).unwrap_or_default();
        Some(message)
    })
}

/// One attribute: its type without flags, and its value.
pub type Attribute<'a> = (u16, &'a [u8]);

/// The attributes in `bytes`. Stops at the first malformed one.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = Attribute<'_>> {
    std::iter::from_fn(move || {
        let header = bytes.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(align(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the first attribute of this type.
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, v)| v)
}

/// A text attribute's value up to its NUL.
pub fn text(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// A 32-bit number in host order; 0 when too short.
pub fn ne32(value: &[u8]) -> u32 {
    value
        .get(..4)
        .and_then(|v| v.try_into().ok())
        .map_or(0, u32::from_ne_bytes)
}

/// A 32-bit number in network order; 0 when too short.
pub fn be32(value: &[u8]) -> u32 {
    value
        .get(..4)
        .and_then(|v| v.try_into().ok())
        .map_or(0, u32::from_be_bytes)
}

/// A 16-bit number in network order; 0 when too short.
pub fn be16(value: &[u8]) -> u16 {
    value
        .get(..2)
        .and_then(|v| v.try_into().ok())
        .map_or(0, u16::from_be_bytes)
}

fn align(length: usize) -> usize {
    length.div_ceil(4) * 4
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let mut w = Writer::new();
        w.begin(16, REQUEST, 7, &[1, 2, 3, 4]);
        let nest = w.nest(18);
        w.text(1, "vxlan");
        w.be16(15, 8472);
        w.end(nest);
        w.u32(4, 1450);
        w.finish();
        let bytes = w.into_bytes().unwrap();
        let m = messages(&bytes).next().unwrap();
        assert_eq!((m.kind, m.flags, m.sequence), (16, REQUEST, 7));
        let nest = attribute(&m.payload[4..], 18).unwrap();
        assert_eq!(text(attribute(nest, 1).unwrap()), "vxlan");
        assert_eq!(be16(attribute(nest, 15).unwrap()), 8472);
        assert_eq!(ne32(attribute(&m.payload[4..], 4).unwrap()), 1450);
    }

    #[test]
    fn a_nest_beyond_64_kib_is_an_error() {
        let mut w = Writer::new();
        w.begin(1, 0, 0, &[]);
        let nest = w.nest(1);
        for _ in 0..1000 {
            w.bytes(1, &[0; 80]);
        }
        w.end(nest);
        w.finish();
        assert!(w.into_bytes().is_none());
    }

    #[test]
    fn malformed_bytes_end_the_iteration() {
        assert_eq!(messages(&[9; 12]).count(), 0);
        assert_eq!(messages(&[0xff; 40]).count(), 0);
        assert_eq!(messages(&[0; 40]).count(), 0);
        assert_eq!(attributes(&[2, 0, 1, 0, 9]).count(), 0);
        assert_eq!(attributes(&[0xff; 6]).count(), 0);
    }
}
