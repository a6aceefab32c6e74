//! ValidatingAdmissionPolicies.
//!
//! Rules and words: apiserver's `plugin/policy/validating`.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use balsa_api::status::{Cause, Status};
use balsa_cel::{Bindings, Budget, EvalError, Program, Type};
use serde_json::{Value, json};

use super::conditions::Outcome;
use super::config::{Binding, Bound, Common, Source};
use super::environment::{Asked, Documents};
use super::{is_excluded, params};
use crate::admission::refuse;
use crate::admission::webhook::View;
use crate::admission::webhook::review::{self, Seen};
use crate::kinds::{KindSet, Kinds};
use crate::seam::{Admission, AdmissionRequest, Authorizer, ObjectReader};

/// Longest value of an audit annotation, in bytes.
const MAX_ANNOTATION: usize = 10 * 1024;
/// Longest message that an expression makes, in bytes.
const MAX_MESSAGE: usize = 5 * 1024;

/// A policy.
pub struct Policy {
    common: Common,
    validations: Vec<Validation>,
    annotations: Vec<(String, Program)>,
}

struct Validation {
    program: Program,
    message: String,
    message_expression: Option<Program>,
    reason: &'static str,
}

impl Policy {
    fn from_json(policy: &Value) -> Result<Self, String> {
        let common = Common::from_json(policy)?;
        let environment = &common.environment;
        let spec = &policy["spec"];
        let text = |value: &Value| value.as_str().unwrap_or_default().trim().to_owned();
        let compile = |expression: &Value, wanted: &[Type]| {
            environment
                .compile_to(expression.as_str().unwrap_or_default(), wanted)
                .map_err(|error| error.complaint())
        };
        let mut validations = Vec::new();
        for validation in spec["validations"].as_array().into_iter().flatten() {
            let message = &validation["messageExpression"];
            validations.push(Validation {
                program: compile(&validation["expression"], &[Type::Bool])?,
                message: text(&validation["message"]),
                message_expression: match message.is_string() {
                    true => Some(compile(message, &[Type::STRING])?),
                    false => None,
                },
                reason: review::reason(validation["reason"].as_str().unwrap_or("Invalid")),
            });
        }
        let mut annotations = Vec::new();
        for annotation in spec["auditAnnotations"].as_array().into_iter().flatten() {
            let value = compile(&annotation["valueExpression"], &[Type::STRING, Type::Null])?;
            annotations.push((text(&annotation["key"]), value));
        }
        Ok(Self {
            common,
            validations,
            annotations,
        })
    }
}

/// A validation that failed, or a policy that could not be evaluated.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Denial {
    message: String,
    reason: &'static str,
}

impl Denial {
    fn new(message: String) -> Self {
        Self {
            message,
            reason: "Invalid",
        }
    }
}

/// What one evaluation of a policy came to.
#[derive(Debug, Default, PartialEq)]
struct Verdict {
    /// With the index of their validations.
    denials: Vec<(usize, Denial)>,
    /// Audit annotations.
    annotations: Vec<(String, String)>,
    /// Annotations that could not be made, which is a refusal whatever the binding's actions.
    failures: Vec<Denial>,
}

impl Policy {
    fn evaluate(&self, bindings: &Bindings<'_>) -> Verdict {
        let mut verdict = Verdict::default();
        let mut budget = Budget::new(Budget::PER_OBJECT);
        let fail_open = self.common.fail_open;
        match self.common.conditions.evaluate_with(bindings, &mut budget) {
            Outcome::Matches => {}
            Outcome::Differs => return verdict,
            Outcome::Failed(why) => {
                verdict.denials.push((0, Denial::new(why)));
                return verdict;
            }
        }
        for (index, validation) in self.validations.iter().enumerate() {
            let failed = match validation.program.evaluate(bindings, &mut budget) {
                Ok(value) if value.as_bool() == Some(true) => None,
                Ok(_) => Some(Denial {
                    message: validation.explain(bindings, &mut budget),
                    reason: validation.reason,
                }),
                Err(_) if fail_open => None,
                Err(EvalError::CostExceeded) => Some(Denial::new(
                    "validation failed due to running out of cost budget, no further validation rules will be run".to_owned(),
                )),
                Err(error) => Some(Denial::new(format!(
                    "expression '{}' resulted in error: {error}",
                    validation.program.source()
                ))),
            };
            verdict.denials.extend(failed.map(|denial| (index, denial)));
        }
        for (key, program) in &self.annotations {
            match program.evaluate(bindings, &mut budget) {
                Ok(value) => {
                    if let Some(text) = value.as_str().map(str::trim).filter(|t| !t.is_empty()) {
                        verdict
                            .annotations
                            .push((key.clone(), shorten(text, MAX_ANNOTATION)));
                    }
                }
                Err(_) if fail_open => {}
                Err(error) => verdict.failures.push(Denial::new(format!(
                    "expression '{}' resulted in error: {error}",
                    program.source()
                ))),
            }
        }
        verdict
    }
}

impl Validation {
    /// What is wrong, in the policy's words.
    fn explain(&self, bindings: &Bindings<'_>, budget: &mut Budget) -> String {
        let made = self
            .message_expression
            .as_ref()
            .and_then(|program| program.evaluate(bindings, budget).ok())
            .and_then(|value| value.as_str().map(|text| text.trim().to_owned()))
            .filter(|text| !text.is_empty() && !text.contains('\n') && text.len() <= MAX_MESSAGE);
        match (made, self.message.as_str()) {
            (Some(made), _) => made,
            (None, "") => format!("failed expression: {}", self.program.source().trim()),
            (None, message) => message.to_owned(),
        }
    }
}

fn shorten(text: &str, longest: usize) -> String {
    let mut end = text.len().min(longest);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// See the module.
pub struct ValidatingPolicies {
    source: Source<Policy>,
    kinds: Arc<Kinds>,
    reader: Arc<dyn ObjectReader>,
    authz: Arc<dyn Authorizer>,
}

impl ValidatingPolicies {
    /// Over the policies of a reader.
    #[must_use]
    pub fn new(
        kinds: Arc<Kinds>,
        reader: Arc<dyn ObjectReader>,
        authz: Arc<dyn Authorizer>,
    ) -> Self {
        let resources = (
            "validatingadmissionpolicies",
            "validatingadmissionpolicybindings",
        );
        Self {
            source: Source::new(resources, Policy::from_json, Arc::clone(&reader)),
            kinds,
            reader,
            authz,
        }
    }

    /// Asks one policy; returns what it refuses.
    async fn ask(
        &self,
        bound: &Bound<Policy>,
        request: &AdmissionRequest<'_>,
        kinds: &KindSet,
    ) -> Result<Vec<Status>, Status> {
        let policy = &bound.policy;
        let scope = &policy.common.scope;
        let Some(resource) = scope.matches(request, kinds, &*self.reader)? else {
            return Ok(Vec::new());
        };
        let view = View::of(request, resource, kinds).await?;
        let seen = view.seen(request);
        let mut refused = Vec::new();
        let mut annotations: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for binding in &bound.bindings {
            if binding
                .scope
                .matches(request, kinds, &*self.reader)?
                .is_none()
            {
                continue;
            }
            let tools = (kinds, &*self.reader);
            let found = params::collect(&policy.common, binding, request.namespace, tools);
            let all = match found {
                Ok(all) => all,
                Err(_) if policy.common.fail_open => continue,
                Err(why) => {
                    let denial = Denial::new(format!("failed to configure binding: {why}"));
                    refused.push(denied(request, &policy.common.name, &binding.name, denial));
                    continue;
                }
            };
            for params in all {
                let verdict = self.evaluate(policy, request, &seen, params.as_deref());
                for (key, value) in &verdict.annotations {
                    let values = annotations.entry(key.clone()).or_default();
                    if !values.contains(value) {
                        values.push(value.clone());
                    }
                }
                refused.extend(act(request, &policy.common.name, binding, verdict));
            }
        }
        for (key, values) in annotations {
            (request.annotate)(format!("{}/{key}", policy.common.name), values.join(", "));
        }
        Ok(refused)
    }

    fn evaluate(
        &self,
        policy: &Policy,
        request: &AdmissionRequest<'_>,
        seen: &Seen<'_>,
        params: Option<&Value>,
    ) -> Verdict {
        let asked = Asked {
            request,
            seen,
            authz: &*self.authz,
            params,
        };
        let documents = Documents::new(&asked, namespace_of(request, &*self.reader));
        policy.evaluate(&documents.bindings(&policy.common.variables))
    }
}

/// The namespace that a request's object is in.
pub(super) fn namespace_of(
    request: &AdmissionRequest<'_>,
    reader: &dyn ObjectReader,
) -> Option<Arc<Value>> {
    let is_namespace = request.kind.group.is_empty() && request.kind.plural == "namespaces";
    if request.namespace.is_empty() || is_namespace {
        return None;
    }
    reader.get("", "namespaces", "", request.namespace)
}

/// Does what a binding says is to be done about a verdict; returns the refusals.
fn act(
    request: &AdmissionRequest<'_>,
    policy: &str,
    binding: &Binding,
    verdict: Verdict,
) -> Vec<Status> {
    let mut refused = Vec::new();
    for (index, denial) in verdict.denials {
        for action in &binding.actions {
            match action.as_str() {
                "Deny" => refused.push(denied(request, policy, &binding.name, denial.clone())),
                "Warn" => (request.warn)(format!(
                    "Validation failed for ValidatingAdmissionPolicy '{policy}' with binding '{}': {}",
                    binding.name, denial.message
                )),
                "Audit" => {
                    let failure = json!([{
                        "message": denial.message,
                        "policy": policy,
                        "binding": binding.name,
                        "expressionIndex": index,
                        "validationActions": binding.actions,
                    }]);
                    (request.annotate)(
                        "validation.policy.admission.k8s.io/validation_failure".to_owned(),
                        failure.to_string(),
                    );
                }
                _ => {}
            }
        }
    }
    let failures = verdict.failures.into_iter();
    refused.extend(failures.map(|denial| denied(request, policy, &binding.name, denial)));
    refused
}

/// The client's error.
fn denied(request: &AdmissionRequest<'_>, policy: &str, binding: &str, denial: Denial) -> Status {
    let message = format!(
        "ValidatingAdmissionPolicy '{policy}' with binding '{binding}' denied request: {}",
        denial.message
    );
    let mut status = refuse(request, &message);
    status.reason = match denial.reason {
        "" => "Invalid",
        reason => reason,
    };
    status.code = match status.reason {
        "Forbidden" => 403,
        "Unauthorized" => 401,
        "RequestEntityTooLarge" => 413,
        _ => 422,
    };
    if let Some(details) = &mut status.details {
        details.causes.push(Cause {
            reason: String::new(),
            message,
            field: String::new(),
        });
    }
    status
}

#[async_trait]
impl Admission for ValidatingPolicies {
    async fn mutate(&self, _request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        Ok(())
    }

    async fn validate(&self, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        let policies = self.source.policies();
        if policies.is_empty() || is_excluded(request) {
            return Ok(());
        }
        Box::pin(self.ask_all(&policies, request)).await
    }
}

impl ValidatingPolicies {
    async fn ask_all(
        &self,
        policies: &[Bound<Policy>],
        request: &AdmissionRequest<'_>,
    ) -> Result<(), Status> {
        let kinds = self.kinds.set();
        let mut refused = None;
        for bound in policies {
            for status in self.ask(bound, request, &kinds).await? {
                refused.get_or_insert(status);
            }
        }
        refused.map_or(Ok(()), Err)
    }
}
