//! The JSON documents of an OCI (or Docker) image: which layers it has for this machine, and what it runs.

use nix::sys::signal::Signal;
use serde::Deserialize;

use super::{ImageError, Limits};
use crate::spec::ImageConfig;

/// Of each kind.
const MAX_NOTES: usize = 20;

/// What a container finds its programs with when the image does not say.
pub const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The architecture of this machine in OCI's words.
pub fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: String,
    pub size: u64,
    pub platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<std::collections::BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Platform {
    os: String,
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

impl Descriptor {
    /// The hex digits of its SHA-256; safe as a file name.
    pub fn sha256(&self, what: &str) -> Result<&str, ImageError> {
        let digits = self.digest.strip_prefix("sha256:").ok_or_else(|| ImageError::Unsupported {
            what: what.to_owned(),
            found: format!("named by the digest {:?}", self.digest.chars().take(100).collect::<String>()),
            remedy: "images are verified by sha256",
        })?;
        check_sha256(digits).ok_or_else(|| ImageError::malformed(what, format!("{:?} is not a digest", self.digest)))
    }

    fn attestation(&self) -> bool {
        self.platform.as_ref().is_some_and(|p| p.os == "unknown")
            || self.annotations.iter().flatten().any(|(key, _)| key == "vnd.docker.reference.type")
    }

    fn name(&self) -> String {
        let name = self.annotations.iter().flatten().find(|(key, _)| *key == "org.opencontainers.image.ref.name");
        let platform = self.platform.as_ref().map(|p| format!(" for {}/{}", p.os, p.architecture));
        format!("{}{}", name.map_or(&self.digest, |(_, name)| name), platform.unwrap_or_default())
    }
}

pub fn check_sha256(digits: &str) -> Option<&str> {
    let ok = digits.len() == 64 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    ok.then_some(digits)
}

/// What an index or a manifest turned out to be.
#[derive(Debug)]
pub enum Document {
    /// Several images: the one for this machine.
    Index(Descriptor),
    Manifest {
        config: Descriptor,
        layers: Vec<Descriptor>,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    #[serde(default)]
    schema_version: u64,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

/// Reads an index or a manifest. `listing` is an archive's list of images that have nothing to do with each other; an
/// index otherwise lists the same image for several platforms, of which the first that fits is meant.
pub fn parse_document(what: &str, json: &[u8], listing: bool, limits: &Limits) -> Result<Document, ImageError> {
    let raw: RawDocument = serde_json::from_slice(json).map_err(|e| ImageError::malformed(what, e))?;
    if raw.schema_version != 2 {
        return Err(ImageError::Unsupported {
            what: what.to_owned(),
            found: format!("a manifest of schema version {}", raw.schema_version),
            remedy: "push the image again with a current tool",
        });
    }
    match raw {
        RawDocument { manifests: Some(all), .. } => select(what, all, listing).map(Document::Index),
        RawDocument { config: Some(config), layers: Some(layers), .. } => {
            if layers.len() > limits.layers {
                let limit = limits.layers as u64;
                return Err(ImageError::Limit { what: what.to_owned(), limit, unit: "layers" });
            }
            if let Some(other) = layers.iter().chain([&config]).find(|d| !is_image_part(&d.media_type)) {
                return Err(ImageError::Unsupported {
                    what: what.to_owned(),
                    found: format!("made of {:?}", other.media_type),
                    remedy: "only container images (OCI or Docker, not encrypted) can be run",
                });
            }
            Ok(Document::Manifest { config, layers })
        }
        _ => Err(ImageError::malformed(what, "neither an index (manifests) nor a manifest (config and layers)")),
    }
}

fn is_image_part(media_type: &str) -> bool {
    let oci = media_type.strip_prefix("application/vnd.oci.image.");
    let docker = media_type.strip_prefix("application/vnd.docker.");
    match (oci, docker) {
        (Some("config.v1+json"), _) => true,
        (Some(rest), _) => rest.starts_with("layer.") && !rest.contains("encrypted"),
        (_, Some("container.image.v1+json")) => true,
        (_, Some(rest)) => rest.starts_with("image.rootfs."),
        _ => false,
    }
}

fn select(what: &str, mut all: Vec<Descriptor>, listing: bool) -> Result<Descriptor, ImageError> {
    all.retain(|d| !d.attestation());
    let names = |list: &[Descriptor]| {
        if list.is_empty() {
            "none".to_owned()
        } else {
            list.iter().map(Descriptor::name).collect::<Vec<_>>().join(", ")
        }
    };
    let offered = names(&all);
    let fits = |p: &Platform| p.os == "linux" && p.architecture == host_architecture();
    let (with, without): (Vec<_>, Vec<_>) = all.into_iter().partition(|d| d.platform.is_some());
    let mut candidates: Vec<_> = with.into_iter().filter(|d| d.platform.as_ref().is_some_and(fits)).collect();
    // A variant (amd64/v3) may need a newer processor than this one; plain comes first.
    candidates.sort_by_key(|d| d.platform.as_ref().is_some_and(|p| p.variant.is_some()));
    if candidates.is_empty() {
        candidates = without;
    }
    if listing || candidates.iter().any(|d| d.platform.is_none()) {
        candidates.dedup_by(|a, b| a.digest == b.digest);
        if candidates.len() > 1 {
            return Err(ImageError::Ambiguous { what: what.to_owned(), candidates: names(&candidates) });
        }
    }
    let need = format!("linux/{}", host_architecture());
    candidates.into_iter().next().ok_or(ImageError::Platform { what: what.to_owned(), need, offered })
}

/// The parts of an image configuration that are used.
#[derive(Debug)]
pub struct Configuration {
    pub run: ImageConfig,
    /// What the image asks for and does not get, each a sentence for its user.
    pub notes: Vec<String>,
    /// Hex SHA-256 of each layer's decompressed tar, bottom first.
    pub diff_ids: Vec<String>,
}

#[derive(Deserialize)]
struct RawConfiguration {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    config: Option<RawRun>,
    rootfs: RawRootfs,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct RawRun {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
    volumes: Option<serde_json::Map<String, serde_json::Value>>,
    healthcheck: Option<RawHealthcheck>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawHealthcheck {
    test: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct RawRootfs {
    diff_ids: Option<Vec<String>>,
}

pub fn parse_configuration(what: &str, json: &[u8]) -> Result<Configuration, ImageError> {
    let raw: RawConfiguration = serde_json::from_slice(json).map_err(|e| ImageError::malformed(what, e))?;
    let host = host_architecture();
    if (!raw.os.is_empty() && raw.os != "linux") || (!raw.architecture.is_empty() && raw.architecture != host) {
        let offered = format!("{}/{}", raw.os, raw.architecture);
        return Err(ImageError::Platform { what: what.to_owned(), need: format!("linux/{host}"), offered });
    }
    let digest = |id: String| {
        let digits = id.strip_prefix("sha256:").and_then(check_sha256).map(str::to_owned);
        digits.ok_or_else(|| ImageError::malformed(what, format!("{id:?} is not a sha256 digest")))
    };
    let diff_ids = raw.rootfs.diff_ids.unwrap_or_default().into_iter().map(digest).collect::<Result<_, _>>()?;
    let run = raw.config.unwrap_or_default();
    let notes = notes(&run);
    let filled = |text: Option<String>| text.filter(|t| !t.is_empty());
    let mut run = ImageConfig {
        entrypoint: run.entrypoint.unwrap_or_default(),
        cmd: run.cmd.unwrap_or_default(),
        env: run.env.unwrap_or_default(),
        working_dir: filled(run.working_dir),
        user: filled(run.user),
        stop_signal: filled(run.stop_signal).map(|text| stop_signal(what, &text)).transpose()?,
    };
    let texts = run.entrypoint.iter().chain(&run.cmd).chain(&run.env).chain(&run.working_dir).chain(&run.user);
    if texts.into_iter().any(|text| text.contains('\0')) {
        return Err(ImageError::malformed(what, "a NUL byte in its configuration"));
    }
    if let Some(odd) = run.env.iter().find(|item| item.find('=').is_none_or(|at| at == 0)) {
        return Err(ImageError::malformed(what, format!("the environment has {odd:?}, which is not NAME=value")));
    }
    if !run.env.iter().any(|item| item.starts_with("PATH=")) {
        run.env.push(DEFAULT_PATH.to_owned());
    }
    Ok(Configuration { run, notes, diff_ids })
}

/// `SIGQUIT`, `QUIT`, `3` or `SIGRTMIN+3`.
fn stop_signal(what: &str, text: &str) -> Result<i32, ImageError> {
    const RTMIN: i32 = 34;
    let name = text.strip_prefix("SIG").unwrap_or(text);
    let number = match name.strip_prefix("RTMIN") {
        Some("") => Some(RTMIN),
        Some(offset) => offset.strip_prefix('+').and_then(|n| n.parse::<u8>().ok()).map(|n| RTMIN + i32::from(n)),
        None => name.parse().ok().or_else(|| format!("SIG{name}").parse::<Signal>().ok().map(|signal| signal as i32)),
    };
    let number = number.filter(|number| (1..=64).contains(number));
    number.ok_or_else(|| ImageError::malformed(what, format!("its stop signal {text:?} is none; SIGQUIT would be one")))
}

fn notes(run: &RawRun) -> Vec<String> {
    let test = run.healthcheck.as_ref().and_then(|check| check.test.as_ref());
    let checked = test.is_some_and(|test| !test.is_empty() && test[0] != "NONE");
    let check = "the image's own HEALTHCHECK is not run; only `healthcheck` in the Compose file is";
    let volumes = run.volumes.iter().flat_map(serde_json::Map::keys).take(MAX_NOTES).map(|path| {
        format!(
            "the image declares the volume {path:?}: what is written there is in the snapshots in any case; a volume that the \
             Compose file mounts there begins empty, without the image's files"
        )
    });
    checked.then(|| check.to_owned()).into_iter().chain(volumes).collect()
}

/// What a root directory runs: nothing of its own.
pub fn bare_configuration() -> ImageConfig {
    ImageConfig { env: vec![DEFAULT_PATH.to_owned()], ..ImageConfig::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn index(entries: &[(&str, &str, &str)]) -> Vec<u8> {
        let manifests: Vec<_> = entries
            .iter()
            .map(|(digest, os, arch)| match *os {
                "" => serde_json::json!({"digest": digest, "size": 1}),
                _ => serde_json::json!({"digest": digest, "size": 1, "platform": {"os": os, "architecture": arch}}),
            })
            .collect();
        serde_json::json!({"schemaVersion": 2, "manifests": manifests}).to_string().into_bytes()
    }

    fn chosen(json: &[u8], listing: bool) -> Result<String, ImageError> {
        match parse_document("x", json, listing, &Limits::default())? {
            Document::Index(descriptor) => Ok(descriptor.digest),
            Document::Manifest { .. } => panic!("an index"),
        }
    }

    #[test]
    fn the_image_for_this_machine_is_chosen() {
        let host = host_architecture();
        let both = index(&[(A, "linux", "s390x"), (B, "linux", host), (A, "unknown", "unknown")]);
        assert_eq!(chosen(&both, false).unwrap(), B);
        assert_eq!(chosen(&index(&[(A, "", "")]), true).unwrap(), A);
        let error = chosen(&index(&[(A, "windows", host), (B, "linux", "mips")]), false).unwrap_err();
        assert!(matches!(&error, ImageError::Platform { offered, .. } if offered.contains("linux/mips")), "{error}");
    }

    #[test]
    fn two_images_in_an_archive_are_ambiguous() {
        let two = index(&[(A, "linux", host_architecture()), (B, "linux", host_architecture())]);
        assert!(matches!(chosen(&two, true), Err(ImageError::Ambiguous { .. })));
        assert_eq!(chosen(&two, false).unwrap(), A);
    }

    #[test]
    fn what_is_no_container_image_is_refused() {
        let helm = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.cncf.helm.config.v1+json","digest":"{A}","size":1}},"layers":[]}}"#
        );
        let error = parse_document("x", helm.as_bytes(), false, &Limits::default()).unwrap_err();
        assert!(error.to_string().contains("helm"), "{error}");
        assert!(parse_document("x", b"{\"schemaVersion\":1}", false, &Limits::default()).is_err());
        assert!(parse_document("x", b"{\"schemaVersion\":2}", false, &Limits::default()).is_err());
        assert!(parse_document("x", b"[", false, &Limits::default()).is_err());
    }

    #[test]
    fn configurations() {
        let json = format!(
            r#"{{"os":"linux","architecture":"{}","config":{{"User":"","Env":["A=b"],"Cmd":["x"],"Entrypoint":null}},"rootfs":{{"type":"layers","diff_ids":["{A}"]}}}}"#,
            host_architecture()
        );
        let config = parse_configuration("x", json.as_bytes()).unwrap();
        assert!(config.notes.is_empty() && config.run.stop_signal.is_none());
        assert_eq!(config.run.cmd, ["x"]);
        assert_eq!(config.run.env, ["A=b", DEFAULT_PATH]);
        assert_eq!(config.run.user, None);
        assert_eq!(config.diff_ids, [&A[7..]]);
        for bad in [r#"{"os":"windows","rootfs":{}}"#, r#"{"rootfs":{"diff_ids":["md5:0"]}}"#, "{}"] {
            assert!(parse_configuration("x", bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(parse_configuration("x", br#"{"rootfs":{},"config":{"Env":["noequals"]}}"#).is_err());
    }

    #[test]
    fn a_stop_signal_is_taken_over_and_what_is_not_is_said() {
        let parse =
            |config: &str| parse_configuration("x", format!(r#"{{"rootfs":{{}},"config":{{{config}}}}}"#).as_bytes());
        for (text, number) in [("SIGQUIT", 3), ("QUIT", 3), ("15", 15), ("SIGRTMIN+3", 37), ("SIGRTMIN", 34)] {
            assert_eq!(parse(&format!(r#""StopSignal":"{text}""#)).unwrap().run.stop_signal, Some(number), "{text}");
        }
        for bad in ["SIGNONE", "0", "65", "SIGRTMIN+31", "-9"] {
            assert!(parse(&format!(r#""StopSignal":"{bad}""#)).is_err(), "{bad}");
        }
        let notes =
            parse(r#""Volumes":{"/data":{},"/log":{}},"Healthcheck":{"Test":["CMD","x"],"Interval":1}"#).unwrap().notes;
        assert!(notes.len() == 3 && notes[0].contains("HEALTHCHECK") && notes[2].contains("/log"), "{notes:?}");
        assert!(parse(r#""Healthcheck":{"Test":["NONE"]}"#).unwrap().notes.is_empty());
    }

    #[test]
    fn digests_that_are_paths_are_refused() {
        let descriptor = |digest: &str| Descriptor {
            media_type: String::new(),
            digest: digest.to_owned(),
            size: 0,
            platform: None,
            annotations: None,
        };
        for bad in ["sha256:../../etc/passwd", "sha512:00", "sha256:", "", &A.to_uppercase()] {
            assert!(descriptor(bad).sha256("x").is_err(), "{bad}");
        }
        assert!(descriptor(A).sha256("x").is_ok());
    }
}
