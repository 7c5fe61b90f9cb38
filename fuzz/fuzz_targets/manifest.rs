//! What a store holds: a snapshot's manifest, and the chunks it describes.
//!
//! The first byte says which. A checksum keeps a fuzzer out better than any check, so it is made to fit where the rest is to
//! be reached.
#![no_main]

use bytes::Bytes;
use ha_manager::{
    fuzzing::{open_chunk, seal_chunk},
    snapshot::{Chunk, Compression, Digest, Manifest, VERSION},
};
use libfuzzer_sys::fuzz_target;

const MAGIC: &[u8] = b"HASNAP\r\n";

fuzz_target!(|data: &[u8]| {
    let Some((which, data)) = data.split_first() else { return };
    match which % 4 {
        0 => manifest(data),
        1 => manifest(&sealed(data)),
        2 => chunk(data),
        _ => packed(data),
    }
});

/// A manifest with this body and a fitting head and checksum.
fn sealed(body: &[u8]) -> Vec<u8> {
    let mut bytes = [MAGIC, &VERSION.to_le_bytes()[..], &(body.len() as u32).to_le_bytes()[..], body].concat();
    let hash = Digest(blake3::hash(&bytes));
    bytes.extend_from_slice(hash.0.as_bytes());
    bytes
}

fn manifest(bytes: &[u8]) {
    match Manifest::decode("the manifest", bytes) {
        Ok(manifest) => {
            let written = manifest.encode().expect("what was read can be written");
            let again = Manifest::decode("the manifest", &written).expect("what was written can be read");
            assert_eq!(again, manifest);
            assert_eq!(again.encode().unwrap(), written);
            assert!(manifest.parts.iter().map(|part| part.stored_bytes()).sum::<u64>() == manifest.stored_bytes());
        }
        Err(error) => assert!(ha_manager::chain(&error).len() < 4096, "an error without end"),
    }
}

/// Bytes of a chunk with a true checksum and any description.
fn chunk(data: &[u8]) {
    let Some((head, stored)) = data.split_first_chunk::<4>() else { return };
    let [a, b, c, how] = *head;
    let raw_len = u32::from_le_bytes([a, b, c, 0]);
    let compression = if how % 2 == 0 { Compression::Zstd } else { Compression::None };
    let chunk = Chunk { len: stored.len() as u32, raw_len, blake3: Digest(blake3::hash(stored)), compression };
    if let Ok(raw) = open_chunk(Bytes::copy_from_slice(stored), &chunk) {
        assert!(compression == Compression::None || raw.len() == raw_len as usize);
    }
    let others = blake3::hash(&[stored, b"!"].concat());
    let other = Chunk { blake3: Digest(others), ..chunk };
    assert!(open_chunk(Bytes::copy_from_slice(stored), &other).is_err(), "used although its checksum is another");
}

fn packed(raw: &[u8]) {
    let (stored, chunk) = seal_chunk(raw).expect("anything can be packed");
    assert_eq!(open_chunk(stored.into(), &chunk).expect("what was packed can be opened"), raw);
}
