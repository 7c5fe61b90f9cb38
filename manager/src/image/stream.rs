//! The bytes of one layer as its source has them: hashed as transferred and as decompressed, and bounded.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Take},
    path::PathBuf,
};

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest as _, Sha256};

use super::{ImageError, Limits};

/// Where the bytes of a layer are on this machine, and what they have to be.
#[derive(Debug, Clone)]
pub struct LayerBlob {
    /// For messages.
    pub what: String,
    pub path: PathBuf,
    pub offset: u64,
    pub len: u64,
    /// Hex SHA-256 of the bytes as transferred, from the manifest. A docker-save archive has none.
    pub digest: Option<String>,
    /// Hex SHA-256 of the decompressed tar, from the image configuration.
    pub diff_id: String,
}

/// A layer's tar stream. Ends with [`LayerStream::verify`], without which nothing read from it may be used.
pub struct LayerStream {
    what: String,
    digest: Option<String>,
    diff_id: String,
    limit: u64,
    inner: Hashed<Decoder>,
}

enum Decoder {
    Plain(Compressed),
    Gzip(MultiGzDecoder<Compressed>),
    Zstd(zstd::stream::read::Decoder<'static, Compressed>),
}

type Compressed = BufReader<Hashed<Take<File>>>;

impl LayerStream {
    pub fn open(blob: &LayerBlob, limits: &Limits) -> Result<Self, ImageError> {
        let err = |op| ImageError::io::<io::Error>(op, &blob.path);
        if blob.len > limits.transfer_bytes {
            let limit = limits.transfer_bytes;
            return Err(ImageError::Limit { what: blob.what.clone(), limit, unit: "bytes compressed" });
        }
        let mut file = File::open(&blob.path).map_err(err("open"))?;
        file.seek(SeekFrom::Start(blob.offset)).map_err(err("seek in"))?;
        let mut compressed = BufReader::with_capacity(1 << 17, Hashed::new(file.take(blob.len)));
        let start = compressed.fill_buf().map_err(err("read"))?;
        let unsupported = |found: &str| ImageError::Unsupported {
            what: blob.what.clone(),
            found: format!("compressed with {found}"),
            remedy: "use gzip, zstd or none",
        };
        let decoder = if start.starts_with(&[0x1f, 0x8b]) {
            Decoder::Gzip(MultiGzDecoder::new(compressed))
        } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            Decoder::Zstd(zstd::stream::read::Decoder::with_buffer(compressed).map_err(err("decompress"))?)
        } else if start.starts_with(b"\xfd7zXZ\0") {
            return Err(unsupported("xz"));
        } else if start.starts_with(b"BZh") {
            return Err(unsupported("bzip2"));
        } else {
            Decoder::Plain(compressed)
        };
        Ok(Self {
            what: blob.what.clone(),
            digest: blob.digest.clone(),
            diff_id: blob.diff_id.clone(),
            limit: limits.layer_bytes,
            inner: Hashed::new(decoder),
        })
    }

    /// Reads the rest and compares the digests.
    pub fn verify(mut self) -> Result<(), ImageError> {
        let broken = |what: &str, source| ImageError::Archive { what: what.to_owned(), source };
        io::copy(&mut self, &mut io::sink()).map_err(|e| broken(&self.what, e))?;
        let (decoder, diff_id) = self.inner.finish();
        let mut compressed = match decoder {
            Decoder::Plain(inner) => inner,
            Decoder::Gzip(inner) => inner.into_inner(),
            Decoder::Zstd(inner) => inner.finish(),
        };
        io::copy(&mut compressed, &mut io::sink()).map_err(|e| broken(&self.what, e))?;
        let (_, digest) = compressed.into_inner().finish();
        if let Some(expected) = self.digest.filter(|expected| *expected != digest) {
            return Err(ImageError::Digest { what: self.what, expected, found: digest });
        }
        if diff_id != self.diff_id {
            let what = format!("{}, decompressed,", self.what);
            return Err(ImageError::Digest { what, expected: self.diff_id, found: diff_id });
        }
        Ok(())
    }

    /// The error behind a failed read: over the limit, or damaged.
    pub fn explain(what: &str, limits: &Limits, error: io::Error) -> ImageError {
        if error.get_ref().is_some_and(|inner| inner.is::<OverLimit>()) {
            return ImageError::Limit { what: what.to_owned(), limit: limits.layer_bytes, unit: "bytes decompressed" };
        }
        ImageError::Archive { what: what.to_owned(), source: error }
    }
}

impl Read for LayerStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        if self.inner.bytes > self.limit { Err(io::Error::other(OverLimit)) } else { Ok(n) }
    }
}

impl Read for Decoder {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(inner) => inner.read(buffer),
            Self::Gzip(inner) => inner.read(buffer),
            Self::Zstd(inner) => inner.read(buffer),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("more data than a layer may have")]
struct OverLimit;

/// A reader that hashes what passes.
struct Hashed<R> {
    inner: R,
    hasher: Sha256,
    bytes: u64,
}

impl<R> Hashed<R> {
    fn new(inner: R) -> Self {
        Self { inner, hasher: Sha256::new(), bytes: 0 }
    }

    fn finish(self) -> (R, String) {
        (self.inner, hex::encode(self.hasher.finalize()))
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        self.bytes += n as u64;
        Ok(n)
    }
}
