//! Changing who is a member.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{BasicNode, ChangeMembers, Instant as _};
use tokio::sync::{Mutex, watch};

use crate::error::Error;
use crate::folder::Folder;
use crate::net::{Hello, Manage, Managed, Peers};
use crate::raft::{Membership, Raft, Types};
use crate::types::{Leadership, Member, MemberId};

/// A member that is asked who it is answers within this.
const HELLO: Duration = Duration::from_secs(5);
/// One change of membership is agreed on within this.
const CHANGE: Duration = Duration::from_secs(30);
/// A new member has caught up within this.
const CATCH_UP: Duration = Duration::from_secs(1_800);
/// A new member that is silent for so long is given up on; it can ask again.
const GONE: Duration = Duration::from_secs(20);
/// A new leader takes over within this.
const TRANSFER: Duration = Duration::from_secs(2);
/// The pause before asking again.
const RETRY: Duration = Duration::from_millis(50);

/// See the module.
pub(crate) struct Members {
    pub raft: Raft,
    pub peers: Arc<Peers>,
    pub folder: Arc<Folder>,
    pub leadership: watch::Receiver<Leadership>,
    /// One change at a time.
    pub turn: Mutex<()>,
}

/// Who answers a leader.
#[derive(Debug, Default)]
pub(crate) struct Answering {
    /// The voters; two sets while they are being changed.
    pub configs: Vec<BTreeSet<MemberId>>,
    /// The members that answered lately, and the last entry that each is known to have.
    pub matched: BTreeMap<MemberId, u64>,
}

impl Members {
    /// The effective membership, which may not be agreed on yet.
    fn now(&self) -> Membership {
        self.raft
            .server_metrics()
            .borrow_watched()
            .membership_config
            .membership()
            .clone()
    }

    pub fn list(&self) -> Vec<Member> {
        list(&self.now())
    }

    /// Adds a member, wherever this is called.
    pub async fn add(&self, id: MemberId, address: String) -> Result<(), Error> {
        self.at_leader(Manage::Add { id, address }, HELLO + CATCH_UP + CHANGE)
            .await
    }

    /// Says that this member has another address. Members that cannot reach it cannot tell it who leads, so
    /// it asks them all.
    pub async fn announce(&self, me: MemberId, address: &str) -> Result<(), Error> {
        if self.leadership.borrow().leader == Some(me) {
            return self.add_here(me, address.to_owned()).await;
        }
        let ask = Manage::Add {
            id: me,
            address: address.to_owned(),
        };
        let mut last = Error::unavailable("no other member is known");
        for member in self.list().iter().filter(|member| member.id != me) {
            match self.peers.manage(member.id, &ask, HELLO).await {
                Ok(Managed::Done | Managed::Hello(_)) => return Ok(()),
                Ok(Managed::Unavailable(reason) | Managed::Refused(reason)) => {
                    last = Error::unavailable(reason)
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Removes a member, wherever this is called.
    pub async fn remove(&self, id: MemberId) -> Result<(), Error> {
        self.at_leader(Manage::Remove { id }, CHANGE).await
    }

    /// Hands leadership over, if this member leads.
    pub async fn transfer(&self, to: Option<MemberId>) -> Result<(), Error> {
        if self.leadership.borrow().leader != Some(self.peers.me()) {
            return Ok(());
        }
        self.transfer_here(to).await
    }

    async fn at_leader(&self, ask: Manage, within: Duration) -> Result<(), Error> {
        let mut leadership = self.leadership.clone();
        let known = leadership.wait_for(|leadership| leadership.leader.is_some());
        let leader = match tokio::time::timeout(HELLO, known).await {
            Ok(Ok(leadership)) => leadership.leader,
            Ok(Err(_)) => return Err(Error::Closed),
            Err(_) => None,
        };
        let leader = leader.ok_or_else(|| Error::unavailable("no leader is known"))?;
        if leader == self.peers.me() {
            return match ask {
                Manage::Add { id, address } => self.add_here(id, address).await,
                Manage::Remove { id } => self.remove_here(id).await,
                Manage::Transfer { to } => self.transfer_here(to).await,
                Manage::Hello | Manage::Admit { .. } | Manage::MayLead => Ok(()),
            };
        }
        match self.peers.manage(leader, &ask, within).await? {
            Managed::Done | Managed::Hello(_) => Ok(()),
            Managed::Unavailable(reason) => Err(Error::Unavailable { reason }),
            Managed::Refused(reason) => Err(Error::Membership(reason)),
        }
    }

    /// Adds a member, on the leader.
    pub async fn add_here(&self, id: MemberId, address: String) -> Result<(), Error> {
        let _turn = self.turn.lock().await;
        self.must_lead()?;
        let node = BasicNode::new(&address);
        if id != self.peers.me() {
            let hello = self.greet(id, &address).await?;
            let cluster = self
                .folder
                .cluster()
                .ok_or_else(|| Error::Membership("this member has no cluster".into()))?;
            check_hello(&hello, &cluster).map_err(Error::Membership)?;
            if hello.blank && self.now().get_node(&id).is_some() {
                tracing::warn!(
                    id,
                    "a member came back without its data: removing it before it is added again"
                );
                self.drop_member(id).await?;
            }
            if hello.cluster.is_none() || hello.blank {
                self.drop_predecessors(id, &address).await?;
                self.admit(id, &address, cluster).await?;
            }
        }
        if self.now().get_node(&id).is_some_and(|known| *known != node) {
            self.change(
                ChangeMembers::SetNodes(BTreeMap::from([(id, node.clone())])),
                true,
            )
            .await?;
        }
        self.peers.learn(id, &address);
        if self.now().get_node(&id).is_none() {
            self.change(ChangeMembers::AddNodes(BTreeMap::from([(id, node)])), true)
                .await?;
        }
        if is_settled_voter(&self.now(), id) {
            return Ok(());
        }
        self.catch_up(id).await?;
        self.change(ChangeMembers::AddVoterIds(BTreeSet::from([id])), true)
            .await
    }

    /// Removes members that a new one was put in the place of: it answers at their address, so they are gone for good,
    /// and as voters they would only make majorities larger.
    async fn drop_predecessors(&self, id: MemberId, address: &str) -> Result<(), Error> {
        for gone in at_address(&self.now(), address) {
            if gone != id && gone != self.peers.me() {
                tracing::warn!(
                    gone,
                    id,
                    address,
                    "a new member is in the place of another: removing that"
                );
                self.drop_member(gone).await?;
            }
        }
        Ok(())
    }

    /// Removes a member, on the leader.
    pub async fn remove_here(&self, id: MemberId) -> Result<(), Error> {
        let _turn = self.turn.lock().await;
        self.drop_member(id).await
    }

    fn must_lead(&self) -> Result<(), Error> {
        let leader = self.leadership.borrow().leader;
        if leader == Some(self.peers.me()) {
            return Ok(());
        }
        Err(Error::unavailable(format!(
            "this member does not lead; {leader:?} does"
        )))
    }

    async fn drop_member(&self, id: MemberId) -> Result<(), Error> {
        let now = self.now();
        let ids = BTreeSet::from([id]);
        if now.voter_ids().any(|voter| voter == id) {
            if now.voter_ids().count() == 1 {
                return Err(Error::Membership(format!(
                    "member {id} is the only voter and cannot be removed"
                )));
            }
            self.change(ChangeMembers::RemoveVoters(ids), false).await?;
        } else if now.get_node(&id).is_some() {
            self.change(ChangeMembers::RemoveNodes(ids), false).await?;
        }
        Ok(())
    }

    /// Hands leadership over, on the leader.
    pub async fn transfer_here(&self, to: Option<MemberId>) -> Result<(), Error> {
        let me = self.peers.me();
        let Some(to) = to
            .or_else(|| self.most_advanced_other())
            .filter(|to| *to != me)
        else {
            return Ok(());
        };
        if !self.now().voter_ids().any(|voter| voter == to) {
            return Err(Error::Membership(format!(
                "member {to} is no voter and cannot lead"
            )));
        }
        self.raft
            .trigger()
            .transfer_leader(to)
            .await
            .map_err(|error| Error::unavailable(error.to_string()))?;
        let mut leadership = self.leadership.clone();
        let taken =
            leadership.wait_for(|leadership| leadership.leader.is_some_and(|leader| leader != me));
        match tokio::time::timeout(TRANSFER, taken).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Error::Closed),
            Err(_) => Err(Error::unavailable(format!("member {to} did not take over"))),
        }
    }

    /// The voters of the configurations in force, and the members that answered this one, which leads, within a time.
    pub fn answering(&self, within: Duration) -> Answering {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let lately = metrics.heartbeat.iter().flatten().filter(|(_, heard)| {
            heard
                .as_ref()
                .is_some_and(|heard| heard.into_inner().elapsed() < within)
        });
        let matched = |id: &MemberId| {
            let replication = metrics.replication.as_ref()?.get(id)?.as_ref()?;
            Some(replication.index)
        };
        Answering {
            configs: metrics
                .membership_config
                .membership()
                .get_joint_config()
                .clone(),
            matched: lately
                .map(|(id, _)| (*id, matched(id).unwrap_or_default()))
                .collect(),
        }
    }

    /// Asks another member whether it may lead.
    pub async fn may_lead(&self, id: MemberId) -> bool {
        let answer = self.peers.manage(id, &Manage::MayLead, HELLO).await;
        matches!(answer, Ok(Managed::Done))
    }

    fn most_advanced_other(&self) -> Option<MemberId> {
        let voters: BTreeSet<_> = self.now().voter_ids().collect();
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let others = metrics.replication.as_ref()?.iter();
        let others = others.filter(|(id, _)| **id != self.peers.me() && voters.contains(id));
        others
            .max_by_key(|(_, matched)| **matched)
            .map(|(id, _)| *id)
    }

    async fn greet(&self, id: MemberId, address: &str) -> Result<Hello, Error> {
        match self
            .peers
            .manage_at(address, id, &Manage::Hello, HELLO)
            .await?
        {
            Managed::Hello(hello) => Ok(hello),
            other => Err(Error::unavailable(format!(
                "member {id} answered {other:?}"
            ))),
        }
    }

    /// Lets an empty member in, and tells it how far the log is at least: before its own is there it does not stand for
    /// election. The place of the membership in force will do, as the log before it may name the member as its only
    /// voter, and after it does not. Where a member of the same id was just removed, that change has been agreed on.
    async fn admit(&self, id: MemberId, address: &str, cluster: String) -> Result<(), Error> {
        let index = {
            let metrics = self.raft.server_metrics();
            let metrics = metrics.borrow_watched();
            metrics.membership_config.log_id().map_or(0, |id| id.index)
        };
        match self
            .peers
            .manage_at(address, id, &Manage::Admit { cluster, index }, HELLO)
            .await?
        {
            Managed::Done => Ok(()),
            Managed::Refused(reason) => Err(Error::Membership(reason)),
            other => Err(Error::unavailable(format!(
                "member {id} answered {other:?}"
            ))),
        }
    }

    /// Waits until a learner has all entries that there are now. Not for one that is gone: whoever was put in its place
    /// waits for its turn meanwhile.
    async fn catch_up(&self, id: MemberId) -> Result<(), Error> {
        let target = self.raft.metrics().borrow_watched().last_log_index;
        let matched = |metrics: &openraft::RaftMetrics<Types>| {
            let replication = metrics.replication.as_ref()?;
            let matched = replication.get(&id).and_then(Option::as_ref);
            Some(matched.map(|matched| matched.index))
        };
        let caught_up = |metrics: &openraft::RaftMetrics<Types>| {
            matched(metrics).is_none_or(|matched| matched >= target)
        };
        let end = tokio::time::Instant::now() + CATCH_UP;
        loop {
            let wait = self.raft.wait(Some(GONE));
            match wait.metrics(caught_up, "a learner to catch up").await {
                Ok(metrics) if metrics.replication.is_none() => {
                    return Err(Error::unavailable("the leader changed meanwhile"));
                }
                Ok(_) => return Ok(()),
                Err(error)
                    if tokio::time::Instant::now() >= end
                        || !self.answering(GONE).matched.contains_key(&id) =>
                {
                    return Err(Error::unavailable(format!("member {id}: {error}")));
                }
                Err(_) => {}
            }
        }
    }

    async fn change(
        &self,
        change: ChangeMembers<u64, BasicNode>,
        retain: bool,
    ) -> Result<(), Error> {
        match tokio::time::timeout(CHANGE, self.insist(change, retain)).await {
            Ok(result) => result,
            Err(_) => Err(Error::unavailable(
                "no majority agreed to the change in time",
            )),
        }
    }

    /// Tries again while an earlier change is under way.
    async fn insist(
        &self,
        change: ChangeMembers<u64, BasicNode>,
        retain: bool,
    ) -> Result<(), Error> {
        loop {
            match self.raft.change_membership(change.clone(), retain).await {
                Ok(_) => return Ok(()),
                Err(error) if is_in_progress(&error) => tokio::time::sleep(RETRY).await,
                Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error))) => {
                    return Err(Error::Membership(error.to_string()));
                }
                Err(error) => return Err(Error::unavailable(error.to_string())),
            }
        }
    }
}

fn is_in_progress(error: &RaftError<Types, ClientWriteError<Types>>) -> bool {
    use ChangeMembershipError::{InProgress, UncommittedLeaderLog};
    matches!(
        error,
        RaftError::APIError(ClientWriteError::ChangeMembershipError(
            InProgress(_) | UncommittedLeaderLog(_)
        ))
    )
}

/// A voter, and no change of voters was left half-way.
fn is_settled_voter(membership: &Membership, id: MemberId) -> bool {
    matches!(membership.get_joint_config().as_slice(), [voters] if voters.contains(&id))
}

fn check_hello(hello: &Hello, cluster: &str) -> Result<(), String> {
    match &hello.cluster {
        Some(theirs) if theirs != cluster => Err(format!(
            "member {} belongs to cluster {theirs}: start it with an empty folder to add it to cluster {cluster}",
            hello.id
        )),
        _ => Ok(()),
    }
}

/// The members that are said to be at an address.
fn at_address(membership: &Membership, address: &str) -> Vec<MemberId> {
    let nodes = membership.nodes();
    nodes
        .filter(|(_, node)| node.addr == address)
        .map(|(id, _)| *id)
        .collect()
}

fn list(membership: &Membership) -> Vec<Member> {
    let voters: BTreeSet<_> = membership.voter_ids().collect();
    let member = |(id, node): (&u64, &BasicNode)| Member {
        id: *id,
        address: node.addr.clone(),
        voter: voters.contains(id),
    };
    membership.nodes().map(member).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn membership(configs: Vec<BTreeSet<u64>>) -> Membership {
        let nodes: BTreeMap<_, _> = (1..=3)
            .map(|id| (id, BasicNode::new(format!("m{id}:1"))))
            .collect();
        Membership::new(configs, nodes).unwrap()
    }

    #[test]
    fn members_are_listed_with_their_votes() {
        let members = list(&membership(vec![BTreeSet::from([1, 3])]));
        let brief: Vec<_> = members
            .iter()
            .map(|m| (m.id, m.address.as_str(), m.voter))
            .collect();
        assert_eq!(
            brief,
            [(1, "m1:1", true), (2, "m2:1", false), (3, "m3:1", true)]
        );
    }

    #[test]
    fn a_change_left_half_way_is_gone_on_with() {
        assert!(is_settled_voter(
            &membership(vec![BTreeSet::from([1, 2])]),
            2
        ));
        assert!(!is_settled_voter(
            &membership(vec![BTreeSet::from([1]), BTreeSet::from([1, 2])]),
            2
        ));
    }

    #[test]
    fn a_member_of_another_cluster_is_refused() {
        let hello = |cluster: Option<&str>| Hello {
            id: 2,
            cluster: cluster.map(str::to_owned),
            blank: true,
        };
        assert!(check_hello(&hello(None), "c1").is_ok());
        assert!(check_hello(&hello(Some("c1")), "c1").is_ok());
        assert!(
            check_hello(&hello(Some("c2")), "c1")
                .unwrap_err()
                .contains("start it with an empty folder")
        );
    }
}
