//! Errors as Kubernetes words them: `Status` objects with reason, code, details and field causes.
//!
//! Source: apimachinery `metav1.Status`, `api/errors` and `util/validation/field`.

use serde::Serialize;
use serde_json::Value;

/// What went wrong, as a client sees it. Serialises to the body of a `Status` object through [`Status::body`].
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// HTTP status code.
    pub code: u16,
    /// Machine-readable reason, for example `NotFound`; empty when there is none.
    pub reason: &'static str,
    /// One sentence for people.
    pub message: String,
    /// Name, group, kind, uid, causes, retryAfterSeconds; absent when empty.
    pub details: Option<Details>,
}

/// `StatusDetails`.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Details {
    /// Name of the object.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Group of the resource.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Resource (plural), or kind for validation errors.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// UID of the object.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Causes, one per field.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    /// Seconds after which to try again.
    #[serde(rename = "retryAfterSeconds", skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u32>,
}

/// `StatusCause`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cause {
    /// For example `FieldValueRequired`.
    pub reason: String,
    /// What is wrong.
    pub message: String,
    /// Field path, for example `spec.containers[0].name`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
}

impl Status {
    /// The JSON body: `{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure",...}`.
    #[must_use]
    pub fn body(&self) -> Value {
        let mut body = serde_json::json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.code,
        });
        if !self.reason.is_empty() {
            body["reason"] = self.reason.into();
        }
        if let Some(details) = &self.details {
            body["details"] = serde_json::to_value(details).unwrap_or_default();
        }
        body
    }

    /// A status without details.
    #[must_use]
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: None,
        }
    }

    /// 422 `Invalid`: `Kind.group "name" is invalid: ...`, one cause per field.
    #[must_use]
    pub fn invalid(kind: &str, group: &str, name: &str, errors: &FieldErrors) -> Self {
        let qualified = if group.is_empty() {
            kind.to_owned()
        } else {
            format!("{kind}.{group}")
        };
        let texts: Vec<String> = errors.0.iter().map(FieldError::text).collect();
        let list = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let causes = errors
            .0
            .iter()
            .map(|e| Cause {
                reason: e.kind.reason().into(),
                message: e.body(),
                field: e.field.clone(),
            })
            .collect();
        Self {
            code: 422,
            reason: "Invalid",
            message: format!("{qualified} \"{name}\" is invalid: {list}"),
            details: Some(Details {
                name: name.into(),
                group: group.into(),
                kind: kind.into(),
                causes,
                ..Details::default()
            }),
        }
    }

    fn about(
        code: u16,
        reason: &'static str,
        message: String,
        group: &str,
        resource: &str,
        name: &str,
    ) -> Self {
        let details = Details {
            name: name.into(),
            group: group.into(),
            kind: resource.into(),
            ..Details::default()
        };
        Self {
            code,
            reason,
            message,
            details: Some(details),
        }
    }

    /// 404 `NotFound`: `pods "x" not found`.
    #[must_use]
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", qualified(group, resource));
        Self::about(404, "NotFound", message, group, resource, name)
    }

    /// 409 `AlreadyExists`: `pods "x" already exists`.
    #[must_use]
    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", qualified(group, resource));
        Self::about(409, "AlreadyExists", message, group, resource, name)
    }

    /// 409 `Conflict`: `Operation cannot be fulfilled on pods "x": <why>`.
    #[must_use]
    pub fn conflict(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} \"{name}\": {why}",
            qualified(group, resource)
        );
        Self::about(409, "Conflict", message, group, resource, name)
    }

    /// 403 `Forbidden`: `pods "x" is forbidden: <why>`.
    #[must_use]
    pub fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message = if name.is_empty() {
            format!("{} is forbidden: {why}", qualified(group, resource))
        } else {
            format!(
                "{} \"{name}\" is forbidden: {why}",
                qualified(group, resource)
            )
        };
        Self::about(403, "Forbidden", message, group, resource, name)
    }

    /// 400 `BadRequest`.
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 500 `InternalError`.
    #[must_use]
    pub fn internal(message: impl std::fmt::Display) -> Self {
        Self::new(
            500,
            "InternalError",
            format!("Internal error occurred: {message}"),
        )
    }
}

fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() {
        resource.to_owned()
    } else {
        format!("{resource}.{group}")
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

/// The kinds of field error of apimachinery's `field.ErrorType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// `Required value`
    Required,
    /// `Invalid value`
    Invalid,
    /// `Invalid value`, because it is of another type
    TypeInvalid,
    /// `Duplicate value`
    Duplicate,
    /// `Forbidden`
    Forbidden,
    /// `Unsupported value`
    NotSupported,
    /// `Too long`
    TooLong,
    /// `Too many`
    TooMany,
    /// `Not found`
    NotFound,
}

impl ErrorKind {
    /// The cause's reason, for example `FieldValueRequired`.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Forbidden => "FieldValueForbidden",
            Self::NotSupported => "FieldValueNotSupported",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::NotFound => "FieldValueNotFound",
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Required => "Required value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::Duplicate => "Duplicate value",
            Self::Forbidden => "Forbidden",
            Self::NotSupported => "Unsupported value",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::NotFound => "Not found",
        }
    }
}

/// One problem of one field.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldError {
    /// What kind of problem.
    pub kind: ErrorKind,
    /// Path, for example `spec.containers[0].name`.
    pub field: String,
    /// The offending value where upstream prints it.
    pub value: Option<Value>,
    /// The rest of the sentence.
    pub detail: String,
}

impl FieldError {
    /// Without the path: `Invalid value: "x": must be ...`.
    #[must_use]
    pub fn body(&self) -> String {
        let mut text = self.kind.label().to_owned();
        let shows_value = matches!(
            self.kind,
            ErrorKind::Invalid
                | ErrorKind::TypeInvalid
                | ErrorKind::Duplicate
                | ErrorKind::NotSupported
                | ErrorKind::NotFound
        );
        if let (true, Some(value)) = (shows_value, &self.value) {
            text.push_str(": ");
            text.push_str(&value.to_string());
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }

    /// With the path: `spec.x: Required value: ...`.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}: {}", self.field, self.body())
    }
}

/// All problems found in an object.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FieldErrors(pub Vec<FieldError>);

impl FieldErrors {
    /// True when nothing is wrong.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn push(
        &mut self,
        kind: ErrorKind,
        field: impl Into<String>,
        value: Option<Value>,
        detail: impl Into<String>,
    ) {
        self.0.push(FieldError {
            kind,
            field: field.into(),
            value,
            detail: detail.into(),
        });
    }

    /// A missing value.
    pub fn required(&mut self, field: impl Into<String>, detail: impl Into<String>) {
        self.push(ErrorKind::Required, field, None, detail);
    }

    /// A value that may not be.
    pub fn invalid(
        &mut self,
        field: impl Into<String>,
        value: impl Into<Value>,
        detail: impl Into<String>,
    ) {
        self.push(ErrorKind::Invalid, field, Some(value.into()), detail);
    }

    /// A value that may not be, and is not worth repeating.
    pub fn invalid_unshown(&mut self, field: impl Into<String>, detail: impl Into<String>) {
        self.push(ErrorKind::Invalid, field, None, detail);
    }

    /// A value of another type than the schema says.
    pub fn type_invalid(
        &mut self,
        field: impl Into<String>,
        value: impl Into<Value>,
        detail: impl Into<String>,
    ) {
        self.push(ErrorKind::TypeInvalid, field, Some(value.into()), detail);
    }

    /// A list or map with more than `limit` members.
    pub fn too_many(&mut self, field: impl Into<String>, count: usize, limit: usize) {
        self.push(
            ErrorKind::TooMany,
            field,
            Some(count.into()),
            format!("{count}: must have at most {limit} items"),
        );
    }

    /// A value that stands twice.
    pub fn duplicate(&mut self, field: impl Into<String>, value: impl Into<Value>) {
        self.push(ErrorKind::Duplicate, field, Some(value.into()), "");
    }

    /// A field that may not be set or changed.
    pub fn forbidden(&mut self, field: impl Into<String>, detail: impl Into<String>) {
        self.push(ErrorKind::Forbidden, field, None, detail);
    }

    /// A value that is none of the `supported` ones (listed in the order given).
    pub fn not_supported(
        &mut self,
        field: impl Into<String>,
        value: impl Into<Value>,
        supported: &[&str],
    ) {
        let list: Vec<String> = supported.iter().map(|s| format!("\"{s}\"")).collect();
        self.push(
            ErrorKind::NotSupported,
            field,
            Some(value.into()),
            format!("supported values: {}", list.join(", ")),
        );
    }

    /// A value over its limit in bytes.
    pub fn too_long(&mut self, field: impl Into<String>, limit: usize) {
        self.push(
            ErrorKind::TooLong,
            field,
            None,
            format!("may not be more than {limit} bytes"),
        );
    }

    /// A reference to something that is not there.
    pub fn not_found(&mut self, field: impl Into<String>, value: impl Into<Value>) {
        self.push(ErrorKind::NotFound, field, Some(value.into()), "");
    }

    /// Adds what another check found.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }
}
