#![allow(clippy::unwrap_used)]
use k8s_openapi::api::apps::v1::{
    DeploymentSpec, DeploymentStrategy, ReplicaSetSpec, ReplicaSetStatus, RollingUpdateDeployment,
};

use super::*;

fn deployment(replicas: i32, surge: &str, unavailable: &str) -> Deployment {
    let parse = |text: &str| match text.parse() {
        Ok(number) => IntOrString::Int(number),
        Err(_) => IntOrString::String(text.into()),
    };
    Deployment {
        spec: Some(DeploymentSpec {
            replicas: Some(replicas),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".into()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(parse(surge)),
                    max_unavailable: Some(parse(unavailable)),
                }),
            }),
            ..DeploymentSpec::default()
        }),
        ..Deployment::default()
    }
}

fn set(replicas: i32, available: i32) -> ReplicaSet {
    ReplicaSet {
        spec: Some(ReplicaSetSpec {
            replicas: Some(replicas),
            ..ReplicaSetSpec::default()
        }),
        status: Some(ReplicaSetStatus {
            available_replicas: Some(available),
            ..ReplicaSetStatus::default()
        }),
        ..ReplicaSet::default()
    }
}

fn with_max(mut set: ReplicaSet, max: i32) -> ReplicaSet {
    set.annotations_mut()
        .insert(revision::MAX_REPLICAS.into(), max.to_string());
    set
}

#[test]
fn surge_rounds_up_and_unavailability_down_and_never_both_to_nothing() {
    let posts = |replicas, surge: &str, unavailable: &str| {
        let posts = fenceposts(&deployment(replicas, surge, unavailable));
        (posts.surge, posts.unavailable)
    };
    assert_eq!(posts(10, "25%", "25%"), (3, 2));
    assert_eq!(posts(1, "25%", "25%"), (1, 0));
    assert_eq!(posts(3, "0", "25%"), (0, 1));
    assert_eq!(posts(2, "0", "5"), (0, 2));
}

#[test]
fn the_new_set_grows_into_the_surge() {
    let deployment = deployment(10, "2", "2");
    let (new, old) = (set(0, 0), set(10, 10));
    assert_eq!(reconcile_new(&deployment, &[&old, &new], &new), Some(2));
    let (new, old) = (set(9, 9), set(1, 1));
    assert_eq!(reconcile_new(&deployment, &[&old, &new], &new), Some(10));
    let (new, old) = (set(2, 0), set(10, 10));
    assert_eq!(reconcile_new(&deployment, &[&old, &new], &new), None);
}

#[test]
fn old_pods_go_only_while_enough_are_available() {
    let deployment = deployment(10, "2", "2");
    // New pods that are not yet available hold the old ones back.
    assert_eq!(
        reconcile_old(&deployment, &[&set(10, 10)], Some(&set(2, 0))),
        [8]
    );
    assert_eq!(
        reconcile_old(&deployment, &[&set(8, 8)], Some(&set(4, 0))),
        [8]
    );
    assert_eq!(
        reconcile_old(&deployment, &[&set(8, 8)], Some(&set(4, 4))),
        [4]
    );
}

#[test]
fn unhealthy_old_pods_go_first() {
    let deployment = deployment(4, "1", "1");
    assert_eq!(
        reconcile_old(&deployment, &[&set(2, 2), &set(2, 0)], Some(&set(1, 0))),
        [2, 1]
    );
}

#[test]
fn a_resize_in_mid_rollout_is_shared_in_proportion() {
    // Upstream's example: 10 replicas with surge 3, sets of 8 and 5, resized to 15: 3 of 5 go to the larger.
    let deployment = deployment(15, "3", "2");
    let (old, new) = (with_max(set(8, 8), 13), with_max(set(5, 0), 13));
    assert_eq!(proportional(&deployment, &[&old, &new]), [11, 7]);
}

#[test]
fn a_resize_to_nothing_empties_all_sets() {
    let deployment = deployment(0, "25%", "25%");
    assert_eq!(proportional(&deployment, &[&set(8, 8), &set(5, 0)]), [0, 0]);
}

#[test]
fn any_rolling_update_ends_and_never_breaks_its_limits() {
    for (replicas, surge, unavailable) in [
        (1, "25%", "25%"),
        (3, "0", "1"),
        (5, "2", "0"),
        (10, "25%", "25%"),
    ] {
        let deployment = deployment(replicas, surge, unavailable);
        let posts = fenceposts(&deployment);
        let (mut old, mut new) = (replicas, 0);
        for _ in 0..100 {
            let (old_set, new_set) = (set(old, old), set(new, new));
            if let Some(size) = reconcile_new(&deployment, &[&old_set, &new_set], &new_set) {
                new = size;
                assert!(old + new <= replicas + posts.surge);
                // They become available in the next round.
                continue;
            }
            old = reconcile_old(&deployment, &[&old_set], Some(&new_set))[0];
            assert!(old + new >= replicas - posts.unavailable);
        }
        assert_eq!((old, new), (0, replicas));
    }
}
