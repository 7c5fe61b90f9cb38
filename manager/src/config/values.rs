//! What a single value has to be, each as a function from the TOML value to the typed one or to the reason.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::Range,
    path::{Component, PathBuf},
    str::FromStr,
    time::Duration,
};

use toml::de::DeValue;
use url::Url;

use super::Cidr;
use crate::spec::{parse_bytes, parse_duration};

pub(super) fn text(value: &DeValue<'_>) -> Result<String, String> {
    match value.as_str() {
        Some("") => Err("is empty; leave the key out for its default".into()),
        Some(text) if text.contains('\0') => Err("contains a NUL character".into()),
        Some(text) => Ok(text.to_owned()),
        None => Err(format!("expected a string in quotes, found {}", kind(value))),
    }
}

pub(super) fn parsed<T: FromStr<Err: ToString>>(value: &DeValue<'_>) -> Result<T, String> {
    text(value)?.parse().map_err(|error: T::Err| error.to_string())
}

pub(super) fn duration(value: &DeValue<'_>) -> Result<Duration, String> {
    let Some(text) = value.as_str() else {
        return Err(format!("expected a duration in quotes with its unit, e.g. \"250ms\", found {}", kind(value)));
    };
    match parse_duration(text).map_err(|error| error.to_string())? {
        Duration::ZERO => Err("must be longer than 0".into()),
        duration => Ok(duration),
    }
}

pub(super) fn size(value: &DeValue<'_>) -> Result<u64, String> {
    let Some(text) = value.as_str() else {
        return Err(format!("expected a size in quotes with its unit, e.g. \"64MiB\", found {}", kind(value)));
    };
    match parse_bytes(text).map_err(|error| error.to_string())? {
        0 => Err("must be larger than 0".into()),
        bytes => Ok(bytes),
    }
}

pub(super) fn whole_number(value: &DeValue<'_>, allowed: Range<i64>) -> Result<i64, String> {
    let bounds = format!("expected a whole number from {} to {}", allowed.start, allowed.end - 1);
    let Some(number) = value.as_integer() else {
        return Err(format!("{bounds}, found {}", kind(value)));
    };
    i64::from_str_radix(number.as_str(), number.radix())
        .ok()
        .filter(|number| allowed.contains(number))
        .ok_or_else(|| format!("{bounds}, found {number}"))
}

pub(super) fn boolean(value: &DeValue<'_>) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| format!("expected true or false, found {}", kind(value)))
}

pub(super) fn list_of_text(value: &DeValue<'_>) -> Result<Vec<String>, String> {
    let Some(array) = value.as_array() else {
        return Err(format!("expected a list of strings, e.g. [\"a\", \"b\"], found {}", kind(value)));
    };
    array.iter().map(|item| text(item.get_ref())).collect()
}

/// One of a few words.
pub(super) fn one_of<T: Copy>(value: &DeValue<'_>, words: &[(&'static str, T)]) -> Result<T, String> {
    let text = text(value)?;
    words.iter().find(|(word, _)| *word == text).map(|(_, meant)| *meant).ok_or_else(|| {
        let allowed: Vec<_> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        let shown: String = text.chars().take(40).collect();
        format!("{shown:?} is none of {}", allowed.join(", "))
    })
}

fn kind(value: &DeValue<'_>) -> String {
    match value.type_str() {
        kind @ ("integer" | "array") => format!("an {kind}"),
        kind => format!("a {kind}"),
    }
}

pub(super) fn absolute(value: &DeValue<'_>) -> Result<PathBuf, String> {
    let path = PathBuf::from(text(value)?);
    let parts = path.components().collect::<Vec<_>>();
    if !path.is_absolute() || parts.contains(&Component::ParentDir) {
        return Err(format!("{path:?} is not an absolute path without `..`"));
    }
    if parts.len() == 1 {
        return Err("is the root directory; choose a directory of its own".into());
    }
    Ok(path)
}

/// A name looked up in `PATH`, or an absolute path.
pub(super) fn program(value: &DeValue<'_>) -> Result<String, String> {
    let name = text(value)?;
    if name.contains('/') && !name.starts_with('/') || name.starts_with('-') || name.contains(char::is_whitespace) {
        return Err(format!("{name:?} is neither a program's name nor its absolute path"));
    }
    Ok(name)
}

pub(super) fn link_name(value: &DeValue<'_>) -> Result<String, String> {
    let name = text(value)?;
    let printable = name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%'));
    if name.len() > 15 || !printable || name == "." || name == ".." {
        return Err(format!(
            "{name:?} is not the name of a link: at most 15 characters, without '/', ':', '%' and spaces"
        ));
    }
    Ok(name)
}

pub(super) fn pool(value: &DeValue<'_>) -> Result<Cidr, String> {
    let pool: Cidr = parsed(value)?;
    if !(8..=30).contains(&pool.prefix) {
        return Err(format!("{pool} has a prefix length outside 8 to 30"));
    }
    if pool.addr != pool.network() {
        return Err(format!("{pool} has bits beyond its prefix; did you mean \"{}/{}\"?", pool.network(), pool.prefix));
    }
    Ok(pool)
}

pub(super) fn ipv4(value: &DeValue<'_>) -> Result<Ipv4Addr, String> {
    let text = text(value)?;
    text.parse().map_err(|_| format!("{text:?} is not an IPv4 address, e.g. \"10.77.0.1\""))
}

pub(super) fn listen(value: &DeValue<'_>) -> Result<SocketAddr, String> {
    let text = text(value)?;
    let address: SocketAddr =
        text.parse().map_err(|_| format!("{text:?} is not an address with a port, e.g. \"0.0.0.0:7420\""))?;
    if address.port() == 0 {
        Err("port 0 is chosen anew at each start; peers need a fixed one".into())
    } else {
        Ok(address)
    }
}

pub(super) fn host_port(text: String) -> Result<String, String> {
    let refused = || format!("{text:?} is not of the form host:port, e.g. \"10.0.0.2:7420\"");
    let (host, port) = text.rsplit_once(':').ok_or_else(refused)?;
    let numeric = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let host_ok = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(v6) => v6.parse::<Ipv6Addr>().is_ok(),
        None => {
            let dots_and_digits = host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
            let name = host.len() <= 253
                && !host.is_empty()
                && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'));
            if dots_and_digits { host.parse::<Ipv4Addr>().is_ok_and(|ip| !ip.is_unspecified()) } else { name }
        }
    };
    if !host_ok || !numeric || !port.parse::<u16>().is_ok_and(|port| port > 0) {
        return Err(refused());
    }
    Ok(text)
}

pub(super) fn store_url(value: &DeValue<'_>) -> Result<Url, String> {
    const FORMS: &str = "write \"file:///directory\" or \"s3://bucket/prefix\"";
    let text = text(value)?;
    let url = Url::parse(&text).map_err(|error| match text.strip_prefix('/') {
        Some(path) => format!("{text:?} is not a URL; did you mean \"file:///{path}\"?"),
        None => format!("{text:?} is not a URL ({error}); {FORMS}"),
    })?;
    // Whoever put a password here has it in `status` and in the logs.
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not contain credentials; give them in the environment (AWS_ACCESS_KEY_ID, …)".into());
    }
    match url.scheme() {
        "file" if url.host_str().is_some_and(|host| !host.is_empty()) => {
            Err(format!("{text:?} names a host; a directory has three slashes, e.g. \"file:///srv/ha-store\""))
        }
        "file" if url.path().len() <= 1 => Err(format!("{text:?} is the root directory; {FORMS}")),
        "s3" if url.host_str().is_none_or(str::is_empty) => Err(format!("{text:?} names no bucket; {FORMS}")),
        "file" | "s3" => Ok(url),
        other => Err(format!("the kind of store `{other}` is not known; {FORMS}")),
    }
}
