//! Header blocks: names and values, length-prefixed, in one zlib stream per direction.

use bytes::{Buf, BufMut, Bytes};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::dictionary::DICTIONARY;
use super::frame::Malformed;

/// Largest header block, uncompressed, in bytes.
const MAX_BLOCK: usize = 64 * 1024;

/// Names (lower case) and values of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Headers(pub(crate) Vec<(String, String)>);

impl Headers {
    /// The first value of a name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    fn write(&self) -> Vec<u8> {
        let mut block = Vec::new();
        let length = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        block.put_u32(length(self.0.len()));
        for (name, value) in &self.0 {
            for text in [name, value] {
                block.put_u32(length(text.len()));
                block.put_slice(text.as_bytes());
            }
        }
        block
    }

    fn read(mut block: Bytes) -> Result<Self, Malformed> {
        let count = block
            .try_get_u32()
            .map_err(|_| Malformed("header block is cut off"))?;
        let mut headers = Vec::new();
        for _ in 0..count {
            let name = read_text(&mut block)?;
            let value = read_text(&mut block)?;
            headers.push((name.to_ascii_lowercase(), value));
        }
        Ok(Self(headers))
    }
}

fn read_text(block: &mut Bytes) -> Result<String, Malformed> {
    let length = block
        .try_get_u32()
        .map_err(|_| Malformed("header block is cut off"))? as usize;
    if length > block.remaining() {
        return Err(Malformed("header block is cut off"));
    }
    Ok(String::from_utf8_lossy(&block.split_to(length)).into_owned())
}

/// Writes header blocks.
pub(super) struct Deflater(Compress);

impl Deflater {
    pub(super) fn new() -> Self {
        // The dictionary is an offer; a stream that does without is read by every zlib.
        Self(Compress::new(Compression::fast(), true))
    }

    pub(super) fn block(&mut self, headers: &Headers) -> Result<Vec<u8>, Malformed> {
        let plain = headers.write();
        let mut out = Vec::with_capacity(plain.len() + 64);
        let start = self.0.total_in();
        loop {
            let done = usize::try_from(self.0.total_in() - start).unwrap_or(plain.len());
            let rest = plain.get(done..).unwrap_or_default();
            self.0
                .compress_vec(rest, &mut out, FlushCompress::Sync)
                .map_err(|_| Malformed("cannot compress headers"))?;
            let all_in = self.0.total_in() - start == plain.len() as u64;
            // A sync flush is complete when it left room in the output.
            if all_in && out.len() < out.capacity() {
                return Ok(out);
            }
            out.reserve(256);
        }
    }
}

/// Reads header blocks.
///
/// The stream is inflated raw, and the dictionary goes in front as a stored block: so the window holds it
/// as zlib's own dictionary support would, which not every zlib behind flate2 has.
pub(super) struct Inflater {
    raw: Decompress,
    started: bool,
}

impl Inflater {
    pub(super) fn new() -> Self {
        Self {
            raw: Decompress::new(false),
            started: false,
        }
    }

    pub(super) fn headers(&mut self, block: &[u8]) -> Result<Headers, Malformed> {
        let rest = if self.started {
            block
        } else {
            self.start(block)?
        };
        Headers::read(self.inflate(rest)?.into())
    }

    /// Skips the zlib header (RFC 1950: two bytes, and four more if a dictionary is named).
    fn start<'a>(&mut self, block: &'a [u8]) -> Result<&'a [u8], Malformed> {
        let (method, flags) = match block {
            [method, flags, ..] => (*method, *flags),
            _ => return Err(Malformed("header block is cut off")),
        };
        if method & 0x0f != 8 {
            return Err(Malformed("headers are not a zlib stream"));
        }
        let mut skip = 2;
        if flags & 0x20 != 0 {
            skip += 4;
            let length = u16::try_from(DICTIONARY.len()).unwrap_or_default();
            let mut stored = vec![0];
            stored.put_u16_le(length);
            stored.put_u16_le(!length);
            stored.extend_from_slice(&DICTIONARY);
            self.inflate(&stored)?;
        }
        self.started = true;
        block
            .get(skip..)
            .ok_or(Malformed("header block is cut off"))
    }

    fn inflate(&mut self, input: &[u8]) -> Result<Vec<u8>, Malformed> {
        let mut out = Vec::with_capacity(4096);
        let start = self.raw.total_in();
        loop {
            let done = usize::try_from(self.raw.total_in() - start).unwrap_or(input.len());
            let rest = input.get(done..).unwrap_or_default();
            let status = self
                .raw
                .decompress_vec(rest, &mut out, FlushDecompress::Sync)
                .map_err(|_| Malformed("headers do not inflate"))?;
            let all_in = self.raw.total_in() - start == input.len() as u64;
            if status == Status::StreamEnd || (all_in && out.len() < out.capacity()) {
                return Ok(out);
            }
            if out.len() >= MAX_BLOCK {
                return Err(Malformed("headers are too large"));
            }
            if out.len() == out.capacity() {
                out.reserve(4096);
            } else if status == Status::BufError {
                return Err(Malformed("headers do not inflate"));
            }
        }
    }
}
