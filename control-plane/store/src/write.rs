//! The way of a write on the member where it is made.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::command::Command;
use crate::config::Tuning;
use crate::db::Disk;
use crate::error::Error;
use crate::pending::Pending;
use crate::state::Answer;
use crate::types::{LeaseId, MAX_KEY, MAX_TXN, MAX_TXN_OPS, MAX_VALUE, Op, Txn, TxnOutcome};

/// A unit of room in the queue, in bytes. A small proposal takes [`LEAST_ROOM`] units.
const ROOM_UNIT: usize = 1024;
const LEAST_ROOM: u32 = 4;

/// Proposes, and waits for outcomes.
pub(crate) struct Writer {
    pending: Arc<Pending>,
    disk: Arc<Disk>,
    /// Writers are held back when too much waits.
    room: Arc<Semaphore>,
    patience: Duration,
}

impl Writer {
    pub fn new(
        pending: Arc<Pending>,
        disk: Arc<Disk>,
        tuning: &Tuning,
        patience: Duration,
    ) -> Self {
        // Room for the largest transaction at least.
        let units = (tuning.queue * LEAST_ROOM as usize).max(2 * MAX_TXN / ROOM_UNIT);
        Self {
            pending,
            disk,
            room: Arc::new(Semaphore::new(units)),
            patience,
        }
    }

    pub async fn txn(&self, txn: Txn) -> Result<TxnOutcome, Error> {
        let bytes = check(&txn)?;
        match self.propose(Command::Txn(txn), bytes).await? {
            Answer::Txn(outcome) => Ok(outcome),
            other => Err(unexpected(&other)),
        }
    }

    pub async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, Error> {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        if ttl_ms == 0 {
            return Err(Error::Invalid("a lease must live for at least 1 ms".into()));
        }
        match self.propose(Command::Grant { ttl_ms }, 0).await? {
            Answer::Lease(lease) => Ok(lease),
            other => Err(unexpected(&other)),
        }
    }

    pub async fn lease_revoke(&self, lease: LeaseId) -> Result<(), Error> {
        self.propose(Command::Revoke { lease }, 0).await.map(|_| ())
    }

    /// Proposes a command of about so many bytes and waits until its outcome is applied here.
    pub async fn propose(&self, command: Command, bytes: usize) -> Result<Answer, Error> {
        if let Some(problem) = self.disk.problem() {
            return Err(Error::Unavailable { reason: problem });
        }
        let deadline = Instant::now() + self.patience;
        let units = LEAST_ROOM + u32::try_from(bytes / ROOM_UNIT).unwrap_or(u32::MAX);
        let room = match timeout_at(deadline, self.room.clone().acquire_many_owned(units)).await {
            Ok(Ok(room)) => room,
            Ok(Err(_)) => return Err(Error::Closed),
            Err(_) => return Err(Error::unavailable("too many writes wait already")),
        };
        let mut ticket = self.pending.propose(command, bytes, room);
        match timeout_at(deadline, &mut ticket.answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Error::Closed),
            Err(_) if ticket.give_up() => {
                Err(Error::unavailable("no leader took the write in time"))
            }
            Err(_) => Err(Error::Unknown {
                waited_ms: u64::try_from(self.patience.as_millis()).unwrap_or(u64::MAX),
            }),
        }
    }
}

fn unexpected(answer: &Answer) -> Error {
    Error::Storage(format!("the log answered with {answer:?}"))
}

/// Checks a transaction by itself and returns its size in bytes.
fn check(txn: &Txn) -> Result<usize, Error> {
    let too = |what: &str, is: usize, limit: usize| {
        Err(Error::Invalid(format!(
            "{what} {is} exceeds the limit of {limit}"
        )))
    };
    for count in [txn.compares.len(), txn.ops.len()] {
        if count > MAX_TXN_OPS {
            return too("number of operations or compares", count, MAX_TXN_OPS);
        }
    }
    let mut bytes = 0;
    for key in txn
        .compares
        .iter()
        .map(crate::types::Compare::key)
        .chain(txn.ops.iter().map(Op::key))
    {
        if key.is_empty() || key.len() > MAX_KEY {
            return Err(Error::Invalid(format!(
                "a key must have 1 to {MAX_KEY} bytes, not {}",
                key.len()
            )));
        }
        bytes += key.len();
    }
    for op in &txn.ops {
        if let Op::Put { value, .. } = op {
            if value.len() > MAX_VALUE {
                return too("value size", value.len(), MAX_VALUE);
            }
            bytes += value.len();
        }
    }
    if bytes > MAX_TXN {
        return too("transaction size", bytes, MAX_TXN);
    }
    let mut keys: Vec<_> = txn.ops.iter().map(Op::key).collect();
    keys.sort_unstable();
    if keys.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(Error::Invalid("a transaction changes a key twice".into()));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn put(key: &'static str, value: usize) -> Op {
        Op::Put {
            key: Bytes::from(key),
            value: Bytes::from(vec![0; value]),
            lease: None,
        }
    }

    fn txn(ops: Vec<Op>) -> Txn {
        Txn {
            ops,
            ..Txn::default()
        }
    }

    #[test]
    fn a_transaction_within_its_limits_is_measured() {
        assert_eq!(check(&txn(vec![put("a", 10), put("bc", 20)])), Ok(33));
    }

    #[test]
    fn oversized_and_malformed_transactions_are_refused_in_words() {
        let message = |ops| {
            check(&txn(ops))
                .map_err(|error| error.to_string())
                .err()
                .unwrap_or_default()
        };
        assert!(
            message(vec![put("a", MAX_VALUE + 1)])
                .contains("value size 1572865 exceeds the limit of 1572864")
        );
        assert!(
            message(vec![
                put("a", MAX_VALUE),
                put("b", MAX_VALUE),
                put("c", MAX_VALUE)
            ])
            .contains("transaction size")
        );
        assert!(message(vec![put("", 1)]).contains("a key must have"));
        assert!(
            message(vec![
                put("a", 1),
                Op::Delete {
                    key: Bytes::from("a")
                }
            ])
            .contains("changes a key twice")
        );
        assert!(
            message((0..=MAX_TXN_OPS).map(|_| put("a", 1)).collect())
                .contains("number of operations")
        );
    }
}
