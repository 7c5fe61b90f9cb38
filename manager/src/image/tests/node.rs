//! Layers on a node: damage, crashes, company, and removal.

use std::{
    collections::HashSet,
    os::unix::fs::FileExt,
    sync::{Arc, atomic::Ordering},
};

use super::*;

async fn imported(lab: &Lab) -> ImageRecord {
    Image::new(&three_layers()).write_layout(&lab.path("image"));
    lab.import("./image").await.unwrap()
}

#[tokio::test]
async fn damaged_objects_are_refused_and_a_whole_one_then_works() {
    let lab = Lab::new();
    let record = imported(&lab).await;
    let blob = lab.store.blob(&record.layers[1].digest);
    let whole = fs::read(&blob).unwrap();

    fs::write(&blob, &whole[..whole.len() - 1]).unwrap();
    assert!(matches!(lab.ensure(&record).await, Err(ImageError::Size { .. })));

    for at in [0, whole.len() / 2, whole.len() - 1] {
        fs::write(&blob, &whole).unwrap();
        let byte = whole[at] ^ 0x10;
        fs::File::options().write(true).open(&blob).unwrap().write_all_at(&[byte], at as u64).unwrap();
        assert!(matches!(lab.ensure(&record).await, Err(ImageError::Digest { .. })), "byte {at}");
    }
    fs::write(&blob, [&whole[..], b"more"].concat()).unwrap();
    assert!(matches!(lab.ensure(&record).await, Err(ImageError::Malformed { .. })));

    fs::remove_file(&blob).unwrap();
    let error = lab.ensure(&record).await.unwrap_err();
    assert!(matches!(error, ImageError::Store { source: BlobError::Missing, .. }), "{error}");
    assert!(error.to_string().contains(&record.layers[1].digest));

    fs::write(&blob, &whole).unwrap();
    assert_eq!(lab.ensure(&record).await.unwrap().len(), 3);
}

#[tokio::test]
async fn digests_that_are_paths_are_refused() {
    let lab = Lab::new();
    let mut record = imported(&lab).await;
    for bad in ["", ".", "..", "../../etc", &"A".repeat(64), &"a".repeat(63)] {
        record.layers[0].digest = bad.to_owned();
        assert!(matches!(lab.ensure(&record).await, Err(ImageError::LayerDigest { .. })), "{bad}");
        assert!(missing(&record, &lab.layers).is_err());
    }
}

#[tokio::test]
async fn what_a_crash_left_behind_is_made_anew() {
    let lab = Lab::new();
    let record = imported(&lab).await;
    let digest = &record.layers[0].digest;
    let new = lab.layers.join(format!(".new-{digest}"));
    fs::create_dir_all(new.join("half")).unwrap();
    fs::write(lab.layers.join(format!(".get-{digest}")), "half").unwrap();
    fs::write(lab.layers.join(format!(".lock-{digest}")), "").unwrap();
    assert_eq!(missing(&record, &lab.layers).unwrap().len(), 3);
    let dirs = lab.ensure(&record).await.unwrap();
    assert!(!dirs[0].join("half").exists() && dirs[0].join("etc/old").exists());
    assert_eq!(missing(&record, &lab.layers).unwrap().len(), 0);
    assert_eq!(fs::metadata(&lab.layers).unwrap().mode() & 0o777, 0o700, "set-user-ID files are for containers only");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_fetch_each_layer_once() {
    let lab = Arc::new(Lab::new());
    let record = Arc::new(imported(&lab).await);
    let tasks: Vec<_> = (0..12)
        .map(|_| {
            let (lab, record) = (lab.clone(), record.clone());
            tokio::spawn(async move {
                ensure(&record, &lab.store, &lab.layers, &Limits::default(), &silent()).await.unwrap()
            })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap().len(), 3);
    }
    assert_eq!(lab.store.gets.load(Ordering::SeqCst), 3);
    assert_eq!(names(&lab.layers).len(), 3, "{:?}", names(&lab.layers));
}

#[tokio::test]
async fn prune_keeps_what_is_used_and_what_is_being_made() {
    let lab = Lab::new();
    let record = imported(&lab).await;
    let dirs = lab.ensure(&record).await.unwrap();
    let digest = |n: usize| record.layers[n].digest.clone();
    let busy = lab.layers.join(format!(".lock-{}", digest(1)));
    let lock = fs::File::create(&busy).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let crashed = lab.layers.join(format!(".new-{}", "0".repeat(64)));
    fs::create_dir(&crashed).unwrap();
    fs::write(lab.layers.join("not ours"), "").unwrap();

    let in_use = HashSet::from([digest(0)]);
    assert_eq!(prune(&lab.layers, &in_use).unwrap(), [digest(2)]);
    assert!(dirs[0].is_dir() && dirs[1].is_dir() && !dirs[2].exists() && !crashed.exists());
    drop(lock);
    assert_eq!(prune(&lab.layers, &in_use).unwrap(), [digest(1)]);
    let mut left = [digest(0), "not ours".to_owned()];
    left.sort();
    assert_eq!(names(&lab.layers), left);
    assert_eq!(prune(&lab.path("nowhere"), &in_use).unwrap(), Vec::<String>::new());
    fs::remove_file(lab.layers.join("not ours")).unwrap();
    assert_eq!(lab.ensure(&record).await.unwrap().len(), 3);
}
