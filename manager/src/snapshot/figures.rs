//! Where the time of a checkpoint's and a fail-over's way through the store goes.

use super::{
    tests::{Lab, QUIET, container, meta},
    *,
};
use crate::{
    ownership::{self, Claim, Claimant},
    spec::{Epoch, SnapshotId},
};

/// Not a test of speed: it prints where the time of the fail-over path goes. `cargo test -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures"]
async fn figures() {
    let lab = Lab::new().await;
    for epoch in 0..4 {
        let expected = (epoch > 0).then_some(Epoch(epoch));
        let claimant = Claimant::new("n1".parse().unwrap());
        let start = std::time::Instant::now();
        let claim = ownership::claim(&lab.store, &container(), expected, &claimant).await.unwrap();
        let claimed = start.elapsed();
        let Claim::Won(owner) = claim else { panic!("{claim:?}") };
        ownership::take_base(&lab.store, &container(), &owner).await.unwrap();
        println!("claim {claimed:?}, with base {:?}", start.elapsed());
    }
    for mib in [4, 26, 64, 256] {
        let lab = Lab::new().await;
        lab.own(None).await;
        let dir = lab.tree("memory", mib << 20);
        let sources = [PartSource { name: PartName::Memory, dir }];
        for round in 1..=3 {
            let start = std::time::Instant::now();
            let draft =
                pack(&lab.queue, meta(SnapshotId { epoch: Epoch(1), seq: round }), &sources, &PackOptions::default())
                    .unwrap();
            let packed = start.elapsed();
            let start = std::time::Instant::now();
            let manifest = upload(&lab.store, &draft, QUIET).await.unwrap();
            let uploaded = start.elapsed();
            let start = std::time::Instant::now();
            fetch(&lab.store, &manifest, &PartName::Memory, &lab.path(&format!("back-{round}")), QUIET).await.unwrap();
            let fetched = start.elapsed();
            println!(
                "{mib:4} MiB → {:4} KiB: pack {packed:?}, upload {uploaded:?}, fetch {fetched:?}",
                manifest.stored_bytes() >> 10
            );
        }
    }
}
