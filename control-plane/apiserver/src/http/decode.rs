//! Request bodies: read within a limit, parsed from JSON, YAML or protobuf.

use balsa_api::schema::decode::{Parsed, parse_json, parse_yaml};
use balsa_api::status::Status;
use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt;
use serde_json::Value;

use super::negotiate::BodyFormat;
use super::protobuf;
use crate::seam::RequestBody;

/// Largest request body, as upstream.
pub const MAX_BODY: usize = 3 << 20;
/// Of a body that is too large so much is read and dropped, so that the client comes to read the answer: many do not
/// before they have sent all, and a closed connection would tell them nothing.
const MAX_DRAINED: usize = 8 * MAX_BODY;

/// Reads a whole body.
///
/// # Errors
/// 413 when it is too large, 400 when the client broke off.
pub async fn read(mut body: RequestBody) -> Result<Bytes, Status> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|e| Status::bad_request(format!("the request body could not be read: {e}")))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if whole.len() + data.len() > MAX_BODY {
            drain(body).await;
            return Err(Status::new(
                413,
                "RequestEntityTooLarge",
                format!("Request entity too large: limit is {MAX_BODY}"),
            ));
        }
        if whole.is_empty() && body.is_end_stream() {
            return Ok(data);
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

async fn drain(mut body: RequestBody) {
    let mut drained = 0;
    while let Some(Ok(frame)) = body.frame().await {
        drained += frame.data_ref().map_or(0, Bytes::len);
        if drained > MAX_DRAINED {
            return;
        }
    }
}

/// Parses a body.
///
/// # Errors
/// 400 that says where the syntax is wrong.
pub fn parse(body: &[u8], format: BodyFormat) -> Result<Parsed, Status> {
    match format {
        BodyFormat::Json => parse_json(body),
        BodyFormat::Yaml => parse_yaml(body),
        BodyFormat::Protobuf => protobuf::parse(body),
    }
}

/// Encodes a value as YAML.
///
/// # Errors
/// 500 when it cannot be written.
pub fn to_yaml(value: &Value) -> Result<Vec<u8>, Status> {
    serde_saphyr::to_string(value)
        .map(String::into_bytes)
        .map_err(Status::internal)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn bombs_and_rubbish_are_refused() {
        let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for i in 1..9 {
            let refs = vec![format!("*a{}", i - 1); 10].join(",");
            bomb.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
        }
        assert_eq!(
            parse(bomb.as_bytes(), BodyFormat::Yaml).unwrap_err().code,
            400
        );
        assert_eq!(parse(b"{\"a\":", BodyFormat::Json).unwrap_err().code, 400);
        assert_eq!(
            parse(&b"[".repeat(100_000), BodyFormat::Json)
                .unwrap_err()
                .code,
            400
        );
        assert_eq!(
            parse(&b"[".repeat(100_000), BodyFormat::Yaml)
                .unwrap_err()
                .code,
            400
        );
        assert_eq!(parse(b"\xff\xfe", BodyFormat::Yaml).unwrap_err().code, 400);
        assert_eq!(
            parse(b"{} trailing", BodyFormat::Json).unwrap_err().code,
            400
        );
    }
}
