//! What can go wrong with a request, and the gRPC code it travels under.

use tonic::{Code, Status};

use crate::spec::NameError;

#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// There is no such container, snapshot or node.
    #[error("{0}")]
    NotFound(String),
    /// The request itself is wrong.
    #[error("{0}")]
    Invalid(String),
    /// The request does not fit the present state.
    #[error("{0}")]
    Refused(String),
    /// Something it needs is away: the store, a peer.
    #[error("{0}")]
    Unavailable(String),
    #[error("{0}")]
    Failed(String),
}

impl ApiError {
    /// An error with all its causes, as one sentence.
    pub fn failed(error: &(dyn std::error::Error + 'static)) -> Self {
        ApiError::Failed(crate::chain(error))
    }
}

impl ApiError {
    /// What another manager answered, meaning the same here.
    pub fn passed_on(status: Status) -> Self {
        let text = status.message().to_owned();
        match status.code() {
            Code::NotFound => ApiError::NotFound(text),
            Code::InvalidArgument => ApiError::Invalid(text),
            Code::FailedPrecondition => ApiError::Refused(text),
            Code::Unavailable => ApiError::Unavailable(text),
            _ => ApiError::Failed(text),
        }
    }
}

impl From<NameError> for ApiError {
    fn from(error: NameError) -> Self {
        ApiError::Invalid(error.to_string())
    }
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Status {
        let text = error.to_string();
        match error {
            ApiError::NotFound(_) => Status::not_found(text),
            ApiError::Invalid(_) => Status::invalid_argument(text),
            ApiError::Refused(_) => Status::failed_precondition(text),
            ApiError::Unavailable(_) => Status::unavailable(text),
            ApiError::Failed(_) => Status::internal(text),
        }
    }
}
