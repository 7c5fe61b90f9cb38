//! What can go wrong with a request, and the gRPC code it travels under.

use tonic::Status;

use crate::spec::{ContainerName, NameError};

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
    pub fn no_container(name: &ContainerName) -> Self {
        ApiError::NotFound(format!("there is no container {name}; `ha-manager status` lists them"))
    }

    /// An error with all its causes, as one sentence.
    pub fn failed(error: &(dyn std::error::Error + 'static)) -> Self {
        ApiError::Failed(crate::chain(error))
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
