//! Why a reconcile failed.

/// Why a reconcile failed; all of it is retried with backoff.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The API refused or did not answer.
    #[error("{0}")]
    Api(#[from] kube::Error),
    /// An object is not as the API should have let it be.
    #[error("{0}")]
    Invalid(String),
    /// Part of the work failed.
    #[error("{failed} of {all} failed, the first with: {first}")]
    Partial {
        failed: usize,
        all: usize,
        first: Box<Error>,
    },
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

/// What callers ask of API errors.
pub(crate) trait ApiError {
    /// HTTP code of the API's answer, or 0 when there was none.
    fn code(&self) -> u16;
    /// `Status.reason`.
    fn reason(&self) -> &str;

    fn is_not_found(&self) -> bool {
        self.code() == 404
    }

    /// A concurrent change: read again.
    fn is_conflict(&self) -> bool {
        self.code() == 409 && self.reason() != "AlreadyExists"
    }

    fn is_already_exists(&self) -> bool {
        self.reason() == "AlreadyExists"
    }
}

impl ApiError for kube::Error {
    fn code(&self) -> u16 {
        match self {
            kube::Error::Api(status) => status.code,
            _ => 0,
        }
    }

    fn reason(&self) -> &str {
        match self {
            kube::Error::Api(status) => &status.reason,
            _ => "",
        }
    }
}

/// True when the namespace is being deleted and so takes nothing new.
pub(crate) fn namespace_terminating(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else {
        return false;
    };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes
        .into_iter()
        .any(|cause| cause.reason == "NamespaceTerminating")
}

/// The message for events: what the API said, without our wrapping.
pub(crate) fn message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// For deletes and for updates of what may be gone meanwhile.
pub(crate) fn unless_gone<T>(result: kube::Result<T>) -> kube::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}
