use std::{
    ffi::CString,
    fs,
    io::{Read, Seek, SeekFrom, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink},
        net::UnixListener,
    },
    path::Path,
    sync::{Arc, atomic::AtomicBool},
    thread::sleep,
    time::Duration,
};

use nix::sys::stat::{Mode, SFlag, mknod, utimensat};

use super::*;

fn skipped(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("SKIPPED {test}: not root");
    }
    !root
}

struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("from")).unwrap();
        fs::create_dir(dir.path().join("staging")).unwrap();
        Self { dir }
    }

    fn from(&self, path: &str) -> PathBuf {
        self.dir.path().join("from").join(path)
    }

    fn to(&self, path: &str) -> PathBuf {
        self.dir.path().join("staging/upper").join(path)
    }

    fn begin(&self) -> Capture {
        let source = CaptureSource { name: "upper".into(), path: self.dir.path().join("from"), inside: "/".into() };
        let staging = self.dir.path().join("staging");
        // A process without files of ours stands for the container.
        Capture::begin(&[source], &staging, std::process::id() as i32, Arc::new(AtomicBool::new(false))).unwrap()
    }

    /// Past the time in which a stamp proves nothing.
    fn begin_later(&self) -> Capture {
        sleep(Duration::from_millis(60));
        self.begin()
    }
}

fn same(world: &World, path: &str) {
    let (from, to) = (fs::symlink_metadata(world.from(path)).unwrap(), fs::symlink_metadata(world.to(path)).unwrap());
    let facts = |meta: &fs::Metadata| {
        (
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.rdev(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.is_file().then_some(meta.len()),
        )
    };
    assert_eq!(facts(&from), facts(&to), "{path}");
}

#[test]
fn every_kind_of_entry_keeps_what_belongs_to_it() {
    if skipped("every_kind_of_entry_keeps_what_belongs_to_it") {
        return;
    }
    let world = World::new();
    let from = |path: &str| world.from(path);
    let special =
        |path: &str, kind, device| mknod(&world.from(path), kind, Mode::from_bits_truncate(0o640), device).unwrap();
    fs::create_dir_all(from("dir/opaque")).unwrap();
    xattr::set(from("dir/opaque"), "trusted.overlay.opaque", b"y").unwrap();
    xattr::set(from("dir/opaque"), "trusted.overlay.origin", b"elsewhere").unwrap();
    special("dir/whiteout", SFlag::S_IFCHR, 0);
    special("dir/fifo", SFlag::S_IFIFO, 0);
    special("dir/device", SFlag::S_IFBLK, libc::makedev(7, 3));
    fs::write(from("plain"), "content").unwrap();
    xattr::set(from("plain"), "user.colour", b"green").unwrap();
    xattr::set(from("plain"), "security.capability", &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
        .unwrap();
    std::os::unix::fs::chown(from("plain"), Some(12), Some(34)).unwrap();
    xattr::set(from("plain"), "security.capability", &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
        .unwrap();
    fs::set_permissions(from("plain"), fs::Permissions::from_mode(0o6751)).unwrap();
    fs::hard_link(from("plain"), from("dir/other-name")).unwrap();
    fs::write(from("read-only"), "r").unwrap();
    fs::set_permissions(from("read-only"), fs::Permissions::from_mode(0o000)).unwrap();
    symlink("/etc/passwd", from("link")).unwrap();
    symlink("nowhere", from("dangling")).unwrap();
    let odd = std::ffi::OsStr::from_bytes(b"odd \xff\n name");
    fs::write(world.dir.path().join("from").join(odd), "odd").unwrap();
    let _socket = UnixListener::bind(from("dir/socket")).unwrap();
    let sparse = fs::File::create(from("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.write_all_at(b"island", 32 << 20).unwrap();
    let old = nix::sys::time::TimeSpec::new(1_000_000_000, 123_456_789);
    utimensat(nix::fcntl::AT_FDCWD, &from("dir"), &old, &old, nix::sys::stat::UtimensatFlags::NoFollowSymlink).unwrap();

    let report = world.begin().finish().unwrap();
    assert_eq!((report.entries, report.sockets), (12, 1));
    for path in [
        "dir",
        "dir/opaque",
        "dir/whiteout",
        "dir/fifo",
        "dir/device",
        "plain",
        "read-only",
        "link",
        "dangling",
        "sparse",
    ] {
        same(&world, path);
    }
    let whiteout = fs::symlink_metadata(world.to("dir/whiteout")).unwrap();
    assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
    assert_eq!(xattr::get(world.to("dir/opaque"), "trusted.overlay.opaque").unwrap().unwrap(), b"y");
    assert_eq!(xattr::get(world.to("dir/opaque"), "trusted.overlay.origin").unwrap(), None);
    assert_eq!(xattr::get(world.to("plain"), "user.colour").unwrap().unwrap(), b"green");
    assert!(xattr::get(world.to("plain"), "security.capability").unwrap().is_some());
    let inode = |path: &str| fs::metadata(world.to(path)).unwrap().ino();
    assert_eq!(inode("plain"), inode("dir/other-name"), "one file with two names");
    assert_eq!(fs::read_link(world.to("link")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!(fs::read(world.dir.path().join("staging/upper").join(odd)).unwrap(), b"odd");
    assert!(!world.to("dir/socket").exists());
    let mut copy = fs::File::open(world.to("sparse")).unwrap();
    assert!(copy.metadata().unwrap().blocks() * 512 < 1 << 20, "holes stay holes");
    copy.seek(SeekFrom::Start(32 << 20)).unwrap();
    let mut island = [0; 6];
    copy.read_exact(&mut island).unwrap();
    assert_eq!(&island, b"island");
}

#[test]
fn the_second_walk_copies_what_changed_and_nothing_else() {
    if skipped("the_second_walk_copies_what_changed_and_nothing_else") {
        return;
    }
    let world = World::new();
    let write = |path: &str, text: &str| fs::write(world.from(path), text).unwrap();
    for dir in ["keep", "gone", "becomes-file"] {
        fs::create_dir(world.from(dir)).unwrap();
        write(&format!("{dir}/file"), dir);
    }
    for file in ["changed", "touched-back", "becomes-dir", "renamed", "twice"] {
        write(file, "before");
    }
    fs::hard_link(world.from("twice"), world.from("twice-more")).unwrap();
    let capture = world.begin_later();
    let kept = fs::metadata(world.to("keep/file")).unwrap().ino();

    write("changed", "after!");
    // Same size and the old mtime: only the ctime tells.
    let stamp = fs::metadata(world.from("touched-back")).unwrap();
    write("touched-back", "AFTER!");
    let time = nix::sys::time::TimeSpec::new(stamp.mtime(), stamp.mtime_nsec());
    let follow = nix::sys::stat::UtimensatFlags::FollowSymlink;
    utimensat(nix::fcntl::AT_FDCWD, &world.from("touched-back"), &time, &time, follow).unwrap();
    fs::remove_dir_all(world.from("gone")).unwrap();
    fs::remove_dir_all(world.from("becomes-file")).unwrap();
    write("becomes-file", "now a file");
    fs::remove_file(world.from("becomes-dir")).unwrap();
    fs::create_dir(world.from("becomes-dir")).unwrap();
    write("becomes-dir/inside", "new");
    fs::rename(world.from("renamed"), world.from("new-name")).unwrap();
    fs::write(world.from("twice"), "linked!").unwrap();

    let report = capture.finish().unwrap();
    let read = |path: &str| fs::read_to_string(world.to(path)).unwrap();
    assert_eq!((read("changed"), read("touched-back")), ("after!".into(), "AFTER!".into()));
    assert_eq!((read("becomes-file"), read("becomes-dir/inside")), ("now a file".into(), "new".into()));
    assert_eq!(
        (read("new-name"), read("twice"), read("twice-more")),
        ("before".into(), "linked!".into(), "linked!".into())
    );
    assert_eq!(fs::metadata(world.to("twice")).unwrap().ino(), fs::metadata(world.to("twice-more")).unwrap().ino());
    assert!(!world.to("gone").exists() && !world.to("renamed").exists());
    assert_eq!(fs::metadata(world.to("keep/file")).unwrap().ino(), kept, "what has not changed is not copied again");
    // changed, touched-back, becomes-file, becomes-dir/inside, new-name, twice, twice-more
    assert_eq!(report.frozen_entries, 7, "{report:?}");
    same(&world, "becomes-dir");
}

#[test]
fn a_file_mapped_shared_is_copied_again_though_its_times_stand_still() {
    if skipped("a_file_mapped_shared_is_copied_again_though_its_times_stand_still") {
        return;
    }
    let world = World::new();
    let path = world.from("mapped");
    fs::write(&path, [0; 4096]).unwrap();
    let file = fs::File::options().read(true).write(true).open(&path).unwrap();
    // SAFETY: a fresh mapping of a file we hold, unmapped below; nobody else uses the address.
    #[allow(unsafe_code)]
    let map = unsafe {
        use std::os::fd::AsRawFd;
        libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    assert_ne!(map, libc::MAP_FAILED);
    let poke = |byte: u8| {
        // SAFETY: within the mapping made above.
        #[allow(unsafe_code)]
        unsafe {
            map.cast::<u8>().write_volatile(byte)
        }
    };
    // The first write marks the page; after that none moves the file's times.
    poke(1);
    sleep(Duration::from_millis(60));
    // The container sees the file at another path than this node: `inside` has to lead to it.
    let source = CaptureSource { name: "upper".into(), path: world.from(""), inside: world.from("") };
    let stop = Arc::new(AtomicBool::new(false));
    let staging = world.dir.path().join("staging");
    let capture = Capture::begin(&[source], &staging, std::process::id() as i32, stop).unwrap();
    let before = fs::metadata(&path).unwrap();
    poke(2);
    let after = fs::metadata(&path).unwrap();
    let times = |meta: &fs::Metadata| (meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec());
    assert_eq!(times(&before), times(&after), "else this test shows nothing");
    let report = capture.finish().unwrap();
    assert_eq!(report.frozen_entries, 1);
    assert_eq!(fs::read(world.to("mapped")).unwrap()[0], 2);
    // SAFETY: the mapping made above, not used after this.
    #[allow(unsafe_code)]
    unsafe {
        libc::munmap(map, 4096);
    }
}

#[test]
fn a_container_that_rearranges_its_files_meanwhile_neither_breaks_nor_leads_out_the_first_walk() {
    if skipped("a_container_that_rearranges_its_files_meanwhile_neither_breaks_nor_leads_out_the_first_walk") {
        return;
    }
    let world = World::new();
    fs::write(world.dir.path().join("secret"), "secret").unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let (from, done) = (world.from(""), stop.clone());
    let restless = std::thread::spawn(move || {
        let mut round = 0u64;
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            let dir = from.join(format!("d{}", round % 7));
            let _ = fs::create_dir(&dir);
            let mut file = fs::File::create(dir.join("file")).unwrap();
            file.write_all(&vec![1; (round % 5 * 40_000) as usize]).unwrap();
            file.set_len(10).unwrap();
            // A directory becomes a symlink to one outside, and back.
            let other = from.join(format!("d{}", (round + 3) % 7));
            let _ = fs::remove_dir_all(&other);
            let _ = symlink("../..", &other);
            let _ = fs::remove_file(&other);
            round += 1;
        }
    });
    for round in 0..100 {
        let staging = world.dir.path().join(format!("staging-{round}"));
        fs::create_dir(&staging).unwrap();
        let source = CaptureSource { name: "upper".into(), path: world.from(""), inside: "/".into() };
        let flag = Arc::new(AtomicBool::new(false));
        Capture::begin(&[source], &staging, std::process::id() as i32, flag).unwrap();
        let found = std::process::Command::new("find").arg(&staging).args(["-name", "secret"]).output().unwrap();
        assert!(found.stdout.is_empty(), "the walk left its directory");
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    restless.join().unwrap();
}

#[test]
fn too_deep_a_nesting_is_an_error_and_not_a_crash() {
    if skipped("too_deep_a_nesting_is_an_error_and_not_a_crash") {
        return;
    }
    let world = World::new();
    let mut dir = nix::fcntl::open(&world.from(""), nix::fcntl::OFlag::O_DIRECTORY, Mode::empty()).unwrap();
    let name = CString::new("d").unwrap();
    for _ in 0..300 {
        nix::sys::stat::mkdirat(&dir, name.as_c_str(), Mode::S_IRWXU).unwrap();
        dir = nix::fcntl::openat(&dir, name.as_c_str(), nix::fcntl::OFlag::O_DIRECTORY, Mode::empty()).unwrap();
    }
    let source = CaptureSource { name: "upper".into(), path: world.from(""), inside: "/".into() };
    let staging = world.dir.path().join("staging");
    let capture = move || Capture::begin(&[source], &staging, std::process::id() as i32, Default::default()).err();
    let error = std::thread::Builder::new().stack_size(STACK).spawn(capture).unwrap().join().unwrap().unwrap();
    assert!(matches!(error, CaptureError::TooDeep { .. }), "{error:?}");
}

/// A file system of its own, unmounted with the value.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf, options: &str) -> Self {
        fs::create_dir_all(&at).unwrap();
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), &at, Some("tmpfs"), flags, Some(options)).unwrap();
        Self(at)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_copy_that_would_fill_the_disk_is_not_begun() {
    if skipped("a_copy_that_would_fill_the_disk_is_not_begun") {
        return;
    }
    let world = World::new();
    let small = Small::mount(world.dir.path().join("small"), "size=4m");
    let source = CaptureSource { name: "upper".into(), path: world.from(""), inside: "/".into() };
    let begin = |name: &str| {
        let staging = small.0.join(name);
        fs::create_dir(&staging).unwrap();
        Capture::begin(
            std::slice::from_ref(&source),
            &staging,
            std::process::id() as i32,
            Arc::new(AtomicBool::new(false)),
        )
        .map(drop)
    };
    // Holes take no room.
    fs::File::create(world.from("holes")).unwrap().set_len(1 << 30).unwrap();
    fs::write(world.from("half"), vec![1; 1 << 20]).unwrap();
    begin("fits").unwrap();
    fs::remove_dir_all(small.0.join("fits")).unwrap();
    // It would fit, but the packed snapshot not with it.
    fs::write(world.from("more"), vec![2; 1 << 20]).unwrap();
    let error = begin("too-much").unwrap_err();
    assert!(matches!(&error, CaptureError::NoRoom { room, .. } if *room < 2 << 20), "{error}");
}
