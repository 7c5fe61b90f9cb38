//! The connection to the manager, and what its answers mean for the exit code.

use std::path::Path;

use ha_proto::control::control_client::ControlClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint, Uri},
};

/// Why a command ended badly; see `exit_code`.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error(
        "cannot reach the manager at {path}: {why}. Is `ha-manager run` running here, and are you root? \
         (--socket names another one)"
    )]
    Unreachable { path: String, why: String },
    #[error("{}", .0.message())]
    Refused(Status),
    #[error(
        "the connection to the manager was lost: {0}. When it was stopped its containers go on; when it died they are frozen at \
         the end of its lease, and a peer takes them over, unless it is back by then; see `ha-manager events`"
    )]
    Lost(String),
    #[error("{0}")]
    Input(String),
    /// The command line says something that no definition of it could refuse.
    #[error("{0}")]
    Usage(String),
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    /// What was applied does not do what it should, or not yet.
    #[error("{0}")]
    NotReady(String),
    #[error("the checks failed; each line above says what to do")]
    Unfit,
}

impl CliError {
    /// The process exit code; the list is in the command's help.
    pub fn exit_code(&self) -> u8 {
        match self {
            CliError::Usage(_) => 2,
            CliError::Unreachable { .. } | CliError::Lost(_) => 3,
            CliError::Refused(status) => match status.code() {
                Code::NotFound => 4,
                Code::FailedPrecondition | Code::AlreadyExists | Code::InvalidArgument => 5,
                _ => 1,
            },
            CliError::Input(_) | CliError::Io { .. } | CliError::NotReady(_) | CliError::Unfit => 1,
        }
    }
}

impl From<Status> for CliError {
    /// A status the manager sent has no cause on this side; one that the connection's end made has.
    fn from(status: Status) -> Self {
        match std::error::Error::source(&status) {
            Some(cause) => CliError::Lost(root_cause(cause)),
            None => CliError::Refused(status),
        }
    }
}

/// What the system said: the layers above it only say that a transport failed.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

pub async fn connect(socket: &Path) -> Result<ControlClient<Channel>, CliError> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The authority is never looked up: the connector above goes to the socket whatever it says.
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .map_err(|error| CliError::Unreachable { path: socket.display().to_string(), why: root_cause(&error) })?;
    Ok(ControlClient::new(channel))
}
