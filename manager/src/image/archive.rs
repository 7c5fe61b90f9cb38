//! Images in one tar file: an OCI layout, or what `docker save` of older Dockers writes. The archive is read once to learn
//! where its members lie; nothing is extracted.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{
    ImageError, Limits,
    layout::{LayerRef, Opened, check_counts, check_digest},
    limits::DOCUMENT_BYTES,
    manifest::{check_sha256, parse_configuration},
    stream::LayerBlob,
    tar::{Kind, ReadError, Reader, clean, join, parent},
};

/// Members of an archive: a file per layer and document, far below this.
const MEMBERS_MAX: usize = 100_000;

pub struct Archive {
    what: String,
    /// The tar itself: the archive, or where it was decompressed to.
    path: PathBuf,
    members: HashMap<Vec<u8>, Member>,
}

enum Member {
    File {
        offset: u64,
        len: u64,
    },
    /// Older Dockers write a layer that two images share once, and a link for the other.
    Link(Vec<u8>),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Archive {
    /// Reads the archive's table of contents. One that is compressed is decompressed into `scratch` first. Blocking.
    pub fn open(path: &Path, scratch: &Path, limits: &Limits) -> Result<Self, ImageError> {
        let what = path.display().to_string();
        let plain = decompressed(path, scratch, limits)?;
        let tar = plain.as_deref().unwrap_or(path);
        let file = File::open(tar).map_err(ImageError::io("open", tar))?;
        let mut reader = Reader::lenient(BufReader::with_capacity(1 << 17, file));
        let mut members = HashMap::new();
        let read = |error| match error {
            ReadError::Io(source) => ImageError::Archive { what: what.clone(), source },
            ReadError::Entry { path, fault } => ImageError::Entry { what: what.clone(), path, fault },
        };
        while let Some(entry) = reader.next().map_err(read)? {
            let member = match entry.kind {
                Kind::File { size } => Member::File { offset: reader.position(), len: size },
                Kind::Hardlink(target) => Member::Link(target),
                Kind::Symlink(target) => {
                    let Some(target) = resolve_link(&entry.path, &target) else { continue };
                    Member::Link(target)
                }
                _ => continue,
            };
            members.insert(entry.path, member);
            if members.len() > MEMBERS_MAX {
                return Err(ImageError::Limit { what, limit: MEMBERS_MAX as u64, unit: "members" });
            }
        }
        let archive = Self { what, path: tar.to_owned(), members };
        if !archive.is_oci() && archive.find(b"manifest.json").is_none() {
            let reason = "it has neither oci-layout with index.json nor manifest.json at its top; an archive of a root file \
                          system has to be unpacked to a directory first";
            return Err(ImageError::malformed(archive.what, reason));
        }
        Ok(archive)
    }

    pub fn is_oci(&self) -> bool {
        self.find(b"oci-layout").is_some() && self.find(b"index.json").is_some()
    }

    fn find(&self, name: &[u8]) -> Option<(u64, u64)> {
        let mut name = name;
        for _ in 0..8 {
            match self.members.get(name)? {
                Member::File { offset, len } => return Some((*offset, *len)),
                Member::Link(target) => name = target,
            }
        }
        None
    }

    /// The file, offset and length of a member.
    pub fn locate(&self, name: &str) -> Result<(PathBuf, u64, u64), ImageError> {
        let clean = clean(name.as_bytes()).ok();
        let (offset, len) = clean
            .and_then(|name| self.find(&name))
            .ok_or_else(|| ImageError::malformed(&self.what, format!("{name:?} is missing in the archive")))?;
        Ok((self.path.clone(), offset, len))
    }

    /// A small member as a whole. Blocking.
    pub fn document(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        let (path, offset, len) = self.locate(name)?;
        if len > DOCUMENT_BYTES {
            return Err(ImageError::Limit {
                what: format!("{name} of {}", self.what),
                limit: DOCUMENT_BYTES,
                unit: "bytes",
            });
        }
        let mut bytes = Vec::new();
        let mut file = File::open(&path).map_err(ImageError::io("open", &path))?;
        file.seek(SeekFrom::Start(offset)).map_err(ImageError::io("seek in", &path))?;
        file.take(len).read_to_end(&mut bytes).map_err(ImageError::io("read", &path))?;
        Ok(bytes)
    }

    /// The image of a `docker save` archive. Its configuration is named by its digest and has those of the layers.
    pub fn docker_save(&self) -> Result<Opened, ImageError> {
        let json = self.document("manifest.json")?;
        let images: Vec<Saved> = serde_json::from_slice(&json).map_err(|e| ImageError::malformed(&self.what, e))?;
        let [image] = &images[..] else {
            let names = images.iter().map(|i| i.repo_tags.as_deref().unwrap_or_default().join(", "));
            let candidates = names.collect::<Vec<_>>().join("; ");
            return Err(ImageError::Ambiguous { what: self.what.clone(), candidates });
        };
        let config = self.document(&image.config)?;
        let name = image.config.rsplit('/').next().unwrap_or_default();
        if let Some(digest) = check_sha256(name.strip_suffix(".json").unwrap_or(name)) {
            check_digest(&format!("configuration of {}", self.what), &config, digest)?;
        }
        let config = parse_configuration(&self.what, &config)?;
        check_counts(&self.what, image.layers.len(), config.diff_ids.len())?;
        let mut layers = Vec::new();
        for (name, diff_id) in image.layers.iter().zip(&config.diff_ids) {
            let (path, offset, len) = self.locate(name)?;
            let what = format!("layer {name} of {}", self.what);
            layers.push(LayerRef::Local(LayerBlob { what, path, offset, len, digest: None, diff_id: diff_id.clone() }));
        }
        Ok(Opened { config, layers })
    }
}

/// The member a symbolic link in the archive means: `../ID/layer.tar` seen from `OTHER/layer.tar`.
fn resolve_link(path: &[u8], target: &[u8]) -> Option<Vec<u8>> {
    let mut at = parent(path)?.to_vec();
    for part in target.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => at = parent(&at)?.to_vec(),
            name => at = join(&at, name),
        }
    }
    Some(at)
}

/// Where the decompressed archive is, if it was compressed.
fn decompressed(path: &Path, scratch: &Path, limits: &Limits) -> Result<Option<PathBuf>, ImageError> {
    let err = |op| ImageError::io::<io::Error>(op, path);
    let mut file = File::open(path).map_err(err("open"))?;
    let mut start = [0; 4];
    let n = file.read(&mut start).map_err(err("read"))?;
    file.rewind().map_err(err("read"))?;
    let reader: Box<dyn Read> = match &start[..n] {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(file)),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::stream::read::Decoder::new(file).map_err(err("decompress"))?),
        _ => return Ok(None),
    };
    let out = scratch.join("archive.tar");
    let mut to = File::create(&out).map_err(ImageError::io("create", &out))?;
    let limit = limits.layer_bytes;
    let copied = io::copy(&mut reader.take(limit + 1), &mut to).map_err(err("decompress"))?;
    to.flush().map_err(ImageError::io("write", &out))?;
    if copied > limit {
        return Err(ImageError::Limit { what: path.display().to_string(), limit, unit: "bytes decompressed" });
    }
    Ok(Some(out))
}
