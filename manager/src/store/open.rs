//! From a URL to a store.

use std::{path::Path as FsPath, sync::Arc, time::Duration};

use object_store::{
    BackoffConfig, ClientConfigKey, ObjectStore, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    local::LocalFileSystem,
    prefix::PrefixStore,
};
use tokio::sync::Semaphore;
use url::Url;

use super::{Backend, Inner, Store, StoreError, local::Guard};

/// How patient the store is.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// For objects up to a few kilobytes, and the fixed part for all others. Default 5 s.
    pub deadline: Duration,
    /// Added for data: its size over this rate, in bytes per second. Default 1 MiB/s.
    pub slowest_rate: u64,
    /// Operations under way at once, those that hang in the kernel past their deadline included; the next one fails
    /// instead of taking another thread. Default 48.
    pub max_in_flight: usize,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(5), slowest_rate: 1 << 20, max_in_flight: 48 }
    }
}

pub(super) async fn open(url: &str, options: StoreOptions) -> Result<Store, StoreError> {
    let bad = |why: String| StoreError::BadUrl { url: url.to_owned(), why };
    let parsed = Url::parse(url).map_err(|e| bad(e.to_string()))?;
    let backend = match parsed.scheme() {
        "file" => {
            let path = parsed.to_file_path().map_err(|()| bad("it names no absolute path of this host".into()))?;
            let deadline = options.deadline;
            let opened = tokio::task::spawn_blocking(move || open_directory(&path));
            match tokio::time::timeout(deadline, opened).await {
                Ok(Ok(backend)) => backend?,
                Ok(Err(e)) => {
                    return Err(StoreError::Internal { op: "open", key: String::new(), source: Box::new(e) });
                }
                Err(_) => {
                    return Err(StoreError::Deadline { url: url.into(), op: "open", key: String::new(), deadline });
                }
            }
        }
        "s3" if parsed.host_str().unwrap_or_default().is_empty() => return Err(bad("it names no bucket".to_owned())),
        "s3" => open_s3(&parsed, &options).map_err(|e| bad(e.to_string()))?,
        other => return Err(bad(format!("the scheme {other:?} is not known"))),
    };
    let permits = Arc::new(Semaphore::new(options.max_in_flight));
    Ok(Store { inner: Arc::new(Inner { url: url.to_owned(), backend, options, permits }) })
}

fn open_directory(path: &FsPath) -> Result<Backend, StoreError> {
    let guard = Guard::open(path)?;
    let local = || {
        LocalFileSystem::new_with_prefix(path)
            .map(|fs| fs.with_automatic_cleanup(true))
            .map_err(|e| StoreError::NoDirectory { path: path.to_owned(), source: std::io::Error::other(e) })
    };
    Ok(Backend::Directory {
        durable: Arc::new(local()?.with_fsync(true)),
        bulk: Arc::new(local()?),
        guard: Arc::new(guard),
    })
}

/// Credentials, region and endpoint come from `AWS_*` (`AWS_ENDPOINT`, `AWS_ALLOW_HTTP`, …) or the instance's metadata.
fn open_s3(url: &Url, options: &StoreOptions) -> Result<Backend, object_store::Error> {
    let bucket = url.host_str().unwrap_or_default();
    let client = |key, value: String| (AmazonS3ConfigKey::Client(key), value);
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(RetryConfig {
        backoff: BackoffConfig { init_backoff: Duration::from_millis(50), ..BackoffConfig::default() },
        max_retries: 3,
        retry_timeout: options.deadline,
    });
    // The deadline of an operation is kept by `Store`; this one only keeps a dead connection from lingering.
    for (key, value) in [
        client(ClientConfigKey::ConnectTimeout, format!("{} ms", options.deadline.as_millis().div_ceil(2))),
        client(ClientConfigKey::Timeout, "10 min".to_owned()),
    ] {
        builder = builder.with_config(key, value);
    }
    crate::crypto();
    let store = builder.build()?;
    let prefix = object_store::path::Path::parse(url.path().trim_matches('/'))?;
    let store: Arc<dyn ObjectStore> =
        if prefix.as_ref().is_empty() { Arc::new(store) } else { Arc::new(PrefixStore::new(store, prefix)) };
    Ok(Backend::S3(store))
}
