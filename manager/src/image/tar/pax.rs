//! Extended headers (POSIX.1-2001 pax): `LENGTH KEY=VALUE\n` records. Values may hold any byte, newlines included, so
//! records are cut by their length and never by looking for line ends.

use std::collections::BTreeMap;

use super::entry::Mtime;

const XATTR: &[u8] = b"SCHILY.xattr.";
const XATTR_BSD: &[u8] = b"LIBARCHIVE.xattr.";

/// What the records say that a plain header cannot.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Pax {
    pub path: Option<Vec<u8>>,
    pub linkpath: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub mtime: Option<Mtime>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub sparse: bool,
}

pub fn parse(mut rest: &[u8]) -> Result<Pax, &'static str> {
    let mut pax = Pax::default();
    let mut bsd = BTreeMap::new();
    while !rest.is_empty() {
        let space = rest.iter().take(21).position(|b| *b == b' ').ok_or("an extended record has no length")?;
        let length =
            number(&rest[..space]).and_then(|n| usize::try_from(n).ok()).ok_or("an extended record's length")?;
        if length <= space + 1 || length > rest.len() || rest[length - 1] != b'\n' {
            return Err("an extended record's length is wrong");
        }
        let record = &rest[space + 1..length - 1];
        rest = &rest[length..];
        let equals = record.iter().position(|b| *b == b'=').ok_or("an extended record has no '='")?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        match key {
            b"path" => pax.path = Some(value.to_vec()),
            b"linkpath" => pax.linkpath = Some(value.to_vec()),
            b"size" => pax.size = Some(number(value).ok_or("the extended size is not a number")?),
            b"uid" => pax.uid = Some(id(value).ok_or("the extended user ID is not one")?),
            b"gid" => pax.gid = Some(id(value).ok_or("the extended group ID is not one")?),
            b"mtime" => pax.mtime = Some(mtime(value).ok_or("the extended modification time is not one")?),
            _ if key.starts_with(b"GNU.sparse.") => pax.sparse = true,
            _ if key.starts_with(XATTR) => {
                pax.xattrs.insert(xattr_name(&key[XATTR.len()..])?, value.to_vec());
            }
            _ if key.starts_with(XATTR_BSD) => {
                let name = percent_decoded(&key[XATTR_BSD.len()..]).ok_or("an attribute's name is badly encoded")?;
                use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
                let text: Vec<u8> = value.iter().copied().filter(|b| *b != b'=').collect();
                let value = STANDARD_NO_PAD.decode(text).map_err(|_| "an attribute's value is badly encoded")?;
                bsd.insert(xattr_name(&name)?, value);
            }
            // Access and change times, names of owners, comments and vendors' own records change nothing that is kept.
            _ => {}
        }
    }
    for (name, value) in bsd {
        pax.xattrs.entry(name).or_insert(value);
    }
    Ok(pax)
}

fn xattr_name(name: &[u8]) -> Result<Vec<u8>, &'static str> {
    if name.is_empty() || name.len() > 255 || name.contains(&0) {
        return Err("an attribute's name is empty, too long, or has a NUL byte");
    }
    Ok(name.to_vec())
}

fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn id(digits: &[u8]) -> Option<u32> {
    // 2^32 - 1 means "unchanged" to chown.
    number(digits).and_then(|n| u32::try_from(n).ok()).filter(|n| *n != u32::MAX)
}

fn mtime(text: &[u8]) -> Option<Mtime> {
    let (negative, text) = text.strip_prefix(b"-").map_or((false, text), |rest| (true, rest));
    let dot = text.iter().position(|b| *b == b'.');
    let (whole, fraction) = dot.map_or((text, &b""[..]), |at| (&text[..at], &text[at + 1..]));
    let sec = i64::try_from(number(whole)?).ok()?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nsec = fraction.iter().chain([b'0'; 9].iter()).take(9).fold(0, |n, digit| n * 10 + u32::from(digit - b'0'));
    match (negative, nsec) {
        (false, _) => Some(Mtime { sec, nsec }),
        (true, 0) => Some(Mtime { sec: -sec, nsec }),
        // -1.25 is the second -2 and 0.75 of the next.
        (true, _) => Some(Mtime { sec: -sec - 1, nsec: 1_000_000_000 - nsec }),
    }
}

fn percent_decoded(name: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((first, tail)) = rest.split_first() {
        if *first == b'%' {
            out.push(u8::from_str_radix(std::str::from_utf8(tail.get(..2)?).ok()?, 16).ok()?);
            rest = &tail[2..];
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    Some(out)
}

/// One record; its length counts its own digits.
pub fn push_record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// An attribute in the common form, or, when its name has a `=` (which ends a key), in the one that encodes names.
pub fn push_xattr(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    if !name.contains(&b'=') {
        return push_record(out, &[XATTR, name].concat(), value);
    }
    use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
    let encoded: Vec<u8> = name.iter().flat_map(|b| format!("%{b:02X}").into_bytes()).collect();
    push_record(out, &[XATTR_BSD, &encoded[..]].concat(), STANDARD_NO_PAD.encode(value).as_bytes());
}

/// The `mtime` record, in the form [`parse`] reads.
pub fn push_mtime(out: &mut Vec<u8>, at: Mtime) {
    let text = if at.sec >= 0 {
        format!("{}.{:09}", at.sec, at.nsec)
    } else if at.nsec == 0 {
        format!("{}", at.sec)
    } else {
        format!("-{}.{:09}", (at.sec + 1).unsigned_abs(), 1_000_000_000 - at.nsec)
    };
    push_record(out, b"mtime", text.as_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bsd_attributes_are_read_when_the_common_form_is_missing() {
        let mut block = Vec::new();
        push_record(&mut block, b"LIBARCHIVE.xattr.user.a%20b", b"AQIK");
        push_record(&mut block, b"LIBARCHIVE.xattr.user.c", b"AQ");
        push_record(&mut block, b"SCHILY.xattr.user.c", b"x");
        let pax = parse(&block).unwrap();
        assert_eq!(pax.xattrs[&b"user.a b"[..]], [1, 2, 10]);
        assert_eq!(pax.xattrs[&b"user.c"[..]], b"x");
    }

    #[test]
    fn broken_records_are_refused() {
        for bad in [
            "x",
            "5 a=b\n",
            "99 a=b\n",
            "6 ab\n\n",
            "6 a=bc",
            "0 a=b\n",
            "9999999999999999999999 a=b\n",
            "12 size=-11\n",
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad:?} was accepted");
        }
    }

    proptest! {
        #[test]
        fn records_round_trip(
            value in proptest::collection::vec(any::<u8>(), 0..300),
            sec in -10_000_000_000i64..10_000_000_000,
            nsec in 0u32..1_000_000_000,
        ) {
            let mut block = Vec::new();
            push_xattr(&mut block, b"user.x", &value);
            push_mtime(&mut block, Mtime { sec, nsec });
            let pax = parse(&block).unwrap();
            prop_assert_eq!(&pax.xattrs[&b"user.x"[..]], &value);
            prop_assert_eq!(pax.mtime, Some(Mtime { sec, nsec }));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
