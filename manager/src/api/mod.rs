//! The services a manager offers: control (the CLI, over a local socket; managers among themselves) and peer.

mod control;
mod error;
mod forward;
mod logs;
mod peer;
mod serve;
mod status;
mod unread;

pub use error::ApiError;
pub use serve::{Listeners, Servers, bind, serve};
pub use status::{gather as gather_status, info as snapshot_info};
