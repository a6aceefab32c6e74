#![allow(clippy::unwrap_used)]
use super::*;

fn identity(name: &str) -> Identity {
    Identity {
        group: String::new(),
        kind: "Pod".into(),
        namespace: "default".into(),
        name: name.into(),
    }
}

fn meta(uid: &str, owners: &[&str]) -> ObjectMeta {
    let owner = |uid: &&str| OwnerReference {
        api_version: "apps/v1".into(),
        kind: "ReplicaSet".into(),
        name: (*uid).to_owned(),
        uid: (*uid).to_owned(),
        block_owner_deletion: Some(true),
        ..OwnerReference::default()
    };
    ObjectMeta {
        uid: Some(uid.into()),
        owner_references: Some(owners.iter().map(owner).collect()),
        ..ObjectMeta::default()
    }
}

fn deleting(mut meta: ObjectMeta, finalizer: &str) -> ObjectMeta {
    meta.deletion_timestamp = Some(balsa_client::time::now());
    meta.finalizers = Some(vec![finalizer.into()]);
    meta
}

fn delete(uid: &str) -> Work {
    Work::Delete(uid.into())
}

#[test]
fn dependents_of_a_removed_owner_are_looked_at() {
    let mut graph = Graph::default();
    assert_eq!(graph.observe(identity("owner"), &meta("owner", &[])), []);
    assert_eq!(graph.observe(identity("pod"), &meta("pod", &["owner"])), []);
    assert_eq!(graph.remove("owner"), [delete("pod")]);
}

#[test]
fn an_owner_nobody_has_seen_is_looked_up_once() {
    let mut graph = Graph::default();
    assert_eq!(
        graph.observe(identity("a"), &meta("a", &["ghost"])),
        [delete("ghost")]
    );
    assert_eq!(graph.observe(identity("b"), &meta("b", &["ghost"])), []);
    assert_eq!(graph.snapshot("ghost").unwrap().identity.group, "apps");
    let mut work = graph.remove("ghost");
    work.sort_by_key(|work| format!("{work:?}"));
    assert_eq!(work, [delete("a"), delete("b")]);
}

#[test]
fn a_virtual_owner_goes_with_its_last_dependent() {
    let mut graph = Graph::default();
    graph.observe(identity("a"), &meta("a", &["ghost"]));
    graph.observe(identity("a"), &meta("a", &[]));
    assert!(!graph.nodes.contains_key("ghost"));
}

#[test]
fn a_foreground_deletion_looks_at_dependents_and_ends_when_the_last_is_gone() {
    let mut graph = Graph::default();
    graph.observe(identity("owner"), &meta("owner", &[]));
    graph.observe(identity("pod"), &meta("pod", &["owner"]));
    let going = deleting(meta("owner", &[]), FOREGROUND);
    assert_eq!(
        graph.observe(identity("owner"), &going),
        [delete("pod"), delete("owner")]
    );
    // Seen again, it is no news.
    assert_eq!(graph.observe(identity("owner"), &going), []);
    assert!(graph.snapshot("owner").unwrap().dependents[0].blocks);
    assert_eq!(graph.remove("pod"), [delete("owner")]);
}

#[test]
fn a_dependent_that_no_longer_blocks_wakes_its_waiting_owner() {
    let mut graph = Graph::default();
    graph.observe(identity("owner"), &deleting(meta("owner", &[]), FOREGROUND));
    graph.observe(identity("pod"), &meta("pod", &["owner"]));
    let mut freed = meta("pod", &["owner"]);
    freed.owner_references.as_mut().unwrap()[0].block_owner_deletion = Some(false);
    assert_eq!(graph.observe(identity("pod"), &freed), [delete("owner")]);
}

#[test]
fn orphaning_is_asked_for_once() {
    let mut graph = Graph::default();
    graph.observe(identity("owner"), &meta("owner", &[]));
    let going = deleting(meta("owner", &[]), ORPHAN);
    assert_eq!(
        graph.observe(identity("owner"), &going),
        [Work::Orphan("owner".into())]
    );
    assert_eq!(graph.observe(identity("owner"), &going), []);
}

fn snapshot(dependents: &[bool]) -> Snapshot {
    let dependent = |deleting_dependents: &bool| Dependent {
        uid: "d".into(),
        identity: identity("d"),
        blocks: true,
        deleting_dependents: *deleting_dependents,
    };
    Snapshot {
        identity: identity("x"),
        deleting: false,
        deleting_dependents: false,
        dependents: dependents.iter().map(dependent).collect(),
    }
}

#[test]
fn an_object_goes_only_when_no_owner_is_left() {
    use OwnerState::{Dangling, Solid, Waiting};
    let judge = |states: &[OwnerState], dependents: &[bool]| {
        let owners: Vec<_> = states
            .iter()
            .enumerate()
            .map(|(i, state)| (i.to_string(), *state))
            .collect();
        super::judge(&owners, &snapshot(dependents))
    };
    assert_eq!(judge(&[], &[]), Verdict::Keep);
    assert_eq!(judge(&[Solid], &[]), Verdict::Keep);
    assert_eq!(
        judge(&[Solid, Dangling, Waiting], &[]),
        Verdict::DropReferences(vec!["1".into(), "2".into()])
    );
    assert_eq!(judge(&[Dangling], &[false]), Verdict::Delete);
    assert_eq!(judge(&[Waiting], &[]), Verdict::Delete);
    assert_eq!(
        judge(&[Waiting], &[false]),
        Verdict::DeleteForeground { unblock: false }
    );
    // Its dependent waits for it in turn: a cycle, broken here.
    assert_eq!(
        judge(&[Waiting, Dangling], &[true]),
        Verdict::DeleteForeground { unblock: true }
    );
}
