//! One dump, from the look at the processes to the container running again.

use std::{
    fs::{self, File},
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::{Duration, Instant},
};

use super::{
    capture::{CaptureError, CaptureReport, CaptureSource},
    conversation::Conversation,
    cpu::{self, CpuError},
    images, logs, mounts,
    preflight::{self, Obstacle},
    proc,
    rescue::{self, Remains},
    rpc,
    swrk::{Swrk, SwrkError},
    urgent::{self, Hurried},
};

/// Holds back the container's traffic while its sockets are being dumped.
///
/// While it is closed no packet may reach the container's network namespace. (CRIU puts sockets into repair mode; a
/// packet that meets one then is answered wrongly or lost from the state.)
pub trait Gate {
    /// Called inside the freeze: what it takes is taken from the container's clients.
    fn close(&mut self) -> io::Result<()>;
    /// Called as soon as the sockets work again, and on every failure after [`Gate::close`] was tried; twice when the
    /// first call fails.
    fn open(&mut self) -> io::Result<()>;
}

#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    #[error("the container cannot be checkpointed: {}", preflight::join(.0))]
    Obstacles(Vec<Obstacle>),
    #[error("cannot {operation} {path:?}")]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("the bundle's config.json at {path:?} is not understood: {reason}")]
    Bundle { path: PathBuf, reason: String },
    #[error("the conversation with CRIU broke off; {remains}")]
    Swrk { source: SwrkError, remains: Remains },
    #[error("CRIU could not dump the container, which goes on running: {lines}")]
    Criu { lines: String },
    #[error("the dump had not ended after {timeout:?} (last step: {step}) and was given up; {remains}")]
    Timeout { timeout: Duration, step: String, remains: Remains },
    #[error("the network gate could not be closed, so nothing was dumped; the container goes on running")]
    GateClose { source: io::Error },
    #[error("the network gate could not be opened again: the container runs but cannot be reached")]
    GateOpen { source: io::Error },
    #[error(
        "CRIU refused connections that the program has not accepted yet: this CRIU does not know how to leave them out \
         (tcp_skip_in_flight); use CRIU 4 or newer (`scripts/setup` chooses one). It said: {lines}"
    )]
    InFlight { lines: String },
    #[error("the container's files could not be copied, so the dump was given up; the container goes on running")]
    Capture { source: CaptureError },
    #[error("the container did not become quiet before the freeze, so nothing was dumped; it goes on running")]
    Quiet { source: io::Error },
    #[error("the CPU could not be described for the images")]
    Cpu { source: Box<CpuError> },
    #[error("CRIU said it had dumped the container but wrote no memory pages")]
    NoPages,
}

impl DumpError {
    /// Whether the container's processes run on as if nothing had been tried.
    pub fn leaves_running(&self) -> bool {
        match self {
            DumpError::Swrk { remains, .. } | DumpError::Timeout { remains, .. } => remains.is_running(),
            _ => true,
        }
    }
}

/// What to dump, and where to.
#[derive(Debug, Clone)]
pub struct DumpRequest {
    /// The container's init process.
    pub init_pid: i32,
    /// The bundle it was started or restored from.
    pub bundle: PathBuf,
    /// An empty directory for the images.
    pub images: PathBuf,
    /// A directory for CRIU's log (`dump.log`) and statistics.
    pub work: PathBuf,
    /// An empty directory for the captured files, on a file system the container cannot reach.
    pub staging: PathBuf,
    pub capture: Vec<CaptureSource>,
    /// After a dump that succeeds the gate stays closed: the container is to go on elsewhere from here, and nothing of
    /// what it still does may get out.
    pub stay_closed: bool,
    /// For everything together. The container is frozen for a part of it.
    pub timeout: Duration,
}

/// What a dump took and wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DumpReport {
    /// From the first process stopped to all running again (CRIU's own figure).
    pub frozen: Duration,
    /// From the gate's closing to its opening; `None` when it stays closed.
    pub gate_closed: Option<Duration>,
    /// From the freeze to its end, the first walk of the capture not counted.
    pub criu_wall: Duration,
    /// The whole call.
    pub wall: Duration,
    pub pages_written: u64,
    pub image_bytes: u64,
    pub capture: CaptureReport,
}

/// Makes dumps with one CRIU.
#[derive(Debug)]
pub struct Dumper {
    criu: PathBuf,
    /// Asked for once: it does not change while the node is up.
    cpuinfo: OnceLock<Vec<u8>>,
}

impl Dumper {
    /// `criu` is a path or a name to be found in the PATH.
    pub fn new(criu: impl Into<PathBuf>) -> Self {
        Self { criu: criu.into(), cpuinfo: OnceLock::new() }
    }

    /// What this node's CPU can do, in CRIU's form.
    ///
    /// # Errors
    /// CRIU cannot be asked.
    pub fn cpuinfo(&self, timeout: Duration) -> Result<&[u8], CpuError> {
        if let Some(cpuinfo) = self.cpuinfo.get() {
            return Ok(cpuinfo);
        }
        let cpuinfo = cpu::describe(&self.criu, timeout)?;
        Ok(self.cpuinfo.get_or_init(|| cpuinfo))
    }

    /// Whether what ran on the CPU that `cpuinfo` describes can go on here.
    ///
    /// # Errors
    /// [`CpuError::Incompatible`] names the features that are missing.
    pub fn check_cpu(&self, cpuinfo: &[u8], timeout: Duration) -> Result<(), CpuError> {
        // Mostly all nodes have the same, which needs no CRIU to see.
        if self.cpuinfo(timeout)? == cpuinfo { Ok(()) } else { cpu::check(&self.criu, cpuinfo, timeout) }
    }

    /// Dumps a running container. `before` is called while it still runs, when the first copy of its files is made and nothing
    /// but the freeze is left to do. Whatever is returned, the container runs again unless
    /// [`DumpError::leaves_running`] says otherwise. After an error the gate is open, whatever
    /// [`DumpRequest::stay_closed`] wanted, unless the error is [`DumpError::GateOpen`].
    ///
    /// # Errors
    /// See [`DumpError`]; the caller removes `images` and `staging` then.
    pub fn dump(
        &self,
        request: &DumpRequest,
        gate: &mut dyn Gate,
        before: &mut dyn FnMut() -> io::Result<()>,
    ) -> Result<DumpReport, DumpError> {
        let started = Instant::now();
        let deadline = started + request.timeout;
        // First, so that it is ready by the time it is needed.
        let mut swrk = Swrk::spawn(&self.criu).map_err(|source| self.untouched(source))?;
        rescue::clear_leftovers(request.init_pid);
        let obstacles = preflight::preflight(request.init_pid);
        if !obstacles.is_empty() {
            return Err(DumpError::Obstacles(obstacles));
        }
        let images_dir = open_dir(&request.images)?;
        let work_dir = open_dir(&request.work)?;
        let opts = self.opts(request, &images_dir, &work_dir)?;
        self.write_companions(request)?;
        let stopped_before = rescue::stopped(request.init_pid);
        let write = |source| DumpError::Io { operation: "note the dump in", path: request.work.clone(), source };
        let _underway = rescue::Underway::begin(&request.work, &stopped_before).map_err(write)?;
        let mut conversation = Conversation::prepare(request, gate, deadline)?;
        before().map_err(|source| DumpError::Quiet { source })?;

        let hurried = Hurried::this_thread();
        urgent::hurry(swrk.pid());
        let criu_started = Instant::now();
        let message = rpc::Request { kind: rpc::kind::DUMP, opts: Some(opts), ..Default::default() };
        let outcome = swrk.send(&message).and_then(|()| conversation.hold(&mut swrk, deadline));
        let criu_wall = criu_started.elapsed();

        let ended = match outcome {
            Ok(success) => {
                // It has answered; there is only its exit left to wait for.
                if !swrk.wait_end(Instant::now() + Duration::from_secs(2)) {
                    swrk.kill();
                }
                Ok(success)
            }
            Err(error) => {
                conversation.cancel();
                let remains = rescue::end_criu(&self.criu, &mut swrk, request.init_pid, &stopped_before);
                Err((error, remains))
            }
        };
        drop(hurried);
        let step = conversation.step().to_owned();
        let gate_result = conversation.settle(matches!(ended, Ok(true)));
        let capture = conversation.into_capture();
        let held = request.stay_closed && matches!(gate_result, Ok(None));
        let outcome = match ended {
            Err((SwrkError::Timeout, remains)) => Err(DumpError::Timeout { timeout: request.timeout, step, remains }),
            Err((source, remains)) => Err(DumpError::Swrk { source, remains }),
            Ok(false) => Err(self.refused(request, capture, gate_result)),
            Ok(true) => {
                let gate_closed = gate_result.map_err(|failure| DumpError::GateOpen { source: failure.into() })?;
                let capture = capture.map_err(|source| DumpError::Capture { source })?;
                report(request, capture, gate_closed, criu_wall, started)
            }
        };
        if outcome.is_err() && held {
            // What CRIU called a success is none: the container goes on here and has to be heard.
            gate.open().or_else(|_| gate.open()).map_err(|source| DumpError::GateOpen { source })?;
        }
        outcome
    }

    /// Why CRIU said no: because we did, or by itself.
    fn refused(
        &self,
        request: &DumpRequest,
        capture: Result<CaptureReport, CaptureError>,
        gate: Result<Option<Duration>, GateFailure>,
    ) -> DumpError {
        match (gate, capture) {
            (Err(GateFailure::Close(source)), _) => DumpError::GateClose { source },
            (Err(GateFailure::Open(source)), _) => DumpError::GateOpen { source },
            (_, Err(source)) if !matches!(source, CaptureError::Cancelled) => DumpError::Capture { source },
            _ => {
                let lines = logs::decisive_lines(&request.work.join("dump.log"));
                criu_failed(lines.unwrap_or_else(|| "it gave no reason".to_owned()))
            }
        }
    }

    fn opts(&self, request: &DumpRequest, images: &File, work: &File) -> Result<rpc::Opts, DumpError> {
        let config = mounts::read_config(&request.bundle)?;
        let seconds = request.timeout.as_secs().clamp(1, 3600) as u32;
        let netns = proc::namespace_inode(request.init_pid, "net").ok_or_else(|| gone(request.init_pid))?;
        Ok(rpc::Opts {
            images_dir_fd: images.as_raw_fd(),
            work_dir_fd: Some(work.as_raw_fd()),
            pid: Some(request.init_pid),
            leave_running: Some(true),
            tcp_established: Some(true),
            file_locks: Some(true),
            // Errors only: the full log of 32 processes takes 20 ms of the freeze.
            log_level: Some(1),
            log_file: Some("dump.log".to_owned()),
            notify_scripts: Some(true),
            root: Some(config.rootfs.clone()),
            ext_mnt: config.external_mounts(request.init_pid),
            manage_cgroups_mode: Some(rpc::CGROUPS_IGNORE),
            ghost_limit: Some(preflight::ghost_limit(request.init_pid)),
            external: vec![format!("net[{netns}]:extRootNetNS")],
            timeout: Some(seconds),
            tcp_skip_in_flight: Some(true),
            network_lock: Some(rpc::NETWORK_LOCK_SKIP),
        })
    }

    /// What belongs beside CRIU's images: the CPU they were made on, and what runc wants to know of the standard
    /// descriptors, which are `/dev/null` in every container of ours.
    fn write_companions(&self, request: &DumpRequest) -> Result<(), DumpError> {
        let cpuinfo = self.cpuinfo(request.timeout)?;
        let descriptors = br#"["/dev/null","/dev/null","/dev/null"]"#;
        for (name, contents) in [(cpu::CPUINFO, cpuinfo), ("descriptors.json", descriptors)] {
            let path = request.images.join(name);
            fs::write(&path, contents).map_err(|source| DumpError::Io { operation: "write", path, source })?;
        }
        Ok(())
    }

    fn untouched(&self, source: SwrkError) -> DumpError {
        DumpError::Swrk { source, remains: Remains::untouched() }
    }
}

fn criu_failed(lines: String) -> DumpError {
    if lines.contains("In-flight connection (l)") { DumpError::InFlight { lines } } else { DumpError::Criu { lines } }
}

fn gone(pid: i32) -> DumpError {
    let path = PathBuf::from(format!("/proc/{pid}"));
    DumpError::Io { operation: "look at the container's init process", path, source: io::ErrorKind::NotFound.into() }
}

fn report(
    request: &DumpRequest,
    capture: CaptureReport,
    gate_closed: Option<Duration>,
    criu_wall: Duration,
    started: Instant,
) -> Result<DumpReport, DumpError> {
    let io_error = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| DumpError::Io { operation, path, source }
    };
    let stats = images::dump_stats(&request.work).map_err(io_error("read CRIU's statistics in", &request.work))?;
    let pages_written = stats.pages_written + stats.shpages_written.unwrap_or(0);
    if pages_written == 0 {
        return Err(DumpError::NoPages);
    }
    let image_bytes = images::total_bytes(&request.images).map_err(io_error("measure", &request.images))?;
    Ok(DumpReport {
        frozen: Duration::from_micros(stats.frozen_time.into()),
        gate_closed,
        criu_wall,
        wall: started.elapsed(),
        pages_written,
        image_bytes,
        capture,
    })
}

fn open_dir(path: &Path) -> Result<File, DumpError> {
    let error = |source| DumpError::Io { operation: "open the directory", path: path.to_owned(), source };
    let dir = File::open(path).map_err(error)?;
    if dir.metadata().map_err(error)?.is_dir() { Ok(dir) } else { Err(error(io::ErrorKind::NotADirectory.into())) }
}

/// What the gate did not do.
#[derive(Debug)]
pub(super) enum GateFailure {
    Close(io::Error),
    Open(io::Error),
}

impl From<GateFailure> for io::Error {
    fn from(failure: GateFailure) -> Self {
        match failure {
            GateFailure::Close(error) | GateFailure::Open(error) => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_criu_that_does_not_know_the_option_is_named_with_the_remedy() {
        // As CRIU says it without the option, which it ignores when it does not know it.
        let log =
            "Error (criu/sk-inet.c:186): inet: In-flight connection (l) for 2a; Error (criu/sk-inet.c:187): inet: …";
        let error = criu_failed(log.to_owned()).to_string();
        assert!(error.contains("CRIU 4 or newer") && error.contains("for 2a"), "{error}");
        assert!(matches!(criu_failed("Error (criu/x.c:1): else".to_owned()), DumpError::Criu { .. }));
    }
}
