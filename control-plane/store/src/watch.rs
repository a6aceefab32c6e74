//! Following changes: the recent ones from memory, older ones from the database.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::RwLock;
use tokio::sync::watch::Receiver;

use crate::error::Error;
use crate::fault::{self, Break};
use crate::state::{Progress, Reader};
use crate::types::{Event, Revision};

/// Changes that a watch takes from the database at a time.
const HISTORY_STEP: usize = 500;

/// The changes of one revision that a [`Watch`] asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// The revision.
    pub revision: Revision,
    /// Its changes, in the order of the transaction's operations. Never empty.
    pub events: Vec<Event>,
}

/// Recent changes in memory.
pub(crate) struct Window {
    ring: RwLock<Ring>,
    limit: usize,
}

/// Invariant: holds all changes of the revisions from `from` on.
struct Ring {
    changes: VecDeque<(Arc<Changes>, Instant)>,
    from: Revision,
    bytes: usize,
}

impl Window {
    /// An empty window after a revision, of at most so many bytes.
    pub fn new(revision: Revision, limit: usize) -> Self {
        Self {
            ring: RwLock::new(Ring {
                changes: VecDeque::new(),
                from: revision + 1,
                bytes: 0,
            }),
            limit,
        }
    }

    /// Forgets everything: the state is at a revision now, however it came there.
    pub fn reset(&self, revision: Revision) {
        *self.ring.write() = Ring {
            changes: VecDeque::new(),
            from: revision + 1,
            bytes: 0,
        };
    }

    /// Adds the changes of the next revision.
    pub fn push(&self, revision: Revision, events: Vec<Event>) {
        let changes = Changes { revision, events };
        let mut ring = self.ring.write();
        ring.bytes += size(&changes);
        ring.changes.push_back((Arc::new(changes), Instant::now()));
        while ring.bytes > self.limit
            && let Some((oldest, _)) = ring.changes.pop_front()
        {
            ring.bytes -= size(&oldest);
            ring.from = oldest.revision + 1;
        }
    }

    /// The changes of the revisions `from..=to`; `None` if the window starts later.
    fn read(&self, from: Revision, to: Revision) -> Option<Vec<(Arc<Changes>, Instant)>> {
        let ring = self.ring.read();
        if from < ring.from {
            return None;
        }
        let start = ring
            .changes
            .partition_point(|(changes, _)| changes.revision < from);
        Some(
            ring.changes
                .range(start..)
                .take_while(|(changes, _)| changes.revision <= to)
                .cloned()
                .collect(),
        )
    }
}

fn size(changes: &Changes) -> usize {
    const EVENT: usize = 200;
    let value = |event: &Event| match event {
        Event::Put { kv, previous } => {
            kv.value.len() + previous.as_ref().map_or(0, |previous| previous.value.len())
        }
        Event::Delete { previous, .. } => previous.value.len(),
    };
    changes
        .events
        .iter()
        .map(|event| EVENT + event.key().len() + value(event))
        .sum()
}

/// Follows the changes of all keys with a prefix, without gaps and in order. It pulls: a slow watch costs
/// only itself, until history is compacted away under it.
pub struct Watch {
    reader: Reader,
    progress: Receiver<Progress>,
    prefix: Bytes,
    /// The next revision to look at.
    next: Revision,
    ready: VecDeque<Changes>,
}

impl Watch {
    pub(crate) fn new(reader: Reader, prefix: Bytes, from: Revision) -> Result<Self, Error> {
        let progress = reader.state().progress();
        let next = if from == 0 {
            progress.borrow().revision + 1
        } else {
            from
        };
        let compacted = reader.compacted();
        if next <= compacted {
            return Err(Error::Compacted {
                requested: next,
                compacted,
            });
        }
        Ok(Self {
            reader,
            progress,
            prefix,
            next,
            ready: VecDeque::new(),
        })
    }

    /// The next changes; waits for them. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::Compacted`] if the watch fell behind the history that is kept, [`Error::Storage`],
    /// [`Error::Closed`]. After an error the watch is of no more use.
    pub async fn next(&mut self) -> Result<Changes, Error> {
        let stop = self.reader.state().stop().clone();
        loop {
            if let Some(changes) = self.ready.pop_front() {
                return Ok(changes);
            }
            let now = self.progress.borrow_and_update().revision;
            if self.next <= now {
                self.fill(now)?;
                continue;
            }
            tokio::select! {
                () = stop.cancelled() => return Err(Error::Closed),
                changed = self.progress.changed() => changed.map_err(|_| Error::Closed)?,
            }
        }
    }

    /// Everything up to this revision has been delivered, whether or not it concerned the prefix.
    #[must_use]
    pub fn progress(&self) -> Revision {
        self.ready
            .front()
            .map_or(self.next, |changes| changes.revision)
            - 1
    }

    /// Looks at some revisions up to one that has been applied.
    fn fill(&mut self, now: Revision) -> Result<(), Error> {
        if let Some(recent) = self.reader.state().window().read(self.next, now) {
            self.next = now + 1;
            if let Some((_, since)) = recent.first() {
                let metrics = self.reader.state().metrics();
                metrics.watch_lag.observe(since.elapsed().as_secs_f64());
            }
            self.ready.extend(
                recent
                    .iter()
                    .filter(|(changes, _)| {
                        !(fault::broken(Break::SkipEvent) && changes.revision % 40 == 0)
                    })
                    .filter_map(|(changes, _)| select(&self.prefix, changes)),
            );
            return Ok(());
        }
        let (found, reached) = self.reader.history(&self.prefix, self.next, HISTORY_STEP)?;
        self.next = reached + 1;
        self.ready.extend(found);
        Ok(())
    }
}

fn select(prefix: &[u8], changes: &Changes) -> Option<Changes> {
    let events: Vec<_> = changes
        .events
        .iter()
        .filter(|event| event.key().starts_with(prefix))
        .cloned()
        .collect();
    if events.is_empty() {
        None
    } else {
        Some(Changes {
            revision: changes.revision,
            events,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::KeyValue;

    fn put(key: &'static str, revision: Revision) -> Event {
        let kv = KeyValue {
            key: Bytes::from(key),
            value: Bytes::new(),
            create_revision: revision,
            mod_revision: revision,
            version: 1,
            lease: None,
        };
        Event::Put { kv, previous: None }
    }

    fn revisions(window: &Window, from: Revision, to: Revision) -> Option<Vec<Revision>> {
        Some(
            window
                .read(from, to)?
                .iter()
                .map(|(changes, _)| changes.revision)
                .collect(),
        )
    }

    #[test]
    fn the_window_knows_what_it_has_forgotten() {
        let window = Window::new(1, 500);
        for revision in 2..6 {
            window.push(revision, vec![put("k", revision)]);
        }
        assert_eq!(revisions(&window, 3, 9), None);
        assert_eq!(revisions(&window, 4, 9), Some(vec![4, 5]));
        assert_eq!(revisions(&window, 4, 4), Some(vec![4]));
        window.reset(7);
        assert_eq!(
            (revisions(&window, 7, 9), revisions(&window, 8, 9)),
            (None, Some(vec![]))
        );
    }

    #[test]
    fn only_events_with_the_prefix_are_selected() {
        let changes = Changes {
            revision: 2,
            events: vec![put("a/1", 2), put("b/1", 2), put("a/2", 2)],
        };
        let keys: Vec<_> = select(b"a/", &changes)
            .into_iter()
            .flat_map(|c| c.events)
            .map(|e| e.key().clone())
            .collect();
        assert_eq!(keys, ["a/1", "a/2"]);
        assert_eq!(select(b"c/", &changes), None);
    }
}
