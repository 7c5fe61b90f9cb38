//! A real registry on loopback.

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
};

use oci_client::{
    Client, Reference,
    client::{ClientConfig, ClientProtocol},
    secrets::RegistryAuth,
};

use super::*;

const PROGRAM: &str = "docker-registry";
/// `tester` with the password `of-tests`, as `htpasswd -B` writes it.
const HTPASSWD: &str = "tester:$2b$05$I9IiLuh9x8lHh5THkfTUduOanRLUleD4R5iT9EmTYIrVtChtGSXVO\n";

struct Registry {
    child: Child,
    host: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts the registry and waits until it says that it listens; `None`, with a message, where it is not installed.
fn start(lab: &Lab, test: &str, password: bool) -> Option<Registry> {
    // Free now; should another take it before the registry does, the registry says so and the test fails loudly.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let host = format!("127.0.0.1:{port}");
    let mut config = format!(
        "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {host}\n",
        lab.path("registry").display()
    );
    if password {
        fs::write(lab.path("htpasswd"), HTPASSWD).unwrap();
        config += &format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", lab.path("htpasswd").display());
    }
    fs::write(lab.path("registry.yml"), config).unwrap();
    let spawned = Command::new(PROGRAM)
        .arg("serve")
        .arg(lab.path("registry.yml"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("SKIPPED {test}: {PROGRAM} is not installed");
            return None;
        }
        Err(error) => panic!("{PROGRAM}: {error}"),
    };
    let log = child.stderr.take().unwrap();
    let registry = Registry { child, host };
    let mut lines = BufReader::new(log).lines();
    let listening = lines.by_ref().map_while(Result::ok).any(|line| line.contains("listening on"));
    assert!(listening, "the registry ended without listening");
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
    Some(registry)
}

/// Pushes the image and an index that offers it beside one for another machine. Returns the manifest's digest.
async fn push(registry: &Registry, image: &Image, auth: &RegistryAuth) -> String {
    crate::crypto();
    let client = Client::new(ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() });
    let reference: Reference = format!("{}/test/app:1", registry.host).parse().unwrap();
    client.auth(&reference, auth, oci_client::RegistryOperation::Push).await.unwrap();
    client.store_auth_if_needed(&registry.host, auth).await;
    for blob in image.layers.iter().map(|(bytes, _)| bytes).chain([&image.config]) {
        client.push_blob(&reference, blob.clone(), &format!("sha256:{}", sha256(blob))).await.unwrap();
    }
    let manifest = image.manifest();
    let digest = format!("sha256:{}", sha256(&manifest));
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let by_digest = reference.clone_with_digest(digest.clone());
    client.push_manifest_raw(&by_digest, manifest.clone(), kind.parse().unwrap()).await.unwrap();
    let mut here = descriptor(kind, &manifest);
    here["platform"] = serde_json::json!({"os": "linux", "architecture": host_architecture()});
    let mut elsewhere = descriptor(kind, &manifest);
    elsewhere["platform"] = serde_json::json!({"os": "linux", "architecture": "s390x"});
    let kind = "application/vnd.oci.image.index.v1+json";
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": kind, "manifests": [elsewhere, here]});
    client.push_manifest_raw(&reference, index.to_string().into_bytes(), kind.parse().unwrap()).await.unwrap();
    digest
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_from_a_registry() {
    let lab = Lab::new();
    let Some(registry) = start(&lab, "an_image_is_pulled_from_a_registry", false) else { return };
    let image = Image::new(&three_layers());
    let digest = push(&registry, &image, &RegistryAuth::Anonymous).await;
    image.write_layout(&lab.path("layout"));
    let from_layout = lab.import("./layout").await.unwrap();

    let pulled = Arc::new(Mutex::new(Vec::new()));
    let seen = pulled.clone();
    let progress: Progress = Arc::new(move |event| {
        if let Event::Pulling { layer, layers, bytes, of } = event {
            seen.lock().unwrap().push((layer, layers, bytes == of));
        }
    });
    let reference = format!("{}/test/app:1", registry.host);
    let source = classify(&reference, lab.dir.path()).unwrap();
    let record = import(&source, &reference, &lab.store, &lab.options(), &progress).await.unwrap();
    assert_eq!(record.layers, from_layout.layers);
    assert_eq!(record.config, from_layout.config);
    assert_eq!(*pulled.lock().unwrap(), [(1, 3, true), (2, 3, true), (3, 3, true)]);
    let by_digest = lab.import(&format!("{}/test/app@{digest}", registry.host)).await.unwrap();
    assert_eq!(by_digest.layers, record.layers);

    if testing::needs_root("an_image_is_pulled_from_a_registry (mount)") {
        let mounted = lab.mount(&lab.ensure(&record).await.unwrap());
        check_three_layers(&mounted.0);
    }
    for (missing, word) in [("test/app:2", "test/app:2"), ("test/none:1", "test/none:1")] {
        let error = lab.import(&format!("{}/{missing}", registry.host)).await.unwrap_err();
        assert!(matches!(error, ImageError::Registry { .. }) && error.to_string().contains(word), "{error}");
    }
    let reference = format!("{}/test/app:1", registry.host);
    drop(registry);
    let error = lab.import(&reference).await.unwrap_err();
    assert!(matches!(error, ImageError::Registry { op: "read the manifest of", .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_in_a_registry_is_found() {
    let lab = Lab::new();
    let Some(registry) = start(&lab, "damage_in_a_registry_is_found", false) else { return };
    let image = Image::new(&three_layers());
    push(&registry, &image, &RegistryAuth::Anonymous).await;
    let reference = format!("{}/test/app:1", registry.host);
    for bytes in [&image.layers[0].0, &image.config] {
        let digest = sha256(bytes);
        let data = lab.path("registry/docker/registry/v2/blobs/sha256").join(&digest[..2]).join(&digest).join("data");
        let mut changed = bytes.clone();
        let middle = changed.len() / 2;
        changed[middle] ^= 1;
        fs::write(&data, &changed).unwrap();
        let error = lab.import(&reference).await.unwrap_err();
        assert!(matches!(error, ImageError::Digest { .. }), "{error}: {error:?}");
        fs::write(&data, &bytes[..bytes.len() - 1]).unwrap();
        let error = lab.import(&reference).await.unwrap_err();
        assert!(matches!(error, ImageError::Digest { .. } | ImageError::Size { .. }), "{error}: {error:?}");
        assert_eq!(names(&lab.path("store/blobs")), Vec::<String>::new());
        fs::write(&data, bytes).unwrap();
    }
    lab.import(&reference).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_of_docker_login_are_used() {
    let lab = Lab::new();
    let Some(registry) = start(&lab, "credentials_of_docker_login_are_used", true) else { return };
    let basic = RegistryAuth::Basic("tester".to_owned(), "of-tests".to_owned());
    push(&registry, &Image::new(&three_layers()), &basic).await;
    let reference = format!("{}/test/app:1", registry.host);
    let error = lab.import(&reference).await.unwrap_err();
    assert!(error.to_string().contains("docker login"), "{error}");
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let config = serde_json::json!({"auths": {&registry.host: {"auth": STANDARD.encode("tester:of-tests")}}});
    fs::write(lab.path("no-docker-config.json"), config.to_string()).unwrap();
    assert_eq!(lab.import(&reference).await.unwrap().layers.len(), 3);
}
