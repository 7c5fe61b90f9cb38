//! Snapshots that this program cannot read are snapshots all the same.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_that_cannot_be_read_stay_until_there_are_enough_that_can() {
    let lab = Lab::new().await;
    lab.own(None).await;
    let tree = lab.tree("memory", 1000);
    let commit = async |n| {
        let sources = [PartSource { name: PartName::Memory, dir: tree.clone() }];
        let meta = meta(SnapshotId { epoch: Epoch(1), seq: n });
        let draft = pack(&lab.queue, meta, &sources, &PackOptions::default()).unwrap();
        upload(&lab.store, &draft, QUIET).await.unwrap();
    };
    for n in 1..=3 {
        commit(n).await;
    }
    // By a newer release.
    for n in 1..=3 {
        let object = lab.object(&keys::manifest(&container(), SnapshotId { epoch: Epoch(1), seq: n }));
        let mut bytes = fs::read(&object).unwrap();
        bytes[8] = 9;
        fs::write(&object, bytes).unwrap();
    }
    for n in 4..=5 {
        commit(n).await;
        assert_eq!(prune(&lab.store, &container(), keep(3), Epoch(1)).await.unwrap(), Pruned::default());
    }
    let ids = list(&lab.store, &container()).await.unwrap();
    let read = survey(&lab.store, &container(), &ids, |manifest| manifest.meta.id).await.unwrap();
    assert_eq!(read.iter().map(|(id, _)| *id).collect::<Vec<_>>(), ids);
    assert_eq!(read.iter().map(|(_, read)| read.is_ok()).collect::<Vec<_>>(), [true, true, false, false, false]);
    commit(6).await;
    let pruned = prune(&lab.store, &container(), keep(3), Epoch(1)).await.unwrap();
    assert_eq!(pruned.snapshots, [id("e1-1"), id("e1-2"), id("e1-3")]);
}
