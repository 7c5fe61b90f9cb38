//! Layers made to break out, at the import and, past it, on the node.

use super::*;

type TestEntry = (Entry, &'static [u8]);

/// What an attacker would like to reach, next to the layers directory.
fn outside(lab: &Lab) -> PathBuf {
    let outside = lab.path("outside");
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    outside
}

fn untouched(outside: &Path) {
    assert_eq!(names(outside), ["secret"]);
    assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "secret");
    assert_eq!(fs::metadata(outside.join("secret")).unwrap().nlink(), 1);
}

fn link(path: &str, target: &Path) -> TestEntry {
    (entry(path, Kind::Symlink(target.as_os_str().as_bytes().to_vec())), b"")
}

fn hardlink(path: &str, target: &str) -> TestEntry {
    (entry(path, Kind::Hardlink(target.as_bytes().to_vec())), b"")
}

fn with_xattr(mut entry: TestEntry, name: &str, value: &str) -> TestEntry {
    entry.0.meta.xattrs.insert(name.as_bytes().to_vec(), value.as_bytes().to_vec());
    entry
}

/// Stores any tar as if it had been imported.
fn store_raw(lab: &Lab, tar: &[u8]) -> ImageRecord {
    let object = zstd::encode_all(tar, 1).unwrap();
    let digest = blake3::hash(&object).to_hex().to_string();
    fs::write(lab.store.blob(&digest), &object).unwrap();
    let layers = vec![crate::spec::Layer { digest, size_bytes: object.len() as u64 }];
    ImageRecord { reference: "hostile".to_owned(), config: manifest::bare_configuration(), layers }
}

async fn refused_on_node(lab: &Lab, entries: &[(Entry, &[u8])]) -> EntryFault {
    let record = store_raw(lab, &tar_of(entries));
    let error = lab.ensure(&record).await.unwrap_err();
    assert_eq!(names(&lab.layers), Vec::<String>::new(), "a refused layer leaves nothing");
    match error {
        ImageError::Entry { fault, .. } => fault,
        other => panic!("{other}: {other:?}"),
    }
}

#[tokio::test]
async fn a_node_refuses_escapes() {
    if !testing::needs_root("a_node_refuses_escapes") {
        return;
    }
    let lab = Lab::new();
    let out = outside(&lab);
    let absolute = out.join("new");
    let absolute = absolute.to_str().unwrap();
    let through = EntryFault::ThroughNonDirectory("out".to_owned());
    let target = |t: &str| EntryFault::HardlinkTarget(t.to_owned());
    let secret = out.join("secret").to_str().unwrap().to_owned();
    let cases: Vec<(Vec<TestEntry>, EntryFault)> = vec![
        (vec![file("../../outside/new", "x")], EntryFault::DotDot),
        (vec![dir("a"), file("a/../../../outside/new", "x")], EntryFault::DotDot),
        (vec![file(absolute, "x")], EntryFault::Absolute),
        (vec![link("out", &out), file("out/new", "x")], through.clone()),
        (vec![link("out", Path::new("../../outside")), dir("out/new")], through.clone()),
        (
            vec![dir("d"), link("d/l", Path::new("..")), file("d/l/x", "x")],
            EntryFault::ThroughNonDirectory("d/l".to_owned()),
        ),
        (vec![file("out", "x"), file("out/new", "x")], through),
        (vec![link("f", &out.join("secret")), file("f", "overwritten")], EntryFault::Duplicate),
        (vec![link("out", &out), hardlink("stolen", "out/secret")], target("out/secret")),
        (vec![hardlink("stolen", "../../outside/secret")], target("../../outside/secret")),
        (vec![hardlink("stolen", &secret)], target(&secret)),
        (vec![dir("d"), hardlink("h", "d")], target("d")),
        (vec![file("a/b", "no parent")], EntryFault::MissingParent),
        (vec![dir("a"), dir("a")], EntryFault::Duplicate),
        (
            vec![with_xattr(dir("a"), "trusted.overlay.redirect", "/b")],
            EntryFault::OverlayXattr("trusted.overlay.redirect".to_owned()),
        ),
        (
            vec![with_xattr(dir("a"), "trusted.overlay.opaque", "x")],
            EntryFault::OverlayXattr("trusted.overlay.opaque".to_owned()),
        ),
    ];
    for (entries, expected) in cases {
        assert_eq!(refused_on_node(&lab, &entries).await, expected);
        untouched(&out);
    }
}

#[tokio::test]
async fn a_node_refuses_unknown_kinds_by_name() {
    let lab = Lab::new();
    for kind in [b'S', b'7', b'V', b'M', b'g', b'L', b'z', 0xff] {
        let mut tar = tar_of(&[file("a", "")]);
        tar[156] = kind;
        let mut header = ::tar::Header::new_ustar();
        header.as_mut_bytes().copy_from_slice(&tar[..512]);
        header.set_cksum();
        tar[..512].copy_from_slice(header.as_bytes());
        let error = lab.ensure(&store_raw(&lab, &tar)).await.unwrap_err();
        let expected = if kind == b'S' { EntryFault::Sparse } else { EntryFault::UnknownType(kind) };
        assert!(
            matches!(&error, ImageError::Entry { fault, path, .. } if *fault == expected && path == "a"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn an_import_refuses_escapes() {
    let lab = Lab::new();
    let out = outside(&lab);
    let cases: Vec<Vec<TestEntry>> = vec![
        vec![file("../../outside/new", "x")],
        vec![link("out", &out), file("out/new", "x")],
        vec![file("out/new", "x"), link("out", &out), file("out/new", "x")],
        vec![hardlink("stolen", "../outside/secret")],
        vec![hardlink("stolen", "etc/passwd")],
        vec![file("f", "1"), hardlink("l", "f"), file("f", "2")],
        vec![(entry("gone", Kind::Char { major: 0, minor: 0 }), b"")],
        vec![with_xattr(file("a", "x"), "trusted.overlay.metacopy", "")],
        vec![file("a/.wh...", ""), file("b", "")],
        vec![file(".wh.", "")],
    ];
    for entries in cases {
        Image::new(&[tar_of(&entries)]).write_layout(&lab.path("image"));
        let error = lab.import("./image").await.unwrap_err();
        assert!(matches!(error, ImageError::Entry { .. }), "{error}");
        assert_eq!(names(&lab.path("store/blobs")), Vec::<String>::new());
        untouched(&out);
        fs::remove_dir_all(lab.path("image")).unwrap();
    }
}

#[tokio::test]
async fn a_bomb_is_stopped_by_its_limit() {
    let lab = Lab::new();
    let zeros = vec![0; 8 << 20];
    let big = entry("big", Kind::File { size: zeros.len() as u64 });
    Image::new(&[tar_of(&[(big, &zeros)])]).write_layout(&lab.path("image"));
    let source = classify("./image", lab.dir.path()).unwrap();
    let limits = Limits { layer_bytes: 1 << 20, ..Limits::default() };
    let options = ImportOptions { limits, ..lab.options() };
    let error = import(&source, "x", &lab.store, &options, &silent()).await.unwrap_err();
    assert!(matches!(error, ImageError::Limit { limit: 1_048_576, .. }), "{error}");
}

/// A header may announce an extension of exabytes; none of it may be allocated.
#[tokio::test]
async fn announced_sizes_are_not_believed() {
    let lab = Lab::new();
    for (kind, size) in [(b'x', u64::MAX / 2), (b'L', 1 << 40), (b'0', u64::MAX / 2), (b'x', 3)] {
        let mut header = ::tar::Header::new_gnu();
        header.set_entry_type(::tar::EntryType::new(kind));
        header.as_old_mut().name[..1].copy_from_slice(b"a");
        header.set_size(size);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        let _ = fs::remove_dir_all(lab.path("image"));
        Image::new(&[header.as_bytes().to_vec()]).write_layout(&lab.path("image"));
        lab.import("./image").await.unwrap_err();
        lab.ensure(&store_raw(&lab, header.as_bytes())).await.unwrap_err();
    }
}

/// Paths of some kilobytes imply a thousand directories each, none of which the layer holds.
#[tokio::test]
async fn directories_that_are_only_implied_cost_as_others_do() {
    let lab = Lab::new();
    let deep = |layer: usize, n: usize| file(&format!("{layer}-{n}{}", "/a".repeat(900)), "");
    let layer = |number: usize| tar_of(&(0..20).map(|n| deep(number, n)).collect::<Vec<_>>());
    let import_with = async |layers: &[Vec<u8>], limits: Limits| {
        let _ = fs::remove_dir_all(lab.path("image"));
        Image::new(layers).write_layout(&lab.path("image"));
        let source = classify("./image", lab.dir.path()).unwrap();
        let options = ImportOptions { limits, ..lab.options() };
        import(&source, "x", &lab.store, &options, &silent()).await
    };
    // Of twenty files there are eighteen thousand directories, with paths of sixteen megabytes in all.
    let error = import_with(&[layer(0)], Limits { entries: 1000, ..Limits::default() }).await.unwrap_err();
    assert!(matches!(error, ImageError::Limit { limit: 1000, .. }), "{error}");
    let limits = Limits { metadata_bytes: 1 << 20, ..Limits::default() };
    let error = import_with(&[layer(0)], limits).await.unwrap_err();
    assert!(matches!(error, ImageError::Limit { limit: 1_048_576, .. }), "{error}");
    // Each layer is within the limit, all together are not.
    let limits = Limits { metadata_bytes: 50 << 20, ..Limits::default() };
    let layers: Vec<_> = (0..4).map(layer).collect();
    import_with(&layers[..1], limits.clone()).await.unwrap();
    let error = import_with(&layers, limits).await.unwrap_err();
    assert!(matches!(error, ImageError::Limit { .. }) && error.to_string().contains("below"), "{error}");
}
