//! The log's writer as a task of a simulated member: no thread, and a disk as slow as the simulation says. A
//! member that crashes while the disk is at work has the write on its disk or not, as the seed decides; the
//! answer is never given.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::EntryPayload;
use rand::Rng;

use super::Shared;
use super::writer::{Writer, finish, gather, put};
use crate::fault::{Break, broken};
use crate::raft::Entry;

pub(super) fn start(shared: Arc<Shared>) -> Writer {
    tokio::spawn(run(shared.clone()));
    Writer {
        shared,
        thread: None,
    }
}

async fn run(shared: Arc<Shared>) {
    loop {
        shared.queue.filled_for_tasks().await;
        if shared.queue.is_stopped() {
            return;
        }
        let Some(tasks) = shared.queue.take() else {
            continue;
        };
        let Some(mut write) = gather(tasks) else {
            return;
        };
        let ahead = broken(Break::AnswerBeforeSync);
        if ahead {
            finish(&shared, &mut write);
        }
        let mut under_way = UnderWay {
            shared: &shared,
            write: Some(write),
        };
        let latency = shared.disk.plan.latency_ms.load(Ordering::Relaxed);
        if latency > 0 {
            tokio::time::sleep(Duration::from_millis(latency)).await;
        }
        let Some(mut write) = under_way.write.take() else {
            return;
        };
        put(&shared, &mut write);
        if !ahead {
            finish(&shared, &mut write);
        }
    }
}

/// A write that the disk is at work on.
struct UnderWay<'a> {
    shared: &'a Shared,
    write: Option<super::writer::Write>,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if let Some(mut write) = self.write.take()
            && rand::rng().random_bool(0.5)
        {
            put(self.shared, &mut write);
        }
    }
}

/// The entry, or another in its place if that is broken on purpose.
pub(super) fn perhaps_wrong(entry: &Entry) -> Entry {
    let mut entry = entry.clone();
    if broken(Break::WrongEntry) && rand::rng().random_bool(0.05) {
        entry.payload = EntryPayload::Blank;
    }
    entry
}
