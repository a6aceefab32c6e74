//! Lists in protobuf, piece by piece.

use std::pin::Pin;
use std::task::{Context, Poll};

use balsa_api::kind::Kind;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::encode;
use crate::render::ListMeta;

/// Size of the pieces.
const CHUNK: usize = 128 * 1024;

/// Body of a list of a kind's objects. A list says its length before its items; so their messages are there
/// already, and are copied out while the client reads.
pub struct ListBody {
    head: Option<Bytes>,
    tail: Option<Bytes>,
    messages: std::vec::IntoIter<Bytes>,
    left: u64,
}

impl ListBody {
    /// Of messages of [`super::message_of`].
    #[must_use]
    pub fn new(kind: &Kind, meta: &ListMeta, messages: Vec<Bytes>) -> Self {
        let mut item_head = Vec::with_capacity(16);
        let items: usize = messages
            .iter()
            .map(|message| {
                item_head.clear();
                encode::put_item_head(&mut item_head, message.len());
                item_head.len() + message.len()
            })
            .sum();
        let (head, tail) = encode::list_frame(kind, meta, items);
        Self {
            left: (head.len() + items + tail.len()) as u64,
            head: Some(head),
            tail: Some(tail),
            messages: messages.into_iter(),
        }
    }

    fn next_chunk(&mut self) -> Option<Bytes> {
        let size = usize::try_from(self.left).unwrap_or(CHUNK).min(CHUNK);
        let mut out = Vec::with_capacity(size + size / 8);
        if let Some(head) = self.head.take() {
            out.extend_from_slice(&head);
        }
        for message in self.messages.by_ref() {
            encode::put_item_head(&mut out, message.len());
            out.extend_from_slice(&message);
            if out.len() >= CHUNK {
                break;
            }
        }
        if self.messages.as_slice().is_empty()
            && let Some(tail) = self.tail.take()
        {
            out.extend_from_slice(&tail);
        }
        self.left = self.left.saturating_sub(out.len() as u64);
        (!out.is_empty()).then(|| out.into())
    }

    #[cfg(test)]
    pub(super) fn whole(mut self) -> Vec<u8> {
        std::iter::from_fn(|| self.next_chunk()).flatten().collect()
    }
}

impl Body for ListBody {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(
            self.get_mut()
                .next_chunk()
                .map(|chunk| Ok(Frame::data(chunk))),
        )
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
