//! The node link as the API server and the controllers see it.

use std::time::Instant;

use async_trait::async_trait;
use balsa_api::status::Status;
use balsa_apiserver::seam::{NodeStream, NodeStreams};
use balsa_controllers::NodeHeartbeats;
use balsa_link::protocol::StreamRequest;
use balsa_link::server::{Nodes, OpenError};

/// All nodes linked to this server.
#[derive(Clone)]
pub struct Links(pub Nodes);

impl NodeHeartbeats for Links {
    fn last_seen(&self, node: &str) -> Option<Instant> {
        self.0.last_seen(node)
    }
}

#[async_trait]
impl NodeStreams for Links {
    async fn open(&self, node: &str, request: StreamRequest) -> Result<NodeStream, Status> {
        let stream = self
            .0
            .open(node, &request)
            .await
            .map_err(|error| status(&error))?;
        Ok(NodeStream {
            code: stream.code,
            reader: Box::new(stream.reader),
            writer: Box::new(stream.writer),
        })
    }
}

fn status(error: &OpenError) -> Status {
    match error {
        OpenError::NotConnected(_) => Status::new(503, "ServiceUnavailable", error.to_string()),
        OpenError::NoAnswer { .. } => Status::new(504, "Timeout", error.to_string()),
        OpenError::Refused {
            code,
            reason,
            message,
        } => Status::new(*code, known_reason(reason), message.clone()),
    }
}

/// Reasons travel as text; a Status has one of the API's.
fn known_reason(reason: &str) -> &'static str {
    const REASONS: [&str; 9] = [
        "BadRequest",
        "Unauthorized",
        "Forbidden",
        "NotFound",
        "Conflict",
        "Invalid",
        "Timeout",
        "ServiceUnavailable",
        "InternalError",
    ];
    REASONS
        .into_iter()
        .find(|known| *known == reason)
        .unwrap_or("")
}
