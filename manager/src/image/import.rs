//! From a source to layers in the store and the record that names them.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    BlobStore, ImageError, Limits, Source, blob_key, blocking,
    convert::{Below, convert},
    layout,
    manifest::bare_configuration,
    progress::{Event, Progress},
    tree,
};
use crate::spec::{ImageRecord, Layer};

/// How an import goes about it.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// A directory for temporary files: room for the largest layer, compressed, twice, and for a compressed archive whole.
    pub scratch: PathBuf,
    /// Whether to speak plain HTTP to the registry. For this machine's own it is always so.
    pub insecure: bool,
    /// Docker's `config.json` with registry credentials; `None` takes the user's own.
    pub docker_config: Option<PathBuf>,
    pub limits: Limits,
}

impl ImportOptions {
    pub fn new(scratch: impl Into<PathBuf>) -> Self {
        Self { scratch: scratch.into(), insecure: false, docker_config: None, limits: Limits::default() }
    }
}

/// Imports an image: verifies it, brings its layers to the stored form, and stores those that are not in the store yet.
/// `reference` is what the user wrote, for the record. The same image gives the same layers, whatever its source.
pub async fn import<S: BlobStore>(
    source: &Source,
    reference: &str,
    store: &S,
    options: &ImportOptions,
    progress: &Progress,
) -> Result<ImageRecord, ImageError> {
    std::fs::create_dir_all(&options.scratch).map_err(ImageError::io("create", &options.scratch))?;
    let scratch = tempfile::Builder::new()
        .prefix("import-")
        .tempdir_in(&options.scratch)
        .map_err(ImageError::io("create a directory in", &options.scratch))?;
    let work = Work { scratch: Arc::new(scratch), store, limits: &options.limits, progress };
    let reference = reference.to_owned();
    if let Source::RootDir(root) = source {
        let layer = work.root_directory(root).await?;
        return Ok(ImageRecord { reference, config: bare_configuration(), layers: vec![layer] });
    }
    let docker_config = options.docker_config.as_deref();
    let opened = layout::open(source, options.insecure, docker_config, work.scratch.path(), work.limits).await?;
    work.note(opened.config.notes);
    let layers = work.layers(opened.layers).await?;
    if layers.is_empty() {
        return Err(ImageError::malformed(reference, "the image has no files at all"));
    }
    Ok(ImageRecord { reference, config: opened.config.run, layers })
}

struct Work<'a, S> {
    /// Shared with the blocking work, so that it is removed only when no one writes there any more.
    scratch: Arc<tempfile::TempDir>,
    store: &'a S,
    limits: &'a Limits,
    progress: &'a Progress,
}

impl<S: BlobStore> Work<'_, S> {
    async fn root_directory(&self, root: &Path) -> Result<Layer, ImageError> {
        (self.progress)(Event::Converting { layer: 1, layers: 1 });
        let file = self.scratch.path().join("layer");
        let (root, out, limits, scratch) = (root.to_owned(), file.clone(), self.limits.clone(), self.scratch.clone());
        let (layer, notes) = blocking(move || {
            let _scratch = scratch;
            tree::pack(&root, &limits, &out)
        })
        .await?;
        self.note(notes);
        self.store(&layer, &file, 1, 1).await?;
        Ok(layer)
    }

    async fn layers(&self, refs: Vec<layout::LayerRef>) -> Result<Vec<Layer>, ImageError> {
        let count = refs.len();
        let mut below = Below::default();
        let mut layers: Vec<Layer> = Vec::new();
        for (index, layer) in refs.into_iter().enumerate() {
            let number = index + 1;
            let pulled = self.scratch.path().join("pulled");
            let blob = layer.local(pulled.clone(), (number, count), self.limits, self.progress).await?;
            (self.progress)(Event::Converting { layer: number, layers: count });
            let file = self.scratch.path().join("layer");
            let (out, limits, scratch) = (file.clone(), self.limits.clone(), self.scratch.clone());
            let (converted, still_below) = blocking(move || {
                let _scratch = scratch;
                let mut below = below;
                convert(&blob, &mut below, &limits, &out).map(|converted| (converted, below))
            })
            .await?;
            below = still_below;
            self.note(converted.notes);
            if converted.hides_all {
                layers.clear();
            }
            if !converted.empty {
                self.store(&converted.layer, &file, number, count).await?;
                // An overlay refuses a directory twice. Whatever the lower of two equal layers says, the upper says again.
                layers.retain(|earlier| *earlier != converted.layer);
                layers.push(converted.layer);
            }
        }
        Ok(layers)
    }

    async fn store(&self, layer: &Layer, file: &Path, number: usize, layers: usize) -> Result<(), ImageError> {
        let key = blob_key(&layer.digest);
        let uploaded = self.store.put_if_absent(&key, file).await;
        let uploaded = uploaded.map_err(|source| ImageError::Store { op: "put", key, source })?;
        let size_bytes = layer.size_bytes;
        (self.progress)(Event::Stored { layer: number, layers, size_bytes, uploaded });
        Ok(())
    }

    fn note(&self, notes: Vec<String>) {
        notes.into_iter().for_each(|text| (self.progress)(Event::Note { text }));
    }
}
