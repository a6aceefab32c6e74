//! Certificate requests: those of node agents for themselves are approved, and old ones are removed.
//!
//! Approved requests are signed by the API server, in the very write that approves them.

use std::sync::Arc;
use std::time::Duration;

use balsa_client::time::time;
use balsa_client::{Key, Outcome, WorkQueue};
use balsa_identity::csr::{Request, RequestedIdentity};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestSpec,
};
use kube::ResourceExt;
use kube::api::{DeleteParams, PostParams, Preconditions};

use crate::context::Shared;
use crate::error::{Error, Result, unless_gone};

const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const NODES: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";
/// Answered requests are kept this long, so that whoever asked can fetch the answer.
const ANSWERED: SignedDuration = SignedDuration::from_hours(1);
const PENDING: SignedDuration = SignedDuration::from_hours(24);
const SWEEP: Duration = Duration::from_secs(10 * 60);

pub(crate) async fn run(context: Shared) {
    let queue: WorkQueue<Key> = WorkQueue::default();
    let requests = queue.clone();
    context
        .informers
        .certificate_requests
        .on_change(move |delta| {
            if !delta.is_delete() && is_open(delta.object()) {
                requests.add(Key::of(&**delta.object()));
            }
        });
    context.informers.certificate_requests.synced().await;
    let this = Arc::clone(&context);
    let approve = context.work("csr-approving", queue, move |key| {
        let this = Arc::clone(&this);
        async move { approve(&this, &key.name).await }
    });
    tokio::join!(approve, sweep(&context));
}

fn conditions(request: &CertificateSigningRequest) -> &[CertificateSigningRequestCondition] {
    let status = request.status.as_ref();
    status
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default()
}

/// Neither approved nor denied.
fn is_open(request: &CertificateSigningRequest) -> bool {
    !conditions(request)
        .iter()
        .any(|c| matches!(c.type_.as_str(), "Approved" | "Denied"))
}

/// A right that lets its holder have a request approved, and what approval then says.
type Right = (&'static str, &'static str);

const OWN: Right = (
    "selfnodeclient",
    "Auto approving self kubelet client certificate after SubjectAccessReview.",
);
const ANY: Right = (
    "nodeclient",
    "Auto approving kubelet client certificate after SubjectAccessReview.",
);

/// The rights that each allow the approval of this request; none for requests that only people approve.
fn rights(spec: &CertificateSigningRequestSpec, identity: &RequestedIdentity) -> Vec<Right> {
    if spec.signer_name != KUBELET_CLIENT || !is_node_client(spec, identity) {
        return Vec::new();
    }
    let own = spec.username.as_deref() == Some(identity.common_name.as_str());
    if own { vec![OWN, ANY] } else { vec![ANY] }
}

/// A client certificate of a node and of nothing else (upstream `ValidateKubeletClientCSR`).
fn is_node_client(spec: &CertificateSigningRequestSpec, identity: &RequestedIdentity) -> bool {
    let mut usages: Vec<&str> = spec.usages.iter().flatten().map(String::as_str).collect();
    usages.sort_unstable();
    usages.dedup();
    let usual = usages == ["client auth", "digital signature", "key encipherment"]
        || usages == ["client auth", "digital signature"];
    usual
        && identity.organizations == [NODES]
        && identity
            .common_name
            .strip_prefix(NODE_PREFIX)
            .is_some_and(|name| !name.is_empty())
        && identity.dns.is_empty()
        && identity.ips.is_empty()
        && identity.emails.is_empty()
        && identity.uris.is_empty()
}

async fn approve(context: &Shared, name: &str) -> Result<Outcome> {
    let Some(cached) = context.informers.certificate_requests.get("", name) else {
        return Ok(Outcome::Done);
    };
    if !is_open(&cached) {
        return Ok(Outcome::Done);
    }
    let Ok(pem) = std::str::from_utf8(&cached.spec.request.0) else {
        return Ok(Outcome::Done);
    };
    // Not one of ours: whoever approves it will say what is wrong with it.
    let Ok(request) = Request::from_pem(pem) else {
        return Ok(Outcome::Done);
    };
    let rights = rights(&cached.spec, &request.identity);
    for (right, message) in &rights {
        if !has(context, &cached.spec, right).await? {
            continue;
        }
        let mut approved = (*cached).clone();
        let status = approved.status.get_or_insert_default();
        let now = Timestamp::now();
        status
            .conditions
            .get_or_insert_default()
            .push(CertificateSigningRequestCondition {
                type_: "Approved".into(),
                status: "True".into(),
                reason: Some("AutoApproved".into()),
                message: Some((*message).to_owned()),
                last_update_time: Some(time(now)),
                last_transition_time: Some(time(now)),
            });
        let api = context.cluster_api::<CertificateSigningRequest>();
        let params = PostParams::default();
        unless_gone(
            api.replace_subresource("approval", name, &params, &approved)
                .await,
        )?;
        return Ok(Outcome::Done);
    }
    if rights.is_empty() {
        return Ok(Outcome::Done);
    }
    // The right may be granted later, as to a bootstrap group in a cluster that is being set up.
    Err(Error::Invalid(format!(
        "recognized csr {name:?} but subject access review was not approved"
    )))
}

async fn has(context: &Shared, spec: &CertificateSigningRequestSpec, right: &str) -> Result<bool> {
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: spec.username.clone(),
            uid: spec.uid.clone(),
            groups: spec.groups.clone(),
            extra: spec.extra.clone(),
            resource_attributes: Some(ResourceAttributes {
                group: Some("certificates.k8s.io".into()),
                resource: Some("certificatesigningrequests".into()),
                subresource: Some(right.to_owned()),
                verb: Some("create".into()),
                version: Some("*".into()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let api = context.cluster_api::<SubjectAccessReview>();
    let answer = api.create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

/// True for requests that nobody waits for any more.
fn is_old(request: &CertificateSigningRequest, now: Timestamp) -> bool {
    let old = |since: Option<Timestamp>, limit: SignedDuration| {
        since.is_some_and(|since| now.duration_since(since) > limit)
    };
    let answered = conditions(request).iter().any(|condition| {
        let changed = condition.last_update_time.as_ref().map(|time| time.0);
        matches!(condition.type_.as_str(), "Approved" | "Denied" | "Failed")
            && old(changed, ANSWERED)
    });
    let created = request
        .metadata
        .creation_timestamp
        .as_ref()
        .map(|time| time.0);
    answered || (conditions(request).is_empty() && old(created, PENDING))
}

async fn sweep(context: &Shared) {
    let mut tick = tokio::time::interval(SWEEP);
    loop {
        tokio::select! {
            () = context.stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let now = Timestamp::now();
        for request in context.informers.certificate_requests.list() {
            if !is_old(&request, now) {
                continue;
            }
            let params = DeleteParams {
                preconditions: Some(Preconditions {
                    uid: request.uid(),
                    resource_version: request.resource_version(),
                }),
                ..DeleteParams::default()
            };
            let api = context.cluster_api::<CertificateSigningRequest>();
            if let Err(error) = unless_gone(api.delete(&request.name_any(), &params).await) {
                tracing::debug!(%error, name = request.name_any(), "cannot remove an old certificate request");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::api::certificates::v1::CertificateSigningRequestStatus;

    use super::*;

    fn spec(user: &str) -> CertificateSigningRequestSpec {
        CertificateSigningRequestSpec {
            signer_name: KUBELET_CLIENT.into(),
            username: Some(user.into()),
            usages: Some(vec!["digital signature".into(), "client auth".into()]),
            ..CertificateSigningRequestSpec::default()
        }
    }

    fn node() -> RequestedIdentity {
        RequestedIdentity {
            common_name: "system:node:a".into(),
            organizations: vec![NODES.into()],
            ..RequestedIdentity::default()
        }
    }

    #[test]
    fn only_plain_client_certificates_of_nodes_are_ours_to_approve() {
        assert_eq!(rights(&spec("system:bootstrap:x"), &node()), [ANY]);
        assert_eq!(rights(&spec("system:node:a"), &node()), [OWN, ANY]);
        let named = RequestedIdentity {
            dns: vec!["a".into()],
            ..node()
        };
        assert!(rights(&spec("system:node:a"), &named).is_empty());
        let admin = RequestedIdentity {
            organizations: vec!["system:masters".into()],
            ..node()
        };
        assert!(rights(&spec("system:node:a"), &admin).is_empty());
        let serving = CertificateSigningRequestSpec {
            usages: Some(vec!["digital signature".into(), "server auth".into()]),
            ..spec("system:node:a")
        };
        assert!(rights(&serving, &node()).is_empty());
    }

    #[test]
    fn answered_and_forgotten_requests_are_removed_in_time() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut request = CertificateSigningRequest::default();
        request.metadata.creation_timestamp = Some(time(at(0)));
        assert!(!is_old(&request, at(23 * 3600)));
        assert!(is_old(&request, at(25 * 3600)));
        let condition = CertificateSigningRequestCondition {
            type_: "Denied".into(),
            last_update_time: Some(time(at(24 * 3600))),
            ..CertificateSigningRequestCondition::default()
        };
        request.status = Some(CertificateSigningRequestStatus {
            conditions: Some(vec![condition]),
            ..CertificateSigningRequestStatus::default()
        });
        assert!(!is_old(&request, at(25 * 3600 - 1)));
        assert!(is_old(&request, at(25 * 3600 + 1)));
    }
}
