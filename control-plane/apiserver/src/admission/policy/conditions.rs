//! `matchConditions`: expressions that say whether a webhook or policy is about a request.

use balsa_cel::{Bindings, Budget, Environment, EvalError, Program, Type};
use serde_json::Value;

pub use super::environment::Asked;
use super::environment::{self, Documents};

/// The conditions of one webhook or policy.
pub struct Conditions {
    list: Vec<(String, Result<Program, String>)>,
    fail_open: bool,
}

/// What conditions come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All are true.
    Matches,
    /// One is false, or one failed and failures are ignored.
    Differs,
    /// One failed, and that is a refusal.
    Failed(String),
}

impl Conditions {
    /// Compiles those of a webhook.
    #[must_use]
    pub fn compile_for_webhook(conditions: &Value, fail_open: bool) -> Self {
        Self::compile(conditions, fail_open, &environment::webhook())
    }

    /// Compiles them in an environment.
    #[must_use]
    pub fn compile(conditions: &Value, fail_open: bool, environment: &Environment) -> Self {
        let conditions = conditions.as_array().into_iter().flatten();
        let list = conditions.map(|condition| {
            let name = condition["name"].as_str().unwrap_or_default();
            let expression = condition["expression"].as_str().unwrap_or_default();
            let program = environment
                .compile_to(expression, &[Type::Bool])
                .map_err(|error| error.complaint());
            (name.to_owned(), program)
        });
        Self {
            list: list.collect(),
            fail_open,
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Evaluates those of a webhook.
    #[must_use]
    pub fn evaluate(&self, asked: &Asked<'_>) -> Outcome {
        let documents = Documents::new(asked, None);
        let mut budget = Budget::new(Budget::MATCH_CONDITIONS);
        self.evaluate_with(&documents.bindings(&[]), &mut budget)
    }

    /// Evaluates them. One that is false decides, whatever became of the others.
    #[must_use]
    pub fn evaluate_with(&self, bindings: &Bindings<'_>, budget: &mut Budget) -> Outcome {
        let mut failures = Vec::new();
        for (name, program) in &self.list {
            let value = match program {
                Ok(program) => program
                    .evaluate(bindings, budget)
                    .and_then(|value| value.as_bool().ok_or(EvalError::NoSuchOverload))
                    .map_err(|error| error.to_string()),
                Err(error) => Err(error.clone()),
            };
            match value {
                Ok(true) => {}
                Ok(false) => return Outcome::Differs,
                Err(error) => failures.push(format!("match condition {name:?} failed: {error}")),
            }
        }
        match (failures.is_empty(), self.fail_open) {
            (true, _) => Outcome::Matches,
            (false, true) => Outcome::Differs,
            (false, false) => Outcome::Failed(failures.join(", ")),
        }
    }
}
