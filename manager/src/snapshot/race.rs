//! The promises of `docs/ownership.md` on a real directory: several nodes that take over from each other and commit all
//! the while, with the real claims, uploads and prunings.

use std::{
    collections::BTreeMap,
    fs,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use super::{
    tests::{Lab, QUIET, container, keep, meta},
    *,
};
use crate::{
    ownership::{self, Claim, Claimant, Owner},
    spec::{Epoch, SnapshotId},
    store::Store,
};

const NODES: usize = 4;

#[derive(Default)]
struct Log {
    /// From which base each epoch started.
    started: BTreeMap<Epoch, Option<SnapshotId>>,
    acknowledged: Vec<SnapshotId>,
    deposed_while_committing: usize,
}

struct Node {
    store: Store,
    queue: Queue,
    source: PartSource,
    log: Arc<Mutex<Log>>,
    number: usize,
}

impl Node {
    async fn live(&self, until: Instant) {
        let mut round = self.number;
        while Instant::now() < until {
            round += 1;
            let expected = ownership::current(&self.store, &container()).await.unwrap().map(|o| o.epoch);
            let claimant = Claimant::new(format!("n{}", self.number).parse().unwrap());
            let claim = ownership::claim(&self.store, &container(), expected, &claimant).await.unwrap();
            if let Claim::Won(owner) = claim {
                self.own(&owner, until).await;
            }
            tokio::time::sleep(Duration::from_millis(150 * (1 + round % 5) as u64)).await;
        }
    }

    /// Starts, then commits until somebody takes over.
    async fn own(&self, owner: &Owner, until: Instant) {
        let Ok(base) = ownership::take_base(&self.store, &container(), owner).await else { return };
        self.log.lock().unwrap().started.insert(owner.epoch, base);
        for seq in 1.. {
            let id = SnapshotId { epoch: owner.epoch, seq };
            let draft =
                pack(&self.queue, meta(id), std::slice::from_ref(&self.source), &PackOptions::default()).unwrap();
            let result = upload(&self.store, &draft, QUIET).await;
            self.queue.remove(id).unwrap();
            match result {
                Ok(_) => self.log.lock().unwrap().acknowledged.push(id),
                Err(error) => {
                    assert!(error.is_deposed(), "{error:?}");
                    self.log.lock().unwrap().deposed_while_committing += 1;
                    return;
                }
            }
            if let Err(error) = prune(&self.store, &container(), keep(2), owner.epoch).await {
                assert!(error.is_deposed(), "{error:?}");
                return;
            }
            if Instant::now() > until {
                return;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nodes_that_take_over_from_each_other_lose_nothing_and_bring_nothing_back() {
    let lab = Lab::new().await;
    let log = Arc::new(Mutex::new(Log::default()));
    let dir = lab.path("tree");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("core-1.img"), b"core").unwrap();
    let until = Instant::now() + Duration::from_secs(4);
    let nodes: Vec<_> = (0..NODES)
        .map(|number| {
            let node = Node {
                store: lab.store.clone(),
                queue: Queue::open(&lab.path(&format!("queue-{number}"))).unwrap(),
                source: PartSource { name: PartName::Memory, dir: dir.clone() },
                log: Arc::clone(&log),
                number,
            };
            tokio::spawn(async move { node.live(until).await })
        })
        .collect();
    for node in nodes {
        node.await.unwrap();
    }
    let log = std::mem::take(&mut *log.lock().unwrap());
    for (epoch, base) in &log.started {
        let lost = log.acknowledged.iter().filter(|id| id.epoch < *epoch && Some(**id) > *base);
        assert_eq!(lost.collect::<Vec<_>>(), Vec::<&SnapshotId>::new(), "lost when {epoch} started from {base:?}");
        if let Some(base) = base {
            for (between, settled) in log.started.range(base.epoch.next()..*epoch) {
                assert!(Some(*base) <= *settled, "{base} restored under {epoch}, after {between} had left it out");
            }
        }
    }
    // What is restorable in the end is whole.
    let newest = list(&lab.store, &container()).await.unwrap()[0];
    assert!(Some(&newest) >= log.acknowledged.iter().max());
    let manifest = load_manifest(&lab.store, &container(), newest).await.unwrap();
    verify(&lab.store, &manifest, QUIET).await.unwrap();
    let (started, committed) = (log.started.len(), log.acknowledged.len());
    println!("{started} take-overs, {committed} commits, {} deposed while committing", log.deposed_while_committing);
    assert!(started > 5 && committed > 5 && log.deposed_while_committing > 0, "the nodes hardly met");
}
