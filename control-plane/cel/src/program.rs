//! Environments, and the programs that are compiled in them.

use std::collections::BTreeSet;

use crate::budget::Budget;
use crate::check;
use crate::error::{CompileError, EvalError};
use crate::eval::{self, Bindings};
use crate::syntax::{ast::Node, parse};
use crate::types::Type;
use crate::value::Val;

/// Finds the type of a struct literal by its name; `None` when there is none.
pub type StructTypes = fn(&str) -> Option<Type>;

/// Which names an expression may use, besides Kubernetes' functions.
#[derive(Clone, Default)]
pub struct Environment {
    variables: Vec<(String, Type)>,
    structs: Option<StructTypes>,
}

impl Environment {
    /// Functions only.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Declares a variable. A dotted name is a variable too: `authorizer.requestResource`.
    #[must_use]
    pub fn with(mut self, name: &str, type_: Type) -> Self {
        self.variables.retain(|(known, _)| known != name);
        self.variables.push((name.to_owned(), type_));
        self
    }

    /// Declares the types that struct literals make.
    #[must_use]
    pub fn with_structs(mut self, structs: StructTypes) -> Self {
        self.structs = Some(structs);
        self
    }

    /// The type of a variable.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<&Type> {
        self.variables
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, type_)| type_)
    }

    pub(crate) fn struct_type(&self, name: &str) -> Option<Type> {
        self.structs.and_then(|find| find(name))
    }

    /// Parses and checks an expression.
    ///
    /// # Errors
    /// Everything that is wrong with it; a syntax error alone.
    pub fn compile(&self, source: &str) -> Result<Program, CompileError> {
        let mut root = parse(source).map_err(|issue| CompileError::new(source, vec![issue]))?;
        let checked = check::check(self, &mut root);
        if !checked.issues.is_empty() {
            return Err(CompileError::new(source, checked.issues));
        }
        Ok(Program {
            source: source.to_owned(),
            root,
            result: checked.result,
            cost: checked.cost,
            references: checked.references,
        })
    }

    /// As [`Self::compile`], for an expression that has to give one of some types.
    ///
    /// # Errors
    /// As there, and `must evaluate to bool` and the like.
    pub fn compile_to(&self, source: &str, wanted: &[Type]) -> Result<Program, CompileError> {
        let program = self.compile(source)?;
        if program.result.is_dyn() || wanted.iter().any(|t| program.result.fits(t)) {
            return Ok(program);
        }
        let names: Vec<String> = wanted.iter().map(ToString::to_string).collect();
        let message = match names.as_slice() {
            [one] => format!("must evaluate to {one}"),
            many => format!("must evaluate to one of {}", many.join(", ")),
        };
        Err(CompileError::of_result(source, message))
    }
}

/// A checked expression.
#[derive(Debug, Clone)]
pub struct Program {
    source: String,
    root: Node,
    result: Type,
    cost: u64,
    references: BTreeSet<String>,
}

impl Program {
    /// Its text.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Type of its value.
    #[must_use]
    pub fn result_type(&self) -> &Type {
        &self.result
    }

    /// An upper bound of its cost, from the sizes that the types of its variables allow.
    #[must_use]
    pub fn estimated_cost(&self) -> u64 {
        self.cost
    }

    /// Whether it uses a variable; `variables.a` counts as `variables` and as `variables.a`.
    #[must_use]
    pub fn references(&self, name: &str) -> bool {
        self.references.contains(name)
    }

    pub(crate) fn root(&self) -> &Node {
        &self.root
    }

    /// Its value. At most [`Budget::PER_CALL`] of the budget is used.
    ///
    /// # Errors
    /// When something in it fails, or the budget does not suffice.
    pub fn evaluate<'a>(
        &self,
        bindings: &Bindings<'a>,
        budget: &mut Budget,
    ) -> Result<Val<'a>, EvalError> {
        let available = budget.remaining().min(Budget::PER_CALL);
        let mut call = Budget::new(available);
        let value = eval::evaluate(&self.root, bindings, &mut call);
        // Never more than is there.
        budget.charge(available - call.remaining())?;
        value
    }
}
