//! What a server answers under `/balsa/v1/`: joining, the list of servers, its own status.

use std::sync::Arc;

use async_trait::async_trait;
use balsa_api::status::Status;
use balsa_apiserver::seam::{Extension, Peer, RequestBody, ResponseBody, User};
use balsa_identity::{
    GROUP_MASTERS, GROUP_NODES, GROUP_SERVERS, Identity, JoinRequest, JoinRole, PeerIdentity,
    TokenRecord, join,
};
use balsa_link::join::PATH as JOIN_PATH;
use balsa_link::server::Nodes;
use balsa_store::Store;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tracing::info;

use crate::{maintenance, records};

/// Largest request body in bytes; a certificate request is the longest.
const LARGEST: usize = 256 * 1024;

/// A server that asks to become a member of the store.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MemberRequest {
    /// Its Raft member id.
    pub id: u64,
    /// Where the others reach its Raft port, `host:port`.
    pub address: String,
}

/// The extension's handler.
pub struct Api {
    /// The store.
    pub store: Store,
    /// The cluster's keys.
    pub identity: Arc<Identity>,
    /// Linked nodes.
    pub nodes: Nodes,
}

#[async_trait]
impl Extension for Api {
    async fn handle(
        &self,
        request: Request<RequestBody>,
        _user: &User,
        peer: &Peer,
    ) -> Response<ResponseBody> {
        match self.answer(request, peer).await {
            Ok(value) => respond(StatusCode::OK, &value),
            Err(status) => {
                let code =
                    StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                respond(code, &status.body())
            }
        }
    }
}

fn respond(code: StatusCode, value: &serde_json::Value) -> Response<ResponseBody> {
    let body = Full::new(Bytes::from(value.to_string()))
        .map_err(|never| match never {})
        .boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = code;
    let json = http::HeaderValue::from_static("application/json");
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, json);
    response
}

fn unavailable(error: &dyn std::fmt::Display) -> Status {
    Status::new(503, "ServiceUnavailable", error.to_string())
}

impl Api {
    async fn answer(
        &self,
        request: Request<RequestBody>,
        peer: &Peer,
    ) -> Result<serde_json::Value, Status> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        match (&method, path.as_str()) {
            (&Method::POST, JOIN_PATH) => self.join(body(request).await?).await,
            (&Method::POST, "/balsa/v1/members") => {
                require(peer, &[GROUP_SERVERS])?;
                self.add_member(body(request).await?).await
            }
            (&Method::POST, "/balsa/v1/renew") => self.renew(peer, body(request).await?),
            (&Method::GET, "/balsa/v1/servers") => {
                require(peer, &[GROUP_NODES, GROUP_MASTERS, GROUP_SERVERS])?;
                Ok(encode(&records::servers(&self.store)))
            }
            (&Method::GET, "/balsa/v1/status") => {
                require(peer, &[GROUP_MASTERS])?;
                Ok(self.status())
            }
            (&Method::GET, TOKENS) => {
                require(peer, &[GROUP_MASTERS])?;
                self.tokens().await
            }
            (&Method::POST, TOKENS) => {
                require(peer, &[GROUP_MASTERS])?;
                self.create_token(body(request).await?).await
            }
            (&Method::DELETE, path) if token_id(path).is_some() => {
                require(peer, &[GROUP_MASTERS])?;
                self.revoke_token(token_id(path).unwrap_or_default()).await
            }
            (method, path) if maintenance::serves(method, path) => {
                require(peer, &[GROUP_MASTERS])?;
                let (method, path) = (method.clone(), path.to_owned());
                let asked = if method == Method::POST {
                    body(request).await?
                } else {
                    serde_json::Value::Null
                };
                maintenance::answer(&self.store, &method, &path, asked).await
            }
            _ => Err(Status::new(
                404,
                "NotFound",
                format!("{path} is not served here"),
            )),
        }
    }

    async fn join(&self, request: JoinRequest) -> Result<serde_json::Value, Status> {
        let record = records::token(&self.store, &request.token_id)
            .await
            .map_err(|e| unavailable(&e))?;
        let response = join::answer(&self.identity, record.as_ref(), &request, Timestamp::now())
            .map_err(|error| Status::new(403, "Forbidden", error.to_string()))?;
        info!(node = request.node, role = ?request.role, "a machine joins");
        Ok(encode(&response))
    }

    async fn tokens(&self) -> Result<serde_json::Value, Status> {
        let all = records::tokens(&self.store)
            .await
            .map_err(|e| unavailable(&e))?;
        let public = |t: TokenRecord| TokenInfo {
            id: t.id,
            role: t.role,
            created: t.created,
            expires: t.expires,
            description: t.description,
        };
        Ok(encode(&all.into_iter().map(public).collect::<Vec<_>>()))
    }

    async fn create_token(&self, request: TokenRequest) -> Result<serde_json::Value, Status> {
        let lifetime = request
            .lifetime_seconds
            .map(|s| jiff::SignedDuration::from_secs(i64::try_from(s).unwrap_or(i64::MAX)));
        let token = records::create_token(
            &self.store,
            &self.identity,
            request.role,
            lifetime,
            &request.description,
        )
        .await
        .map_err(|e| unavailable(&e))?;
        info!(id = token.id, role = ?request.role, "a join token was made");
        Ok(serde_json::json!({"token": token.to_string()}))
    }

    async fn revoke_token(&self, id: &str) -> Result<serde_json::Value, Status> {
        let found = records::revoke_token(&self.store, id)
            .await
            .map_err(|e| unavailable(&e))?;
        if !found {
            let why = format!("there is no join token {id:?}");
            return Err(Status::new(404, "NotFound", why));
        }
        info!(id, "a join token was revoked");
        Ok(serde_json::json!({}))
    }

    async fn add_member(&self, request: MemberRequest) -> Result<serde_json::Value, Status> {
        info!(
            id = request.id,
            address = request.address,
            "a server becomes a member"
        );
        self.store
            .add_member(request.id, request.address)
            .await
            .map_err(|e| unavailable(&e))?;
        Ok(serde_json::json!({"clusterId": self.store.cluster_id()}))
    }

    /// A new certificate for the node that shows its old one.
    fn renew(&self, peer: &Peer, request: RenewRequest) -> Result<serde_json::Value, Status> {
        let identity = require(peer, &[GROUP_NODES])?;
        let node = identity.node().unwrap_or_default();
        let certificate = self
            .identity
            .sign_node_request(&request.request_pem, node)
            .map_err(|error| Status::new(403, "Forbidden", error.to_string()))?;
        Ok(encode(&RenewResponse {
            certificate_pem: certificate,
        }))
    }

    fn status(&self) -> serde_json::Value {
        let health = self.store.health();
        let leadership = *self.store.leadership().borrow();
        serde_json::json!({
            "leader": leadership.is_me,
            "term": leadership.term,
            "revision": self.store.revision(),
            "ready": health.is_ready(),
            "problems": health.problems,
            "members": self.store.members().iter().map(|m| serde_json::json!({
                "id": m.id, "address": m.address, "voter": m.voter,
            })).collect::<Vec<_>>(),
            "nodes": self.nodes.connected(),
        })
    }
}

const TOKENS: &str = "/balsa/v1/tokens";

/// The id in the path of one token.
fn token_id(path: &str) -> Option<&str> {
    path.strip_prefix(TOKENS)?
        .strip_prefix('/')
        .filter(|id| !id.is_empty() && !id.contains('/'))
}

/// A wish for a join token.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenRequest {
    /// What machines that show it may become.
    pub role: JoinRole,
    /// How long it is good for, in seconds; for ever when absent.
    #[serde(default)]
    pub lifetime_seconds: Option<u64>,
    /// For people.
    #[serde(default)]
    pub description: String,
}

/// What may be told of a join token.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenInfo {
    /// Its public part.
    pub id: String,
    /// What it is good for.
    pub role: JoinRole,
    /// When it was made.
    pub created: Timestamp,
    /// From when on it is refused; `None` is never.
    pub expires: Option<Timestamp>,
    /// For people.
    pub description: String,
}

/// A node's request for a new certificate.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RenewRequest {
    /// PEM certificate request for the node's new key.
    pub request_pem: String,
}

/// The answer to a [`RenewRequest`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RenewResponse {
    /// PEM certificate for the request's key.
    pub certificate_pem: String,
}

fn encode(value: &impl Serialize) -> serde_json::Value {
    serde_json::to_value(value).unwrap_or_default()
}

/// The client's certificate, if it is of one of the groups. These paths answer to certificates of the
/// cluster itself and not to roles, because they are needed before any role exists.
fn require(peer: &Peer, groups: &[&str]) -> Result<PeerIdentity, Status> {
    let identity = peer
        .certificates
        .first()
        .and_then(|der| PeerIdentity::from_certificate(der).ok());
    match identity {
        Some(identity)
            if identity
                .organizations
                .iter()
                .any(|o| groups.contains(&o.as_str())) =>
        {
            Ok(identity)
        }
        Some(_) => Err(Status::new(
            403,
            "Forbidden",
            "this client certificate may not do this",
        )),
        None => Err(Status::new(
            401,
            "Unauthorized",
            "a client certificate of the cluster is needed",
        )),
    }
}

async fn body<T: serde::de::DeserializeOwned>(request: Request<RequestBody>) -> Result<T, Status> {
    let mut body = request.into_body();
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Status::bad_request("the body ended before it was whole"))?;
        bytes.extend_from_slice(&frame.into_data().unwrap_or_default());
        if bytes.len() > LARGEST {
            return Err(Status::bad_request(format!(
                "the body has more than {LARGEST} bytes"
            )));
        }
    }
    serde_json::from_slice(&bytes)
        .map_err(|error| Status::bad_request(format!("the body is not what was expected: {error}")))
}
