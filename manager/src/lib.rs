//! The node manager, room by room. `docs/architecture.md` shows how data walks through them.

pub mod agentlink;
pub mod api;
pub mod checkpoint;
pub mod cli;
pub mod compose;
pub mod config;
pub mod doctor;
pub mod fence;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod image;
pub mod membership;
pub mod network;
pub mod node;
pub mod once;
pub mod ownership;
pub mod policy;
pub mod priority;
pub mod recovery;
pub mod runtime;
pub mod sim;
pub mod snapshot;
pub mod spec;
pub mod store;
pub mod tls;

use std::sync::{Arc, LazyLock};

use rustls::crypto::CryptoProvider;

/// What TLS is computed with. The clients of registries and of S3 take it from the process and panic without it: to be called
/// before one is made.
pub fn crypto() -> Arc<CryptoProvider> {
    static RING: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let provider = rustls::crypto::ring::default_provider();
        // An error says that the process has one already.
        let _ = provider.clone().install_default();
        Arc::new(provider)
    });
    Arc::clone(&RING)
}

/// The beginning of a text, at most `max` bytes of it.
pub fn cut(text: &str, max: usize) -> &str {
    let mut end = max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// An error and its causes in one line: `cannot X: because Y: because Z`.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
