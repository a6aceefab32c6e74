#![allow(clippy::unwrap_used)]
use k8s_openapi::api::apps::v1::{
    RollingUpdateStatefulSetStrategy, StatefulSetOrdinals, StatefulSetUpdateStrategy,
};

use super::*;
use crate::statefulset::pod::NAME_LABEL;
use crate::support::history::REVISION_LABEL;
use crate::support::pods::tests::pod;

fn replica(ordinal: i32, phase: &str, ready: bool, revision: &str) -> Arc<Pod> {
    let mut pod = pod(&format!("web-{ordinal}"), phase, "a", ready);
    pod.labels_mut()
        .insert(REVISION_LABEL.into(), revision.into());
    let name = pod.name_any();
    pod.labels_mut().insert(NAME_LABEL.into(), name);
    Arc::new(pod)
}

fn running(ordinals: impl IntoIterator<Item = i32>, revision: &str) -> Vec<Arc<Pod>> {
    ordinals
        .into_iter()
        .map(|ordinal| replica(ordinal, "Running", true, revision))
        .collect()
}

fn terminating(pod: &Arc<Pod>) -> Arc<Pod> {
    let mut pod = (**pod).clone();
    pod.metadata.deletion_timestamp = Some(balsa_client::time::now());
    Arc::new(pod)
}

fn set(replicas: i32, partition: i32) -> StatefulSet {
    let rolling = RollingUpdateStatefulSetStrategy {
        partition: Some(partition),
        ..RollingUpdateStatefulSetStrategy::default()
    };
    let mut set = StatefulSet {
        spec: Some(StatefulSetSpec {
            replicas: Some(replicas),
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("RollingUpdate".into()),
                rolling_update: Some(rolling),
            }),
            ..StatefulSetSpec::default()
        }),
        ..StatefulSet::default()
    };
    set.metadata.name = Some("web".into());
    set
}

fn parallel(mut set: StatefulSet) -> StatefulSet {
    set.spec.as_mut().unwrap().pod_management_policy = Some("Parallel".into());
    set
}

fn viewing<T>(set: &StatefulSet, pods: &[Arc<Pod>], ask: impl FnOnce(&View<'_>) -> T) -> T {
    ask(&View {
        set,
        spec: set.spec.as_ref().unwrap(),
        pods,
        current: "old",
        update: "new",
        now: Timestamp::from_second(2000).unwrap(),
    })
}

fn todo_list(set: &StatefulSet, pods: &[Arc<Pod>]) -> Vec<String> {
    let text = |action: Action| match action {
        Action::Create {
            ordinal,
            from_current,
        } => {
            format!(
                "create {ordinal} {}",
                if from_current { "old" } else { "new" }
            )
        }
        Action::Furnish(pod) => format!("furnish {}", pod.name_any()),
        Action::Relabel(pod) => format!("relabel {}", pod.name_any()),
        Action::Recreate(pod) => format!("recreate {}", pod.name_any()),
        Action::Delete(pod) => format!("delete {}", pod.name_any()),
    };
    viewing(set, pods, plan).into_iter().map(text).collect()
}

#[test]
fn replicas_come_one_after_the_other_and_wait_for_an_unready_one() {
    assert_eq!(todo_list(&set(3, 0), &[]), ["create 0 new"]);
    assert_eq!(
        todo_list(&set(3, 0), &running([0], "new")),
        ["create 1 new"]
    );
    let unready = [replica(0, "Running", false, "new")];
    assert!(todo_list(&set(3, 0), &unready).is_empty());
    assert_eq!(
        todo_list(&parallel(set(3, 0)), &unready),
        ["create 1 new", "create 2 new"]
    );
}

#[test]
fn a_smaller_set_loses_its_highest_pods_but_only_while_the_others_are_well() {
    let mut pods = running(0..3, "new");
    assert_eq!(todo_list(&set(1, 0), &pods), ["delete web-2"]);
    pods[2] = terminating(&pods[2]);
    assert!(todo_list(&set(1, 0), &pods).is_empty());
    assert_eq!(todo_list(&parallel(set(1, 0)), &pods), ["delete web-1"]);
    let sick = [
        replica(0, "Running", false, "new"),
        replica(1, "Running", true, "new"),
    ];
    assert!(todo_list(&set(1, 0), &sick).is_empty());
    // The highest is the one that is sick: it may go.
    let last_sick = [
        replica(0, "Running", true, "new"),
        replica(1, "Running", false, "new"),
    ];
    assert_eq!(todo_list(&set(1, 0), &last_sick), ["delete web-1"]);
}

#[test]
fn failed_pods_are_made_again_under_their_name() {
    let pods = [
        replica(0, "Failed", false, "new"),
        replica(1, "Running", true, "new"),
    ];
    assert_eq!(todo_list(&set(2, 0), &pods), ["recreate web-0"]);
    let pods = [terminating(&pods[0]), Arc::clone(&pods[1])];
    assert!(todo_list(&set(2, 0), &pods).is_empty());
    assert_eq!(todo_list(&set(2, 0), &pods[1..]), ["create 0 new"]);
}

#[test]
fn an_update_goes_down_from_the_highest_ordinal_to_the_partition() {
    let pods = running(0..3, "old");
    assert_eq!(todo_list(&set(3, 0), &pods), ["delete web-2"]);
    let pods = [running(0..2, "old"), running([2], "new")].concat();
    assert_eq!(todo_list(&set(3, 0), &pods), ["delete web-1"]);
    assert!(todo_list(&set(3, 2), &pods).is_empty());
    // Below the partition even a new pod is of the current revision.
    assert_eq!(todo_list(&set(3, 2), &pods[1..]), ["create 0 old"]);
    let waiting = [
        running(0..2, "old"),
        vec![replica(2, "Running", false, "new")],
    ]
    .concat();
    assert!(todo_list(&set(3, 0), &waiting).is_empty());
}

#[test]
fn on_delete_new_pods_are_of_the_update_revision() {
    let mut set = set(2, 0);
    let strategy = StatefulSetUpdateStrategy {
        type_: Some("OnDelete".into()),
        rolling_update: None,
    };
    set.spec.as_mut().unwrap().update_strategy = Some(strategy);
    assert!(todo_list(&set, &running(0..2, "old")).is_empty());
    assert_eq!(todo_list(&set, &running([0], "old")), ["create 1 new"]);
}

#[test]
fn ordinals_may_start_elsewhere() {
    let mut set = set(2, 0);
    set.spec.as_mut().unwrap().ordinals = Some(StatefulSetOrdinals { start: Some(5) });
    assert_eq!(todo_list(&set, &running([5], "new")), ["create 6 new"]);
    assert_eq!(
        todo_list(&set, &running([0, 5, 6], "new")),
        ["delete web-0"]
    );
}

#[test]
fn the_update_revision_becomes_current_when_all_have_it() {
    let pods = [running(0..2, "old"), running([2], "new")].concat();
    let mid = viewing(&set(3, 0), &pods, |view| status(view, None));
    assert_eq!(mid.current_revision.as_deref(), Some("old"));
    assert_eq!(
        (mid.current_replicas, mid.updated_replicas),
        (Some(2), Some(1))
    );
    let done = viewing(&set(3, 0), &running(0..3, "new"), |view| status(view, None));
    assert_eq!(done.current_revision.as_deref(), Some("new"));
    assert_eq!(
        (done.current_replicas, done.available_replicas),
        (Some(3), Some(3))
    );
}
