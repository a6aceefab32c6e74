//! The Kubernetes API over HTTP: routing, authentication, authorization, admission, registry, watch,
//! subresources, discovery and OpenAPI.

pub mod seam;
