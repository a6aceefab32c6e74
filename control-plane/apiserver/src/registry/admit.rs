//! From a client's bytes to a checked object: decoding against the schema, defaults, admission, validation.

use balsa_api::schema::decode::{Expected, Parsed, decode};
use balsa_api::schema::{Schema, Type};
use balsa_api::status::{FieldErrors, Status};
use bytes::Bytes;
use serde_json::Value;

use super::{Registry, Target, metadata};
use crate::http::context::Context;
use crate::http::{decode, negotiate};
use crate::render::api_version;
use crate::seam::{AdmissionRequest, Operation, User};

/// Decodes a body that should be an object of the target's kind, and applies field validation.
///
/// # Errors
/// 400 (syntax, wrong kind, wrong type, unknown fields under Strict), 415.
pub fn object_of(cx: &Context, target: &Target, body: &Bytes) -> Result<Value, Status> {
    let parsed = decode::parse(body, negotiate::body_format(&cx.headers)?)?;
    conform(cx, target, parsed)
}

/// Brings a parsed document into the form of the target's kind; unknown and duplicate fields are dropped,
/// reported or refused, as the client wants it.
///
/// # Errors
/// 400 in the words of upstream's decoder.
pub fn conform(cx: &Context, target: &Target, parsed: Parsed) -> Result<Value, Status> {
    let kind = &target.kind;
    let Some(type_) = target.type_ else {
        let mut value = parsed.value;
        metadata::check_type_as(&kind.kind, &api_version(kind), &mut value)?;
        return Ok(value);
    };
    let expected = Expected {
        group: &kind.group,
        version: &kind.version,
        kind: &kind.kind,
    };
    conform_to(cx, expected, type_, parsed)
}

/// Decodes the body of a subresource, which is of a kind of its own.
///
/// # Errors
/// As [`object_of`].
pub fn body_of(
    cx: &Context,
    group: &str,
    version: &str,
    kind: &str,
    body: &Bytes,
) -> Result<Value, Status> {
    let parsed = decode::parse(body, negotiate::body_format(&cx.headers)?)?;
    let type_ = Schema::builtin()
        .kind(group, version, kind)
        .ok_or_else(|| Status::internal(format!("there is no schema of {kind}")))?;
    conform_to(
        cx,
        Expected {
            group,
            version,
            kind,
        },
        type_,
        parsed,
    )
}

fn conform_to(
    cx: &Context,
    expected: Expected<'_>,
    type_: Type<'_>,
    parsed: Parsed,
) -> Result<Value, Status> {
    let (mut value, warnings) = decode(expected, type_, parsed, cx.field_validation()?)?;
    for warning in warnings {
        cx.warn(warning);
    }
    if !value.get("metadata").is_some_and(Value::is_object) {
        value["metadata"] = Value::Object(serde_json::Map::new());
    }
    Ok(value)
}

/// 422 unless there are no errors.
///
/// # Errors
/// 422.
pub fn valid(target: &Target, name: &str, errors: &FieldErrors) -> Result<(), Status> {
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid(
        &target.kind.kind,
        &target.kind.group,
        name,
        errors,
    ))
}

/// What admission is asked about.
#[derive(Clone, Copy)]
pub struct Question<'a> {
    /// Operation.
    pub operation: Operation,
    /// Target.
    pub target: &'a Target,
    /// Subresource or empty.
    pub subresource: &'a str,
    /// Who.
    pub user: &'a User,
    /// Nothing will be written.
    pub dry_run: bool,
}

impl Registry {
    /// Runs the mutating halves of admission.
    pub(super) async fn mutate(
        &self,
        question: Question<'_>,
        object: Option<&mut Value>,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        let mut request = request(question, object, old);
        for admission in &self.admission {
            admission.mutate(&mut request).await?;
        }
        Ok(())
    }

    /// Runs the validating halves of admission.
    pub async fn validate_admission(
        &self,
        question: Question<'_>,
        object: Option<&mut Value>,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        let request = request(question, object, old);
        for admission in &self.admission {
            admission.validate(&request).await?;
        }
        Ok(())
    }
}

fn request<'a>(
    question: Question<'a>,
    object: Option<&'a mut Value>,
    old: Option<&'a Value>,
) -> AdmissionRequest<'a> {
    AdmissionRequest {
        operation: question.operation,
        kind: &question.target.kind,
        subresource: question.subresource,
        namespace: &question.target.namespace,
        name: &question.target.name,
        object,
        old,
        user: question.user,
        dry_run: question.dry_run,
    }
}
