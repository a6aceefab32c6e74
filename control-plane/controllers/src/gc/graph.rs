//! Who owns whom, of all objects in the cluster. Pure.

use std::collections::{HashMap, HashSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::ObjectMeta;

/// Stays on an object while its dependents are deleted.
pub(super) const FOREGROUND: &str = "foregroundDeletion";
/// Stays on an object while its dependents are set free.
pub(super) const ORPHAN: &str = "orphan";

/// Where an object is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    /// API group.
    pub(super) group: String,
    pub(super) kind: String,
    /// Empty for cluster-scoped kinds; a guess for virtual nodes.
    pub(super) namespace: String,
    pub(super) name: String,
}

/// What is to be looked at next. An uid each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Work {
    /// Perhaps nobody owns it any more, or what it waits for is done.
    Delete(String),
    /// Set its dependents free.
    Orphan(String),
}

#[derive(Debug)]
struct Node {
    identity: Identity,
    owners: Vec<OwnerReference>,
    dependents: HashSet<String>,
    deleting: bool,
    deleting_dependents: bool,
    orphaning: bool,
    /// Only known from a reference; nobody has seen it.
    virtual_: bool,
}

/// What a worker needs to know of a node.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    pub(super) identity: Identity,
    pub(super) deleting: bool,
    pub(super) deleting_dependents: bool,
    pub(super) dependents: Vec<Dependent>,
}

/// A dependent as its owner sees it.
#[derive(Debug, Clone)]
pub(super) struct Dependent {
    pub(super) uid: String,
    pub(super) identity: Identity,
    /// It keeps its owner from going, in a foreground deletion.
    pub(super) blocks: bool,
    pub(super) deleting_dependents: bool,
}

/// The graph of owners and dependents.
#[derive(Debug, Default)]
pub(super) struct Graph {
    nodes: HashMap<String, Node>,
}

impl Graph {
    /// An object was added or changed.
    pub(super) fn observe(&mut self, identity: Identity, meta: &ObjectMeta) -> Vec<Work> {
        let Some(uid) = meta.uid.clone() else {
            return Vec::new();
        };
        let mut work = Vec::new();
        let owners = meta.owner_references.clone().unwrap_or_default();
        let namespace = identity.namespace.clone();
        let before = self.update(&uid, identity, owners.clone());
        for owner in &before {
            if !owners.iter().any(|new| new.uid == owner.uid) {
                self.unlink(&owner.uid, &uid, &mut work);
            }
        }
        for owner in &owners {
            self.link(owner, &namespace, &uid, &mut work);
            let unblocked = before
                .iter()
                .any(|old| old.uid == owner.uid && blocks(old) && !blocks(owner));
            if unblocked {
                self.wake_waiting(&owner.uid, &mut work);
            }
        }
        self.transitions(&uid, meta, &mut work);
        work
    }

    /// An object is gone, or a virtual one turned out not to exist.
    pub(super) fn remove(&mut self, uid: &str) -> Vec<Work> {
        let Some(node) = self.nodes.remove(uid) else {
            return Vec::new();
        };
        let mut work = Vec::new();
        for owner in &node.owners {
            self.unlink(&owner.uid, uid, &mut work);
        }
        work.extend(node.dependents.into_iter().map(Work::Delete));
        work
    }

    /// A copy of what is known of an object.
    pub(super) fn snapshot(&self, uid: &str) -> Option<Snapshot> {
        let node = self.nodes.get(uid)?;
        let dependents = node.dependents.iter().filter_map(|dependent| {
            let found = self.nodes.get(dependent)?;
            Some(Dependent {
                uid: dependent.clone(),
                identity: found.identity.clone(),
                blocks: found
                    .owners
                    .iter()
                    .any(|owner| owner.uid == uid && blocks(owner)),
                deleting_dependents: found.deleting_dependents,
            })
        });
        Some(Snapshot {
            identity: node.identity.clone(),
            deleting: node.deleting,
            deleting_dependents: node.deleting_dependents,
            dependents: dependents.collect(),
        })
    }

    /// Puts the node in with its new owners; returns those it had.
    fn update(
        &mut self,
        uid: &str,
        identity: Identity,
        owners: Vec<OwnerReference>,
    ) -> Vec<OwnerReference> {
        let node = self
            .nodes
            .entry(uid.to_owned())
            .or_insert_with(|| Node::new(identity.clone()));
        // A reference may have guessed the identity of a virtual node wrongly.
        node.identity = identity;
        node.virtual_ = false;
        std::mem::replace(&mut node.owners, owners)
    }

    fn link(&mut self, owner: &OwnerReference, namespace: &str, uid: &str, work: &mut Vec<Work>) {
        let node = self.nodes.entry(owner.uid.clone()).or_insert_with(|| {
            // Unknown, perhaps gone for long: somebody must look.
            work.push(Work::Delete(owner.uid.clone()));
            let mut node = Node::new(Identity {
                group: owner
                    .api_version
                    .rsplit_once('/')
                    .map_or("", |(group, _)| group)
                    .to_owned(),
                kind: owner.kind.clone(),
                namespace: namespace.to_owned(),
                name: owner.name.clone(),
            });
            node.virtual_ = true;
            node
        });
        node.dependents.insert(uid.to_owned());
    }

    fn unlink(&mut self, owner: &str, uid: &str, work: &mut Vec<Work>) {
        let Some(node) = self.nodes.get_mut(owner) else {
            return;
        };
        node.dependents.remove(uid);
        if node.virtual_ && node.dependents.is_empty() {
            self.nodes.remove(owner);
            return;
        }
        self.wake_waiting(owner, work);
    }

    fn wake_waiting(&self, owner: &str, work: &mut Vec<Work>) {
        if self
            .nodes
            .get(owner)
            .is_some_and(|node| node.deleting_dependents)
        {
            work.push(Work::Delete(owner.to_owned()));
        }
    }

    fn transitions(&mut self, uid: &str, meta: &ObjectMeta, work: &mut Vec<Work>) {
        let Some(node) = self.nodes.get_mut(uid) else {
            return;
        };
        node.deleting = meta.deletion_timestamp.is_some();
        if !node.deleting {
            return;
        }
        let has = |name: &str| {
            meta.finalizers
                .iter()
                .flatten()
                .any(|finalizer| finalizer == name)
        };
        if has(ORPHAN) {
            if !std::mem::replace(&mut node.orphaning, true) {
                work.push(Work::Orphan(uid.to_owned()));
            }
        } else if has(FOREGROUND) && !std::mem::replace(&mut node.deleting_dependents, true) {
            work.extend(node.dependents.iter().cloned().map(Work::Delete));
            work.push(Work::Delete(uid.to_owned()));
        }
    }
}

impl Node {
    fn new(identity: Identity) -> Self {
        Self {
            identity,
            owners: Vec::new(),
            dependents: HashSet::new(),
            deleting: false,
            deleting_dependents: false,
            orphaning: false,
            virtual_: false,
        }
    }
}

fn blocks(owner: &OwnerReference) -> bool {
    owner.block_owner_deletion == Some(true)
}

/// What is known of an owner after asking the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OwnerState {
    /// It is there and stays.
    Solid,
    /// It does not exist (or another has its name).
    Dangling,
    /// It is being deleted in the foreground and waits for this dependent.
    Waiting,
}

/// What to do with an object, given the states of its owners.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Leave it.
    Keep,
    /// Somebody still owns it: take the other references off.
    DropReferences(Vec<String>),
    /// Delete it, its own dependents first; `unblock` its references first, to break a cycle.
    DeleteForeground { unblock: bool },
    /// Delete it.
    Delete,
}

/// Decides on an object with owners.
pub(super) fn judge(owners: &[(String, OwnerState)], snapshot: &Snapshot) -> Verdict {
    let of = |state: OwnerState| owners.iter().filter(move |(_, found)| *found == state);
    if owners.is_empty() {
        return Verdict::Keep;
    }
    if of(OwnerState::Solid).next().is_some() {
        let gone: Vec<String> = owners
            .iter()
            .filter(|(_, state)| *state != OwnerState::Solid)
            .map(|(uid, _)| uid.clone())
            .collect();
        return if gone.is_empty() {
            Verdict::Keep
        } else {
            Verdict::DropReferences(gone)
        };
    }
    if of(OwnerState::Waiting).next().is_some() && !snapshot.dependents.is_empty() {
        let unblock = snapshot
            .dependents
            .iter()
            .any(|dependent| dependent.deleting_dependents);
        return Verdict::DeleteForeground { unblock };
    }
    Verdict::Delete
}

#[cfg(test)]
mod tests;
