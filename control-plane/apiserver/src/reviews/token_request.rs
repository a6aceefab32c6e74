//! `serviceaccounts/token`: a token for a ServiceAccount, perhaps bound to a pod, secret or node.

use std::sync::Arc;

use async_trait::async_trait;
use balsa_api::status::{FieldErrors, Status};
use balsa_identity::jwt::{ISSUER, KubernetesClaims, Reference};
use balsa_identity::{Claims, ServiceAccountKeys};
use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use super::audience::{self, Asking};
use super::{stamp, strings, text};
use crate::admission::service_account::TOKEN_SECONDS;
use crate::authz::node_of;
use crate::seam::{Authorizer, Computed, ObjectReader, User};

const DEFAULT_SECONDS: i64 = 3600;
const MIN_SECONDS: i64 = 600;
const MAX_SECONDS: i64 = 1 << 32;
/// Life of the tokens mounted into pods, for programs that read them once and never again. They are
/// called stale from [`TOKEN_SECONDS`] on; the node agent replaces them long before.
const EXTENDED_SECONDS: i64 = 365 * 24 * 3600;

/// Issues tokens.
pub struct TokenRequest {
    keys: Arc<ServiceAccountKeys>,
    reader: Arc<dyn ObjectReader>,
    authorizer: Arc<dyn Authorizer>,
}

/// An RFC 3339 time in whole seconds, as metav1.Time is written.
pub(super) fn rfc3339(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

impl TokenRequest {
    /// With the cluster's keys, over the objects of a reader. The authorizer tells what else node agents may ask for.
    #[must_use]
    pub fn new(
        keys: Arc<ServiceAccountKeys>,
        reader: Arc<dyn ObjectReader>,
        authorizer: Arc<dyn Authorizer>,
    ) -> Self {
        Self {
            keys,
            reader,
            authorizer,
        }
    }

    /// What the token is bound to, as claims.
    fn bind(&self, claims: &mut KubernetesClaims, reference: &Value) -> Result<(), Status> {
        let (kind, name) = (text(&reference["kind"]), text(&reference["name"]));
        let (resource, namespace) = match kind.as_str() {
            "Pod" => ("pods", claims.namespace.as_str()),
            "Secret" => ("secrets", claims.namespace.as_str()),
            "Node" => ("nodes", ""),
            _ => {
                let version = text(&reference["apiVersion"]);
                return Err(Status::bad_request(format!(
                    "cannot bind token to object of type {version}, Kind={kind}"
                )));
            }
        };
        let object = self
            .reader
            .get("", resource, namespace, &name)
            .ok_or_else(|| Status::not_found("", resource, &name))?;
        let uid = text(&object["metadata"]["uid"]);
        let given = text(&reference["uid"]);
        if !given.is_empty() && given != uid {
            let why = format!(
                "the UID in the bound object reference ({given}) does not match the UID in record. \
                 The object might have been deleted and then recreated"
            );
            return Err(Status::conflict("", &kind, &name, &why));
        }
        let bound = Some(Reference { name, uid });
        match kind.as_str() {
            "Pod" => {
                let account = &claims.serviceaccount.name;
                if object["spec"]["serviceAccountName"] != account.as_str() {
                    return Err(Status::bad_request(format!(
                        "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
                    )));
                }
                claims.pod = bound;
                claims.node = self.node_of_pod(&object);
            }
            "Secret" => claims.secret = bound,
            _ => claims.node = bound,
        }
        Ok(())
    }

    fn node_of_pod(&self, pod: &Value) -> Option<Reference> {
        let name = pod["spec"]["nodeName"]
            .as_str()
            .filter(|n| !n.is_empty())?
            .to_owned();
        let uid = self
            .reader
            .get("", "nodes", "", &name)
            .map(|n| text(&n["metadata"]["uid"]));
        Some(Reference {
            name,
            uid: uid.unwrap_or_default(),
        })
    }

    /// A node agent gets tokens only for pods that run on its node, and for whom they want them.
    async fn check_node(&self, asking: &Asking<'_>, spec: &Value) -> Result<(), Status> {
        let Some(node) = node_of(asking.user) else {
            return Ok(());
        };
        let (namespace, name) = (asking.namespace, asking.account);
        let reference = &spec["boundObjectRef"];
        let refuse = |why: String| Err(Status::forbidden("", "serviceaccounts", name, &why));
        if reference["kind"] != "Pod" {
            return refuse(format!("node {node:?} requested token not bound to a pod"));
        }
        let (pod_name, uid) = (text(&reference["name"]), text(&reference["uid"]));
        if uid.is_empty() {
            return refuse(format!(
                "node {node:?} requested token with a pod binding without a uid"
            ));
        }
        let Some(pod) = self.reader.get("", "pods", namespace, &pod_name) else {
            return Err(Status::not_found("", "pods", &pod_name));
        };
        if pod["spec"]["nodeName"] != node {
            return refuse(format!(
                "node {node:?} requested token bound to a pod scheduled on a different node"
            ));
        }
        let audiences = strings(&spec["audiences"]);
        let (reader, authorizer) = (&*self.reader, &*self.authorizer);
        audience::check(reader, authorizer, asking, &pod, &audiences)
            .await
            .or_else(refuse)
    }
}

fn check_spec(spec: &Value, seconds: i64) -> Result<(), Status> {
    let mut errors = FieldErrors::default();
    if seconds < MIN_SECONDS {
        errors.invalid(
            "spec.expirationSeconds",
            seconds,
            "may not specify a duration less than 10 minutes",
        );
    }
    if seconds > MAX_SECONDS {
        errors.invalid(
            "spec.expirationSeconds",
            seconds,
            "may not specify a duration larger than 2^32 seconds",
        );
    }
    let reference = &spec["boundObjectRef"];
    if reference.is_object() && text(&reference["name"]).is_empty() {
        errors.required("spec.boundObjectRef.name", "");
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Status::invalid(
            "TokenRequest",
            "authentication.k8s.io",
            "",
            &errors,
        ))
    }
}

#[async_trait]
impl Computed for TokenRequest {
    async fn create(
        &self,
        user: &User,
        namespace: &str,
        name: &str,
        mut body: Value,
    ) -> Result<Value, Status> {
        let spec = body["spec"].clone();
        let seconds = spec["expirationSeconds"]
            .as_i64()
            .unwrap_or(DEFAULT_SECONDS);
        check_spec(&spec, seconds)?;
        let account = self
            .reader
            .get("", "serviceaccounts", namespace, name)
            .ok_or_else(|| Status::not_found("", "serviceaccounts", name))?;
        let uid = text(&account["metadata"]["uid"]);
        let given = text(&body["metadata"]["uid"]);
        if !given.is_empty() && given != uid {
            let why = format!(
                "the UID in the token request ({given}) does not match the UID of the service account ({uid})"
            );
            return Err(Status::conflict("", "serviceaccounts", name, &why));
        }
        let reference = &spec["boundObjectRef"];
        let asking = Asking {
            user,
            namespace,
            account: name,
        };
        self.check_node(&asking, &spec).await?;
        let mut kubernetes = KubernetesClaims {
            namespace: namespace.into(),
            node: None,
            pod: None,
            secret: None,
            serviceaccount: Reference {
                name: name.into(),
                uid,
            },
            warnafter: None,
        };
        if reference.is_object() {
            self.bind(&mut kubernetes, reference)?;
        }
        let mut audiences = strings(&spec["audiences"]);
        if audiences.is_empty() {
            audiences.push(ISSUER.to_owned());
        }
        let now = Timestamp::now().as_second();
        let mounted = seconds == TOKEN_SECONDS && kubernetes.pod.is_some() && audiences == [ISSUER];
        if mounted {
            kubernetes.warnafter = Some(now + seconds);
        }
        let claims = Claims {
            aud: audiences.clone(),
            exp: now + if mounted { EXTENDED_SECONDS } else { seconds },
            iat: now,
            iss: ISSUER.into(),
            jti: Uuid::new_v4().to_string(),
            nbf: now,
            sub: format!("{}{namespace}:{name}", crate::authn::token::USER_PREFIX),
            kubernetes,
        };
        let token = self.keys.issue(&claims).map_err(Status::internal)?;
        let expires = Timestamp::from_second(now + seconds).map_err(Status::internal)?;
        body["spec"]["expirationSeconds"] = seconds.into();
        body["spec"]["audiences"] = audiences.into();
        if body["spec"]["boundObjectRef"].is_null() {
            body["spec"]["boundObjectRef"] = Value::Null;
        }
        body["status"] = json!({"token": token, "expirationTimestamp": rfc3339(expires)});
        stamp(&mut body, "authentication.k8s.io/v1", "TokenRequest");
        body["metadata"]["name"] = name.into();
        body["metadata"]["namespace"] = namespace.into();
        body["metadata"]["creationTimestamp"] = rfc3339(Timestamp::now()).into();
        Ok(body)
    }
}
