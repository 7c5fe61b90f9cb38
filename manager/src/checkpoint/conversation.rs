//! What is said between CRIU and us during one dump.
//!
//! ```text
//!   CRIU                          we
//!   ── (stops the processes) ──
//!   network-lock     ───────────► close the gate
//!   query-ext-files  ───────────► start copying files, in a thread
//!   ── (dumps) ──
//!   post-dump        ───────────► wait for the copy, stop the clock
//!   ── (sockets work again) ──
//!   network-unlock   ───────────► open the gate
//!   ── (lets the processes run) ──
//!   DUMP success     ───────────►
//! ```
//! CRIU waits for each answer; an answer "no" makes it give up, let the processes run and report failure.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    capture::{Capture, CaptureError, CaptureReport, STACK},
    dump::{DumpError, DumpRequest, Gate, GateFailure},
    rpc::kind,
    swrk::{Swrk, SwrkError},
    urgent::Hurried,
};

pub(super) struct Conversation<'g> {
    gate: &'g mut dyn Gate,
    gate_state: GateState,
    gate_failure: Option<GateFailure>,
    stay_closed: bool,
    stop: Arc<AtomicBool>,
    /// Told to start, the thread copies once and sends the result.
    start: Option<Sender<()>>,
    result: Receiver<Result<CaptureReport, CaptureError>>,
    capture: Result<CaptureReport, CaptureError>,
    step: String,
}

#[derive(Clone, Copy)]
enum GateState {
    Untouched,
    Closed(Instant),
    Opened(Duration),
}

impl<'g> Conversation<'g> {
    /// Makes the first walk of the capture and a thread for the second.
    pub fn prepare(request: &DumpRequest, gate: &'g mut dyn Gate, deadline: Instant) -> Result<Self, DumpError> {
        let stop = Arc::new(AtomicBool::new(false));
        let (start, started) = channel();
        let (done, result) = channel();
        let (ready, is_ready) = channel();
        let capture_request = (request.capture.clone(), request.staging.clone(), request.init_pid, stop.clone());
        // A thread of its own for both walks, and not joined: should the file system hang, only the thread is lost.
        thread::Builder::new()
            .name("ha-capture".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                let (sources, staging, init_pid, stop) = capture_request;
                let capture = match Capture::begin(&sources, &staging, init_pid, stop) {
                    Ok(capture) => capture,
                    Err(error) => return drop(ready.send(Err(error))),
                };
                // Nobody listens any more after a timeout; then there is nothing left to do.
                let hurried = Hurried::this_thread();
                if ready.send(Ok(())).is_ok() && started.recv().is_ok() {
                    let _ = done.send(capture.finish());
                }
                drop(hurried);
            })
            .map_err(|source| DumpError::Io {
                operation: "start a thread for",
                path: request.staging.clone(),
                source,
            })?;
        let failed = |source| DumpError::Capture { source };
        match is_ready.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(ready) => ready.map_err(failed)?,
            Err(RecvTimeoutError::Timeout) => {
                stop.store(true, Ordering::Relaxed);
                return Err(failed(CaptureError::Cancelled));
            }
            Err(RecvTimeoutError::Disconnected) => return Err(failed(CaptureError::Panicked)),
        }
        Ok(Self {
            gate,
            gate_state: GateState::Untouched,
            gate_failure: None,
            stay_closed: request.stay_closed,
            stop,
            start: Some(start),
            result,
            capture: Err(CaptureError::Cancelled),
            step: "asked CRIU to dump".to_owned(),
        })
    }

    /// Answers CRIU until it reports; true when it says that it succeeded.
    pub fn hold(&mut self, swrk: &mut Swrk, deadline: Instant) -> Result<bool, SwrkError> {
        loop {
            let message = swrk.receive(deadline)?;
            if message.kind == kind::DUMP {
                return Ok(message.success);
            }
            if message.kind != kind::NOTIFY {
                let reason = message.errmsg.unwrap_or_else(|| format!("an answer of kind {}", message.kind));
                return Err(SwrkError::Refused { what: "DUMP", reason });
            }
            let script = message.notify.and_then(|notify| notify.script).unwrap_or_default();
            script.clone_into(&mut self.step);
            match script.as_str() {
                "network-lock" => {
                    let closed = self.close_gate();
                    swrk.acknowledge(closed)?;
                }
                "query-ext-files" => {
                    let told = self.start.take().is_some_and(|start| start.send(()).is_ok());
                    swrk.acknowledge(told)?;
                }
                "post-dump" => {
                    self.capture = self.captured(deadline)?;
                    swrk.acknowledge(self.capture.is_ok())?;
                }
                "network-unlock" => {
                    // Before the answer: a process that runs may answer at once what it got before the freeze, and data that
                    // it sends into a closed gate is sent again only after TCP's 200 ms.
                    if !self.stay_closed {
                        self.open_gate();
                    }
                    swrk.acknowledge(true)?;
                }
                // Steps we have no part in.
                _ => swrk.acknowledge(true)?,
            }
        }
    }

    pub fn cancel(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// The last thing CRIU told us.
    pub fn step(&self) -> &str {
        &self.step
    }

    /// After CRIU is gone: opens the gate if it is not, unless it is to stay closed after a success. The time it was closed,
    /// if it is open.
    pub fn settle(&mut self, succeeded: bool) -> Result<Option<Duration>, GateFailure> {
        self.cancel();
        if !(succeeded && self.stay_closed) {
            self.open_gate();
        }
        match (self.gate_failure.take(), self.gate_state) {
            (Some(failure), _) => Err(failure),
            (None, GateState::Opened(closed)) => Ok(Some(closed)),
            (None, GateState::Untouched | GateState::Closed(_)) => Ok(None),
        }
    }

    pub fn into_capture(mut self) -> Result<CaptureReport, CaptureError> {
        std::mem::replace(&mut self.capture, Err(CaptureError::Cancelled))
    }

    fn captured(&mut self, deadline: Instant) -> Result<Result<CaptureReport, CaptureError>, SwrkError> {
        match self.result.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(result) => Ok(result),
            Err(RecvTimeoutError::Timeout) => Err(SwrkError::Timeout),
            Err(RecvTimeoutError::Disconnected) => Ok(Err(CaptureError::Panicked)),
        }
    }

    fn close_gate(&mut self) -> bool {
        // Counted as closed even if it failed: half a closing needs an opening too.
        self.gate_state = GateState::Closed(Instant::now());
        match self.gate.close() {
            Ok(()) => true,
            Err(error) => {
                self.gate_failure = Some(GateFailure::Close(error));
                false
            }
        }
    }

    fn open_gate(&mut self) {
        let GateState::Closed(since) = self.gate_state else { return };
        // Once more: a gate left closed makes the container unreachable for good.
        match self.gate.open().or_else(|_| self.gate.open()) {
            Ok(()) => self.gate_state = GateState::Opened(since.elapsed()),
            Err(error) => {
                self.gate_state = GateState::Opened(since.elapsed());
                self.gate_failure.get_or_insert(GateFailure::Open(error));
            }
        }
    }
}

impl Drop for Conversation<'_> {
    /// For a panic on the way; `settle` has done it otherwise, and then there is nothing left to do.
    fn drop(&mut self) {
        self.cancel();
        if thread::panicking() {
            self.open_gate();
        }
    }
}
