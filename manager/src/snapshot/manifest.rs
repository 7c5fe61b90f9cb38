//! The manifest: what a snapshot consists of, and by its existence the commit.
//!
//! ```text
//!   0        8         12        16                 16+len     48+len
//!   ├────────┼─────────┼─────────┼──────────────────┼──────────┤
//!   │ magic  │ version │ len     │ body (JSON)      │ blake3   │   numbers little-endian
//!   │ 8      │ u32     │ u32     │ len ≤ 16 MiB     │ 32       │   blake3 over all before it
//!   └────────┴─────────┴─────────┴──────────────────┴──────────┘
//! ```

use std::{fmt, net::Ipv4Addr, str::FromStr};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::SnapshotError;
use crate::spec::{ContainerName, ImageRecord, Mac, NodeName, SnapshotId};

pub const MAGIC: [u8; 8] = *b"HASNAP\r\n";
pub const VERSION: u32 = 1;
pub const MAX_BODY: usize = 16 << 20;
const HEAD: usize = 16;
const HASH: usize = 32;
/// The largest manifest object.
pub const MAX_MANIFEST: u64 = (HEAD + MAX_BODY + HASH) as u64;
/// No chunk, expanded or not, is larger.
pub const MAX_CHUNK: u64 = 64 << 20;
const MAX_PARTS: usize = 64;

/// A committed snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    #[serde(flatten)]
    pub meta: SnapshotMeta,
    pub parts: Vec<Part>,
}

/// Everything about a snapshot but its bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SnapshotMeta {
    pub id: SnapshotId,
    pub container: ContainerName,
    /// Where it was taken.
    pub node: NodeName,
    /// That node's clock; for people.
    pub frozen_at: DateTime<Utc>,
    pub kind: SnapshotKind,
    pub health: SnapshotHealth,
    /// How long the container stood still.
    pub frozen_ms: f64,
    pub network: NetworkIdentity,
    /// The application's generation that was running.
    pub app_generation: u64,
    pub image: ImageRecord,
    /// `blobs/<digest>` of the agent's program, which has to be the same file after a restore.
    pub agent_digest: Option<String>,
    /// What the agent called itself before the freeze.
    #[serde(default)]
    pub agent_incarnation: HexBytes,
    pub versions: Versions,
    /// The image of `criu cpuinfo dump`.
    pub cpuinfo: Option<HexBytes>,
    /// The snapshot committed before this one.
    pub previous: Option<SnapshotId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotKind {
    Periodic,
    /// A person asked for it.
    Manual,
    /// The last before a planned move.
    Final,
}

/// What the healthcheck said when the snapshot was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotHealth {
    Healthy,
    Unhealthy,
    /// No healthcheck, or no answer yet.
    Unknown,
}

/// What the container is known by on the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkIdentity {
    pub ip: Ipv4Addr,
    pub prefix_len: u8,
    pub mac: Mac,
    pub gateway: Option<Ipv4Addr>,
}

/// What took the snapshot; for the choice of a node that can restore it, and for people.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    pub runtime: String,
    pub criu: String,
    pub kernel: String,
}

/// One tree of files, packed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub name: PartName,
    /// Entries of the tar stream.
    pub entries: u64,
    /// The sum of the files' sizes, holes included.
    pub logical_bytes: u64,
    /// In the order of the stream.
    pub chunks: Vec<Chunk>,
}

impl Part {
    /// Length of the tar stream.
    pub fn raw_bytes(&self) -> u64 {
        self.chunks.iter().map(|c| u64::from(c.raw_len)).sum()
    }

    /// Length in the store.
    pub fn stored_bytes(&self) -> u64 {
        self.chunks.iter().map(|c| u64::from(c.len)).sum()
    }

    /// The name of chunk `index` in the snapshot's prefix.
    pub fn chunk_file(&self, index: usize) -> String {
        chunk_file(&self.name, index)
    }
}

pub(super) fn chunk_file(name: &PartName, index: usize) -> String {
    format!("{}.{index}", name.file())
}

/// One object: a piece of a part's tar stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Length in the store.
    pub len: u32,
    /// Length of the piece of the stream.
    pub raw_len: u32,
    /// Of the bytes in the store; 64 hex digits.
    pub blake3: Digest,
    pub compression: Compression,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    None,
    /// One frame that holds its length.
    Zstd,
}

/// Which tree: `memory`, `upper` or `volume:NAME`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PartName {
    /// The directory of CRIU's images.
    Memory,
    /// The upper layer of the root file system.
    Upper,
    /// A volume; see [`PartName::volume`].
    Volume(String),
}

impl PartName {
    /// # Errors
    /// A volume's name is 1 to 128 characters of a-z, A-Z, 0-9, `-`, `_` and `.`, the first a letter or digit.
    pub fn volume(name: &str) -> Result<Self, SnapshotError> {
        let ok = !name.is_empty()
            && name.len() <= 128
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
            && name.as_bytes()[0].is_ascii_alphanumeric();
        if ok {
            Ok(Self::Volume(name.to_owned()))
        } else {
            let name: String = name.chars().take(80).collect();
            Err(SnapshotError::Limits {
                what: format!(
                    "the volume name {name:?} is not 1 to 128 characters of a-z, A-Z, 0-9, '-', '_' and '.' that begin \
                     with a letter or digit"
                ),
            })
        }
    }

    /// As part of an object's name.
    fn file(&self) -> String {
        match self {
            Self::Memory => "memory".to_owned(),
            Self::Upper => "upper".to_owned(),
            Self::Volume(name) => format!("volume-{name}"),
        }
    }
}

impl fmt::Display for PartName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory"),
            Self::Upper => f.write_str("upper"),
            Self::Volume(name) => write!(f, "volume:{name}"),
        }
    }
}

impl FromStr for PartName {
    type Err = SnapshotError;

    fn from_str(text: &str) -> Result<Self, SnapshotError> {
        match text {
            "memory" => Ok(Self::Memory),
            "upper" => Ok(Self::Upper),
            other => Self::volume(other.strip_prefix("volume:").unwrap_or_default()),
        }
    }
}

impl TryFrom<String> for PartName {
    type Error = SnapshotError;

    fn try_from(text: String) -> Result<Self, SnapshotError> {
        text.parse()
    }
}

impl From<PartName> for String {
    fn from(name: PartName) -> String {
        name.to_string()
    }
}

/// A blake3 hash, in JSON as 64 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(pub blake3::Hash);

impl TryFrom<String> for Digest {
    type Error = blake3::HexError;

    fn try_from(text: String) -> Result<Self, blake3::HexError> {
        blake3::Hash::from_hex(text).map(Self)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.0.to_hex().to_string()
    }
}

/// Bytes, in JSON as hex digits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HexBytes(pub Vec<u8>);

impl TryFrom<String> for HexBytes {
    type Error = hex::FromHexError;

    fn try_from(text: String) -> Result<Self, hex::FromHexError> {
        hex::decode(text).map(Self)
    }
}

impl From<HexBytes> for String {
    fn from(bytes: HexBytes) -> String {
        hex::encode(bytes.0)
    }
}

impl Manifest {
    pub fn part(&self, name: &PartName) -> Option<&Part> {
        self.parts.iter().find(|p| p.name == *name)
    }

    /// Length of all parts' streams.
    pub fn raw_bytes(&self) -> u64 {
        self.parts.iter().map(Part::raw_bytes).sum()
    }

    /// Length of all chunks in the store.
    pub fn stored_bytes(&self) -> u64 {
        self.parts.iter().map(Part::stored_bytes).sum()
    }

    /// # Errors
    /// [`SnapshotError::Limits`].
    pub fn encode(&self) -> Result<Vec<u8>, SnapshotError> {
        let limits = |what: String| SnapshotError::Limits { what };
        self.check().map_err(&limits)?;
        let body = serde_json::to_vec(self).map_err(|e| limits(e.to_string()))?;
        if body.len() > MAX_BODY {
            return Err(limits(format!("{} bytes, at most {MAX_BODY} are allowed", body.len())));
        }
        let mut bytes = Vec::with_capacity(HEAD + body.len() + HASH);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&body);
        let hash = blake3::hash(&bytes);
        bytes.extend_from_slice(hash.as_bytes());
        Ok(bytes)
    }

    /// Reads what [`Manifest::encode`] wrote. `object` is what to call it in an error.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`], [`SnapshotError::TooNew`]. Arbitrary bytes are safe.
    pub fn decode(object: &str, bytes: &[u8]) -> Result<Self, SnapshotError> {
        let damaged = |what: &str| SnapshotError::Damaged { object: object.to_owned(), what: what.to_owned() };
        let rest = bytes.strip_prefix(&MAGIC).ok_or_else(|| damaged("it does not begin like a manifest"))?;
        let (version, rest) = rest.split_first_chunk::<4>().ok_or_else(|| damaged("it ends in its head"))?;
        let version = u32::from_le_bytes(*version);
        if version > VERSION {
            return Err(SnapshotError::TooNew { object: object.to_owned(), found: version, known: VERSION });
        }
        if version == 0 {
            return Err(damaged("it has format version 0"));
        }
        let (len, rest) = rest.split_first_chunk::<4>().ok_or_else(|| damaged("it ends in its head"))?;
        let len = u32::from_le_bytes(*len) as usize;
        if len > MAX_BODY {
            return Err(damaged("its length is beyond the limit"));
        }
        if rest.len() != len + HASH {
            return Err(damaged(&format!("it has {} bytes where {} belong", bytes.len(), HEAD + len + HASH)));
        }
        let (covered, hash) = bytes.split_at(HEAD + len);
        if blake3::hash(covered) != *hash {
            return Err(damaged("its checksum does not match"));
        }
        let manifest: Self = serde_json::from_slice(&covered[HEAD..]).map_err(|e| damaged(&e.to_string()))?;
        manifest.check().map_err(|what| damaged(&what))?;
        Ok(manifest)
    }

    /// What holds for every manifest, also one that somebody else made.
    fn check(&self) -> Result<(), String> {
        if self.parts.len() > MAX_PARTS {
            return Err(format!("{} parts, at most {MAX_PARTS} are allowed", self.parts.len()));
        }
        for (index, part) in self.parts.iter().enumerate() {
            if self.parts[..index].iter().any(|p| p.name == part.name) {
                return Err(format!("the part {} is there twice", part.name));
            }
            for chunk in &part.chunks {
                let fits = match chunk.compression {
                    Compression::None => chunk.len == chunk.raw_len,
                    Compression::Zstd => u64::from(chunk.len) <= MAX_CHUNK,
                };
                if !fits || u64::from(chunk.raw_len) > MAX_CHUNK || chunk.raw_len == 0 {
                    return Err(format!("a chunk of {} has an impossible length", part.name));
                }
            }
        }
        Ok(())
    }
}
