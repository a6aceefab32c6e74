//! CEL expressions as Kubernetes evaluates them: compiled and type-checked once, evaluated over JSON in place,
//! within a budget.
//!
//! ```
//! use balsa_cel::{Bindings, Budget, Environment, Type};
//!
//! let env = Environment::new().with("self", Type::Dyn);
//! let program = env.compile("self.replicas <= 3 && self.name.startsWith('web')").unwrap();
//! let object = serde_json::json!({"replicas": 2, "name": "web-1"});
//! let bindings = Bindings::new().json("self", &object, &Type::Dyn);
//! let value = program.evaluate(&bindings, &mut Budget::new(Budget::PER_CALL)).unwrap();
//! assert_eq!(value.as_bool(), Some(true));
//! ```

mod budget;
mod check;
mod cost;
mod error;
mod eval;
mod json;
mod library;
mod ops;
mod program;
pub mod schema;
mod syntax;
mod types;
mod value;

pub use budget::Budget;
pub use error::{CompileError, EvalError, Issue};
pub use eval::Bindings;
pub use library::authorizer::{Authorizer, Check, Decision};
pub use program::{Environment, Program, StructTypes};
pub use types::{Field, Fields, Size, Type};
pub use value::{Key, ListView, MapView, Text, Val};

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
