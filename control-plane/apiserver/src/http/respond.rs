//! Responses.

use std::io::{Read, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use balsa_api::status::Status;
use bytes::{Bytes, BytesMut};
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER, VARY,
};
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Full};

use super::protobuf;
use crate::cache::Stored;
use crate::seam::ResponseBody;

/// Media type of JSON answers.
pub const JSON: &str = "application/json";
/// Media type of YAML answers.
pub const YAML: &str = "application/yaml";
/// Smallest body that is worth compressing, as upstream.
const GZIP_FROM: usize = 128 * 1024;
/// Size of the pieces in which lists are copied out.
const CHUNK: usize = 128 * 1024;

/// A response with a whole body.
#[must_use]
pub fn bytes(
    code: u16,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<ResponseBody> {
    with_body(code, content_type, full(body.into()))
}

/// A body that is all there.
#[must_use]
pub fn full(body: Bytes) -> ResponseBody {
    Full::new(body)
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A response with any body.
#[must_use]
pub fn with_body(
    code: u16,
    content_type: &'static str,
    body: ResponseBody,
) -> Response<ResponseBody> {
    let mut response = Response::new(body);
    *response.status_mut() =
        StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// An object that was made for the answer: an error, a Status. Clients get it in the format that they like
/// best ([`as_protobuf`]).
#[must_use]
pub fn json(code: u16, value: &serde_json::Value) -> Response<ResponseBody> {
    let mut body = serde_json::to_vec(value).unwrap_or_default();
    body.push(b'\n');
    let body = Bytes::from(body);
    let mut response = bytes(code, JSON, body.clone());
    response.extensions_mut().insert(Made(body));
    response
}

/// JSON of a response of [`json`].
#[derive(Clone)]
struct Made(Bytes);

/// A response of [`json`] in protobuf, if its object can be written so; all others as they are.
#[must_use]
pub fn as_protobuf(mut response: Response<ResponseBody>) -> Response<ResponseBody> {
    let Some(Made(json)) = response.extensions_mut().remove() else {
        return response;
    };
    if let Some(written) = protobuf::object(&json) {
        *response.body_mut() = full(written);
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static(protobuf::MEDIA_TYPE));
    }
    response
}

/// Plain text.
#[must_use]
pub fn text(code: u16, body: impl Into<Bytes>) -> Response<ResponseBody> {
    let mut response = bytes(code, "text/plain; charset=utf-8", body);
    response.headers_mut().insert(
        "x-content-type-options",
        HeaderValue::from_static("nosniff"),
    );
    response
}

/// An error.
#[must_use]
pub fn status(status: &Status) -> Response<ResponseBody> {
    let mut response = json(status.code, &status.body());
    let details = status.details.as_ref();
    let retry = details.and_then(|details| details.retry_after_seconds);
    // Clients wait by themselves if there is one, so only where something said so.
    if let Some(seconds) = retry.filter(|seconds| *seconds > 0) {
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if status.code == 401 {
        response.headers_mut().insert(
            http::header::WWW_AUTHENTICATE,
            HeaderValue::from_static("Bearer realm=\"balsa\""),
        );
    }
    response
}

/// Adds a warning that kubectl prints.
pub fn warn(headers: &mut HeaderMap, text: &str) {
    let clean: String = text
        .chars()
        .filter(|c| !c.is_control())
        .flat_map(|c| {
            if matches!(c, '"' | '\\') {
                vec!['\\', c]
            } else {
                vec![c]
            }
        })
        .collect();
    if let Ok(value) = HeaderValue::try_from(format!("299 - \"{clean}\"")) {
        headers.append(http::header::WARNING, value);
    }
}

/// Does the client take gzip?
#[must_use]
pub fn accepts_gzip(headers: &HeaderMap) -> bool {
    headers
        .get_all(http::header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .any(|e| {
            let mut parts = e.split(';').map(str::trim);
            parts.next() == Some("gzip") && parts.all(|p| p != "q=0")
        })
}

/// Compresses a large body; small ones are not worth it.
pub async fn maybe_gzip(response: Response<ResponseBody>) -> Response<ResponseBody> {
    use http_body::Body;
    let large = response
        .body()
        .size_hint()
        .exact()
        .is_some_and(|n| n >= GZIP_FROM as u64);
    if !large || response.headers().contains_key(CONTENT_ENCODING) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let Ok(collected) = body.collect().await else {
        return status(&Status::internal("the response could not be read"));
    };
    let plain = collected.to_bytes();
    let input = plain.clone();
    let packed = tokio::task::spawn_blocking(move || gzip(&input)).await;
    let body = match packed {
        Ok(Ok(packed)) => {
            parts
                .headers
                .insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            parts
                .headers
                .insert(VARY, HeaderValue::from_static("Accept-Encoding"));
            packed.into()
        }
        _ => plain,
    };
    parts.headers.remove(http::header::CONTENT_LENGTH);
    Response::from_parts(parts, full(body))
}

/// Unpacks what [`gzip`] packed.
#[must_use]
pub fn gunzip(packed: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(packed.len() * 8);
    // It is our own, from memory.
    let _ = flate2::read::GzDecoder::new(packed).read_to_end(&mut plain);
    plain
}

/// Packs for the wire.
///
/// # Errors
/// Never, in memory.
pub fn gzip(plain: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 6), Compression::fast());
    encoder.write_all(plain)?;
    encoder.finish()
}

/// Body of a list: head, the objects' bytes separated by commas, tail. Copies piece by piece while the
/// client reads, so a large list never lies in memory a second time.
pub struct ListBody {
    head: Option<Bytes>,
    tail: Option<Bytes>,
    objects: std::vec::IntoIter<Arc<Stored>>,
    first: bool,
    left: u64,
}

impl ListBody {
    /// See the type.
    #[must_use]
    pub fn new((head, tail): (Bytes, Bytes), objects: Vec<Arc<Stored>>) -> Self {
        let commas = objects.len().saturating_sub(1);
        let items: usize = objects.iter().map(|o| o.bytes.len()).sum();
        let left = (head.len() + tail.len() + items + commas) as u64;
        Self {
            head: Some(head),
            tail: Some(tail),
            objects: objects.into_iter(),
            first: true,
            left,
        }
    }

    fn next_chunk(&mut self) -> Option<Bytes> {
        let size = usize::try_from(self.left).unwrap_or(CHUNK).min(CHUNK);
        // The object that fills it goes beyond: without room for that, all of it would be copied once more.
        let mut out = BytesMut::with_capacity(size + size / 8);
        if let Some(head) = self.head.take() {
            out.extend_from_slice(&head);
        }
        for object in self.objects.by_ref() {
            if !self.first {
                out.extend_from_slice(b",");
            }
            self.first = false;
            out.extend_from_slice(&object.bytes);
            if out.len() >= CHUNK {
                break;
            }
        }
        if self.objects.as_slice().is_empty()
            && let Some(tail) = self.tail.take()
        {
            out.extend_from_slice(&tail);
        }
        self.left = self.left.saturating_sub(out.len() as u64);
        (!out.is_empty()).then(|| out.freeze())
    }
}

impl http_body::Body for ListBody {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        Poll::Ready(
            self.get_mut()
                .next_chunk()
                .map(|chunk| Ok(http_body::Frame::data(chunk))),
        )
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.left)
    }
}
