//! Reading what CRIU wrote: the statistics, the size, whether a directory holds images at all.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::Path,
};

use prost::Message;

use super::rpc;

/// The magic numbers of `stats-dump`: a service image, of statistics.
const STATS_MAGIC: [u32; 2] = [0x5510_5940, 0x5709_3306];

/// The statistics CRIU left in its work directory.
pub fn dump_stats(work_dir: &Path) -> io::Result<rpc::DumpStats> {
    let mut bytes = Vec::new();
    File::open(work_dir.join("stats-dump"))?.take(4096).read_to_end(&mut bytes)?;
    parse_stats(&bytes).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "stats-dump is not understood"))
}

/// An image is: two magic numbers, then length (32 bits) and message, all little-endian.
fn parse_stats(bytes: &[u8]) -> Option<rpc::DumpStats> {
    let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    if [word(0)?, word(4)?] != STATS_MAGIC {
        return None;
    }
    let length = word(8)? as usize;
    let message = bytes.get(12..12usize.checked_add(length)?)?;
    rpc::Stats::decode(message).ok()?.dump
}

/// Bytes in the images directory.
pub fn total_bytes(dir: &Path) -> io::Result<u64> {
    let mut total = 0;
    for entry in fs::read_dir(dir)? {
        total += entry?.metadata()?.len();
    }
    Ok(total)
}

/// The name of the first thing missing without which no restore can succeed.
pub fn missing_part(dir: &Path) -> Option<&'static str> {
    const PARTS: [&str; 4] = ["inventory.img", "pstree.img", "files.img", "descriptors.json"];
    PARTS.into_iter().find(|name| !fs::metadata(dir.join(name)).is_ok_and(|meta| meta.is_file() && meta.len() > 0))
}
