//! What the handlers of one request share.

use std::collections::BTreeMap;
use std::sync::Arc;

use balsa_api::apply::manager_from_user_agent;
use balsa_api::schema::decode::FieldValidation;
use balsa_api::status::Status;
use http::HeaderMap;
use http::request::Parts;
use parking_lot::Mutex;

use super::negotiate::{Accepted, Offer, negotiate};
use super::query::Query;
use super::request_info::RequestInfo;
use crate::seam::{Fence, User};

/// One request, after authentication.
pub struct Context {
    /// What it is about.
    pub info: Arc<RequestInfo>,
    /// Its query.
    pub query: Query,
    /// Its headers.
    pub headers: HeaderMap,
    /// Who makes it.
    pub user: Arc<User>,
    /// Set by leader-only callers inside the process.
    pub fence: Option<u64>,
    /// The target's objects can be written in protobuf.
    pub protobuf: bool,
    warnings: Mutex<Vec<String>>,
    annotations: Mutex<BTreeMap<String, String>>,
}

impl Context {
    /// From the request's head.
    #[must_use]
    pub fn new(info: Arc<RequestInfo>, query: Query, parts: &mut Parts, user: Arc<User>) -> Self {
        let fence = parts.extensions.get::<Fence>().map(|f| f.0);
        let headers = std::mem::take(&mut parts.headers);
        Self {
            info,
            query,
            headers,
            user,
            fence,
            protobuf: false,
            warnings: Mutex::default(),
            annotations: Mutex::default(),
        }
    }

    /// Annotations of the request's audit event; the first value of a key stays.
    #[must_use]
    pub fn take_annotations(&self) -> BTreeMap<String, String> {
        std::mem::take(&mut self.annotations.lock())
    }

    /// Adds an annotation to the request's audit event.
    pub fn annotate(&self, key: String, value: String) {
        self.annotations.lock().entry(key).or_insert(value);
    }

    /// Warnings so far, for the response.
    #[must_use]
    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut self.warnings.lock())
    }

    /// Adds a warning.
    pub fn warn(&self, text: impl Into<String>) {
        let text = text.into();
        let mut warnings = self.warnings.lock();
        if !text.is_empty() && !warnings.contains(&text) {
            warnings.push(text);
        }
    }

    /// `dryRun=All`.
    ///
    /// # Errors
    /// 422 for other values.
    pub fn dry_run(&self) -> Result<bool, Status> {
        let mut all = false;
        for value in self.query.all("dryRun") {
            match value {
                "All" => all = true,
                "" => {}
                other => return Err(unsupported_option("dryRun", other, &["All"])),
            }
        }
        Ok(all)
    }

    /// `fieldValidation`; `Warn` when the client does not say.
    ///
    /// # Errors
    /// 422 for unknown values.
    pub fn field_validation(&self) -> Result<FieldValidation, Status> {
        let options = match self.info.verb {
            "create" => "CreateOptions",
            "patch" => "PatchOptions",
            _ => "UpdateOptions",
        };
        FieldValidation::parse(self.query.get("fieldValidation"), options)
    }

    /// Who is recorded in managedFields: `fieldManager`, else the first word of the User-Agent.
    #[must_use]
    pub fn field_manager(&self) -> String {
        if let Some(manager) = self.query.some("fieldManager") {
            return manager.to_owned();
        }
        let agent = self
            .headers
            .get(http::header::USER_AGENT)
            .and_then(|v| v.to_str().ok());
        manager_from_user_agent(agent.unwrap_or_default())
    }

    /// Format and shape of the answer; `shapes` as in [`negotiate`].
    ///
    /// # Errors
    /// 406.
    pub fn accepted(&self, shapes: bool) -> Result<Accepted, Status> {
        let offer = Offer {
            shapes,
            protobuf: self.protobuf,
        };
        negotiate(&self.headers, offer)
    }
}

fn unsupported_option(field: &str, value: &str, supported: &[&str]) -> Status {
    let mut errors = balsa_api::status::FieldErrors::default();
    errors.not_supported(field, value, supported);
    Status::invalid("CreateOptions", "meta.k8s.io", "", &errors)
}
