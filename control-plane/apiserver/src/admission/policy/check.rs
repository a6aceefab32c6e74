//! Refuses webhook configurations and policies whose expressions do not compile.

use async_trait::async_trait;
use balsa_api::status::{FieldErrors, Status};
use balsa_cel::{Environment, Type};
use serde_json::Value;

use super::environment;
use super::mutating::{result_type, struct_types};
use crate::admission::webhook::GROUP;
use crate::seam::{Admission, AdmissionRequest, Operation};

/// See the module.
pub struct ExpressionCheck;

#[async_trait]
impl Admission for ExpressionCheck {
    async fn mutate(&self, _request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        Ok(())
    }

    async fn validate(&self, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        let writes = matches!(request.operation, Operation::Create | Operation::Update);
        let Some(object) = request.object.as_deref() else {
            return Ok(());
        };
        if !writes || request.kind.group != GROUP || !request.subresource.is_empty() {
            return Ok(());
        }
        // What was accepted once stays, even if the rules have become stricter since.
        let unchanged =
            |old: &Value| old["webhooks"] == object["webhooks"] && old["spec"] == object["spec"];
        if request.old.is_some_and(unchanged) {
            return Ok(());
        }
        let mut checker = Checker::default();
        match request.kind.plural.as_ref() {
            "validatingwebhookconfigurations" | "mutatingwebhookconfigurations" => {
                checker.webhooks(object);
            }
            "validatingadmissionpolicies" => checker.validating(&object["spec"]),
            "mutatingadmissionpolicies" => checker.mutating(&object["spec"]),
            _ => {}
        }
        if checker.errors.is_empty() {
            return Ok(());
        }
        Err(Status::invalid(
            &request.kind.kind,
            GROUP,
            request.name,
            &checker.errors,
        ))
    }
}

#[derive(Default)]
struct Checker {
    errors: FieldErrors,
}

fn items(value: &Value) -> impl Iterator<Item = (usize, &Value)> {
    value.as_array().into_iter().flatten().enumerate()
}

impl Checker {
    /// Type of an expression, if it compiles.
    fn expression(
        &mut self,
        environment: &Environment,
        (path, expression): (String, &Value),
        wanted: &[Type],
    ) -> Option<Type> {
        let text = expression.as_str().unwrap_or_default();
        if text.trim().is_empty() {
            // The kind's own validation says that it is missing.
            return None;
        }
        let compiled = if wanted.is_empty() {
            environment.compile(text)
        } else {
            environment.compile_to(text, wanted)
        };
        match compiled {
            Ok(program) => Some(program.result_type().clone()),
            Err(error) => {
                self.errors.invalid(path, text, error.complaint());
                None
            }
        }
    }

    fn conditions(&mut self, environment: &Environment, path: &str, conditions: &Value) {
        for (i, condition) in items(conditions) {
            let path = format!("{path}[{i}].expression");
            self.expression(environment, (path, &condition["expression"]), &[Type::Bool]);
        }
    }

    fn webhooks(&mut self, object: &Value) {
        let environment = environment::webhook();
        for (i, hook) in items(&object["webhooks"]) {
            let path = format!("webhooks[{i}].matchConditions");
            self.conditions(&environment, &path, &hook["matchConditions"]);
        }
    }

    /// Variables and conditions; returns the environment of what comes after.
    fn common(&mut self, spec: &Value) -> Environment {
        let base = environment::policy(spec["paramKind"].is_object());
        let mut types: Vec<(String, Type)> = Vec::new();
        let mut environment = environment::with_variables(&base, &types);
        for (i, variable) in items(&spec["variables"]) {
            let path = format!("spec.variables[{i}].expression");
            let found = self.expression(&environment, (path, &variable["expression"]), &[]);
            let name = variable["name"].as_str().unwrap_or_default().to_owned();
            // One that does not compile is not blamed on those that use it.
            types.push((name, found.unwrap_or(Type::Dyn)));
            environment = environment::with_variables(&base, &types);
        }
        self.conditions(
            &environment,
            "spec.matchConditions",
            &spec["matchConditions"],
        );
        environment
    }

    fn validating(&mut self, spec: &Value) {
        let environment = self.common(spec);
        for (i, validation) in items(&spec["validations"]) {
            let path = |field: &str| format!("spec.validations[{i}].{field}");
            let at = (path("expression"), &validation["expression"]);
            self.expression(&environment, at, &[Type::Bool]);
            let at = (path("messageExpression"), &validation["messageExpression"]);
            self.expression(&environment, at, &[Type::STRING]);
        }
        for (i, annotation) in items(&spec["auditAnnotations"]) {
            let path = format!("spec.auditAnnotations[{i}].valueExpression");
            let at = (path, &annotation["valueExpression"]);
            self.expression(&environment, at, &[Type::STRING, Type::Null]);
        }
    }

    fn mutating(&mut self, spec: &Value) {
        let environment = self.common(spec).with_structs(struct_types);
        for (i, mutation) in items(&spec["mutations"]) {
            for (field, patch_type) in [
                ("applyConfiguration", "ApplyConfiguration"),
                ("jsonPatch", "JSONPatch"),
            ] {
                let path = format!("spec.mutations[{i}].{field}.expression");
                let at = (path, &mutation[field]["expression"]);
                self.expression(&environment, at, &[result_type(patch_type)]);
            }
        }
    }
}
