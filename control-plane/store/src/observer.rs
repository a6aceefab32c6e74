//! Who hears of every change.

use crate::state::Reader;
use crate::types::{Event, Revision};

/// Hears of every change, on the path that applies them: in order, after the change is in the database, and
/// before any writer or linearizable reader on this member is answered. It must not block.
pub trait Observer: Send + Sync + 'static {
    /// The changes of one revision.
    fn applied(&self, revision: Revision, events: &[Event]);
    /// Everything may have changed: called once while the store opens, and after a snapshot of the leader
    /// has replaced the local state. Changes that follow are newer than `reader.revision()`.
    fn reset(&self, reader: &Reader);
}

/// Hears nothing.
impl Observer for () {
    fn applied(&self, _revision: Revision, _events: &[Event]) {}
    fn reset(&self, _reader: &Reader) {}
}
