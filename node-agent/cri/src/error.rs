//! What can go wrong between the agent and a runtime.

use std::time::Duration;

/// Result of a call to the runtime.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed call to the runtime. `Display` uses the words of Go's gRPC (`rpc error: code = X desc = Y`)
/// because users know them from pod events.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The runtime answered with an error.
    #[error("rpc error: code = {code} desc = {message}")]
    Rpc {
        /// gRPC status code by its Go name, for example `NotFound`.
        code: &'static str,
        /// The runtime's own words.
        message: String,
    },
    /// No answer in time.
    #[error("rpc error: code = DeadlineExceeded desc = {call} did not answer within {after:?}")]
    Timeout {
        /// Which call.
        call: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// The socket can't be reached.
    #[error("cannot reach the container runtime at {endpoint}: {message}")]
    Connect {
        /// Path of the socket.
        endpoint: String,
        /// Why not.
        message: String,
    },
    /// A local step (FIFO, file, helper program) failed.
    #[error("{what}: {message}")]
    Local {
        /// What was being done.
        what: String,
        /// Why it failed.
        message: String,
    },
}

impl Error {
    /// Does the thing asked about not exist (any more)?
    pub fn is_not_found(&self) -> bool {
        matches!(
            self,
            Self::Rpc {
                code: "NotFound",
                ..
            }
        )
    }

    /// Is the thing in no state for it?
    pub fn is_failed_precondition(&self) -> bool {
        matches!(
            self,
            Self::Rpc {
                code: "FailedPrecondition",
                ..
            }
        )
    }

    /// Can this runtime not do it at all?
    pub fn is_unimplemented(&self) -> bool {
        matches!(
            self,
            Self::Rpc {
                code: "Unimplemented",
                ..
            }
        )
    }

    /// Is the runtime (perhaps for a moment) not there?
    pub fn is_unavailable(&self) -> bool {
        matches!(
            self,
            Self::Rpc {
                code: "Unavailable",
                ..
            } | Self::Connect { .. }
        )
    }

    /// The bare message, without gRPC's preamble: what kubelet shows for failed creates and starts.
    pub fn message(&self) -> String {
        match self {
            Self::Rpc { message, .. } => message.clone(),
            other => other.to_string(),
        }
    }

    pub(crate) fn local(what: impl Into<String>, error: impl std::fmt::Display) -> Self {
        Self::Local {
            what: what.into(),
            message: error.to_string(),
        }
    }
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        Self::Rpc {
            code: code_name(status.code()),
            message: status.message().to_owned(),
        }
    }
}

fn code_name(code: tonic::Code) -> &'static str {
    use tonic::Code;
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}
