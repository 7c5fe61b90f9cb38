//! Containers for the tests: overlay, network namespaces, bundles, real runc and CRIU.

use std::{
    fs,
    io::{self, BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex, MutexGuard, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{
    checkpoint::{CaptureSource, DumpError, DumpReport, DumpRequest, Dumper, Gate, restore},
    runtime::{Bind, BundleSpec, Process, Runc, Runtime, write_bundle},
};

pub const LONG: Duration = Duration::from_secs(60);

/// Says why a test does not run here; true when it cannot.
pub fn skipped(test: &str) -> bool {
    let has =
        |program: &str| Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    let why = if !nix::unistd::geteuid().is_root() {
        Some("not root")
    } else if !has("criu") {
        Some("no criu")
    } else if !has("runc") {
        Some("no runc")
    } else {
        None
    };
    if let Some(why) = why {
        println!("SKIPPED {test}: {why}");
    }
    why.is_some()
}

/// One at a time: they measure, and two cores are few.
pub fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn program() -> &'static Path {
    static BUILT: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = BUILT.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("steady");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/checkpoint/tests/steady.rs");
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let output = Command::new(rustc)
            .args(["--edition", "2024", "-O", "-C", "target-feature=+crt-static", "-o"])
            .args([&path, &source])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (dir, path)
    });
    path
}

/// For a container that no packet can reach anyway.
pub struct NoGate;

impl Gate for NoGate {
    fn close(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn open(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn unique() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("ck{:x}{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A world of its own: a client's namespace with a bridge, a runc root, and a lower directory with the program.
pub struct Lab {
    pub dir: TempDir,
    pub name: String,
    pub runc: Runc,
    pub dumper: Dumper,
}

impl Lab {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("ha-ck-").tempdir().unwrap();
        let name = unique();
        run("ip", &["netns", "add", &name]);
        run("ip", &["-n", &name, "link", "add", "br0", "type", "bridge"]);
        run("ip", &["-n", &name, "addr", "add", "10.77.9.1/24", "dev", "br0"]);
        run("ip", &["-n", &name, "link", "set", "br0", "up"]);
        let lower = dir.path().join("lower");
        for sub in ["etc", "srv", "data", "proc", "sys", "dev", "tmp", ".ha-manager"] {
            fs::create_dir_all(lower.join(sub)).unwrap();
        }
        fs::copy(program(), lower.join("steady")).unwrap();
        fs::write(lower.join("srv/lower-file"), "lower").unwrap();
        let runc = Runc::new("runc", dir.path().join("runc"), "criu");
        Self { dir, name, runc, dumper: Dumper::new("criu") }
    }

    /// Places for one container: fresh namespace, overlay and bundle. `upper` and `data` are what it starts with.
    pub fn place(&self) -> Place<'_> {
        self.place_with(|_| {})
    }

    pub fn place_with(&self, change: impl FnOnce(&mut BundleSpec)) -> Place<'_> {
        let id = unique();
        let dir = self.dir.path().join(&id);
        for sub in ["upper", "work", "merged", "data", "bundle", "channel"] {
            fs::create_dir_all(dir.join(sub)).unwrap();
        }
        let netns = PathBuf::from(format!("/run/netns/{id}"));
        run("ip", &["netns", "add", &id]);
        let host_end = format!("h{id}");
        run("ip", &["-n", &self.name, "link", "add", &host_end, "type", "veth", "peer", "name", "eth0", "netns", &id]);
        run("ip", &["-n", &id, "link", "set", "eth0", "address", "02:00:0a:4d:09:02"]);
        run("ip", &["-n", &id, "addr", "add", "10.77.9.2/24", "dev", "eth0"]);
        run("ip", &["-n", &id, "link", "set", "eth0", "up"]);
        run("ip", &["-n", &id, "link", "set", "lo", "up"]);
        run("ip", &["-n", &self.name, "link", "set", &host_end, "up"]);
        let mut spec = BundleSpec {
            dir: dir.join("bundle"),
            rootfs: dir.join("merged"),
            process: Process { argv: vec!["/steady".into()], cwd: "/".into(), ..Default::default() },
            hostname: "steady".into(),
            netns,
            cgroups_path: format!("/{id}"),
            agent_bin_dir: None,
            channel_dir: Some(dir.join("channel")),
            binds: vec![Bind { source: dir.join("data"), target: "/data".into(), read_only: false }],
            tmpfs: vec![],
            resolv_conf: "nameserver 10.77.9.1\n".into(),
            hosts: "127.0.0.1 localhost\n".into(),
            rlimits: vec![],
            annotations: Default::default(),
        };
        change(&mut spec);
        Place { lab: self, id, host_end, dir, spec, up: false, mounted: false }
    }

    pub fn client(&self) -> Client {
        self.client_of(7000)
    }

    pub fn client_of(&self, port: u16) -> Client {
        Client::connect(&self.name, port)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// One container's places on one "node".
pub struct Place<'l> {
    lab: &'l Lab,
    pub id: String,
    host_end: String,
    pub dir: PathBuf,
    pub spec: BundleSpec,
    up: bool,
    mounted: bool,
}

impl Place<'_> {
    pub fn mount(&mut self) {
        let path = |sub: &str| self.dir.join(sub).display().to_string();
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            self.lab.dir.path().join("lower").display(),
            path("upper"),
            path("work")
        );
        run("mount", &["-t", "overlay", "overlay", "-o", &options, &path("merged")]);
        self.mounted = true;
        write_bundle(&self.spec).unwrap();
    }

    fn connect_link(&self) {
        run("ip", &["-n", &self.lab.name, "link", "set", &self.host_end, "master", "br0"]);
    }

    pub fn start(&mut self) -> i32 {
        self.mount();
        self.connect_link();
        let pid = self.lab.runc.start(&self.id, &self.spec.dir, LONG).unwrap();
        self.up = true;
        pid
    }

    pub fn request(&self, pid: i32) -> DumpRequest {
        let dump = tempfile::Builder::new().prefix("dump-").tempdir_in(&self.dir).unwrap().keep();
        for sub in ["images", "work", "staging"] {
            fs::create_dir(dump.join(sub)).unwrap();
        }
        let source = |name: &str, inside: &str| CaptureSource {
            name: name.into(),
            path: self.dir.join(name),
            inside: inside.into(),
        };
        DumpRequest {
            init_pid: pid,
            bundle: self.spec.dir.clone(),
            images: dump.join("images"),
            work: dump.join("work"),
            staging: dump.join("staging"),
            capture: vec![source("upper", "/"), source("data", "/data")],
            stay_closed: false,
            timeout: LONG,
        }
    }

    pub fn dump(&self, pid: i32) -> (DumpRequest, DumpReport) {
        let request = self.request(pid);
        let report = self.dump_with(&request, &mut NoGate).unwrap();
        (request, report)
    }

    pub fn dump_with(&self, request: &DumpRequest, gate: &mut dyn Gate) -> Result<DumpReport, DumpError> {
        self.dump_after(request, gate, &mut || Ok(()))
    }

    pub fn dump_after(
        &self,
        request: &DumpRequest,
        gate: &mut dyn Gate,
        before: &mut dyn FnMut() -> io::Result<()>,
    ) -> Result<DumpReport, DumpError> {
        self.lab.dumper.dump(request, gate, before)
    }

    /// Takes the captured files over and restores the images.
    pub fn restore(&mut self, from: &DumpRequest) -> i32 {
        for sub in ["upper", "data"] {
            fs::remove_dir(self.dir.join(sub)).unwrap();
            let copy = format!("{}/{sub}", from.staging.display());
            run("cp", &["-a", &copy, &self.dir.display().to_string()]);
        }
        self.mount();
        let pid = restore(&self.lab.runc, &self.id, &self.spec.dir, &from.images, &self.dir, LONG)
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        self.up = true;
        self.connect_link();
        pid
    }

    /// After somebody else has started it.
    pub fn adopt(&mut self) -> i32 {
        self.up = true;
        self.connect_link();
        self.lab.runc.state(&self.id, LONG).unwrap().map_or(0, |state| state.pid)
    }

    /// Takes the container off the network and away, as a node's end does.
    pub fn destroy(mut self) {
        self.clean();
    }

    fn clean(&mut self) {
        if !self.host_end.is_empty() {
            let _ = Command::new("ip").args(["-n", &self.lab.name, "link", "del", &self.host_end]).output();
            self.host_end.clear();
            if self.up {
                let _ = self.lab.runc.delete(&self.id, LONG);
            }
            if self.mounted {
                let _ = Command::new("umount").arg(self.dir.join("merged")).output();
            }
            let _ = Command::new("ip").args(["netns", "del", &self.id]).output();
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.clean();
    }
}

/// A client in the lab's namespace.
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    pub fn connect(netns: &str, port: u16) -> Self {
        let path = format!("/run/netns/{netns}");
        // A thread of its own: the namespace is the thread's, and the socket stays in the one it was made in.
        let connect = move || {
            nix::sched::setns(fs::File::open(path).unwrap(), nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let address = SocketAddr::from(([10, 77, 9, 2], port));
            let deadline = Instant::now() + LONG;
            loop {
                match TcpStream::connect_timeout(&address, Duration::from_secs(1)) {
                    Ok(stream) => return stream,
                    Err(error) => assert!(Instant::now() < deadline, "{error}"),
                }
            }
        };
        let stream = std::thread::spawn(connect).join().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    pub fn try_ask(&mut self, line: &str) -> std::io::Result<String> {
        self.stream.get_mut().write_all(format!("{line}\n").as_bytes())?;
        let mut reply = String::new();
        self.stream.read_line(&mut reply)?;
        Ok(reply.trim().to_owned())
    }

    pub fn ask(&mut self, line: &str) -> String {
        self.try_ask(line).unwrap()
    }

    /// Mismatches and rounds of the writer.
    pub fn agree(&mut self) -> (u64, u64) {
        let reply = self.ask("agree");
        let (mismatches, rounds) = reply.split_once(' ').unwrap();
        (mismatches.parse().unwrap(), rounds.parse().unwrap())
    }
}

pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}
