//! Deletions, by what a container sees: a real overlay mount of the layers that came out.

use super::*;

async fn merged(lab: &Lab, tars: &[Vec<u8>]) -> testing::Mounted {
    let _ = fs::remove_dir_all(lab.path("image"));
    Image::new(tars).write_layout(&lab.path("image"));
    let record = lab.import("./image").await.unwrap();
    let dirs = lab.ensure(&record).await.unwrap();
    lab.mount(&dirs)
}

fn base() -> Vec<u8> {
    let mut srv = dir("srv");
    srv.0.meta = Meta { mode: 0o2750, uid: 33, gid: 44, mtime: Mtime { sec: 77, nsec: 0 }, ..Meta::default() };
    srv.0.meta.xattrs.insert(b"user.kept".to_vec(), b"yes".to_vec());
    tar_of(&[
        dir("etc"),
        file("etc/a", "a"),
        file("etc/b", "b"),
        srv,
        dir("srv/sub"),
        file("srv/sub/x", "x"),
        file("f", "f"),
    ])
}

#[tokio::test]
async fn deleted_files_and_directories_are_gone() {
    if !testing::needs_root("deleted_files_and_directories_are_gone") {
        return;
    }
    let lab = Lab::new();
    let mounted = merged(&lab, &[base(), tar_of(&[file("etc/.wh.a", ""), file(".wh.srv", "")])]).await;
    assert_eq!(names(&mounted.0), ["etc", "f"]);
    assert_eq!(names(&mounted.0.join("etc")), ["b"]);
}

#[tokio::test]
async fn an_opaque_directory_hides_what_was_below_whatever_the_order() {
    if !testing::needs_root("an_opaque_directory_hides_what_was_below_whatever_the_order") {
        return;
    }
    let opaque = file("etc/.wh..wh..opq", "");
    for order in [
        vec![opaque.clone(), dir("etc"), file("etc/new", "n")],
        vec![dir("etc"), file("etc/new", "n"), opaque.clone()],
        vec![file("etc/new", "n"), opaque],
        vec![file(".wh.etc", ""), dir("etc"), file("etc/new", "n")],
        vec![dir("etc"), file("etc/new", "n"), file(".wh.etc", "")],
    ] {
        let lab = Lab::new();
        let mounted = merged(&lab, &[base(), tar_of(&order)]).await;
        assert_eq!(names(&mounted.0.join("etc")), ["new"]);
        assert_eq!(names(&mounted.0), ["etc", "f", "srv"]);
    }
}

#[tokio::test]
async fn an_opaque_root_drops_the_layers_below() {
    if !testing::needs_root("an_opaque_root_drops_the_layers_below") {
        return;
    }
    let lab = Lab::new();
    let mounted = merged(&lab, &[base(), tar_of(&[file(".wh..wh..opq", ""), file("only", "o")])]).await;
    assert_eq!(names(&mounted.0), ["only"]);
}

#[tokio::test]
async fn a_directory_that_a_layer_only_implies_stays_what_it_was() {
    if !testing::needs_root("a_directory_that_a_layer_only_implies_stays_what_it_was") {
        return;
    }
    let lab = Lab::new();
    let mounted = merged(&lab, &[base(), tar_of(&[file("srv/new", "n"), file("other/deep/x", "x")])]).await;
    let srv = fs::metadata(mounted.0.join("srv")).unwrap();
    assert_eq!((srv.mode() & 0o7777, srv.uid(), srv.gid(), srv.mtime()), (0o2750, 33, 44, 77));
    assert_eq!(xattr::get(mounted.0.join("srv"), "user.kept").unwrap().unwrap(), b"yes");
    let other = fs::metadata(mounted.0.join("other/deep")).unwrap();
    assert_eq!((other.mode() & 0o7777, other.uid()), (0o755, 0));
    drop(mounted);

    // Deleted in between, it is a new one.
    let tars = [base(), tar_of(&[file(".wh.srv", "")]), tar_of(&[file("srv/new", "n")])];
    let mounted = merged(&lab, &tars).await;
    assert_eq!(fs::metadata(mounted.0.join("srv")).unwrap().uid(), 0);
    assert_eq!(names(&mounted.0.join("srv")), ["new"]);
}

#[tokio::test]
async fn the_last_of_several_entries_for_a_path_counts() {
    if !testing::needs_root("the_last_of_several_entries_for_a_path_counts") {
        return;
    }
    let lab = Lab::new();
    let link = (entry("d", Kind::Symlink(b"f".to_vec())), &b""[..]);
    let mounted = merged(
        &lab,
        &[tar_of(&[
            file("f", "first"),
            file("f", "second"),
            dir("d"),
            file("d/lost", "x"),
            link.clone(),
            file("n", "file"),
            dir("n"),
            file("n/in", "x"),
        ])],
    )
    .await;
    assert_eq!(fs::read_to_string(mounted.0.join("f")).unwrap(), "second");
    assert!(fs::symlink_metadata(mounted.0.join("d")).unwrap().is_symlink());
    assert_eq!(names(&mounted.0.join("n")), ["in"]);
}

#[tokio::test]
async fn equal_and_empty_layers_do_not_break_the_mount() {
    if !testing::needs_root("equal_and_empty_layers_do_not_break_the_mount") {
        return;
    }
    let lab = Lab::new();
    let change = tar_of(&[file("f", "changed"), file("etc/.wh.a", "")]);
    let empty = tar_of(&[]);
    let tars = [base(), empty.clone(), change.clone(), base(), empty, change];
    let mounted = merged(&lab, &tars).await;
    assert_eq!(fs::read_to_string(mounted.0.join("f")).unwrap(), "changed");
    assert_eq!(names(&mounted.0.join("etc")), ["b"]);
    assert_eq!(names(&lab.layers).len(), 2);
}

#[tokio::test]
async fn the_root_directory_itself_is_kept() {
    if !testing::needs_root("the_root_directory_itself_is_kept") {
        return;
    }
    let lab = Lab::new();
    let mut root = dir("./");
    root.0.meta.mode = 0o711;
    let image = Image::new(&[base(), tar_of(&[root])]);
    image.write_layout(&lab.path("image"));
    let dirs = lab.ensure(&lab.import("./image").await.unwrap()).await.unwrap();
    assert_eq!(fs::metadata(dirs.last().unwrap()).unwrap().mode() & 0o7777, 0o711);
}
