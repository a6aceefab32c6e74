//! The Kubernetes API over HTTP: routing, authentication, authorization, admission, registry, watch,
//! subresources, discovery and OpenAPI.
//!
//! [`ApiServer`] is the whole; OVERVIEW.md has the picture. [`seam`] is what plugs in.

mod adapter;
pub mod admission;
pub mod audit;
pub mod authn;
pub mod authz;
pub mod backend;
pub mod cache;
pub mod encryption;
pub mod extensions;
pub mod flow;
mod handle;
pub mod http;
mod keeper;
pub mod kinds;
pub mod metrics_api;
pub mod registry;
pub mod render;
pub mod reviews;
pub mod seam;
mod server;
pub mod streams;
pub mod webhook_client;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use cache::Cache;
pub use kinds::Kinds;
pub use server::{ApiServer, ApiServerBuilder, BuildError, Config};

/// Error of bodies.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
