//! Resource limits: names as Compose writes them, and what the host allows.

use crate::spec::Rlimit;

use super::BundleError;

const NAMES: [(&str, libc::__rlimit_resource_t); 16] = [
    ("as", libc::RLIMIT_AS),
    ("core", libc::RLIMIT_CORE),
    ("cpu", libc::RLIMIT_CPU),
    ("data", libc::RLIMIT_DATA),
    ("fsize", libc::RLIMIT_FSIZE),
    ("locks", libc::RLIMIT_LOCKS),
    ("memlock", libc::RLIMIT_MEMLOCK),
    ("msgqueue", libc::RLIMIT_MSGQUEUE),
    ("nice", libc::RLIMIT_NICE),
    ("nofile", libc::RLIMIT_NOFILE),
    ("nproc", libc::RLIMIT_NPROC),
    ("rss", libc::RLIMIT_RSS),
    ("rtprio", libc::RLIMIT_RTPRIO),
    ("rttime", libc::RLIMIT_RTTIME),
    ("sigpending", libc::RLIMIT_SIGPENDING),
    ("stack", libc::RLIMIT_STACK),
];

/// The limit as OCI writes it. A limit above the host's hard limit needs CAP_SYS_RESOURCE; without it the runtime would
/// fail with an error that does not name the limit.
pub(super) fn to_oci(limit: &Rlimit) -> Result<serde_json::Value, BundleError> {
    let (_, resource) = NAMES.iter().find(|(name, _)| *name == limit.name).ok_or_else(|| {
        let allowed = NAMES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        BundleError::UnknownRlimit { name: limit.name.clone(), allowed }
    })?;
    if limit.soft > limit.hard {
        return Err(BundleError::RlimitOrder { name: limit.name.clone(), soft: limit.soft, hard: limit.hard });
    }
    let host = host_hard_limit(*resource);
    if limit.hard > host && !may_raise_limits() {
        return Err(BundleError::RlimitAboveHost { name: limit.name.clone(), wanted: limit.hard, host });
    }
    Ok(serde_json::json!({
        "type": format!("RLIMIT_{}", limit.name.to_uppercase()),
        "soft": limit.soft,
        "hard": limit.hard,
    }))
}

fn host_hard_limit(resource: libc::__rlimit_resource_t) -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` outlives the call and is only written; every resource in NAMES is a valid one.
    #[allow(unsafe_code)]
    let rc = unsafe { libc::getrlimit(resource, &mut limit) };
    // A kernel that does not know the resource imposes no limit; the runtime then says so itself.
    if rc == 0 { limit.rlim_max } else { u64::MAX }
}

/// Whether this process holds CAP_SYS_RESOURCE.
pub(crate) fn may_raise_limits() -> bool {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|caps| caps >> CAP_SYS_RESOURCE & 1 == 1)
}
