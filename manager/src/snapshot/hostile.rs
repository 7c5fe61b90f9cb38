//! Bytes that somebody else made: they are refused, never followed.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use proptest::prelude::*;

use super::{
    tests::{id, meta},
    *,
};
use crate::spec::{Epoch, SnapshotId};

/// Tries to unpack hand-made tar bytes.
fn unpack(bytes: &[u8], entries: u64, logical_bytes: u64, target: &Path) -> Result<(), SnapshotError> {
    fs::create_dir(target).unwrap();
    let bounds = tree_read::Bounds { entries, logical_bytes };
    tree_read::read_tree("the test", bytes, target, bounds)
}

/// Name, kind, link target, content.
type Spec<'a> = (&'a str, tar::EntryType, &'a str, &'a [u8]);

fn tar_with(entries: &[Spec<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind, link, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(nix::unistd::geteuid().as_raw().into());
        header.set_gid(nix::unistd::getegid().as_raw().into());
        if !link.is_empty() {
            header.set_link_name_literal(link).unwrap();
        }
        header.set_cksum();
        builder.append(&header, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn a_hostile_stream_stays_inside() {
    use tar::EntryType::{Directory, Link, Regular, Symlink};
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("victim"), b"safe").unwrap();
    let victim = dir.path().join("victim").display().to_string();
    let out = dir.path().display().to_string();
    let cases: Vec<Vec<Spec<'_>>> = vec![
        vec![("../victim", Regular, "", b"owned")],
        vec![("a/../../victim", Regular, "", b"owned")],
        vec![(&victim, Regular, "", b"owned")],
        vec![("l", Symlink, &out, b""), ("l/victim", Regular, "", b"owned")],
        vec![("l", Symlink, "..", b""), ("l/victim", Regular, "", b"owned")],
        vec![("l", Symlink, &victim, b""), ("l", Regular, "", b"owned")],
        vec![("h", Link, &victim, b"")],
        vec![("h", Link, "../victim", b"")],
        vec![("l", Symlink, "..", b""), ("h", Link, "l/victim", b"")],
        vec![("d", Directory, "", b""), ("d", Symlink, "..", b""), ("d/victim", Regular, "", b"owned")],
        vec![("f", Regular, "", b""), ("f/x", Regular, "", b"owned")],
        vec![("missing/x", Regular, "", b"owned")],
        vec![("", Regular, "", b"owned")],
        vec![(".", Symlink, "..", b"")],
        vec![("x", tar::EntryType::new(b'Z'), "", b"")],
    ];
    for (n, case) in cases.iter().enumerate() {
        let bytes: usize = case.iter().map(|c| c.3.len()).sum();
        let target = dir.path().join(format!("t{n}"));
        let error = unpack(&tar_with(case), case.len() as u64, bytes as u64, &target).unwrap_err();
        assert_eq!(fs::read(dir.path().join("victim")).unwrap(), b"safe", "case {n}");
        assert_eq!(fs::metadata(dir.path().join("victim")).unwrap().nlink(), 1, "case {n}");
        assert!(!error.to_string().is_empty());
    }
    // The declared bounds hold in both directions.
    let stream = tar_with(&[("a", Regular, "", b"12345"), ("b", Regular, "", b"")]);
    unpack(&stream, 2, 5, &dir.path().join("good")).unwrap();
    for (n, (entries, bytes)) in [(1, 5), (2, 4), (3, 5), (2, 6)].into_iter().enumerate() {
        assert!(unpack(&stream, entries, bytes, &dir.path().join(format!("b{n}"))).is_err(), "{entries} {bytes}");
    }
}

/// A sparse file of `real` bytes whose map has these pieces (at most four), with its data.
fn sparse(real: u64, pieces: &[(u64, u64)], data: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..1].copy_from_slice(b"f");
    header.set_entry_type(tar::EntryType::GNUSparse);
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    header.set_uid(nix::unistd::geteuid().as_raw().into());
    header.set_gid(nix::unistd::getegid().as_raw().into());
    let gnu = header.as_gnu_mut().unwrap();
    let number = |field: &mut [u8; 12], n: u64| {
        field.fill(0);
        field[0] = 0x80;
        field[4..].copy_from_slice(&n.to_be_bytes());
    };
    number(&mut gnu.realsize, real);
    for (slot, (offset, len)) in gnu.sparse.iter_mut().zip(pieces) {
        number(&mut slot.offset, *offset);
        number(&mut slot.numbytes, *len);
    }
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(512) + 1024, 0);
    bytes
}

#[test]
fn a_sparse_file_costs_its_data_and_not_its_size() {
    let dir = tempfile::tempdir().unwrap();
    // A stream that takes the reader's word would be read for years.
    let real = 1_u64 << 42;
    let stream = sparse(real, &[(512, 512), (real - 3, 3), (real, 0)], &[&[7_u8; 512][..], b"end"].concat());
    unpack(&stream, 1, real, &dir.path().join("good")).unwrap();
    let file = fs::File::open(dir.path().join("good/f")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), real);
    let at = |offset| {
        let mut byte = [0];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, offset).unwrap();
        byte[0]
    };
    assert_eq!(
        [at(511), at(512), at(1023), at(1024), at(real - 4), at(real - 3), at(real - 1)],
        [0, 7, 7, 0, 0, b'e', b'd']
    );
    for (n, (real, pieces)) in [
        (2000, vec![(512, 512), (0, 3)]),
        (2000, vec![(512, 512), (1023, 3)]),
        (1000, vec![(0, 512), (998, 3)]),
        (2000, vec![(0, 512)]),
        (2000, vec![(0, 512), (512, 4)]),
        (u64::MAX, vec![(0, 512), (u64::MAX - 2, 3)]),
        (u64::MAX, vec![(0, 512), (512, 3)]),
    ]
    .into_iter()
    .enumerate()
    {
        let stream = sparse(real, &pieces, &[&[7_u8; 512][..], b"end"].concat());
        let error = unpack(&stream, 1, real, &dir.path().join(format!("bad{n}"))).unwrap_err();
        assert!(error.to_string().contains("sparse"), "{n}: {error}");
    }
}

/// A stream that never ends, and counts what was taken of it.
struct Endless<'a> {
    head: &'a [u8],
    taken: u64,
}

impl std::io::Read for Endless<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        assert!(self.taken < 64 << 20, "it is read without end");
        let len = if self.head.is_empty() {
            buffer.fill(b'1');
            buffer.len()
        } else {
            self.head.read(buffer)?
        };
        self.taken += len as u64;
        Ok(len)
    }
}

#[test]
fn an_extended_header_is_not_believed() {
    use tar::EntryType;
    let dir = tempfile::tempdir().unwrap();
    let kinds = [EntryType::XHeader, EntryType::XGlobalHeader, EntryType::GNULongName, EntryType::GNULongLink];
    for (n, kind) in kinds.into_iter().enumerate() {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(1 << 40);
        header.set_cksum();
        let target = dir.path().join(n.to_string());
        fs::create_dir(&target).unwrap();
        let bounds = tree_read::Bounds { entries: 1, logical_bytes: 0 };
        let stream = Endless { head: header.as_bytes(), taken: 0 };
        let error = tree_read::read_tree("the test", stream, &target, bounds).unwrap_err();
        assert!(error.to_string().contains("over 1 MiB"), "{error}");
    }
    // A size that only the extended header states.
    let stream = tar_with(&[("p", EntryType::XHeader, "", b"12 size=512\n"), ("f", EntryType::Regular, "", b"")]);
    let error = unpack(&stream, 1, 0, &dir.path().join("size")).unwrap_err();
    assert!(error.to_string().contains("states a size"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_manifest_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(Manifest::decode("x", &bytes).is_err());
    }

    /// With a valid frame around it the body is reached.
    #[test]
    fn an_arbitrary_body_never_panics(body in "\\PC{0,200}", mutate in any::<(prop::sample::Index, u8)>(), own in any::<bool>()) {
        let mut body = body.into_bytes();
        if own {
            let manifest = Manifest { meta: meta(id("e1-1")), parts: vec![] };
            body = serde_json::to_vec(&manifest).unwrap();
            let at = mutate.0.index(body.len());
            body[at] = mutate.1;
        }
        let mut bytes = b"HASNAP\r\n\x01\0\0\0".to_vec();
        bytes.extend((body.len() as u32).to_le_bytes());
        bytes.extend(&body);
        let hash = blake3::hash(&bytes);
        bytes.extend(hash.as_bytes());
        let _ = Manifest::decode("x", &bytes);
    }

    #[test]
    fn arbitrary_tar_bytes_never_panic_or_escape(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        repair in any::<bool>(),
    ) {
        use tar::EntryType::{Directory, Link, Regular, Symlink};
        let dir = tempfile::tempdir().unwrap();
        let mut stream = tar_with(&[
            ("d", Directory, "", b""), ("d/f", Regular, "", b"12345"), ("l", Symlink, "d", b""), ("h", Link, "d/f", b""),
        ]);
        for (at, value) in flips {
            let at = at.index(stream.len());
            stream[at] = value;
            if repair {
                // With the header's checksum right again the change is reached.
                let start = at / 512 * 512;
                let mut header = tar::Header::new_old();
                header.as_mut_bytes().copy_from_slice(&stream[start..start + 512]);
                header.set_cksum();
                stream[start..start + 512].copy_from_slice(header.as_bytes());
            }
        }
        let _ = unpack(&stream, 4, 5, &dir.path().join("t"));
        prop_assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn manifests_round_trip(seq in any::<u64>(), epoch in any::<u64>(), lens in proptest::collection::vec(1_u32..(64 << 20), 0..20)) {
        let chunks = lens.iter().map(|len| Chunk {
            len: *len, raw_len: *len, blake3: Digest(blake3::hash(&len.to_le_bytes())), compression: Compression::None,
        }).collect();
        let parts = vec![Part { name: PartName::Upper, entries: 1, logical_bytes: seq, chunks }];
        let manifest = Manifest { meta: meta(SnapshotId { epoch: Epoch(epoch), seq }), parts };
        prop_assert_eq!(Manifest::decode("x", &manifest.encode().unwrap()).unwrap(), manifest);
    }
}
