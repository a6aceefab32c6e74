//! SelfSubjectReview (`kubectl auth whoami`) and TokenReview.

use async_trait::async_trait;
use balsa_api::status::Status;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{stamp, strings, text, user_info};
use crate::authn::{AUTHENTICATED, TokenVerifier};
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
}

impl TokenReview {
    /// With a verifier of tokens.
    #[must_use]
    pub fn new(verifier: TokenVerifier) -> Self {
        Self { verifier }
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
        body["status"] = match self
            .verifier
            .verify_for(&token, &audiences, Timestamp::now())
        {
            Ok((mut user, audiences)) => {
                user.groups.push(AUTHENTICATED.to_owned());
                json!({"authenticated": true, "user": user_info(&user), "audiences": audiences})
            }
            Err(reason) => json!({"authenticated": false, "user": {}, "error": reason.to_string()}),
        };
        stamp(&mut body, API_VERSION, "TokenReview");
        Ok(body)
    }
}
