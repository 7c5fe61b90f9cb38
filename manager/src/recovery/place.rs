//! Where a container's things are on this node.

use std::{fs, io, path::PathBuf};

use super::remove_tree::remove_tree;
use crate::{config::NodeConfig, spec::ContainerName};

/// What becomes of the named volumes when the other files of a copy go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Volumes {
    /// Nothing holds anything newer: what begins anew from the image goes on with them.
    Stay,
    /// A snapshot brings its own, or their state is given up.
    Go,
}

/// `STATE/containers/NAME/…` and, for CRIU's images, `SCRATCH/images/NAME/…` (best on a tmpfs).
#[derive(Debug, Clone)]
pub struct Place {
    pub dir: PathBuf,
    scratch: PathBuf,
}

impl Place {
    pub fn new(config: &NodeConfig, name: &ContainerName) -> Self {
        Self { dir: Self::all(config).join(name.as_str()), scratch: config.scratch.join("images").join(name.as_str()) }
    }

    #[cfg(test)]
    pub(super) fn in_dir(root: &std::path::Path) -> Self {
        Self { dir: root.join("c"), scratch: root.join("scratch/c") }
    }

    /// The directory that has one directory per container.
    pub fn all(config: &NodeConfig) -> PathBuf {
        config.state_dir.join("containers")
    }

    /// The containers of which there is something on this node.
    pub fn names(config: &NodeConfig) -> Vec<ContainerName> {
        let entries = fs::read_dir(Self::all(config)).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    /// What this node remembers about its copy; without it there is no copy.
    pub fn record(&self) -> PathBuf {
        self.dir.join("local.json")
    }

    pub fn upper(&self) -> PathBuf {
        self.dir.join("upper")
    }

    pub fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    /// The mounted root file system.
    pub fn merged(&self) -> PathBuf {
        self.dir.join("merged")
    }

    pub fn volumes(&self) -> PathBuf {
        self.dir.join("volumes")
    }

    pub fn volume(&self, name: &str) -> PathBuf {
        self.volumes().join(name)
    }

    pub fn bundle(&self) -> PathBuf {
        self.dir.join("bundle")
    }

    /// The directory the agent and the manager both see.
    pub fn channel(&self) -> PathBuf {
        self.dir.join("channel")
    }

    /// Whether anything of the container is on this node.
    pub fn exists(&self) -> bool {
        self.dir.exists()
    }

    /// Drafts of snapshots that are not committed yet.
    pub fn queue(&self) -> PathBuf {
        self.dir.join("queue")
    }

    /// The files as captured in a freeze, before they are packed.
    pub fn staging(&self) -> PathBuf {
        self.dir.join("staging")
    }

    /// CRIU's images of one dump or restore.
    pub fn images(&self, what: &str) -> PathBuf {
        self.scratch.join(what)
    }

    /// Makes the files of a new copy: everything of an old one goes first, its volumes if they are not kept.
    pub fn recreate(&self, volumes: Volumes) -> io::Result<()> {
        self.clear(volumes)?;
        for dir in
            [self.upper(), self.work(), self.merged(), self.volumes(), self.bundle(), self.channel(), self.queue()]
        {
            fs::create_dir_all(dir)?;
        }
        Ok(())
    }

    /// Removes the copy's files but not its log, which outlives restarts, nor its drafts. The root must not be mounted any more.
    pub fn clear(&self, volumes: Volumes) -> io::Result<()> {
        for dir in [self.upper(), self.work(), self.merged(), self.bundle(), self.staging(), self.scratch.clone()] {
            remove_tree(&dir)?;
        }
        if volumes == Volumes::Go { remove_tree(&self.volumes()) } else { Ok(()) }
    }

    /// Removes what a checkpoint that was broken off has left. The copy and its drafts stay.
    pub fn clear_dumps(&self) -> io::Result<()> {
        remove_tree(&self.staging())?;
        remove_tree(&self.scratch)
    }

    /// Removes everything.
    pub fn remove(&self) -> io::Result<()> {
        remove_tree(&self.scratch)?;
        remove_tree(&self.dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_written_meanwhile_does_not_keep_a_directory() {
        let root = tempfile::tempdir().unwrap();
        let place = Place::in_dir(root.path());
        for _ in 0..20 {
            place.recreate(Volumes::Go).unwrap();
            let file = place.dir.join("log-shipped.json");
            let (writing, begun) = std::sync::mpsc::channel();
            let writer = std::thread::spawn(move || {
                let mut written = 0;
                while fs::write(&file, "{}").is_ok() && written < 500 {
                    written += 1;
                    let _ = writing.send(());
                    let _ = fs::remove_file(&file);
                }
            });
            begun.recv().unwrap();
            place.remove().unwrap();
            assert!(!place.dir.exists());
            writer.join().unwrap();
        }
    }

    #[test]
    fn what_dumps_left_goes_and_the_running_copy_stays() {
        let root = tempfile::tempdir().unwrap();
        let place = Place::in_dir(root.path());
        place.recreate(Volumes::Go).unwrap();
        for dir in [place.images("e1-7"), place.staging().join("e1-7"), place.queue().join("draft")] {
            fs::create_dir_all(dir).unwrap();
        }
        place.clear_dumps().unwrap();
        assert!(!place.scratch.exists() && !place.staging().exists());
        assert!(place.upper().exists() && place.bundle().exists() && place.queue().join("draft").exists());
        place.clear_dumps().unwrap();
    }

    #[test]
    fn volumes_outlive_a_copy_that_begins_anew_from_its_image_and_nothing_else_does() {
        let root = tempfile::tempdir().unwrap();
        let place = Place::in_dir(root.path());
        place.recreate(Volumes::Go).unwrap();
        fs::create_dir_all(place.volume("data")).unwrap();
        fs::write(place.volume("data").join("row"), "1").unwrap();
        fs::write(place.upper().join("file"), "1").unwrap();
        place.recreate(Volumes::Stay).unwrap();
        assert_eq!(fs::read_to_string(place.volume("data").join("row")).unwrap(), "1");
        assert!(!place.upper().join("file").exists());
        place.recreate(Volumes::Go).unwrap();
        assert!(!place.volume("data").exists());
    }
}
