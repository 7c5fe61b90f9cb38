//! VLC as an RTSP server, and a clip whose picture shows the frame's number and time.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};

use super::{counter, rootfs};

/// What the container runs: the clip again and again within one input, so that its end does not end the sessions.
pub const COMMAND: [&str; 7] =
    ["/bin/vlc", "-I", "dummy", "--input-repeat=65535", "--sout-keep", "/clip.ts", "--sout=#rtp{sdp=rtsp://:8554/x}"];
/// Seconds; the server repeats it.
const CLIP_SECONDS: u32 = 30;

/// What it takes to read a transport stream from a file and send it over RTSP: far less than an installed VLC has.
const PLUGINS: [&str; 20] = [
    "libfilesystem_plugin.so",
    "libcache_read_plugin.so",
    "libcache_block_plugin.so",
    "libprefetch_plugin.so",
    "libskiptags_plugin.so",
    "libts_plugin.so",
    "librtp_plugin.so",
    "libstream_out_rtp_plugin.so",
    "libmux_ts_plugin.so",
    "libaccess_output_udp_plugin.so",
    "libaccess_output_dummy_plugin.so",
    "libpacketizer_mpegvideo_plugin.so",
    "libpacketizer_h264_plugin.so",
    "libpacketizer_mpegaudio_plugin.so",
    "libpacketizer_copy_plugin.so",
    "libconsole_logger_plugin.so",
    "libdummy_plugin.so",
    "libhotkeys_plugin.so",
    "libplaylist_plugin.so",
    "librecord_plugin.so",
];

fn program() -> anyhow::Result<PathBuf> {
    let found = crate::which("vlc").context("vlc is not installed: scripts/setup --demo")?;
    Ok(fs::canonicalize(found)?)
}

pub(super) fn key() -> anyhow::Result<String> {
    Ok(format!("{}-{}", rootfs::key(4, &[program()?])?, counter::key()))
}

/// The directory of VLC's plugins: /usr/lib/TRIPLE/vlc.
fn library_dir() -> anyhow::Result<PathBuf> {
    let candidates = fs::read_dir("/usr/lib")?.flatten().map(|entry| entry.path().join("vlc"));
    let dir = candidates.into_iter().find(|dir| dir.join("plugins").is_dir());
    dir.context("vlc's plugins are not installed (package vlc-plugin-base): scripts/setup --demo")
}

fn files_below(dir: &Path, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files_below(&entry.path(), found)?;
        } else {
            found.push(entry.path());
        }
    }
    Ok(())
}

pub(super) fn make(root: &Path) -> anyhow::Result<()> {
    rootfs::skeleton(root)?;
    let program = program()?;
    let library_dir = library_dir()?;
    let mut plugins = Vec::new();
    files_below(&library_dir.join("plugins"), &mut plugins)?;
    plugins.retain(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(|name| PLUGINS.contains(&name)));
    let has = |name: &str| plugins.iter().any(|path| path.ends_with(name));
    for needed in ["libts_plugin.so", "libstream_out_rtp_plugin.so", "libmux_ts_plugin.so"] {
        ensure!(has(needed), "vlc's {needed} is not installed (package vlc-plugin-base): scripts/setup --demo");
    }
    let mut loaded = plugins.clone();
    loaded.push(program.clone());
    // glibc loads it by itself when a thread is cancelled, which VLC does at every end of an input.
    let unwinder = rootfs::closure(&loaded)?.iter().find_map(|library| {
        let beside = library.with_file_name("libgcc_s.so.1");
        beside.is_file().then_some(beside)
    });
    rootfs::copy(root, &unwinder.context("libgcc_s.so.1 (package libgcc-s1) is not installed")?)?;
    for file in rootfs::closure(&loaded)?.iter().chain(&plugins) {
        rootfs::copy(root, file)?;
    }
    fs::write(root.join("usr/bin/vlc"), allow_root(&fs::read(&program)?)?)?;
    crate::run(Command::new("chmod").arg("755").arg(root.join("usr/bin/vlc")))?;
    counter::install(root, "usr/bin/probe")?;
    clip(&root.join("clip.ts"))
}

/// VLC refuses to run as root, and in a container root is what there is. It asks `geteuid`; a copy that asks `getpgrp`
/// (a name as long, and the answer is never 0 in a session of the container's own) does not mind.
fn allow_root(program: &[u8]) -> anyhow::Result<Vec<u8>> {
    let (asked, instead) = (b"geteuid\0", b"getpgrp\0");
    let at = program.windows(asked.len()).position(|bytes| bytes == asked);
    let at = at.context("vlc does not ask geteuid: this version needs another way to run as root")?;
    let mut patched = program.to_vec();
    patched[at..at + asked.len()].copy_from_slice(instead);
    Ok(patched)
}

fn clip(path: &Path) -> anyhow::Result<()> {
    // testsrc shows a running number of seconds and, with its scale, every frame; no font file is needed.
    let source = format!("testsrc=size=640x360:rate=25:decimals=2:duration={CLIP_SECONDS}");
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-nostdin", "-loglevel", "error", "-f", "lavfi", "-i", &source]);
    ffmpeg.args(["-c:v", "mpeg2video", "-b:v", "1500k", "-maxrate", "1500k", "-bufsize", "1000k", "-g", "12"]);
    crate::run(ffmpeg.args(["-f", "mpegts", "-y"]).arg(path)).context("cannot make the clip")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::allow_root;

    #[test]
    fn the_root_check_is_replaced_once_and_its_absence_is_noticed() {
        let patched = allow_root(b"\0geteuid\0getuid\0").unwrap();
        assert_eq!(patched, b"\0getpgrp\0getuid\0");
        assert!(allow_root(b"\0getuid\0").is_err());
    }
}
