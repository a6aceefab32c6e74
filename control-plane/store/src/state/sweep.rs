//! Deletes compacted history in the background, a little at a time. What is compacted is decided by the
//! log; when the bytes go is each member's own affair.

use std::sync::Arc;
use std::time::Duration;

use rocksdb::{Direction, IteratorMode, WriteBatch, WriteOptions};

use super::State;
use super::generation::Generation;
use super::schema::{self, Change, Damaged};
use crate::fault::{self, Point, Site};
use crate::threads;
use crate::types::Revision;

/// Changes that one step deletes.
const STEP: usize = 1_000;
/// The pause after a step, so that sweeping does not crowd out other work.
const PAUSE: Duration = Duration::from_millis(5);
/// How often to look for more.
const INTERVAL: Duration = Duration::from_secs(5);

impl State {
    /// Sweeps until the store stops.
    pub async fn sweep(self: Arc<Self>) {
        loop {
            let wait = match self.sweep_step().await {
                Ok(true) => PAUSE,
                Ok(false) => INTERVAL,
                Err(error) => {
                    tracing::warn!(%error, "history could not be swept; trying again later");
                    INTERVAL
                }
            };
            tokio::select! {
                () = self.context.stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn sweep_step(&self) -> Result<bool, Damaged> {
        let generation = self.generation();
        let compacted = self.compacted();
        self.context.disk.plan.meet(Site::Sweep).map_err(Damaged)?;
        threads::blocking(move || step(&generation, compacted))
            .await
            .map_err(|error| Damaged(error.to_string()))?
    }
}

/// Deletes some history up to a revision; returns whether there may be more.
pub(super) fn step(generation: &Generation, compacted: Revision) -> Result<bool, Damaged> {
    let swept: Revision = generation.value(schema::SWEPT)?.unwrap_or_default();
    if swept >= compacted {
        return Ok(false);
    }
    let mut batch = WriteBatch::default();
    let (mut steps, mut reached) = (0, compacted);
    let start = schema::history(swept + 1, 0);
    for item in generation
        .db
        .iterator(IteratorMode::From(&start, Direction::Forward))
    {
        let (key, value) = item.map_err(|error| Damaged(error.to_string()))?;
        let Some(revision) =
            schema::history_revision(&key).filter(|revision| *revision <= compacted)
        else {
            break;
        };
        if steps >= STEP && revision > reached {
            break;
        }
        let change: Change = schema::from_bytes(&value)?;
        if let Some(previous) = change.previous {
            batch.delete(schema::version(&change.key, previous));
        }
        batch.delete(&key);
        steps += 1;
        // A revision goes as a whole.
        reached = if steps >= STEP { revision } else { compacted };
    }
    fault::point(Point::SweepBegun);
    batch.put(schema::SWEPT, schema::to_bytes(&reached));
    let mut options = WriteOptions::default();
    options.disable_wal(true);
    generation
        .db
        .write_opt(batch, &options)
        .map_err(|error| Damaged(error.to_string()))?;
    fault::point(Point::SweepDone);
    Ok(reached < compacted)
}
