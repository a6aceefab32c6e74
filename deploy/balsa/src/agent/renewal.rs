//! The node's certificate is renewed from two thirds of its life on, while the agent runs.

use std::time::Duration;

use anyhow::Context;
use balsa_identity::NodeIdentity;
use balsa_server::{RenewRequest, RenewResponse};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::credentials;

/// How often it is asked whether renewal is due; also how soon a failed attempt is repeated. A certificate that
/// is due lives for months yet.
const CHECK: Duration = Duration::from_secs(600);

/// Renews until `stop`. Failures are logged and tried again: the old certificate still works.
pub async fn keep(
    identity: NodeIdentity,
    connection: balsa_client::Connection,
    stop: CancellationToken,
) {
    loop {
        if identity.renewal_due(Timestamp::now()) {
            match renew(&identity, &connection).await {
                Ok(()) => tracing::info!("the node's certificate was renewed"),
                Err(error) => {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "the node's certificate cannot be renewed now"
                    );
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(CHECK) => {}
        }
    }
}

/// The old certificate vouches for the new one; the node link takes it from the identity by itself.
async fn renew(
    identity: &NodeIdentity,
    connection: &balsa_client::Connection,
) -> anyhow::Result<()> {
    let pending = identity.renewal()?;
    let body = RenewRequest {
        request_pem: pending.request_pem().to_owned(),
    };
    let request = http::Request::post("/balsa/v1/renew")
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(serde_json::to_vec(&body)?)?;
    let response: RenewResponse = connection
        .client
        .request(request)
        .await
        .context("no server signed the request")?;
    identity.install_renewal(&pending, &response.certificate_pem)?;
    connection.set_tls(identity.ca_pem().as_bytes(), &credentials(identity))?;
    Ok(())
}
