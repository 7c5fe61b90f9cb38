//! The agent: there, and able to run in any image.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use super::Check;

const HEAD: u64 = 64 << 10;
const PT_INTERP: u32 = 3;

#[derive(Debug, PartialEq, Eq)]
enum Elf {
    Static,
    /// Asks for a dynamic loader, which an image need not have.
    Dynamic,
}

pub(super) fn check(agent: &Path) -> Check {
    const ID: (&str, &str) = ("agent", "ha-agent");
    let install = "build it with scripts/build and set `agent`";
    let place = agent.display();
    let (mode, head) = match read(agent) {
        Ok(read) => read,
        Err(error) => return Check::fail(ID.0, ID.1, format!("{place}: {error}"), install),
    };
    if mode & 0o111 == 0 {
        return Check::fail(ID.0, ID.1, format!("{place} is not executable"), format!("chmod 755 {place}"));
    }
    match kind(&head) {
        Some(Elf::Static) => Check::ok(ID.0, ID.1, format!("{place}, static")),
        Some(Elf::Dynamic) => {
            Check::fail(ID.0, ID.1, format!("{place} is not static: it would not start in every image"), install)
        }
        None => Check::fail(ID.0, ID.1, format!("{place} is not a 64-bit executable of this machine"), install),
    }
}

fn read(path: &Path) -> io::Result<(u32, Vec<u8>)> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("is not a file"));
    }
    let mut head = Vec::new();
    file.take(HEAD).read_to_end(&mut head)?;
    Ok((metadata.permissions().mode(), head))
}

/// What the start of a file says it is; `None` for anything but an executable of this machine.
fn kind(head: &[u8]) -> Option<Elf> {
    let u16_at = |at: usize| Some(u16::from_le_bytes(head.get(at..at.checked_add(2)?)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_le_bytes(head.get(at..at.checked_add(4)?)?.try_into().ok()?));
    let u64_at = |at: usize| Some(u64::from_le_bytes(head.get(at..at.checked_add(8)?)?.try_into().ok()?));
    let machine = if cfg!(target_arch = "aarch64") { 183 } else { 62 };
    // 64-bit, little-endian, executable or position-independent.
    if head.get(..6)? != b"\x7fELF\x02\x01" || !matches!(u16_at(16)?, 2 | 3) || u16_at(18)? != machine {
        return None;
    }
    let (offset, size, count) =
        (usize::try_from(u64_at(32)?).ok()?, usize::from(u16_at(54)?), usize::from(u16_at(56)?));
    for index in 0..count {
        if u32_at(offset.checked_add(index.checked_mul(size)?)?)? == PT_INTERP {
            return Some(Elf::Dynamic);
        }
    }
    Some(Elf::Static)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn this_test_is_dynamic_until_it_has_no_loader() {
        let (_, mut head) = read(&std::env::current_exe().unwrap()).unwrap();
        if kind(&head) == Some(Elf::Static) {
            return println!("SKIPPED this_test_is_dynamic_until_it_has_no_loader: the tests are linked statically");
        }
        assert_eq!(kind(&head), Some(Elf::Dynamic));
        // Its program headers follow the ELF header, as every linker puts them; PT_NULL in place of PT_INTERP.
        for at in (64..1024).step_by(56) {
            if head[at..at + 4] == PT_INTERP.to_le_bytes() {
                head[at] = 0;
            }
        }
        assert_eq!(kind(&head), Some(Elf::Static));
        assert_eq!(kind(&head[..70]), None, "cut short");
    }

    #[test]
    fn missing_and_foreign_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ha-agent");
        assert!(check(&path).found.contains("No such file"));
        std::fs::write(&path, "#!/bin/sh\n").unwrap();
        assert!(check(&path).found.contains("not executable"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(check(&path).found.contains("not a 64-bit executable"));
    }

    proptest! {
        #[test]
        fn any_header_is_answered(tail in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut head = b"\x7fELF\x02\x01".to_vec();
            head.extend(tail);
            let _ = kind(&head);
        }
    }
}
