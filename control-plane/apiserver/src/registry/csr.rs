//! CertificateSigningRequests: who asked is written in by the server, and a request that is approved for one of the
//! signers under `kubernetes.io/` is signed in the write that approves it, because every server holds the CA.
//!
//! Rules: upstream `registry/certificates` and `pkg/controller/certificates/signer`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use balsa_api::kinds::walk::Walk;
use balsa_api::object;
use balsa_api::status::Status;
use balsa_identity::csr::Request;
use balsa_identity::{GROUP_NODES, Identity, NODE_USER_PREFIX};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Allocator, Plan, Target};
use crate::seam::User;

/// Group of the kind.
pub const GROUP: &str = "certificates.k8s.io";
/// Its resource.
pub const RESOURCE: &str = "certificatesigningrequests";
/// Signs client certificates that the API server honours.
pub const API_CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// Signs client certificates of node agents.
pub const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Signs serving certificates of node agents.
pub const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";

/// Writes into a new request who made it.
pub(super) fn set_requester(request: &mut Value, user: &User) {
    if !request["spec"].is_object() {
        request["spec"] = json!({});
    }
    let spec = &mut request["spec"];
    for field in ["username", "uid", "groups", "extra"] {
        if let Some(map) = spec.as_object_mut() {
            map.remove(field);
        }
    }
    spec["username"] = user.name.as_str().into();
    if !user.uid.is_empty() {
        spec["uid"] = user.uid.as_str().into();
    }
    if !user.groups.is_empty() {
        spec["groups"] = user.groups.clone().into();
    }
    if !user.extra.is_empty() {
        spec["extra"] = json!(user.extra);
    }
}

/// Gives conditions their times: of the update where they are new or changed, of the transition where the status is.
pub(super) fn stamp_conditions(new: &mut Value, old: &Value, now: &str) {
    let before = old["status"]["conditions"].items();
    let Some(conditions) = new
        .pointer_mut("/status/conditions")
        .and_then(Value::as_array_mut)
    else {
        return;
    };
    for condition in conditions {
        let was = before.iter().find(|c| c["type"] == condition["type"]);
        if condition["lastUpdateTime"].is_null() {
            condition["lastUpdateTime"] = match was {
                Some(was) if !was["lastUpdateTime"].is_null() => was["lastUpdateTime"].clone(),
                _ => now.into(),
            };
        }
        if condition["lastTransitionTime"].is_null() {
            condition["lastTransitionTime"] = match was {
                Some(was)
                    if was["status"] == condition["status"]
                        && !was["lastTransitionTime"].is_null() =>
                {
                    was["lastTransitionTime"].clone()
                }
                _ => now.into(),
            };
        }
    }
}

/// Why a signer does not sign.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Refusal {
    #[error("organization in subject is not system:nodes")]
    Organization,
    #[error("subject common name does not begin with system:node:")]
    CommonName,
    #[error("DNS subjectAltNames are not allowed")]
    Dns,
    #[error("IP subjectAltNames are not allowed")]
    Ip,
    #[error("Email subjectAltNames are not allowed")]
    Email,
    #[error("URI subjectAltNames are not allowed")]
    Uri,
    #[error("at least one DNS or IP subjectAltName is required")]
    NoName,
    #[error("usages did not match {0}")]
    Usages(String),
    #[error("{0}")]
    Unreadable(String),
}

fn is_node(request: &Request) -> Result<(), Refusal> {
    let asked = &request.identity;
    if asked.organizations != [GROUP_NODES] {
        return Err(Refusal::Organization);
    }
    if !asked.common_name.starts_with(NODE_USER_PREFIX) {
        return Err(Refusal::CommonName);
    }
    if !asked.emails.is_empty() {
        return Err(Refusal::Email);
    }
    if !asked.uris.is_empty() {
        return Err(Refusal::Uri);
    }
    Ok(())
}

/// Whether a signer signs such a request; `usages` are those asked for.
fn judge(signer: &str, request: &Request, usages: &[String]) -> Result<(), Refusal> {
    let asked: BTreeSet<&str> = usages.iter().map(String::as_str).collect();
    let exactly = |purpose: &str| {
        let short: BTreeSet<&str> = ["digital signature", purpose].into();
        let long: BTreeSet<&str> = ["digital signature", "key encipherment", purpose].into();
        if asked == short || asked == long {
            return Ok(());
        }
        let wanted: Vec<&str> = long.into_iter().collect();
        Err(Refusal::Usages(format!("[{}]", wanted.join(" "))))
    };
    match signer {
        KUBELET_CLIENT => {
            is_node(request)?;
            if !request.identity.dns.is_empty() {
                return Err(Refusal::Dns);
            }
            if !request.identity.ips.is_empty() {
                return Err(Refusal::Ip);
            }
            exactly("client auth")
        }
        KUBELET_SERVING => {
            is_node(request)?;
            if request.identity.dns.is_empty() && request.identity.ips.is_empty() {
                return Err(Refusal::NoName);
            }
            exactly("server auth")
        }
        _ => {
            let allowed: BTreeSet<&str> =
                ["client auth", "digital signature", "key encipherment"].into();
            if asked.contains("client auth") && asked.is_subset(&allowed) {
                return Ok(());
            }
            Err(Refusal::Usages("[client auth]".into()))
        }
    }
}

/// Reads the request inside an object.
fn read(object: &Value) -> Result<Request, Refusal> {
    let unreadable = |why: &dyn std::fmt::Display| Refusal::Unreadable(why.to_string());
    let bytes = STANDARD
        .decode(object["spec"]["request"].text())
        .map_err(|e| unreadable(&e))?;
    let text = String::from_utf8(bytes).map_err(|e| unreadable(&e))?;
    Request::from_pem(&text).map_err(|e| unreadable(&e))
}

fn has(object: &Value, type_: &str) -> bool {
    object["status"]["conditions"]
        .items()
        .iter()
        .any(|c| c["type"] == type_ && c["status"] == "True")
}

/// Signs what has been approved.
pub struct Signer {
    identity: Arc<Identity>,
}

impl Signer {
    /// With the cluster's CA.
    #[must_use]
    pub fn new(identity: Arc<Identity>) -> Self {
        Self { identity }
    }

    fn sign(&self, object: &Value, now: Timestamp) -> Result<String, Refusal> {
        let request = read(object)?;
        let usages: Vec<String> = object["spec"]["usages"]
            .items()
            .iter()
            .map(|u| u.text().to_owned())
            .collect();
        judge(object["spec"]["signerName"].text(), &request, &usages)?;
        let life = object["spec"]["expirationSeconds"]
            .as_u64()
            .map(Duration::from_secs);
        self.identity
            .ca()
            .sign(&request, &usages, life, now)
            .map_err(|e| Refusal::Unreadable(e.to_string()))
    }

    /// Puts the certificate, or the condition that says why there is none, into an approved request.
    fn complete(&self, object: &mut Value, now: Timestamp) {
        let ours = matches!(
            object["spec"]["signerName"].text(),
            API_CLIENT | KUBELET_CLIENT | KUBELET_SERVING
        );
        if !ours
            || !has(object, "Approved")
            || has(object, "Denied")
            || has(object, "Failed")
            || !object["status"]["certificate"].is_empty()
        {
            return;
        }
        match self.sign(object, now) {
            Ok(pem) => object["status"]["certificate"] = STANDARD.encode(pem).into(),
            Err(why) => {
                let now = object::format_time(now);
                let failed = json!({
                    "type": "Failed", "status": "True", "reason": "SignerValidationFailure",
                    "message": why.to_string(), "lastUpdateTime": now, "lastTransitionTime": now,
                });
                if let Some(list) = object["status"]["conditions"].as_array_mut() {
                    list.push(failed);
                }
            }
        }
    }
}

impl Allocator for Signer {
    fn concerns(&self, group: &str, plural: &str) -> bool {
        group == GROUP && plural == RESOURCE
    }

    fn plan(
        &self,
        _target: (&Target, &str),
        new: Option<&mut Value>,
        old: Option<&Value>,
        _attempt: usize,
    ) -> Result<Plan, Status> {
        if let (Some(new), Some(_)) = (new, old) {
            self.complete(new, Timestamp::now());
        }
        Ok(Plan::default())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    fn request(organization: &str, name: &str, dns: Option<&str>) -> String {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, organization);
        params.distinguished_name.push(DnType::CommonName, name);
        if let Some(dns) = dns {
            params
                .subject_alt_names
                .push(rcgen::SanType::DnsName(dns.try_into().unwrap()));
        }
        params.serialize_request(&key).unwrap().pem().unwrap()
    }

    fn object(signer: &str, usages: &[&str], pem: &str) -> Value {
        json!({
            "spec": {"signerName": signer, "usages": usages, "request": STANDARD.encode(pem)},
            "status": {"conditions": [{"type": "Approved", "status": "True"}]},
        })
    }

    fn signer() -> (tempfile::TempDir, Signer) {
        let dir = tempfile::tempdir().unwrap();
        let names = balsa_identity::ServerNames {
            node: "a".into(),
            ..Default::default()
        };
        let identity = Identity::create(dir.path(), &names).unwrap();
        (dir, Signer::new(Arc::new(identity)))
    }

    fn outcome(mut object: Value) -> String {
        let (_dir, signer) = signer();
        signer.complete(&mut object, Timestamp::now());
        if !object["status"]["certificate"].is_null() {
            return "issued".into();
        }
        object["status"]["conditions"][1]["message"]
            .text()
            .to_owned()
    }

    #[test]
    fn a_nodes_approved_request_is_signed() {
        let pem = request("system:nodes", "system:node:a", None);
        let usages = ["digital signature", "client auth"];
        assert_eq!(outcome(object(KUBELET_CLIENT, &usages, &pem)), "issued");
        let pem = request("system:nodes", "system:node:a", Some("a"));
        let usages = ["digital signature", "key encipherment", "server auth"];
        assert_eq!(outcome(object(KUBELET_SERVING, &usages, &pem)), "issued");
    }

    #[test]
    fn what_is_no_nodes_request_fails_and_says_why() {
        let usages = ["digital signature", "client auth"];
        let cases = [
            (
                object(
                    KUBELET_CLIENT,
                    &usages,
                    &request("system:masters", "system:node:a", None),
                ),
                "organization in subject is not system:nodes",
            ),
            (
                object(
                    KUBELET_CLIENT,
                    &usages,
                    &request("system:nodes", "root", None),
                ),
                "subject common name does not begin with system:node:",
            ),
            (
                object(
                    KUBELET_CLIENT,
                    &usages,
                    &request("system:nodes", "system:node:a", Some("x")),
                ),
                "DNS subjectAltNames are not allowed",
            ),
            (
                object(API_CLIENT, &["server auth"], &request("dev", "ann", None)),
                "usages did not match [client auth]",
            ),
        ];
        for (object, why) in cases {
            assert_eq!(outcome(object), why);
        }
    }

    #[test]
    fn only_approved_requests_to_own_signers_are_touched() {
        let pem = request("dev", "ann", None);
        let (_dir, signer) = signer();
        let mut other = object("example.com/mine", &["client auth"], &pem);
        let mut pending = object(API_CLIENT, &["client auth"], &pem);
        pending["status"] = json!({});
        let mut denied = object(API_CLIENT, &["client auth"], &pem);
        denied["status"]["conditions"][0]["type"] = "Denied".into();
        for object in [&mut other, &mut pending, &mut denied] {
            let before = object.clone();
            signer.complete(object, Timestamp::now());
            assert_eq!(*object, before);
        }
    }
}
