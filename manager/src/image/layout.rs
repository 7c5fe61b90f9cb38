//! Where the documents and layers of an image lie before it is imported: a directory, an archive, or a registry.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use sha2::{Digest as _, Sha256};

use super::{
    ImageError, Limits, Source,
    archive::Archive,
    blocking,
    limits::DOCUMENT_BYTES,
    manifest::{Configuration, Descriptor, Document, parse_configuration, parse_document},
    progress::Progress,
    registry::Registry,
    stream::LayerBlob,
};

/// An index may point to another, and that to a manifest; nobody nests deeper.
const NESTING: usize = 4;

/// An image whose manifest is known: what it runs, and its layers, bottom first.
pub struct Opened {
    pub config: Configuration,
    pub layers: Vec<LayerRef>,
}

/// A layer that may still have to be pulled.
pub enum LayerRef {
    Local(LayerBlob),
    Remote { registry: Arc<Registry>, descriptor: Descriptor, diff_id: String },
}

impl LayerRef {
    /// The layer's bytes as a file, pulled to `to` if they are not on this machine.
    pub async fn local(
        self,
        to: PathBuf,
        position: (usize, usize),
        limits: &Limits,
        progress: &Progress,
    ) -> Result<LayerBlob, ImageError> {
        match self {
            Self::Local(blob) => Ok(blob),
            Self::Remote { registry, descriptor, diff_id } => {
                let what = format!("layer {} of {}", descriptor.digest, registry.name());
                let digest = descriptor.sha256(&what)?.to_owned();
                registry.pull_layer(&descriptor, &to, position, limits, progress).await?;
                let len = descriptor.size;
                Ok(LayerBlob { what, path: to, offset: 0, len, digest: Some(digest), diff_id })
            }
        }
    }
}

/// Something that has documents by digest.
enum Documents {
    Layout(PathBuf),
    Archive(Arc<Archive>),
    Registry(Arc<Registry>),
}

/// Finds the image's manifest and configuration. `scratch` takes what has to be decompressed. Not for root directories.
pub async fn open(
    source: &Source,
    insecure: bool,
    docker_config: Option<&Path>,
    scratch: &Path,
    limits: &Limits,
) -> Result<Opened, ImageError> {
    let (documents, what, index) = match source {
        Source::RootDir(path) => return Err(ImageError::malformed(path.display().to_string(), "not an OCI image")),
        Source::OciLayout(dir) => {
            let index = dir.join("index.json");
            let bytes = blocking(move || read_bounded(&index)).await?;
            (Documents::Layout(dir.clone()), dir.display().to_string(), bytes)
        }
        Source::Archive(path) => {
            let (path, scratch, limits) = (path.clone(), scratch.to_owned(), limits.clone());
            let what = path.display().to_string();
            let archive = blocking(move || Archive::open(&path, &scratch, &limits)).await?;
            let archive = Arc::new(archive);
            if !archive.is_oci() {
                return blocking(move || archive.docker_save()).await;
            }
            let inner = archive.clone();
            let index = blocking(move || inner.document("index.json")).await?;
            (Documents::Archive(archive), what, index)
        }
        Source::Registry(reference) => {
            let registry = Arc::new(Registry::connect(reference, insecure, docker_config).await?);
            let manifest = registry.top_manifest().await?;
            let what = registry.name();
            (Documents::Registry(registry), what, manifest)
        }
    };
    documents.resolve(&what, index, limits).await
}

impl Documents {
    async fn resolve(&self, what: &str, index: Vec<u8>, limits: &Limits) -> Result<Opened, ImageError> {
        let mut json = index;
        let mut listing = !matches!(self, Documents::Registry(_));
        for _ in 0..NESTING {
            match parse_document(what, &json, listing, limits)? {
                Document::Index(descriptor) => json = self.get(what, &descriptor, true).await?,
                Document::Manifest { config, layers } => {
                    let config = parse_configuration(what, &self.get(what, &config, false).await?)?;
                    return self.opened(what, config, layers).await;
                }
            }
            listing = false;
        }
        Err(ImageError::malformed(what, format!("its indexes are nested more than {NESTING} deep")))
    }

    async fn opened(&self, what: &str, config: Configuration, layers: Vec<Descriptor>) -> Result<Opened, ImageError> {
        check_counts(what, layers.len(), config.diff_ids.len())?;
        let mut found = Vec::with_capacity(layers.len());
        for (descriptor, diff_id) in layers.into_iter().zip(config.diff_ids.iter().cloned()) {
            let digest = descriptor.sha256(what)?.to_owned();
            let name = format!("layer {} of {what}", descriptor.digest);
            let (path, offset, len) = match self {
                Documents::Registry(registry) => {
                    found.push(LayerRef::Remote { registry: registry.clone(), descriptor, diff_id });
                    continue;
                }
                Documents::Layout(dir) => {
                    let path = blob_path(dir, &digest);
                    let len = std::fs::metadata(&path).map_err(ImageError::io("find", &path))?.len();
                    (path, 0, len)
                }
                Documents::Archive(archive) => archive.locate(&format!("blobs/sha256/{digest}"))?,
            };
            if len != descriptor.size {
                return Err(ImageError::Size { what: name, expected: descriptor.size, found: len });
            }
            let digest = Some(digest);
            found.push(LayerRef::Local(LayerBlob { what: name, path, offset, len, digest, diff_id }));
        }
        Ok(Opened { config, layers: found })
    }

    /// A manifest or configuration, verified against its digest.
    async fn get(&self, what: &str, descriptor: &Descriptor, is_manifest: bool) -> Result<Vec<u8>, ImageError> {
        let digest = descriptor.sha256(what)?.to_owned();
        let name = format!("document {} of {what}", descriptor.digest);
        if descriptor.size > DOCUMENT_BYTES {
            return Err(ImageError::Limit { what: name, limit: DOCUMENT_BYTES, unit: "bytes" });
        }
        let bytes = match self {
            Documents::Layout(dir) => {
                let path = blob_path(dir, &digest);
                blocking(move || read_bounded(&path)).await?
            }
            Documents::Archive(archive) => {
                let (archive, path) = (archive.clone(), format!("blobs/sha256/{digest}"));
                blocking(move || archive.document(&path)).await?
            }
            Documents::Registry(registry) if is_manifest => registry.manifest(&descriptor.digest).await?,
            Documents::Registry(registry) => registry.document(descriptor).await?,
        };
        check_digest(&name, &bytes, &digest)?;
        Ok(bytes)
    }
}

pub fn check_counts(what: &str, layers: usize, diff_ids: usize) -> Result<(), ImageError> {
    if layers == diff_ids {
        return Ok(());
    }
    Err(ImageError::malformed(what, format!("its manifest has {layers} layers, its configuration {diff_ids}")))
}

pub fn check_digest(what: &str, bytes: &[u8], expected: &str) -> Result<(), ImageError> {
    let found = hex::encode(Sha256::digest(bytes));
    if found == expected {
        return Ok(());
    }
    Err(ImageError::Digest { what: what.to_owned(), expected: expected.to_owned(), found })
}

fn blob_path(dir: &Path, digest: &str) -> PathBuf {
    dir.join("blobs/sha256").join(digest)
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(ImageError::io("open", path))?;
    file.take(DOCUMENT_BYTES + 1).read_to_end(&mut bytes).map_err(ImageError::io("read", path))?;
    if bytes.len() as u64 > DOCUMENT_BYTES {
        return Err(ImageError::Limit { what: path.display().to_string(), limit: DOCUMENT_BYTES, unit: "bytes" });
    }
    Ok(bytes)
}
