//! What is inside the members' messages.

use bytes::Bytes;
use openraft::raft::StreamAppendError;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tonic::Status;

use super::proto::Message;
use crate::error::Error;
use crate::log::{decode_entry, encode_entry};
use crate::raft::{AppendRequest, LogId, SnapshotMeta, Types, Vote};
use crate::types::MemberId;

#[derive(Serialize, Deserialize)]
struct AppendHead {
    vote: Vote,
    previous: Option<LogId>,
    committed: Option<LogId>,
}

/// openraft's own type for this cannot be serialized.
#[derive(Serialize, Deserialize)]
enum AppendReply {
    Matched(Option<LogId>),
    Conflict(LogId),
    HigherVote(Vote),
}

/// Announces a snapshot.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct SnapshotHead {
    pub vote: Vote,
    pub meta: SnapshotMeta,
    /// Tells it from other snapshots of whatever member.
    pub id: u64,
    /// The parts start after this key.
    pub after: Option<Vec<u8>>,
}

/// A question about, or a change of, the membership.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Manage {
    /// Who are you? The only call, with the next, that a member without a cluster answers.
    Hello,
    /// You are about to become a member of this cluster.
    Admit {
        cluster: String,
        /// Its log has come so far. What it said before of members does not hold any more.
        index: u64,
    },
    Add {
        id: MemberId,
        address: String,
    },
    Remove {
        id: MemberId,
    },
    Transfer {
        to: Option<MemberId>,
    },
    /// May you be elected, as far as you can tell?
    MayLead,
}

/// The answer to [`Manage`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Managed {
    Hello(Hello),
    Done,
    /// Trying again may help.
    Unavailable(String),
    Refused(String),
}

/// Who a member is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub id: MemberId,
    pub cluster: Option<String>,
    /// It has no log and has never voted.
    pub blank: bool,
}

impl From<Result<(), Error>> for Managed {
    fn from(result: Result<(), Error>) -> Self {
        match result {
            Ok(()) => Self::Done,
            Err(Error::Unavailable { reason }) => Self::Unavailable(reason),
            Err(Error::Membership(reason)) => Self::Refused(reason),
            Err(error) => Self::Refused(error.to_string()),
        }
    }
}

pub(super) fn encode(head: &impl Serialize) -> Message {
    // Plain values into memory: cannot fail.
    Message {
        head: postcard::to_stdvec(head).unwrap_or_default().into(),
        parts: Vec::new(),
    }
}

pub(super) fn decode<T: DeserializeOwned>(message: &Message) -> Result<T, Status> {
    postcard::from_bytes(&message.head)
        .map_err(|error| Status::invalid_argument(format!("unreadable message: {error}")))
}

pub(super) fn bytes(bytes: Bytes) -> Message {
    Message {
        head: Bytes::new(),
        parts: vec![bytes],
    }
}

pub(super) fn encode_append(request: &AppendRequest) -> Message {
    let head = AppendHead {
        vote: request.vote,
        previous: request.prev_log_id,
        committed: request.leader_commit,
    };
    let mut message = encode(&head);
    // Entries that cannot be encoded cannot have been appended here either.
    message.parts = request
        .entries
        .iter()
        .filter_map(|entry| encode_entry(entry).ok())
        .map(Bytes::from)
        .collect();
    message
}

pub(super) fn decode_append(message: Message) -> Result<AppendRequest, Status> {
    let head: AppendHead = decode(&message)?;
    let entries = message
        .parts
        .into_iter()
        .map(decode_entry)
        .collect::<Result<_, _>>();
    let entries = entries.map_err(|error| Status::invalid_argument(error.to_string()))?;
    Ok(AppendRequest {
        vote: head.vote,
        prev_log_id: head.previous,
        entries,
        leader_commit: head.committed,
    })
}

pub(super) fn encode_append_reply(
    reply: Result<Option<LogId>, StreamAppendError<Types>>,
) -> Message {
    encode(&match reply {
        Ok(matched) => AppendReply::Matched(matched),
        Err(StreamAppendError::Conflict(at)) => AppendReply::Conflict(at),
        Err(StreamAppendError::HigherVote(vote)) => AppendReply::HigherVote(vote),
    })
}

pub(super) fn decode_append_reply(
    message: &Message,
) -> Result<Result<Option<LogId>, StreamAppendError<Types>>, Status> {
    Ok(match decode(message)? {
        AppendReply::Matched(matched) => Ok(matched),
        AppendReply::Conflict(at) => Err(StreamAppendError::Conflict(at)),
        AppendReply::HigherVote(vote) => Err(StreamAppendError::HigherVote(vote)),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use openraft::EntryPayload;

    use super::*;
    use crate::command::Pack;
    use crate::raft::Entry;

    fn id(index: u64) -> LogId {
        LogId::new(2.into(), index)
    }

    #[test]
    fn appends_survive_the_wire() {
        let entries = vec![
            Entry {
                log_id: id(4),
                payload: EntryPayload::Blank,
            },
            Entry {
                log_id: id(5),
                payload: EntryPayload::Normal(Pack(Bytes::from_static(b"pack"))),
            },
        ];
        let request = AppendRequest {
            vote: Vote::new(2, 1),
            prev_log_id: Some(id(3)),
            entries,
            leader_commit: Some(id(2)),
        };
        let received = decode_append(encode_append(&request)).unwrap();
        assert_eq!(format!("{received:?}"), format!("{request:?}"));
        assert_eq!(received.entries, request.entries);
    }

    #[test]
    fn answers_survive_the_wire() {
        for reply in [
            Ok(None),
            Ok(Some(id(3))),
            Err(StreamAppendError::Conflict(id(3))),
            Err(StreamAppendError::HigherVote(Vote::new(3, 2))),
        ] {
            assert_eq!(
                decode_append_reply(&encode_append_reply(reply.clone())).unwrap(),
                reply
            );
        }
    }

    #[test]
    fn unreadable_messages_are_errors() {
        let message = Message {
            head: Bytes::from_static(&[0xff]),
            parts: vec![Bytes::from_static(&[1])],
        };
        assert!(decode_append(message.clone()).is_err());
        assert!(decode::<Manage>(&message).is_err());
    }
}
