//! When what a change of endpoints answers to came about: consumers measure from it how long the network lags behind.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::ObjectMeta;

use crate::support::pods;

/// Annotation of Endpoints and slices, RFC 3339.
const LAST_CHANGE: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Writes into objects that are about to be written what set the change off: of the pods' changes of readiness, and the
/// making of the Service, the first that comes after the one the object knows. Nothing known is no annotation.
pub(super) fn stamp(metadata: &mut ObjectMeta, service: &Service, pods: &[Arc<Pod>]) {
    let annotations = metadata.annotations.take().unwrap_or_default();
    let annotations = stamped(annotations, service, pods);
    metadata.annotations = (!annotations.is_empty()).then_some(annotations);
}

fn stamped(
    mut annotations: BTreeMap<String, String>,
    service: &Service,
    pods: &[Arc<Pod>],
) -> BTreeMap<String, String> {
    let known: Option<Timestamp> = annotations
        .remove(LAST_CHANGE)
        .and_then(|time| time.parse().ok());
    let made = service.metadata.creation_timestamp.as_ref();
    let first = pods
        .iter()
        .filter_map(|pod| readiness_changed(pod))
        .chain(made.map(|time| time.0))
        .filter(|time| known.is_none_or(|known| *time > known))
        .min();
    if let Some(time) = first {
        annotations.insert(LAST_CHANGE.to_owned(), time.to_string());
    }
    annotations
}

fn readiness_changed(pod: &Pod) -> Option<Timestamp> {
    let ready = pods::condition(pod, "Ready")?;
    Some(ready.last_transition_time.as_ref()?.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::support::pods::tests::pod;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn ready_since(second: i64) -> Arc<Pod> {
        let mut pod = pod("p", "Running", "a", true);
        for condition in pod.status.as_mut().unwrap().conditions.iter_mut().flatten() {
            condition.last_transition_time = Some(balsa_client::time::time(at(second)));
        }
        Arc::new(pod)
    }

    #[test]
    fn endpoints_say_what_set_their_change_off() {
        let mut service = Service::default();
        service.metadata.creation_timestamp = Some(balsa_client::time::time(at(10)));
        let mut metadata = ObjectMeta::default();
        let mut known = |pods: &[Arc<Pod>]| {
            stamp(&mut metadata, &service, pods);
            metadata
                .annotations
                .as_ref()
                .map(|annotations| annotations[LAST_CHANGE].clone())
        };
        let time = |second| Some(at(second).to_string());
        assert_eq!(known(&[]), time(10));
        assert_eq!(
            known(&[ready_since(5), ready_since(20), ready_since(30)]),
            time(20)
        );
        assert_eq!(known(&[ready_since(20), ready_since(30)]), time(30));
        assert_eq!(known(&[ready_since(30)]), None);
    }
}
