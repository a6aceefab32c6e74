#![allow(clippy::unwrap_used)]
use super::*;

fn template() -> Template {
    Template {
        namespace: "default".into(),
        service: "web".into(),
        labels: BTreeMap::from([(SERVICE_NAME.to_owned(), "web".to_owned())]),
        annotations: None,
        owner: OwnerReference::default(),
    }
}

fn endpoint(address: usize) -> Endpoint {
    Endpoint {
        addresses: vec![format!("10.0.0.{address}")],
        ..Endpoint::default()
    }
}

fn wanted(addresses: std::ops::Range<usize>) -> Vec<Group> {
    group(
        "IPv4",
        addresses.map(|address| {
            (
                vec![EndpointPort {
                    port: Some(80),
                    ..EndpointPort::default()
                }],
                endpoint(address),
            )
        }),
    )
}

fn plan_of(existing: &[Arc<EndpointSlice>], wanted: Vec<Group>) -> Plan {
    plan(existing, wanted, &["IPv4"], &template())
}

/// Gives created slices names, as the server does.
fn stored(slices: Vec<EndpointSlice>) -> Vec<Arc<EndpointSlice>> {
    slices
        .into_iter()
        .enumerate()
        .map(|(i, mut slice)| {
            slice.metadata.name = Some(format!("web-{i}"));
            Arc::new(slice)
        })
        .collect()
}

#[test]
fn slices_hold_a_hundred_endpoints_each() {
    let plan = plan_of(&[], wanted(0..250));
    let sizes: Vec<usize> = plan
        .create
        .iter()
        .map(|slice| slice.endpoints.len())
        .collect();
    assert_eq!(sizes, [100, 100, 50]);
}

#[test]
fn nothing_is_written_when_nothing_changed() {
    let existing = stored(plan_of(&[], wanted(0..150)).create);
    let plan = plan_of(&existing, wanted(0..150));
    assert!(plan.create.is_empty() && plan.update.is_empty() && plan.delete.is_empty());
}

#[test]
fn one_more_endpoint_updates_one_slice() {
    let existing = stored(plan_of(&[], wanted(0..150)).create);
    let plan = plan_of(&existing, wanted(0..151));
    assert_eq!(
        (plan.create.len(), plan.update.len(), plan.delete.len()),
        (0, 1, 0)
    );
    assert_eq!(plan.update[0].endpoints.len(), 51);
}

#[test]
fn an_emptied_slice_goes_but_the_last_stays_empty() {
    let existing = stored(plan_of(&[], wanted(0..150)).create);
    let to_first = plan_of(
        &existing,
        group(
            "IPv4",
            existing[0]
                .endpoints
                .iter()
                .map(|e| (existing[0].ports.clone().unwrap(), e.clone())),
        ),
    );
    assert_eq!((to_first.update.len(), to_first.delete.len()), (0, 1));
    let to_none = plan_of(&existing, Vec::new());
    assert_eq!(
        (
            to_none.create.len(),
            to_none.update.len(),
            to_none.delete.len()
        ),
        (0, 1, 1)
    );
    assert!(to_none.update[0].endpoints.is_empty());
}

#[test]
fn a_service_without_pods_has_one_empty_slice() {
    let plan = plan_of(&[], Vec::new());
    assert_eq!(plan.create.len(), 1);
    let existing = stored(plan.create);
    let again = plan_of(&existing, Vec::new());
    assert!(again.create.is_empty() && again.update.is_empty() && again.delete.is_empty());
}

#[test]
fn pods_with_other_ports_get_a_slice_of_their_own() {
    let port = |number| {
        vec![EndpointPort {
            port: Some(number),
            ..EndpointPort::default()
        }]
    };
    let groups = group(
        "IPv4",
        [
            (port(80), endpoint(1)),
            (port(81), endpoint(2)),
            (port(80), endpoint(3)),
        ],
    );
    let plan = plan_of(&[], groups);
    let sizes: Vec<usize> = plan
        .create
        .iter()
        .map(|slice| slice.endpoints.len())
        .collect();
    assert_eq!(sizes, [2, 1]);
}
