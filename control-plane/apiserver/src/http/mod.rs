//! HTTP: requests, responses, and the documents that are not API objects.

pub mod context;
pub mod decode;
pub mod discovery;
pub mod health;
pub mod metrics;
pub mod negotiate;
pub mod process;
pub mod protobuf;
pub mod query;
pub mod request_info;
pub mod respond;
pub mod slis;
