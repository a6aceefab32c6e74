//! From a client's bytes to a checked object: decoding against the schema, defaults, admission, validation.

use balsa_api::patch::Patch;
use balsa_api::schema::decode::{Expected, FieldValidation, Parsed, decode, decode_patched};
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
    let format = if target.custom.is_some() {
        negotiate::plain_body_format(&cx.headers)
    } else {
        negotiate::body_format(&cx.headers)
    };
    let parsed = decode::parse(body, format?)?;
    conform(cx, target, parsed)
}

/// Brings a parsed document into the form of the target's kind; unknown and duplicate fields are dropped,
/// reported or refused, as the client wants it.
///
/// # Errors
/// 400 in the words of upstream's decoder.
pub fn conform(cx: &Context, target: &Target, parsed: Parsed) -> Result<Value, Status> {
    let kind = &target.kind;
    if let Some(custom) = &target.custom {
        let (value, warnings) = custom.conform(parsed, cx.field_validation()?)?;
        for warning in warnings {
            cx.warn(warning);
        }
        return Ok(value);
    }
    let Some(type_) = target.type_() else {
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

/// Applies a patch to an object of the target's kind, and brings the outcome into the form of the kind.
///
/// # Errors
/// Those of the patch; 422 in the words of upstream's patch handler for an outcome that does not fit; 400 for
/// another kind.
pub fn patched(cx: &Context, target: &Target, patch: &Patch, old: &Value) -> Result<Value, Status> {
    let kind = &target.kind;
    let value = patch.apply(target.type_(), old.clone())?;
    if let Some(custom) = &target.custom {
        let parsed = Parsed {
            value,
            ..Parsed::default()
        };
        // Without duplicates, its warnings are the unknown fields.
        let (value, unknown) = custom.conform(parsed, FieldValidation::Warn)?;
        judge_patch(cx, patch, old, target.type_(), unknown)?;
        return Ok(value);
    }
    if target.type_().is_none() {
        let mut value = value;
        metadata::check_type_as(&kind.kind, &api_version(kind), &mut value)?;
        return Ok(value);
    }
    conform_patched(
        cx,
        (&kind.group, &kind.version, &kind.kind),
        patch,
        (old, value),
    )
}

/// Applies a patch to the document of a subresource, which is of a kind of its own (group, version, kind).
///
/// # Errors
/// As [`patched`].
pub fn patched_body(
    cx: &Context,
    kind: (&str, &str, &str),
    patch: &Patch,
    old: &Value,
) -> Result<Value, Status> {
    let value = patch.apply(None, old.clone())?;
    conform_patched(cx, kind, patch, (old, value))
}

fn conform_patched(
    cx: &Context,
    kind: (&str, &str, &str),
    patch: &Patch,
    (old, value): (&Value, Value),
) -> Result<Value, Status> {
    let (expected, type_) = builtin(kind)?;
    let (mut value, unknown) = decode_patched(expected, type_, value, |why| {
        let outcome = patch.apply(Some(type_), old.clone()).ok();
        patch.refuse(outcome.as_ref(), why)
    })?;
    judge_patch(cx, patch, old, Some(type_), unknown)?;
    ensure_metadata(&mut value);
    Ok(value)
}

/// What becomes of fields that a patch has twice or that the kind does not have.
fn judge_patch(
    cx: &Context,
    patch: &Patch,
    old: &Value,
    type_: Option<Type<'_>>,
    unknown: Vec<String>,
) -> Result<(), Status> {
    let validation = cx.field_validation()?;
    let in_outcome = !unknown.is_empty();
    let mut problems = patch.problems().iter().cloned().chain(unknown);
    match validation {
        FieldValidation::Ignore => Ok(()),
        FieldValidation::Warn => {
            problems.for_each(|problem| cx.warn(problem));
            Ok(())
        }
        FieldValidation::Strict => {
            let problems: Vec<String> = problems.by_ref().collect();
            if problems.is_empty() {
                return Ok(());
            }
            let why = format!("strict decoding error: {}", problems.join(", "));
            // Made once more for the message: patches that fit are many, these are few.
            let outcome = in_outcome.then(|| patch.apply(type_, old.clone()).ok());
            Err(patch.refuse(outcome.flatten().as_ref(), &why))
        }
    }
}

fn ensure_metadata(object: &mut Value) {
    if !object["metadata"].is_object() {
        object["metadata"] = Value::Object(serde_json::Map::new());
    }
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
    conform_body(cx, (group, version, kind), parsed)
}

/// Brings the parsed body of a subresource into the form of its kind (group, version, kind).
///
/// # Errors
/// As [`object_of`].
pub fn conform_body(
    cx: &Context,
    kind: (&str, &str, &str),
    parsed: Parsed,
) -> Result<Value, Status> {
    let (expected, type_) = builtin(kind)?;
    conform_to(cx, expected, type_, parsed)
}

/// What is expected of a document of a built-in kind (group, version, kind), and the kind's type.
fn builtin<'k>(
    (group, version, kind): (&'k str, &'k str, &'k str),
) -> Result<(Expected<'k>, Type<'static>), Status> {
    let type_ = Schema::builtin()
        .kind(group, version, kind)
        .ok_or_else(|| Status::internal(format!("there is no schema of {kind}")))?;
    let expected = Expected {
        group,
        version,
        kind,
    };
    Ok((expected, type_))
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
    ensure_metadata(&mut value);
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
    /// The request, where there is one: its options, and where warnings go.
    pub cx: Option<&'a Context>,
    /// Group, version and kind of the object when it is not of the target's kind.
    pub object_kind: Option<(&'a str, &'a str, &'a str)>,
    /// The request's options when they did not come in the query.
    pub options: Option<&'a Value>,
}

impl<'a> Question<'a> {
    /// About the target itself.
    #[must_use]
    pub fn new(cx: &'a Context, target: &'a Target, operation: Operation, dry_run: bool) -> Self {
        Self {
            operation,
            target,
            subresource: "",
            user: &cx.user,
            dry_run,
            cx: Some(cx),
            object_kind: None,
            options: None,
        }
    }

    /// About a subresource.
    #[must_use]
    pub fn on(self, subresource: &'a str) -> Self {
        Self {
            subresource,
            ..self
        }
    }

    /// With an object of another kind than the target's.
    #[must_use]
    pub fn of_kind(self, group: &'a str, version: &'a str, kind: &'a str) -> Self {
        Self {
            object_kind: Some((group, version, kind)),
            ..self
        }
    }

    fn options(&self) -> Value {
        match (self.options, self.cx) {
            (Some(options), _) => options.clone(),
            (None, Some(cx)) => options_of(cx),
            (None, None) => Value::Null,
        }
    }

    /// See [`AdmissionRequest::renormalise`].
    fn renormalise(&self, object: &mut Value) -> Result<(), Status> {
        if matches!(self.operation, Operation::Delete | Operation::Connect) {
            return Ok(());
        }
        let target = self.target;
        let taken = Parsed {
            value: object.take(),
            ..Parsed::default()
        };
        if let Some((group, version, kind)) = self.object_kind {
            let expected = Expected {
                group,
                version,
                kind,
            };
            *object = match Schema::builtin().kind(group, version, kind) {
                Some(type_) => decode(expected, type_, taken, FieldValidation::Ignore)?.0,
                None => taken.value,
            };
            return Ok(());
        }
        let expected = Expected {
            group: &target.kind.group,
            version: &target.kind.version,
            kind: &target.kind.kind,
        };
        *object = match (&target.custom, target.type_()) {
            (Some(custom), _) => custom.conform(taken, FieldValidation::Ignore)?.0,
            (None, Some(type_)) => decode(expected, type_, taken, FieldValidation::Ignore)?.0,
            (None, None) => taken.value,
        };
        ensure_metadata(object);
        target.kind.strategy.default(object);
        Ok(())
    }
}

/// A write's options from its query.
fn options_of(cx: &Context) -> Value {
    let kind = match cx.info.verb {
        "create" => "CreateOptions",
        "patch" => "PatchOptions",
        "update" => "UpdateOptions",
        "delete" | "deletecollection" => "DeleteOptions",
        _ => return Value::Null,
    };
    let mut options = serde_json::Map::new();
    options.insert("kind".into(), kind.into());
    options.insert("apiVersion".into(), "meta.k8s.io/v1".into());
    let dry_run: Vec<&str> = cx.query.all("dryRun").filter(|v| !v.is_empty()).collect();
    if !dry_run.is_empty() {
        options.insert("dryRun".into(), dry_run.into());
    }
    for field in ["fieldManager", "fieldValidation"] {
        if let Some(value) = cx.query.some(field) {
            options.insert(field.into(), value.into());
        }
    }
    if let Some(force) = cx.query.tristate("force") {
        options.insert("force".into(), force.into());
    }
    Value::Object(options)
}

impl Registry {
    /// Runs the mutating halves of admission.
    pub async fn mutate(
        &self,
        question: Question<'_>,
        object: Option<&mut Value>,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        let tools = Tools::of(&question);
        let (warn, annotate, renormalise) = tools.closures();
        let mut request = tools.request(object, old, (&warn, &annotate, &renormalise));
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
        let tools = Tools::of(&question);
        let (warn, annotate, renormalise) = tools.closures();
        let request = tools.request(object, old, (&warn, &annotate, &renormalise));
        for admission in &self.admission {
            admission.validate(&request).await?;
        }
        Ok(())
    }
}

type Warn<'a> = &'a (dyn Fn(String) + Send + Sync);
type Annotate<'a> = &'a (dyn Fn(String, String) + Send + Sync);
type Renormalise<'a> = &'a (dyn Fn(&mut Value) -> Result<(), Status> + Send + Sync);

/// What a question's plugins are handed, kept while they run.
struct Tools<'a> {
    question: &'a Question<'a>,
    options: Value,
}

impl<'a> Tools<'a> {
    fn of(question: &'a Question<'a>) -> Self {
        Self {
            question,
            options: question.options(),
        }
    }

    #[expect(
        clippy::type_complexity,
        reason = "closures have no names of their own"
    )]
    fn closures(
        &self,
    ) -> (
        impl Fn(String) + Send + Sync + 'a,
        impl Fn(String, String) + Send + Sync + 'a,
        impl Fn(&mut Value) -> Result<(), Status> + Send + Sync + 'a,
    ) {
        let question = self.question;
        (
            move |text: String| {
                if let Some(cx) = question.cx {
                    cx.warn(text);
                }
            },
            move |key: String, value: String| {
                if let Some(cx) = question.cx {
                    cx.annotate(key, value);
                }
            },
            move |object: &mut Value| question.renormalise(object),
        )
    }

    fn request<'r>(
        &'r self,
        object: Option<&'r mut Value>,
        old: Option<&'r Value>,
        (warn, annotate, renormalise): (Warn<'r>, Annotate<'r>, Renormalise<'r>),
    ) -> AdmissionRequest<'r> {
        let question = self.question;
        let kind = &question.target.kind;
        AdmissionRequest {
            operation: question.operation,
            kind,
            subresource: question.subresource,
            namespace: &question.target.namespace,
            name: &question.target.name,
            object,
            old,
            user: question.user,
            dry_run: question.dry_run,
            object_kind: question.object_kind.unwrap_or((
                &*kind.group,
                &*kind.version,
                &*kind.kind,
            )),
            options: &self.options,
            warn,
            annotate,
            renormalise,
        }
    }
}
