//! The same contract on S3: a real service over HTTP, stopped, killed, and robbed of its conditions.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{
    tests::{contract, text},
    *,
};

/// A child process that is killed when dropped, by its own id.
struct Server(std::process::Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An S3 service on loopback, if Python's moto is installed.
async fn s3(test: &str) -> Option<(Server, String)> {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = std::process::Command::new("moto_server")
        .args(["-H", "127.0.0.1", "-p", &port.to_string()])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn();
    let Ok(child) = server else {
        println!("SKIPPED {test}: no S3 service here (pip install 'moto[server]')");
        return None;
    };
    let mut server = Server(child);
    let end = Instant::now() + Duration::from_secs(60);
    while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        if Instant::now() > end || server.0.try_wait().unwrap().is_some() {
            println!("SKIPPED {test}: moto_server does not start");
            return None;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let endpoint = format!("http://127.0.0.1:{port}");
    // Its first answer takes it longer than a store may: it loads itself then.
    request("GET", &endpoint).await;
    Some((server, endpoint))
}

async fn request(method: &str, url: &str) {
    let script = "import sys, urllib.request as u; u.urlopen(u.Request(sys.argv[2], method=sys.argv[1]))";
    let status = tokio::process::Command::new("python3").args(["-c", script, method, url]).status().await.unwrap();
    assert!(status.success(), "{method} {url}");
}

/// An S3 service that ignores `If-None-Match`, as some do: a proxy that gives the header another name.
async fn unconditional(upstream: String) -> std::net::SocketAddr {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let Ok(server) = TcpStream::connect(&upstream).await else { continue };
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
            tokio::spawn(async move {
                let mut buffer = vec![0; 64 << 10];
                while let Ok(read @ 1..) = from_client.read(&mut buffer).await {
                    let name = b"if-none-match";
                    if let Some(at) = buffer[..read].windows(name.len()).position(|w| w.eq_ignore_ascii_case(name)) {
                        buffer[at..at + name.len()].copy_from_slice(b"x-lost-header");
                    }
                    if to_server.write_all(&buffer[..read]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// The one test that sets `AWS_*`: the environment is the process's.
#[tokio::test(flavor = "multi_thread")]
#[allow(unsafe_code)]
async fn s3_keeps_the_contract() {
    let Some((mut server, endpoint)) = s3("s3_keeps_the_contract").await else { return };
    for (name, value) in [
        ("AWS_ENDPOINT", endpoint.as_str()),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_REGION", "us-east-1"),
    ] {
        // SAFETY: no other test of this program reads or writes these variables, and nothing in it calls getenv from C
        // at the same time.
        unsafe { std::env::set_var(name, value) };
    }
    let options = StoreOptions { deadline: Duration::from_secs(2), ..Default::default() };
    let store = Store::open_with("s3://bucket/some/prefix", options).await.unwrap();
    let error = store.init_or_join("test").await.unwrap_err();
    assert!(matches!(error, StoreError::NoBucket { .. }), "{}", text(&error));
    assert!(matches!(store.list("").await, Err(StoreError::NoBucket { .. })));
    assert!(matches!(store.put_new("x", Bytes::new()).await, Err(StoreError::NoBucket { .. })));
    request("PUT", &format!("{endpoint}/bucket")).await;
    assert!(store.init_or_join("test").await.unwrap().created);
    assert!(!store.init_or_join("test").await.unwrap().created);
    contract(&store).await;
    // The same service behind a proxy that loses the condition: the probe has to see it.
    let lossy = unconditional(endpoint.trim_start_matches("http://").to_owned()).await;
    // SAFETY: as above.
    unsafe { std::env::set_var("AWS_ENDPOINT", format!("http://{lossy}")) };
    let careless = Store::open("s3://bucket/some/prefix").await.unwrap();
    careless.init_or_join("test").await.unwrap();
    let error = careless.probe_create_only().await.unwrap_err();
    assert!(matches!(error, StoreError::NotCreateOnly { .. }), "{}", text(&error));
    assert!(store.list("probe/").await.unwrap().is_empty(), "the probe left objects behind");
    // A service that is stopped answers nothing: the deadline holds.
    let pid = nix::unistd::Pid::from_raw(server.0.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::SIGSTOP).unwrap();
    let start = Instant::now();
    let error = store.get("cluster", 1000).await.unwrap_err();
    assert!(error.is_retryable() && start.elapsed() < Duration::from_secs(4), "{} {:?}", text(&error), start.elapsed());
    // So does that of every other call: none may hang whoever makes it.
    let bytes = Bytes::from_static(b"x");
    let calls = async {
        tokio::join!(
            async { ("create", store.put_new("y", bytes.clone()).await.err()) },
            async { ("write", store.put_bulk("y", bytes.clone()).await.err()) },
            async { ("look at", store.head("cluster").await.err()) },
            async { ("list", store.list("").await.err()) },
            async { ("list names", store.list_dirs("").await.err()) },
            async { ("delete", store.delete("y").await.err()) },
            async { ("stream", store.put_stream("y", futures_util::stream::empty()).await.err()) },
        )
    };
    let outcomes = tokio::time::timeout(Duration::from_secs(60), calls).await.unwrap();
    for (call, error) in [outcomes.0, outcomes.1, outcomes.2, outcomes.3, outcomes.4, outcomes.5, outcomes.6] {
        let error = error.unwrap_or_else(|| panic!("{call} succeeded"));
        assert!(error.is_retryable(), "{call}: {}", text(&error));
    }
    nix::sys::signal::kill(pid, nix::sys::signal::SIGCONT).unwrap();
    store.get("cluster", 1000).await.unwrap();
    // One that is gone refuses.
    server.0.kill().unwrap();
    server.0.wait().unwrap();
    let error = store.put_new("x", Bytes::new()).await.unwrap_err();
    assert!(error.is_retryable(), "{}", text(&error));
}
