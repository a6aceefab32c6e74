//! The newest entries, in memory: those that are not on disk yet, and more for followers and for applying.

use std::collections::VecDeque;

use super::codec;
use crate::raft::{Entry, LogId};

/// Entries on disk leave memory when there are more bytes than this.
const KEEP_BYTES: usize = 2 << 20;

/// Where the log's bytes are is noted about this often.
const MARK_BYTES: u64 = 256 << 10;

/// Invariants: entries are consecutive and end at `last`; those with an index of `flushed` and above are not
/// known to be on disk and never leave.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    entries: VecDeque<Entry>,
    bytes: usize,
    /// Entries before this index are on disk.
    flushed: u64,
    /// Counts truncations, so that a flush of entries that were cut since is told apart.
    era: u64,
    purged: Option<LogId>,
    last: Option<LogId>,
    /// Bytes appended since the start, and now and then which entry that was.
    appended: u64,
    marks: VecDeque<(u64, u64)>,
}

impl Tail {
    pub fn new(purged: Option<LogId>, last: Option<LogId>) -> Self {
        Self {
            flushed: last.map_or(0, |last| last.index + 1),
            purged,
            last,
            ..Self::default()
        }
    }

    pub fn purged(&self) -> Option<LogId> {
        self.purged
    }

    pub fn last(&self) -> Option<LogId> {
        self.last
    }

    pub fn era(&self) -> u64 {
        self.era
    }

    /// The first index that is in memory; everything before is on disk.
    pub fn start(&self) -> u64 {
        self.entries
            .front()
            .map_or(u64::MAX, |first| first.log_id.index)
    }

    /// Entries of a half-open range that are in memory.
    pub fn read(&self, start: u64, end: u64) -> Vec<Entry> {
        let skip = usize::try_from(start.saturating_sub(self.start())).unwrap_or(usize::MAX);
        self.entries
            .iter()
            .skip(skip)
            .take_while(|entry| entry.log_id.index < end)
            .cloned()
            .collect()
    }

    pub fn append(&mut self, entries: &[Entry]) {
        for entry in entries {
            self.bytes += codec::size(entry);
            self.appended += codec::size(entry) as u64;
            if self
                .marks
                .back()
                .is_none_or(|(_, bytes)| self.appended - bytes >= MARK_BYTES)
            {
                self.marks.push_back((entry.log_id.index, self.appended));
            }
            self.last = Some(entry.log_id);
            self.entries.push_back(entry.clone());
        }
        self.trim();
    }

    /// About how many bytes were appended after an entry, as far as is known since the start.
    pub fn bytes_after(&self, index: u64) -> u64 {
        let before = self
            .marks
            .iter()
            .take_while(|(mark, _)| *mark <= index)
            .last();
        self.appended - before.map_or(0, |(_, bytes)| *bytes)
    }

    /// The last entry that has at least so many bytes after it, 0 if there is none.
    pub fn index_before(&self, bytes: u64) -> u64 {
        let enough = self
            .marks
            .iter()
            .take_while(|(_, mark)| self.appended - mark >= bytes)
            .last();
        enough.map_or(0, |(index, _)| *index)
    }

    /// Entries up to an index, queued in an era, are on disk now.
    pub fn flushed(&mut self, era: u64, index: u64) {
        if era == self.era {
            self.flushed = self.flushed.max(index + 1);
            self.trim();
        }
    }

    /// Drops the entries after `last`.
    pub fn truncate(&mut self, last: Option<LogId>) {
        let from = last.map_or(0, |last| last.index + 1);
        while self
            .entries
            .back()
            .is_some_and(|entry| entry.log_id.index >= from)
        {
            if let Some(entry) = self.entries.pop_back() {
                self.bytes -= codec::size(&entry);
            }
        }
        while self.marks.back().is_some_and(|(index, _)| *index >= from) {
            self.marks.pop_back();
        }
        self.era += 1;
        self.flushed = self.flushed.min(from);
        if self.last.is_some_and(|end| end.index >= from) {
            self.last = last.max(self.purged);
        }
    }

    /// Drops the entries up to one, inclusive.
    pub fn purge(&mut self, upto: LogId) {
        while self
            .entries
            .front()
            .is_some_and(|entry| entry.log_id.index <= upto.index)
        {
            if let Some(entry) = self.entries.pop_front() {
                self.bytes -= codec::size(&entry);
            }
        }
        // The mark before the first entry that is left still tells where its bytes begin.
        while self
            .marks
            .get(1)
            .is_some_and(|(index, _)| *index <= upto.index)
        {
            self.marks.pop_front();
        }
        self.purged = self.purged.max(Some(upto));
        if self.last.is_none_or(|last| last.index <= upto.index) {
            self.last = self.purged;
        }
    }

    fn trim(&mut self) {
        while self.bytes > KEEP_BYTES
            && self
                .entries
                .front()
                .is_some_and(|entry| entry.log_id.index < self.flushed)
        {
            if let Some(entry) = self.entries.pop_front() {
                self.bytes -= codec::size(&entry);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use openraft::EntryPayload;

    use super::*;
    use crate::command::Pack;

    fn id(index: u64) -> LogId {
        LogId::new(1.into(), index)
    }

    fn entries(range: std::ops::Range<u64>, size: usize) -> Vec<Entry> {
        range
            .map(|index| Entry {
                log_id: id(index),
                payload: EntryPayload::Normal(Pack(Bytes::from(vec![0; size]))),
            })
            .collect()
    }

    fn indices(tail: &Tail, start: u64, end: u64) -> Vec<u64> {
        tail.read(start, end)
            .iter()
            .map(|entry| entry.log_id.index)
            .collect()
    }

    #[test]
    fn entries_can_be_read_once_appended() {
        let mut tail = Tail::new(None, Some(id(4)));
        tail.append(&entries(5..8, 1));
        assert_eq!((tail.start(), tail.last()), (5, Some(id(7))));
        assert_eq!(indices(&tail, 0, 5), [0; 0]);
        assert_eq!(indices(&tail, 0, 6), [5]);
        assert_eq!(indices(&tail, 6, u64::MAX), [6, 7]);
        assert_eq!(indices(&tail, 9, 12), [0; 0]);
    }

    #[test]
    fn only_flushed_entries_leave_memory() {
        let mut tail = Tail::default();
        tail.append(&entries(1..4, KEEP_BYTES));
        assert_eq!(tail.start(), 1);
        tail.flushed(0, 2);
        assert_eq!(tail.start(), 3);
    }

    #[test]
    fn a_flush_of_entries_cut_since_does_not_count() {
        let mut tail = Tail::default();
        tail.append(&entries(1..4, KEEP_BYTES));
        tail.truncate(Some(id(1)));
        tail.append(&entries(2..3, KEEP_BYTES));
        tail.flushed(0, 3);
        assert_eq!((tail.start(), tail.last()), (1, Some(id(2))));
    }

    #[test]
    fn the_log_knows_where_its_bytes_are() {
        let mut tail = Tail::default();
        tail.append(&entries(1..11, 1 << 20));
        assert_eq!(tail.bytes_after(10), 0);
        assert!(tail.bytes_after(5) >= 5 << 20 && tail.bytes_after(5) < 6 << 20);
        assert_eq!(
            (tail.index_before(3 << 20), tail.index_before(100 << 20)),
            (7, 0)
        );
        tail.purge(id(8));
        assert_eq!(tail.index_before(2 << 20), 8);
    }

    #[test]
    fn purging_past_the_end_leaves_nothing() {
        let mut tail = Tail::default();
        tail.append(&entries(1..4, 1));
        tail.purge(id(9));
        assert_eq!(
            (tail.start(), tail.last(), tail.purged()),
            (u64::MAX, Some(id(9)), Some(id(9)))
        );
    }
}
