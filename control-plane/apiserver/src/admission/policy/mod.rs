//! Admission policies: expressions in place of webhooks. [`validating`] ones refuse, warn or note; [`mutating`] ones
//! change. [`check`] refuses configurations whose expressions do not compile; [`status`] tells their authors what
//! does not fit the types that they are about.

pub mod check;
pub mod conditions;
pub mod config;
pub mod environment;
pub mod mutating;
pub mod params;
pub mod status;
pub mod validating;

use crate::seam::AdmissionRequest;

/// Requests that policies are never about: questions whose answers others depend on.
const EXCLUDED: [(&str, &str); 6] = [
    ("authentication.k8s.io", "selfsubjectreviews"),
    ("authentication.k8s.io", "tokenreviews"),
    ("authorization.k8s.io", "localsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectrulesreviews"),
    ("authorization.k8s.io", "subjectaccessreviews"),
];

fn is_excluded(request: &AdmissionRequest<'_>) -> bool {
    let (group, plural) = (request.kind.group.as_ref(), request.kind.plural.as_ref());
    super::webhook::is_exempt(request) || EXCLUDED.contains(&(group, plural))
}
