//! From directories to a draft: a tar stream per part, cut into chunks, compressed and hashed by a few workers.
//!
//! ```text
//!   memory ──► tar ──► cut ─┐                ┌─► worker: compress if it pays, hash ─► <part>.<n>
//!   upper  ──► tar ──► cut ─┼──► (bounded) ──┤
//!   volume ──► tar ──► cut ─┘       ▲        └─► worker …                        all ─► manifest ─► rename
//!                                   └──── buffers come back ────┘
//! ```

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, mpsc},
    thread,
};

use super::{
    Draft, Manifest, PartName, Queue, SnapshotError, SnapshotMeta, chunk,
    error::io as io_error,
    manifest::{Chunk, MAX_CHUNK, Part},
    tree_write::{self, Sink, Written},
};

/// A tree to pack. Nobody may write to it meanwhile.
#[derive(Debug, Clone)]
pub struct PartSource {
    pub name: PartName,
    pub dir: PathBuf,
}

#[derive(Debug, Clone)]
pub struct PackOptions {
    /// zstd's level, or `None` for no compression. Default 1.
    pub level: Option<i32>,
    /// Of the stream, per chunk; at most 64 MiB. Default 4 MiB: large enough for the store, small enough that a small
    /// snapshot is compressed, fetched and expanded by several threads.
    pub chunk_bytes: usize,
    /// Default: the processors, at most 4. Memory is bounded by about (2 × workers + parts) chunks.
    pub workers: usize,
}

impl Default for PackOptions {
    fn default() -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Self { level: Some(1), chunk_bytes: 4 << 20, workers: processors.min(4) }
    }
}

/// Packs `sources` into a draft in `queue`. Blocking.
///
/// # Errors
/// Nothing of a failed draft stays in the queue.
pub fn pack(
    queue: &Queue,
    meta: SnapshotMeta,
    sources: &[PartSource],
    options: &PackOptions,
) -> Result<Draft, SnapshotError> {
    let partial = queue.begin(meta.id)?;
    let result = pack_parts(&partial, sources, options).and_then(|parts| {
        let manifest = Manifest { meta, parts };
        queue.finish(&partial, manifest)
    });
    if result.is_err() {
        // The first error is the one to report; what stays is removed when the queue is opened again.
        let _ = std::fs::remove_dir_all(&partial);
    }
    result
}

/// A full buffer on its way to a worker.
struct Cut {
    part: usize,
    index: usize,
    buffer: Vec<u8>,
}

/// What the threads share.
struct Shared<'a> {
    dir: &'a Path,
    sources: &'a [PartSource],
    level: Option<i32>,
    chunks: Mutex<BTreeMap<(usize, usize), Chunk>>,
    failed: Mutex<Option<SnapshotError>>,
    spare: Mutex<Vec<Vec<u8>>>,
}

fn pack_parts(dir: &Path, sources: &[PartSource], options: &PackOptions) -> Result<Vec<Part>, SnapshotError> {
    let workers = options.workers.max(1);
    let chunk_bytes = options.chunk_bytes.clamp(64 << 10, MAX_CHUNK as usize);
    let shared = Shared {
        dir,
        sources,
        level: options.level,
        chunks: Mutex::default(),
        failed: Mutex::default(),
        spare: Mutex::default(),
    };
    let (sender, receiver) = mpsc::sync_channel::<Cut>(workers);
    let receiver = Mutex::new(receiver);
    let written: Vec<Result<Written, SnapshotError>> = thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| work(&shared, &receiver));
        }
        let packers: Vec<_> = sources
            .iter()
            .enumerate()
            .map(|(part, source)| {
                let mut cutter =
                    Cutter { part, index: 0, chunk_bytes, buffer: Vec::new(), sender: sender.clone(), shared: &shared };
                scope.spawn(move || {
                    cutter.buffer = cutter.fresh();
                    let (cutter, written) = tree_write::write_tree(&source.dir, cutter)?;
                    cutter.finish().map_err(io_error("pack", &source.dir))?;
                    Ok(written)
                })
            })
            .collect();
        drop(sender);
        packers.into_iter().map(|p| p.join().unwrap_or(Err(SnapshotError::Worker { op: "packing" }))).collect()
    });
    // A worker's error is the cause of what the packers then say.
    if let Some(error) = shared.failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let mut parts = Vec::with_capacity(sources.len());
    for (source, written) in sources.iter().zip(written) {
        let Written { entries, logical_bytes } = written?;
        parts.push(Part { name: source.name.clone(), entries, logical_bytes, chunks: Vec::new() });
    }
    for ((part, _), chunk) in shared.chunks.into_inner().unwrap_or_else(PoisonError::into_inner) {
        parts[part].chunks.push(chunk);
    }
    Ok(parts)
}

fn work(shared: &Shared<'_>, receiver: &Mutex<mpsc::Receiver<Cut>>) {
    let mut scratch = Vec::new();
    loop {
        // One waits with the lock held, the others for the lock.
        let Ok(cut) = lock(receiver).recv() else { return };
        if lock(&shared.failed).is_none() {
            match store_chunk(shared, &cut, &mut scratch) {
                Ok(chunk) => drop(lock(&shared.chunks).insert((cut.part, cut.index), chunk)),
                Err(error) => drop(lock(&shared.failed).get_or_insert(error)),
            }
        }
        let mut buffer = cut.buffer;
        buffer.clear();
        lock(&shared.spare).push(buffer);
    }
}

fn store_chunk(shared: &Shared<'_>, cut: &Cut, scratch: &mut Vec<u8>) -> Result<Chunk, SnapshotError> {
    let name = &shared.sources[cut.part].name;
    let path = shared.dir.join(super::manifest::chunk_file(name, cut.index));
    let (stored, chunk) = chunk::seal(&path.to_string_lossy(), &cut.buffer, shared.level, scratch)?;
    let mut file = File::options().write(true).create_new(true).open(&path).map_err(io_error("create", &path))?;
    file.write_all(stored).map_err(io_error("write", &path))?;
    Ok(chunk)
}

/// Cuts a stream into buffers of one size.
struct Cutter<'a> {
    part: usize,
    index: usize,
    chunk_bytes: usize,
    buffer: Vec<u8>,
    sender: mpsc::SyncSender<Cut>,
    shared: &'a Shared<'a>,
}

impl Cutter<'_> {
    /// A buffer that was used before is faster than new memory.
    fn fresh(&self) -> Vec<u8> {
        lock(&self.shared.spare).pop().unwrap_or_else(|| Vec::with_capacity(self.chunk_bytes))
    }

    fn room(&mut self) -> io::Result<usize> {
        if self.buffer.len() == self.chunk_bytes {
            self.send()?;
        }
        Ok(self.chunk_bytes - self.buffer.len())
    }

    fn send(&mut self) -> io::Result<()> {
        if lock(&self.shared.failed).is_some() {
            return Err(io::Error::other("another part failed"));
        }
        let fresh = self.fresh();
        let cut = Cut { part: self.part, index: self.index, buffer: std::mem::replace(&mut self.buffer, fresh) };
        self.index += 1;
        self.sender.send(cut).map_err(io::Error::other)
    }

    fn finish(mut self) -> io::Result<()> {
        if self.buffer.is_empty() { Ok(()) } else { self.send() }
    }
}

impl Write for Cutter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.room()?.min(bytes.len());
        self.buffer.extend_from_slice(&bytes[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink for Cutter<'_> {
    fn fill(&mut self, source: &mut dyn Read, mut len: u64) -> io::Result<()> {
        while len > 0 {
            let wanted = (self.room()? as u64).min(len);
            let read = source.take(wanted).read_to_end(&mut self.buffer)? as u64;
            if read < wanted {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            len -= read;
        }
        Ok(())
    }
}

/// A panicking thread leaves at worst a missing chunk, which its packer's result reports.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
