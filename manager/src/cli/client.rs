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
        "cannot reach the manager at {path}: {source}. Is `ha-manager run` running here, and are you root? \
         (--socket names another one)"
    )]
    Unreachable { path: String, source: tonic::transport::Error },
    #[error("{}", .0.message())]
    Refused(#[from] Status),
    #[error("{0}")]
    Input(String),
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error("the checks failed; each line above says what to do")]
    Unfit,
}

impl CliError {
    /// The process exit code; the list is in the command's help.
    pub fn exit_code(&self) -> u8 {
        match self {
            CliError::Unreachable { .. } => 3,
            CliError::Refused(status) => match status.code() {
                Code::NotFound => 4,
                Code::FailedPrecondition | Code::AlreadyExists | Code::InvalidArgument => 5,
                _ => 1,
            },
            CliError::Input(_) | CliError::Io { .. } | CliError::Unfit => 1,
        }
    }
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
        .map_err(|source| CliError::Unreachable { path: socket.display().to_string(), source })?;
    Ok(ControlClient::new(channel))
}
