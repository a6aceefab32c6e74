//! SelfSubjectReview (`kubectl auth whoami`) and TokenReview.

use std::sync::Arc;

use async_trait::async_trait;
use balsa_api::status::Status;
use balsa_identity::jwt::ISSUER;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{stamp, strings, text, user_info};
use crate::authn::{AUTHENTICATED, Oidc, TokenVerifier};
use crate::seam::{Computed, User};

const API_VERSION: &str = "authentication.k8s.io/v1";

/// Answers SelfSubjectReviews.
pub struct WhoAmI;

#[async_trait]
impl Computed for WhoAmI {
    async fn create(
        &self,
        user: &User,
        _namespace: &str,
        _name: &str,
        mut body: Value,
    ) -> Result<Value, Status> {
        body["status"] = json!({"userInfo": user_info(user)});
        stamp(&mut body, API_VERSION, "SelfSubjectReview");
        body["metadata"]["creationTimestamp"] =
            super::token_request::rfc3339(Timestamp::now()).into();
        Ok(body)
    }
}

/// Answers TokenReviews.
pub struct TokenReview {
    verifier: TokenVerifier,
    oidc: Option<Arc<Oidc>>,
}

impl TokenReview {
    /// With a verifier of this cluster's tokens, and those of other issuers.
    #[must_use]
    pub fn new(verifier: TokenVerifier, oidc: Option<Arc<Oidc>>) -> Self {
        Self { verifier, oidc }
    }
}

#[async_trait]
impl Computed for TokenReview {
    async fn create(
        &self,
        _user: &User,
        _namespace: &str,
        _name: &str,
        mut body: Value,
    ) -> Result<Value, Status> {
        let token = text(&body["spec"]["token"]);
        if token.is_empty() {
            return Err(Status::bad_request(
                "token is required for TokenReview in authentication",
            ));
        }
        let audiences = strings(&body["spec"]["audiences"]);
        let now = Timestamp::now();
        let foreign = match &self.oidc {
            Some(oidc) => oidc.authenticate(&token, now).await,
            None => None,
        };
        let verified = match foreign {
            // An issuer's audiences are its own; such users are users of the API server only.
            Some(answer) => match answer {
                Ok(_) if !audiences.is_empty() && !audiences.iter().any(|a| a == ISSUER) => {
                    Err(format!("the token is not meant for {audiences:?}"))
                }
                answer => answer.map(|user| (user, vec![ISSUER.to_owned()])),
            },
            None => self
                .verifier
                .verify_for(&token, &audiences, now)
                .map_err(|reason| reason.to_string()),
        };
        body["status"] = match verified {
            Ok((mut user, audiences)) => {
                user.groups.push(AUTHENTICATED.to_owned());
                json!({"authenticated": true, "user": user_info(&user), "audiences": audiences})
            }
            Err(reason) => json!({"authenticated": false, "user": {}, "error": reason}),
        };
        stamp(&mut body, API_VERSION, "TokenReview");
        Ok(body)
    }
}
