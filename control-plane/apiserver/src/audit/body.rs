//! Looking at the bodies of responses on their way out.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use serde_json::Value;

use super::value_of;
use crate::BoxError;
use crate::http::respond;
use crate::seam::ResponseBody;

/// The object of a response whose body is all there, and the response again.
pub(super) async fn peek(
    response: Response<ResponseBody>,
    largest: u64,
) -> (Response<ResponseBody>, Option<Value>) {
    let small = response
        .body()
        .size_hint()
        .exact()
        .is_some_and(|n| n <= largest);
    if !small || response.headers().contains_key(CONTENT_ENCODING) {
        return (response, None);
    }
    let (parts, body) = response.into_parts();
    let bytes = match body.collect().await {
        Ok(collected) => collected.to_bytes(),
        // The client gets what was there; bodies of a known size do not fail.
        Err(_) => Bytes::new(),
    };
    let content_type = parts.headers.get(CONTENT_TYPE);
    let object = content_type
        .and_then(|v| v.to_str().ok())
        .and_then(|t| value_of(t, &bytes));
    (Response::from_parts(parts, respond::full(bytes)), object)
}

/// Calls `end` when the body of a response is over, however that comes.
pub(super) fn at_end(
    response: Response<ResponseBody>,
    end: impl FnOnce() + Send + Unpin + 'static,
) -> Response<ResponseBody> {
    response.map(|body| {
        Ending {
            body,
            end: Some(Box::new(end)),
        }
        .boxed_unsync()
    })
}

struct Ending {
    body: ResponseBody,
    end: Option<Box<dyn FnOnce() + Send>>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            end();
        }
    }
}

impl Body for Ending {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
