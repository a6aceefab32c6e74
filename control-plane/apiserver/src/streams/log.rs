//! `pods/log`: the container's log as it comes from the node, flushed as it comes.

use balsa_api::status::Status;
use balsa_link::protocol::StreamRequest;
use bytes::Bytes;
use futures::TryStreamExt as _;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use serde_json::Value;
use tokio_util::io::ReaderStream;

use super::query::Query;
use super::{open, pod, upgrade};
use crate::seam::{NodeStreams, ResponseBody};

pub(super) async fn serve(
    nodes: &dyn NodeStreams,
    object: &Value,
    uri: &http::Uri,
) -> Result<Response<ResponseBody>, Status> {
    let query = Query::of(uri);
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let options = query.log_options(name)?;
    let container = pod::container(object, query.first("container"))?;
    // Not scheduled yet: there is no log, which is no error.
    let Some(node) = pod::node(object) else {
        return Ok(text(upgrade::empty()));
    };
    let target = pod::target(object, container);
    let stream = open(nodes, node, StreamRequest::Logs { target, options }).await?;
    Ok(text(body_of(stream.reader)))
}

fn text(body: ResponseBody) -> Response<ResponseBody> {
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

/// A body of what a reader gives, each piece when it is there.
pub(super) fn body_of(reader: Box<dyn tokio::io::AsyncRead + Send + Unpin>) -> ResponseBody {
    let stream = ReaderStream::new(reader)
        .map_ok(Frame::<Bytes>::data)
        .map_err(|e| -> Box<dyn std::error::Error + Send + Sync> { Box::new(e) });
    StreamBody::new(stream).boxed_unsync()
}
