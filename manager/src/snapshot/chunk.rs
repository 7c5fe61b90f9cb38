//! One chunk: compressed when that pays, checked before it is used.

use super::{
    SnapshotError,
    manifest::{Chunk, Compression, Digest},
};

/// Compression has to save this share, or the chunk is stored as it is: reading it back is then faster.
const WORTH: f64 = 0.95;
const SAMPLE: usize = 16 << 10;
const SAMPLES: usize = 4;

/// Compresses `raw` at `level` (`None`: never) into `buffer` if it pays, and describes what is to be stored.
///
/// `object` is what to call it in an error.
pub fn seal<'a>(
    object: &str,
    raw: &'a [u8],
    level: Option<i32>,
    buffer: &'a mut Vec<u8>,
) -> Result<(&'a [u8], Chunk), SnapshotError> {
    let compressed = match level {
        Some(level) if promising(raw, level) => {
            let error = |source| SnapshotError::Compression { object: object.to_owned(), source };
            buffer.resize(zstd::zstd_safe::compress_bound(raw.len()), 0);
            let len = zstd::bulk::compress_to_buffer(raw, buffer.as_mut_slice(), level).map_err(error)?;
            buffer.truncate(len);
            (buffer.len() as f64) < raw.len() as f64 * WORTH
        }
        _ => false,
    };
    let (stored, compression) =
        if compressed { (buffer.as_slice(), Compression::Zstd) } else { (raw, Compression::None) };
    let chunk = Chunk {
        len: stored.len() as u32,
        raw_len: raw.len() as u32,
        blake3: Digest(blake3::hash(stored)),
        compression,
    };
    Ok((stored, chunk))
}

/// Tries pieces spread over the data, so that already compressed data costs little.
fn promising(raw: &[u8], level: i32) -> bool {
    if raw.len() <= SAMPLE * SAMPLES * 2 {
        return true;
    }
    let mut buffer = vec![0; zstd::zstd_safe::compress_bound(SAMPLE)];
    let mut compressed = 0;
    for n in 0..SAMPLES {
        let start = (raw.len() - SAMPLE) / (SAMPLES - 1) * n;
        match zstd::bulk::compress_to_buffer(&raw[start..start + SAMPLE], buffer.as_mut_slice(), level) {
            Ok(len) => compressed += len,
            Err(_) => return true,
        }
    }
    (compressed as f64) < (SAMPLE * SAMPLES) as f64 * WORTH
}

/// Checks stored bytes against their description. Nothing may be used before.
pub fn verify(object: &str, stored: &[u8], chunk: &Chunk) -> Result<(), SnapshotError> {
    let damaged = |what: String| SnapshotError::Damaged { object: object.to_owned(), what };
    if stored.len() as u64 != u64::from(chunk.len) {
        return Err(damaged(format!("it has {} bytes where {} belong", stored.len(), chunk.len)));
    }
    if blake3::hash(stored) != chunk.blake3.0 {
        return Err(damaged("its checksum does not match".to_owned()));
    }
    Ok(())
}

/// Verifies, then expands.
pub fn open(object: &str, stored: bytes::Bytes, chunk: &Chunk) -> Result<bytes::Bytes, SnapshotError> {
    verify(object, &stored, chunk)?;
    match chunk.compression {
        Compression::None => Ok(stored),
        Compression::Zstd => {
            let raw = zstd::bulk::decompress(&stored, chunk.raw_len as usize)
                .map_err(|source| SnapshotError::Compression { object: object.to_owned(), source })?;
            if raw.len() as u64 != u64::from(chunk.raw_len) {
                let what = format!("it expands to {} bytes where {} belong", raw.len(), chunk.raw_len);
                return Err(SnapshotError::Damaged { object: object.to_owned(), what });
            }
            Ok(raw.into())
        }
    }
}
