//! Content negotiation of requests and responses.
//!
//! Rules: apiserver `endpoints/handlers/negotiation`. Protobuf is for built-in kinds; of custom ones only the
//! metadata exists in it.

use balsa_api::status::Status;
use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE};

/// Text format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `application/json`
    Json,
    /// `application/yaml`
    Yaml,
    /// `application/vnd.kubernetes.protobuf`
    Protobuf,
}

/// Shape of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// The object or list itself.
    Plain,
    /// `as=Table`
    Table,
    /// `as=PartialObjectMetadata` or `as=PartialObjectMetadataList`
    Metadata,
}

/// What the client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// Text format.
    pub format: Format,
    /// Shape.
    pub shape: Shape,
}

impl Accepted {
    /// JSON as it is.
    pub const PLAIN_JSON: Self = Self {
        format: Format::Json,
        shape: Shape::Plain,
    };
}

/// One element of an Accept header.
#[derive(Debug, Clone, PartialEq)]
pub struct Clause {
    /// `type/subtype`, lower case.
    pub media: String,
    /// Parameters without `q`.
    pub params: Vec<(String, String)>,
    quality: f32,
}

impl Clause {
    /// Value of a parameter.
    #[must_use]
    pub fn param(&self, name: &str) -> Option<&str> {
        self.params
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    /// The format it stands for, if we have it.
    #[must_use]
    pub fn format(&self) -> Option<Format> {
        match self.media.as_str() {
            "application/json" | "*/*" | "application/*" => Some(Format::Json),
            "application/yaml" => Some(Format::Yaml),
            super::protobuf::MEDIA_TYPE => Some(Format::Protobuf),
            _ => None,
        }
    }
}

/// Whether the headers ask for JSON and nothing else first, in the words of client libraries: they need not be taken
/// apart then.
fn plain_json(headers: &HeaderMap) -> bool {
    let mut all = headers.get_all(ACCEPT).iter();
    let first = all.next().map(http::HeaderValue::as_bytes);
    matches!(first, Some(b"application/json" | b"application/json, */*")) && all.next().is_none()
}

/// Elements of all Accept headers, best first.
#[must_use]
pub fn accept_clauses(headers: &HeaderMap) -> Vec<Clause> {
    let mut clauses: Vec<Clause> = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .filter_map(parse_clause)
        .filter(|c| c.quality > 0.0)
        .collect();
    clauses.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    clauses
}

fn parse_clause(text: &str) -> Option<Clause> {
    let mut parts = text.split(';').map(str::trim);
    let media = parts.next().filter(|m| !m.is_empty())?.to_ascii_lowercase();
    let mut clause = Clause {
        media,
        params: Vec::new(),
        quality: 1.0,
    };
    for (name, value) in parts.filter_map(|p| p.split_once('=')) {
        if name == "q" {
            clause.quality = value.parse().unwrap_or(0.0);
        } else {
            clause.params.push((
                name.to_ascii_lowercase(),
                value.trim_matches('"').to_owned(),
            ));
        }
    }
    Some(clause)
}

/// What there is to choose from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offer {
    /// Table and PartialObjectMetadata exist for this request.
    pub shapes: bool,
    /// The object or list can be written in protobuf.
    pub protobuf: bool,
}

/// Whether the client would rather have protobuf than anything else that we have, for answers that are in
/// every format: errors.
#[must_use]
pub fn prefers_protobuf(headers: &HeaderMap) -> bool {
    !plain_json(headers)
        && accept_clauses(headers)
            .iter()
            .find_map(Clause::format)
            .is_some_and(|format| format == Format::Protobuf)
}

/// Chooses format and shape.
///
/// # Errors
/// 406 when nothing that we have is accepted.
pub fn negotiate(headers: &HeaderMap, offer: Offer) -> Result<Accepted, Status> {
    if !headers.contains_key(ACCEPT) || plain_json(headers) {
        return Ok(Accepted::PLAIN_JSON);
    }
    let clauses = accept_clauses(headers);
    let chosen = clauses.iter().find_map(|clause| {
        let format = clause.format()?;
        let shape = match clause.param("as") {
            None => Shape::Plain,
            Some(_) if !offer.shapes => return None,
            Some(as_) => meta_shape(as_, clause.param("g"), clause.param("v"))?,
        };
        let written = match (format, shape) {
            (Format::Protobuf, Shape::Plain) => offer.protobuf,
            // Cells of a Table are of any type, which protobuf has no message for.
            (Format::Protobuf, Shape::Table) => false,
            _ => true,
        };
        written.then_some(Accepted { format, shape })
    });
    chosen.ok_or_else(not_acceptable)
}

fn meta_shape(as_: &str, group: Option<&str>, version: Option<&str>) -> Option<Shape> {
    if group != Some("meta.k8s.io") || !matches!(version, Some("v1" | "v1beta1")) {
        return None;
    }
    match as_ {
        "Table" => Some(Shape::Table),
        "PartialObjectMetadata" | "PartialObjectMetadataList" => Some(Shape::Metadata),
        _ => None,
    }
}

/// 406.
#[must_use]
pub fn not_acceptable() -> Status {
    Status::new(
        406,
        "NotAcceptable",
        "only the following media types are accepted: application/json, application/yaml, \
         application/vnd.kubernetes.protobuf",
    )
}

/// The raw Content-Type.
#[must_use]
pub fn raw_content_type(headers: &HeaderMap) -> &str {
    headers
        .get(CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default()
}

fn content_type(headers: &HeaderMap) -> String {
    raw_content_type(headers)
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
}

/// Format of a request body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyFormat {
    /// `application/json`
    Json,
    /// `application/yaml`
    Yaml,
    /// `application/vnd.kubernetes.protobuf`
    Protobuf,
}

/// Format of a request body; JSON when the client does not say.
///
/// # Errors
/// 415 for anything else than JSON, YAML and protobuf.
pub fn body_format(headers: &HeaderMap) -> Result<BodyFormat, Status> {
    match content_type(headers).as_str() {
        "" | "application/json" => Ok(BodyFormat::Json),
        "application/yaml" => Ok(BodyFormat::Yaml),
        super::protobuf::MEDIA_TYPE => Ok(BodyFormat::Protobuf),
        _ => Err(unknown_format(&[
            "application/json",
            "application/yaml",
            super::protobuf::MEDIA_TYPE,
        ])),
    }
}

/// As [`body_format`], for kinds that have no protobuf messages.
///
/// # Errors
/// 415 for anything else than JSON and YAML. Clients that prefer protobuf send JSON then.
pub fn plain_body_format(headers: &HeaderMap) -> Result<BodyFormat, Status> {
    match body_format(headers) {
        Ok(format @ (BodyFormat::Json | BodyFormat::Yaml)) => Ok(format),
        _ => Err(unknown_format(&["application/json", "application/yaml"])),
    }
}

fn unknown_format(accepted: &[&str]) -> Status {
    let message = format!(
        "the body of the request was in an unknown format - accepted media types include: {}",
        accepted.join(", ")
    );
    Status::new(415, "UnsupportedMediaType", message)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn accept(value: &str, shapes: bool) -> Result<Accepted, Status> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, value.parse().unwrap());
        let offer = Offer {
            shapes,
            protobuf: shapes,
        };
        negotiate(&headers, offer)
    }

    const KUBECTL: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";

    #[test]
    fn kubectl_get_is_answered_with_a_table_where_there_is_one() {
        assert_eq!(accept(KUBECTL, true).unwrap().shape, Shape::Table);
        assert_eq!(accept(KUBECTL, false).unwrap().shape, Shape::Plain);
    }

    #[test]
    fn a_table_that_is_not_to_be_had_is_406_without_a_fallback() {
        assert_eq!(
            accept("application/json;as=Table;v=v1;g=meta.k8s.io", false)
                .unwrap_err()
                .code,
            406
        );
        assert_eq!(
            accept("application/json;as=Table;v=v2;g=meta.k8s.io", true)
                .unwrap_err()
                .code,
            406
        );
    }

    #[test]
    fn protobuf_is_answered_where_there_is_a_message_for_it() {
        const BOTH: &str = "application/vnd.kubernetes.protobuf,application/json";
        assert_eq!(accept(BOTH, true).unwrap().format, Format::Protobuf);
        assert_eq!(accept(BOTH, false).unwrap().format, Format::Json);
        let only = "application/vnd.kubernetes.protobuf";
        assert_eq!(accept(only, false).unwrap_err().code, 406);
        let custom = |accepted: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accepted.parse().unwrap());
            let offer = Offer {
                shapes: true,
                protobuf: false,
            };
            negotiate(&headers, offer)
        };
        let metadata = format!("{only};as=PartialObjectMetadata;g=meta.k8s.io;v=v1");
        assert_eq!(custom(&metadata).unwrap().format, Format::Protobuf);
        assert_eq!(
            custom("application/vnd.kubernetes.protobuf, */*")
                .unwrap()
                .format,
            Format::Json
        );
        let table = format!("{only};as=Table;g=meta.k8s.io;v=v1,application/json");
        assert_eq!(accept(&table, true).unwrap(), Accepted::PLAIN_JSON);
    }

    #[test]
    fn custom_resources_have_no_protobuf_bodies() {
        let mut headers = HeaderMap::new();
        headers.insert(
            http::header::CONTENT_TYPE,
            super::super::protobuf::MEDIA_TYPE.parse().unwrap(),
        );
        assert_eq!(body_format(&headers), Ok(BodyFormat::Protobuf));
        assert_eq!(plain_body_format(&headers).unwrap_err().code, 415);
    }

    #[test]
    fn quality_orders_the_choices() {
        assert_eq!(
            accept("application/json;q=0.2, application/yaml;q=0.9", true)
                .unwrap()
                .format,
            Format::Yaml
        );
        assert_eq!(accept("*/*", true).unwrap(), Accepted::PLAIN_JSON);
    }
}
