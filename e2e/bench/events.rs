//! A watch, read as raw lines.

use anyhow::{Context, ensure};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::Method;
use hyper::body::Incoming;
use serde_json::Value;

use crate::http::{JSON, Line};

/// An open watch.
pub struct Events {
    body: Incoming,
    buffer: BytesMut,
    /// How much of the buffer holds no end of line.
    searched: usize,
}

impl Events {
    /// Watches a collection from a resourceVersion.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn open(line: &Line, path: &str, from: &str) -> anyhow::Result<Self> {
        let path = format!("{path}?watch=1&allowWatchBookmarks=true&resourceVersion={from}");
        let response = line.send(Method::GET, &path, JSON, Bytes::new()).await?;
        ensure!(
            response.status().is_success(),
            "the watch of {path} was refused: {}",
            response.status()
        );
        Ok(Self {
            body: response.into_body(),
            buffer: BytesMut::new(),
            searched: 0,
        })
    }

    /// The next event, as sent; `None` when the server ended the watch.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn next(&mut self) -> anyhow::Result<Option<Bytes>> {
        loop {
            if let Some(end) = self.buffer[self.searched..]
                .iter()
                .position(|b| *b == b'\n')
            {
                let line = self.buffer.split_to(self.searched + end + 1).freeze();
                self.searched = 0;
                return Ok(Some(line));
            }
            self.searched = self.buffer.len();
            match self.body.frame().await.transpose()? {
                Some(frame) => self.buffer.extend(
                    frame
                        .data_ref()
                        .map(AsRef::<[u8]>::as_ref)
                        .unwrap_or_default(),
                ),
                None => return Ok(None),
            }
        }
    }
}

/// The resourceVersion of a collection now, to watch from.
///
/// # Errors
/// When the server does not list it.
pub async fn version(line: &Line, path: &str) -> anyhow::Result<String> {
    let list: Value = serde_json::from_slice(&line.get(&format!("{path}?limit=1")).await?)?;
    let version = list["metadata"]["resourceVersion"]
        .as_str()
        .context("a list without resourceVersion")?;
    Ok(version.to_owned())
}

/// What an event carries, to watch on from.
pub fn version_of(event: &[u8]) -> Option<String> {
    let event: Value = serde_json::from_slice(event).ok()?;
    event["object"]["metadata"]["resourceVersion"]
        .as_str()
        .map(str::to_owned)
}

/// The seven digits that follow a marker: the number of the object that an event is about.
pub fn number_after(event: &[u8], marker: &[u8]) -> Option<usize> {
    let at = find(event, marker)? + marker.len();
    std::str::from_utf8(event.get(at..at + 7)?)
        .ok()?
        .parse()
        .ok()
}

/// Where the needle begins.
pub fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut from = 0;
    while let Some(at) = hay[from..].iter().position(|b| *b == first) {
        if hay[from + at..].starts_with(needle) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_events_object_is_told_by_the_digits_after_its_marker() {
        let event = br#"{"type":"ADDED","object":{"metadata":{"name":"w-w1-0000042"}}}"#;
        assert_eq!(number_after(event, b"w1-"), Some(42));
        assert_eq!(number_after(event, b"w2-"), None);
        assert_eq!(number_after(b"w1-00", b"w1-"), None);
        assert_eq!(number_after(b"w1-abcdefg", b"w1-"), None);
    }

    #[test]
    fn an_events_version_is_that_of_its_object() {
        let bookmark = br#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"17"}}}"#;
        assert_eq!(version_of(bookmark).unwrap(), "17");
        assert_eq!(version_of(b"{"), None);
    }
}
