//! The pods of a Job. Pure.

use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use kube::ResourceExt;

use super::decide::FINALIZER;
use super::indexes::INDEX;
use super::per_index::{FAILURES, IGNORED};
use crate::support::pod_control::from_template;

const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";

/// Which of an indexed Job's pods it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) index: u32,
    /// Counted and ignored failures before, with `backoffLimitPerIndex`.
    pub(super) failures: Option<(u32, u32)>,
}

/// A new pod; with a place for indexed Jobs.
pub(super) fn new_pod(job: &Job, spec: &JobSpec, place: Option<Place>) -> Pod {
    let mut pod = from_template(job, &spec.template);
    pod.finalizers_mut().push(FINALIZER.into());
    let Some(Place { index, failures }) = place else {
        return pod;
    };
    let name = job.name_any();
    pod.metadata.generate_name = Some(format!("{name}-{index}-"));
    pod.annotations_mut()
        .insert(INDEX.into(), index.to_string());
    if let Some((failures, ignored)) = failures {
        let annotations = pod.annotations_mut();
        annotations.insert(FAILURES.into(), failures.to_string());
        if spec.pod_failure_policy.is_some() && ignored > 0 {
            annotations.insert(IGNORED.into(), ignored.to_string());
        }
    }
    pod.labels_mut().insert(INDEX.into(), index.to_string());
    if let Some(spec) = &mut pod.spec {
        spec.hostname = Some(format!("{name}-{index}"));
        let init = spec.init_containers.iter_mut().flatten();
        init.chain(&mut spec.containers).for_each(add_variable);
    }
    pod
}

fn add_variable(container: &mut Container) {
    let env = container.env.get_or_insert_default();
    if env.iter().any(|variable| variable.name == INDEX_VARIABLE) {
        return;
    }
    env.push(EnvVar {
        name: INDEX_VARIABLE.into(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: format!("metadata.labels['{INDEX}']"),
                ..ObjectFieldSelector::default()
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    });
}
