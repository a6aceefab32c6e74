//! CustomResourceDefinitions and what follows from them, without I/O: the checks of a definition, its structural
//! schema, and what the schema does to objects (pruning, defaults, checks of values, published types).
//!
//! Rules and wording follow apiextensions-apiserver v1.35. CEL rules are carried here ([`schema::Rule`]) and
//! evaluated by the API server.

pub mod columns;
pub mod defaults;
pub mod definition;
pub mod embedded;
pub mod formats;
pub mod jsonpath;
pub mod lists;
pub mod naming;
pub mod pattern;
pub mod prune;
pub mod publish;
pub mod schema;
mod structural;
pub mod validate;

#[cfg(test)]
mod tests;

/// Group of CustomResourceDefinitions.
pub const GROUP: &str = "apiextensions.k8s.io";
/// Resource of CustomResourceDefinitions.
pub const PLURAL: &str = "customresourcedefinitions";
/// Keeps a definition until its objects are gone.
pub const CLEANUP_FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";
