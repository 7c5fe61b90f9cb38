//! Objects too large for memory: image layers, agent binaries.

use std::{path::Path as FsPath, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use object_store::{ObjectStoreExt, WriteMultipart};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Store, StoreError, checked};

/// S3 allows ten thousand parts; this makes 80 GiB of them.
const PART: usize = 8 << 20;
const READ: usize = 256 << 10;
/// Parts of one upload under way at once.
const CONCURRENCY: usize = 4;

/// What [`Store::get_to_file`] wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    pub size: u64,
    pub blake3: blake3::Hash,
}

impl Store {
    /// Writes a stream to `key`, replacing it; the object appears whole, durable, or not at all. For names that stand
    /// for their content: there is no create-only form for streams.
    ///
    /// # Errors
    /// The deadline is for each step, not for the whole.
    pub async fn put_stream<S>(&self, key: &str, mut stream: S) -> Result<u64, StoreError>
    where
        S: Stream<Item = std::io::Result<Bytes>> + Unpin + Send,
    {
        let path = self.path("write", key)?;
        let store = self.inner.durable();
        let upload = self.run("write", key, 0, async move { store.put_multipart(&path).await }).await?;
        let mut write = WriteMultipart::new_with_chunk_size(upload, PART);
        let size = match self.feed(key, &mut write, &mut stream).await {
            Ok(size) => size,
            Err(error) => {
                // Its parts would stay, and cost. The first error is the one to report; an upload that cannot be aborted
                // either expires in the store.
                let _ = tokio::time::timeout(self.deadline(), write.abort()).await;
                return Err(error);
            }
        };
        // What is in flight, and the synchronisation of the whole. It aborts by itself.
        self.step("write", key, size.min(1 << 30) as usize, write.finish()).await?;
        checked(&self.inner.guard()).await?;
        Ok(size)
    }

    async fn feed<S>(&self, key: &str, write: &mut WriteMultipart, stream: &mut S) -> Result<u64, StoreError>
    where
        S: Stream<Item = std::io::Result<Bytes>> + Unpin + Send,
    {
        let mut size = 0;
        while let Some(chunk) = stream.next().await {
            let unread = |source: std::io::Error| StoreError::Internal {
                op: "read for",
                key: key.to_owned(),
                source: source.into(),
            };
            let chunk = chunk.map_err(unread)?;
            size += chunk.len() as u64;
            self.step("write", key, chunk.len(), write.wait_for_capacity(CONCURRENCY)).await?;
            write.put(chunk);
        }
        Ok(size)
    }

    /// Writes a local file to `key`, as [`Store::put_stream`].
    pub async fn put_file(&self, key: &str, path: &FsPath) -> Result<u64, StoreError> {
        let local = |source| StoreError::LocalFile { op: "store", path: path.to_owned(), source };
        let file = tokio::fs::File::open(path).await.map_err(local)?;
        let stream = futures_util::stream::try_unfold(file, |mut file| async move {
            let mut buffer = Vec::with_capacity(READ);
            let read = (&mut file).take(READ as u64).read_to_end(&mut buffer).await?;
            Ok((read > 0).then(|| (Bytes::from(buffer), file)))
        });
        self.put_stream(key, Box::pin(stream)).await
    }

    /// Reads an object of at most `max` bytes into a new file and hashes it on the way. On an error no file is left.
    pub async fn get_to_file(&self, key: &str, path: &FsPath, max: u64) -> Result<Received, StoreError> {
        let local = |source| StoreError::LocalFile { op: "fetch to", path: path.to_owned(), source };
        let file = tokio::fs::OpenOptions::new().write(true).create_new(true).open(path).await.map_err(local)?;
        let result = self.receive(key, file, path, max).await;
        if result.is_err() {
            // The first error is the one to report.
            let _ = tokio::fs::remove_file(path).await;
        }
        result
    }

    async fn receive(
        &self,
        key: &str,
        mut file: tokio::fs::File,
        path: &FsPath,
        max: u64,
    ) -> Result<Received, StoreError> {
        let local = |source| StoreError::LocalFile { op: "fetch to", path: path.to_owned(), source };
        let object = self.path("read", key)?;
        let store = self.inner.durable();
        let result = self.run("read", key, 0, async move { store.get(&object).await }).await?;
        let expected = result.meta.size;
        if expected > max {
            return Err(StoreError::TooLarge { key: key.to_owned(), size: expected, max });
        }
        let mut stream = result.into_stream();
        let mut hasher = blake3::Hasher::new();
        let mut size = 0;
        loop {
            let next = async { stream.next().await.transpose() };
            let Some(chunk) = self.step("read", key, PART, next).await? else { break };
            size += chunk.len() as u64;
            if size > max {
                return Err(StoreError::TooLarge { key: key.to_owned(), size, max });
            }
            hasher.update(&chunk);
            file.write_all(&chunk).await.map_err(local)?;
        }
        file.flush().await.map_err(local)?;
        if size != expected {
            let what = format!("{size} of {expected} bytes came");
            return Err(StoreError::Corrupt { key: key.to_owned(), what });
        }
        Ok(Received { size, blake3: hasher.finalize() })
    }

    /// One step of a transfer, with its own deadline. A hung step leaves at most one blocked thread behind.
    async fn step<T>(
        &self,
        op: &'static str,
        key: &str,
        bytes: usize,
        step: impl Future<Output = Result<T, object_store::Error>>,
    ) -> Result<T, StoreError> {
        let options = &self.inner.options;
        let deadline = options.deadline + Duration::from_secs(bytes as u64 / options.slowest_rate.max(1));
        match tokio::time::timeout(deadline, step).await {
            Ok(result) => result.map_err(|e| StoreError::classify(&self.inner.url, op, key, e)),
            Err(_) => Err(StoreError::Deadline { url: self.inner.url.clone(), op, key: key.to_owned(), deadline }),
        }
    }
}
