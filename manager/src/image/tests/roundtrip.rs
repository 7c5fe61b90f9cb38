//! A tree with one of everything through the store and back.

use std::{ffi::OsStr, os::unix::net::UnixListener};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, makedev, mknodat, utimensat};

use super::*;

/// One of everything that a file system can hold and an image has to keep.
fn build(root: &Path) {
    let at = |name: &str| root.join(name);
    for dir in ["bin", "etc/deep/er", "dev", "tmp", "var-x", "var"] {
        fs::create_dir_all(at(dir)).unwrap();
    }
    fs::write(at("bin/tool"), vec![7; 300_000]).unwrap();
    fs::write(at("empty"), "").unwrap();
    fs::write(at("etc/deep/er/file"), "deep").unwrap();
    fs::write(at("var/x"), "x").unwrap();
    fs::write(root.join(OsStr::from_bytes(b"not-utf8-\xff\xfe\n")), "odd name").unwrap();
    fs::write(at(&"n".repeat(255)), "longest name").unwrap();
    let long = (0..20).fold(root.to_owned(), |path, n| path.join(format!("{n}-{}", "d".repeat(100))));
    fs::create_dir_all(&long).unwrap();
    fs::write(long.join("end"), "longest path").unwrap();
    // In another order than the one in which the tree is walked: "var-x" sorts before "var/".
    fs::hard_link(at("var/x"), at("var-x/link")).unwrap();
    fs::hard_link(at("bin/tool"), at("etc/tool-again")).unwrap();
    std::os::unix::fs::symlink("/absolute/and/../missing", at("link")).unwrap();
    fs::hard_link(at("link"), at("link-again")).unwrap();
    let device = |name: &str, kind, (major, minor)| {
        mknodat(CWD, at(name), kind, Mode::from_raw_mode(0o620), makedev(major, minor)).unwrap();
    };
    device("dev/null", FileType::CharacterDevice, (1, 3));
    device("dev/big", FileType::BlockDevice, (4000, 1_000_000));
    device("pipe", FileType::Fifo, (0, 0));
    let set = |name: &str, key: &str, value: &[u8]| xattr::set(at(name), key, value).unwrap();
    set("bin/tool", "user.note", b"with\nnewline = and \0 NUL");
    set("bin/tool", "user.a=b", b"name with =");
    set("bin", "trusted.mark", b"on a directory");
    xattr::set(at("link"), "trusted.mark", b"on a link").unwrap();
    // cap_net_bind_service=ep, as setcap writes it.
    set("bin/tool", "security.capability", &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let own = |name: &str, uid, gid| std::os::unix::fs::lchown(at(name), Some(uid), Some(gid)).unwrap();
    own("empty", 4_000_000_000, 3_000_000);
    own("link", 12, 34);
    own("pipe", 33, 33);
    own("etc/deep", 1000, 1000);
    let mode = |name: &str, mode| {
        fs::set_permissions(at(name), std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    mode("tmp", 0o1777);
    mode("empty", 0o6755);
    mode("var/x", 0);
    mode("etc/deep/er", 0o2500);
    let times = [("empty", -5, 250_000_000), ("bin", 0, 1), ("link", 1_234_567_890, 987_654_321), ("", 99, 0)];
    for (name, tv_sec, tv_nsec) in times.into_iter().chain([("dev/null", 5_000_000_000, 0), ("pipe", 1, 5)]) {
        let at_time = Timespec { tv_sec, tv_nsec };
        let times = Timestamps { last_access: at_time, last_modification: at_time };
        utimensat(CWD, at(name), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

#[tokio::test]
async fn a_tree_with_one_of_everything_comes_back_equal() {
    if !testing::needs_root("a_tree_with_one_of_everything_comes_back_equal") {
        return;
    }
    let lab = Lab::new();
    let root = lab.path("root");
    build(&root);
    let record = lab.import("./root").await.unwrap();
    assert_eq!(record.layers.len(), 1);
    assert_eq!(record.config.env, [manifest::DEFAULT_PATH]);
    let dirs = lab.ensure(&record).await.unwrap();
    assert!(xattr::get(dirs[0].join("bin/tool"), "security.capability").unwrap().is_some());
    similar(&describe(&root), &describe(&dirs[0]));
}

/// As `assert_eq`, but shows the lines that differ only.
fn similar(left: &BTreeMap<PathBuf, String>, right: &BTreeMap<PathBuf, String>) {
    let differ = |a: &BTreeMap<PathBuf, String>, b: &BTreeMap<PathBuf, String>| -> Vec<String> {
        a.iter()
            .filter(|(path, line)| b.get(*path) != Some(line))
            .map(|(p, l)| format!("{}: {l}", p.display()))
            .collect()
    };
    assert!(left == right, "lost: {:#?}\ngot: {:#?}", differ(left, right), differ(right, left));
}

#[tokio::test]
async fn the_same_tree_is_stored_once() {
    if !testing::needs_root("the_same_tree_is_stored_once") {
        return;
    }
    let lab = Lab::new();
    build(&lab.path("root"));
    let first = lab.import("./root").await.unwrap();
    let second = lab.import("./root").await.unwrap();
    assert_eq!(first, second);
    assert_eq!(lab.store.puts.load(std::sync::atomic::Ordering::SeqCst), 1);
    // One that was cut short is there by name only.
    let blob = lab.store.blob(&first.layers[0].digest);
    let whole = fs::read(&blob).unwrap();
    fs::write(&blob, &whole[..whole.len() / 2]).unwrap();
    assert_eq!(lab.import("./root").await.unwrap(), first);
    assert!(fs::read(&blob).unwrap() == whole, "it was not repaired");
    // A copy that came back from the store is the same tree, so the same object.
    let dirs = lab.ensure(&first).await.unwrap();
    let third = lab.import(dirs[0].to_str().unwrap()).await.unwrap();
    assert_eq!(first.layers, third.layers);
}

#[tokio::test]
async fn sockets_are_left_out_and_said_so() {
    let lab = Lab::new();
    fs::create_dir(lab.path("root")).unwrap();
    fs::write(lab.path("root/file"), "x").unwrap();
    let _listener = UnixListener::bind(lab.path("root/socket")).unwrap();
    let source = classify("./root", lab.dir.path()).unwrap();
    let notes = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = notes.clone();
    let progress: Progress = std::sync::Arc::new(move |event| {
        if let Event::Note { text } = event {
            seen.lock().unwrap().push(text);
        }
    });
    import(&source, "./root", &lab.store, &lab.options(), &progress).await.unwrap();
    let notes = notes.lock().unwrap();
    assert!(notes.len() == 1 && notes[0].contains("socket"), "{notes:?}");
}

#[tokio::test]
async fn what_is_no_tree_of_one_file_system_is_refused() {
    if !testing::needs_root("what_is_no_tree_of_one_file_system_is_refused") {
        return;
    }
    let lab = Lab::new();
    let root = lab.path("root");
    for dir in ["lower", "a", "b", "root/proc"] {
        fs::create_dir_all(lab.path(dir)).unwrap();
    }
    mount_overlay(&[lab.path("lower")], &lab.path("a"), &lab.path("b"), &root.join("proc")).unwrap();
    let mounted = testing::Mounted(root.join("proc"));
    let error = lab.import("./root").await.unwrap_err();
    assert!(error.to_string().contains("mount point") && error.to_string().contains("proc"), "{error}");
    drop(mounted);
    mknodat(CWD, root.join("gone"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    assert!(lab.import("./root").await.unwrap_err().to_string().contains("0:0"));
    fs::remove_file(root.join("gone")).unwrap();
    xattr::set(root.join("proc"), "trusted.overlay.redirect", b"/etc").unwrap();
    assert!(lab.import("./root").await.unwrap_err().to_string().contains("trusted.overlay.redirect"));
}

#[tokio::test]
async fn limits_are_kept() {
    let lab = Lab::new();
    fs::create_dir(lab.path("root")).unwrap();
    for n in 0..10 {
        fs::write(lab.path("root").join(n.to_string()), vec![0; 100_000]).unwrap();
    }
    let source = classify("./root", lab.dir.path()).unwrap();
    let limited = async |limits: Limits| {
        let options = ImportOptions { limits, ..lab.options() };
        import(&source, "./root", &lab.store, &options, &silent()).await.unwrap_err().to_string()
    };
    assert!(limited(Limits { entries: 5, ..Limits::default() }).await.contains("5 entries"));
    assert!(limited(Limits { metadata_bytes: 100, ..Limits::default() }).await.contains("100 bytes of names"));
    // The same on the node: a layer that another machine made under other limits.
    let record = lab.import("./root").await.unwrap();
    for limits in [Limits { entries: 5, ..Limits::default() }, Limits { layer_bytes: 500_000, ..Limits::default() }] {
        ensure(&record, &lab.store, &lab.layers, &limits, &silent()).await.unwrap_err();
        assert_eq!(names(&lab.layers), Vec::<String>::new());
    }
}
