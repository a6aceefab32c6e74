//! The types that openraft is told about.

use openraft::alias;
use serde::{Deserialize, Serialize};

use crate::command::Pack;
use crate::state::Machine;
use crate::types::{MemberId, Term};

/// The only thing that Raft itself answers to a proposal: the outcome reaches its waiter on the apply path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Applied;

openraft::declare_raft_types!(
    /// One leader per term, as in the paper, so that a term names a leader.
    pub(crate) Types:
        D = Pack,
        R = Applied,
        NodeId = u64,
        Node = openraft::BasicNode,
        Term = u64,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
);

pub(crate) type Raft = openraft::Raft<Types, Machine>;
pub(crate) type LogId = alias::LogIdOf<Types>;
pub(crate) type Vote = alias::VoteOf<Types>;
pub(crate) type Entry = alias::EntryOf<Types>;
pub(crate) type Membership = openraft::Membership<u64, openraft::BasicNode>;
pub(crate) type StoredMembership = alias::StoredMembershipOf<Types>;
pub(crate) type SnapshotMeta = alias::SnapshotMetaOf<Types>;
pub(crate) type Snapshot = alias::SnapshotOf<Types, crate::state::SnapshotData>;
pub(crate) type AppendRequest = openraft::raft::AppendEntriesRequest<Types>;
pub(crate) type VoteRequest = openraft::raft::VoteRequest<Types>;
pub(crate) type VoteResponse = openraft::raft::VoteResponse<Types>;
pub(crate) type TransferRequest = openraft::raft::TransferLeaderRequest<Types>;
pub(crate) type TransferResponse = openraft::raft::TransferLeaderResponse<Types>;
pub(crate) type SnapshotResponse = openraft::raft::SnapshotResponse<Types>;

/// The term under which an entry was proposed.
pub(crate) fn term_of(log_id: &LogId) -> Term {
    **log_id.committed_leader_id()
}

/// The member that a vote is for.
pub(crate) fn voted_for(vote: &Vote) -> Option<MemberId> {
    use openraft::vote::RaftLeaderId;
    Some(*vote.leader_id().node_id())
}
