//! OCI layouts and archives, and what is wrong with some.

use std::sync::atomic::Ordering;

use super::*;

/// A tar of everything in a directory, without an entry for the directory itself.
fn archive(dir: &Path) -> Vec<u8> {
    let mut tar = ::tar::Builder::new(Vec::new());
    tar.append_dir_all(".", dir).unwrap();
    tar.into_inner().unwrap()
}

#[tokio::test]
async fn layout_archive_and_docker_save_give_the_same_layers() {
    if !testing::needs_root("layout_archive_and_docker_save_give_the_same_layers") {
        return;
    }
    let lab = Lab::new();
    let image = Image::new(&three_layers());
    image.write_layout(&lab.path("layout"));
    let tar = archive(&lab.path("layout"));
    fs::write(lab.path("plain.tar"), &tar).unwrap();
    fs::write(lab.path("gzip.tar.gz"), gzip(&tar)).unwrap();
    fs::write(lab.path("zstd"), zstd::encode_all(&tar[..], 1).unwrap()).unwrap();
    fs::write(lab.path("saved.tar"), docker_save(&image, &three_layers())).unwrap();

    let first = lab.import("./layout").await.unwrap();
    assert_eq!(first.reference, "./layout");
    assert_eq!(first.config.cmd, ["/bin/serve", "-x"]);
    assert_eq!(first.config.user.as_deref(), Some("web"));
    assert_eq!(first.config.working_dir.as_deref(), Some("/srv"));
    for other in ["./plain.tar", "./gzip.tar.gz", "./zstd", "./saved.tar"] {
        let record = lab.import(other).await.unwrap();
        assert_eq!(record.layers, first.layers, "{other}");
        assert_eq!(record.config, first.config, "{other}");
    }
    assert_eq!(lab.store.puts.load(Ordering::SeqCst), 3, "three layers are stored, once");

    let dirs = lab.ensure(&first).await.unwrap();
    let mounted = lab.mount(&dirs);
    check_three_layers(&mounted.0);
    for rootfs in [std::slice::from_ref(&mounted.0), &dirs[..]] {
        assert_eq!(resolve_user(rootfs, "web").unwrap().uid, 33);
    }
}

/// As Docker before 25 writes it: a directory per layer, one of them a link to another's.
fn docker_save(image: &Image, tars: &[Vec<u8>]) -> Vec<u8> {
    let mut tar = ::tar::Builder::new(Vec::new());
    let mut put = |name: &str, bytes: &[u8]| {
        let mut header = ::tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes).unwrap();
    };
    let config = format!("{}.json", sha256(&image.config));
    put(&config, &image.config);
    put("one/layer.tar", &tars[0]);
    put("two/layer.tar", &tars[1]);
    put("real/layer.tar", &tars[2]);
    let layers = ["one/layer.tar", "two/layer.tar", "three/layer.tar"];
    let manifest = serde_json::json!([{"Config": config, "RepoTags": ["x:1"], "Layers": layers}]).to_string();
    put("manifest.json", manifest.as_bytes());
    let mut link = ::tar::Header::new_ustar();
    link.set_entry_type(::tar::EntryType::Symlink);
    link.set_size(0);
    tar.append_link(&mut link, "three/layer.tar", "../real/layer.tar").unwrap();
    tar.into_inner().unwrap()
}

#[tokio::test]
async fn damage_in_a_layout_is_found() {
    let lab = Lab::new();
    let image = Image::new(&three_layers());
    let layout = lab.path("layout");
    let refused = async |bytes: &[u8], change: &dyn Fn(&mut Vec<u8>)| {
        let _ = fs::remove_dir_all(&layout);
        image.write_layout(&layout);
        let path = layout.join("blobs/sha256").join(sha256(bytes));
        let mut content = fs::read(&path).unwrap();
        change(&mut content);
        fs::write(&path, content).unwrap();
        let error = lab.import("./layout").await.unwrap_err();
        assert_eq!(names(&lab.path("store/blobs")).len(), 0, "nothing of it was stored");
        error
    };
    // Flipping a bit of the last layer alone would leave the first two stored; the first is what is damaged here.
    let layer = &image.layers[0].0;
    for at in [1, layer.len() / 2, layer.len() - 1] {
        let error = refused(layer, &|bytes| bytes[at] ^= 1).await;
        let named = matches!(error, ImageError::Digest { .. } | ImageError::Archive { .. } | ImageError::Entry { .. });
        assert!(named, "{error}");
    }
    assert!(matches!(refused(layer, &|bytes| bytes.truncate(bytes.len() - 1)).await, ImageError::Size { .. }));
    for document in [&image.config, &image.manifest()] {
        assert!(matches!(refused(document, &|bytes| bytes[5] ^= 1).await, ImageError::Digest { .. }));
    }
}

/// The layer fits the manifest, but is not the one the configuration was made for.
#[tokio::test]
async fn a_layer_of_another_configuration_is_refused() {
    let lab = Lab::new();
    let mut image = Image::new(&three_layers());
    let other = tar_of(&[file("evil", "x")]);
    image.layers[0] = (gzip(&other), GZIP);
    image.write_layout(&lab.path("layout"));
    let error = lab.import("./layout").await.unwrap_err();
    assert!(matches!(&error, ImageError::Digest { expected, .. } if *expected == image.diff_ids[0]), "{error}");
    image.layers.pop();
    fs::remove_dir_all(lab.path("layout")).unwrap();
    image.write_layout(&lab.path("layout"));
    assert!(lab.import("./layout").await.unwrap_err().to_string().contains("2 layers, its configuration 3"));
}

#[tokio::test]
async fn archives_that_are_no_images_are_refused() {
    let lab = Lab::new();
    fs::create_dir_all(lab.path("root/etc")).unwrap();
    fs::write(lab.path("rootfs.tar"), archive(&lab.path("root"))).unwrap();
    fs::write(lab.path("junk.gz"), gzip(b"not a tar at all")).unwrap();
    fs::write(lab.path("cut.tar"), &docker_save(&Image::new(&three_layers()), &three_layers())[..3000]).unwrap();
    let error = lab.import("./rootfs.tar").await.unwrap_err().to_string();
    assert!(error.contains("unpacked to a directory"), "{error}");
    for bad in ["./junk.gz", "./cut.tar"] {
        let error = lab.import(bad).await.unwrap_err();
        assert!(matches!(error, ImageError::Archive { .. } | ImageError::Malformed { .. }), "{bad}: {error}");
    }
}

#[tokio::test]
async fn an_image_for_another_machine_is_refused() {
    let lab = Lab::new();
    let mut image = Image::new(&three_layers());
    let config = String::from_utf8(image.config).unwrap();
    image.config = config.replace(&format!("{:?}", host_architecture()), "\"s390x\"").into_bytes();
    image.write_layout(&lab.path("layout"));
    let error = lab.import("./layout").await.unwrap_err();
    assert!(matches!(&error, ImageError::Platform { offered, .. } if offered == "linux/s390x"), "{error}");
}
