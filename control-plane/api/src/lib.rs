//! What a Kubernetes object is: kinds, schema, defaulting, validation, selectors, quantities,
//! patches and tables. Pure functions over JSON values; no I/O, no async runtime.

pub mod apply;
pub mod crd;
pub mod discovery;
pub mod duration;
#[cfg(test)]
mod fuzz;
pub mod kind;
pub mod kinds;
pub mod object;
pub mod openapi;
pub mod patch;
pub mod quantity;
pub mod quota;
pub mod scheduling;
pub mod schema;
pub mod selector;
pub mod status;
pub mod table;
pub mod validation;
