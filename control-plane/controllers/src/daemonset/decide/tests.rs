#![allow(clippy::unwrap_used)]
use k8s_openapi::api::apps::v1::{DaemonSetUpdateStrategy, RollingUpdateDaemonSet};
use k8s_openapi::api::core::v1::{NodeSpec, PodSpec, PodTemplateSpec, Taint};

use super::*;
use crate::support::history::REVISION_LABEL;
use crate::support::pods::tests::pod;

fn node(name: &str) -> Arc<Node> {
    let mut node = Node::default();
    node.metadata.name = Some(name.into());
    Arc::new(node)
}

fn tainted(name: &str, effect: &str) -> Arc<Node> {
    let mut node = (*node(name)).clone();
    let taint = Taint {
        key: "gpu".into(),
        effect: effect.into(),
        ..Taint::default()
    };
    node.spec = Some(NodeSpec {
        taints: Some(vec![taint]),
        ..NodeSpec::default()
    });
    Arc::new(node)
}

fn on(name: &str, node: &str, hash: &str, ready: bool) -> Arc<Pod> {
    let mut pod = pod(name, "Running", node, ready);
    pod.labels_mut().insert(REVISION_LABEL.into(), hash.into());
    Arc::new(pod)
}

fn set(surge: i32, unavailable: i32) -> DaemonSet {
    let rolling = RollingUpdateDaemonSet {
        max_surge: Some(IntOrString::Int(surge)),
        max_unavailable: Some(IntOrString::Int(unavailable)),
    };
    DaemonSet {
        spec: Some(DaemonSetSpec {
            template: PodTemplateSpec {
                metadata: None,
                spec: Some(PodSpec::default()),
            },
            update_strategy: Some(DaemonSetUpdateStrategy {
                type_: Some("RollingUpdate".into()),
                rolling_update: Some(rolling),
            }),
            ..DaemonSetSpec::default()
        }),
        ..DaemonSet::default()
    }
}

/// Runs `ask` on a view of these nodes and pods; the current hash is `new`.
fn viewing<T>(
    set: &DaemonSet,
    nodes: &[Arc<Node>],
    owned: &[Arc<Pod>],
    ask: impl FnOnce(&View<'_>) -> T,
) -> T {
    ask(&View {
        set,
        spec: set.spec.as_ref().unwrap(),
        nodes,
        pods: &by_node(owned),
        hash: "new",
        now: Timestamp::from_second(2000).unwrap(),
    })
}

fn names(pods: &[Arc<Pod>]) -> Vec<String> {
    pods.iter().map(|pod| pod.name_any()).collect()
}

#[test]
fn each_fitting_node_gets_one_pod_and_tainted_ones_lose_or_keep_theirs() {
    let nodes = [
        node("a"),
        tainted("b", "NoSchedule"),
        tainted("c", "NoExecute"),
        node("d"),
    ];
    let owned = [
        on("b1", "b", "new", true),
        on("c1", "c", "new", true),
        on("d1", "d", "new", true),
        on("d2", "d", "new", true),
    ];
    let plan = viewing(&set(0, 1), &nodes, &owned, |view| {
        manage(view, |_| Duration::ZERO)
    });
    assert_eq!(plan.create, ["a"]);
    assert_eq!(names(&plan.delete), ["c1", "d2"]);
}

#[test]
fn failed_pods_go_unless_they_fail_too_often() {
    let owned = [Arc::new(pod("a1", "Failed", "a", false))];
    let nodes = [node("a")];
    let set = set(0, 1);
    let plan = viewing(&set, &nodes, &owned, |view| {
        manage(view, |_| Duration::ZERO)
    });
    assert_eq!(names(&plan.delete), ["a1"]);
    assert_eq!(plan.events[0].1, "FailedDaemonPod");
    let wait = Duration::from_secs(4);
    let plan = viewing(&set, &nodes, &owned, |view| manage(view, |_| wait));
    assert!(plan.delete.is_empty() && plan.create.is_empty());
    assert_eq!(plan.retry, Some(wait));
}

#[test]
fn an_update_replaces_the_unavailable_first_and_no_more_than_allowed() {
    let nodes = ["a", "b", "c"].map(node);
    let all_ready = ["a", "b", "c"].map(|n| on(n, n, "old", true));
    let plan = viewing(&set(0, 1), &nodes, &all_ready, roll);
    assert_eq!(names(&plan.delete), ["a"]);
    let one_down = [
        on("a", "a", "old", true),
        on("b", "b", "old", false),
        on("c", "c", "new", true),
    ];
    let plan = viewing(&set(0, 1), &nodes, &one_down, roll);
    assert_eq!(names(&plan.delete), ["b"]);
    // The new pod is not ready yet: nobody else may go.
    let waiting = [on("a", "a", "new", false), on("b", "b", "old", true)];
    assert!(
        viewing(&set(0, 1), &nodes, &waiting, roll)
            .delete
            .is_empty()
    );
}

#[test]
fn with_surge_the_new_pod_comes_before_the_old_one_goes() {
    let nodes = ["a", "b"].map(node);
    let old = ["a", "b"].map(|n| on(n, n, "old", true));
    let set = set(1, 0);
    let plan = viewing(&set, &nodes, &old, roll);
    assert_eq!(plan.create, ["a"]);
    assert!(plan.delete.is_empty());
    let both = |ready| {
        [
            on("a-old", "a", "old", true),
            on("a-new", "a", "new", ready),
        ]
    };
    let manage = |owned: &[Arc<Pod>]| {
        names(
            &viewing(&set, &nodes[..1], owned, |view| {
                manage(view, |_| Duration::ZERO)
            })
            .delete,
        )
    };
    assert!(manage(&both(false)).is_empty());
    assert_eq!(manage(&both(true)), ["a-old"]);
}

#[test]
fn status_counts_nodes_not_pods() {
    let nodes = [node("a"), node("b"), tainted("c", "NoSchedule")];
    let owned = [
        on("a1", "a", "new", true),
        on("a2", "a", "old", true),
        on("c1", "c", "old", true),
    ];
    let status = viewing(&set(0, 1), &nodes, &owned, |view| status(view, None, true));
    assert_eq!(
        (
            status.desired_number_scheduled,
            status.current_number_scheduled,
            status.number_ready
        ),
        (2, 1, 1)
    );
    assert_eq!(status.number_misscheduled, 1);
    assert_eq!(status.number_unavailable, Some(1));
    assert_eq!(status.updated_number_scheduled, Some(1));
}
