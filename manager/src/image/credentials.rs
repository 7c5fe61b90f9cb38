//! Registry credentials as `docker login` (and podman with `--authfile`) leaves them.

use std::{
    collections::HashMap,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use oci_client::secrets::RegistryAuth;
use serde::Deserialize;

use super::ImageError;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DockerConfig {
    #[serde(default)]
    auths: HashMap<String, Auth>,
    #[serde(default)]
    cred_helpers: HashMap<String, String>,
}

#[derive(Deserialize, Default)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

/// Docker's configuration file of this user: `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`.
pub fn default_path() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("DOCKER_CONFIG").or_else(|| set("HOME").map(|home| home.join(".docker"))).map(|dir| dir.join("config.json"))
}

/// The credentials for `registry` in the file; anonymous when there is no file or nothing in it for this registry.
pub fn read(path: &Path, registry: &str) -> Result<RegistryAuth, ImageError> {
    let json = match std::fs::read(path) {
        Ok(json) => json,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(RegistryAuth::Anonymous);
        }
        Err(error) => return Err(ImageError::io("read", path)(error)),
    };
    find(&json, registry).map_err(|reason| ImageError::Credentials { path: path.to_owned(), reason })
}

fn find(json: &[u8], registry: &str) -> Result<RegistryAuth, String> {
    // The parser's message would quote the file, and with it secrets; its place is enough.
    let config: DockerConfig = serde_json::from_slice(json)
        .map_err(|e| format!("it is not the JSON that is expected, line {} column {}", e.line(), e.column()))?;
    let host = canonical(registry);
    let Some(auth) = config.auths.into_iter().find_map(|(key, auth)| (canonical(&key) == host).then_some(auth)) else {
        return match config.cred_helpers.iter().find(|(key, _)| canonical(key) == host) {
            Some((_, helper)) => Err(format!(
                "it names the helper {helper:?} for {registry}, and helpers are not run; \
                 put the credentials under `auths`"
            )),
            None => Ok(RegistryAuth::Anonymous),
        };
    };
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    if filled(auth.identitytoken).is_some() {
        return Err(format!(
            "it has an identity token for {registry}, which is not supported; use a name and a password"
        ));
    }
    if let (Some(username), Some(password)) = (filled(auth.username), filled(auth.password)) {
        return Ok(RegistryAuth::Basic(username, password));
    }
    let Some(encoded) = filled(auth.auth) else { return Ok(RegistryAuth::Anonymous) };
    let wrong = || format!("the `auth` of {registry} is not the base64 of NAME:PASSWORD");
    let decoded =
        STANDARD.decode(encoded.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(wrong)?;
    let (username, password) = decoded.split_once(':').ok_or_else(wrong)?;
    Ok(RegistryAuth::Basic(username.to_owned(), password.trim_end_matches('\0').to_owned()))
}

/// `https://index.docker.io/v1/`, `docker.io` and the name its images are pulled from are one registry.
fn canonical(registry: &str) -> &str {
    let host = registry.strip_prefix("https://").or_else(|| registry.strip_prefix("http://")).unwrap_or(registry);
    match host.split('/').next().unwrap_or_default() {
        "docker.io" | "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_found_by_host() {
        let json = br#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "bWU6c2U6Y3JldA=="},
            "127.0.0.1:5000": {"username": "u", "password": "p"},
            "token.example": {"auth": "", "identitytoken": "t"},
            "bad.example": {"auth": "%%%"},
            "empty.example": {}
        }, "credHelpers": {"gcr.io": "gcloud"}, "credsStore": "desktop"}"#;
        let basic = |u: &str, p: &str| Ok(RegistryAuth::Basic(u.to_owned(), p.to_owned()));
        assert_eq!(find(json, "docker.io"), basic("me", "se:cret"));
        assert_eq!(find(json, "index.docker.io"), basic("me", "se:cret"));
        assert_eq!(find(json, "127.0.0.1:5000"), basic("u", "p"));
        assert_eq!(find(json, "127.0.0.1:5001"), Ok(RegistryAuth::Anonymous));
        assert_eq!(find(json, "empty.example"), Ok(RegistryAuth::Anonymous));
        for (registry, word) in [("token.example", "token"), ("bad.example", "base64"), ("gcr.io", "gcloud")] {
            assert!(find(json, registry).unwrap_err().contains(word));
        }
        let error = find(br#"{"auths": {"x": {"auth": 5, "password": "secret"}}}"#, "x").unwrap_err();
        assert!(!error.contains("secret"), "{error}");
        assert_eq!(read(Path::new("/nonexistent/config.json"), "x").unwrap(), RegistryAuth::Anonymous);
    }
}
