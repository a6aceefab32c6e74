//! Identity of a StatefulSet's pods: name, ordinal, host name, storage. Pure.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use kube::ResourceExt;
use kube::api::ObjectMeta;

use crate::support::history::REVISION_LABEL;
use crate::support::pod_control::from_template;

pub(super) const NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
const INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";

/// The ordinal in a pod's name, if it is one of the set's names.
pub(super) fn ordinal(set: &str, pod: &Pod) -> Option<i32> {
    let name = pod.metadata.name.as_deref()?;
    let text = name.strip_prefix(set)?.strip_prefix('-')?;
    // `web-01` and `web-+1` are not names that the set gives.
    let canonical =
        text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| canonical)
}

/// True when the pod's name is one of the set's.
pub(super) fn is_member(set: &str, pod: &Pod) -> bool {
    ordinal(set, pod).is_some()
}

pub(super) fn name(set: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{ordinal}", set.name_any())
}

/// The pod's revision: a ControllerRevision's name.
pub(super) fn revision(pod: &Pod) -> &str {
    pod.labels()
        .get(REVISION_LABEL)
        .map(String::as_str)
        .unwrap_or_default()
}

/// Templates of the set's claims.
pub(super) fn claim_templates(set: &StatefulSet) -> &[PersistentVolumeClaim] {
    let spec = set.spec.as_ref();
    spec.and_then(|spec| spec.volume_claim_templates.as_deref())
        .unwrap_or_default()
}

/// Name of the claim that a template makes for a pod.
pub(super) fn claim_name(template: &PersistentVolumeClaim, pod: &str) -> String {
    format!("{}-{pod}", template.name_any())
}

/// The pod of an ordinal, from the template of a revision.
pub(super) fn new_pod(
    set: &StatefulSet,
    template: &PodTemplateSpec,
    revision: &str,
    ordinal: i32,
) -> Pod {
    let name = name(set, ordinal);
    let mut pod = from_template(set, template);
    pod.metadata.name = Some(name.clone());
    let labels = pod.labels_mut();
    labels.insert(NAME_LABEL.into(), name.clone());
    labels.insert(INDEX_LABEL.into(), ordinal.to_string());
    labels.insert(REVISION_LABEL.into(), revision.to_owned());
    if let Some(spec) = &mut pod.spec {
        spec.hostname = Some(name.clone());
        spec.subdomain = set.spec.as_ref().and_then(|set| set.service_name.clone());
        let templates = claim_templates(set);
        if !templates.is_empty() {
            let mut volumes: Vec<Volume> = templates
                .iter()
                .map(|template| volume(template, &name))
                .collect();
            let others = spec.volumes.take().unwrap_or_default();
            let replaced = |volume: &Volume| templates.iter().any(|t| t.name_any() == volume.name);
            volumes.extend(others.into_iter().filter(|volume| !replaced(volume)));
            spec.volumes = Some(volumes);
        }
    }
    pod
}

fn volume(template: &PersistentVolumeClaim, pod: &str) -> Volume {
    Volume {
        name: template.name_any(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: claim_name(template, pod),
            read_only: Some(false),
        }),
        ..Volume::default()
    }
}

/// The claims of a pod.
pub(super) fn new_claims(set: &StatefulSet, pod: &str) -> Vec<PersistentVolumeClaim> {
    let selected = set
        .spec
        .as_ref()
        .and_then(|spec| spec.selector.match_labels.clone());
    let claim = |template: &PersistentVolumeClaim| {
        let mut labels = template.metadata.labels.clone().unwrap_or_default();
        labels.extend(selected.clone().unwrap_or_default());
        PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some(claim_name(template, pod)),
                namespace: set.namespace(),
                labels: (!labels.is_empty()).then_some(labels),
                annotations: template.metadata.annotations.clone(),
                ..ObjectMeta::default()
            },
            spec: template.spec.clone(),
            status: None,
        }
    };
    claim_templates(set).iter().map(claim).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::api::apps::v1::StatefulSetSpec;
    use k8s_openapi::api::core::v1::PodSpec;

    use super::*;

    fn named(name: &str) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.into());
        pod
    }

    #[test]
    fn only_canonical_names_are_members() {
        assert_eq!(ordinal("web", &named("web-10")), Some(10));
        for other in [
            "web-01",
            "web-",
            "web-x",
            "web-a-1",
            "www-1",
            "web-+1",
            "web-99999999999",
        ] {
            assert_eq!(ordinal("web", &named(other)), None, "{other}");
        }
    }

    #[test]
    fn a_pod_has_its_name_host_and_claims() {
        let mut data = PersistentVolumeClaim::default();
        data.metadata.name = Some("data".into());
        let mut set = StatefulSet {
            spec: Some(StatefulSetSpec {
                service_name: Some("db".into()),
                volume_claim_templates: Some(vec![data]),
                ..StatefulSetSpec::default()
            }),
            ..StatefulSet::default()
        };
        set.metadata.name = Some("db".into());
        let template = PodTemplateSpec {
            metadata: None,
            spec: Some(PodSpec {
                volumes: Some(vec![Volume {
                    name: "data".into(),
                    ..Volume::default()
                }]),
                ..PodSpec::default()
            }),
        };
        let pod = new_pod(&set, &template, "db-abc", 3);
        assert_eq!(pod.name_any(), "db-3");
        assert_eq!(pod.labels()[INDEX_LABEL], "3");
        assert_eq!(revision(&pod), "db-abc");
        let spec = pod.spec.unwrap();
        assert_eq!(
            (spec.hostname.as_deref(), spec.subdomain.as_deref()),
            (Some("db-3"), Some("db"))
        );
        let volumes = spec.volumes.unwrap();
        assert_eq!(volumes.len(), 1);
        let claim = volumes[0].persistent_volume_claim.as_ref().unwrap();
        assert_eq!(claim.claim_name, "data-db-3");
        assert_eq!(new_claims(&set, "db-3")[0].name_any(), "data-db-3");
    }
}
