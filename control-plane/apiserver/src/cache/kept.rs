//! Protobuf beside JSON: messages of objects that were listed in protobuf, so that the next list copies them. All
//! of them together have a bound; what finds no room is made anew each time.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

/// Bytes of messages that one process keeps: those of about 12,000 pods.
const ROOM: usize = 32 * 1024 * 1024;
/// What a message takes beside its bytes.
const OVERHEAD: usize = 64;

static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// The message of one object, once somebody asked for it; goes with the object.
#[derive(Default)]
pub struct Kept(OnceLock<Bytes>);

impl Kept {
    /// The message, made if it is not there, and kept if there is room.
    pub fn get_or_make(&self, make: impl FnOnce() -> Option<Bytes>) -> Option<Bytes> {
        if let Some(message) = self.0.get() {
            return Some(message.clone());
        }
        let message = make()?;
        self.keep(&message, ROOM);
        Some(message)
    }

    fn keep(&self, message: &Bytes, room: usize) {
        let size = message.len() + OVERHEAD;
        if TAKEN.fetch_add(size, Ordering::Relaxed) + size > room
            || self.0.set(message.clone()).is_err()
        {
            TAKEN.fetch_sub(size, Ordering::Relaxed);
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(message) = self.0.get() {
            TAKEN.fetch_sub(message.len() + OVERHEAD, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_message_is_made_once_and_without_room_each_time() {
        let kept = Kept::default();
        let made = || Some(Bytes::from_static(b"x"));
        assert_eq!(kept.get_or_make(made).unwrap(), "x");
        assert_eq!(kept.get_or_make(|| None).unwrap(), "x");
        let full = Kept::default();
        full.keep(&Bytes::from_static(b"x"), 1);
        assert!(full.get_or_make(|| None).is_none());
    }
}
