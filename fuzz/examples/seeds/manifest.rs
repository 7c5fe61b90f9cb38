//! A manifest with everything in it, and chunks as they are packed.

use chrono::DateTime;
use ha_manager::{
    fuzzing::seal_chunk,
    snapshot::{
        HexBytes, Manifest, NetworkIdentity, Part, PartName, SnapshotHealth, SnapshotKind, SnapshotMeta, Versions,
    },
    spec::{ImageConfig, ImageRecord, Layer},
};

pub fn seeds() -> Vec<Vec<u8>> {
    let raw = b"ustar and memory, again and again ".repeat(30);
    let (stored, chunk) = seal_chunk(&raw).unwrap();
    let (plain, bare) = seal_chunk(&raw[..20]).unwrap();
    let part = |name| Part { name, entries: 3, logical_bytes: 1040, chunks: vec![chunk.clone(), bare.clone()] };
    let layer = Layer { digest: "ab".repeat(32), size_bytes: 77 };
    let image = ImageRecord {
        reference: "registry.example/x:1".to_owned(),
        config: ImageConfig {
            cmd: vec!["/bin/x".to_owned()],
            env: vec!["A=1".to_owned()],
            stop_signal: Some(15),
            ..ImageConfig::default()
        },
        layers: vec![layer],
    };
    let meta = SnapshotMeta {
        id: "e3-17".parse().unwrap(),
        container: "redis".parse().unwrap(),
        node: "n1".parse().unwrap(),
        frozen_at: DateTime::from_timestamp(1_700_000_000, 123_000_000).unwrap(),
        kind: SnapshotKind::Manual,
        health: SnapshotHealth::Healthy,
        frozen_ms: 9.53,
        network: NetworkIdentity {
            ip: "10.77.1.10".parse().unwrap(),
            prefix_len: 16,
            mac: "02:00:0a:4d:01:0a".parse().unwrap(),
            gateway: Some("10.77.0.1".parse().unwrap()),
        },
        app_generation: 2,
        image,
        agent_digest: Some("cd".repeat(32)),
        agent_incarnation: HexBytes(vec![7; 16]),
        versions: Versions { runtime: "1.1.5".to_owned(), criu: "4.2.1".to_owned(), kernel: "6.12".to_owned() },
        cpuinfo: Some(HexBytes(vec![0; 8])),
        previous: Some("e3-16".parse().unwrap()),
    };
    let parts = vec![part(PartName::Memory), part(PartName::Upper), part(PartName::volume("data").unwrap())];
    let bare = Manifest { meta: SnapshotMeta { cpuinfo: None, previous: None, ..meta.clone() }, parts: Vec::new() };
    let manifests = [Manifest { meta, parts }, bare];
    let mut seeds: Vec<Vec<u8>> = manifests.iter().map(|manifest| with(&[0], &manifest.encode().unwrap())).collect();
    seeds.extend(manifests.iter().map(|manifest| with(&[1], &serde_json::to_vec(manifest).unwrap())));
    let [low, high, ..] = (raw.len() as u32).to_le_bytes();
    seeds.push(with(&[2, low, high, 0, 0], &stored));
    seeds.push(with(&[2, 20, 0, 0, 1], &plain));
    seeds.push(with(&[3], &raw));
    seeds
}

fn with(head: &[u8], bytes: &[u8]) -> Vec<u8> {
    [head, bytes].concat()
}
